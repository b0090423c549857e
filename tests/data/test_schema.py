import io

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data import schema
from mmclip_jax.data.schema import Box, Entity, Example, LabelState


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
