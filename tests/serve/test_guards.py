"""Who may ask the page of `mmclip serve`, how much they may send, and what stays of it: nothing."""

import contextlib
import http.client
import io
import logging
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from dicoms import compressed, dicom_file
from PIL import Image

listening = pytest.importorskip("listening", reason="starlette and uvicorn are not installed")

from mmclip_jax.errors import UserError  # noqa: E402
from mmclip_jax.serve import app as app_lib  # noqa: E402
from mmclip_jax.serve import guards, run  # noqa: E402
from mmclip_jax.serve.guards import Doors, Limits  # noqa: E402

TOKEN = "a-token-of-the-user-0123456789"


class Stand:
    """In place of a model: says the mean of each image's pixels, or does what it was told to."""

    reads_words = False

    def __init__(self, does: Callable[[np.ndarray], float] = lambda pixels: float(pixels.mean()) / 255):
        self._does = does

    def facts(self) -> dict[str, Any]:
        return {"name": "stand", "step": 1, "domain": "nothing", "reads_words": False, "note": "Research use only"}

    def score(self, pixels: np.ndarray) -> list[dict[str, Any]]:
        return [{"finding": "mean", "probability": self._does(pixels), "exposure": "none"}]


def png(value: int = 0, side: int = 40) -> bytes:
    pixels = np.full((side, side), value, np.uint8)
    pixels[0, 0] = 255 - value
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with listening.listening([Stand()], limits=Limits(megabytes=0.5, megapixels=0.25)) as found:
        yield found


@pytest.fixture(scope="module")
def guarded() -> Iterator[Any]:
    """As on an address that other machines reach."""
    with listening.listening([Stand()], Doors("0.0.0.0", ("films.example",), TOKEN)) as found:
        yield found


def host(page: Any, name: str) -> dict[str, str]:
    return {"Host": f"{name}:{page.port}"}


# ---------------------------------------------------------------------------------------------------------------------
# Headers, names, origins


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 200), ("GET", "/page.js", 200), ("GET", "/nothing", 404), ("POST", "/findings", 415),
     ("GET", "/findings", 405), ("PUT", "/", 405), ("GET", "/examples/99.png", 404), ("GET", "/../guards.py", 404)],
)  # fmt: skip
def test_every_answer_has_the_headers(page: Any, method: str, path: str, status: int) -> None:
    answer = page.ask(method, path)
    assert answer.status == status
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "server" not in answer.headers


def test_the_page_says_what_it_is_not_for(page: Any) -> None:
    text = page.ask("GET", "/").body.decode()
    assert "Research use only" in text
    assert "No medical device" in text
    assert "http://" not in text  # nothing is loaded from elsewhere
    assert "https://" not in text


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_names_of_this_machine_are_known(page: Any, name: str) -> None:
    assert page.ask("GET", "/", headers=host(page, name)).status == 200


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "10.0.0.7", "a@127.0.0.1", "", "[::1", "x/y"]
)
def test_a_name_that_resolves_here_by_somebody_elses_will_is_refused(page: Any, name: str) -> None:
    for method, path in (("GET", "/"), ("POST", "/findings"), ("GET", "/style.css")):
        assert page.ask(method, path, headers=host(page, name)).status == 421


def test_a_request_has_one_host(page: Any) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 400 " in raw.recv(1000).splitlines()[0]
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 400 " in raw.recv(1000).splitlines()[0]


def test_on_other_addresses_digits_and_given_names_are_known(guarded: Any) -> None:
    for name in ("10.0.0.7", "[fd00::7]", "films.example", "Films.Example", socket.gethostname()):
        assert guarded.ask("GET", "/style.css", headers=host(guarded, name)).status == 200, name
    for name in ("evil.example", "films.example.evil.example", "10.0.0.7.evil.example"):
        assert guarded.ask("GET", "/style.css", headers=host(guarded, name)).status == 421, name


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"]
)
def test_another_page_cannot_send(page: Any, origin: str) -> None:
    assert page.send(png(), Origin=origin).status == 403


