"""The page of `mmclip serve`: its answers against the model's own methods, and in Chromium as a person uses it."""

import base64
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import browser
import jax
import numpy as np
import pytest
import tiny
from dicoms import dicom_file
from PIL import Image

listening = pytest.importorskip("listening", reason="starlette and uvicorn are not installed")

import mmclip_jax  # noqa: E402
from mmclip_jax import cli  # noqa: E402
from mmclip_jax.inference import pictures, prediction, stamp  # noqa: E402
from mmclip_jax.inference.classifier import Classifier  # noqa: E402
from mmclip_jax.serve import examples, run  # noqa: E402
from mmclip_jax.serve.guards import Doors, Limits  # noqa: E402
from mmclip_jax.serve.served import MOST_CHARACTERS, Served, shown  # noqa: E402

pytestmark = pytest.mark.compiles

MANIFEST = {
    "exposure": {
        "sources": {"phantom-a": {"paired": 2000, "unpaired": 0}},
        "label_kinds": {"phantom-a": ["edema"]},
        "report_kinds": {"phantom-a": ["edema", "pneumothorax", "pleural_effusion"]},
    }
}
RULES = {"pneumothorax": 0.000001, "cardiomegaly": 0.999999}  # one is always positive, one never
TUNED = {
    "findings": ["edema", "pneumothorax", "cardiomegaly"],
    "task": "multi-label",
    "step": 9,
    "thresholds": {
        "findings": [
            {"finding": "edema", "rules": {"youden": None, "sensitivity_90": None}, "note": "too few patients"},
            *(
                {"finding": name, "rules": {"youden": {"threshold": cut}, "sensitivity_90": None}, "note": ""}
                for name, cut in RULES.items()
            ),
        ]
    },
    "sources": {"phantom-a": 60},
    "label_kinds": {"phantom-a": ["pneumothorax", "cardiomegaly"]},
    "mode": "linear",
    "fraction": 1.0,
    "checkpoint": {"run": "demo"},
}
WORDS = "Right pleural effusion."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny.save_run(tmp_path_factory.mktemp("served") / "run", (7,), MANIFEST)


@pytest.fixture(scope="module")
def served(folder: pathlib.Path) -> Served:
    return run.load(str(folder), None, [])


@pytest.fixture(scope="module")
def model(served: Served) -> Any:
    return served.model


@pytest.fixture(scope="module")
def classifier(model: Any) -> Served:
    rng = np.random.default_rng(5)
    width = model.config.model.image.width
    head = {"kernel": rng.normal(size=(width, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    params = {name: part for name, part in model._params.items() if name == "image_encoder" or "pool" in name}
    tuned = Classifier(model.config, {**params, "head": head}, {"classifier": TUNED})
    return Served("runs/classifier", tuned, prediction.ask_classifier(tuned, []))


@pytest.fixture(scope="module")
def page(served: Served) -> Iterator[Any]:
    with listening.listening([served], limits=Limits(megabytes=0.4)) as found:
        yield found


@pytest.fixture(scope="module")
def two(served: Served, classifier: Served) -> Iterator[Any]:
    with listening.listening([served, classifier]) as found:
        yield found


def film(seed: int, kind: str = "png") -> bytes:
    rng = np.random.default_rng(seed)
    smooth = np.kron(rng.integers(0, 256, (7, 5)), np.ones((12, 12))).astype(np.uint8)
    if kind == "dicom":
        return dicom_file(smooth.astype(np.uint16) * 16, PatientName="DOE^JANE")
    stream = io.BytesIO()
    Image.fromarray(smooth).save(stream, kind)
    return stream.getvalue()


def pixels_of(data_url: str) -> np.ndarray:
    kind, _, coded = data_url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))))


def numbers(answer: dict[str, Any], model: int = 0) -> dict[str, float]:
    return {row["finding"]: row["probability"] for row in answer["models"][model]["findings"]}


# ---------------------------------------------------------------------------------------------------------------------
# Answers


