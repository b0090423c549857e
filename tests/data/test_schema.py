import io

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data import schema
from mmclip_jax.data.schema import Box, Example, LabelState
from mmclip_jax.text.schema import Entity


def _example(**fields: object) -> Example:
    given = {"id": "a", "image": b"\xff\xd8", "source": "s", "split": "train", "patient": "p", "study": "t"} | fields
    return Example(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("findings", "impression", "text"),
    [
        ("Clear.", "Normal.", "Clear.\nNormal."),
        ("  Clear. \n", "", "Clear."),
        ("", " Normal.", "Normal."),
        (" \n", "\t", ""),
        ("no effusion", "Mild edema", "no effusion\nMild edema"),
        ("no effusion", "1) edema", "no effusion\n1) edema"),
        ("no effusion.", "mild edema", "no effusion.\nmild edema"),
        ("no effusion", "mild edema", "no effusion\n\nmild edema"),
        ("NO EFFUSION", "MILD EDEMA", "NO EFFUSION\n\nMILD EDEMA"),
    ],
)
def test_report_joins_the_sections_that_say_something(findings: str, impression: str, text: str) -> None:
    example = _example(findings=findings, impression=impression)
    assert example.text == text
    assert example.part == ("paired" if text else "unpaired")


def test_digest_is_of_pixels_and_not_of_the_file() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 7), dtype=np.uint8)
    files = []
    for level in (0, 9):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG", compress_level=level)
        files.append(stream.getvalue())
    assert files[0] != files[1]
    digests = {schema.pixels_sha256(np.asarray(Image.open(io.BytesIO(file)))) for file in files}
    assert digests == {schema.pixels_sha256(pixels)}
    changed = pixels.copy()
    changed[12, 6] ^= 1
    others = [changed, pixels.reshape(7, 13), pixels.T, pixels.astype(np.int8)]
    assert len({schema.pixels_sha256(other) for other in others} | digests) == 5


def test_digest_does_not_depend_on_memory_layout() -> None:
    pixels = np.arange(91, dtype=np.uint8).reshape(13, 7)
    assert schema.pixels_sha256(np.asfortranarray(pixels)) == schema.pixels_sha256(pixels)


def test_entities_of_older_records_stay_on_their_words() -> None:
    findings, impression = "no effusion", "mild edema"
    entities = (Entity(3, 11, "effusion", "observation", True), Entity(18, 23, "edema", "observation", False, "edema"))
    written = schema.to_features(_example(findings=findings, impression=impression, entities=entities))

    def read(features: dict[str, object], shift: int) -> list[tuple[str, bool]]:
        listed: list[dict] = features["entities"]  # type: ignore[assignment]
        columns = {key: [each[key] for each in listed] for key in listed[0]}
        for key in ("start", "end"):
            columns[key] = [at - shift if at > len(findings) else at for at in columns[key]]
        for key in ("label", "kind"):
            columns[key] = [text.encode() for text in columns[key]]
        texts = {name: str(features[name]).encode() for name in schema._TEXT_FIELDS}
        nothing: dict[str, list[str]] = {
            "kind": [],
            "state": [],
            "image": [],
            "x_min": [],
            "y_min": [],
            "x_max": [],
            "y_max": [],
        }
        rest = dict.fromkeys(("labels", "boxes", "masks"), nothing)
        made = schema.from_features({**features, **texts, **rest, "entities": columns})
        return [(entity.text, made.text[entity.start : entity.end] == entity.text) for entity in made.entities]

    assert read(written, 0) == [("effusion", True), ("edema", True)]
    older = {name: value for name, value in written.items() if name != "report_form"}
    assert read(older, 1) == [("effusion", True), ("edema", True)], "one line end stood between the sections then"


def test_features_and_examples_have_the_same_fields() -> None:
    example = _example(
        findings="Small effusion.",
        entities=(Entity(6, 14, "effusion", "observation", False, "pleural_effusion"),),
        labels={"mass": LabelState.UNCERTAIN},
        boxes=(Box("mass", 0.25, 0.5, 0.75, 1.0),),
    )
    written = schema.to_features(example)
    declared = schema.features()
    assert written.keys() == set(declared.keys())
    for name in ("entities", "labels", "boxes"):
        assert written[name][0].keys() == set(declared[name].feature.keys())
