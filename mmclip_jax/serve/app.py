"""The page and its answers, as an ASGI application. Nothing of an image, nor its name, is kept, written or logged.

An upload is the request's body as it is: forms of several parts would be spooled to disk. Each request is alone: for
the map of some words the page sends the image again.
"""

import asyncio
import base64
import concurrent.futures
import contextlib
import io
import pathlib
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import jinja2
import numpy as np
import PIL.Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

import mmclip_jax
from mmclip_jax.data.images import dicom, grey
from mmclip_jax.data.images.quiet import quiet
from mmclip_jax.data.phantom.generate import encode_png
from mmclip_jax.errors import UserError
from mmclip_jax.inference.inputs import as_pixels
from mmclip_jax.inference.stamp import OWN_WORDS, RESEARCH_ONLY
from mmclip_jax.serve import examples
from mmclip_jax.serve.guards import App, Doors, Guard, Limits, Refusal, read_body, split_host
from mmclip_jax.serve.served import MOST_CHARACTERS, Served, shown

_PAGES = pathlib.Path(__file__).parent / "pages"
_FILES = {"style.css": "text/css", "page.js": "text/javascript", "sign_in.js": "text/javascript"}
_OPEN = ("/sign-in", "/style.css", "/sign_in.js")
_DECODERS = 2  # images that are decoded at once
_NO_TOKEN_BODY = 1024  # bytes of a token at most


def make_app(served: Sequence[Served], doors: Doors | None = None, limits: Limits | None = None) -> App:
    """The application that serves one model, or two of them side by side.

    doors: default, this machine alone without a token.
    """
    return _Application(served, doors or Doors(), limits or Limits()).guarded()


class _Application:
    """Its requests decode in threads of their own; the models answer one image after the other, in one thread."""

    def __init__(self, served: Sequence[Served], doors: Doors, limits: Limits):
        self._served, self._doors, self._limits = list(served), doors, limits
        self._decoders = concurrent.futures.ThreadPoolExecutor(_DECODERS, "decode")
        self._models = concurrent.futures.ThreadPoolExecutor(1, "model")
        self._waiting = 0
        self._pages = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_PAGES), autoescape=True, undefined=jinja2.StrictUndefined
        )
        self._files = {name: (_PAGES / name).read_text(encoding="utf-8") for name in _FILES}

    def guarded(self) -> App:
        """With all that stands before it."""
        answers: tuple[tuple[str, str, Callable[[Request], Awaitable[Response]]], ...] = (
            ("/", "GET", self._page),
            ("/sign-in", "POST", self._sign_in),
            ("/findings", "POST", self._findings),
            ("/map", "POST", self._map),
            ("/examples/{number:int}.png", "GET", self._example),
            *((f"/{name}", "GET", self._file) for name in _FILES),
        )
        routes = [Route(path, _answered(answer), methods=[method]) for path, method, answer in answers]
        unknown = {HTTPException: _unknown}
        return Guard(Starlette(routes=routes, exception_handlers=unknown), self._doors, _OPEN, self._refuse)

    def _refuse(self, status: int, reason: str, wants_page: bool) -> App:
        if status == 401 and wants_page:
            return HTMLResponse(self._pages.get_template("sign_in.html.j2").render(note=RESEARCH_ONLY), 401)
        return _refusal(status, reason)

    async def _page(self, request: Request) -> Response:
        facts = [each.facts() for each in self._served]
        page = self._pages.get_template("page.html.j2").render(
            models=facts,
            note=RESEARCH_ONLY,
            reads_words=any(each["reads_words"] for each in facts),
            examples=range(examples.COUNT),
            limits=self._limits,
            most_characters=MOST_CHARACTERS,
            version=mmclip_jax.__version__,
        )
        return HTMLResponse(page)

    async def _file(self, request: Request) -> Response:
        name = request.url.path[1:]
        return Response(self._files[name], media_type=_FILES[name])

    async def _sign_in(self, request: Request) -> Response:
        given = await read_body(request.receive, request.headers, _NO_TOKEN_BODY, self._limits.seconds)
        if self._doors.token is None:
            return RedirectResponse("/", 303)
        if not self._doors.is_token(given.decode("utf-8", "replace").strip()):
            raise Refusal(401, "this is not the token")
        answer = Response(status_code=204)
        _, port = split_host(request.headers["host"])
        name = self._doors.cookie_name(port or 80)
        answer.set_cookie(name, self._doors.cookie(), httponly=True, samesite="strict", path="/")
        return answer

    async def _example(self, request: Request) -> Response:
        number = int(request.path_params["number"])
        if number >= examples.COUNT:
            raise Refusal(404, f"there are {examples.COUNT} examples")
        image, drawn = await self._in(self._decoders, lambda: examples.example(number))
        return Response(image, media_type="image/png", headers={"X-Drawn": drawn})

    async def _findings(self, request: Request) -> Response:
        def score(pixels: np.ndarray) -> list[dict[str, Any]]:
            rows = [each.score(pixels) for each in self._served]
            # In the order of the first model, so that two can be compared row by row.
            order = {row["finding"]: number for number, row in enumerate(rows[0])}
            for several in rows[1:]:
                several.sort(key=lambda row: order.get(row["finding"], len(order)))
            return [each.facts() | {"findings": own} for each, own in zip(self._served, rows, strict=True)]

        with self._in_line():
            pixels = await self._uploaded(request)
            models = await self._in(self._models, lambda: score(pixels))
        height, width = pixels.shape
        image = _data_url(encode_png(shown(pixels)))
        return JSONResponse({"image": image, "width": width, "height": height, "models": models})

    async def _map(self, request: Request) -> Response:
        words = " ".join(unquote(request.headers.get("x-words", "")).split())

        def respond(pixels: np.ndarray) -> list[dict[str, Any]]:
            answers = []
            for each in self._served:
                said = each.facts()
                if each.reads_words:
                    response = each.respond(pixels, words)
                    over, figure = each.draw(pixels, words, response)
                    said |= {
                        "similarity": round(response.similarity, 4),
                        "exposure": OWN_WORDS,
                        "map": _data_url(_as_png(PIL.Image.fromarray(over))),
                        "figure": _data_url(_as_png(figure)),
                    }
                answers.append(said)
            return answers

        with self._in_line():
            if not any(each.reads_words for each in self._served):
                raise Refusal(422, "a fine-tuned classifier reads no words and has no maps")
            pixels = await self._uploaded(request)
            models = await self._in(self._models, lambda: respond(pixels))
        return JSONResponse({"words": words, "models": models})

    @contextlib.contextmanager
    def _in_line(self) -> Iterator[None]:
        """Counts the images that are on their way.

        Raises:
          Refusal: there are too many.
        """
        if self._waiting >= self._limits.waiting:
            raise Refusal(503, f"{self._waiting} images are being looked at already: try again in a moment")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _uploaded(self, request: Request) -> np.ndarray:
        """The pixels of a request's body, uint8 [H, W]."""
        if request.headers.get("content-type") != "application/octet-stream":
            raise Refusal(415, "an image is sent as application/octet-stream")
        most = int(self._limits.megabytes * 1e6)
        data = await read_body(request.receive, request.headers, most, self._limits.seconds)

        def decode() -> np.ndarray:
            _check_size(data, self._limits.megapixels)
            return as_pixels(data)

        return await self._in(self._decoders, decode)

    async def _in(self, pool: concurrent.futures.Executor, work: Callable[[], Any]) -> Any:
        """What `work` returns in a thread of a pool.

        Raises:
          Refusal: it takes too long.
        """
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await asyncio.get_running_loop().run_in_executor(pool, work)
        except TimeoutError as error:
            raise Refusal(503, f"the answer took more than {self._limits.seconds:g} s") from error


