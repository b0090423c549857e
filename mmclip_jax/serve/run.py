"""`mmclip serve`: loads the models, listens, and answers until it is interrupted."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmclip_jax.errors import UserError, extra
from mmclip_jax.inference import model as model_lib
from mmclip_jax.inference import prediction, stamp
from mmclip_jax.inference.classifier import Classifier
from mmclip_jax.serve.guards import App, Doors, Limits, is_loopback, new_token, read_token
from mmclip_jax.serve.served import Served

if TYPE_CHECKING:
    import uvicorn

_CONNECTIONS = 64  # at once
_GRACE = 5  # seconds for what is being answered when the server ends


def check_installed() -> None:
    """Refuses to go on without the packages of the extra.

    Raises:
      UserError: they are not installed.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"mmclip serve needs {extra('serve')}") from error


def open_doors(host: str, names: Sequence[str], token_file: Path | None) -> Doors:
    """Who may ask: on an address that other machines reach, whoever has the token, which is made where none is given.

    Raises:
      UserError: as for `read_token`.
    """
    token = read_token(token_file) if token_file is not None else None
    if token is None and not is_loopback(host):
        token = new_token()
    return Doors(host, tuple(names), token)


def load(place: str, step: int | None, findings: Sequence[str]) -> Served:
    """A run to serve, with all its functions compiled.

    findings: [] stands for those that training texts stated, or all outputs of a classifier.

    Raises:
      UserError: as for `inference.model.load` and `prediction.ask`.
    """
    model = model_lib.load(place, step)
    if isinstance(model, Classifier):
        asked = prediction.ask_classifier(model, findings)
    else:
        thresholds = prediction.read_thresholds(place, model.step, model.logit_scale)
        asked = prediction.ask(model, findings or stamp.known_findings(model.manifest), thresholds)
    served = Served(place, model, asked)
    side = model.config.model.image_size
    ramp = np.arange(side * side, dtype=np.int64).reshape(side, side) % 251
    served.score(ramp.astype(np.uint8))
    if served.reads_words:
        served.respond(ramp.astype(np.uint8), "lungs")
    return served


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any that is free.

    Raises:
      UserError: the address is none of this machine, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_CONNECTIONS)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): choose others with --host and --port"
        ) from error
    return listening


def run(served: Sequence[Served], doors: Doors, limits: Limits, listening: socket.socket) -> None:
    """Answers until SIGINT (Ctrl-C) or SIGTERM."""
    from mmclip_jax.serve.app import make_app

    for line in greeting(served, doors, listening.getsockname()[1]):
        print(line, flush=True)
    make_server(make_app(served, doors, limits), limits.seconds).run(sockets=[listening])


def make_server(app: App, seconds: float) -> "uvicorn.Server":
    """What speaks HTTP: it logs nothing, and believes no header of a proxy.

    A connection has `seconds` for the head of a request, from when it is made or the last answer ended; what comes
    afterwards, `Limits` bounds.
    """
    import asyncio

    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._due = self.loop.call_later(seconds, self._close_if_idle)

        def connection_lost(self, exc: Exception | None) -> None:
            self._due.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._due.cancel()
            self._due = self.loop.call_later(seconds, self._close_if_idle)
            super().on_response_complete()

        def _close_if_idle(self) -> None:
            if self.cycle is None or self.cycle.response_complete:  # else `on_response_complete` comes
                self.transport.close()

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # As uvicorn's, which raises the signal again afterwards: for a server it is the way to end, and no error.
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # a traceback may quote what an image's header holds
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE,
    )
    return Server(config)


def greeting(served: Sequence[Served], doors: Doors, port: int) -> list[str]:
    """What the terminal says: the models, warnings, the address (its token behind #, which no browser sends on)."""
    host = doors.host
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    lines = [f"{each.name}, step {each.model.step:,}: learnt from {each.domain}" for each in served]
    lines.append(stamp.RESEARCH_ONLY)
    if doors.token is not None:
        address += f"#token={doors.token}"
    if not is_loopback(doors.host):
        lines.append("Other machines reach this server, and what they send is not encrypted (docs/serve.md).")
    return [*lines, f"Open {address} (Ctrl-C ends it)"]