@pytest.mark.parametrize("kind", ["png", "jpeg", "dicom"])
def test_the_findings_are_those_of_the_model(page: Any, model: Any, kind: str) -> None:
    data = film(3, kind)
    answer = page.send(data).said
    true = {name: float(each[0]) for name, each in model.zero_shot([data], stamp.known_findings(MANIFEST)).items()}
    found = numbers(answer)
    assert found.keys() == {"edema", "pneumothorax", "pleural effusion"}
    for name, value in found.items():
        assert value == pytest.approx(true[name.replace(" ", "_")], abs=6e-5)  # rounded to four places
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert (answer["width"], answer["height"]) == (60, 84)
    assert (pixels_of(answer["image"]) == shown(np.asarray(mmclip_jax.inference.inputs.as_pixels(data)))).all()
    by_name = {row["finding"]: row["exposure"] for row in answer["models"][0]["findings"]}
    assert by_name == {"edema": stamp.LABELS, "pneumothorax": stamp.REPORTS, "pleural effusion": stamp.REPORTS}
    assert answer["models"][0]["domain"] == model.stamp.domain


def test_ten_uploads_at_once_each_get_their_own_answer(page: Any, model: Any) -> None:
    films = [film(100 + number) for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(page.send, films))
    true = model.zero_shot(films, ["pneumothorax"])["pneumothorax"]
    assert len(set(np.round(true, 4))) == 10  # so that no answer can pass for another
    for answer, value in zip(answers, true, strict=True):
        assert numbers(answer.said)["pneumothorax"] == pytest.approx(float(value), abs=6e-5)


def test_the_map_is_that_of_the_model(page: Any, model: Any) -> None:
    data = film(4, "dicom")
    answer = page.send(data, "/map", X_Words=quote(f"  {WORDS} ")).said
    (told,) = answer["models"]
    assert answer["words"] == WORDS
    assert told["similarity"] == pytest.approx(float(model.similarity([data], [WORDS])[0, 0]), abs=6e-5)
    image = shown(mmclip_jax.inference.inputs.as_pixels(data))
    over = pictures.overlay(image, model.response_map(data, WORDS))
    assert np.abs(pixels_of(told["map"]).astype(int) - over).max() <= 2
    assert (pixels_of(told["map"]) != np.repeat(image[:, :, None], 3, axis=2)).any()
    assert told["exposure"] == stamp.OWN_WORDS
    other = page.send(data, "/map", X_Words=quote("Größe unbekannt – ß")).said  # any words of any script
    assert other["words"] == "Größe unbekannt – ß"
    assert other["models"][0]["map"] != told["map"]


@pytest.mark.parametrize(
    ("words", "why"),
    [("", "no words"), ("   ", "no words"), ("a" * (MOST_CHARACTERS + 1), "501 characters"), ("edema " * 70, "tokens")],
)
def test_words_that_would_not_be_read_are_refused(page: Any, words: str, why: str) -> None:
    answer = page.send(film(0), "/map", X_Words=quote(words))
    assert answer.status == 422
    assert why in answer.error


def test_a_classifier_has_its_thresholds_and_no_maps(classifier: Served) -> None:
    data = film(5)
    with listening.listening([classifier]) as alone:
        told = alone.send(data).said["models"][0]
        refused = alone.send(data, "/map", X_Words="edema")
        text = alone.ask("GET", "/").body.decode()
    rows = {row["finding"]: row for row in told["findings"]}
    assert isinstance(classifier.model, Classifier)
    true = classifier.model.predict([data])
    for name, row in rows.items():
        assert row["probability"] == pytest.approx(float(true[name][0]), abs=6e-5)
    assert "threshold" not in rows["edema"]
    assert rows["edema"]["exposure"] == stamp.NOT_TUNED
    assert (rows["pneumothorax"]["positive"], rows["cardiomegaly"]["positive"]) == (True, False)
    assert "Youden" in rows["pneumothorax"]["threshold_from"]
    assert refused.status == 422
    assert "no maps" in refused.error
    assert 'id="words"' not in text


def test_two_models_side_by_side(two: Any, page: Any, classifier: Served) -> None:
    data = film(6)
    answer = two.send(data).said
    assert numbers(answer) == numbers(page.send(data).said)
    first, second = list(numbers(answer)), list(numbers(answer, 1))
    assert set(second) == {"edema", "pneumothorax", "cardiomegaly"}
    common = [name for name in first if name in second]
    assert second == [*common, "cardiomegaly"]
    maps = two.send(data, "/map", X_Words="edema").said["models"]
    assert ["map" in each for each in maps] == [True, False]