def test_this_page_can_and_so_can_a_program(page: Any) -> None:
    origin = f"http://127.0.0.1:{page.port}"
    assert page.send(png(), Origin=origin, Sec_Fetch_Site="same-origin").status == 200
    assert page.send(png()).status == 200
    assert page.send(png(), Sec_Fetch_Site="cross-site").status == 403
    assert page.send(png(), Sec_Fetch_Site="same-site").status == 403
    # What a form of another page can send without being asked first is not taken.
    assert page.ask("POST", "/findings", png(), {"Content-Type": "text/plain"}).status == 415


# ---------------------------------------------------------------------------------------------------------------------
# The token


def test_nothing_is_answered_without_the_token(guarded: Any) -> None:
    for method, path in (("GET", "/page.js"), ("GET", "/examples/0.png"), ("GET", "/nothing"), ("POST", "/map")):
        assert guarded.ask(method, path).status == 401, path
    assert guarded.send(png()).status == 401
    first = guarded.ask("GET", "/")
    assert first.status == 401
    assert b"token" in first.body
    assert b"stand" not in first.body  # not even the model's name


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}"]
)
def test_a_wrong_token_is_none(guarded: Any, given: str) -> None:
    assert guarded.send(png(), Authorization=given).status == 401


def test_the_token_opens(guarded: Any) -> None:
    assert guarded.send(png(), Authorization=f"Bearer {TOKEN}").status == 200


def test_a_browser_keeps_a_cookie_that_is_not_the_token(guarded: Any) -> None:
    assert guarded.ask("POST", "/sign-in", "wrong").status == 401
    assert guarded.ask("POST", "/sign-in", b"\xff\xfe").status == 401
    assert guarded.ask("POST", "/sign-in", "x" * 5000).status == 413
    answer = guarded.ask("POST", "/sign-in", TOKEN)
    assert answer.status == 204
    cookie, *rules = (part.strip() for part in answer.headers["set-cookie"].split(";"))
    assert {"httponly", "samesite=strict"} <= {rule.lower() for rule in rules}
    assert TOKEN not in cookie
    assert str(guarded.port) in cookie.partition("=")[0]
    assert guarded.send(png(), Cookie=cookie).status == 200
    assert guarded.send(png(), Cookie=cookie[:-1]).status == 401
    name = cookie.partition("=")[0]
    assert guarded.send(png(), Cookie=f"{name}={TOKEN}").status == 401


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    true = guards.hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return true(a, b)

    monkeypatch.setattr(guards.hmac, "compare_digest", compare)
    doors = Doors(token=TOKEN)
    assert not doors.admits({"authorization": "Bearer no"}, 80)
    assert not doors.admits({"cookie": "mmclip-80=no"}, 80)
    assert doors.admits({"authorization": f"Bearer {TOKEN}"}, 80)
    assert compared == [b"no", b"no", TOKEN.encode()]


def test_other_addresses_get_a_token_that_is_printed_once() -> None:
    assert run.open_doors("127.0.0.1", (), None).token is None
    assert run.open_doors("localhost", (), None).token is None
    assert run.open_doors("::1", (), None).token is None
    made = [run.open_doors(address, (), None) for address in ("0.0.0.0", "::", "10.0.0.7", "films.example")]
    tokens = [doors.token or "" for doors in made]
    assert len(set(tokens)) == 4
    assert min(map(len, tokens)) >= 43  # 256 bits
    printed = "\n".join(run.greeting([], made[2], 8321))
    assert printed.count(tokens[2]) == 1
    assert f"http://10.0.0.7:8321/#token={tokens[2]}" in printed
    assert "not encrypted" in printed
    alone = "\n".join(run.greeting([], run.open_doors("::1", (), None), 8321))
    assert "http://[::1]:8321/ " in alone
    assert "token" not in alone


