"""Reports of other languages: words and cues against judged sentences, and builds that are told the wrong language."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from mmclip_jax.data import records
from mmclip_jax.data.builders.table import build_table
from mmclip_jax.data.builders.table_options import TableOptions
from mmclip_jax.errors import UserError
from mmclip_jax.text import language, recognisers, vocabulary
from mmclip_jax.text.entities import find_entities
from tests.text.test_polarity import precision_recall, sample, tally

OTHERS = ("de", "es", "fr")
ENGLISH = (
    "The heart is enlarged. No pneumothorax.",
    "No acute cardiopulmonary disease.",
    "Small left pleural effusion, no consolidation.",
    "Stable cardiomegaly. Lungs are clear.",
)
GERMAN = ("Kein Pneumothorax.", "Keine Ergüsse, Herz nicht vergrößert.", "Kleiner Pleuraerguss links.")


def sentences(name: str) -> list:
    return [text for texts in sample(name).values() for text in texts]


@pytest.mark.parametrize("code", OTHERS)
def test_polarity_of_judged_sentences(code):
    texts = sentences(f"polarity_{code}.txt")
    assert len(texts) >= 30
    counts, wrong = tally(texts, vocabulary.for_language(code))
    for sign in "+-":
        assert min(precision_recall(counts, sign)) >= 0.96, wrong


@pytest.mark.parametrize(
    ("code", "text", "kind", "negated"),
    [
        ("de", "Keine Erguesse", "pleural_effusion", True),  # typed without umlauts
        ("de", "KEINE PLEURAERGÜSSE", "pleural_effusion", True),
        ("de", "HERZ VERGRÖSSERT", "cardiomegaly", False),  # capitals have no sharp s
        ("fr", "pas d’epanchement", "pleural_effusion", True),
        ("fr", "Œdème pulmonaire", "edema", False),
        ("fr", "oedeme pulmonaire", "edema", False),
        ("es", "sin neumotorax", "pneumothorax", True),
    ],
)
def test_accents_may_be_missing(code, text, kind, negated):
    (entity,) = [e for e in find_entities(text, vocabulary.for_language(code)) if e.kind]
    assert (entity.kind, entity.negated) == (kind, negated)


@pytest.mark.parametrize(
    ("code", "text", "kinds"),
    [
        ("de", "ICD links, Perikarderguss, Hämatothorax", ["defibrillator", "pericardial_effusion", "hemothorax"]),
        ("de", "Kein Erguß. Mediastinale Raumforderung", ["pleural_effusion", "mediastinal_mass"]),
        ("fr", "Épanchement péricardique, dilatation des cavités cardiaques", ["pericardial_effusion"]),
        ("fr", "Défibrillateur, tassement vertébral", ["defibrillator", "vertebral_compression"]),
        ("es", "Derrame pericárdico, cavidad pleural libre", ["pericardial_effusion"]),
        ("es", "Pinzamiento discal. Colapso vertebral", ["degenerative_change", "vertebral_compression"]),
    ],
)
def test_words_of_other_organs_are_not_the_lung(code, text, kinds):
    assert [e.kind for e in find_entities(text, vocabulary.for_language(code)) if e.kind] == kinds


def test_a_language_keeps_the_vocabulary_and_has_no_english_words():
    german, english = vocabulary.for_language("de"), vocabulary.default()
    assert list(german.kinds) == list(english.kinds)
    assert find_entities("cardiomegaly with nodules", german) == []
    assert vocabulary.for_language("en") is english
    assert vocabulary.languages() == ("en", *OTHERS)
    assert vocabulary.digest(german) != vocabulary.digest(english)


@pytest.mark.parametrize("told", ["en", *OTHERS])
@pytest.mark.parametrize("written", ["en", *OTHERS])
def test_sentences_are_covered_by_their_own_language_alone(told, written):
    texts = sentences("polarity.txt" if written == "en" else f"polarity_{written}.txt")
    words = vocabulary.for_language(told)
    shares = [language.is_covered(text, words) for text, _ in texts]
    if told == written:
        assert np.mean(shares) == 1
    else:
        assert np.mean(shares) < 0.05


@pytest.mark.parametrize(
    "text",
    [
        "Não há pneumotórax. Sem derrame pleural, coração normal.",
        "Płuca bez zmian ogniskowych. Bez cech odmy.",
        "Geen pneumothorax. Hart niet vergroot, geen pleuravocht.",
        "В легких без очаговых и инфильтративных изменений",
        "未见气胸",
        "Plevral effüzyon izlenmedi. Kalp normal.",
    ],
)
def test_languages_without_words_are_not_taken_for_english(text):
    census = language.Census()
    language.is_covered(text, vocabulary.default(), census)
    with pytest.raises(UserError, match=r"the reports are not in English.*--language"):
        language.check(census, vocabulary.default())


@pytest.mark.parametrize("text", ["", "12/3", "Normal.", "Pneumothorax: no", "ETT in place. NAD."])
def test_short_english_and_texts_without_words_are_covered(text):
    assert language.is_covered(text, vocabulary.default())


@pytest.mark.wheel
def test_all_open_i_reports_are_english(wheel_dir):
    from tests.text.test_entities import _benchmark

    reports = _benchmark().read_reports(wheel_dir)
    assert all(language.is_covered(report.text, vocabulary.default()) for report in reports)


# Builds


def build(folder: pathlib.Path, reports, **options):
    for number in range(len(reports)):
        ramp = np.linspace(0, 200, 32)[None] + np.full((32, 1), number)
        Image.fromarray(ramp.astype(np.uint8)).save(folder / f"{number}.png")
    rows = "".join(f'{n}.png,{n},"{text}"\n' for n, text in enumerate(reports))
    (folder / "table.csv").write_text("image,patient_id,report\n" + rows, encoding="utf-8")
    told = TableOptions(str(folder / "table.csv"), str(folder), "mine", split="train", workers=1, **options)
    return build_table(told, folder / "data").path


def opened(path, part):
    examples = records.open_records(path, "train", part)
    return sorted((examples[i] for i in range(len(examples))), key=lambda example: example.id)


def test_german_reports_stop_an_english_build_and_are_read_by_a_german_one(tmp_path):
    with pytest.raises(
        UserError, match=r"of 3 reports 3 are in another language, 3 look German.*--language de"
    ) as caught:
        build(tmp_path, GERMAN)
    assert "\n" not in str(caught.value)
    path = build(tmp_path, GERMAN, language="de")
    signs = [[e.negated for e in example.entities if e.kind] for example in opened(path, "paired")]
    assert signs == [[True], [True, True], [False]]
    facts = records.dataset_facts(path)
    assert facts["options"]["language"] == "de"
    assert facts["language"]["reports"] == 3


def test_a_report_in_another_language_is_left_out_and_listed(tmp_path):
    path = build(tmp_path, [*ENGLISH * 4, GERMAN[0]])
    assert len(opened(path, "paired")) == 16
    assert [example.id for example in opened(path, "unpaired")] == ["16.png"]
    assert records.dataset_facts(path)["language"]["reports_in_another"] == 1
    listed = (pathlib.Path(path) / "rejects.csv").read_text()
    assert "the report is not in English" in listed
    assert "Pneumothorax" not in listed


def test_a_folder_of_words_is_a_language(tmp_path):
    folder = tmp_path / "quenya"
    folder.mkdir()
    (folder / "lexicon.yaml").write_text("kinds: {pneumothorax: ['vil{ya,yar}']}")
    cues: dict[str, list[str]] = {**{cue: [] for cue in vocabulary.CUES}, "before": ["la"]}
    (folder / "negation.yaml").write_text("\n".join(f"{name}: {listed}" for name, listed in cues.items()))
    (folder / "words.yaml").write_text("name: Quenya\nwords: [ea, i, hroa]")
    path = build(tmp_path, ["La vilya.", "Ea vilyar i hroa."], language=str(folder))
    assert [[e.negated for e in example.entities] for example in opened(path, "paired")] == [[True], [False]]
    assert records.dataset_facts(path)["options"]["language"] == "quenya"  # a name, no path of this machine


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lexicon.yaml", None, "lexicon.yaml is missing"),
        ("lexicon.yaml", "kinds: {zebra: [a]}", "zebra"),
        ("lexicon.yaml", "kinds: {edema: ['a{b']}", "braces"),
        ("words.yaml", "name: X", "the name of the language and its words"),
        ("words.yaml", "name: X\nwords: [no]", "quotes"),
    ],
)
def test_mistakes_in_a_language_are_named(tmp_path, name, content, message):
    for each in ("lexicon.yaml", "negation.yaml", "words.yaml"):
        (tmp_path / each).write_text((vocabulary.LANGUAGES / "de" / each).read_text(encoding="utf-8"), encoding="utf-8")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        vocabulary.for_language(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_unknown_languages_are_refused_with_those_that_exist():
    with pytest.raises(UserError, match=r"no language 'xx'; known are en, de, es, fr, or give a folder"):
        vocabulary.for_language("xx")


@pytest.mark.parametrize("name", ["medspacy", "radgraph"])
def test_recognisers_that_read_english_alone_say_so(name):
    with pytest.raises(UserError, match=f"--entities {name} reads English reports alone, not --language de"):
        recognisers.load(name, "de")
