import numpy as np
import pandas as pd
import pytest
import toy
from sklearn.metrics import roc_auc_score

from mmclip_jax.data.schema import LabelState
from mmclip_jax.evaluate.evaluations import studies
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap


@pytest.mark.parametrize("way", studies.WAYS)
def test_aggregates_equal_pandas(way: str) -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, (23, 3)).astype(float), rng.normal(size=(23, 3))
    labels[rng.random((23, 3)) < 0.4] = np.nan
    names = [f"s{n}" for n in rng.integers(0, 7, 23)]
    got_labels, got_scores, first = studies.aggregate(labels, scores, names, way)
    frame = pd.DataFrame(scores).groupby(names, sort=False)
    np.testing.assert_allclose(got_scores, frame.agg(way).to_numpy(), atol=1e-12)
    np.testing.assert_array_equal(got_labels, pd.DataFrame(labels).groupby(names, sort=False).max().to_numpy())
    assert [names[row] for row in first] == list(dict.fromkeys(names))


def test_images_and_studies_side_by_side() -> None:
    """Of each study with the finding one view shows it: the maximum finds all, the images miss half."""
    import dataclasses

    rows, labels, scores = [], [], []
    for n in range(12):
        for view in range(2):
            row = toy.example(2 * n + view, toy.plant([0] * 5), {}, patient=f"p{n}")
            rows.append(dataclasses.replace(row, study=f"s{n}"))
            labels.append([float(n % 2)])
            scores.append([1.0 + 0.01 * n if n % 2 and view else 0.001 * n - 0.02 * view])
    split = Split.of(rows, "test")
    (found,) = studies.evaluate(
        split, ["nodule"], np.array(labels), np.array(scores), bootstrap=Bootstrap(resamples=50)
    ).values()
    assert (found["images"], found["studies"], found["several"]) == (24, 12, 12)
    assert found["macro"]["max"]["auroc"] == found["macro"]["mean"]["auroc"] == 1.0
    assert found["macro"]["image"]["auroc"] == pytest.approx(
        roc_auc_score(np.array(labels)[:, 0], np.array(scores)[:, 0])
    )
    assert found["macro"]["image"]["auroc"] < 0.9
    low, high = found["macro"]["image"]["auroc_interval"]
    assert low < found["macro"]["image"]["auroc"] < high
    one_view = Split.of(rows[::2], "test")
    assert studies.evaluate(one_view, ["nodule"], np.array(labels)[::2], np.array(scores)[::2]) == {}


@pytest.mark.parametrize("score", ["cosine", "softmax"])
def test_the_score_of_studies_is_the_protocols(score: str) -> None:
    """The denying prompts point somewhere else, so that the two scores rank images otherwise."""
    import dataclasses

    from mmclip_jax.evaluate import protocols
    from mmclip_jax.evaluate import run as evaluation

    rows = []
    for n in range(24):
        row = toy.example(n, toy.plant([(7919 * n) % 9973] * 5), {"nodule": LabelState(n % 2)}, patient=f"p{n // 2}")
        rows.append(dataclasses.replace(row, study=f"s{n // 2}"))
    protocol = dataclasses.replace(protocols.load("table"), score=score)
    split = Split.of(rows, "test")

    elsewhere = np.random.default_rng(1).normal(size=12)

    class Skewed(toy.ToyModel):
        def encode_image(self, images):  # type: ignore[no-untyped-def]
            made = np.array(super().encode_image(images))
            made[:, 5:] = np.random.default_rng(0).normal(size=(len(made), 7))
            return made

        def encode_text(self, texts):  # type: ignore[no-untyped-def]
            made = np.array(super().encode_text(texts))
            made[[made_for.argmax() >= 5 for made_for in made]] = elsewhere / np.linalg.norm(elsewhere)
            return made

    results = evaluation.evaluate_checkpoint(
        Skewed(),
        [],
        "test",
        options=evaluation.Options(
            bootstrap=Bootstrap(resamples=20),
            protocol=protocol,
            loaded=split,
            without=("trust", "counterfactual"),
            progress=False,
        ),
    )
    macros = results["zero_shot"]["sources"]["here"]["macro"]
    assert macros["difference"]["all"]["auroc"] != pytest.approx(macros["positive"]["all"]["auroc"], abs=0.05)
    by_study = results["studies"]["here"]["macro"]["image"]["auroc"]
    by_image = macros[{"cosine": "positive", "softmax": "difference"}[score]]["all"]["auroc"]
    assert by_study == pytest.approx(by_image)
