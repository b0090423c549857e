import dataclasses

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax.data.schema import LabelState
from mmclip_jax.evaluate.evaluations import counterfactual, entmlm
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.text import vocabulary
from mmclip_jax.text.entities import find_entities

EFFUSION = "There is pleural effusion. Pleural effusion on the left. No pneumothorax."
CLEAR = "No pleural effusion. No pneumothorax."


def _row(n: int, report: str, shown: tuple[int, ...] = (0, 0, 0, 0, 0), **more: object):  # type: ignore[no-untyped-def]
    return toy.example(n, toy.plant([0] * 5, shown=shown), {}, report=report, **more)  # type: ignore[arg-type]


def test_own_and_swapped_accuracy_are_those_planted() -> None:
    # Ten reports of an effusion, eight images of which show it; the twenty others do not.
    rows = [_row(n, EFFUSION, (int(n < 8), 0, 0, 0, 0)) for n in range(10)]
    rows += [_row(n, CLEAR) for n in range(10, 30)]
    result = entmlm.evaluate(toy.ToyModel(), Split.of(rows), bootstrap=Bootstrap(resamples=200))
    assert result is not None
    assert (result["queries"], result["reports"], result["without_other"], result["cut_off"]) == (10, 10, 0, 0)
    overall = result["overall"]
    assert overall["tokens"] == 40  # two mentions of two words each
    assert overall["own"]["tokens"] == pytest.approx(0.8)
    assert overall["own"]["whole"] == pytest.approx(0.8)
    assert overall["swapped"]["tokens"] == 0.0
    assert overall["drop"]["tokens"] == pytest.approx(0.8)
    low, high = overall["drop"]["tokens_interval"]
    assert 0.4 < low < 0.8 < high <= 1.0
    assert [f["finding"] for f in result["findings"]] == ["pleural_effusion"]


def test_a_model_that_ignores_the_image_shows_no_drop() -> None:
    class Blind(toy.ToyModel):
        def restore(self, images, texts, masked_entities):  # type: ignore[no-untyped-def]
            return super().restore([images[0]] * len(images), texts, masked_entities)

    rows = [_row(0, EFFUSION, (1, 0, 0, 0, 0))] + [_row(n, EFFUSION if n % 2 else CLEAR) for n in range(1, 20)]
    result = entmlm.evaluate(Blind(), Split.of(rows), bootstrap=Bootstrap(resamples=50))
    assert result is not None
    # The first image of both calls decides, and it shows the finding in neither or both.
    assert result["overall"]["own"]["tokens"] in (0.0, 1.0)
    both = toy.ToyModel()
    both.restore = lambda i, t, m: [(np.arange(3), np.array([0, 1, 9])) for _ in t]  # type: ignore[method-assign]
    result = entmlm.evaluate(both, Split.of(rows), bootstrap=Bootstrap(resamples=50))
    assert result is not None
    assert result["overall"]["own"]["tokens"] == pytest.approx(2 / 3)
    assert result["overall"]["own"]["whole"] == 0.0
    assert result["overall"]["drop"]["tokens"] == 0.0
    assert result["overall"]["drop"]["tokens_interval"] == [0.0, 0.0]


def test_all_mentions_of_the_kind_are_masked_and_nothing_else() -> None:
    rows = [_row(0, EFFUSION), _row(1, CLEAR)]
    queries, alone = entmlm.queries_of(Split.of(rows))
    assert alone == 0
    (query,) = queries
    entities = find_entities(EFFUSION)
    assert [entities[i].text.lower() for i in query.masked] == ["pleural effusion", "pleural effusion"]
    assert len(entities) > 2
    assert (query.row, query.other, query.kind) == (0, 1, "pleural_effusion")


def test_the_other_image_is_of_another_patient_of_the_source_without_the_finding() -> None:
    rows = toy.collection(patients=40)
    split = Split.of(rows)
    queries, _ = entmlm.queries_of(split)
    assert len(queries) > 30
    for query in queries:
        row, other = rows[query.row], rows[query.other]
        assert row.patient != other.patient
        assert row.source == other.source
        assert other.labels.get(query.kind, LabelState.UNKNOWN) != LabelState.PRESENT
        assert query.kind not in {e.kind for e in find_entities(other.text) if not e.negated}
    assert len({query.other for query in queries}) > 10
    assert queries == entmlm.queries_of(Split.of(rows))[0]


