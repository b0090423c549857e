r"""Cleans a report and cuts it into sections, before anything else looks at it. All builders' texts pass here.

The stored text. A section that `read_report` or `read_columns` gives has no markup, no escapes and no invisible
characters; words stand one blank apart. Wrapped lines are joined. A line end is left only where a sentence ends that no
mark of its own ends, and before an item of a list:

- "\n" where what follows shows by itself that it begins a sentence or an item (`schema.NEW_SENTENCE`);
- "\n\n", an empty line, where it does not ("no effusion" above "mild cardiomegaly").

So in a stored text **every line end ends a sentence**, and who reads only the rule "an empty line always ends one, a
single line end does before a new sentence" sees every border. `schema.report_text` joins the sections likewise.

All of it takes time linear in the length of a text.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmclip_jax.text.cleaning import PLAIN, begins_like_nothing, has_items, normalised, phrase, stored, word_set
from mmclip_jax.text.headings import LEFT_OUT_NAMES, Section, class_of, is_heading, is_part
from mmclip_jax.text.schema import report_text

__all__ = ["Reader", "Report", "clean_text", "read_columns", "read_report", "sections"]

BEFORE = "(before the first heading)"
OTHERS = "(headings of one report)"
PLACEHOLDER = "(placeholder)"
_KNOWN_NAMES = frozenset({*LEFT_OUT_NAMES, BEFORE, PLACEHOLDER, "TITLE", "(points elsewhere)"})


@dataclasses.dataclass(frozen=True)
class Report:
    """A report that was cut into sections; every word of the text is in one of them, or is a heading.

    findings, impression: stored texts, "" where there are none or only a placeholder.
    others: (the name it is counted under, text) of what is left out, in order.
    is_cut: whether the text had a heading.
    """

    findings: str
    impression: str
    others: tuple[tuple[str, str], ...] = ()
    is_cut: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Headings

_SIMPLE = re.compile(r"^([A-Z][A-Z ]{3,20}):(?= )", re.MULTILINE)
_LEADING = re.compile(r"[\s#*>\-]*(?:\(?\d{1,2}[.)]\s+)?")
_TIME = re.compile(r"\b([AaPp])\.\s?([Mm])\.")
_SENTENCE_MARK = re.compile(r"[.;!?]\s")
# A heading within a line: in capitals, or with a capital behind the end of a sentence.
_CAPITALS = re.compile(r"(?<=[\s.;])[A-Z][A-Z/&(), \-]{1,70}[A-Z)] ?:")
_TITLE_CASE = re.compile(r"(?<=[.!?;:)] )[A-Z][A-Za-z]{1,20}(?:[ /](?:[A-Z]?[a-z]{1,20}|&)){0,4} ?:")
# Words with capitals within a line, behind whatever: "Comparison: None Clinical History: Fall Findings: ...".
_TITLE_WORDS = re.compile(r"(?<=\s)(?:[A-Z][a-z]{2,20} ){0,2}[A-Z][a-z]{5,20} ?:(?= |$)")
_BY_DASH = re.compile(r"([^\W\d_][^\d:;.=]{3,40}?)\s?(?:\s[-=]\s|[-;=](?:\s|$)|\.(?:\s|$)|$)")
_IN_LINE = word_set(
    """
    FINDINGS IMPRESSION INDICATION HISTORY COMPARISON TECHNIQUE RECOMMENDATIONS NOTIFICATION EXAMINATION ADDENDUM
    """
) | {"WET READ"}
# In small letters these are words of a section that is kept ("Note: ...").
_IN_CAPITALS = frozenset({"COMMENT", "DATE", "PATIENT"})
_SIGNATURE = re.compile(
    r"(?:^|(?<=[.!?;:)] )|(?<=\*\*\* ))(?:(?:this|final|the) (?:final )?report (?:was|has been|is)? ?)?"
    r"(?:electronically |digitally )?(?:signed|dictated|transcribed|approved|verified|finali[sz]ed|"
    r"released|authori[sz]ed|read|attested|authenticated|validated|interpreted|reported|reviewed)"
    r"(?: and \w+| electronically| digitally)? (?:by|on)\b|"
    r"^(?:electronically|digitally) \w+|^elektronisch (?:signiert|freigegeben|unterschrieben)|^gez\. |"
    r"^mit freundlichen gr\u00fc\u00dfen|^(?:attending|resident)? ?radiologist[:,] |"
    r"^(?:reading|interpreting|reporting|signing|dictating|attending) (?:physician|doctor|radiologist)\b|"
    r"^i, [^\n]{1,40}, have (?:personally )?reviewed|^d: ?\d[^\n]{0,30} t: ?\d|"
    r"^(?:dr|prof)\.? [^\n:]{1,40}\n(?:consultant|attending|resident|specialist)?[ ,]*radiologist\b",
    re.IGNORECASE | re.MULTILINE,
)
_TITLE = re.compile(
    r"(?:final|preliminary|radiology|radiological|x-?ray|diagnostic|imaging|official|chest|addendum to)?\s?"
    r"(?:radiology|final)? ?report", re.IGNORECASE
)  # fmt: skip


class _Mark(NamedTuple):
    """A heading in a text: its place, and what stands below."""

    start: int
    end: int
    section: Section
    name: str


def _marks(text: str) -> list[_Mark]:
    """The headings of a normalised text in order, those of parts among them."""
    if ":" not in text and "\n" not in text:
        begin = text[:45]
        first = None
        if "-" in begin or "=" in begin or ";" in begin or begin[:6].isupper():
            first = _heading_at_start(text, 0, False)
        return ([first] if first else []) + _signatures(text)
    simple = list(_SIMPLE.finditer(text))
    if len(simple) == text.count(":") == text.count("\n") + 1 and not text.isupper():
        marks = [_Mark(m.start(), m.end(), *class_of(m[1])) for m in simple]  # every line begins with a heading
    else:
        marks = _line_marks(text)
    signatures = _signatures(text)
    return sorted(marks + signatures, key=lambda mark: mark.start) if signatures else marks


def _line_marks(text: str) -> list[_Mark]:
    """The headings of a text, line by line."""
    marks: list[_Mark] = []
    capitals = text.isupper()
    at = 0
    for line in text.split("\n"):
        if line:
            first = _heading_at_start(line, at, capitals)
            if first:
                marks.append(first)
            if line.find(":", first.end - at if first else 0) >= 0:
                marks += _within(line, at, first.end - at if first else 0, capitals)
        at += len(line) + 1
    return marks


def _signatures(text: str) -> list[_Mark]:
    """The places where a signature begins."""
    if not _may_be_signed(text.lower()):
        return []
    return [_Mark(m.start(), m.start(), Section.LEFT_OUT, "SIGNATURE") for m in _SIGNATURE.finditer(text)]


def _may_be_signed(text: str) -> bool:
    """Whether a text in small letters can have a signature. Most have none, and looking for one is slow."""
    return (
        " by" in text or "ed on" in text or "nically " in text or "igitally " in text or "radiologist" in text
        or "t: " in text or "i, " in text or "physician" in text or "doctor" in text
        or "elektronisch" in text or "gez. " in text or "mit freundlichen" in text
    )  # fmt: skip


def _heading_at_start(line: str, at: int, capitals: bool) -> _Mark | None:
    """The heading that a line starts with. `capitals`: the whole report is of capitals, which then tell nothing."""
    begin = 0 if line[0].isalpha() else _LEADING.match(line).end()  # type: ignore[union-attr]  # it always matches
    colon = _colon(line, begin)
    if colon > begin and (found := _judged(line[begin:colon], capitals)):
        return _Mark(at, at + colon + 1, *found)
    if not line[begin : begin + 1].isupper():
        return None
    match = _BY_DASH.match(line, begin)
    if match and is_heading(match[1]):
        section, name = class_of(match[1])
        alone = match.end() == len(line)
        if name in _IN_LINE and (alone or match[1].isupper() or "." not in match[0]):
            return _Mark(at, at + match.end(), section, name)
    return None


@functools.lru_cache(maxsize=65536)
def _judged(words: str, capitals: bool) -> tuple[Section, str] | None:
    """What the words before a line's first colon say as a heading; None if they are words of a sentence."""
    candidate = words.strip(" *")
    if not candidate or _SENTENCE_MARK.search(_TIME.sub(r"\1\2", candidate)):
        return None
    in_capitals = candidate.isupper() and not capitals and len(candidate) > 1
    return class_of(candidate) if in_capitals or is_heading(candidate) or is_part(candidate) else None


