"""A new evaluation is one class and its template: run, kept, told and compared without a change of the package."""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import toy

from mmclip_jax.data.schema import LabelState
from mmclip_jax.evaluate import protocols, registry
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.base import Card, Context, Evaluation, Need, Part, Result, Results, Section
from mmclip_jax.evaluate.evaluations.entmlm import RESTORING
from mmclip_jax.evaluate.evaluations.zeroshot import FINDINGS, ZERO_SHOT
from mmclip_jax.evaluate.report import comparison, terminal
from mmclip_jax.evaluate.report.formats import finite, number
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap


class Certainty(Evaluation[np.ndarray]):
    """The mean distance of the scores from 0, by prompts: it builds on the zero-shot evaluation."""

    name = "certainty"
    after = (ZERO_SHOT,)
    compared = (("Certainty", "certainty"),)

    def __init__(self, template: pathlib.Path, needs: Sequence[Need] = ()):
        self.template = template
        self.needs = needs

    def run(self, context: Context) -> Result[np.ndarray]:
        scored = context.found(ZERO_SHOT)
        assert scored is not None
        distance = np.abs(scored.scores["difference"]).mean(axis=1)
        drawn = context.bootstrap.ratio(distance)
        interval = context.bootstrap.rate_interval(float(distance.mean()), drawn)
        return Result({"mean": float(distance.mean()), "interval": interval.bounds}, distance)

    def headline(self, results: Results) -> Mapping[str, Any]:
        found = results["certainty"]
        return {"certainty": found and found["mean"]}

    def cards(self, results: Results) -> Sequence[Card]:
        found = results["certainty"]
        return [Card("Certainty", number(found["mean"]), "", ["<of all scores>"])] if found else ()

    def lines(self, results: Results) -> Sequence[str]:
        return ["Certainty is no accuracy"]

    def limits(self, results: Results) -> Sequence[str]:
        return ["A certain model may be wrong."]

    def parts(self, results: Results, found: np.ndarray | None) -> Sequence[Part]:
        if found is None:
            return ()
        section = Section("certainty", "Certainty", "How certain scores are")
        return [
            Part(section, self.template, {"count": len(found), "where": "its own section"}),
            Part(FINDINGS, self.template, {"count": len(found), "where": "among the findings"}, guest=True),
            Part(RESTORING, self.template, {"count": len(found), "where": "where no place is kept"}, guest=True),
        ]

    def write(self, folder: pathlib.Path, found: np.ndarray | None) -> None:
        (folder / "certainty.txt").write_text(f"{0 if found is None else len(found)} rows", encoding="utf-8")

    def quick(self, context: Context) -> Mapping[str, float]:
        return {"certainty": 0.5}


