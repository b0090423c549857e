"""Cleaning of texts: whatever an export writes for line ends, blanks and marks gives the same stored text."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmclip_jax.data import texts
from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.reports import _is_plain, clean_text, read_columns, read_report, sections
from mmclip_jax.text.schema import report_text

LINE_ENDS = {
    "carriage return": "\r",
    "both": "\r\n",
    "a carriage return too many": "\r\r\n",
    "vertical tab": "\v",
    "form feed": "\f",
    "NEL": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "HL7 repetition": "~",
    "HL7 break": "\\.br\\",
    "HL7 carriage return": "\\X0D\\",
    "HL7 line feed": "\\X0A\\",
    "HL7 both": "\\X0D0A\\",
    "HL7 both apart": "\\X0D\\\\X0A\\",
    "C": "\\n",
    "C both": "\\r\\n",
    "JSON": "\\u000a",
    "Excel": "_x000D_",
    "Excel and line feed": "_x000D_\n",
    "Excel both": "_x000D__x000A_",
    "HTML": "<br>",
    "HTML of capitals": "<BR/>",
    "XHTML and line feed": "<br />\n",
    "HTML escaped": "&lt;br&gt;",
    "HTML number": "&#10;",
    "HTML numbers": "&#13;&#x0A;",
    "bar": "|",
    "blanks around": "  \n\t",
}
REPORT = (
    "INDICATION: Known pneumonia\nFINDINGS:\nNo pneumothorax\nCardiomegaly is present and the\nlungs are clear\n"
    "1) Small effusion\n2) no edema\nIMPRESSION: no mass\nno fibrosis\nDictated by: A. Hernia"
)


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in texts.sentence_spans(text, find_entities(text))]


def polarity(text: str) -> list[tuple[str, bool]]:
    return [(e.text.lower(), e.negated) for e in find_entities(text) if e.label in ("observation", "device")]


@pytest.mark.parametrize("mark", LINE_ENDS.values(), ids=LINE_ENDS.keys())
def test_every_line_end_gives_the_same_sections_and_sentences(mark: str) -> None:
    report = read_report(REPORT.replace("\n", mark))
    assert report.findings == (
        "No pneumothorax\nCardiomegaly is present and the lungs are clear\n1) Small effusion\n2) no edema"
    )
    assert report.impression == "no mass\n\nno fibrosis"
    assert [name for name, _ in report.others] == ["INDICATION", "SIGNATURE"]
    text = report_text(report.findings, report.impression)
    assert sentences(text) == [*report.findings.split("\n"), *report.impression.split("\n\n")]


_lines = st.lists(
    st.sampled_from(["No effusion", "Edema is seen", "no mass", "cardiomegaly", "1. Nodule", "- scar", "the lungs are",
                     "clear.", "FINDINGS:", "IMPRESSION: Ill", "History: Fall", "PLEURA: thick", "", "", "NO EFFUSION",
                     "5 mm nodule"]),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=200)
@given(_lines, st.sampled_from(sorted(set(LINE_ENDS.values()) - {"<br />\n", "_x000D_\n", "  \n\t"})))
def test_line_ends_do_not_matter_in_any_report(lines: list[str], mark: str) -> None:
    assert read_report(mark.join(lines)) == read_report("\n".join(lines))


@settings(max_examples=200)
@given(_lines)
def test_every_line_end_of_a_stored_text_ends_a_sentence(lines: list[str]) -> None:
    report = read_report("\n".join(lines))
    text = report_text(report.findings, report.impression)
    assert all("\n" not in sentence for sentence in sentences(text))
    # Whatever is denied before a line end, what stands alone behind it is affirmed.
    for line in text.split("\n"):
        if line in ("cardiomegaly", "- scar", "Edema is seen", "1. Nodule"):
            start = text.index(line)
            inside = [
                e for e in find_entities(text) if start <= e.start < start + len(line) and e.label == "observation"
            ]
            assert inside and not any(entity.negated for entity in inside)  # noqa: PT018


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Wrapped lines are joined: an open end, a word that goes on, a term across the end, a full line.
        ("There is no evidence of\npneumothorax", "There is no evidence of pneumothorax"),
        ("No effusion or\nPneumothorax", "No effusion or Pneumothorax"),
        ("NO EFFUSION OR\nPNEUMOTHORAX", "NO EFFUSION OR PNEUMOTHORAX"),
        ("No effusion,\nedema or mass", "No effusion, edema or mass"),
        ("No effusion\nor edema", "No effusion or edema"),
        ("No pneumothorax\nis seen", "No pneumothorax is seen"),
        ("No pleural\neffusion", "No pleural effusion"),
        ("edema of the lower\nlobes", "edema of the lower lobes"),
        ("Comparison with the film of the day before shows\nan old effusion",
         "Comparison with the film of the day before "
         "shows an old effusion"),
        # Borders are kept, and seen.
        ("No effusion\nEdema", "No effusion\nEdema"),
        ("no effusion\nedema", "no effusion\n\nedema"),
        ("NO EFFUSION\nEDEMA", "NO EFFUSION\n\nEDEMA"),
        ("no effusion\n\nof the heart", "no effusion\n\nof the heart"),
        ("no effusion\nthere is edema", "no effusion\n\nthere is edema"),
        ("Clear.\nNormal.", "Clear. Normal."),
        ("Clear.\n2. Normal.", "Clear.\n2. Normal."),
        # Items within a line.
        ("\u2022 No effusion \u2022 edema", "- No effusion\n- edema"),
        ("No effusion - Edema - No mass", "No effusion\n- Edema\n- No mass"),
        ("- no effusion - edema", "- no effusion\n- edema"),
        ("1. No effusion 2. Edema 3. no mass", "1. No effusion\n2. Edema\n3. no mass"),
        ("(1) No effusion (2) Edema", "(1) No effusion\n(2) Edema"),
        ("No effusion 2) Edema", "No effusion\n2) Edema"),
        ("<ul><li>No effusion</li><li>Edema</li></ul>", "- No effusion\n- Edema"),
        ("<p>no effusion</p><p>edema</p>", "no effusion\n\nedema"),
        # No items: answers, sides, measures, references.
        ("Pneumothorax - None", "Pneumothorax - None"),
        ("Pneumothorax - absent", "Pneumothorax - absent"),
        ("Nodule (see image 2) Unchanged", "Nodule (see image 2) Unchanged"),
        ("Nodule of ~5 mm, < 1 cm, >3 mm", "Nodule of ~5 mm, < 1 cm, >3 mm"),
        ("Compared with exam 2. Stable", "Compared with exam 2. Stable"),
        # Characters.
        ("R&amp;D &lt; 5&nbsp;mm &#8211; caf\u00e9 &eacute;", "R&D < 5 mm - caf\u00e9 \u00e9"),
        ("a\\T\\b \\E\\ \\H\\big\\N\\ \\S\\", "a&b \\ big ^"),
        ("no\u00adpar\u200bity \ufeffof\u00a0the\u3000\ufb01lm\x00\x07", "noparity of the film"),
        ("pleural\u2011based \u201cmass\u201d isn\u2019t", "pleural-based \"mass\" isn't"),
        ("e\u0301panchement", "\u00e9panchement"),
        ("<b>Mass</b> in<span class='x'> the</span> lung", "Mass in the lung"),
        ("a\tb  c \n \n\n ---- \n d.", "a b c\n\nd."),
        ("left\\right", "left\\right"),
    ],
)  # fmt: skip
def test_stored_texts(text: str, expected: str) -> None:
    assert clean_text(text) == expected


@pytest.mark.parametrize(
    "text",
    ["None", "none.", "nan nan", ".", "___", "_ _", "XXXX", "XXXX.", "N/A.", "n.a.", "N/A N/A", "-", "[]",
    "null null", "NaN", "1.",
     "---\n___", "<br>", "&nbsp;", "Not available.", "[None]", "\\.br\\", "\ufeff", "?", "(unknown)", "No report"],
)  # fmt: skip
def test_placeholders_are_blank(text: str) -> None:
    assert clean_text(text) == ""
    report = read_columns(text, f"IMPRESSION: {text}")
    assert (report.findings, report.impression) == ("", "")
    assert read_report(f"FINDINGS: {text}\nIMPRESSION: Ill.").findings == ""


@pytest.mark.parametrize(
    "text", ["Normal.", "Unremarkable", "No change.", "Clear", "No.", "None of the lines moved.", "Negative"]
)
def test_short_reports_are_no_placeholders(text: str) -> None:
    assert clean_text(text) == text


_ANYTHING = st.lists(
    st.one_of(
        st.sampled_from([*LINE_ENDS.values(), "#1 ", "a) ", "b) ", "-ve", "no", "yes",
        *"\t\u25a1\u25a0&<>\\~|_-*#.:;,()", "&amp;", "&lt;", "br>", "\\E\\", "X0D\\",
        "_x000D", "<p>", "<li>",
                         " 2) ", "1. ", " - ", "\u2022", "No effusion", "edema", "THE LUNGS", "are", "Findings:",
                         "IMPRESSION", "\u00a0"]),
        st.text(max_size=4),
    ),
    max_size=25,
).map("".join)  # fmt: skip


@settings(max_examples=400)
@given(_ANYTHING)
@example("no effusion or pneumothorax or other things of a long line\ncardiomegaly\n\nno")
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert not set(once) & set("\r\v\f\x85\u2028\u2029\t\x00\ufeff\u200b")


_PLAIN_PARTS = st.lists(
    st.sampled_from(["No effusion", "edema.", "none", "FINDINGS", "Findings", "-", " - ", "2)", "1.", "(", ".",
                     " ", "xxxx",
                     "Signed by", "A", "5 mm", "left-sided"]),
    max_size=8,
).map(" ".join)  # fmt: skip


@settings(max_examples=300)
@given(_PLAIN_PARTS)
def test_the_short_way_for_plain_sections_is_no_other_way(text: str) -> None:
    if _is_plain(text):
        assert clean_text(text) == text
        assert sections(f"FINDINGS: {text}") == ([("FINDINGS:", text)])
        assert read_columns(text, f"IMPRESSION: {text}").impression == text


@settings(max_examples=400)
@given(_ANYTHING)
def test_any_text_can_be_read(text: str) -> None:
    report = read_report(text)
    assert all(section == section.strip() for section in (report.findings, report.impression))
    for section in (report.findings, report.impression):
        section.encode()  # no half of a pair
        assert "\n\n\n" not in section
        assert "  " not in section


@pytest.mark.parametrize(
    "unit",
    ["\r", " ", "<", "<b ", "&", "&amp;", "\\", "\\X0D", "_x000D", "(", "1) ", "1. A ", "A ", "A:", "\u2022",
     "~", " - A",
     "no effusion\n", "none\n", "FINDINGS: ", "FINDINGS: a\n", "Findings: a. ", "\n\n", "signed by ", "report\n",
     "left\n"],
)  # fmt: skip
def test_the_time_is_linear(unit: str) -> None:
    """Eight times the text takes about eight times as long; a quadratic step would take 64 times as long."""

    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        spent = []
        for _ in range(2):
            start = time.process_time()
            read_report.__wrapped__(text)
            clean_text(text)
            spent.append(time.process_time() - start)
        return min(spent)

    assert seconds(96_000) < 30 * (seconds(12_000) + 0.0005)