def _colon(line: str, begin: int) -> int:
    """The place of the first colon that is not of a time, -1 if it is far away."""
    at = line.find(":", begin, begin + 100)
    while at > 0 and line[at - 1].isdigit() and line[at + 1 : at + 2].isdigit():
        at = line.find(":", at + 1, begin + 100)
    return at


def _within(line: str, at: int, begin: int, capitals: bool) -> Iterator[_Mark]:
    """The headings within a line, behind `begin`."""
    for match in (*_CAPITALS.finditer(line, begin), *_TITLE_WORDS.finditer(line, begin)):
        words = match[0].rstrip(" :").split(" ")
        for first in range(max(0, len(words) - 6), len(words)):
            candidate = " ".join(words[first:]).strip(" ,&/-(")
            if is_heading(candidate):
                section, name = class_of(candidate)
                start = match.start() + len(" ".join(words[:first])) + bool(first)
                title = line[max(0, start - 12) : start].split()[-1:]
                if name == "COMPARISON" and title and class_of(title[0])[0] is Section.VIEW:
                    break  # "Chest Comparison: There is ...", in Open-I
                behind_mark = line[max(0, start - 2) : start].strip()[-1:] in (".", "!", "?", ";", "_", "]")
                if name in _IN_LINE and (behind_mark or not capitals):
                    yield _Mark(at + start, at + match.end(), section, name)
                break
    for match in _TITLE_CASE.finditer(line, begin):
        candidate = match[0].rstrip(" :")
        if is_heading(candidate) and class_of(candidate)[1] in _IN_LINE:
            yield _Mark(at + match.start(), at + match.end(), *class_of(candidate))