def test_two_checkpoints_side_by_side(served: Served, model: Any) -> None:
    """The second one's numbers are its own."""
    params = jax.tree.map(lambda leaf: leaf * 1.5, model._params)
    other = type(model)(model.config, params, model.tokenizer, 8, MANIFEST)
    beside = Served("runs/other", other, prediction.ask(other, ["edema"]))
    data = film(8)
    with listening.listening([served, beside]) as both:
        answer = both.send(data).said
        maps = both.send(data, "/map", X_Words="edema").said["models"]
    assert [each["step"] for each in answer["models"]] == [7, 8]
    assert numbers(answer, 1)["edema"] == pytest.approx(float(other.zero_shot([data], ["edema"])["edema"][0]), abs=6e-5)
    assert numbers(answer, 1)["edema"] != numbers(answer)["edema"]
    assert maps[0]["map"] != maps[1]["map"]


def test_the_examples_are_of_the_phantom(page: Any) -> None:
    drawn = []
    for number in range(examples.COUNT):
        answer = page.ask("GET", f"/examples/{number}.png")
        assert Image.open(io.BytesIO(answer.body)).size == (256, 256)
        drawn.append(answer.headers["x-drawn"])
    assert "cardiomegaly" in drawn
    assert "no finding" in drawn
    assert any("pleural effusion" in each for each in drawn)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_what_the_command_asks_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []

    def load(*given: Any) -> Served:
        started.append(given)
        return served

    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(run, "run", lambda *given: started.append(given))
    place = str(tmp_path)
    words = ["serve", place, "--beside", place, "--step", "3", "--findings", "edema", "--port", "0", "--megabytes", "2"]
    assert cli.main([*words, "--host", "0.0.0.0"]) == 0
    (first, second, (models, doors, limits, socket)) = started
    assert (first, second) == ((place, 3, ["edema"]), (place, None, ["edema"]))
    assert models == [served, served]
    assert (doors.host, len(doors.token)) == ("0.0.0.0", 43)
    assert (limits.megabytes, limits.megapixels) == (2, 50)
    socket.close()
    assert cli.main(["serve", place, "--findings", "no such finding"]) == 2
    assert "no such finding" in capsys.readouterr().err
    assert cli.main(["serve", place, "--megabytes", "0"]) == 2


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(folder: pathlib.Path) -> None:
    command = [sys.executable, "-m", "mmclip_jax.cli", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if line.startswith("Open"):
                break
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)/ ", told[-1])
        served = listening.Page(int(port))
        assert served.send(film(1)).status == 200
        assert served.send(b"DOE^JANE").status == 422
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert rest + errors == ""
    assert stamp.RESEARCH_ONLY in "".join(told)


# ---------------------------------------------------------------------------------------------------------------------
# In the browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.opened() as found:
        yield found


@pytest.fixture
def opened(chromium: Any, page: Any) -> Iterator[Any]:
    yield from _open(chromium, page.address)


def _open(chromium: Any, address: str, width: int = browser.LAPTOP, scheme: str = "light") -> Iterator[Any]:
    """A page in a window; that it complained of nothing and asked nobody else is checked at the end."""
    window = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("request", lambda request: asked.append(request.url))
    window.goto(address)
    yield window
    assert not [line for line in said if "status of 4" not in line], said  # refusals are logged by the browser itself
    assert all(url.startswith((address.partition("#")[0], "data:")) for url in asked), asked
    window.close()


def upload(window: Any, data: bytes, name: str = "DOE^JANE.png") -> None:
    window.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": data})


