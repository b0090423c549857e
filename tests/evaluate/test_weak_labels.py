"""Images with reports and no labels: what is said, and weak labels made from the reports."""

import pathlib

import pytest
import toy

from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.report import terminal
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap

P, A, U = LabelState.PRESENT, LabelState.ABSENT, LabelState.UNCERTAIN
WORDS = ["There is a nodule. No pneumothorax.", "No nodule. No pneumothorax.", "Pneumothorax. No nodule."]


def _rows(count: int = 24, labels: dict[str, LabelState] | None = None):  # type: ignore[no-untyped-def]
    return [
        toy.example(n, toy.plant([9000 * (n % 3 == 0)] * 5), labels or {}, report=WORDS[n % 3]) for n in range(count)
    ]


def test_labels_are_what_the_reports_say_and_nothing_else() -> None:
    rows = [
        *_rows(3),
        toy.example(3, toy.plant([0] * 5), {}, report="Viral pneumonia. No edema."),
        toy.example(4, toy.plant([0] * 5), {"nodule": U}, report=WORDS[0]),  # labelled, if not surely
        toy.example(5, toy.plant([0] * 5), {}),  # no report
    ]
    split = Split.of(rows)
    weak = split.with_labels_from_reports()
    assert (split.weak_labels, weak.weak_labels, split.labelled_rows, weak.labelled_rows) == (0, 4, 1, 5)
    first, second, third, fourth = (dict(example.labels) for example in weak.examples[:4])
    assert first.items() >= {"nodule": P, "pneumothorax": A, "no_finding": A}.items()
    assert second == {"nodule": A, "pneumothorax": A, "no_finding": P}
    assert third.items() >= {"pneumothorax": P, "nodule": A, "no_finding": A}.items()
    assert fourth["pneumonia"] == P  # implied
    assert fourth["edema"] == A
    assert "fibrosis" not in fourth
    assert dict(weak.examples[4].labels) == {"nodule": U}
    assert dict(weak.examples[5].labels) == {}


def _evaluated(out: pathlib.Path | None = None, **options):  # type: ignore[no-untyped-def]
    return evaluation.evaluate_checkpoint(
        toy.ToyModel(),
        [],
        "test",
        out,
        options=evaluation.Options(
            bootstrap=Bootstrap(resamples=20),
            protocol=protocols.load("table"),
            without=("trust", "counterfactual"),
            cases=0,
            progress=False,
            **options,
        ),
    )


def test_without_labels_it_is_said_what_is_needed(tmp_path: pathlib.Path) -> None:
    results = _evaluated(tmp_path / "none", loaded=Split.of(_rows(), "test"))
    said = terminal.summary(results, "Step 7", tmp_path / "none")
    for text in (said, (tmp_path / "none" / "report.html").read_text(encoding="utf-8")):
        assert "No image of this split has a label" in text
        assert "--labels-from-reports" in text
    one_class = _evaluated(loaded=Split.of(_rows(labels={"nodule": P}), "test"))
    assert "No finding has both classes" in terminal.summary(one_class, "Step 7", tmp_path)


def test_scores_by_weak_labels_say_so_everywhere(tmp_path: pathlib.Path) -> None:
    results = _evaluated(tmp_path / "weak", loaded=Split.of(_rows(), "test"), labels_from_reports=True)
    assert results["data"]["weak_labels"] == 24
    findings = {f["finding"]: f for f in results["zero_shot"]["sources"]["here"]["findings"]}
    assert (findings["nodule"]["positives"], findings["nodule"]["negatives"]) == (8, 16)
    assert findings["nodule"]["difference"]["auroc"] == 1.0
    said = terminal.summary(results, "Step 7", tmp_path / "weak")
    card = (tmp_path / "weak" / "model_card.md").read_text(encoding="utf-8")
    page = (tmp_path / "weak" / "report.html").read_text(encoding="utf-8")
    for text in (said, card, page):
        assert "24 of 24 images were read from their own reports" in text
        assert ", weak labels" in text


def test_weak_labels_of_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="--labels-from-reports: no image of the test split has a report"):
        _evaluated(loaded=Split.of(_rows(labels={"nodule": P}), "test"), labels_from_reports=True)