def test_a_token_of_ones_own(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "token"
    with pytest.raises(UserError, match="cannot be read"):
        run.open_doors("0.0.0.0", (), file)
    file.write_text(TOKEN + "\n", encoding="utf-8")
    file.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        run.open_doors("0.0.0.0", (), file)
    file.chmod(0o600)
    assert run.open_doors("0.0.0.0", (), file).token == TOKEN
    assert run.open_doors("127.0.0.1", (), file).token == TOKEN  # of other users of the machine, too
    for bad in ("short", "two words of a token 0123", "", "ümlaut-0123456789-abc"):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(UserError, match="at least 16"):
            run.open_doors("0.0.0.0", (), file)


def test_a_port_that_is_taken(page: Any) -> None:
    with pytest.raises(UserError, match=f"port {page.port}.*--port"):
        run.listen("127.0.0.1", page.port)
    with pytest.raises(UserError, match="--host"):
        run.listen("192.0.2.1", 0)


# ---------------------------------------------------------------------------------------------------------------------
# Limits


def test_a_file_that_is_too_large_is_not_even_received(page: Any) -> None:
    """By what it says, and by what comes."""
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
    connection.putrequest("POST", "/findings")
    connection.putheader("Content-Type", "application/octet-stream")
    connection.putheader("Content-Length", "500001")
    connection.endheaders()
    answer = connection.getresponse()  # though no byte was sent
    assert answer.status == 413
    assert b"larger than 0.5 MB" in answer.read()
    connection.close()
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as raw:
        head = b"POST /findings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        raw.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(6):
            raw.sendall(b"%x\r\n%s\r\n" % (100_000, b"x" * 100_000))
        assert b" 413 " in raw.recv(1000).splitlines()[0]  # though the end was not sent


def test_a_file_at_the_limit_is_taken() -> None:
    image = png()
    with listening.listening([Stand()], limits=Limits(megabytes=len(image) / 1e6)) as page:
        assert page.send(image).status == 200
        assert page.send(image + b"\0").status == 413


def test_a_slow_upload_ends() -> None:
    with (
        listening.listening([Stand()], limits=Limits(seconds=0.3)) as page,
        socket.create_connection(("127.0.0.1", page.port), timeout=60) as raw,
    ):
        head = b"POST /findings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        raw.sendall(head + b"Content-Length: 1000\r\n\r\nx")
        assert b" 408 " in raw.recv(1000).splitlines()[0]


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_connections_without_a_whole_head_end(sent: bytes) -> None:
    with contextlib.ExitStack() as stack:
        page = stack.enter_context(listening.listening([Stand()], limits=Limits(seconds=0.5)))
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=60))
            for _ in range(run._CONNECTIONS)
        ]
        for each in held:
            each.sendall(sent)
        assert [each.recv(1000) for each in held] == [b""] * len(held)  # closed
        assert page.send(png()).status == 200


def test_a_second_head_that_does_not_end_ends() -> None:
    with (
        listening.listening([Stand()], limits=Limits(seconds=0.5)) as page,
        socket.create_connection(("127.0.0.1", page.port), timeout=60) as raw,
    ):
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost:")
        answer = b""
        while more := raw.recv(1 << 16):
            answer += more
        assert answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("path", ["/nothing", "/findings"])
