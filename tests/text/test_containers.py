"""Reports within something else (cells, RTF, HL7 messages), and other conventions of lists, headings and signatures."""

import pytest

from mmclip_jax.text.entities import find_entities
from mmclip_jax.text.reports import clean_text, read_report
from mmclip_jax.text.schema import report_text


def signs(text: str) -> str:
    """Signs, "+" or "-" of each observation and device in order."""
    found = [entity for entity in find_entities(text) if entity.label in ("observation", "device")]
    return "".join("-" if entity.negated else "+" for entity in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pneumothorax\tNo\tEffusion\tYes", "-+"),
        ("Pneumothorax\tNo\nEffusion\tYes\n", "-+"),
        ("Pneumothorax\\tAbsent\\tEffusion\\tPresent\\tConsolidation\\tAbsent", "-+-"),
        ("Pneumothorax | No | Effusion | Yes", "-+"),
        ("|Pneumothorax|No|\n|---|---|\n|Effusion|small, left|", "-+"),
        ("Effusion\tsmall, left\tPneumothorax\tnone", "+-"),
        ("No\tPneumothorax\tYes\tEffusion", "-+"),
        ("<table><tr><td>Pneumothorax</td><td>No</td><td>Effusion</td><td>Yes</td></tr></table>", "-+"),
        ("<table><tr><td>Pneumothorax</td><td>N</td></tr><tr><th>Effusion</th><td>Y</td></tr></table>", "-+"),
        ("Pneumothorax -ve, effusion +ve", "-+"),
        ("-ve for pneumothorax. +ve for effusion.", "-+"),
        ("Pneumothorax: \u25a1 yes \u25a0 no", "-"),
        ("(_) Pneumothorax (X) Effusion", "-+"),
        ("Pneumothorax=N Effusion=Y", "-+"),
        ("Pneumothorax: - Effusion: +", "-+"),
        ("There is no:\n- pneumothorax\n- effusion\n\nCardiomegaly.", "--+"),
        ("No evidence of\n1. pneumothorax\n2. effusion", "--"),
        ("Pneumothorax - no\n- Effusion - yes", "-+"),
        ("- Pneumothorax: no\n- Effusion: small", "-+"),
        ("No\n- pneumothorax\n- effusion", "--"),
        ("Pneumothorax\nNo\nEffusion\nYes", "-+"),
        ("#1 No pneumothorax #2 Cardiomegaly #3 No effusion", "-+-"),
        ("a) No pneumothorax b) Cardiomegaly c) No effusion", "-+-"),
    ],
)
def test_answers_in_cells_and_signs(text: str, expected: str) -> None:
    stored = clean_text(text)
    assert signs(stored) == expected
    assert clean_text(stored) == stored
    report = read_report(f"INDICATION: Pneumonia\nFINDINGS:\n{text}\nIMPRESSION: Stable.")
    assert signs(report.findings) == expected


def test_tabs_without_answers_are_blanks() -> None:
    assert clean_text("\tThe heart\tis large.\tEdema\tin both lungs") == "The heart is large. Edema in both lungs"


RTF = (
    r"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0\fswiss Mass;}}{\colortbl;\red0\green0\blue0;}{\*\generator Nodule;}\pard\b "
    r"INDICATION:\b0  Pneumonia\line\b FINDINGS:\b0  Large effusion\par No pneumothorax at 10\'b0\par "
    r"\trowd Edema\cell No\cell\row IMPRESSION: Gr\u246?\'dfer.\par}"
)


def test_rtf_is_read() -> None:
    report = read_report(RTF)
    assert report.findings == "Large effusion\nNo pneumothorax at 10\u00b0\nEdema: No"
    assert report.impression == "Gr\u00f6\u00dfer."


