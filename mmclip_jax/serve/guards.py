"""What stands before the page: who may ask (address, origin, token), how much may be sent, what a browser may do."""

import asyncio
import dataclasses
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import cookies
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmclip_jax.errors import UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
LEAST_TOKEN = 16  # characters
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer: nothing is kept by the browser, nothing is loaded from elsewhere, no other page may frame it."""


class Refusal(Exception):
    """A request that is not answered: an HTTP status, and why, in a line that may be shown."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much one image may take.

    megabytes: of a file (10^6 bytes); megapixels: of the image in it; seconds: for the head of a request, for its
    upload, and again for its answer; waiting: images that may be on their way at once.
    """

    megabytes: float = 50
    megapixels: float = 50
    seconds: float = 60
    waiting: int = 16


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """A token of 256 random bits."""
    return secrets.token_urlsafe(32)


def read_token(file: Path) -> str:
    """The token in a file of one line.

    Raises:
      UserError: the file cannot be read, others may read it, or it holds no token of `LEAST_TOKEN` characters.
    """
    try:
        mode = file.stat().st_mode
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: the token cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(f"{file}: others may read the token: chmod 600 {file}")
    if len(token) < LEAST_TOKEN or len(token.split()) != 1 or not token.isascii() or not token.isprintable():
        raise UserError(
            f"{file}: a token is one line of at least {LEAST_TOKEN} ASCII characters without spaces, such as "
            "openssl rand -hex 32 writes"
        )
    return token


@dataclasses.dataclass(frozen=True)
class Doors:
    """Who may ask.

    host: the address that is listened on; names: other names by which the server may be called; token: what a request
    has to show, None for none.
    """

    host: str = "127.0.0.1"
    names: Sequence[str] = ()
    token: str | None = None

    def knows(self, name: str) -> bool:
        """Whether a request may call the server so.

        A page of somebody else can have its own name resolve to this machine (DNS rebinding); its requests carry that
        name. An address of digits cannot be rebound.
        """
        name = name.lower().rstrip(".")
        if name in LOOPBACK or name == self.host.lower() or name in {each.lower() for each in self.names}:
            return True
        if is_loopback(self.host):
            return False
        if name == socket.gethostname().lower():
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def cookie_name(self, port: int) -> str:
        """Cookies know no ports: each server has a name of its own."""
        return f"mmclip-{port}"

    def cookie(self) -> str:
        """What a browser keeps in place of the token."""
        return hmac.new((self.token or "").encode(), b"mmclip serve: cookie", hashlib.sha256).hexdigest()

    def is_token(self, given: str) -> bool:
        """Compares in constant time."""
        return hmac.compare_digest(given.encode(), (self.token or "").encode())

    def admits(self, headers: dict[str, str], port: int) -> bool:
        """Whether a request has the token, as a bearer or as the cookie."""
        if self.token is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(given.strip()):
            return True
        try:
            kept = cookies.SimpleCookie(headers.get("cookie", "")).get(self.cookie_name(port))
        except cookies.CookieError:
            return False
        return kept is not None and hmac.compare_digest(kept.value.encode(), self.cookie().encode())


def split_host(value: str) -> tuple[str, int | None]:
    """("name", port) of a Host header; ("", None) of one that is none."""
    try:
        parts = urlsplit(f"//{value}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return "", None
    return ("", None) if parts.netloc != value or "@" in value else (name, port)


class Guard:
    """Wraps an ASGI application: checks Host, Origin and token, and sets `HEADERS` on every answer.

    open_paths: what is answered without a token; answer(status, reason) makes the application of a refusal.
    """

    def __init__(self, app: App, doors: Doors, open_paths: Sequence[str], answer: Callable[[int, str, bool], App]):
        self._app, self._doors, self._open, self._answer = app, doors, frozenset(open_paths), answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; other protocols than HTTP are not spoken."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                names = {name for name, _ in added}
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in names]
                message = {**message, "headers": [*kept, *added]}
            await send(message)

        app = self._app
        try:
            self._check(scope)
        except Refusal as refusal:
            wants_page = scope["method"] == "GET" and scope["path"] == "/"
            app = self._answer(refusal.status, refusal.reason, wants_page)
        await app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        names = [name for name, _ in scope["headers"]]
        if names.count(b"host") != 1 or names.count(b"origin") > 1:
            raise Refusal(400, "the request has no Host header, or several")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        name, port = split_host(headers["host"])
        if not self._doors.knows(name):
            raise Refusal(421, "this server is not known by that name: start it with --name NAME to have it so")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "only GET and POST are answered")
        if scope["method"] == "POST":
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != headers["host"].lower():
                raise Refusal(403, "the request comes from a page of another server")
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                raise Refusal(403, "the request comes from a page of another server")
        if scope["path"] not in self._open and not self._doors.admits(headers, port or 80):
            raise Refusal(401, "the token is missing or wrong")


async def read_body(receive: Receive, headers: Any, most: int, seconds: float) -> bytes:
    """The body of a request, of at most `most` bytes, that arrives within `seconds`. It is held in memory alone.

    Raises:
      Refusal: it is longer, slower, or was broken off.
    """
    too_long = Refusal(413, f"the file is larger than {most / 1e6:g} MB")
    stated = headers.get("content-length", "")
    if stated.isdigit() and int(stated) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "the upload was broken off")
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise Refusal(408, f"the upload took more than {seconds:g} s") from error
