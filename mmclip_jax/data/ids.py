"""One spelling of an id, however a program wrote it: every builder stores ids as `clean_id` gives them.

Patients stay in one split by their ids, so two spellings of one id could leak. Spellings that are surely equal are
stored as one (`clean_id`); likely ones (other zeros in front, other case, full-width digits) are found by `alike`, and
the user decides.

Case is kept: ids that differ only in case are alike, not equal.
"""

import re
import unicodedata
from collections.abc import Iterable

from mmclip_jax.errors import shown

LONGEST = 4096  # characters of an id; those of images are paths

_INVISIBLE = re.compile("[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\x00]")
# Editors and exports write one dash for another; "A_1" beside "A-1" is looked at too.
_DASHES = dict.fromkeys(map(ord, "_\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
_SPACE = re.compile(r"\s+")
_TEXT_FORMULA = re.compile(r'="([^"]*)"')  # how a CSV file keeps a spreadsheet from turning text into a number
_TEXT_MARK = re.compile(r"'(?=[\d=+@-])")  # likewise
_WHOLE = re.compile(r"([+-]?\d+)[.,]0+")
_SCIENTIFIC = re.compile(r"([+-]?)(\d)(?:[.,](\d+))?[eE]\+?(\d{1,4})")
_GROUPED = re.compile(r"\d{1,3}(?:([.,' ])\d{3})(?:\1\d{3})*")
_EXACT = 2**53  # beyond it floating point numbers leave out integers
_PADDING = re.compile(r"(?<!\d)0+(?=\d)")


class BadId(ValueError):
    """Why a cell is no id that can be trusted; the text is shown to the user."""


def clean_id(cell: str) -> str:
    """The id that a cell holds, in the one spelling that is stored; "" for a blank.

    The result is in Unicode's NFC, without white space at its ends, invisible characters or line breaks. What a program
    made of a whole number is undone: "10000032.0", '="10000032"', "1.0000032E7" are 10000032. Zeros in front and case
    are kept.

    Raises:
      BadId: longer than `LONGEST`, digits were lost ("1.0E+07", numbers of more than 15 digits as floats), or it is
        unclear whether a point separates thousands or decimals ("10.000").
    """
    text = _SPACE.sub(" ", unicodedata.normalize("NFC", _INVISIBLE.sub("", cell))).strip()
    if len(text) > LONGEST:
        raise BadId(f"id {shown(text)} has {len(text)} characters: is this the column of ids?")
    if formula := _TEXT_FORMULA.fullmatch(text):
        return clean_id(formula[1])
    text = _TEXT_MARK.sub("", text, count=1) if text.startswith("'") else text
    if not text or not (text[0].isdigit() or text[0] in "+-"):
        return text
    if whole := _WHOLE.fullmatch(text):
        if _GROUPED.fullmatch(text):
            raise BadId(f"id {shown(text)}: the point may separate thousands or decimals. Format the column as text")
        if len(whole[1]) > 17 or abs(int(whole[1])) >= _EXACT:
            raise BadId(
                f"id {shown(text)} was a floating point number and may have lost digits. Format the column as text"
            )
        return whole[1]
    scientific = _SCIENTIFIC.fullmatch(text)
    if scientific and (scientific[3] is not None or "+" in text[1:]):
        sign, first, rest, places = scientific[1], scientific[2], scientific[3] or "", int(scientific[4])
        digits = first + rest.ljust(places, "0")
        if len(rest) < places or rest[places:].strip("0") or int(digits[: places + 1]) >= _EXACT:
            raise BadId(f"id {shown(text)} is in scientific notation and has lost digits. Format the column as text")
        return sign + digits[: places + 1]
    return text


def spelt(cell: str) -> str:
    """`clean_id`, or for an id that cannot be trusted the cell in NFC without white space at its ends."""
    try:
        return clean_id(cell)
    except BadId:
        return unicodedata.normalize("NFC", cell).strip()


def alike_key(id: str) -> str:
    """Equal for ids that may mean the same: without case, kinds of dashes, compatibility forms, padding, commas."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", id).casefold())
    text = _SPACE.sub("", text.translate(_DASHES))
    if _GROUPED.fullmatch(text):
        text = re.sub(r"\D", "", text)
    return _PADDING.sub("", text)


def alike(ids: Iterable[str]) -> list[tuple[str, ...]]:
    """The groups of two or more different ids that may mean the same, each sorted with the fullest spelling first.

    The fullest is the longest (zeros get lost, they do not come), the first in the alphabet among these: it depends on
    the ids alone, not on their order.
    """
    groups: dict[str, set[str]] = {}
    for id in ids:
        groups.setdefault(alike_key(id), set()).add(id)
    found = [tuple(sorted(group, key=lambda id: (-len(id), id))) for group in groups.values() if len(group) > 1]
    return sorted(found)