def shown_numbers(window: Any, card: int = 0) -> dict[str, float]:
    rows = window.locator("#result .card").nth(card).locator("tbody tr")
    return {row.locator("th").inner_text(): float(row.locator(".number").inner_text()) for row in rows.all()}


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["png", "jpeg", "dicom"])
def test_an_upload_shows_findings_with_their_stamps(opened: Any, page: Any, model: Any, kind: str) -> None:
    data = film(9, kind)
    upload(opened, data)
    opened.wait_for_selector("#result .card")
    true = numbers(page.send(data).said)
    assert shown_numbers(opened) == {name: pytest.approx(value, abs=5.1e-4) for name, value in true.items()}
    for row in opened.locator("#result tbody tr").all():
        assert row.locator(".exposure").inner_text() in (stamp.LABELS, stamp.REPORTS)
        bar, fill = row.locator(".bar").bounding_box(), row.locator(".fill").bounding_box()
        share = float(row.locator(".number").inner_text())
        assert fill["width"] / bar["width"] == pytest.approx(share, abs=0.02)
    assert model.stamp.domain in opened.locator("#result caption").inner_text()
    assert stamp.RESEARCH_ONLY in opened.locator(".warning").inner_text()
    assert opened.locator(".warning").is_visible()
    assert "JANE" not in opened.content()


@pytest.mark.browser
def test_a_file_can_be_dropped(opened: Any, page: Any) -> None:
    data = film(10)
    opened.evaluate(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "a.png"));
            transfer.items.add(new File(["b"], "b.png"));
            for (const kind of ["dragover", "drop"])
                document.body.dispatchEvent(
                    new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        list(data),
    )
    opened.wait_for_selector("#result .card")
    true = numbers(page.send(data).said)
    assert shown_numbers(opened) == {name: pytest.approx(value, abs=5.1e-4) for name, value in true.items()}
    opened.wait_for_selector("#status:has-text('Of 2 files the first')")


@pytest.mark.browser
def test_words_put_their_map_over_the_image(opened: Any, page: Any) -> None:
    opened.fill("#words", WORDS)
    opened.click("#ask button")
    assert opened.locator("#error").inner_text() == "Choose an image first."
    data = film(11)
    upload(opened, data)
    opened.wait_for_selector("#result .card")
    plain = opened.get_attribute("#result .picture", "src")
    opened.click("#ask button")
    opened.wait_for_selector("#result figcaption a")
    over = opened.get_attribute("#result .picture", "src")
    assert over != plain
    (true,) = page.send(data, "/map", X_Words=quote(WORDS)).said["models"]
    assert over == true["map"]
    caption = opened.locator("#result figcaption").inner_text()
    for words in (WORDS, f"{true['similarity']:.3f}", stamp.OWN_WORDS, true["domain"], stamp.RESEARCH_ONLY):
        assert words in caption
    with opened.expect_download() as download:
        opened.click("#result figcaption a")
    assert Image.open(download.value.path()).size[0] == 2 * pictures.SHOWN_SIDE + 24
    assert "JANE" not in download.value.suggested_filename


@pytest.mark.browser
def test_a_file_that_is_no_image_is_told_in_a_line(opened: Any) -> None:
    upload(opened, film(12))
    opened.wait_for_selector("#result .card")
    before = shown_numbers(opened)
    upload(opened, b"<script>alert(1)</script>", "x.png")
    opened.wait_for_selector("#error:not([hidden])")
    assert "no JPEG, PNG, TIFF, BMP or DICOM file" in opened.locator("#error").inner_text()
    assert opened.get_attribute("#error", "role") == "alert"
    assert shown_numbers(opened) == before  # of the image before
    upload(opened, film(12))
    opened.wait_for_selector("#error", state="hidden")


@pytest.mark.browser
@pytest.mark.parametrize("by", ["page", "server"])
def test_a_file_that_is_too_large_is_told_in_a_line(opened: Any, by: str) -> None:
    if by == "server":  # a page that does not look first
        script = opened.evaluate("fetch('/page.js').then(answer => answer.text())")
        opened.route("**/page.js", lambda route: route.fulfill(body=script.replace("blob.size > mostBytes", "false")))
        opened.reload()
    upload(opened, b"\0" * 600_000)
    opened.wait_for_selector("#error:not([hidden])")
    told = opened.locator("#error").inner_text()
    assert told == (
        "The file has 0.6 MB: at most 0.4 MB are taken." if by == "page" else "the file is larger than 0.4 MB"
    )


