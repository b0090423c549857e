"""Cleans texts of reports: characters, escapes, markup, placeholders, wrapped lines, items of lists.

What a stored text looks like is said in `reports`, which is the way to use this. All of it takes linear time.
"""

import functools
import html
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from mmclip_jax.text import containers
from mmclip_jax.text.entities import find_terms
from mmclip_jax.text.marks import ANSWER, BULLETS
from mmclip_jax.text.schema import NEW_SENTENCE


def word_set(words: str) -> frozenset[str]:
    """The words of a text, each once."""
    return frozenset(words.split())


# ---------------------------------------------------------------------------------------------------------------------
# Characters: whatever an export writes for a line end, a blank, a bullet or nothing at all

_ANSWER = rf"(?:{ANSWER}|normal|clear|unremarkable)"
# Nothing of this in a text: nothing to decode.
_UNUSUAL = re.compile(r"[^\n -%'-;=-\[\]-{}]")
# A text of these alone, that begins and ends without a blank, needs no cleaning but for what stands in `reports`.
PLAIN = re.compile(r"[A-Za-z0-9(][A-Za-z0-9 ,()'/%.?!+-]*")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_AMPERSANDS = re.compile(r"&(?:amp;|AMP;|#0{0,4}38;|#[xX]0{0,4}26;)+")
_LINE_TAGS = word_set(
    """
    br tr ul ol table tbody thead html body head
    """
)
_PARAGRAPH_TAGS = word_set(
    """
    p div h1 h2 h3 h4 h5 h6 hr pre section
    """
)
_UNSEEN = re.compile(
    r"<!--[^<>]{0,5000}-->|<!doctype[^<>]{0,300}>|<(script|style)\b[^<>]{0,300}>[^<]{0,20000}</\1>", re.IGNORECASE
)
_TAG = re.compile(
    r"</?(br|tr|ul|ol|table|tbody|thead|html|body|head|p|div|h[1-6]|hr|pre|section|li|td|th|b|i|u|s|em|strong|span|font|"
    r"a|sup|sub|center|small|big)(?:\s[^<>]{0,300})?\s?/?>[ \t]{0,8}",
    re.IGNORECASE,
)
# HL7 version 2, chapter 2.7 (formatting and escape sequences); the line ends of programming languages; JSON.
_BACKSLASH = re.compile(
    r"\\\.(?P<format>br|sp|in|ti|fi|nf|ce|sk|BR|SP|IN|TI|FI|NF|CE|SK)[+-]?\d{0,3}\\|"
    r"\\X(?P<hex>(?:[0-9A-Fa-f]{2}){1,64})\\|\\(?P<mark>[EFSTRHN])\\|\\Z[^\\\n]{0,20}\\|"
    r"(?P<line>\\r\\n|\\n|\\r(?![a-z]))|(?P<tab>\\t(?![a-z]))|\\u(?P<code>[0-9A-Fa-f]{4})"
)
_MARKS = {"E": "\\", "F": "|", "S": "^", "T": "&", "R": "\u223c", "H": "", "N": ""}
_EXCEL = re.compile(r"_[xX]([0-9A-Fa-f]{4})_")
# A tilde is HL7's mark between lines, but "about" in front of a number.
_LINE_MARK = re.compile(r"(?<=[^\s(])~|~(?![ ]?\d)|~(?=[ ]?\d{1,2}[.)] )|(?<!\S)\u00b7")
_BULLETS = BULLETS + ("\u25ab\u25cb\u25a0\u25a1\u2043\u2219\u27a2\u27a4\u25ba\u25b6\u2713\u2714\uf0b7\uf0a7")