def _answered(answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """With every error as a line for the page; on the terminal stands where a fault is, and nothing of what it says."""

    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        except Refusal as refusal:
            return _refusal(refusal.status, refusal.reason)
        except UserError as error:
            return _refusal(422, " ".join(str(error).split()))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{pathlib.Path(place.filename).name}:{place.lineno}"
            print(f"mmclip: unexpected {type(error).__name__} at {where}", file=sys.stderr, flush=True)
            return _refusal(500, f"unexpected {type(error).__name__} ({where})")

    return answered


async def _unknown(request: Request, error: Exception) -> Response:
    """Of a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    answer = _refusal(error.status_code, f"{request.method} {request.url.path} is not answered here")
    answer.headers.update(error.headers or {})
    return answer


def _refusal(status: int, reason: str) -> Response:
    # What is left of an upload is not read.
    headers = {"Connection": "close"} if status in (400, 408, 413) else {}
    return JSONResponse({"error": reason}, status, headers)


def _check_size(data: bytes, megapixels: float) -> None:
    """Refuses an image by what its header says, before memory is spent on it.

    Raises:
      UserError: it is larger than allowed; of DICOM, see `dicom.read_header`.
    """
    if dicom.is_dicom(data):
        header = dicom.read_header(data)
        width, height = int(header.Columns), int(header.Rows)
    else:
        try:
            with quiet(), PIL.Image.open(io.BytesIO(data), formats=grey.FORMATS) as opened:
                width, height = opened.size
        except Exception:  # whoever decodes it says what is wrong with it
            return
    if width * height > megapixels * 1e6:
        raise UserError(f"the image has {width:,} x {height:,} pixels: more than {megapixels:g} megapixels")


def _as_png(image: PIL.Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
