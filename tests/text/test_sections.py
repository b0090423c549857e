"""Cutting reports into sections: headings as the official parser of MIMIC-CXR treats them, and other hospitals'."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmclip_jax.text.headings import Section, class_of
from mmclip_jax.text.reports import BEFORE, OTHERS, Reader, read_columns, read_report, sections, told


def test_sections_of_usual_reports() -> None:
    report = read_report(
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n\n"
        " INDICATION:  ___ year old woman.\n\n"
        " FINDINGS: \n \n There is a small effusion.\n The heart is large.\n \n IMPRESSION: \n \n 1. Small effusion.\n"
    )
    assert report.findings == "There is a small effusion. The heart is large."
    assert report.impression == "1. Small effusion."
    assert ("INDICATION", "___ year old woman.") in report.others


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("FINDINGS AND IMPRESSION:  Clear lungs.", "", "Clear lungs."),  # as the official parser has it
        ("CONCLUSION: No change.", "", "No change."),
        ("Impression: Normal: nothing seen.", "", "Normal: nothing seen."),
        ("WET READ: seen.\n\nIMPRESSION: One.\n\nADDENDUM IMPRESSION: Two.", "", "One. Two."),
        ("CHEST, TWO VIEWS: history.\n\nThe lungs are\nclear.\n", "history. The lungs are clear.", ""),
        ("Only words, no heading.", "Only words, no heading.", ""),
        ("FINAL REPORT\nOnly words.\n\nNo heading.", "Only words. No heading.", ""),
        ("", "", ""),
        ("FINDINGS:\n\nIMPRESSION:\n", "", ""),
        ("COMPARISON: At 3:15 the heart: large.\nFINDINGS: a", "a", ""),
        # An examination's name is a heading, where no FINDINGS are elsewhere; its time is no end of it.
        ("AP CHEST, 8:45 A.M., ___:\n Edema.", "Edema.", ""),
        ("CHEST, PA LATERAL:\n\n INDICATION: Cough.\n\n FINDINGS: Edema.", "Edema.", ""),
        ("PORTABLE CHEST: Taken supine.\nFINDINGS: Edema.", "Edema.", ""),
        ("IMPRESSION:\n PA AND LATERAL CHEST: No edema.", "No edema.", ""),
        ("Chest X-ray: Edema.\nConclusion: Ill.", "Edema.", "Ill."),
        # Parts of the findings.
        ("FINDINGS:\n\n LUNGS: Clear.\n PLEURA: Effusion\n HEART: Large.\n\nIMPRESSION: Ill.",
         "LUNGS: Clear. PLEURA: Effusion\n\nHEART: Large.", "Ill."),
        ("FINDINGS:\n CHEST: Clear.\n ABDOMEN: Gas.", "CHEST: Clear. ABDOMEN: Gas.", ""),
        ("INDICATION: Cough.\nLungs: Clear\nPneumothorax: None", "Lungs: Clear\nPneumothorax: None", ""),
        # Other punctuation, misspelt, small letters, within a line, in Markdown and HTML.
        ("FINDINGS :  Edema.\nIMPRESSION :  Ill.", "Edema.", "Ill."),
        ("FINDINGS- Edema.\nIMPRESSION -- Ill.", "Edema.", "Ill."),
        ("FINDINGS\nEdema.\n\nIMPRESSION\nIll.", "Edema.", "Ill."),
        ("Findings\nEdema.\nImpression;\nIll.", "Edema.", "Ill."),
        ("**Findings:** Edema.\n## Impression\nIll.", "Edema.", "Ill."),
        ("<p><b>FINDINGS:</b> Edema.</p><p><b>IMPRESSION:</b> Ill.</p>", "Edema.", "Ill."),
        ("findings: edema\nimpression: ill", "edema", "ill"),
        ("FINDNGS: Edema.\nIMPRESSSION: Ill.\nRECCOMENDATION: CT.", "Edema.", "Ill."),
        ("HISTORY: Fall. FINDINGS: Edema. IMPRESSION: Ill. RECOMMENDATION(S): CT.", "Edema.", "Ill."),
        ("History: Fall. Findings: Edema. Impression: Ill. Recommendation: CT.", "Edema.", "Ill."),
        ("INDICATION: FALL. FINDINGS: NO EDEMA. IMPRESSION: ILL.", "NO EDEMA.", "ILL."),
        ("INDIKATION: Husten.\nBefund: Erguss.\nBeurteilung: Krank.", "Erguss.", "Krank."),
        ("INDICATION: Toux.\nR\u00c9SULTATS: \u00c9panchement.\nCONCLUSION: Malade.", "\u00c9panchement.", "Malade."),
        ("INDICACI\u00d3N: Tos.\nHALLAZGOS: Derrame.\nIMPRESI\u00d3N: Enfermo.", "Derrame.", "Enfermo."),
        ("Clinical details: Fall.\nReport: Edema.\nOpinion: Ill.", "Edema.", "Ill."),
        ("CLINICAL DETAILS: Fall\nREPORT:\nEdema\nDIAGNOSIS: Ill", "Edema\n\nDIAGNOSIS: Ill", ""),
        ("DIAGNOSIS: Mass.\nFINDINGS: Edema.\nASSESSMENT: Ill.", "Edema.", "Ill."),
        ("Exam: Chest Clinical History: Fall Comparison: None Findings: Edema Impression: Ill", "Edema", "Ill"),
        # What is no finding.
        ("FINDINGS: Clear.\nRECOMMENDATION(S): CT to exclude pneumonia.", "Clear.", ""),
        ("FINDINGS: Clear.\nNOTIFICATION: Dr. ___ was told of the pneumothorax.", "Clear.", ""),
        ("FINDINGS: Clear.\nCOMMUNICATION: Pneumothorax.\nCOMMENT: Edema.", "Clear.", ""),
        ("FINDINGS: Clear.\nIMPRESSION: Well.\nElectronically signed by A. Edema, MD", "Clear.", "Well."),
        ("FINDINGS: Clear. Dictated by: Dr. Mass on Monday.", "Clear.", ""),
        ("CLINICAL IMPRESSION: Pneumonia.\nPRIOR FINDINGS: Mass.\nFINDINGS: Clear.", "Clear.", ""),
        ("REASON FOR CHEST X-RAY: Mass.\nFINDINGS: Clear.", "Clear.", ""),
        # What no heading tells of, and words that only look like headings.
        ("Clear lungs.\nIMPRESSION: Well.", "Clear lungs.", "Well."),
        ("There is one finding: edema.", "There is one finding: edema.", ""),
        ("FINDINGS: Seen. Note: rotated film.", "Seen. Note: rotated film.", ""),
        ("FINDINGS: The effusion seen on the Prior Film: gone.", "The effusion seen on the Prior Film: gone.", ""),
        ("PC: Cough. BG: Asthma. Patchy opacity.", "PC: Cough. BG: Asthma. Patchy opacity.", ""),
        ("Patient 2 - CXR: Normal", "Patient 2\n- CXR: Normal", ""),
        ("A man of 51. Imaging examination: an opacity.", "A man of 51. Imaging examination: an opacity.", ""),
        ("Well. History: Cough. CT findings: an opacity.", "an opacity.", ""),
        ("FINDINGS:\nAP chest compared to ___:\nEdema.", "AP chest compared to ___: Edema.", ""),
        ("THERE IS ONE FINDING: EDEMA.\nNO MASS.", "THERE IS ONE FINDING: EDEMA. NO MASS.", ""),
    ],
)  # fmt: skip
def test_sections_of_unusual_reports(text: str, findings: str, impression: str) -> None:
    report = read_report(text)
    assert (report.findings, report.impression) == (findings, impression)


def test_paragraphs_behind_the_last_heading_are_findings() -> None:
    text = "FINAL REPORT\n REASON FOR EXAM:  Tube.\n \n Edema is\n new.\n \n No mass.\n\n Signed by: ___\n"
    report = read_report(text, beginning_counts=False)
    assert (report.findings, report.impression) == ("Edema is new. No mass.", "")
    assert report.others == ((BEFORE, "FINAL REPORT"), ("INDICATION", "Tube."), ("SIGNATURE", "___"))
    nothing = read_report("FINAL REPORT\n REASON FOR EXAM:  Large effusion known.\n", beginning_counts=False)
    assert (nothing.findings, nothing.impression) == ("", "")


# The headings that the official parser lists (txt/section_parser.py of MIT-LCP/mimic-cxr), and what it makes of them.
OFFICIAL = {
    "findings": "findings|finding|chest, two views|findins|findindgs|findgings|findngs|findnings|finidngs|"
    "reference findings",
    "impression": "impression|conclusion|findings and impression|findings/impression|findings/ impression|impresson|"
    "imprression|imoression|impressoin|imprssion|impresion|imperssion|mpression|impession",
    "COMPARISON": "comparison|comparisons|reference exam|comparison exam|comparison film|comparision|comparsion|"
    "comparrison|comparisions",
    "INDICATION": "indication|reason for examination|reason for exam|clinical indication|idication",
    "HISTORY": "history|clinical history|clinical information|patient history|pfi",
    "EXAMINATION": "examination|exam|type of examination",
    "TECHNIQUE": "technique",
    "NOTIFICATION": "notification",
    "RECOMMENDATIONS": "recommendation(s)|recommendations|recommendation",
    "WET READ": "wet read|wetread",
    "ADDENDUM": "addendum",
    "COMMENT": "comment",
    "DATE": "date",
}
# Of headings that it does not list, those with one of these words count as findings.
OFFICIAL_VIEWS = (
    "chest|portable|pa and lateral|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|frontal view|"
    "pa view|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs|pa and lat"
)


@pytest.mark.parametrize(
    ("name", "heading"), [(name, heading) for name, listed in OFFICIAL.items() for heading in listed.split("|")]
)
def test_headings_of_the_official_parser(name: str, heading: str) -> None:
    # In small letters a comment or a date may be words of a text.
    for written in (heading.upper(), heading.upper() if name in ("COMMENT", "DATE") else heading.capitalize()):
        report = read_report(f"FINAL REPORT\n {written}:  No edema.\n", beginning_counts=False)
        found = {"findings": report.findings, "impression": report.impression, **dict(report.others)}
        found.pop(BEFORE)
        assert {key: text for key, text in found.items() if text} == {name: "No edema."}


def test_the_one_heading_that_the_official_parser_takes_for_another() -> None:
    assert class_of("NDICATION") == (Section.LEFT_OUT, "INDICATION"), "there it is an impression"


@pytest.mark.parametrize("view", OFFICIAL_VIEWS.split("|"))
def test_views_of_the_official_parser_are_findings(view: str) -> None:
    for heading in (view.upper(), f"{view.upper()} OF ___", f"ERECT {view.upper()}"):
        assert (
            read_report(f"INDICATION: Cough.\n {heading}:  No edema.\n\n IMPRESSION: Well.\n").findings == "No edema."
        )


def test_columns_are_their_own_sections() -> None:
    report = read_columns("Findings: Clear lungs.\nHEART: Large.", "CHEST: Ill.\nRECOMMENDATION: CT for pneumonia.")
    assert (report.findings, report.impression) == ("Clear lungs. HEART: Large.", "CHEST: Ill.")
    assert report.others == (("RECOMMENDATIONS", "CT for pneumonia."),)
    both = read_columns("FINDINGS: Clear.\nIMPRESSION: Well.", "Well.")
    assert (both.findings, both.impression) == ("Clear.", "Well.")
    assert read_columns("", "None.", "Edema.\n \n No mass.").findings == "Edema. No mass."
    assert read_columns("Clear.", "", "Edema.").findings == "Clear."


@pytest.mark.parametrize("text", ["As above.", "See above", "see findings."])
def test_sections_that_point_elsewhere_are_no_report(text: str) -> None:
    assert read_report(f"FINDINGS: .\nIMPRESSION: {text}").impression == ""
    assert read_report(f"FINDINGS: Clear.\nIMPRESSION: {text}").impression == text


def test_what_is_left_out_is_counted_by_studies() -> None:
    reader = Reader()
    for study in ("1", "1", "2"):
        reader.report(study, "INDICATION: Cough.\nMR SMITH: Hello.\nFINDINGS: Clear.\nTEAM: x y\nHISTORY: Fall.")
    reader.report("3", "JOHN DOE: Hello.\nFINDINGS: Clear.\nHISTORY: Fall.")
    reader.report("4", "Clear.")
    reader.report("5", "___")
    reader.report("6", "")
    reader.columns("7", "Clear.", "", {"COMPARISON": "None", "last_paragraph": "Clear."})
    facts = reader.facts()
    assert facts["reports"] == {"blank": 1, "cut into sections": 3, "whole": 2}
    assert facts["sections_left_out"] == {
        "HISTORY": 3,
        "INDICATION": 2,
        "MR SMITH": 2,
        "COMPARISON": 1,
        "(placeholder)": 1,
        OTHERS: 1,
    }
    assert list(told(facts)) == [
        "reports: 1 blank, 3 cut into sections, 2 whole",
        "sections left out, in reports: HISTORY 3, INDICATION 2, MR SMITH 2, (headings of one report) 1, "
        "(placeholder) 1, COMPARISON 1",
    ]
    assert list(told({})) == []


_words = st.lists(
    st.sampled_from(["alpha", "Beta", "gamma:", "3", "no.", "effusion\n", "\n\n", "FINDINGS", "IMPRESSION:", "NOTE:",
                     "\nLUNGS:", "CHEST:", "\nHistory:", " - ", "2)", "1.", "<br>", "~", "\u2022", "Signed by",
                     "WORDS\n"]),
    max_size=30,
)  # fmt: skip


@settings(max_examples=300)
@given(_words)
def test_no_word_is_lost_or_doubled(words: list[str]) -> None:
    text = " ".join(words)
    report = read_report(text)
    bodies = [report.findings, report.impression, *(body for _, body in report.others)]
    headings = [h for h, _ in sections(text) if h and class_of(h.strip(" :-"))[0] is not Section.PART]
    kept = re.findall(r"\w+", " ".join([*bodies, *headings]))
    assert sorted(kept) == sorted(re.findall(r"\w+", text.replace("<br>", "\n")))