def test_paths_and_methods_that_there_are_not_are_a_line_too(page: Any, path: str) -> None:
    assert page.ask("GET", path).error == f"GET {path} is not answered here"


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_a_large_image_is_refused_before_it_is_decoded(page: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    asked: list[int] = []
    monkeypatch.setattr(app_lib, "as_pixels", lambda data: asked.append(1))
    stored = np.zeros((500, 501), np.uint8)
    image = dicom_file(stored, 8) if kind == "dicom" else png(side=501)
    answer = page.send(image)
    assert answer.status == 422
    assert "more than 0.25 megapixels" in answer.error
    assert not asked


def test_bad_files_are_one_line(page: Any) -> None:
    for data, words in (
        (b"", "empty"),
        (b"hello", "no JPEG, PNG"),
        (png()[:45], "cannot be decoded"),
        (b"\0" * 128 + b"DICM" + b"\0" * 40, "DICOM"),
        (b"GIF89a" + b"\0" * 40, "no JPEG, PNG"),
        (dicom_file(np.full((30, 30), 7, np.uint16)), "every pixel has the value"),
    ):
        answer = page.send(data)
        assert answer.status == 422, data[:8]
        assert words in answer.error, answer.error
        assert "\n" not in answer.error


def test_no_more_images_than_allowed_are_on_their_way() -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait(pixels: np.ndarray) -> float:
        begun.release()
        assert go_on.wait(60)
        return float(pixels.mean()) / 255

    with listening.listening([Stand(wait)], limits=Limits(waiting=1)) as page, ThreadPoolExecutor(1) as pool:
        first = pool.submit(page.send, png(50))
        assert begun.acquire(timeout=60)
        second = page.send(png(60))
        assert (second.status, "try again" in second.error) == (503, True)
        assert page.ask("GET", "/").status == 200  # the page itself is there
        go_on.set()
        assert first.result(60).status == 200
        assert page.send(png(70)).status == 200


def test_an_answer_that_takes_too_long_ends() -> None:
    go_on = threading.Event()
    slow = Stand(lambda pixels: 0.5 * go_on.wait(60))
    with listening.listening([slow], limits=Limits(seconds=0.3)) as page:
        answer = page.send(png())
        go_on.set()
        assert (answer.status, "0.3 s" in answer.error) == (503, True)


def test_ten_at_once_are_answered_one_after_the_other_and_each_its_own() -> None:
    inside, most = 0, 0

    def count(pixels: np.ndarray) -> float:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.01)
        inside -= 1
        return float(pixels.mean()) / 255

    images = [png(20 * number + 5) for number in range(10)]
    with listening.listening([Stand(count)]) as page, ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(page.send, images))
    assert most == 1
    for image, answer in zip(images, answers, strict=True):
        true = np.asarray(Image.open(io.BytesIO(image))).mean() / 255
        assert answer.said["models"][0]["findings"][0]["probability"] == pytest.approx(true)


# ---------------------------------------------------------------------------------------------------------------------
# What stays


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # of writing one of the films
def test_nothing_is_written_or_logged(
    page: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4000, (300, 300)).astype(np.uint16)
    films = [
        png(),
        dicom_file(stored, PatientName="DOE^JANE"),
        compressed(dicom_file(stored, PatientName="DOE^JANE"), "JPEG2000Lossless"),
        dicom_file(stored, PatientName="DOE^JANE")[:900],
        dicom_file(stored, PatientName="DOE^JANE", PhotometricInterpretation="DOE^JANE"),
    ]
    assert max(map(len, films)) > 1 << 16
    opened: list[tuple[Any, Any]] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            path, mode, flags = arguments
            writes = bool(set(str(mode)) & set("wax+")) if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))
            if writes and path != os.devnull:
                opened.append((path, mode))

    sys.addaudithook(watch)
    caplog.clear()  # of what writing the films said
    with caplog.at_level(logging.DEBUG):
        answers = [page.send(film) for film in films]
    watching = False
    assert [answer.status for answer in answers] == [200, 200, 200, 422, 422]
    assert not opened
    assert not any(b"JANE" in answer.body for answer in answers)
    out, err = capfd.readouterr()
    assert out + err == ""
    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]
    assert "JANE" not in caplog.text


def test_a_fault_says_where_it_is_and_nothing_of_the_image(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(pixels: np.ndarray) -> float:
        raise RuntimeError("DOE^JANE")

    with listening.listening([Stand(fail)]) as page:
        answer = page.send(png())
    out, err = capfd.readouterr()
    assert answer.status == 500
    assert "RuntimeError (test_guards.py:" in answer.error
    assert "unexpected RuntimeError at test_guards.py:" in err
    assert "JANE" not in out + err + answer.body.decode()