@functools.cache
def _characters() -> dict[int, str | None]:
    """What single characters are stored as."""
    table: dict[int, str | None] = {}
    for code in (*range(0x20), *range(0x7F, 0x3100), *range(0xD800, 0xE000), *range(0xFE00, 0x10000)):
        kind = unicodedata.category(chr(code))
        if kind == "Zs":
            table[code] = " "
        elif code in (0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029):
            table[code] = "\n"
        elif (kind in ("Cc", "Cf", "Cs") and code not in (0x09, 0x0A, 0x0D)) or code in range(0xFE00, 0xFE10):
            table[code] = None
    table |= dict.fromkeys(map(ord, _BULLETS), "\n- ")
    table |= dict.fromkeys(map(ord, "\u2018\u2019\u201a\u2032\u00b4"), "'") | dict.fromkeys(
        map(ord, "\u201c\u201d\u201e\u2033"), '"'
    )
    table |= dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
    table |= {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFF1A: ":", 0xFF0E: "."}
    return table


def _tag(match: re.Match[str]) -> str:
    name = match[1].lower()
    if name == "li":
        return "\r\n- " if match[0][1] != "/" else "\r"
    if name in _PARAGRAPH_TAGS:
        return "\n\n"
    if name in _LINE_TAGS:
        return "\r"
    return "\t" if name in ("td", "th") else match[0][match[0].rindex(">") + 1 :]


def _backslash(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind == "format":
        return " " if match[kind].lower() == "sp" else "\r"
    if kind == "hex":
        return bytes.fromhex(match[kind]).decode("latin-1")
    if kind == "code":
        return chr(int(match[kind], 16))
    return {"mark": _MARKS.get(match[kind] or "", ""), "line": "\r", "tab": "\t"}.get(kind, "") if kind else ""


def _decoded(text: str) -> str:
    """The text with characters in place of the escapes of HTML, HL7, Excel and programming languages."""
    for _ in range(4):  # one may hide another ("&lt;br&gt;"); each round leaves fewer of them
        before = text
        text = text.translate(_characters())
        if "&" in text:
            text = _ENTITY.sub(lambda match: html.unescape(match[0]), _AMPERSANDS.sub("&", text))
        if "<" in text:
            text = _TAG.sub(_tag, _UNSEEN.sub(" ", text))
        if "\\" in text:
            text = _BACKSLASH.sub(_backslash, text)
        if "_x" in text or "_X" in text:
            text = _EXCEL.sub(lambda match: chr(int(match[1], 16)), text)
        if text == before:
            break
    return text.translate(_characters())


def normalised(text: str) -> str:
    """The text in lines: no escapes, single blanks, no blank at a line's ends, at most one empty line at a place."""
    if _UNUSUAL.search(text) or "_x" in text or "_X" in text:
        text = containers.of_rtf(containers.of_hl7(text))
        if "\u25a1" in text and "\u25a0" in text:  # boxes, one of them filled, are no bullets
            text = text.replace("\u25a1", "\u2610").replace("\u25a0", "\u2612")
        text = _LINE_MARK.sub("\r", unicodedata.normalize("NFC", _decoded(text)))
        text = containers.lines_of_cells(text).replace("|", "\r")
        text = text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n")
    if "-v" in text or "+v" in text or "-V" in text or "+V" in text:
        text = _SIGNED.sub(lambda match: "negative" if match[1] == "-" else "positive", text)
    if "#1" in text:
        text = _HASHED.sub(r"\1. ", text)
    if "a)" in text and "b)" in text and {"a", "b"} <= set(_LETTERED.findall(text)):
        text = _LETTERED.sub("\n- ", text)
    if "**" in text:
        text = _BOLD.sub("", text)
    text = text.strip()
    if not (  # written out: this is most of the time that a clean text takes
        "  " in text or " \n" in text or "\n " in text or "\n\n" in text or "--" in text or "__" in text
        or "==" in text or ".." in text or "##" in text
    ):  # fmt: skip
        return text
    if "\n" not in text:
        return " ".join(text.split())
    lines: list[str] = []
    for line in text.split("\n"):
        line = " ".join(line.split())
        if line and not _WORDLIKE.search(line):  # a ruled line
            line = ""
        if line or (lines and lines[-1]):
            lines.append(line)
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines)


_BOLD = re.compile(r"(?<![^\s])\*\*(?=[^\s*])|(?<=[^\s*])\*\*(?!\*)")  # Markdown's
_SIGNED = re.compile(r"(?<![^\s(\[:])([-+])ve\b", re.IGNORECASE)
_HASHED = re.compile(r"(?<!\S)#(\d{1,2})[.):]?\s+(?=[A-Z])")  # "#1 No effusion #2 Edema"
_LETTERED = re.compile(r"(?<!\S)\(?([a-h])\)\s+(?=[A-Z])")
_WORDLIKE = re.compile(r"[^\W_]")


