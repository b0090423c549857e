"""Terms against a search without regular expressions, polarity against sentences written by hand; real reports."""

import itertools
import pathlib
import re

import pytest
from conftest import load_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax.errors import UserError
from mmclip_jax.text import vocabulary
from mmclip_jax.text.entities import find_entities, find_terms, lowercase
from mmclip_jax.text.schema import Entity

WORDS = vocabulary.load()
PIECES = st.one_of(
    st.sampled_from(sorted(WORDS.terms)),
    st.sampled_from(sorted({cue for cues in WORDS.cues.values() for cue in cues})),
    st.sampled_from(
        [" ", " ", "-", "\n", ". ", ", ", "; ", " the ", "x", "_", "7", "\u0130", "\u00e9", "\U0001f642", "\u2028"]
    ),
    st.text(max_size=5),
)
TEXTS = st.lists(PIECES, max_size=14).map("".join) | st.lists(PIECES, max_size=14).map(" ".join)


def affirmed(text: str) -> list[str]:
    return [e.text for e in find_entities(text) if e.label in ("observation", "device") and not e.negated]


def denied(text: str) -> list[str]:
    return [e.text for e in find_entities(text) if e.negated]


def kinds(text: str) -> list[str]:
    return [e.kind for e in find_entities(text) if e.kind]


def search(text: str) -> list[tuple[int, int]]:
    """Leftmost, then longest runs of the lexicon, by trying every end at every start."""

    def is_word(character: str) -> bool:
        return character.isalnum() or character == "_"

    lowered = [c.lower() if len(c.lower()) == 1 else c for c in text]
    gap = [c.isspace() or c == "-" for c in text]
    found, start = [], 0
    while start < len(text):
        best = 0
        if not gap[start] and not (start and is_word(lowered[start - 1])):
            for end in range(start + 1, min(len(text), start + 80) + 1):
                if gap[end - 1] or (end < len(text) and is_word(lowered[end])):
                    continue
                joined = "".join(" " if gap[i] else lowered[i] for i in range(start, end))
                if re.sub(" +", " ", joined) in WORDS.terms:
                    best = end
        if best:
            found.append((start, best))
        start = max(best, start + 1)
    return found


@given(TEXTS)
@settings(max_examples=300)
def test_entities_are_substrings_in_order(text: str) -> None:
    entities = find_entities(text)
    for entity in entities:
        assert entity.text == text[entity.start : entity.end]
        assert entity.label in vocabulary.LABELS
        assert entity.kind == "" or entity.kind in WORDS.kinds
        assert not (entity.negated and entity.label in ("anatomy", "modifier"))
    assert all(a.end <= b.start for a, b in itertools.pairwise(entities))


@given(TEXTS)
@settings(max_examples=300)
def test_terms_are_the_leftmost_longest(text: str) -> None:
    expected = search(text)
    assert [(start, end) for start, end, _ in find_terms(text)] == expected


@given(st.lists(st.sampled_from(sorted(WORDS.terms)), max_size=8))
@settings(max_examples=100)
def test_polarity_hides_no_term(terms: list[str]) -> None:
    text = "; ".join(terms)
    assert [(e.start, e.end) for e in find_entities(text)] == [(start, end) for start, end, _ in find_terms(text)]