def test_a_label_rules_a_patient_out_even_where_the_report_is_silent() -> None:
    silent = "The heart is normal in size."
    entities = find_entities(silent)
    unlabelled = _row(0, silent)
    assert entmlm.lacks(unlabelled, entities, "pleural_effusion")
    for state in (LabelState.PRESENT, LabelState.UNCERTAIN):
        labelled = toy.example(1, toy.plant([0] * 5), {"pleural_effusion": state}, report=silent)
        assert not entmlm.lacks(labelled, entities, "pleural_effusion")
    # A narrower kind that is affirmed rules the broader one out.
    viral = "There is viral pneumonia."
    assert not entmlm.lacks(_row(2, viral), find_entities(viral), "pneumonia")


def test_reports_without_a_counterpart_are_counted() -> None:
    rows = [_row(n, EFFUSION) for n in range(3)]
    queries, alone = entmlm.queries_of(Split.of(rows))
    assert (queries, alone) == ([], 3)
    assert entmlm.evaluate(toy.ToyModel(), Split.of(rows)) is None


def test_mentions_beyond_the_texts_length_are_counted() -> None:
    late = "The heart and the mediastinum are normal. " * 3 + "There is pleural effusion."
    rows = [_row(0, late), _row(1, EFFUSION), _row(2, CLEAR)]
    result = entmlm.evaluate(toy.ToyModel(length=12), Split.of(rows), bootstrap=Bootstrap(resamples=10))
    assert result is not None
    assert (result["cut_off"], result["queries"]) == (1, 1)


def test_tokens_are_grouped_by_entity_as_the_model_restores_them() -> None:
    model = toy.ToyModel()
    entities = find_entities(EFFUSION)
    masked = [i for i, e in enumerate(entities) if e.kind in ("pleural_effusion", "pneumothorax")]
    ((true, _),) = model.restore([toy.plant([0] * 5)], [EFFUSION], [masked])
    groups = entmlm.group_by_entity(model, EFFUSION, entities, masked)
    assert len(groups) == len(true) == 5
    assert [entities[g].kind for g in groups] == ["pleural_effusion"] * 4 + ["pneumothorax"]


@given(seed=st.integers(0, 10_000), patients=st.integers(2, 5))
@settings(max_examples=60)
def test_the_other_image_is_never_of_the_same_patient(seed: int, patients: int) -> None:
    """Every patient has films with and without the finding, so that his own clear film is often the next one."""
    rng = np.random.default_rng(seed)
    rows = [_row(n, EFFUSION if rng.random() < 0.5 else CLEAR, patient=f"p{rng.integers(patients)}") for n in range(17)]
    split = Split.of(rows)
    queries, alone = entmlm.queries_of(split)
    asked = [row for row in range(17) if rows[row].text == EFFUSION]
    clear = {rows[row].patient for row in range(17) if rows[row].text == CLEAR}
    assert alone == sum(not clear - {rows[row].patient} for row in asked)
    assert sorted(query.row for query in queries) == [r for r in asked if clear - {rows[r].patient}]
    for query in queries:
        assert rows[query.other].patient != rows[query.row].patient
        assert rows[query.other].text == CLEAR


def test_reports_of_another_language_are_read_as_their_data_set_was() -> None:
    german = vocabulary.for_language("de")
    reports = ["Pleuraerguss links. Kein Pneumothorax.", "Kein Pleuraerguss. Kein Pneumothorax."]
    rows = [_row(n, reports[n % 2], (int(n % 2 == 0), 0, 0, 0, 0)) for n in range(8)]
    rows = [dataclasses.replace(row, entities=tuple(find_entities(row.text, german))) for row in rows]
    split = dataclasses.replace(Split.of(rows), languages=["de"])
    result = entmlm.evaluate(toy.ToyModel(), split, bootstrap=Bootstrap(resamples=50))
    assert result is not None
    assert (result["queries"], result["reports"]) == (4, 4)
    assert result["overall"]["own"]["whole"] == 1.0
    assert result["overall"]["swapped"]["whole"] == 0.0
    assert counterfactual.pairs_of(split)[0] == [], "its edits are English"
    assert entmlm.queries_of(dataclasses.replace(split, languages=["en"]))[0] != entmlm.queries_of(split)[0]
