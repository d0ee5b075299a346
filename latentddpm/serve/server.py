"""Server of the page and the API: what `latentddpm serve` starts, and ends by Ctrl-C.

--model ─► offer ─► port taken ─► first model loaded ─► one line that says where ─► requests
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.errors import UserError
from latentddpm.generation.plan import DEFAULT_MODEL
from latentddpm.generation.provenance import model_name
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.serve.access import LOCAL, Access
from latentddpm.serve.gallery import Gallery
from latentddpm.serve.jobs import DrawingQueue
from latentddpm.serve.requests import DrawRequest, Limits, Offer, named_loras
from latentddpm.serve.runner import Runner
from latentddpm.serve.runs import default_folder
from latentddpm.utils import signals
from latentddpm.utils.console import activity, say

if TYPE_CHECKING:
    import uvicorn

    from latentddpm.serve.api import Studio

TOKEN = "LATENTDDPM_TOKEN"
"""Variable of the environment that holds the token."""
SHORTEST_TOKEN = 8
PACKAGES = ("gradio", "fastapi", "uvicorn")


@dataclass(frozen=True)
class ServeOptions:
    """Options of a server.

    Attributes:
        model: model folder, run, or name of a model that ships.
        host, port: to listen at; port 0 takes a free one.
        token: that has to be shown; None for that of the environment, or none.
        out: folder of the pictures.
        runs: folder of runs; None for that of the model, else `runs`.
        loras: files, or folders of runs, that may be asked for.
        limits: of a request.
        queue: drawings that may wait.
        keep: pictures that are kept in `out`; None for all.
        engine, precision, jit: see `latentddpm generate`.
    """

    model: str | Path = DEFAULT_MODEL
    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None
    out: Path = Path("drawings")
    runs: Path | None = None
    loras: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    queue: int = 64
    keep: int | None = None
    engine: str | None = None
    precision: str | None = None
    jit: str | None = None


@dataclass(frozen=True)
class Ready:
    """Server that is ready to answer.

    Attributes:
        app: ASGI application, with what guards it.
        listening: socket that it answers at.
        studio: parts that the page and the API share.
    """

    app: Access
    listening: socket.socket
    studio: Studio

    @property
    def port(self) -> int:
        """Port of the socket."""
        return self.listening.getsockname()[1]


def serve(options: ServeOptions, quiet: bool = False) -> None:
    """Serve a page that draws, and its API, until a signal ends the process.

    Args:
        options: of the server.
        quiet: say nothing, not even where.

    Raises:
        UserError: see `opened`.
    """
    with signals.listening(), opened(options, quiet) as ready:
        for line in start_lines(options, ready):
            say(line, quiet)
        web_server(ready).run(sockets=[ready.listening])


@contextlib.contextmanager
def opened(options: ServeOptions, quiet: bool = True) -> Iterator[Ready]:
    """Server that is ready inside the block: the model loaded, the port taken.

    Args:
        options: of the server.
        quiet: say nothing.

    Raises:
        UserError: missing packages, an address for others without a token, a port in use; or see
            `opened_studio`.
    """
    check_installed()
    token = read_token(options)
    offer = make_offer(options)
    with (
        listen(options.host, options.port) as listening,
        tempfile.TemporaryDirectory(prefix="latentddpm-serve-") as folder,
        opened_studio(options, offer, quiet) as studio,
    ):
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
        os.environ["GRADIO_TEMP_DIR"] = folder
        from latentddpm.serve.api import make_app
        from latentddpm.serve.page import mount

        app = mount(make_app(studio), studio)
        port, uploads = listening.getsockname()[1], bool(offer.conditions.pictures)
        yield Ready(Access(app, token, port, uploads), listening, studio)


@contextlib.contextmanager
def opened_studio(options: ServeOptions, offer: Offer, quiet: bool = True) -> Iterator[Studio]:
    """Parts that the page and the API share, inside the block: gallery, model, queue.

    Args:
        options: of the server.
        offer: of the server.
        quiet: say nothing.

    Raises:
        UserError: the model cannot be loaded, or needs to be told what it is not.
    """
    from latentddpm.serve.api import Studio

    options.out.mkdir(parents=True, exist_ok=True)
    gallery = Gallery(options.out, options.keep)
    runner = Runner(gallery, options.jit)
    with activity(f"loading {model_name(offer.folder)}", quiet):
        first, _ = offer.plan(DrawRequest(**_first_words(offer)), gallery)
        runner.load(first)
    queue = DrawingQueue(runner.draw, options.queue, lambda job: gallery.release(job.inputs))
    try:
        yield Studio(offer, gallery, queue, options.runs or default_folder(offer.folder.path))
    finally:
        queue.close()


def web_server(ready: Ready) -> uvicorn.Server:
    """Web server of an application; its `run` answers until a signal comes.

    Args:
        ready: of `opened`.
    """
    import uvicorn

    config = uvicorn.Config(
        ready.app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        limit_concurrency=1000,
    )
    return uvicorn.Server(config)


def check_installed() -> None:
    """Refuse to serve without the packages of the extra.

    Raises:
        UserError: naming those that are missing.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"serve: needs {', '.join(missing)}: "
            'pip install "latentddpm[ui]", in a checkout pip install ".[ui]"'
        )


