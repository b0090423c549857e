"""A page of `mmclip serve` on a free port, in a thread of this process; and requests to it, by the standard library."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from mmclip_jax.serve import app, run
from mmclip_jax.serve.guards import Doors, Limits

IMAGE = {"Content-Type": "application/octet-stream"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def error(self) -> str:
        return str(self.said["error"])


class Page(NamedTuple):
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """headers: also Host, in place of the right one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def send(self, image: bytes, path: str = "/findings", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, image, IMAGE | named)


@contextlib.contextmanager
def listening(served: Sequence[Any], doors: Doors | None = None, limits: Limits | None = None) -> Iterator[Page]:
    """served: `Served`, or what behaves so."""
    socket = run.listen("127.0.0.1", 0)
    server = run.make_server(app.make_app(served, doors, limits), (limits or Limits()).seconds)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Page(socket.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        socket.close()
