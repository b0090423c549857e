r"""Texts that come within something else: cells of a template's table, RTF, whole HL7 messages.

A template exported with tabs, "|" or table cells ("Pneumothorax<TAB>No<TAB>Effusion<TAB>Yes") is written as lines
"Pneumothorax: No" and "Effusion: Yes", which every recogniser reads alike. All of it takes linear time.
"""

import re
from collections.abc import Iterator, Sequence

from mmclip_jax.text.marks import ANSWER

# ---------------------------------------------------------------------------------------------------------------------
# Cells

_ANSWER = re.compile(
    rf"(?:{ANSWER}|pos|true|false|unlikely|"
    r"(?:none|not|nothing) (?:seen|present|identified|visible|noted|found|detected|evident)|no evidence|n/a|[-+01yn]|"
    r"[-+]ve|keine?[rs]|vorhanden|nicht vorhanden|ausente|absente?)[ .]*",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?:no|without|there|the)\s", re.IGNORECASE)  # begins no name
_CELLS = re.compile(r"[\t|]")
_LINE = re.compile(r"\r\n|[\r\n]")


def lines_of_cells(text: str) -> str:
    """The text with each row of cells that holds answers in lines of its own; other tabs are blanks, "|" stay."""
    if "\t" not in text and "|" not in text:
        return text
    ends = _LINE.findall(text)
    rows = [_row(line) for line in _LINE.split(text)]
    return "".join(row + end for row, end in zip(rows, [*ends, ""], strict=True)).replace("\t", " ")


def _row(line: str) -> str:
    cells = [cell for each in _CELLS.split(line) if (cell := each.strip())]
    answers = [bool(_ANSWER.fullmatch(cell)) for cell in cells]
    names = [cell for cell, is_answer in zip(cells, answers, strict=True) if not is_answer]
    if len(cells) < 2 or not any(answers) or any(map(_SENTENCE.match, names)):
        return line
    return "\r".join(_said(cells, answers, len(cells) % 2 == 0 and not any(answers[::2])))


def _said(cells: Sequence[str], answers: Sequence[bool], paired: bool) -> Iterator[str]:
    """The lines of a row. Answers stand behind their findings, or before them if the row begins with one."""
    if paired:  # an answer of other words too: "Effusion", "small, left"
        yield from (f"{name.rstrip(' :?')}: {said}" for name, said in zip(cells[::2], cells[1::2], strict=True))
    elif answers[0]:
        begin = 0
        for n in range(1, len(cells) + 1):
            if n == len(cells) or answers[n]:
                yield " ".join(cells[begin:n])
                begin = n
    else:
        name = ""
        for cell, is_answer in zip(cells, answers, strict=True):
            if is_answer and name:
                yield f"{name.rstrip(' :?')}: {cell}"
                name = ""
            else:
                if name:
                    yield name
                name = cell
        if name:
            yield name


# ---------------------------------------------------------------------------------------------------------------------
# HL7 messages: a report is in the fifth field of the OBX segments (HL7 version 2, chapter 7)

_SEGMENT = re.compile(r"(?:^|(?<=[\r\n]))OBX\|")


def of_hl7(text: str) -> str:
    """The report within a message; a text that is none as it is."""
    if "OBX|" not in text or not _SEGMENT.search(text):
        return text
    lines = []
    for line in _LINE.split(text):
        fields = line.split("|")
        if fields[0] == "OBX" and len(fields) > 5 and fields[2] in ("TX", "FT", "ST", "ED", ""):
            lines.append(fields[5])
    return "\n".join(lines) if lines else text


# ---------------------------------------------------------------------------------------------------------------------
# RTF (Microsoft's specification 1.9.1)

_RTF = re.compile(
    r"\\(?P<word>[a-zA-Z]{1,32})(?P<number>-?\d{1,10})? ?|\\'(?P<code>[0-9a-fA-F]{2})|\\(?P<mark>[^a-zA-Z])|"
    r"(?P<brace>[{}])|(?P<line>[\r\n]+)|(?P<text>[^\\{}\r\n]+)"
)
_NOT_TEXT = frozenset(
    """
    fonttbl colortbl stylesheet info pict object header headerl headerr headerf footer footerl footerr footerf
    listtable listoverridetable rsidtbl generator themedata latentstyles datastore xmlnstbl fldinst
    """.split()  # noqa: SIM905
)
_LINES = {"par": "\n", "line": "\n", "row": "\n", "sect": "\n\n", "page": "\n", "tab": "\t", "cell": "\t"}
_CHARACTERS = {
    "lquote": "'", "rquote": "'", "ldblquote": '"', "rdblquote": '"', "endash": "-", "emdash": "-", "bullet": "\u2022",
}  # fmt: skip


def of_rtf(text: str) -> str:
    r"""The words of an RTF document ("{\rtf1..."); a text that is none as it is."""
    if not text.lstrip()[:5].startswith("{\\rtf"):
        return text
    hidden = [False]  # of each open group whether it is shown nowhere
    skip = 0  # characters that stand for one which was given as a number already
    found: list[str] = []
    for match in _RTF.finditer(text):
        kind, what = match.lastgroup, match[0]
        if kind == "brace":
            if what == "{":
                hidden.append(hidden[-1])
            elif len(hidden) > 1:
                hidden.pop()
        elif match["word"] is not None:
            word = match["word"]
            if word in _NOT_TEXT:
                hidden[-1] = True
            elif not hidden[-1] and word == "u" and match["number"]:
                found.append(chr(int(match["number"]) % 65536))
                skip = 1
            elif not hidden[-1]:
                found.append(_LINES.get(word) or _CHARACTERS.get(word, ""))
        elif kind == "mark" and what == "\\*":
            hidden[-1] = True
        elif not hidden[-1] and kind in ("code", "mark", "text"):
            shown = bytes.fromhex(match["code"]).decode("cp1252", "ignore") if kind == "code" else what
            if kind == "mark":
                shown = {"~": " ", "_": "-", "-": "", "\n": "\n", "\r": "\n"}.get(match["mark"], match["mark"])
            found.append(shown[skip:])
            skip = 0
    return "".join(found)