# ---------------------------------------------------------------------------------------------------------------------
# Sections


_BRACKETED = re.compile(r"(?<!\S)\[ ?([A-Za-z][A-Za-z /&]{3,40}?) ?\]:?[ \n]")


def _plain_headings(text: str) -> str:
    """The text normalised, with lines "FINDINGS: ..." for each heading in brackets ("[FINDINGS] ...")."""
    text = normalised(text)
    if "]" not in text:
        return text
    return _BRACKETED.sub(lambda match: f"\n{match[1]}: " if is_heading(match[1]) else match[0], text).strip()


class _Piece(NamedTuple):
    section: Section
    name: str
    heading: str
    body: str


def _pieces(text: str, start: Section) -> list[_Piece]:
    """A normalised text cut at its headings; parts and unknown headings of a section that is kept stay in its text.

    Args:
      text: see `cleaning.normalised`.
      start: FINDINGS or IMPRESSION where the text is the column of that section; else UNKNOWN.
    """
    column = start != Section.UNKNOWN
    pieces: list[_Piece] = []
    section, name, heading, begin = start, start.name if column else BEFORE, "", 0
    for mark in _certain(_marks(text), text, column):
        kept = section in (Section.FINDINGS, Section.IMPRESSION, Section.VIEW, Section.PART)
        new, new_name, end = mark.section, mark.name, mark.end
        if mark.start < begin:
            continue
        if new is Section.VIEW and (section is Section.FINDINGS or (column and kept)):
            continue
        if new in (Section.PART, Section.UNKNOWN) and kept:
            continue
        if kept and new_name in _IN_CAPITALS and not text[mark.start : mark.end].rstrip(" :").isupper():
            continue
        if new is Section.UNKNOWN:
            new = Section.LEFT_OUT
        if new is Section.PART:
            end = mark.start  # its name is part of what is said
        body = text[begin : mark.start].strip()
        if body or heading:
            pieces.append(_Piece(section, name, heading, body))
        section, name, heading, begin = new, new_name, text[mark.start : end].strip(), end
    body = text[begin:].strip()
    if body or heading:
        pieces.append(_Piece(section, name, heading, body))
    return pieces


def _certain(marks: list[_Mark], text: str, column: bool) -> list[_Mark]:
    """The headings without those that prose may have as well, unless the text has findings or an impression.

    Those are "Patient 2: ..." and, within a line, "... Examination: ...", with a capital only.
    """
    if column or any(mark.section in (Section.FINDINGS, Section.IMPRESSION) for mark in marks):
        return marks
    return [
        mark
        for mark in marks
        if mark.section is not Section.LEFT_OUT
        or mark.name == "SIGNATURE"
        or text[mark.start : mark.end].isupper()
        or (mark.name not in _IN_CAPITALS and (mark.start == 0 or text[mark.start - 1] == "\n"))
    ]


def sections(text: str) -> list[tuple[str, str]]:
    """(heading as written, its text in lines) of each section in order; what precedes the first heading has ""."""
    return [(piece.heading, piece.body) for piece in _pieces(_plain_headings(text), Section.UNKNOWN)]