# ---------------------------------------------------------------------------------------------------------------------
# Lines and items

_NUMBERED = re.compile(r"\d[.)] ")
_DASH = re.compile(r" [-*] ")
_ANSWERED = re.compile(rf"{_ANSWER}\b[ .]*(?:$|[,;\n]| [-*] )", re.IGNORECASE)
_NUMBER = re.compile(r"(\d{1,2})([.)]) (?=\S)")
_ITEM = re.compile(r"[-*] |\(?\d{1,2}[.)](?: |$)")
_ENDED = re.compile(r"[.!?:;][\"')\]]*\Z")
_FIRST_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
# A line that ends with one of these goes on in the next; a line that begins with one of the second kind goes on from
# the line before.
_OPEN = word_set(
    """
    a an the this that these those of in on at to for from by with without within and or nor but no not any is are
    was were be been has have had may might could can will would should as than which who whose into over under
    near along between above below than most more less very slightly mildly moderately severely left right
    bilateral bibasilar small large mild moderate severe minimal trace tiny new old acute chronic stable focal
    diffuse patchy hazy subtle pleural pulmonary cardiac mediastinal hilar upper lower middle mid lateral medial
    anterior posterior interstitial alveolar possible probable likely likely definite significant evidence sign
    signs increased decreased unchanged dr mr mrs ms st vs versus see per via kein keine keinen ohne der die das
    den dem ein eine und oder mit von im am sans pas de du des le la les un une et ou avec sin con el los las y o
    en
    """
)
_GOING_ON = word_set(
    """
    and or nor but with without which who that than of in on at to for from by as into over under near along
    between above below is are was were be been has have had may might could can cannot will would should not seen
    identified noted present visualized visualised evident demonstrated detected suspected appreciated suggested
    observed found unchanged again since compared due secondary consistent compatible suggestive suggesting
    representing likely probably possibly within versus vs although though however while whereas where when if
    because und oder mit von ist sind im am zu nicht et ou avec sans est sont dans du des y o con sin es son en
    del
    """
)
# Words that begin a statement: behind a finding, without a mark between them, they begin a new one.
_BEGINNING = word_set(
    """
    no there the this these heart lungs lung cardiac cardiomediastinal mediastinum bones osseous stable mild
    moderate small large normal clear left right bilateral minimal trace new status pleura kein keine die der das
    pas aucun sin no
    """
)
_WIDTH = 45


def stored(bodies: Iterable[str]) -> str:
    """The stored text of a section that stands in one or several pieces; see the head of this file."""
    texts = [text for body in bodies if not _is_blank(text := _flowing(body))]
    return "".join(_joined(texts)) if len(texts) > 1 else texts[0] if texts else ""


def _joined(texts: Sequence[str]) -> Iterator[str]:
    """Pieces of a text, whose ends always end a sentence, with what stands between them."""
    yield texts[0]
    for before, text in itertools.pairwise(texts):
        yield _border(before, text)
        yield text


def _border(before: str, text: str) -> str:
    """What is stored where a sentence ends between two lines."""
    if _ITEM.match(text):
        return "\n"
    if _ENDED.search(before[-4:]):
        return " "
    # One line end alone must be a border to whoever reads the text again, this module among them.
    return "\n" if NEW_SENTENCE.match(text) and not _goes_on(before, text, 0) else "\n\n"


