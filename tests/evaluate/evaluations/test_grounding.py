import numpy as np
import pytest
import toy

from mmclip_jax.data.schema import Box, Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.evaluations import grounding
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap

G = toy.GRID


def _row(n: int, kind: str, patch: int, box: tuple[float, float, float, float], **more: object) -> Example:
    patches = [0] * 5
    patches[toy.KINDS.index(kind)] = patch
    shape = more.pop("shape", (toy.SIDE, toy.SIDE))
    labels = {k: LabelState.PRESENT if k == kind else LabelState.ABSENT for k in toy.KINDS}
    return toy.example(
        n,
        toy.plant([0] * 5, patches, shape=shape),
        labels,
        boxes=(Box(kind, *box),),
        **more,  # type: ignore[arg-type]
    )


def test_inside_boxes_against_every_centre_by_hand() -> None:
    box, other = Box("nodule", 0.1, 0.2, 0.5, 0.6), Box("nodule", 0.7, 0.0, 1.0, 0.3)
    got = grounding.inside_boxes([box, other], (5, 7))
    for i in range(5):
        for j in range(7):
            x, y = (j + 0.5) / 7, (i + 0.5) / 5
            want = (0.1 <= x <= 0.5 and 0.2 <= y <= 0.6) or (x >= 0.7 and y <= 0.3)
            assert got[i, j] == want
    assert 0 < got.sum() < 35


def test_rate_and_chance_are_exact() -> None:
    # The box holds 2 x 2 of 6 x 6 centres; three of four maps point into it.
    inside, box = 2 * G + 3, (3 / G, 2 / G, 5 / G, 4 / G)
    rows = [_row(n, "nodule", inside if n % 4 else 0, box) for n in range(20)]
    result = grounding.evaluate(toy.ToyModel(), Split.of(rows), bootstrap=Bootstrap(resamples=100))
    assert result is not None
    overall = result["overall"]
    assert overall["random"] == pytest.approx(4 / 36)
    assert overall["similarity"]["rate"] == 0.75
    assert overall["similarity"]["lift"] == pytest.approx(0.75 * 9)
    low, high = overall["similarity"]["interval"]
    assert low < 0.75 < high
    # The toy's other map is flat: the first patch counts, which no box holds.
    assert overall["cross_attention"]["rate"] == 0.0
    assert overall["cross_attention"]["interval"] == [0.0, pytest.approx(1 - 0.025 ** (1 / 20))]
    # All boxes are of one finding, so there is no other prompt to try.
    assert overall["similarity"]["other_prompt"] is None
    assert result["grid"] == [G, G]


def test_each_finding_of_an_image_is_a_query_of_its_own() -> None:
    box = (0.0, 0.0, 2 / G, 2 / G)
    patches = [0, 35, 7, 35, 35]
    row = toy.example(
        0,
        toy.plant([0] * 5, patches),
        {},
        boxes=(Box("pleural_effusion", *box), Box("pneumothorax", *box), Box("cardiomegaly", *box)),
    )
    result = grounding.evaluate(toy.ToyModel(), Split.of([row]), bootstrap=Bootstrap(resamples=10))
    assert result is not None
    rates = {f["finding"]: f["similarity"]["rate"] for f in result["findings"]}
    assert rates == {"pleural_effusion": 1.0, "pneumothorax": 1.0, "cardiomegaly": 0.0}
    assert result["overall"]["similarity"]["rate"] == pytest.approx(2 / 3)


