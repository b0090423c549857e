import dataclasses
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from mmclip_jax.data import texts
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts
from mmclip_jax.text.schema import Entity, section_border

DATA = types.SimpleNamespace(bridge=0.25, max_negated=2, deny_alone=0.0, sentence_subset=0.5, share_no_finding=True)
REPORTS_ONLY = types.SimpleNamespace(
    bridge=0.0, max_negated=2, deny_alone=0.0, sentence_subset=0.0, share_no_finding=True
)
BRIDGES_ONLY = types.SimpleNamespace(
    bridge=1.0, max_negated=2, deny_alone=0.0, sentence_subset=0.0, share_no_finding=True
)
SUBSETS_ONLY = types.SimpleNamespace(
    bridge=0.0, max_negated=2, deny_alone=0.0, sentence_subset=1.0, share_no_finding=True
)

MARK = re.compile(r"\[([+-])([^|\]]+)\|([a-z]+):?([a-z_]*)\]")
SICK = (
    "There is a small [+effusion|observation:pleural_effusion] at the left [+base|anatomy:]. "
    "The [+heart|anatomy:] is not large, no [-cardiomegaly|observation:cardiomegaly]. No [-edema|observation:edema].",
    "1. Left [+pleural effusion|observation:pleural_effusion].\n2. No [-pneumothorax|observation:pneumothorax] or "
    "right\n[-effusion|observation:pleural_effusion]. A [+pacemaker|device:] is seen.",
)
CLEAN = (
    "The [+lungs|anatomy:] are clear. No [-effusion|observation:pleural_effusion].",
    "No acute [-consolidation|observation:consolidation].",
)


def example(findings="", impression="", **fields):
    """A report in which "[+word|label:kind]" and "[-word|label:kind]" mark affirmed and negated entities."""
    sections = [MARK.sub(r"\2", findings), MARK.sub(r"\2", impression)]
    entities, shift = [], 0
    marked = f"{findings.strip()}{section_border(*(section.strip() for section in sections))}{impression.strip()}"
    for match in MARK.finditer(marked):
        sign, word, label, kind = match.groups()
        start = match.start() - shift
        entities.append(Entity(start, start + len(word), word, label, sign == "-", kind))
        shift += len(match.group()) - len(word)
    defaults = {"id": "a", "image": b"", "source": "hospital", "split": "train", "patient": "p", "study": "s"}
    made = Example(findings=sections[0], impression=sections[1], entities=tuple(entities), **(defaults | fields))
    assert all(made.text[entity.start : entity.end] == entity.text for entity in entities)
    return made


def labelled(**labels):
    return example(labels={kind: LabelState[state.upper()] for kind, state in labels.items()})


def draws(drawn_example, data, number=400):
    return [texts.draw_text(drawn_example, np.random.default_rng(seed), data) for seed in range(number)]


def check_entities(drawn):
    position = 0
    for entity in drawn.entities:
        assert drawn.text[entity.start : entity.end] == entity.text
        assert entity.start >= position
        position = entity.end


def test_whole_report_is_the_report():
    sick = example(*SICK)
    (drawn,) = set(draws(sick, REPORTS_ONLY, 20))
    assert drawn.text == sick.text
    assert drawn.entities == sick.entities
    assert not drawn.prompt
    # Effusion is affirmed on one side and denied on the other: affirmed wins. A device without a kind states no kind.
    assert drawn.present == ("pleural_effusion",)
    assert set(drawn.absent) == {"cardiomegaly", "edema", "pneumothorax"}