def test_an_hl7_message_gives_its_report() -> None:
    message = (
        "MSH|^~\\&|RIS|MASS\rPID|1||10^^^NODULE\rOBX|1|TX|71020^CHEST^L||FINDINGS: Large effusion||||||F\r"
        "OBX|2|TX|71020^CHEST^L||No pneumothorax||||||F\rOBX|3|TX|71020^CHEST^L||IMPRESSION: Edema||||||F"
    )
    report = read_report(message)
    assert (report.findings, report.impression) == ("Large effusion\nNo pneumothorax", "Edema")


def test_what_a_page_does_not_show_is_no_text() -> None:
    page = "<!DOCTYPE html><style>p {mass: 1}</style><script>nodule()</script><!-- pneumonia --><p>FINDINGS: Edema</p>"
    assert read_report(page).findings == "Edema"


@pytest.mark.parametrize(
    "signature",
    [
        "This report was electronically signed by Dr. Mass",
        "Final report electronically signed by Dr. Mass",
        "Released by Dr. Mass",
        "Authorised by: Dr Mass",
        "Reading Physician: Mass",
        "Interpreting Physician: Dr. Mass",
        "*** Final *** Signed by Mass",
        "I, Dr. Mass, have reviewed the images",
        "Dr. Mass\nConsultant Radiologist",
        "D: 3/4/2010 T: 3/5/2010 Mass",
    ],
)
def test_signatures_are_no_findings(signature: str) -> None:
    report = read_report(f"FINDINGS: Large effusion.\n\nIMPRESSION: No edema.\n\n{signature}\n")
    assert "Mass" not in report_text(report.findings, report.impression)
    assert (report.findings, report.impression[:9]) == ("Large effusion.", "No edema.")


@pytest.mark.parametrize(
    ("text", "findings"),
    [
        ("[INDICATION] Pneumonia [FINDINGS] Edema. [IMPRESSION] No mass.", "Edema."),
        ("[INDICATION]\nPneumonia\n[FINDINGS]\nEdema.\n[IMPRESSION]\nNo mass.", "Edema."),
        ("DECUBITUS VIEWS:  Edema.\n\nIMPRESSION: No mass.", "Edema."),
        ("FINDINGS: Edema.\n\nIMPRESSION: No mass.\n\nCRITICAL RESULT: Pneumonia.", "Edema."),
        ("FINDINGS: ___ IMPRESSION: No mass.", ""),
    ],
)
def test_headings_of_other_forms(text: str, findings: str) -> None:
    report = read_report(text)
    assert (report.findings, report.impression) == (findings, "No mass.")


@pytest.mark.parametrize(
    "text",
    ["\\N", "#NAME?", "NaT", "No report available.", "Report pending", "Dictated.", "[Report text removed]", "k.A.",
     "[REDACTED]", "to follow", "No report on file", "Result not available", "Keine Angabe", "sin informe"],
)  # fmt: skip
def test_more_placeholders_are_blank(text: str) -> None:
    assert clean_text(text) == ""
    assert report_text(*[read_report(f"FINDINGS: {text}\nIMPRESSION: {text}").findings] * 2) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pneumothorax: No\nThere is edema", "-+"),
        ("Pneumothorax: No\nNo acute disease", "--"),
        ("No worsening of the effusion.", "+"),
        ("No interval worsening of pulmonary edema.", "+"),
        ("Low suspicion for pneumonia.", "-"),
        ("Unlikely to represent pneumonia.", "-"),
        ("Pneumothorax resolved on today's film.", "-"),
        ("Impossible to exclude a pneumothorax.", "+"),
        ("No evidence of the following: pneumothorax, effusion, consolidation.", "---"),
        ("Low likelihood of pneumothorax.", "-"),
        ("Pneumonia is considered less likely.", "-"),
        ("The pleural effusion has been completely drained.", "-"),
        ("Not consistent with pneumonia.", "-"),
        ("There has been interval clearance of the consolidation.", "-"),
    ],
)
def test_doubt_drainage_and_what_has_not_changed(text: str, expected: str) -> None:
    assert signs(text) == expected