@pytest.mark.browser
def test_ten_uploads_of_one_browser_at_once(opened: Any, model: Any) -> None:
    films = [film(200 + number) for number in range(10)]
    answers = opened.evaluate(
        """films => Promise.all(films.map(async bytes => {
            const headers = {"Content-Type": "application/octet-stream"};
            const answer = await fetch("/findings", {method: "POST", body: new Uint8Array(bytes), headers});
            return await answer.json();
        }))""",
        [list(data) for data in films],
    )
    true = model.zero_shot(films, ["edema"])["edema"]
    assert [numbers(answer)["edema"] for answer in answers] == [pytest.approx(float(p), abs=6e-5) for p in true]


@pytest.mark.browser
def test_a_keyboard_is_enough(opened: Any) -> None:
    seen = []
    for _ in range(1 + examples.COUNT + 2):
        opened.keyboard.press("Tab")
        seen.append(opened.evaluate("(one => one.id || one.dataset.example || one.type)(document.activeElement)"))
        outline = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", seen  # where one is can be seen
    assert seen == ["file", *map(str, range(examples.COUNT)), "words", "submit"]
    for _ in range(2):
        opened.keyboard.press("Shift+Tab")
    opened.keyboard.press("Enter")  # the last example
    opened.wait_for_selector("#result .card")
    opened.wait_for_selector("#status:has-text('no finding')")
    opened.keyboard.press("Tab")
    opened.keyboard.type("pneumothorax")
    opened.keyboard.press("Enter")
    opened.wait_for_selector("#result figcaption a")
    assert opened.evaluate("document.activeElement.id") == "words"  # the next words can be typed at once


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (browser.PHONE, "dark"), (1920, "light")])
def test_every_width_and_the_dark(chromium: Any, two: Any, width: int, scheme: str) -> None:
    for window in _open(chromium, two.address, width, scheme):
        assert browser.sideways(window) <= 0
        window.click('[data-example="1"]')
        window.wait_for_selector("#result .card")
        window.fill("#words", "edema " * 8)
        window.keyboard.press("Enter")
        window.wait_for_selector("#result figcaption a")
        assert browser.sideways(window) <= 0
        assert window.locator("#result .card").count() == 2
        assert all(browser.is_seen(window, "#result .number, #result .exposure, #result .picture, #ask button"))
        assert window.locator("#result .card").nth(1).locator(".mark").count() == len(RULES)
        side_by_side = {round(card.bounding_box()["y"]) for card in window.locator("#result .card").all()}
        assert len(side_by_side) == (1 if width > 1000 else 2)
        assert "no maps" in window.locator("#result .card").nth(1).inner_text()
        for selector in ("body", ".warning", ".note", ".exposure", ".beside", "#ask button", "#result .number"):
            assert _contrast(window, selector) >= 4.5, selector


def _contrast(window: Any, selector: str) -> float:
    """WCAG 2's contrast of an element's text against the ground below it."""
    ink, ground = window.eval_on_selector(
        selector,
        """one => {
            let below = one;
            while (getComputedStyle(below).backgroundColor === "rgba(0, 0, 0, 0)") below = below.parentElement;
            return [getComputedStyle(one).color, getComputedStyle(below).backgroundColor];
        }""",
    )

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(ink), light(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
def test_the_printed_address_signs_a_browser_in(chromium: Any, served: Served) -> None:
    token = "a-token-of-the-user-0123456789"
    with listening.listening([served], Doors("0.0.0.0", (), token)) as guarded:
        for window in _open(chromium, f"{guarded.address}#token=wrong-{token}"):
            window.wait_for_selector("#error:not([hidden])")
            window.fill("#token", token)
            window.keyboard.press("Enter")
            window.wait_for_selector("#file")
            window.context.clear_cookies()
            upload(window, film(1))  # the page asks for the token again
            window.wait_for_selector("#token")
        for window in _open(chromium, f"{guarded.address}#token={token}"):
            window.wait_for_selector("#file")
            assert token not in window.url
            assert json.dumps(window.evaluate("document.cookie")) == '""'  # no script can read it
            upload(window, film(1))
            window.wait_for_selector("#result .card")
