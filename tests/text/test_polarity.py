"""Polarity against sentences of many manners, judged by hand before any code read them."""

import collections
import pathlib
import re

import pytest

from mmclip_jax.text.entities import find_entities

SAMPLES = {"en": "polarity.txt"}
_MARK = re.compile(r"\{([-+~])([^}]*)\}")
Judged = list[tuple[int, int, str]]


def parse(line: str) -> tuple[str, Judged]:
    """The text of a line, and the (start, end, sign) of each of its marks."""
    line = line.replace("\\n", "\n").replace("\\t", "\t")
    text, marks, at = "", [], 0
    for match in _MARK.finditer(line):
        text += line[at : match.start()]
        marks.append((len(text), len(text) + len(match[2]), match[1]))
        text += match[2]
        at = match.end()
    return text + line[at:], marks


def sample(name: str) -> dict[str, list[tuple[str, Judged]]]:
    """The judged texts of a file by their manner: "template" or "prose"."""
    manners: dict[str, list[tuple[str, Judged]]] = collections.defaultdict(list)
    manner = ""
    for line in (pathlib.Path(__file__).parent / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("=="):
            manner = line.removeprefix("==").split(":")[0].strip()
        elif line and not line.startswith("#"):
            manners[manner].append(parse(line))
    return manners


def said(text: str, marks: Judged, resources=None) -> list[str]:
    """What is found at each mark: its sign, or "" for nothing."""
    entities = [e for e in find_entities(text, resources) if e.label in ("observation", "device")]
    signs = []
    for start, end, _ in marks:
        here = [e for e in entities if e.start < end and e.end > start]
        if not here:
            signs.append("")
        elif not here[-1].negated:
            signs.append("+")
        else:  # aside is told by a kind that is not given; of an entity without kinds it is as good as denied
            alone = find_entities(here[-1].text, resources)
            signs.append("~" if any(e.kind for e in alone) and not here[-1].kind else "-")
    return signs


def tally(texts: list[tuple[str, Judged]], resources=None) -> tuple[collections.Counter, list[str]]:
    """Counts of (judged, found) and the texts with a wrong one."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    wrong = []
    for text, marks in texts:
        found = said(text, marks, resources)
        pairs = [(sign, seen) for (_, _, sign), seen in zip(marks, found, strict=True)]
        counts.update(pairs)
        if any(judged != seen for judged, seen in pairs):
            wrong.append(text)
    return counts, wrong


def precision_recall(counts: collections.Counter, sign: str) -> tuple[float, float]:
    right = counts[sign, sign]
    return (
        right / sum(n for (_, found), n in counts.items() if found == sign),
        right / sum(n for (judged, _), n in counts.items() if judged == sign),
    )


# Figures seen: see docs/data.md. The bounds lie a little below them.


@pytest.mark.parametrize("manner", ["template", "prose", "unseen template", "unseen prose", "late template"])
def test_the_sample_is_large_and_has_all_signs(manner):
    texts = sample("polarity.txt")[manner]
    signs = {sign for _, marks in texts for _, _, sign in marks}
    assert len(texts) >= 30
    assert {"+", "-"} <= signs


def test_polarity_of_judged_sentences():
    manners = sample("polarity.txt")
    texts = [text for each in manners.values() for text in each]
    assert len(texts) >= 400
    counts, wrong = tally(texts)
    for sign in "+-":
        precision, recall = precision_recall(counts, sign)
        assert precision >= 0.97, (sign, wrong)
        assert recall >= 0.97, (sign, wrong)
    for manner in ("template", "unseen template"):
        counts, wrong = tally(manners[manner])
        assert min(precision_recall(counts, sign)[0] for sign in "+-") >= 0.97, wrong


ANSWERS_NO = [
    "None",
    "No",
    "absent",
    "Negative",
    "not seen",
    "nil",
    "none identified",
    "No evidence",
    "removed",
    "Not present",
]
ANSWERS_YES = [
    "Yes",
    "present",
    "positive",
    "small apical",
    "mild",
    "unchanged",
    "no change",
    "cannot be excluded",
    "1",
]
MARKS = [": ", ":", " : ", " - ", " \u2013 ", "\u2014", " = ", "=", "? ", " -> ", " | ", "\t", ":\n", " ..... "]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("end", [".", "", ";", ",", "\n", " |"])
def test_an_answer_behind_a_finding_decides_it_alone(mark, end):
    for answers, negated in ((ANSWERS_NO, True), (ANSWERS_YES, False)):
        for answer in answers:
            if answer == "1" and mark == " ..... ":
                continue
            for text in (f"Pneumothorax{mark}{answer}{end}", f"PNEUMOTHORAX{mark}{answer.upper()}{end}"):
                (entity,) = [e for e in find_entities(text) if e.kind == "pneumothorax" or e.negated]
                assert entity.negated == negated, text
            if mark == ":\n" and not end:
                continue
            text = f"Cardiomegaly{mark}yes. Pneumothorax{mark}{answer}{end} Effusion{mark}present"
            signs = [e.negated for e in find_entities(text) if e.kind]
            assert signs == [False, negated, False], text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pneumothorax (-), effusion (+)", "-+"),
        ("(-) pneumothorax (+) effusion", "-+"),
        ("[ ] effusion [x] edema [ ] fracture", "-+-"),
        ("Effusion [ ] Edema [x] Fracture [ ]", "-+-"),
        ("\u2610 effusion\n\u2612 edema", "-+"),
        ("Effusion: [ ] yes [x] no\nEdema: [x] yes [ ] no", "-+"),
        ("Effusion yes [ ] no [x]\nEdema yes [x] no [ ]", "-+"),
        ("| Pneumothorax | No |\n| Effusion | Yes |", "-+"),
        ("Findings: Pneumothorax: no, Effusion: yes, small", "-+"),
        ("Pneumothorax\nNone\nEffusion\nSmall", "-+"),
        ("[v] effusion [ ] edema", "+-"),
        ("Effusion \u2713, edema \u2717", "+-"),
        ("Effusion + / pneumothorax -", "+-"),
        ("Pneumothorax: No Effusion: Yes Edema: No", "-+-"),
        ("Pneumothorax: No (post tube removal)", "-"),
        ("Absent: effusion, edema. Present: fracture.", "--+"),
        ("The following are absent: effusion, edema", "--"),
        ("No acute findings: no effusion, edema", "--"),
        ("Pleura: effusion small left, pneumothorax none", "+-"),
        ("Effusion [N] Edema [Y]", "-+"),
        ("Edema: No pulmonary edema.", "--"),
        ("Edema: The lungs show no edema.", "--"),
        ("Chest tube: no pneumothorax.", "+-"),
        ("Mild edema\nNo acute fracture", "+-"),
        ("No pneumothorax (series 2, image 3) or mass", "--"),
        ("No nodule 13 - 14 mm or mass", "--"),
        ("No pneumothorax 2) Cardiomegaly 3) No effusion", "-+-"),
        ("No pneumothorax \u2022 Cardiomegaly \u2022 No effusion", "-+-"),
        ("No pneumothorax - Cardiomegaly is present - No effusion", "-+-"),
    ],
)
def test_forms(text, expected):
    assert "".join("-" if e.negated else "+" for e in find_entities(text) if e.kind) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No displaced, acute rib fractures are identified.", "-"),
        ("No pneumothorax, pleural effusion is unchanged.", "-+"),
        ("No pneumothorax, pleural effusion is seen.", "-+"),
        ("No pneumothorax, pleural effusion seen.", "--"),
        ("No pneumothorax, effusion, edema are seen.", "---"),
        ("No pneumothorax, effusion, or consolidation is seen.", "---"),
        ("No pneumothorax, small effusion, or fracture.", "---"),
        ("No pneumothorax, small effusion, mild edema.", "-++"),
        ("No pneumothorax, cardiomegaly stable.", "-+"),
        ("No pneumothorax, heart enlarged.", "-+"),
        ("No pneumothorax, left pleural effusion.", "-+"),
        ("No right pneumothorax, left pleural effusion.", "--"),
        ("No pneumothorax, large pleural effusion.", "-+"),
        ("No large pneumothorax, large pleural effusion.", "--"),
        ("No pneumothorax, large pleural effusion, or fracture.", "---"),
        ("No evidence of pneumonia, bibasilar atelectasis.", "-+"),
        ("No pneumothorax, left pleural effusion, or fracture.", "---"),
        ("No pneumothorax, right picc in place.", "-+"),
        ("No pneumothorax seen, left effusion.", "-+"),
        ("No effusion was present on the prior; effusion now.", "+"),
        ("Resolution of effusion seen on prior exam", "-"),
        ("Nodule not seen on 3/4/2019.", "+"),
        ("No acute or chronic fracture.", "-"),
        ("Possible pneumonia, tuberculosis should be excluded.", "++"),
        ("No pneumonia or post primary tuberculosis.", "--"),
        ("Follow up to ensure resolution of the effusion.", "+"),
        ("No pneumonia, with near complete resolution of the effusion.", "-+"),
    ],
)
def test_commas_and_resolution(text, expected):
    assert "".join("-" if e.negated else "+" for e in find_entities(text) if e.kind) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Evaluate for pneumothorax.",
        "Rule out pneumothorax",
        "If pneumothorax is suspected, an expiratory film helps.",
        "Pneumothorax: not assessed.",
        "Pneumothorax: N/A",
        "The prior film showed no pneumothorax.",
        "On the prior study there was no pneumothorax.",
    ],
)
def test_what_is_only_spoken_of_states_no_kind(text):
    (entity,) = [e for e in find_entities(text) if e.label == "observation"]
    assert entity.negated
    assert entity.kind == ""


def test_a_short_line_ends_a_sentence_and_a_wrapped_one_does_not():
    lines = "no effusion\nmild cardiomegaly\nno fracture"
    assert [e.negated for e in find_entities(lines) if e.kind] == [True, False, True]
    wrapped = "There is no evidence of a pneumothorax, a consolidation or of any\neffusion today"
    assert [e.negated for e in find_entities(wrapped) if e.kind] == [True, True, True]