@functools.lru_cache(maxsize=8)  # the rows of one study have the same report
def read_report(text: str, beginning_counts: bool = True) -> Report:
    """Findings and impression of a whole report, as stored texts.

    Several sections of one kind (an addendum) are joined. What stands below the name of an examination or a view
    ("CHEST, TWO VIEWS:") is findings, unless FINDINGS are elsewhere. A report without any heading is findings. Where no
    heading tells of findings or impression, they are the paragraphs of the last section but its first.

    Args:
      text: the report as it came.
      beginning_counts: whether what precedes the first heading is findings where no heading says what is.
    """
    pieces = _pieces(_plain_headings(text), Section.UNKNOWN)
    if not pieces:
        return Report("", "")
    unknown = not any(p.section in _TOLD or p.name in LEFT_OUT_NAMES for p in pieces)
    if (len(pieces) == 1 and not pieces[0].heading) or (unknown and beginning_counts):
        return _whole(normalised(text))
    findings = stored([p.body for p in pieces if p.section in _KEPT])
    kept: tuple[Section, ...] = _KEPT
    if not findings and any(p.section is Section.VIEW for p in pieces):
        findings, kept = stored([p.body for p in pieces if p.section in _KEPT_OR_VIEW]), _KEPT_OR_VIEW
    impression = stored([p.body for p in pieces if p.section is Section.IMPRESSION])
    others = [p for p in pieces if p.section not in kept and p.section is not Section.IMPRESSION]
    left_out = [(p.name, p.body) for p in others]
    silent = _placeholders([p for p in pieces if p.section in kept], findings)
    silent += _placeholders([p for p in pieces if p.section is Section.IMPRESSION], impression)
    if not findings and beginning_counts and others and others[0].section is Section.UNKNOWN:
        whole = _whole(others[0].body)
        if whole.findings:
            findings, left_out = whole.findings, [*whole.others, *left_out[1:]]
    if not findings and not impression:
        last = next((n for n in reversed(range(len(others))) if others[n].name != "SIGNATURE"), None)
        if last is not None and others[last].heading:
            first, _, rest = others[last].body.partition("\n\n")
            findings = stored([rest])
            if findings:
                left_out[last] = (others[last].name, first)
    return _checked(Report(findings, impression, tuple(each for each in (*left_out, *silent) if each[1]), True))


_KEPT = (Section.FINDINGS, Section.PART)
_KEPT_OR_VIEW = (*_KEPT, Section.VIEW)
_TOLD = (*_KEPT_OR_VIEW, Section.IMPRESSION)


def _placeholders(pieces: Sequence[_Piece], text: str) -> list[tuple[str, str]]:
    """Those pieces of a section that say nothing; `text` is what is stored of all of them."""
    if len(pieces) <= 1 and (text or not pieces):
        return []
    return [(PLACEHOLDER, piece.body) for piece in pieces if piece.body and not stored((piece.body,))]


def _whole(text: str) -> Report:
    """A report without a heading; a title ("FINAL REPORT") above it is left out."""
    lines = text.split("\n")
    begin = next((n for n, line in enumerate(lines) if line and not _TITLE.fullmatch(line.strip(" *:-"))), len(lines))
    body = "\n".join(lines[begin:])
    found = stored((body,))
    others = (("TITLE", " ".join(filter(None, lines[:begin]))), (PLACEHOLDER, "" if found else body))
    return _checked(Report(found, "", tuple(each for each in others if each[1])))


def _is_plain(text: str) -> bool:
    """Whether a section is stored as it is: plain words, no heading, item, signature or placeholder.

    Most sections are. Nothing but speed hangs on it.
    """
    return not text or (
        PLAIN.fullmatch(text) is not None
        and not ("  " in text or ".." in text or "--" in text or "- " in text or text[:6].isupper())
        and text[-1] != " "
        and not begins_like_nothing(text)
        and not has_items(text)
        and not _may_be_signed(text.lower())
    )