def test_sentences_of_a_wrapped_numbered_report():
    sick = example(*SICK)
    found = [sick.text[start:end] for start, end in texts.sentence_spans(sick.text, sick.entities, len(sick.findings))]
    assert found == [
        "There is a small effusion at the left base.",
        "The heart is not large, no cardiomegaly.",
        "No edema.",
        "1. Left pleural effusion.",
        "2. No pneumothorax or right\neffusion.",
        "A pacemaker is seen.",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One nodule of 1.5 cm. Stable", ["One nodule of 1.5 cm.", "Stable"]),
        ("no full stop\nbut wrapped", ["no full stop\nbut wrapped"]),
        ("heading\n\nbody", ["heading", "body"]),
        ("no effusion\nCardiomegaly\n2) edema\n- old", ["no effusion", "Cardiomegaly", "2) edema", "- old"]),
        ("No effusion.\nNormal.\n\n1. Edema", ["No effusion.", "Normal.", "1. Edema"]),
        (
            "Seen by Dr. Known. Edema vs. infection?  Follow up!",
            ["Seen by Dr. Known.", "Edema vs. infection?", "Follow up!"],
        ),
        ("  padded.  ", ["padded."]),
        ("1. 2. odd", ["1. 2. odd"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert [text[start:end] for start, end in texts.sentence_spans(text)] == expected


def test_no_sentence_cuts_an_entity():
    text = "Placed in St. Mary tube. End."
    entity = Entity(10, 23, "St. Mary tube", "device", False)
    assert text[10:23] == entity.text
    assert [text[s:e] for s, e in texts.sentence_spans(text, [entity])] == ["Placed in St. Mary tube.", "End."]
    assert len(texts.sentence_spans(text)) == 3


def test_findings_without_full_stop_end_at_the_impression():
    made = example("no [-edema|observation:edema]", "[+Cardiomegaly|observation:cardiomegaly]")
    assert len(texts.sentence_spans(made.text, made.entities, len(made.findings))) == 2


def test_subsets_are_shuffled_sentences_with_their_entities():
    sick = example(*SICK)
    sentences = [sick.text[s:e] for s, e in texts.sentence_spans(sick.text, sick.entities, len(sick.findings))]
    counts, firsts = np.zeros(len(sentences) + 1), set()
    for drawn in draws(sick, SUBSETS_ONLY):
        check_entities(drawn)
        places = {sentence: drawn.text.find(sentence) for sentence in sentences}
        used = sorted((at, sentence) for sentence, at in places.items() if at >= 0)
        assert " ".join(sentence for _, sentence in used) == drawn.text
        counts[len(used)] += 1
        firsts.add(used[0][1])
        # Exactly the entities of the sentences that were drawn, with nothing but their places changed.
        expected = sorted(
            e.text for e in sick.entities if any(s in drawn.text for s in sentences if _inside(sick, e, s))
        )
        assert sorted(entity.text for entity in drawn.entities) == expected
        stated_positive = {e.kind for e in drawn.entities if not e.negated and e.kind}
        assert set(drawn.present) == stated_positive
        assert texts.NO_FINDING not in drawn.present
    assert counts[0] == 0
    assert (counts[1:] > 400 / 6 * 0.6).all()
    assert firsts == set(sentences)


def _inside(made, entity, sentence):
    start = made.text.find(sentence)
    return start <= entity.start and entity.end <= start + len(sentence)


def test_shares_of_bridges_and_subsets():
    sick = example(*SICK)
    drawn = draws(sick, DATA, 2000)
    assert np.mean([d.prompt for d in drawn]) == pytest.approx(0.25, abs=0.04)
    reports = [d for d in drawn if not d.prompt]
    # Of the drawn subsets (half), one in 6 draws all six sentences, shuffled.
    assert np.mean([d.text == sick.text for d in reports]) == pytest.approx(0.5, abs=0.04)


def test_bridge_states_what_the_report_says_and_nothing_else():
    sick = example(
        "[+Effusion|observation:pleural_effusion] and [+edema|observation:edema]. No [-mass|observation:mass], no "
        "[-pneumonia|observation:pneumonia], no [-hernia|observation:hernia]. [+Cuffing|observation:]."
    )
    drawn = draws(sick, BRIDGES_ONLY)
    assert all(d.prompt for d in drawn)
    assert {frozenset(d.present) for d in drawn} == {
        frozenset(kinds) for kinds in (["pleural_effusion"], ["edema"], ["pleural_effusion", "edema"])
    }
    assert np.mean([len(d.present) == 2 for d in drawn]) > 0.5
    absences = [set(d.absent) for d in drawn]
    assert {len(a) for a in absences} == {0, 1, 2}
    assert set.union(*absences) == {"mass", "pneumonia", "hernia"}
    for d in drawn:
        check_entities(d)
        found, denied = texts.report_kinds(d.entities)
        assert found == d.present, "the prompt's words do not say what it is meant to state"
        assert denied == d.absent


def test_bridge_of_a_negative_report_is_no_finding():
    for drawn in draws(example(*CLEAN), BRIDGES_ONLY, 50):
        assert drawn.prompt
        assert drawn.present == (texts.NO_FINDING,)
        assert drawn.absent == ()


@pytest.mark.parametrize("findings", ["[+Cuffing|observation:] is seen.", "A [+tube|device:].", "Words nobody knows."])
def test_report_that_no_prompt_can_stand_for_stays_a_report(findings):
    # It affirms something without a kind, or nothing in it was recognised: "no finding" would be a lie.
    made = example(findings)
    for drawn in draws(made, BRIDGES_ONLY, 20):
        assert drawn.text == made.text
        assert drawn.present == ()


def test_negative_reports_share_the_no_finding_id():
    clean, other = example(*CLEAN), example("The [+chest|anatomy:] is normal.", study="t")
    prompt = texts.draw_text(labelled(no_finding="present"), np.random.default_rng(0), DATA)
    everything = {texts.text_ids(d)[1] for d in draws(clean, DATA, 50) + draws(other, DATA, 50)}
    assert everything == {texts.text_ids(prompt)[1]}
    assert all(texts.NO_FINDING in d.present for d in draws(clean, DATA, 50))
    own = types.SimpleNamespace(**vars(REPORTS_ONLY) | {"share_no_finding": False})
    assert texts.text_ids(draws(clean, own, 1)[0])[1] not in everything


def test_negative_sentence_of_a_sick_report_is_not_no_finding():
    sick = example(*SICK)
    alone = [d for d in draws(sick, SUBSETS_ONLY) if d.text == "No edema."]
    assert alone
    assert alone[0].present == ()
    assert alone[0].absent == ("edema",)
    assert alone[0].text_key != texts.prompt_key((texts.NO_FINDING,), ())


def test_report_id_ignores_case_spaces_and_order_of_sentences():
    one = example("Left [+effusion|observation:pleural_effusion]. No [-edema|observation:edema].")
    same = example("No  [-edema|observation:edema].", "LEFT\n[+EFFUSION|observation:pleural_effusion].", study="t")
    other = example("Right [+effusion|observation:pleural_effusion]. No [-edema|observation:edema].")
    ids = [texts.text_ids(draws(e, REPORTS_ONLY, 1)[0]) for e in (one, same, other)]
    assert ids[0][1] == ids[1][1] != ids[2][1]
    assert ids[0][0] == ids[2][0] != ids[1][0]


def test_study_id_is_of_the_source():
    ids = {int(texts.text_ids(draws(example(*SICK, source=s), DATA, 1)[0])[0]) for s in ("here", "there")}
    assert len(ids) == 2


def test_prompt_id_is_of_the_meaning_whatever_the_template():
    sick = labelled(edema="present", cardiomegaly="present", pneumothorax="absent", mass="absent")
    by_meaning: dict[tuple[frozenset[str], frozenset[str]], list[texts.DrawnText]] = {}
    for d in draws(sick, DATA, 600):
        by_meaning.setdefault((frozenset(d.present), frozenset(d.absent)), []).append(d)
    # 3 subsets of the positives × 4 subsets of the negatives.
    assert len(by_meaning) == 12
    assert all(len({d.text for d in same}) > 1 for same in by_meaning.values())
    assert all(len({int(texts.text_ids(d)[1]) for d in same}) == 1 for same in by_meaning.values())
    assert len({int(texts.text_ids(same[0])[1]) for same in by_meaning.values()}) == 12
    bridge = example(
        "[+Edema|observation:edema], [+cardiomegaly|observation:cardiomegaly]. No [-mass|observation:mass].", study="t"
    )
    same_words = next(d for d in draws(bridge, BRIDGES_ONLY) if len(d.present) == 2 and d.absent == ("mass",))
    meaning = frozenset(("edema", "cardiomegaly")), frozenset(("mass",))
    assert texts.text_ids(same_words)[1] == texts.text_ids(by_meaning[meaning][0])[1]


def test_prompt_of_an_unpaired_image_states_labels_only():
    made = labelled(edema="present", mass="absent", pneumonia="uncertain", hernia="unknown", no_finding="absent")
    for d in draws(made, DATA, 100):
        assert d.prompt
        assert d.present == ("edema",)
        assert d.absent in ((), ("mass",))
        check_entities(d)


def test_absences_alone_are_as_often_stated_as_asked_for():
    data = types.SimpleNamespace(**vars(DATA) | {"deny_alone": 0.25})
    for image in (
        labelled(viral_pneumonia="present", bacterial_pneumonia="absent"),
        labelled(no_finding="present", bacterial_pneumonia="absent"),
    ):
        alone = [drawn for drawn in draws(image, data) if not drawn.present]
        assert 70 < len(alone) < 130
        assert {drawn.absent for drawn in alone} == {("bacterial_pneumonia",)}
        assert all(
            "no" in drawn.text.lower() or "without" in drawn.text.lower() or "negative" in drawn.text.lower()
            for drawn in alone
        )
    # Where nothing is labelled absent, and in reports, nothing changes.
    for same in (labelled(mass="present"), example(*SICK)):
        assert draws(same, data, 50) == draws(same, DATA, 50)


def test_only_absences_are_stated_where_only_they_are_known():
    made = labelled(edema="absent", mass="absent", pneumonia="absent", no_finding="absent")
    drawn = draws(made, DATA, 200)
    assert {d.present for d in drawn} == {()}
    assert {len(d.absent) for d in drawn} == {1, 2}
    assert {kind for d in drawn for kind in d.absent} == {"edema", "mass", "pneumonia"}


def test_no_finding_label():
    for d in draws(labelled(no_finding="present", edema="absent"), DATA, 20):
        assert d.present == (texts.NO_FINDING,)
        assert d.absent == ()
    # A device is no disease and may stand beside it; a disease contradicts it, and is the more specific statement.
    beside = {frozenset(d.present) for d in draws(labelled(no_finding="present", support_device="present"), DATA, 100)}
    assert beside == {frozenset(k) for k in (["no_finding"], ["support_device"], ["no_finding", "support_device"])}
    for d in draws(labelled(no_finding="present", edema="present"), DATA, 20):
        assert d.present == ("edema",)


def test_absence_of_a_broader_kind_is_not_stated_beside_a_narrower_one():
    assert "lung_lesion" in prompts.ancestors("nodule")
    for d in draws(labelled(nodule="present", lung_lesion="absent"), DATA, 50):
        assert d.absent == ()
    report = example("A [+nodule|observation:nodule]. No [-lesion|observation:lung_lesion].")
    assert texts.report_kinds(report.entities) == (("nodule",), ())


def test_nothing_known_states_nothing():
    for d in draws(labelled(edema="uncertain"), DATA, 5):
        assert d.text == texts.NEUTRAL_TEXT
        assert (d.present, d.absent) == ((), ())
        assert not texts.stated(d.present, d.absent).any()


def test_unknown_kind_is_named():
    made = dataclasses.replace(example(), labels={"dragon pox": LabelState.PRESENT})
    with pytest.raises(UserError, match="dragon pox"):
        texts.draw_text(made, np.random.default_rng(0), DATA)


def test_labels_of_a_paired_image_are_never_looked_at():
    plain = example(*SICK)
    leaky = dataclasses.replace(plain, labels={"mass": LabelState.PRESENT, "edema": LabelState.PRESENT})
    assert draws(plain, DATA) == draws(leaky, DATA)


def test_same_generator_same_text():
    sick = example(*SICK)
    assert draws(sick, DATA, 50) == draws(sick, DATA, 50)
    assert len({d.text for d in draws(sick, DATA, 50)}) > 10


def test_evaluation_text_is_fixed_and_whole():
    sick = example(*SICK)
    assert texts.full_text(sick).text == sick.text
    made = labelled(edema="present", mass="present", hernia="absent")
    assert texts.full_text(made) == texts.full_text(made)
    assert set(texts.full_text(made).present) == {"edema", "mass"}
    assert texts.full_text(made).absent == ()
    assert texts.full_text(labelled(no_finding="present", mass="absent")).present == (texts.NO_FINDING,)
    assert set(texts.full_text(labelled(hernia="absent", mass="absent")).absent) == {"mass", "hernia"}


def test_stated_vector():
    vector = texts.stated(("edema",), ("mass", "hernia"))
    assert vector.dtype == np.int8
    assert vector.shape == (len(prompts.KINDS),)
    assert {kind: int(v) for kind, v in zip(prompts.KINDS, vector, strict=True) if v} == {
        "edema": 1,
        "mass": -1,
        "hernia": -1,
    }


def test_hash_is_the_same_in_every_process():
    code = "from mmclip_jax.data import texts; print(texts.stable_hash('study'), hash('study'))"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout.split()
        for seed in (1, 2)
    ]  # fmt: skip
    assert outputs[0][0] == outputs[1][0]
    assert outputs[0][1] != outputs[1][1], "the control: Python's own hash is salted"
    assert int(outputs[0][0]) == texts.stable_hash("study") == 1330737353
    many = [texts.stable_hash(str(number)) for number in range(1000)]
    assert len(set(many)) == 1000
    assert min(many) < -(2**30)
    assert max(many) > 2**30


def test_what_is_known_of_an_image_is_all_that_its_report_says():
    there, gone = texts.known(example(*SICK))
    assert there == ("pleural_effusion",)
    assert {"no_finding", "cardiomegaly", "edema", "pneumothorax"} <= set(gone)
    assert not {"pneumonia", "empyema", "pleural_effusion"} & set(gone)
    for drawn in draws(example(*SICK), DATA, 100):
        assert set(drawn.present) <= set(there)
        # The effusion is denied on one side, which a single sentence may say.
        assert set(drawn.absent) <= {*gone, "pleural_effusion"}


def test_a_normal_report_denies_every_disease_and_no_device():
    there, gone = texts.known(example(*CLEAN))
    assert there == ("no_finding",)
    assert {"pneumonia", "mass", "tuberculosis"} <= set(gone)
    assert not any(prompts.is_device(kind) for kind in gone)


def test_what_is_known_follows_broader_and_narrower_kinds():
    mass = labelled(mass="present", pneumonia="absent", covid_19="uncertain", edema="unknown")
    there, gone = texts.known(mass)
    assert set(there) == {"mass", "lung_lesion", "lung_opacity"}
    # COVID-19 says nothing of what the image shows, so the absence of pneumonia does not deny it.
    assert set(gone) == {
        "no_finding", "pneumonia", "viral_pneumonia", "bacterial_pneumonia", "fungal_pneumonia",
    }  # fmt: skip


def test_what_is_known_never_contradicts_itself():
    there, gone = texts.known(labelled(mass="present", lung_lesion="absent"))
    assert "lung_lesion" in there
    assert "mass" in there
    assert not set(there) & set(gone)
