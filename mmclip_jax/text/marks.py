"""Matches of the search for entities: what each is for the reading of a text, and the marks among them."""

import enum
import re
from typing import NamedTuple


class Role(enum.IntEnum):
    """What a match in the text is. Terms come first: `role <= Role.OTHER` are entities."""

    OBSERVATION = 0
    OTHER = 1
    BEFORE = 2
    AFTER = 3
    EITHER = 4
    NORMAL = 5
    PSEUDO = 6
    TERMINATOR = 7
    CONJUNCTION = 8
    DISJUNCTION = 9
    VERB = 10
    PARTICIPLE = 11
    REMAINS = 12
    ASKED = 13
    YES = 14
    UNKNOWN = 15
    PAST = 16
    PAST_VERB = 17
    COMMA = 18
    CLAUSE = 19
    END = 20
    LINE = 21
    ASK = 22
    DASH = 23
    NUMBER = 24
    BOX = 25
    SIGN = 26
    LEADER = 27


class Sense(NamedTuple):
    """What a match means: its role and, for a term, its entity label, kind, normalised word and which rules apply."""

    role: int
    label: str = ""
    kind: str = ""
    word: str = ""
    composable: bool = False
    affirming: bool = False
    sided: bool = False


BULLETS = "\u2022\u25e6\u25aa\u25cf\u2023"
"""Characters that begin an item of a list and nothing else; some boxes do, too, but also answer."""
OPTION = "none|no|absent|present|yes|nein|ja|oui|non|s[i\u00ed]"
"""The words that stand beside a box as one of its answers; a pattern."""
ANSWER = rf"{OPTION}|nil|negative|neg|positive|keine?"
"""The words that answer alone whether a finding is there, in the languages that reports are read in; a pattern."""
_BOXES = r"\u2610\u2611\u2612\u25a1\u25a0\u25fb\u25fc\u2705\u2713\u2714\u2717\u2718\u274c"
BOX = rf"[\[(][ \t]*[xXvV\u2713\u2714_]?[ \t]*[\])]|[{_BOXES}]"
# Signs as answers one behind the other on a line: "Pneumothorax: - Effusion: +".
_NEXT_SIGN = r"(?=[ \t]+[^\W\d][^:;.\n]{0,40}:[ \t]*[-+01yn](?!\w))"
_ENDS = r"(?=[ \t]*(?:[.,;|)\]\n\r\t]|$))"


def marks_pattern(clause: str) -> str:
    """A regular expression for marks; `sense_of_mark` says what one means.

    It begins with one set of characters, so that a search passes quickly over all others.

    Args:
      clause: a pattern for words that belong to a comma before them, "" for none.
    """
    after = (
        r"(?<=\.)(?!\d)\.*",
        rf"(?<=,)(?:\s+(?:{clause})(?!\w))?" if clause else "(?<=,)",
        rf"(?<=[;!\n\r\v\f\x85\u2028\u2029{BULLETS}\u2026{_BOXES}])",
        rf"(?<=[:?|\t=\u2192])>?(?:[ \t]*(?:\+{{1,4}}|-{{2,3}}|[-\u2013\u2014\u22120\u00d81yn]|n/a){_ENDS}|"
        rf"[ \t]*[-+01yn]{_NEXT_SIGN}|(?<==)[01yn](?=[ \t]))?",
        rf"(?<=-)(?:>(?:[ \t]*[-+01yn]{_ENDS})?|(?=[\s.,;|)]|$))",
        r"(?<=[\u2013\u2014])",
        r"(?<=[(\[])[ \t]*(?:[-\u2013\u2014\u2212+ny]|[xXvV\u2713\u2714_])?[ \t]*[)\]]",
        r"(?<=\+)(?=[ \t]*(?:[.,;|)\]/\n\r\t]|$))",
        r"(?<=\*)(?=\s)",
        r"(?<=\d)\d?\)(?=\s)",
    )
    first = (
        rf"[;!\n\r\v\f\x85\u2028\u2029{BULLETS}\u2026{_BOXES}"
        r",.:?|\t=\u2192\-\u2013\u2014(\[*\d+]"
    )
    return f"{first}(?:{'|'.join(after)})"


_SINGLE = {
    **dict.fromkeys(f".;!{BULLETS}*", Role.END),
    **dict.fromkeys(":?|=\t\u2192\u2026", Role.ASK),
    **dict.fromkeys("\n\r\v\f\x85\u2028\u2029", Role.LINE),
    **dict.fromkeys("\u2610\u2611\u2612\u25a1\u25a0\u25fb\u25fc\u2705\u2713\u2714\u2717\u2718\u274c", Role.BOX),
    **dict.fromkeys("-\u2013\u2014", Role.DASH),
}


def sense_of_mark(mark: str) -> Sense:
    """What a match of `marks_pattern` means, a comma's words aside."""
    if mark == "+":
        return Sense(int(Role.SIGN), word="yes")
    if len(mark) == 1:
        return Sense(int(_SINGLE[mark]))
    if mark[-1] == ")" and mark[:-1].isdigit():
        return Sense(int(Role.NUMBER))
    if mark in ("->", "=>", "\u2192"):
        return Sense(int(Role.ASK))
    if not mark.strip("."):
        return Sense(int(Role.END if len(mark) < 3 else Role.LEADER))
    if re.fullmatch(BOX, mark):
        return Sense(int(Role.BOX))
    if mark.endswith("n/a"):
        return Sense(int(Role.UNKNOWN), word=mark)
    return Sense(int(Role.SIGN), word="no" if re.search(r"[-\u2013\u2014\u22120\u00d8n][ \t]*[)\]]?$", mark) else "yes")