def test_another_findings_prompt_is_a_control() -> None:
    inside, box = 0, (0.0, 0.0, 1 / G, 1 / G)
    nodules = [_row(n, "nodule", inside, box) for n in range(6)]
    # For a nodule's box the prompt of the other finding points to patch 35 of the toy's image, outside the box.
    for row in nodules:
        assert row.labels["fibrosis"] == LabelState.ABSENT
    rows = [
        toy.example(n, toy.plant([0] * 5, [35, 35, 35, 0, 35]), row.labels, boxes=row.boxes)
        for n, row in enumerate(nodules)
    ]
    rows += [_row(10, "fibrosis", 0, box)]
    result = grounding.evaluate(toy.ToyModel(), Split.of(rows), bootstrap=Bootstrap(resamples=10))
    assert result is not None
    nodule = next(f for f in result["findings"] if f["finding"] == "nodule")
    assert nodule["similarity"]["rate"] == 1.0
    assert nodule["similarity"]["other_prompt"] == 0.0
    assert nodule["similarity"]["other_queries"] == 6


def test_boxes_are_of_the_stored_image_and_maps_of_the_padded_square() -> None:
    # 48 x 24 pixels: the square pads 12 pixels left and right, so that the left half of the image is columns 1.5 to 3
    # of 6. Patch column 2 has its centre at 20 px: 8 px into the image.
    rows = [_row(0, "nodule", 2, (0.0, 0.0, 0.5, 0.2), shape=(48, 24))]
    result = grounding.evaluate(toy.ToyModel(), Split.of(rows), bootstrap=Bootstrap(resamples=10))
    assert result is not None
    assert result["overall"]["similarity"]["rate"] == 1.0
    # Centres at x = 4, 12, 20, ... px: those at 12 (its edge) and 20 lie between 12 and 24; y 4 only is below 9.6.
    assert result["overall"]["random"] == pytest.approx(2 / 36)
    square = [_row(0, "nodule", 2, (0.0, 0.0, 0.5, 0.2))]
    result = grounding.evaluate(toy.ToyModel(), Split.of(square), bootstrap=Bootstrap(resamples=10))
    assert result is not None
    assert result["overall"]["random"] == pytest.approx(3 / 36)


def test_a_box_between_the_centres_is_counted_as_a_miss() -> None:
    result = grounding.evaluate(
        toy.ToyModel(), Split.of([_row(0, "nodule", 0, (0.0, 0.0, 0.05, 0.05))]), bootstrap=Bootstrap(resamples=10)
    )
    assert result is not None
    assert result["without_centre"] == 1
    assert result["overall"]["similarity"]["rate"] == 0.0
    assert result["overall"]["similarity"]["lift"] is None


def test_ties_go_to_the_lower_index_and_nan_is_an_error() -> None:
    inside = np.zeros((3, 5), bool)
    inside[1, 2] = True
    response = np.zeros((3, 5))
    response[1, 2] = response[2, 4] = 1.0
    assert grounding.points_inside(response, inside)
    response[0, 1] = 1.0
    assert not grounding.points_inside(response, inside)
    response[0, 0] = np.nan
    with pytest.raises(UserError, match="NaN"):
        grounding.points_inside(response, inside)


def test_a_random_map_hits_at_the_random_rate() -> None:
    rng = np.random.default_rng(0)

    class Noise(toy.ToyModel):
        def response_maps(self, images, texts, response="similarity"):  # type: ignore[no-untyped-def]
            return rng.random((len(images), G, G))

    result = grounding.evaluate(
        Noise(), Split.of(toy.collection(150, paired_only=True)), bootstrap=Bootstrap(resamples=200)
    )
    assert result is not None
    assert result["queries"] > 250
    low, high = result["overall"]["similarity"]["interval"]
    assert low - 0.02 < result["overall"]["random"] < high + 0.02


def test_no_boxes_no_game() -> None:
    assert grounding.evaluate(toy.ToyModel(), Split.of([toy.example(0, toy.plant([0] * 5), {})])) is None


def test_the_limit_thins_evenly() -> None:
    split = Split.of([_row(n, "nodule", 0, (0, 0, 0.5, 0.5)) for n in range(50)])
    assert [q.row for q in grounding.queries_of(split, 7)] == [0, 8, 16, 24, 33, 41, 49]