def _flowing(body: str) -> str:
    """The text of a section's lines: wrapped lines joined, borders kept, items on lines of their own."""
    if "\n" not in body and not has_items(body):
        return body
    lines = body.split("\n")
    width = max(_WIDTH, *map(len, lines))
    joined: list[list[str]] = []  # lines that are wraps of one line
    before, empty = "", False
    for line in lines:
        if line[:1] in ("", "-", "*") and not _WORDLIKE.search(line):  # empty, or an empty item
            empty = True
        elif joined and not empty and _goes_on(before, line, width) and not _is_bare_answer(joined, line):
            joined[-1].append(line)
            before = line
        elif joined or _WORDLIKE.search(line):
            joined.append([line])
            before, empty = line, False
    texts = [item for each in joined for item in _items(" ".join(each)) if _WORDLIKE.search(item)]
    texts = _denied_lists(texts)
    return "".join(_joined(texts)) if len(texts) > 1 else texts[0] if texts else ""


def _is_bare_answer(joined: Sequence[Sequence[str]], line: str) -> bool:
    """Whether the line before is a "No" of its own below its question: "Pneumothorax", "No", "Effusion", "Yes"."""
    if len(joined) < 2 or len(joined[-1]) != 1 or not line[0].isupper():
        return False
    return joined[-1][0].lower() in ("no", "kein", "sin", "none") and not _ENDED.search(joined[-2][-1][-4:])


_DENIES_LIST = re.compile(
    r"\b(?:no|without|negative for|no evidence (?:of|for)|absence of|free of|kein|keine|ohne|sin|sans|pas de)"
    r"(?: (?:any of )?the following)? ?:?\Z",
    re.IGNORECASE,
)


def _opens_denied_list(text: str) -> bool:
    """Whether a text ends with a denial that has named nothing yet; "Pneumothorax - no" is an answer."""
    if _DENIES_LIST.search(text[-45:]) is None or ":" in text[:-1]:
        return False
    return not any(term.label in ("observation", "device") for _, _, term in find_terms(text))


def _denied_lists(texts: list[str]) -> list[str]:
    """Lists below a denial ("There is no:") as its sentence: the items alone would say the contrary."""
    if not any(map(_opens_denied_list, texts[:-1])):
        return texts
    found: list[str] = []
    items = 0  # of the list that is open
    for number, text in enumerate(texts):
        item = _ITEM.match(text)
        if item and (items > 0 or (number > 0 and _opens_denied_list(texts[number - 1]))):
            said = text[item.end() :].strip()
            found[-1] = f"{found[-1].rstrip(' .,;')}{' or' if items > 0 else ''} {said}".rstrip()
            items += 1
        else:
            found.append(text)
            items = 0
    return found


def _goes_on(before: str, line: str, width: int) -> bool:
    """Whether a line end between these lines is a wrap, not the end of a sentence.

    Args:
      before: the line that may go on.
      line: the next line, not empty.
      width: characters of a line, as far as the text shows it.
    """
    if _ITEM.match(line) or _ENDED.search(before[-4:]):
        return False
    first = _FIRST_WORD.match(line)
    if first is None or before[-1] in ",-/(&+=":  # ") is seen", "left-"
        return True
    word = first[0].lower()
    last = before.rsplit(None, 1)[-1].strip("()[]\"'").lower()
    if last in _OPEN:
        return True
    if line[0].isupper() and NEW_SENTENCE.match(line):
        return False
    if word in _GOING_ON:
        return True
    if line.partition(":")[0].isupper() and ":" in line[:30]:  # a part: "PLEURA: ..."
        return False
    found = find_terms(f"{before[-80:]} {line[:80]}")
    end = min(len(before), 80)
    if any(start < end < stop for start, stop, _ in found):  # "left lower" above "lobe"
        return True
    ending = next((term for start, stop, term in found if start < end <= stop), None)
    if ending is not None and ending.label == "modifier":
        return True
    if ending is not None and ending.label in ("observation", "device"):
        begins = any(start == end + 1 for start, _, _ in found)
        if begins or word in _BEGINNING:
            return False
    return len(before) + 1 + len(first[0]) > width


def has_items(line: str) -> bool:
    """Whether there can be items of a list in a line."""
    return " - " in line or " * " in line or _NUMBERED.search(line) is not None


def _items(line: str) -> Iterator[str]:
    """A line cut before the items of a list that stand within it."""
    if not has_items(line):
        yield line
        return
    begin = 0
    for at in sorted({*_dashes(line), *_numbers(line)}):
        if at > begin:
            yield line[begin:at].strip()
            begin = at
    yield line[begin:].strip()