def read_columns(findings: str, impression: str, last_paragraph: str = "") -> Report:
    """The stored texts of sections that come apart, each of which may hold headings still.

    Args:
      findings: that section as it came.
      impression: that section as it came.
      last_paragraph: taken for the findings if the others are blank.
    """
    plain = _is_plain(findings), _is_plain(impression)
    if all(plain) and (findings or impression or not last_paragraph):
        return _checked(Report(findings, impression))
    pieces = (
        [_Piece(Section.FINDINGS, "", "", findings)]
        if plain[0]
        else _pieces(_plain_headings(findings), Section.FINDINGS)
    )
    if plain[1]:
        pieces.append(_Piece(Section.IMPRESSION, "", "", impression))
    else:
        pieces += _pieces(_plain_headings(impression), Section.IMPRESSION)
    if len(pieces) <= 2 and not any(piece.heading for piece in pieces):
        said = ["", ""]
        silent = []
        for piece in pieces:
            second = piece.section is Section.IMPRESSION
            text = said[second] = piece.body if plain[second] else stored((piece.body,))
            if not text and piece.body:
                silent.append((PLACEHOLDER, piece.body))
        report = _checked(Report(said[0], said[1], tuple(silent)))
    else:
        found = [p for p in pieces if p.section not in (Section.IMPRESSION, Section.LEFT_OUT)]
        concluded = [p for p in pieces if p.section is Section.IMPRESSION]
        first, last = (stored(dict.fromkeys(p.body for p in each)) for each in (found, concluded))
        others = [(p.name, p.body) for p in pieces if p.section is Section.LEFT_OUT and p.body]
        others += _placeholders(found, first) + _placeholders(concluded, last)
        report = _checked(Report(first, last, tuple(others), True))
    if last_paragraph and not (report.findings or report.impression):
        return read_columns(last_paragraph, "")
    return report


def clean_text(text: str) -> str:
    """A text as it is stored, without looking for sections; "" for a placeholder. Cleaning twice changes nothing."""
    return stored([normalised(text)])


_SEE_ELSEWHERE = frozenset(
    {"as above", "see above", "as below", "see below", "see findings", "see impression", "see report", "same as above",
     "as described above", "see comment", "as in findings"}
)  # fmt: skip


def _checked(report: Report) -> Report:
    """The report without sections that only point elsewhere ("As above."), if all of its sections do."""
    said = [text for text in (report.findings, report.impression) if text]
    if (
        said
        and said[-1][:3].lower() in ("as ", "see", "sam")
        and all(len(text) < 40 and phrase(text) in _SEE_ELSEWHERE for text in said)
    ):
        return dataclasses.replace(
            report, findings="", impression="", others=(*report.others, *(("(points elsewhere)", t) for t in said))
        )
    return report


# ---------------------------------------------------------------------------------------------------------------------
# Counting


_NONE: Mapping[str, str] = {}


class Reader:
    """Reads the reports of a data set, and counts what it leaves out."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._counts: collections.Counter[str] = collections.Counter()
        self._left_out: collections.Counter[str] = collections.Counter()

    def report(self, study: str, text: str, beginning_counts: bool = True) -> Report:
        """`read_report`; counted once a study, if there is a text."""
        return self._counted(study if text else "", read_report(text, beginning_counts))

    def columns(self, study: str, findings: str, impression: str, others: Mapping[str, str] = _NONE) -> Report:
        """`read_columns`; counted once a study, if there is a text.

        Args:
          study: whose report it is.
          findings: as `read_columns` takes it.
          impression: likewise.
          others: the texts of further sections, by heading. "last_paragraph" is findings where there are no others.
        """
        report = read_columns(findings, impression, others.get("last_paragraph", ""))
        more = tuple((class_of(name)[1], text) for name, text in others.items() if text and name != "last_paragraph")
        report = dataclasses.replace(report, others=(*report.others, *more)) if more else report
        return self._counted(study if findings or impression or others.get("last_paragraph") else "", report)

    def _counted(self, study: str, report: Report) -> Report:
        if study and study not in self._seen:
            self._seen.add(study)
            said = bool(report_text(report.findings, report.impression))
            self._counts["blank" if not said else "cut into sections" if report.is_cut else "whole"] += 1
            self._left_out.update({name for name, _ in report.others})
        return report

    def facts(self) -> dict[str, object]:
        """How many reports were cut, whole or blank, and of how many reports which sections were left out.

        A heading that no list knows and that one report alone has is not named: it may be a name.
        """
        named = {n: c for n, c in self._left_out.items() if c > 1 or n in _KNOWN_NAMES}
        rest = sum(count for name, count in self._left_out.items() if name not in named)
        if rest:
            named[OTHERS] = rest
        order = sorted(named.items(), key=lambda pair: (-pair[1], pair[0]))
        return {"reports": dict(sorted(self._counts.items())), "sections_left_out": dict(order)}


def told(facts: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a build's summary that tell of `Reader.facts`."""
    counts, left_out = facts.get("reports", {}), facts.get("sections_left_out", {})
    if counts:
        yield "reports: " + ", ".join(f"{count} {what}" for what, count in counts.items())
    if left_out:
        shown = list(left_out.items())[:20]
        more = f", and {len(left_out) - 20} others" if len(left_out) > 20 else ""
        yield "sections left out, in reports: " + ", ".join(f"{name} {count}" for name, count in shown) + more
