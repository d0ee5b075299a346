"""Access to a server: who may ask, from which page, and how much is read of a request.

    host      without a token only this machine's own names, so no page of another site reaches it
              under a name of its own (DNS rebinding)
    origin    a browser's page of another site changes nothing
    token     in `Authorization: Bearer`, or in the cookie that `/?token=…` and the form set
    size      a body over the limit is refused with 413, before it is read

`/healthz` asks for no token. Nothing that a page of the server loads comes from elsewhere: the
header `Content-Security-Policy` has the browser refuse it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

HEALTH = "/healthz"
LOGIN = "/token"
UPLOADS = "/gradio_api/upload"
"""Path at which gradio keeps files for an hour: those of the page's own fields for pictures."""
LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine for itself."""
MOST_BYTES = 48 << 20
"""Bytes of a request: the pictures of one drawing in base64."""
OWNER = "latentddpm-owner"
"""Cookie that tells one browser's drawings from another's."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; form-action 'self'; base-uri 'self'; "
    "object-src 'none'"
)
FORM = """<!doctype html><html lang="en"><meta charset="utf-8"><title>latentddpm</title>
<meta name="viewport" content="width=device-width"><style>
body {{ font: 1rem system-ui, sans-serif; display: grid; place-items: center; height: 90vh }}
form {{ display: grid; gap: .6rem; width: 18rem }}
input, button {{ font: inherit; padding: .5rem }}
</style><form method="post" action="{action}"><label for="token">Token of this server</label>
<input id="token" name="token" type="password" autofocus><button>Open</button><small>{hint}</small>
</form></html>"""