@given(st.text(max_size=30))
def test_lowercase_keeps_the_length(text: str) -> None:
    assert len(lowercase(text)) == len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PLEURAL EFFUSION", ["PLEURAL EFFUSION"]),
        ("pleural\n effusions", ["pleural\n effusions"]),
        ("ground-glass opacity, ground glass opacities", ["ground-glass opacity", "ground glass opacities"]),
        ("masses and bullae and calcified granulomata", ["masses", "bullae", "calcified granulomata"]),
        ("an effusion, and another effusion", ["effusion", "effusion"]),
        ("a massive leading porter", []),
        ("effusion_2 effusion2 effusion-free", ["effusion"]),
        ("pleural effusionless", ["pleural"]),
        ("pleural, effusion", ["pleural", "effusion"]),
        ("\u0130\u0130 pneumothorax\u00e9 pneumothorax", ["pneumothorax"]),
        ("right upper lobe nodule", ["right upper lobe", "nodule"]),
        ("congestive heart failure of the heart", ["congestive heart failure", "heart"]),
    ],
)
def test_terms_by_hand(text: str, expected: list[str]) -> None:
    assert [e.text for e in find_entities(text) if e.label != "modifier"] == expected


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        # what stands before
        ("No pneumothorax.", [], ["pneumothorax"]),
        ("There is no pneumothorax, effusion, or consolidation.", [], ["pneumothorax", "effusion", "consolidation"]),
        ("Lungs are clear without edema", [], ["edema"]),
        ("The lungs are free of focal infiltrates.", [], ["focal infiltrates"]),
        ("Negative for fracture or mass.", [], ["fracture", "mass"]),
        ("The heart is not enlarged.", [], ["enlarged"]),
        ("No pneumothorax, lung volumes are low", ["lung volumes are low"], ["pneumothorax"]),
        ("A skin fold simulating pneumothorax.", [], ["pneumothorax"]),
        ("A nipple shadow is easily mistaken for a nodule.", ["nipple shadow"], ["nodule"]),
        ("Emphysema is not confirmed.", [], ["Emphysema"]),
        ("Neither edema nor effusion.", [], ["edema", "effusion"]),
        ("No opacity to suggest pneumonia.", [], ["opacity", "pneumonia"]),
        ("Interval removal of the chest tube.", [], ["chest tube"]),
        ("Evaluate for pneumothorax.", [], ["pneumothorax"]),
        # what stands behind
        ("Effusion is not seen.", [], ["Effusion"]),
        ("Edema, effusion, or mass is not identified.", [], ["Edema", "effusion", "mass"]),
        ("The pneumothorax has resolved.", [], ["pneumothorax"]),
        ("The pacemaker has been removed.", [], ["pacemaker"]),
        ("The heart is enlarged, edema is absent.", ["enlarged"], ["edema"]),
        ("The heart is enlarged and effusion is not seen.", ["enlarged"], ["effusion"]),
        ("Stable cardiomegaly, lungs are unremarkable.", ["cardiomegaly"], []),
        # where a scope ends
        ("No effusion. Edema.", ["Edema"], ["effusion"]),
        ("No effusion; edema", ["edema"], ["effusion"]),
        ("No effusion but edema is present.", ["edema"], ["effusion"]),
        ("No effusion, however there is edema.", ["edema"], ["effusion"]),
        ("Edema, but effusion is not seen", ["Edema"], ["effusion"]),
        ("No effusion\nEdema of the lungs", ["Edema"], ["effusion"]),
        ("No effusion or\npneumothorax", [], ["effusion", "pneumothorax"]),
        ("NO EFFUSION OR\nPNEUMOTHORAX", [], ["EFFUSION", "PNEUMOTHORAX"]),
        ("No effusion\n\nedema", ["edema"], ["effusion"]),
        ("1. No effusion\n2. edema", ["edema"], ["effusion"]),
        ("No nodule above 1.5 cm or mass", [], ["nodule", "mass"]),
        ("No acute disease except for cardiomegaly.", ["cardiomegaly"], ["acute disease"]),
        ("No pneumothorax and stable effusion", ["effusion"], ["pneumothorax"]),
        # no denial at all
        ("No change in the effusion.", ["effusion"], []),
        ("No significant interval change in size of the mass.", ["mass"], []),
        ("Without significant change in left effusion", ["effusion"], []),
        ("Pneumonia is not excluded.", ["Pneumonia"], []),
        ("Cannot exclude pneumonia.", ["pneumonia"], []),
        ("Small effusion cannot be ruled out.", ["effusion"], []),
        ("The pneumothorax has not resolved.", ["pneumothorax"], []),
        ("A nodule, not seen on the prior exam.", ["nodule"], []),
        ("The nodule may represent a granuloma.", ["nodule", "granuloma"], []),
        ("Possible pneumonia", ["pneumonia"], []),
    ],
)  # fmt: skip
def test_negation_by_hand(text: str, yes: list[str], no: list[str]) -> None:
    assert affirmed(text) == yes
    assert denied(text) == no


def test_the_same_term_twice_with_each_polarity() -> None:
    text = "No right effusion. Small left effusion."
    first, second = (e for e in find_entities(text) if e.kind)
    assert first == Entity(9, 17, "effusion", "observation", True, "pleural_effusion")
    assert second == Entity(30, 38, "effusion", "observation", False, "pleural_effusion")


