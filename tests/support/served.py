"""A server of a tiny model in a thread, and a client that asks it as any program would."""

import base64
import contextlib
import http.client
import io
import json
import threading

import numpy as np
from PIL import Image

from latentddpm.serve.access import Access
from latentddpm.serve.requests import Limits
from latentddpm.serve.server import (
    Ready,
    ServeOptions,
    listen,
    make_offer,
    opened_studio,
    web_server,
)
from latentddpm.serve.server import opened as opened_page

TOKEN = "a token of the tests"
LIMITS = Limits(images=16, steps=1000, pixels=64 * 64)


@contextlib.contextmanager
def served(model, out, page=False, token=TOKEN, **options):
    """A server in a thread; with `page`, also what gradio makes."""
    given = ServeOptions(model, port=0, token=token, out=out, limits=LIMITS, **options)
    with opened_page(given) if page else opened_api(given) as ready:
        server = web_server(ready)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [ready.listening]})
        thread.start()
        try:
            yield Client(ready)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the server should end within 20 seconds"


@contextlib.contextmanager
def opened_api(options):
    """What `opened` makes, without the page: gradio takes seconds to import."""
    from latentddpm.serve.api import make_app

    with (
        listen(options.host, options.port) as listening,
        opened_studio(options, make_offer(options)) as studio,
    ):
        port = listening.getsockname()[1]
        yield Ready(
            Access(make_app(studio), options.token, port, most_bytes=1 << 20), listening, studio
        )


class Client:
    """A program that asks a server."""

    def __init__(self, ready):
        self.studio, self.port, self.token = ready.studio, ready.port, ready.app.token
        self.address = f"http://127.0.0.1:{ready.port}"

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of an answer; the path goes out as it is."""
        headers = {"Authorization": f"Bearer {self.token}", **headers}
        headers = {name.replace("_", "-"): value for name, value in headers.items() if value}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def json(self, method, path, value=None):
        """Status and JSON of an answer."""
        body = None if value is None else json.dumps(value)
        status, _, text = self.ask(method, path, body, Content_Type="application/json")
        return status, json.loads(text)

    def draw(self, **request):
        """Job that a request makes."""
        status, job = self.json("POST", "/api/draw", request)
        assert status == 202, f"expected 202 for {request}: {status} {job}"
        return job

    def ended(self, job):
        """Job once it has ended."""
        status, job = self.json("GET", f"/api/jobs/{job['id']}?wait=60")
        assert status == 200, f"expected the job: {status} {job}"
        return job

    def picture(self, place):
        """Bytes of a picture."""
        status, _, body = self.ask("GET", f"/{place}")
        assert status == 200, f"expected the picture {place}: {status}"
        return body


def as_base64(pixels):
    """PNG of pixels in base64."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def square(size=32, colour=(200, 40, 40)):
    """A picture, uint8 (size, size, 3), and the mask of its right half."""
    mask = np.zeros((size, size), np.uint8)
    mask[:, size // 2 :] = 255
    return np.full((size, size, 3), colour, np.uint8), mask