@pytest.fixture
def template(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "templates" / "trust.html.j2"  # a name that the package has, too
    file.parent.mkdir()
    file.write_text(
        '{%- from "macros.html.j2" import num with context -%}'
        "<p class='certain'>{{ num(r.certainty.mean) }} over {{ count }} images, {{ where }}</p>",
        encoding="utf-8",
    )
    return file


@pytest.fixture
def registered() -> Iterator[list[Evaluation[Any]]]:
    """The registry, which is put back afterwards."""
    before = list(registry.EVALUATIONS)
    yield registry.EVALUATIONS
    registry.EVALUATIONS[:] = before


def _run(out: pathlib.Path, split: Split) -> dict[str, Any]:
    model = toy.ToyModel(toy.MANIFEST)
    table = protocols.load("table")
    return evaluation.evaluate_checkpoint(
        model,
        [],
        "test",
        out,
        options=evaluation.Options(
            bootstrap=Bootstrap(resamples=20), protocol=table, loaded=split, cases=0, progress=False, run_name=out.name
        ),
    )


@pytest.mark.usefixtures("registered")
def test_a_new_evaluation_needs_no_change_of_the_package(tmp_path: pathlib.Path, template: pathlib.Path) -> None:
    split = Split.of(toy.collection(patients=40), "test")
    before = _run(tmp_path / "before", split)
    registry.register(Certainty(template))
    results = _run(tmp_path / "after", split)
    scores = results["certainty"]
    kept = json.loads((tmp_path / "after" / "results.json").read_text())
    assert kept["certainty"] == scores
    assert kept["headline"]["certainty"] == scores["mean"] > 0
    assert scores["interval"][0] < scores["mean"] < scores["interval"][1]
    assert kept["seconds"]["certainty"] >= 0
    apart = ("headline", "seconds", "checkpoint")
    alike = [{name: each[name] for name in before if name not in apart} for each in (before, results)]
    assert finite(alike[0]) == finite(alike[1]), "the others find what they found"
    page, card = ((tmp_path / "after" / name).read_text() for name in ("report.html", "model_card.md"))
    assert '<a href="#certainty">Certainty</a>' in page
    said = f"{scores['mean']:.3f} over {len(split)} images"
    own = page.index(f"{said}, its own section")
    assert page.index('<section id="sources">') < page.index('<section id="certainty">') < own
    assert page.index('<section id="findings">') < page.index(f"{said}, among the findings")
    assert page.index(f"{said}, among the findings") < page.index("<h3>ROC curves")
    assert page.index('<section id="restoring">') < page.index(f"{said}, where no place is kept")
    assert page.index(f"{said}, where no place is kept") < page.index('<section id="retrieval">')
    assert page.count("class='certain'") == 3
    assert "&lt;of all scores&gt;" in page
    assert "A certain model may be wrong." in page
    assert f"| Certainty | {scores['mean']:.3f} | <of all scores> |" in card
    assert "- Certainty is no accuracy" in card
    assert "Certainty is no accuracy" in terminal.summary(results, "Step 7", tmp_path)
    assert (tmp_path / "after" / "certainty.txt").read_text() == f"{len(split)} rows"
    assert evaluation.quick_metrics(toy.ToyModel(), toy.collection(patients=9))["certainty"] == 0.5
    comparison.run([tmp_path / "after", tmp_path / "before"], tmp_path / "compared", resamples=20)
    table = (tmp_path / "compared" / "compare.html").read_text()
    assert '<th scope="col" class="n">Certainty</th>' in table
    assert table.count(f'<td class="n">{scores["mean"]:.3f}</td>') == 1, "the other run has none"


@pytest.mark.usefixtures("registered")
def test_what_lacks_its_needs_does_not_run_but_is_there(tmp_path: pathlib.Path, template: pathlib.Path) -> None:
    few = Need("a hundred rows", lambda context: len(context.rows) >= 100)
    registry.register(Certainty(template, needs=[few]))
    results = _run(tmp_path / "out", Split.of(toy.collection(patients=20), "test"))
    assert results["certainty"] is None
    assert results["headline"]["certainty"] is None
    assert "How certain scores are" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("registered")
def test_one_that_is_left_out_leaves_out_what_builds_on_it(tmp_path: pathlib.Path, template: pathlib.Path) -> None:
    registry.register(Certainty(template))
    split = Split.of([toy.example(n, toy.plant([n] * 5), {"nodule": LabelState(n % 2)}) for n in range(8)], "test")
    options: dict[str, Any] = {"loaded": split, "bootstrap": Bootstrap(resamples=5), "progress": False}
    results = evaluation.evaluate_checkpoint(
        toy.ToyModel(), [], options=evaluation.Options(protocol=protocols.load("table"), **options)
    )
    assert results["certainty"] is not None
    results = evaluation.evaluate_checkpoint(
        toy.ToyModel(),
        [],
        options=evaluation.Options(protocol=protocols.load("table"), without=("certainty", "trust"), **options),
    )
    assert (results["certainty"], results["trust"]) == (None, None)


def test_all_but_the_scores_by_prompts_can_be_left_out(tmp_path: pathlib.Path) -> None:
    split = Split.of(toy.collection(patients=40), "test")
    names = [each.name for each in registry.EVALUATIONS if each is not ZERO_SHOT]
    table: dict[str, Any] = {"protocol": protocols.load("table"), "loaded": split, "progress": False, "cases": 0}
    options = evaluation.Options(**table, bootstrap=Bootstrap(resamples=5), without=names)
    results = evaluation.evaluate_checkpoint(toy.ToyModel(), [], "test", tmp_path / "out", options)
    assert not any(results[name] for name in names if name != "contrastive")
    assert results["contrastive"] == {"block": 64, "parts": [], "recall": []}
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<section id="findings">' in page
    assert '<section id="retrieval">' not in page
    for name in ("zero_shot", "grouding"):
        with pytest.raises(ValueError, match=f"no evaluation '{name}' that can be left out"):
            evaluation.evaluate_checkpoint(toy.ToyModel(), [], options=evaluation.Options(without=[name], **table))


def test_names_are_taken_once_and_what_an_evaluation_builds_on_comes_first(
    registered: list[Evaluation[Any]], template: pathlib.Path
) -> None:
    for taken in ("zero_shot", "headline"):
        other = Certainty(template)
        other.name = taken
        with pytest.raises(ValueError, match=f"'{taken}' is taken"):
            registry.register(other)
    registered.remove(ZERO_SHOT)
    with pytest.raises(ValueError, match="builds on zero_shot, which is not registered"):
        registry.register(Certainty(template))


def test_the_packaged_ones_are_in_order() -> None:
    names = [each.name for each in registry.EVALUATIONS]
    assert len(set(names)) == len(names)
    for place, each in enumerate(registry.EVALUATIONS):
        assert all(registry.EVALUATIONS.index(other) < place for other in each.after)
