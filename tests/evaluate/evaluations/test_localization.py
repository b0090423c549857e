"""Overlap and contrast of maps with regions, by loops and by Pillow; phrases of MS-CXR from both published formats."""

import csv
import io
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmclip_jax.data.schema import Box, Example, Mask
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.evaluations import grounding, localization, ms_cxr
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap

G = toy.GRID


@pytest.mark.parametrize("shape", [(3, 5), (1, 7), (8, 8)])
def test_enlarged_like_pillow(shape: tuple[int, int]) -> None:
    small = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    want = np.asarray(Image.fromarray(small).resize((40, 40), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(localization.enlarge(small, 40), want, atol=1e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 4, 20]))
def test_overlaps_equal_counting(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    response, region = rng.random((7, 11)), rng.random((7, 11)) < 0.3
    region[0, 0] = True
    if levels:  # values on the thresholds themselves
        response = np.round(response * levels) / levels
    iou, dice = localization.overlaps(response, region)
    for t, threshold in enumerate(localization.THRESHOLDS):
        found = response >= threshold
        assert iou[t] == pytest.approx((found & region).sum() / (found | region).sum())
        assert dice[t] == pytest.approx(2 * (found & region).sum() / (found.sum() + region.sum()))


def test_contrast_by_formula_and_where_it_is_undefined() -> None:
    response = np.array([[1.0, 3.0, 8.0], [2.0, 2.0, 5.0]])
    region = np.array([[False, False, True], [False, False, True]])
    want = (6.5 - 2.0) / np.sqrt(2.25 + 0.5)
    assert localization.contrast_to_noise(response, region) == pytest.approx(want)
    assert localization.contrast_to_noise(-response, region) == pytest.approx(-want)
    assert np.isnan(localization.contrast_to_noise(response, np.ones_like(region)))
    assert np.isnan(localization.contrast_to_noise(np.ones((2, 3)), region))
    assert localization.stretch(np.ones((2, 3))).max() == 0
    with pytest.raises(UserError, match="NaN"):
        localization.stretch(np.array([[np.nan, 1.0]]))


@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (31, 31)])
def test_a_mask_lies_where_its_pixels_lie_in_the_padded_square(shape: tuple[int, int]) -> None:
    white = np.random.default_rng(1).random(shape) < 0.5
    stream = io.BytesIO()
    Image.fromarray(white).convert("1").save(stream, "PNG")
    side = max(shape)
    square = np.zeros((side, side), bool)
    top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
    square[top : top + shape[0], left : left + shape[1]] = white
    np.testing.assert_array_equal(localization.inside_mask(stream.getvalue(), (side, side)), square)
    fine = localization.inside_mask(stream.getvalue(), (3 * side, 3 * side))
    np.testing.assert_array_equal(fine, square.repeat(3, axis=0).repeat(3, axis=1))


class _Painter(toy.ToyModel):
    """Responds with 1 in the patches that row 5 of the image names by bits, 0 elsewhere, whatever the text."""

    def response_maps(self, images: Any, texts: Any, response: str = "similarity") -> np.ndarray:
        maps = np.stack([np.unpackbits(pixels[5, :5])[: G * G].reshape(G, G) for pixels in images])
        return (1.0 - maps if response == "cross_attention" else maps).astype(np.float32)


def _painted(number: int, painted: np.ndarray, box: tuple[int, int, int, int], **more: Any) -> Example:
    pixels = toy.plant([0] * 5)
    pixels[5, :5] = np.packbits(painted.ravel())
    x0, y0, x1, y1 = (v / G for v in box)
    return toy.example(number, pixels, {}, boxes=(Box("nodule", x0, y0, x1, y1),), **more)


