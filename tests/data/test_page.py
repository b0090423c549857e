"""The page about a data set, read back as HTML."""

import base64
import dataclasses
import html.parser
import io
import pathlib
import re

import browser
import numpy as np
import pytest
from PIL import Image

from mmclip_jax import cli
from mmclip_jax.data import page, records
from mmclip_jax.data.records import RecordsBuilder, finish_example
from mmclip_jax.data.schema import Box, LabelState, Mask

HOSTILE = "<script>alert(1)</script> No effusion. A mass & more."


class Small(RecordsBuilder):
    name = "small"

    def examples(self, split):
        if split == "validation":
            return
        for number in range(5):
            pixels = np.full((7, 11), 50, np.uint8)
            pixels[2:5, 3:9] = 200
            inside = np.zeros((7, 11), np.uint8)
            inside[2:5, 3:9] = 255
            stream = io.BytesIO()
            Image.fromarray(inside).save(stream, "PNG")
            yield finish_example(
                id=f"secret-{split}-{number}",
                source="small",
                split=split,
                patient=f"{split}{number}",
                study=f"{split}{number}",
                pixels=pixels,
                findings=HOSTILE if split == "train" else "",
                labels={"mass": LabelState.PRESENT, "edema": LabelState.UNCERTAIN, "hernia": LabelState.ABSENT},
                boxes=[Box("mass", 3 / 11, 2 / 7, 9 / 11, 5 / 7)],
                masks=[Mask("mass", stream.getvalue())],
                view="PA",
                sex="F",
                age=63.0,
            )


class Reader(html.parser.HTMLParser):
    """Collects tags, the text, the cells of tables."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return records.build(Small(tmp_path_factory.mktemp("small")))


def written(built: pathlib.Path, folder: pathlib.Path, **options: bool | int) -> Reader:
    return Reader(page.write_page(built, folder / "page.html", **options).read_text())  # type: ignore[arg-type]


def test_pictures_are_the_records_own_with_boxes_and_masks_in_place(built, tmp_path):
    read = written(built, tmp_path, examples=3)
    pictures = [image for image in read.all("img") if image.get("class") != "mask"]
    assert len(pictures) == 6
    stored = {records.open_records(built, "train", "paired")[i].image for i in (0, 1, 3)}
    shown = {base64.b64decode((image["src"] or "").partition(",")[2]) for image in pictures[:3]}
    assert shown == stored
    assert len([image for image in read.all("img") if image.get("class") == "mask"]) == 6
    (place,) = {box["style"] for box in read.all("span") if box.get("style")}
    numbers = [float(number) for number in re.findall(r"[\d.]+(?=%)", place or "")]
    assert numbers == pytest.approx([100 * 3 / 11, 100 * 2 / 7, 100 * 6 / 11, 100 * 3 / 7], abs=0.01)


def test_tables_count_what_is_there(built, tmp_path):
    text = written(built, tmp_path).text
    assert "10 images, 10 patients, 10 studies" in text
    assert "train_paired 5 5 5 5 0.0 63 (63 to 63) F 5 PA 5" in text
    assert "mass 10 0 0 0 10" in text
    assert "edema 0 10 0 0 0" in text
    assert "hernia 0 0 10 0 0" in text
    assert "pleural effusion 0 5" in text
    assert text.index("train_paired 5") < text.index("test_unpaired 5")


def test_nobodys_words_are_shown_unless_asked_for(built, tmp_path):
    read = written(built, tmp_path)
    assert "secret" not in read.text
    assert "alert" not in read.text
    assert "--show-text shows them" in read.text


def test_reports_are_shown_as_they_are_with_entities_marked(built, tmp_path):
    read = written(built, tmp_path, show_text=True)
    assert "secret-train-0" in read.text
    assert HOSTILE in re.sub(r"\s+", " ", "".join(read.words))
    assert not read.all("script")
    marks = [mark["class"] for mark in read.all("mark")]
    assert marks.count("denied") == 1 + 5  # the legend, and each report
    assert marks.count("observation") == 1 + 5


def test_the_page_needs_nothing_from_outside(built, tmp_path):
    read = written(built, tmp_path)
    links = [value for _, each in read.tags for key, value in each.items() if key in ("src", "href")]
    assert links
    assert all((link or "").startswith("data:") for link in links)


def test_the_phantoms_words_are_always_shown(phantom_dir, tmp_path):
    read = written(phantom_dir, tmp_path, examples=1)
    example = records.open_records(phantom_dir, "train", "paired")[0]
    assert example.id in read.text
    assert " ".join(example.text.split()) in " ".join("".join(read.words).split())


def test_the_command_writes_it_beside_the_tables(built, tmp_path, capsys):
    assert cli.main(["data", "info", str(built), "--html", str(tmp_path / "page.html")]) == 0
    assert f"Page: {tmp_path / 'page.html'}" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_data_set_without_labels_or_reports_has_a_page(tmp_path):
    class Bare(Small):
        name = "bare"

        def examples(self, split):
            for example in super().examples(split):
                yield dataclasses.replace(example, findings="", labels={}, boxes=(), masks=(), entities=(), age=np.nan)

    read = written(records.build(Bare(tmp_path)), tmp_path)
    assert "Labels" not in read.text
    assert "Reports" not in read.text
    assert "unknown" in read.text


@pytest.mark.browser
def test_the_page_fits_a_phone_and_prints_whole(built: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file = page.write_page(built, tmp_path / "page.html", show_text=True)
    with browser.opened() as chromium:
        wide = ((browser.LAPTOP, "dark"), (1920, "light"))
        for width, scheme in ((320, "light"), (browser.PHONE, "light"), (browser.PHONE, "dark"), *wide):
            shown = browser.show(chromium, file, width, scheme)
            assert browser.sideways(shown) <= 0, width
            assert shown.eval_on_selector("main", "main => main.querySelector('img, table').tagName") == "IMG"
            shown.close()
        shown = browser.show(chromium, file)
        printed = browser.print_a4(shown, tmp_path / "page.pdf")
        missing = browser.missing_cells(shown, printed)
    assert missing == []
    assert "secret-test-4" in printed  # of a part that is folded away on a screen