def test_anatomy_and_modifiers_are_never_denied() -> None:
    entities = find_entities("No large left pleural mass")
    assert [(e.text, e.label, e.negated) for e in entities] == [
        ("large", "modifier", False),
        ("left", "modifier", False),
        ("pleural", "anatomy", False),
        ("mass", "observation", True),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("disease, abnormality, process", []),
        ("The heart is mildly enlarged", ["cardiomegaly"]),
        ("Lung volumes are low", ["hypoinflation"]),
        ("Lung volumes are low normal. CT is more sensitive for nodules", []),
        ("The thoracic cavity and the pleural cavities; pedal edema; abdominal mass; body mass index", []),
        ("Spinal stimulator generator; fractured sternal wires", []),
        ("Calcified aortic plaque", ["atherosclerosis"]),
        ("Post-tuberculous changes", ["tuberculosis_sequelae"]),
        ("ILD, GGO and active TB", ["interstitial_lung_disease", "ground_glass_opacity", "tuberculosis"]),
        ("The heart remains mildly enlarged", ["cardiomegaly"]),
        ("The aorta is again tortuous", ["aortic_elongation"]),
        ("Enlargement of the left hilum", ["hilar_enlargement"]),
        ("Mediastinum is not widened", ["enlarged_cardiomediastinum"]),
        ("The heart is normal. Enlarged breast.", []),
        ("The aorta is calcified and tortuous", ["atherosclerosis", "aortic_elongation"]),
        ("Calcified node", ["calcification"]),
        ("posterior rib fractures", ["rib_fracture"]),
        ("Thickening of the minor fissure", ["pleural_thickening"]),
        ("hydropneumothorax", ["hydropneumothorax"]),
        ("soft tissue edema", []),
        ("inguinal hernia", []),
        ("breast mass and thyroid nodule", []),
        ("mass effect on the trachea", []),
        ("anterior mediastinal mass", ["mediastinal_mass"]),
        ("collapse of the T8 vertebral body", ["vertebral_compression"]),
        ("collapse of the right lower lobe", ["atelectasis"]),
        ("calcified mediastinal lymph nodes", ["calcified_lymph_node"]),
        ("prominent interstitial markings", ["interstitial_pattern"]),
        ("the bronchovascular markings are prominent", ["bronchovascular_markings"]),
        ("sequelae of tuberculosis", ["tuberculosis_sequelae"]),
        ("Secondary PTB in the right upper field, left pleurisy", ["tuberculosis", "pleural_other"]),
        ("STB with cavity formation and fibrous lesions", ["tuberculosis", "cavitation", "fibrosis"]),
        ("post-primary TB; old PTB", ["tuberculosis", "tuberculosis_sequelae"]),
        ("Left compensatory emphysema, right pleural adhesions", ["hyperinflation", "pleural_other"]),
        ("left encapsulated intrathoracic fluid", ["pleural_effusion"]),
        ("ICD generator", ["defibrillator"]),
        ("pectus carinatum", ["pectus_carinatum"]),
        ("healed clavicle fracture", ["clavicle_fracture"]),
        ("pacemaker leads and sternal wires", ["pacemaker"]),
    ],
)
def test_kinds_by_hand(text: str, expected: list[str]) -> None:
    assert kinds(text) == expected


def test_empty_text_has_no_entity() -> None:
    assert find_entities("") == []
    assert find_entities(" \n ") == []


@pytest.mark.parametrize("text", ["normal", " Normal.\n", "HEALTHY", "No findings."])
def test_a_report_of_one_word_is_no_finding(text: str) -> None:
    (entity,) = find_entities(text)
    assert (entity.label, entity.kind, entity.negated) == ("observation", "no_finding", False)
    assert entity.text == text[entity.start : entity.end] == text.strip().rstrip(".")


def test_normal_within_a_text_is_no_entity() -> None:
    assert find_entities("") == []
    assert find_entities("It is normal") == find_entities("normal variant") == find_entities("not normal") == []
    assert kinds("Normal heart") == []


def test_places_of_the_lungs_are_one_entity() -> None:
    text = "PTB in the right upper field, left middle zone and upper lung fields"
    assert [e.text for e in find_entities(text) if e.label == "anatomy"] == [
        "right upper field",
        "left middle zone",
        "upper lung fields",
    ]