def test_the_threshold_is_that_of_validation() -> None:
    square = np.zeros((G, G), bool)
    square[1:3, 1:3] = True
    wide = np.zeros((G, G), bool)
    wide[1:5, 1:5] = True
    # Of validation, the map is as wide as the box; of test it is the same map, but the box is the inner square.
    validation = Split.of([_painted(n, square, (1, 1, 3, 3)) for n in range(3)], "validation")
    test = Split.of([_painted(n, wide, (1, 1, 3, 3)) for n in range(4)], "test")
    found = grounding.evaluate(_Painter(), test, validation=validation, bootstrap=Bootstrap(resamples=20))
    assert found is not None

    def by_pillow(painted: np.ndarray, threshold: float) -> tuple[float, float]:
        size = (localization.SIDE, localization.SIDE)
        large = np.asarray(Image.fromarray(painted.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        marked = (large - large.min()) / (large.max() - large.min()) >= threshold
        centres = (np.arange(localization.SIDE) + 0.5) * G / localization.SIDE
        within = (centres >= 1) & (centres <= 3)
        region = within[:, None] & within[None]
        both = (marked & region).sum()
        return both / (marked | region).sum(), 2 * both / (marked.sum() + region.sum())

    ious = [by_pillow(square, t)[0] for t in localization.THRESHOLDS]
    best = float(localization.THRESHOLDS[int(np.argmax(ious))])
    assert found["thresholds"]["split"] == "validation"
    assert found["thresholds"]["iou"]["similarity"] == best
    assert 0.3 < best < 0.7
    overall = found["overall"]["similarity"]
    assert overall["iou"] == pytest.approx(by_pillow(wide, best)[0], abs=1e-3)
    assert overall["dice"] == pytest.approx(by_pillow(wide, found["thresholds"]["dice"]["similarity"])[1], abs=1e-3)
    assert overall["iou"] < max(ious)
    assert overall["cnr"] > 0 > found["overall"]["cross_attention"]["cnr"]
    assert found["overall"]["dice_everything"] == pytest.approx(2 * (1 / 9) / (1 + 1 / 9), abs=0.02)
    # Without validation there is no threshold, and no number that would need one.
    alone = grounding.evaluate(_Painter(), test, bootstrap=Bootstrap(resamples=20))
    assert alone is not None
    assert alone["thresholds"] is None
    assert alone["overall"]["similarity"]["iou"] is None
    assert alone["overall"]["similarity"]["cnr"] == overall["cnr"]


def test_a_mask_counts_in_place_of_its_box() -> None:
    import dataclasses

    corner = np.zeros((G, G), bool)
    corner[0, 0] = True
    row = _painted(0, corner, (0, 0, 3, 3))
    shape = np.zeros((toy.SIDE, toy.SIDE), bool)
    shape[16:24, 16:24] = True  # the mask is elsewhere than the map's corner
    stream = io.BytesIO()
    Image.fromarray(shape).convert("1").save(stream, "PNG")
    masked = dataclasses.replace(row, masks=(Mask("nodule", stream.getvalue()),))
    by_box, by_mask = (
        grounding.evaluate(_Painter(), Split.of([each]), bootstrap=Bootstrap(resamples=5)) for each in (row, masked)
    )
    assert by_box is not None
    assert by_mask is not None
    assert by_box["overall"]["similarity"]["rate"] == 1.0
    assert by_mask["overall"]["similarity"]["rate"] == 0.0
    assert by_mask["overall"]["random"] == pytest.approx(1 / 36)


# ---------------------------------------------------------------------------------------------------------------------
# MS-CXR


_ROWS = [
    ("here-0", "Pneumothorax", "small  right apical\npneumothorax", (8, 16, 24, 16)),
    ("here-0", "Pleural Effusion", "left effusion", (0, 32, 16, 32)),
    ("here-1", "Pneumothorax", "pneumothorax", (30, 10, 30, 20)),
    ("here-0", "Pneumothorax", "small right apical pneumothorax", (40, 16, 24, 48)),
    ("elsewhere", "Lung Opacity", "hazy opacity", (1, 1, 5, 5)),
]
_SIZE = (64, 64)


def _json(path: pathlib.Path) -> pathlib.Path:
    images = {name: n + 10 for n, name in enumerate(dict.fromkeys(row[0] for row in _ROWS))}
    categories = {name: n + 1 for n, name in enumerate(dict.fromkeys(row[1] for row in _ROWS))}
    content = {
        "info": {}, "licenses": [],
        "images": [
            {"id": n, "file_name": f"{name}.jpg", "width": 64, "height": 64, "path": f"files/p1/{name}.jpg"}
            for name, n in images.items()
        ],
        "categories": [{"id": n, "name": name, "supercategory": "disease"} for name, n in categories.items()],
        "annotations": [
            {"id": n, "image_id": images[image], "category_id": categories[category], "bbox": list(box),
             "label_text": text, "area": box[2] * box[3], "iscrowd": 0, "segmentation": []}
            for n, (image, category, text, box) in enumerate(_ROWS)
        ],
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def _csv(path: pathlib.Path) -> pathlib.Path:
    columns = [
        "dicom_id",
        "category_name",
        "label_text",
        "path",
        "x",
        "y",
        "w",
        "h",
        "image_width",
        "image_height",
        "split",
    ]
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for image, category, text, box in _ROWS:
            writer.writerow([image, category, text, f"files/{image}.jpg", *box, *_SIZE, "train"])
    return path


def test_both_formats_say_the_same(tmp_path: pathlib.Path) -> None:
    phrases = ms_cxr.read_phrases(_json(tmp_path / "MS_CXR_Local_Alignment_v1.0.0.json"))
    assert phrases == ms_cxr.read_phrases(_csv(tmp_path / "MS_CXR_Local_Alignment_v1.1.0.csv"))
    first = phrases[0]
    assert (first.image, first.kind, first.text) == ("here-0", "pneumothorax", "small right apical pneumothorax")
    assert first.boxes == (
        Box("pneumothorax", 8 / 64, 16 / 64, 32 / 64, 32 / 64), Box("pneumothorax", 40 / 64, 16 / 64, 1.0, 1.0),
    )  # fmt: skip
    assert len(phrases) == 4


def test_phrases_are_found_in_the_split_that_has_their_images(tmp_path: pathlib.Path) -> None:
    file = _json(tmp_path / "phrases.json")
    corner = np.zeros((G, G), bool)
    corner[2, 1] = True  # centre at (1.5, 2.5) / 6: x 0.25, y 0.417: in the first box of the pneumothorax alone
    rows = [toy.example(n, _pixels(corner), {}) for n in (0, 1)]
    found = ms_cxr.evaluate(_Painter(), Split.of(rows, "test"), None, file, bootstrap=Bootstrap(resamples=10))
    assert (found["queries"], found["phrases"], found["elsewhere"]) == (3, 4, 1)
    rates = {row["finding"]: row["similarity"]["rate"] for row in found["findings"]}
    assert rates == {"pneumothorax": 0.5, "pleural_effusion": 0.0}
    with pytest.raises(UserError, match="none of the 4 phrases"):
        ms_cxr.evaluate(_Painter(), Split.of([toy.example(7, _pixels(corner), {})], "test"), None, file)


def _pixels(painted: np.ndarray) -> np.ndarray:
    pixels = toy.plant([0] * 5)
    pixels[5, :5] = np.packbits(painted.ravel())
    return pixels


def test_damaged_files_are_named(tmp_path: pathlib.Path) -> None:
    for name, content, message in (
        ("a.json", "{}", "KeyError"),
        ("a.json", "[", "is not MS-CXR's JSON"),
        ("a.json", "[" * 50_000, "is not MS-CXR's JSON"),
        (
            "a.json",
            _json(tmp_path / "c.json").read_text().replace('"width": ', '"width": 1' + "0" * 400),
            "not MS-CXR's",
        ),
        ("a.csv", "dicom_id,x\n1,2\n", "no column category_name"),
        ("a.csv", _csv(tmp_path / "b.csv").read_text().replace("30,10,30,20", "40,10,30,20"), "row 4: the box"),
        ("a.csv", _csv(tmp_path / "b.csv").read_text().replace("30,10,30,20", "40,ten,30,20"), "could not convert"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=message):
            ms_cxr.read_phrases(tmp_path / name)
