"""What texts are made of: entities, and the one form in which a report's sections are joined."""

import dataclasses
import re

from mmclip_jax.text.marks import BULLETS

# What shows behind a line end that a sentence has ended there: a word with a capital, a list's number or bullet.
NEW_SENTENCE = re.compile(rf"[A-Z](?:[a-z]|\s)|\d+[.)]|[-*{BULLETS}]")


@dataclasses.dataclass(frozen=True)
class Entity:
    """A medical term in a report: `text == report[start:end]`.

    label: "observation", "anatomy", "device" or "modifier"; negated: the report denies it ("no effusion");
    kind: the disease kind (a name in the vocabulary, e.g. "pleural_effusion") the term stands for, or "" for none.
    """

    start: int
    end: int
    text: str
    label: str
    negated: bool
    kind: str = ""


def report_text(findings: str, impression: str) -> str:
    """Joins the sections of a report as `Example.text` does (entity offsets refer to this string).

    They stand on lines of their own. Where neither a mark at the end of the findings nor the beginning of the
    impression shows that a sentence ends between them, an empty line does.
    """
    findings, impression = findings.strip(), impression.strip()
    return f"{findings}{section_border(findings, impression)}{impression}"


def section_border(findings: str, impression: str) -> str:
    """What `report_text` puts between two stripped sections."""
    if not findings or not impression:
        return ""
    return "\n" if findings[-1] in ".!?" or NEW_SENTENCE.match(impression) else "\n\n"
