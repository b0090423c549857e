"""The sections of a radiology report as plain text: "FINDINGS: ...", "IMPRESSION: ..."."""

import dataclasses
import re

# A heading: at the start of a line, capitals (with blanks, slashes, brackets, "and"), ended by a colon.
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z0-9 \t/&(),.'-]*[A-Z)]|Findings|Impression|Conclusion):", re.MULTILINE)
_FINDINGS = re.compile(r"\b(FINDINGS?)\b")
_IMPRESSION = re.compile(r"\b(IMPRESSIONS?|CONCLUSIONS?|SUMMARY|OPINION|INTERPRETATION)\b")


@dataclasses.dataclass(frozen=True)
class Report:
    """The two sections that are trained on, and the others by heading; every word of the text is in one of them."""

    findings: str
    impression: str
    others: tuple[tuple[str, str], ...]


def sections(text: str) -> list[tuple[str, str]]:
    """(heading in capitals, text) of each section in order; what precedes the first heading has the heading ""."""
    found = []
    matches = list(_HEADING.finditer(text))
    before = text[: matches[0].start()] if matches else text
    if before.strip():
        found.append(("", before))
    ends = [match.start() for match in matches[1:]] + [len(text)]
    for match, end in zip(matches, ends, strict=False):  # without a heading there is one end too many
        heading = " ".join(match[1].upper().split())
        found.append((heading, text[match.end() : end]))
    return found


def read_report(text: str) -> Report:
    """Findings and impression of a report; line breaks and blanks become single blanks.

    Several sections of one kind (an addendum) are joined. "FINDINGS AND IMPRESSION" counts as findings. If no heading
    tells of either, the last paragraph of the last section is taken for the findings.
    """
    findings: list[str] = []
    impression: list[str] = []
    others: list[tuple[str, str]] = []
    for heading, body in sections(text):
        if _FINDINGS.search(heading):
            findings.append(body)
        elif _IMPRESSION.search(heading):
            impression.append(body)
        else:
            others.append((heading, body))
    if not findings and not impression and others:
        heading, body = others.pop()
        *rest, last = re.split(r"\n[ \t]*\n", body.rstrip())
        if rest:
            others.append((heading, "\n\n".join(rest)))
        findings.append(last)
    plain = [(heading, " ".join(body.split())) for heading, body in others]
    return Report(" ".join(" ".join(findings).split()), " ".join(" ".join(impression).split()), tuple(plain))
