"""Other recognisers of entities behind the one interface."""

import itertools
import sys
import types

import hypothesis
import hypothesis.strategies as st
import pytest

from mmclip_jax.data import records
from mmclip_jax.data.builders.table import build_table
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.errors import UserError
from mmclip_jax.text import recognisers
from mmclip_jax.text.entities import describe_spans, find_entities

REPORT = "No evidence of pneumothorax following chest tube removal.\nModerate cardiomegaly; clear lungs."


def found(entities):
    return [(e.text, e.label, e.negated, e.kind) for e in entities]


# Spans of others, with the package's own kinds and polarity


@pytest.mark.parametrize(
    "text", [REPORT, "Effusion has resolved, but no edema. Evaluate for mass.", "", "nothing here"]
)
def test_the_lexicons_own_spans_give_its_own_entities(text):
    entities = find_entities(text)
    assert describe_spans(text, [(e.start, e.end, "modifier") for e in entities]) == entities


def test_words_that_the_lexicon_does_not_know_take_the_given_label_and_the_cues_polarity():
    text = "No zorbitis in the left quux. Zorbitis is seen."
    spans = [(30, 38, "observation"), (3, 11, "observation"), (24, 28, "anatomy")]
    assert found(describe_spans(text, spans)) == [
        ("zorbitis", "observation", True, ""),
        ("quux", "anatomy", False, ""),
        ("Zorbitis", "observation", False, ""),
    ]


def test_a_cue_inside_a_span_denies_nothing():
    text = "No-reflow zorbitis and effusion."
    assert [e.negated for e in describe_spans(text, [(0, 18, "observation"), (23, 31, "observation")])] == [
        False,
        False,
    ]


def test_of_overlapping_spans_the_first_and_longest_is_kept():
    spans = [(6, 14, "observation"), (0, 5, "observation"), (0, 14, "observation"), (10, 20, "observation")]
    assert [e.text for e in describe_spans("alpha beta gamma delta", spans)] == ["alpha beta gam"]


@pytest.mark.parametrize("span", [(3, 3, "observation"), (-1, 2, "observation"), (0, 99, "observation"), (0, 2, "x")])
def test_impossible_spans_are_refused(span):
    with pytest.raises(ValueError, match="span"):
        describe_spans("short", [span])


@hypothesis.given(st.data())
def test_entities_of_any_spans_are_sorted_apart_and_where_they_say(data):
    words = st.sampled_from(["no", "effusion", "lung", "but", ".", ",", "zorb", "is not seen", "\n", "right"])
    text = " ".join(data.draw(st.lists(words, max_size=12)))
    places = st.integers(0, max(0, len(text) - 1))
    pairs = data.draw(st.lists(st.tuples(places, places), max_size=6)) if text else []
    spans = [(min(a, b), max(a, b) + 1, "observation") for a, b in pairs]
    entities = describe_spans(text, spans)
    assert all(text[e.start : e.end] == e.text for e in entities)
    assert all(a.end <= b.start for a, b in itertools.pairwise(entities))
    assert {(e.start, e.end) for e in entities} <= {(start, end) for start, end, _ in spans}
    assert bool(entities) == bool(spans)


# spaCy


@pytest.fixture
def pipeline():
    spacy = pytest.importorskip("spacy", reason="spaCy is not installed")
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns(
        [
            {"label": "DISEASE", "pattern": [{"LOWER": "pneumothorax"}]},
            {"label": "DISEASE", "pattern": [{"LOWER": "moderate"}, {"LOWER": "cardiomegaly"}]},
            {"label": "ANATOMY", "pattern": [{"LOWER": "lungs"}]},
            {"label": "DISEASE", "pattern": [{"LOWER": "removal"}]},
        ]
    )
    return pipeline


def test_a_spacy_pipeline_finds_its_own_entities(pipeline):
    first, second = recognisers.SpacyPipeline(pipeline).recognise([REPORT, "Lungs."])
    assert found(first) == [
        ("pneumothorax", "observation", True, "pneumothorax"),
        ("removal", "observation", False, ""),  # "following" ends the denial
        ("Moderate cardiomegaly", "observation", False, "cardiomegaly"),
        ("lungs", "anatomy", False, ""),
    ]
    assert found(second) == [("Lungs", "anatomy", False, "")]


def test_polarity_that_the_pipeline_tells_is_taken(pipeline):
    from spacy.tokens import Span

    Span.set_extension("negex", getter=lambda span: span.text == "removal", force=True)
    try:
        (entities,) = recognisers.SpacyPipeline(pipeline).recognise([REPORT])
    finally:
        Span.remove_extension("negex")
    assert [e.text for e in entities if e.negated] == ["removal"]