def test_edited_resources_change_what_is_found(tmp_path: pathlib.Path) -> None:
    lexicon = (
        (vocabulary.PACKAGED / vocabulary.LEXICON)
        .read_text()
        .replace("infectious process,", "infectious process, zebra sign,")
    )
    (tmp_path / vocabulary.LEXICON).write_text(lexicon)
    (entity,) = find_entities("two Zebra signs", vocabulary.load(tmp_path))
    assert (entity.text, entity.label) == ("Zebra signs", "observation")
    assert find_entities("two Zebra signs") == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (vocabulary.LEXICON, "observation: [no]", "quotes"),
        (vocabulary.LEXICON, "anatomy: [mass]", "mass"),
        (vocabulary.LEXICON, "pathology: [x]", "pathology"),
        (vocabulary.LEXICON, "observation: [a\n", "YAML"),
        (vocabulary.LEXICON, "compose: [{kind: zebra, observation: [a], anatomy: [b]}]", "zebra"),
        (vocabulary.VOCABULARY, "edema: {display: edema}", "edema"),
        (vocabulary.VOCABULARY, "edema: {display: edema, terms: [edema]}", "no_finding"),
        (vocabulary.VOCABULARY, "Edema: {display: edema}", "lower case"),
        (vocabulary.VOCABULARY, "no_finding: {display: none}\na: {display: b, terms: [b], is_a: [a]}", "itself"),
        (vocabulary.VOCABULARY, "no_finding: {display: none}\na: {display: b, terms: [b], is_a: [z]}", "z"),
        (vocabulary.VOCABULARY, "no_finding: {display: none}\na: {display: b, terms: [b], colour: red}", "colour"),
        (
            vocabulary.VOCABULARY,
            "no_finding: {display: none}\na: {display: b, terms: [b]}\nc: {display: B, terms: [B]}",
            "both",
        ),
        (vocabulary.NEGATION, "before: []", "before"),
        (vocabulary.PROMPTS, "present: ['{present}']", "missing"),
        ("other.yaml", "", "no resource file"),
    ],
)
def test_mistakes_in_resources_are_named(tmp_path: pathlib.Path, file: str, content: str, message: str) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        vocabulary.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_cue_that_hides_a_term_is_refused(tmp_path: pathlib.Path) -> None:
    cues = (vocabulary.PACKAGED / vocabulary.NEGATION).read_text().replace("before: [", "before: [no nodule,")
    (tmp_path / vocabulary.NEGATION).write_text(cues)
    with pytest.raises(UserError, match="hide the term 'nodule'"):
        vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"{present} noted."', '"{absent} noted."', "present must hold {present}"),
        ('"no {absent}."', '"no {present} or {absent}."', "absent must hold {absent}"),
        ('"no finding."', '"no {absent}."', "no_finding present must hold no slot"),
        ("  phrases: true\n  present:", "  phrases: true\n  was:", "missing"),
    ],
)
def test_mistakes_in_prompts_are_named(tmp_path: pathlib.Path, old: str, new: str, message: str) -> None:
    text = (vocabulary.PACKAGED / vocabulary.PROMPTS).read_text()
    assert old in text
    (tmp_path / vocabulary.PROMPTS).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(message)):
        vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("effusion", "effusions"),
        ("mass", "masses"),
        ("opacity", "opacities"),
        ("scoliosis", "scolioses"),
        ("x-ray", "x-rays"),
        ("enlarged", "enlarged"),
        ("leads", "leads"),
        ("implant", "implants"),
        ("scar", "scars"),
        ("thickening", "thickenings"),
    ],
)
def test_plurals(word: str, expected: str) -> None:
    assert vocabulary.plural(word) == expected


def _benchmark():
    return load_benchmark("entities")


@pytest.mark.wheel
def test_figures_on_real_reports(wheel_dir: pathlib.Path) -> None:
    benchmark = _benchmark()
    figures = benchmark.measure(benchmark.read_reports(wheel_dir))
    assert figures["reports"] == 3927
    assert figures["with an entity"] > 0.999
    assert 8 < figures["entities a report"] < 14
    assert figures["MeSH heads covered"] >= 0.72
    assert figures["MeSH heads covered"] <= figures["  ceiling in the text"]
    assert figures["normal reports with an affirmed observation"] <= 0.05
    assert figures["abnormal reports with an affirmed observation"] >= 0.93


@pytest.mark.wheel
@pytest.mark.slow
def test_speed_on_real_reports(wheel_dir: pathlib.Path) -> None:
    benchmark = _benchmark()
    texts = [report.text for report in benchmark.read_reports(wheel_dir)]
    assert benchmark.rate(find_terms, texts, 7) > 30_000
    assert benchmark.rate(find_entities, texts, 7) > 10_000


@pytest.mark.wheel
def test_terms_of_real_reports_match_the_search(wheel_dir: pathlib.Path) -> None:
    for report in _benchmark().read_reports(wheel_dir)[::97]:
        assert [(start, end) for start, end, _ in find_terms(report.text)] == search(report.text)