Send = Callable[[Mapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class _TooLarge(Exception):
    """Body over the limit."""


@dataclass(frozen=True)
class Access:
    """Access to an ASGI application: a middleware in front of all of it.

    Attributes:
        app: the application.
        token: that has to be shown; None for none.
        port: of the server, a part of the cookie's name.
        takes_uploads: the page has fields for pictures that gradio uploads.
        most_bytes: of the body of a request.
    """

    app: Callable[..., Awaitable[None]]
    token: str | None
    port: int
    takes_uploads: bool = False
    most_bytes: int = MOST_BYTES

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on.

        Args:
            scope, receive, send: of ASGI.
        """
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): v.decode("latin-1") for key, v in scope["headers"]}
        path, method = scope["path"], scope["method"]
        if path == HEALTH:
            await _answer(send, 200, "ok")
            return
        if refusal := self._foreign(headers, method):
            await _answer(send, 403, _json(refusal), "application/json")
            return
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.most_bytes:
            await _answer(send, 413, _json(self._too_large()), "application/json")
            return
        if self.token is not None and not self._shown(headers):
            await self._ask(scope, receive, send)
            return
        asked_again = path == LOGIN and method == "POST"  # the form in a second tab
        named = path == "/" and method == "GET" and b"token=" in scope["query_string"]
        if asked_again or named:
            await _answer(send, 303, "", headers=[("location", "./")])  # out of the address line
            return
        if path.startswith(UPLOADS) and not self.takes_uploads:
            await _answer(send, 404, _json("upload: this model takes none"), "application/json")
            return
        await self._hand_on(scope, receive, send, cookies_of(headers.get("cookie", "")))

    # --- Who -----------------------------------------------------------------------------------

    def _foreign(self, headers: Mapping[str, str], method: str) -> str:
        """Reason to refuse a request that another site's page makes; "" for none."""
        host = headers.get("host", "")
        if self.token is None and _name_of(host) not in LOCAL:
            return f"host {host!r:.80}: a server without a token answers to localhost; use --token"
        origin = headers.get("origin")
        if method not in ("GET", "HEAD") and origin and urlsplit(origin).netloc != host:
            return f"origin {origin!r:.80}: expected a page of {host:.80}"
        return ""

    @property
    def _cookie(self) -> str:
        return f"latentddpm-token-{self.port}"

    @property
    def _cookie_value(self) -> str:
        """Value of the cookie: not the token itself, which may open other things."""
        return hashlib.sha256(f"latentddpm {self.token}".encode()).hexdigest()

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), str(self.token).encode())

    def _shown(self, headers: Mapping[str, str]) -> bool:
        """True for a request that shows the token, or the cookie."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        cookie = cookies_of(headers.get("cookie", "")).get(self._cookie, "")
        return hmac.compare_digest(cookie.encode(), self._cookie_value.encode())

    async def _ask(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request without the token: open the door to one that brings it, else refuse."""
        path, method = scope["path"], scope["method"]
        if path == LOGIN and method == "POST":
            given = parse_qs((await _body(receive, 4096)).decode("utf-8", "replace"))
        else:
            given = parse_qs(scope["query_string"].decode("latin-1"))
        token = given.get("token", [""])[0]
        door = (path == "/" and method == "GET") or (path == LOGIN and method == "POST")
        if door and self._is_token(token):
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            cookie = f"{self._cookie}={self._cookie_value}; HttpOnly; SameSite=Lax; Path=/{secure}"
            await _answer(send, 303, "", headers=[("location", "./"), ("set-cookie", cookie)])
        elif door:
            hint = "This is not the token." if token else "It was chosen when the server started."
            page = FORM.format(action=LOGIN.removeprefix("/"), hint=hint)
            await _answer(send, 401, page, "text/html; charset=utf-8")
        else:
            say = "token: expected the header Authorization: Bearer TOKEN"
            more = [("www-authenticate", "Bearer")]
            await _answer(send, 401, _json(say), "application/json", more)

    # --- How much ------------------------------------------------------------------------------

    def _too_large(self) -> str:
        return f"request: over {self.most_bytes >> 20} MiB, which this server does not read"

    async def _hand_on(
        self, scope: dict[str, Any], receive: Receive, send: Send, cookies: Mapping[str, str]
    ) -> None:
        """Hand a request on, counting its bytes; the answer gets the headers of all answers."""
        read, started, refused = 0, False, False
        own = [("content-security-policy", POLICY), ("x-content-type-options", "nosniff")]
        own += [("referrer-policy", "no-referrer")]
        if scope["path"] == "/" and OWNER not in cookies:
            value = secrets.token_urlsafe(16)
            own += [("set-cookie", f"{OWNER}={value}; HttpOnly; SameSite=Lax; Path=/")]

        async def counted() -> dict[str, Any]:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most_bytes:
                if not (started or refused):
                    await _answer(send, 413, _json(self._too_large()), "application/json")
                refused = True
                raise _TooLarge
            return message

        async def with_headers(message: Mapping[str, Any]) -> None:
            nonlocal started
            if refused:  # what the application says to its own failure
                return
            if message["type"] == "http.response.start":
                started = True
                more = [(key.encode(), value.encode()) for key, value in own]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        with contextlib.suppress(_TooLarge):
            await self.app(scope, counted, with_headers)


def cookies_of(header: str) -> dict[str, str]:
    """Cookies of a header, by name.

    Args:
        header: `Cookie` of a request.
    """
    from starlette.requests import cookie_parser  # as browsers do: an odd one hides no other

    return cookie_parser(header)


def _name_of(host: str) -> str:
    """Name in a `Host` header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _json(error: str) -> str:
    return json.dumps({"error": error})


async def _body(receive: Receive, most: int) -> bytes:
    """Body of a request, cut off behind a number of bytes."""
    found = b""
    while len(found) <= most:
        message = await receive()
        found += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    return found[:most]


async def _answer(
    send: Send,
    status: int,
    text: str,
    kind: str = "text/plain; charset=utf-8",
    headers: list[tuple[str, str]] | None = None,
) -> None:
    """Send a whole answer."""
    body = text.encode()
    own = [("content-type", kind), ("content-length", str(len(body))), *(headers or [])]
    own += [("content-security-policy", POLICY), ("cache-control", "no-store")]
    encoded = [(key.encode(), value.encode()) for key, value in own]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