def _dashes(line: str) -> Iterator[int]:
    """Where items behind a dash begin: " - Effusion"; in small letters only if the line itself is such an item."""
    first = _DASH.search(line)
    is_item = line.startswith(("- ", "* ")) or (first is not None and not _WORDLIKE.search(line[: first.start()]))
    for match in _DASH.finditer(line, 1):
        following = line[match.end() : match.end() + 1]
        if line[match.start() - 1] in ",:;(" or not following:
            continue
        if (following.isupper() or (is_item and following.isalpha())) and not _ANSWERED.match(line, match.end()):
            yield match.start() + 1


def _numbers(line: str) -> Iterator[int]:
    """Where numbered items begin: "1. ... 2. ...", or any "2)" before a capital that closes no bracket."""
    last = brackets = position = 0
    for match in _NUMBER.finditer(line):
        at, number = match.start(), int(match[1])
        opened = line[at - 1 : at] == "("
        at -= opened
        if at > 0 and line[at - 1] != " ":
            continue
        brackets = max(0, brackets + line.count("(", position, at) - line.count(")", position, at))
        position = match.end() if opened or (match[2] == ")" and not brackets) else at
        follows = number == last + 1 and (last > 0 or at == 0)
        closed = match[2] == ")" and not opened and not brackets and line[match.end()].isupper()
        if follows or closed or at == 0:
            last = number
            if at:
                yield at


# ---------------------------------------------------------------------------------------------------------------------
# Placeholders

_NO_WORDS = word_set(
    """
    nan none null na nil xx xxx xxxx xxxxx unk unknown tbd nd missing empty blank pending undefined
    """
)
_NO_PHRASES = frozenset(
    {"not available", "not applicable", "no report", "no text", "no data", "report not available"}
    | {
        f"{subject} {what}".strip()
        for subject in ("", "report", "the report", "result", "results", "findings", "dictation", "report text", "text")
        for what in (
            "pending",
            "to follow",
            "not available",
            "not found",
            "removed",
            "redacted",
            "unavailable",
            "missing",
            "not recorded",
            "not reported",
            "not given",
            "not dictated",
            "not on file",
            "withheld",
            "deleted",
        )
    }
    | {
        "no report available",
        "no report on file",
        "no dictation",
        "no findings recorded",
        "no results",
        "no result",
        "see dictated report",
        "see dictation",
        "see separate report",
        "dictated",
        "redacted",
        "test",
        "test report",
        "tbc",
        "unsigned",
        "nat",
        "n",
        "name",
        "ref",
        "value",
        "div",
        "keine angabe",
        "keine angaben",
        "k a",
        "kein befund vorhanden",
        "kein bericht",
        "sin informe",
        "sin datos",
        "no disponible",
        "pas de compte rendu",
        "non disponible",
    }
)
_FIRST_OF_NOTHING = _NO_WORDS | {"n"}
_PHRASES_BEGIN = frozenset({words[:7] for words in _NO_PHRASES})
_NOT_AVAILABLE = re.compile(r"\bn\s?[/.]\s?a\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")


def begins_like_nothing(text: str) -> bool:
    """Whether a text may be a placeholder, as far as its first words show; True if it has none."""
    first = _WORD.search(text)
    if first is None or first[0].lower() in _FIRST_OF_NOTHING:
        return True
    return len(text) < 40 and (len(text) < 8 or text[first.start() :][:7].lower() in _PHRASES_BEGIN)


def _is_blank(text: str) -> bool:
    """Whether a text says nothing: no word, or only a placeholder ("nan nan", "XXXX", "N/A", "[]")."""
    if not begins_like_nothing(text):
        return False
    words = _WORD.finditer(_NOT_AVAILABLE.sub("", text) if len(text) < 60 else text)
    if all(match[0].lower() in _NO_WORDS for match in words):
        return True
    return len(text) < 40 and phrase(text) in _NO_PHRASES


def phrase(text: str) -> str:
    """The words of a text in small letters, one blank apart, without numbers and marks."""
    return " ".join(_WORD.findall(text.lower()))