def test_a_saved_pipeline_builds_a_data_set(pipeline, tmp_path):
    from PIL import Image

    pipeline.to_disk(tmp_path / "model")
    Image.linear_gradient("L").save(tmp_path / "1.png")
    (tmp_path / "table.csv").write_text(f'image,patient_id,report\n1.png,7,"{REPORT}"\n')
    made = {}
    for name in ("lexicon", f"spacy:{tmp_path / 'model'}"):
        options = TableOptions(
            str(tmp_path / "table.csv"), str(tmp_path), "mine", split="train", entities=name, workers=1
        )
        path = build_table(options, tmp_path / name.partition(":")[0]).path
        made[name] = records.open_records(path, "train", "paired")[0].entities
        assert records.dataset_facts(path)["options"]["entities"] == name
    theirs = [e.text for e in made[f"spacy:{tmp_path / 'model'}"]]
    assert theirs == ["pneumothorax", "removal", "Moderate cardiomegaly", "lungs"]
    assert list(made["lexicon"]) == find_entities(records.open_records(path, "train", "paired")[0].text)


def test_a_spacy_pipeline_that_is_not_there_says_how_to_get_it():
    pytest.importorskip("spacy", reason="spaCy is not installed")
    with pytest.raises(UserError, match="no pipeline 'en_core_nothing' here: install it"):
        recognisers.load("spacy:en_core_nothing")


# RadGraph, by the form of its output as its package documents it

ANNOTATION = {
    "0": {
        "text": "No evidence of pneumothorax following chest tube removal . Moderate cardiomegaly ; clear lungs .",
        "entities": {
            "1": {"tokens": "pneumothorax", "label": "Observation::definitely absent", "start_ix": 3, "end_ix": 3},
            "2": {"tokens": "chest", "label": "Anatomy::definitely present", "start_ix": 5, "end_ix": 5},
            "3": {"tokens": "tube", "label": "Observation::uncertain", "start_ix": 6, "end_ix": 6},
            "4": {"tokens": "Moderate cardiomegaly", "label": "OBS-DA", "start_ix": 9, "end_ix": 10},
            "5": {"tokens": "lungs", "label": "ANAT-DP", "start_ix": 13, "end_ix": 13},
        },
    }
}


def test_radgraphs_tokens_become_places_in_the_report():
    (entities,) = recognisers.RadGraph(lambda texts: ANNOTATION).recognise([REPORT])
    assert found(entities) == [
        ("pneumothorax", "observation", True, "pneumothorax"),
        ("chest", "anatomy", False, ""),
        ("tube", "device", False, ""),
        ("Moderate cardiomegaly", "observation", True, "cardiomegaly"),
        ("lungs", "anatomy", False, ""),
    ]


def test_a_word_that_recurs_is_found_where_it_stands():
    annotation = {
        "0": {
            "text": "Mass gone . No mass .",
            "entities": {"1": {"label": "Observation::definitely absent", "start_ix": 4, "end_ix": 4}},
        },
        "1": {
            "text": "A mass and a mass .",
            "entities": {
                "1": {"label": "Observation::definitely present", "start_ix": 1, "end_ix": 1},
                "2": {"label": "Observation::definitely absent", "start_ix": 4, "end_ix": 4},
            },
        },
    }
    first, second = recognisers.RadGraph(lambda texts: annotation).recognise(
        ["Mass gone. No mass.", "A mass and a mass."]
    )
    assert [(e.start, e.negated) for e in first] == [(14, True)]
    assert [(e.start, e.negated) for e in second] == [(2, False), (13, True)]


def test_tokens_that_radgraph_replaced_are_passed_over():
    text = 'A \\"zorb\\" mass.'
    annotation = {
        "0": {
            "text": "A ``zorb`` mass .",
            "entities": {
                "1": {"label": "Observation::definitely present", "start_ix": 1, "end_ix": 2},
                "2": {"label": "Observation::definitely present", "start_ix": 1, "end_ix": 1},
            },
        }
    }
    (entities,) = recognisers.RadGraph(lambda texts: annotation).recognise([text])
    assert [e.text for e in entities] == ["mass"]


def test_a_report_that_radgraph_gives_nothing_for_is_an_error_that_does_not_quote_it():
    with pytest.raises(UserError, match=r"RadGraph failed at a report of 5 characters") as caught:
        recognisers.RadGraph(lambda texts: {"0": ANNOTATION["0"]}).recognise([REPORT, "Clear"])
    assert "Clear" not in str(caught.value)


def test_radgraph_is_loaded_by_the_model_that_is_named(monkeypatch):
    asked = []

    def radgraph(model_type):
        asked.append(model_type)
        return lambda texts: ANNOTATION

    module = types.ModuleType("radgraph")
    module.RadGraph = radgraph  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "radgraph", module)
    recognisers.load.cache_clear()
    recognisers.load("radgraph:radgraph-xl").recognise([REPORT])
    assert asked == ["radgraph-xl"]
    recognisers.load.cache_clear()


# What is not there


@pytest.mark.parametrize(("name", "module"), [("spacy:x", "spacy"), ("medspacy", "medspacy"), ("radgraph", "radgraph")])
def test_a_package_that_is_not_installed_is_named(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    recognisers.load.cache_clear()
    with pytest.raises(UserError, match=r"needs .*pip install"):
        recognisers.load(name)


@pytest.mark.parametrize("name", ["", "spacy", "spacy:", "lexikon"])
def test_unknown_names_are_refused_with_those_that_exist(name):
    with pytest.raises(UserError, match="only lexicon, spacy:MODEL"):
        recognisers.load(name)