def read_token(options: ServeOptions) -> str | None:
    """Token of a server: the option, else the environment.

    Args:
        options: of the server.

    Raises:
        UserError: an address for others without a token, or a token that is guessed at once.
    """
    given = options.token if options.token is not None else os.environ.get(TOKEN)
    token = (given or "").strip() or None  # a secret that is kept in a file ends with a new line
    if token is None and options.host not in LOCAL:
        raise UserError(
            f"--host {options.host}: others could draw here; give a token with {TOKEN}=… in the "
            "environment, or --token"
        )
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UserError(f"--token: {len(token)} characters, expected {SHORTEST_TOKEN} or more")
    return token


def make_offer(options: ServeOptions) -> Offer:
    """Offer of a server.

    Args:
        options: of the server.

    Raises:
        UserError: see `read_model_folder`; a model without a UNet, or one that draws no PNG.
    """
    folder = read_model_folder(options.model, verify=False)
    folder.file("unet")
    if folder.pixels.suffix != ".png":
        raise UserError(
            f"{options.model}: draws {folder.pixels}, which no page shows; latentddpm generate "
            f"writes it as {folder.pixels.suffix}"
        )
    loras = named_loras(folder, options.loras)
    return Offer(folder, loras, options.limits, options.engine, options.precision)


def listen(host: str, port: int) -> socket.socket:
    """Socket that listens at an address.

    Args:
        host: a name or an address.
        port: 0 for a free one.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror or error}") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except PermissionError:
        found.close()
        raise UserError(f"--port {port}: not allowed here; choose one from 1024 up") from None
    except OSError as error:
        found.close()
        where = f"{host}:{port}"
        raise UserError(f"--port {port}: {where}: {error.strerror}; choose another one") from None
    return found


def start_lines(options: ServeOptions, ready: Ready) -> list[str]:
    """Lines that say where a server is.

    Args:
        options: of the server.
        ready: of `opened`.
    """
    host = "localhost" if options.host in LOCAL else options.host
    host = f"[{host}]" if ":" in host else host
    note = "" if ready.app.token is None else ", which asks for the token"
    model = model_name(ready.studio.offer.folder)
    return [
        f"{model} draws at http://{host}:{ready.port}/{note} (Ctrl-C ends it)",
        f"pictures are written to {options.out}{os.sep}",
    ]


def _first_words(offer: Offer) -> dict[str, Any]:
    """Fields of a request that every model takes: values for what it always has to be told."""
    own = {one.name: "" for one in offer.conditions.vectors if not one.null}
    found = {}
    for name in own:
        one = offer.conditions[name]
        words = getattr(one, "words", ())
        found[name] = words[0] if words else one.to_text(getattr(one, "mean", ()))
    return {"labels": found} if found else {}
