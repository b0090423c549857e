"""What a report says of its terms: stated, denied, or only spoken of. One pass over terms, cues and marks.

`judge` walks through the matches of a text from left to right. A denial lasts to the end of its sentence, to a word
that ends it ("but", "there is") or to the clause that a comma splices on ("No pneumothorax, left effusion is
unchanged"). A word behind its terms denies back to the start of their clause. An answer ("Pneumothorax: none",
"effusion (-)") denies the terms before it, a box ("[ ] effusion") those on its other side.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from mmclip_jax.text.marks import BOX, Role, Sense

__all__ = ["ASIDE", "DENIED", "STATED", "Verdict", "judge"]

STATED, DENIED, ASIDE = 0, 1, 2
"""Polarities. ASIDE: spoken of, but neither stated nor denied of today, as in "evaluate for pneumonia"."""


class Verdict(NamedTuple):
    """What `judge` found.

    polarity: of each term. ends: for each sentence or clause how many terms stand before its end. composable: numbers
    of the terms whose kind the anatomy beside them may decide.
    """

    found: list[tuple[int, int, Sense]]
    polarity: list[int]
    ends: list[int]
    composable: list[int]


def judge(text: str, events: Iterable[tuple[int, int, Sense]]) -> Verdict:
    """Of the terms among `events` (matches in the order of the text) what the text says of each."""
    state = _State(text)
    found, polarity = state.found, state.polarity
    composable: list[int] = []
    handlers = _HANDLERS
    ends = state.ends
    for event in events:
        sense = event[2]
        role = sense[0]  # by its place: a third faster than by its name
        if role > _OTHER:
            if role == _END and state.splice < 0 and not state.asked and not state.denying:
                # `_State.end` where it has nothing to settle
                state.first = state.first_normal = number = len(found)
                ends.append(number)
                state.verb = state.joined = state.watching = False
                state.past = 0
            else:
                handlers[role](state, event)
            continue
        if state.watching:
            state.term(sense)
        if sense[4]:
            composable.append(len(found))
        found.append(event)
        polarity.append(state.denying if role == _OBSERVATION else STATED)
    if state.splice >= 0 or state.asked:
        state.settle()
    return Verdict(found, polarity, state.ends, composable)


_OBSERVATION, _OTHER, _END = int(Role.OBSERVATION), int(Role.OTHER), int(Role.END)
_TICKED = re.compile(r"[xXvV\u2713\u2714\u2611\u2612\u25a0\u25fc\u2705]")
_NEXT_ITEM = re.compile(
    r"\s*(?:[\n\r\x85\u2028\u2029]|\(?(?:\d{1,2}|[a-z])[.)]\s|[-*\u2022\u25e6\u25aa\u25cf\u2023\[\u2610-\u2612]|$)"
)
_CAPITAL = re.compile(r"\s*[A-Z\u00c0-\u00de](?:[a-z\u00df-\u00ff]|\s)")
_ANSWER_ENDS = re.compile(r"[ \t]*(?:[.,;|(/)\]!\n\r\t]|$)")
_FOLLOWED_BY_BOX = re.compile(rf"[ \t]*(?:{BOX})")
_GOES_ON = re.compile(r"[\s,\-\u2013\u2014]*(?:or|and|nor|oder|und|ou|et|o|y|ni)\b", re.IGNORECASE)
_BOX_STARTS = frozenset("[(\u2610\u2611\u2612")
_RANGE = re.compile(r"\d\s*[-\u2013\u2014]\s*\d")
_WORD = re.compile(r"\S+")
_NEAR = 20  # characters from a denial to the colon before its list
_SHORT_LINE = 40  # characters; shorter lines are not wrapped, they end where the writer ended them
_PAST = re.compile(
    r"\s+(?:(?:on|in|at|by|from)\s+)?(?:(?:the|a|any|his|her|most|recent|patient's)\s+)*(?:"
    r"prior|previous|previously|earlier|yesterday|last|old|older|comparison|outside|baseline|initial"
    r"|\d{1,2}[./-]\d{1,2}"
    r"|(?:film|study|exam|examination|radiograph|image|x-ray|ct)s?\s+(?:of|from|dated|performed)"
    r"|(?:\d+|one|two|three|a few|several)\s+(?:day|week|month|year)s?\s+(?:ago|before|earlier))(?!\w)",
    re.IGNORECASE,
)


def _qualifies(sense: Sense) -> bool:
    """Whether an observation may be one of several adjectives of the next: "no displaced, acute fractures"."""
    return not sense.kind and sense.word.endswith(("ed", "tortuous"))


class _State:
    """Where the reading of a text stands."""

    __slots__ = (
        "asked",
        "asked_mark",
        "box_mode",
        "closed",
        "commas",
        "cue_end",
        "cue_first",
        "denial_asked",
        "denying",
        "either_or",
        "ends",
        "first",
        "first_normal",
        "found",
        "fresh",
        "joined",
        "line_first",
        "listed",
        "past",
        "polarity",
        "predicate",
        "said",
        "segment",
        "skip_to",
        "splice",
        "text",
        "ticked",
        "verb",
        "watching",
        "weak",
    )

    def __init__(self, text: str):
        self.text = text
        self.found: list[tuple[int, int, Sense]] = []
        self.polarity: list[int] = []
        self.ends: list[int] = []  # for each end of a sentence or clause, how many terms stand before it
        self.denying = STATED  # what the cue before says of the observations that follow
        self.verb = False
        self.cue_end = self.cue_first = 0  # where the last cue before ends, and the first term behind it
        self.first = self.first_normal = 0  # the first term that a cue standing behind its terms may reach
        self.watching = False  # whether `term` must see the next term: joined, fresh or predicate
        self.joined = False  # the last event was a word that joins
        self.either_or = False  # and that word was "or"
        # A comma within a denial opens a segment: an item of a list, or a clause that was spliced on.
        self.fresh = False  # no term in the segment yet
        self.predicate = False  # its verb was the last event
        self.said = False  # the denied terms have had their verb: "no effusion seen"
        self.segment = -1
        self.splice = -1  # the first term behind a comma that begins as what is there does ("small", "stable")
        self.commas = 0
        self.listed = self.closed = False  # "or", "and" in this segment; in an earlier one
        # A question or heading that waits for its answer: its terms are found[asked[0]:asked[1]].
        self.asked: tuple[int, int] | None = None
        self.asked_mark = ""
        self.denial_asked = False  # a denial stood directly behind it
        self.weak = False  # a line without a mark: only a line that is nothing but an answer answers it
        self.past = 0  # 1: an earlier examination is named, 2: its content is told
        self.box_mode = ""
        self.line_first = 0
        self.ticked: bool | None = None
        self.skip_to = 0

    # Terms

    def term(self, sense: Sense) -> None:
        """Looks at a term that follows something which its word may decide."""
        if self.joined:
            self.joined = False
            if sense.affirming and self.past != 2 and not self.either_or:
                self._release(len(self.found))
        if self.fresh:
            self.fresh = False
            if self.splice < 0 and self.denying and (sense.affirming or (sense.sided and self._is_unsided())):
                self.splice = len(self.found)
        elif self.segment >= 0 and not self.listed and self._is_predicate(sense):
            self._affirm(self.segment)
            self._release(self.first)
        if self.predicate:
            self.predicate = False
            if sense.affirming and self.denying and self.segment >= 0:
                self._affirm(self.segment)
                self._release(self.first)
        self.watching = self.segment >= 0

    def _is_unsided(self) -> bool:
        """Whether the denied list names no side: one behind its comma is then of something that is there."""
        return not any(self.found[i][2].sided for i in range(self.cue_first, self.segment))

    def _is_predicate(self, sense: Sense) -> bool:
        """Whether a term says something of the one before, without a verb: "cardiomegaly stable", "heart enlarged"."""
        if len(self.found) <= self.segment:
            return False
        before = self.found[-1][2]
        if sense.affirming:
            return before.role == _OBSERVATION
        return before.label == "anatomy" and sense.role == _OBSERVATION and _qualifies(sense)

    def _release(self, first: int) -> None:
        """Ends the denial of what follows."""
        if self.splice >= 0:
            self._affirm(self.splice)
        self.denying = STATED
        self.first = first
        self.splice = self.segment = -1
        self.commas = 0
        self.listed = self.closed = self.fresh = self.predicate = self.said = False
        self.watching = self.joined

    def _affirm(self, first: int) -> None:
        for i in range(first, len(self.found)):
            self.polarity[i] = STATED

    def _observations(self, first: int, last: int | None = None) -> list[int]:
        found = self.found
        return [i for i in range(first, len(found) if last is None else last) if found[i][2].role == _OBSERVATION]

    # Ends

    def settle(self) -> None:
        """Decides what was left open until the end of the sentence."""
        if self.splice >= 0:
            self._affirm(self.splice)
        if self.asked:
            self._settle_question()

    def _settle_question(self) -> None:
        """A heading takes the denial that stands alone behind it, and that of its own finding named again."""
        assert self.asked is not None
        first, last = self.asked
        since = self._observations(last)
        for i in self._observations(first, last):
            sense = self.found[i][2]
            name = sense.kind or sense.word
            same = [j for j in since if (self.found[j][2].kind or self.found[j][2].word) == name]
            repeated = not self.weak and same and all(self.polarity[j] == DENIED for j in same)
            if repeated or (self.denial_asked and not since):
                self.polarity[i] = DENIED
        self.asked = None
        self.denial_asked = False

    def end(self, _: Any = None) -> None:
        if self.splice >= 0 or self.asked:
            self.settle()
        self.first = self.first_normal = number = len(self.found)
        self.ends.append(number)
        self.verb = self.joined = self.watching = False
        self.past = 0
        if self.denying:
            self._forget()

    def terminator(self, _: Any) -> None:
        if self.asked and self.denial_asked and len(self.found) == self.asked[1]:
            self.asked = None  # "Effusion: no change": the denial was not of the effusion
        asked, self.asked = self.asked, None
        self.end()
        self.asked = asked

    def _forget(self) -> None:
        self.denying = STATED
        self.splice = self.segment = -1
        self.fresh = self.predicate = self.said = False

    def line(self, event: tuple[int, int, Sense]) -> None:
        if not self._breaks(event[0], event[1]):
            return
        waiting, weak = self.asked, self.weak
        self.ask(event)
        self.weak = weak or self.asked != waiting
        self.line_first = len(self.found)
        self.box_mode = ""

    def _breaks(self, start: int, end: int) -> bool:
        """Whether a line break ends the sentence, rather than being where a longer line was wrapped."""
        text = self.text
        if text[start - 1] == "." or _NEXT_ITEM.match(text, end):
            return True
        if self.joined or _GOES_ON.match(text, end):
            return False
        if self.denying and len(self.found) == self.cue_first and not text[self.cue_end : start].strip():
            return False  # "no" at the end of the line
        if _CAPITAL.match(text, end):
            return True
        if text[:start].rstrip().endswith(","):
            return False
        before = text.rfind("\n", 0, start) + 1
        word = _WORD.search(text, end)
        written = len(text[:start].rstrip())
        closes = bool(self.found) and self.found[-1][1] >= written and self.found[-1][2].role == _OBSERVATION
        return closes and start - before + 1 + (len(word.group()) if word else 0) < _SHORT_LINE

    def ask(self, event: tuple[int, int, Sense]) -> None:
        mark = self.text[event[0]]
        if self.asked and self.denial_asked and mark == self.asked_mark and self._observations(self.asked[1]):
            # "Pneumothorax: no Effusion: yes": the denial was the answer, and the next question stands behind it.
            first = self.asked[1]
            self._affirm(first)
            for i in self._observations(*self.asked):
                self.polarity[i] = DENIED
            self.asked, self.denial_asked = None, False
            self.segment = -1
            self.first = first
        self.asked_mark = mark
        question = self._question()
        waiting = self.asked if self.asked and len(self.found) == self.asked[1] and not self.denial_asked else None
        # "Absent: effusion, edema": the colon stands between the denial and what it denies.
        near = mark == ":" and event[0] - self.cue_end <= _NEAR
        carried = self.denying if near and not self._observations(self.cue_first) else STATED
        self.end()
        self.denying = carried
        self.asked = question or waiting
        self.weak = False

    def leader(self, event: tuple[int, int, Sense]) -> None:
        """Dots that lead to an answer; three may also be a pause."""
        self.ask(event)
        self.weak = event[1] - event[0] == 3

    def _question(self) -> tuple[int, int] | None:
        """The observations of the clause that ends here, if nothing denies them yet."""
        first = max(self.first, self.segment)
        if self._observations(first):
            return first, len(self.found)
        return None

    def dash(self, event: tuple[int, int, Sense]) -> None:
        start, end, _ = event
        text = self.text
        apart = start == 0 or text[start - 1].isspace()
        if text[start] == "-" and not apart:
            return
        if apart and _ANSWER_ENDS.match(text, end) and self._targets() and not text[self.found[-1][1] : start].strip():
            self._back(event, DENIED)  # "effusion -"
            self.first = len(self.found)
            return
        if _GOES_ON.match(text, end) or _RANGE.match(text, len(text[:start].rstrip()) - 1):
            return
        self.ask(event)

    def number(self, event: tuple[int, int, Sense]) -> None:
        """The number of a list's item, as in "2) Moderate cardiomegaly"."""
        start = event[0]
        text = self.text
        if start and not text[start - 1].isspace():
            return
        if text.rfind("(", 0, start) <= text.rfind(")", 0, start):
            self.end()

    # Commas and words that join

    def comma(self, _: Any) -> None:
        number = len(self.found)
        self.first_normal = number
        if self.denying and self.said:
            self._release(number)
        elif self.denying and self._has_item():
            self.commas += 1
            self.closed = self.closed or self.listed
            self.listed = False
            self.segment = number
            self.fresh = self.watching = True
        elif self.past:
            self.past = 0
        if self.verb or self._is_described():
            self.verb = False
            self.first = number
        if self.asked and self.denial_asked and not self._observations(self.asked[1]):
            self._settle_question()
            self._release(number)
        elif self.asked and number == self.asked[1]:
            self.asked = None
        self.joined = False

    def _is_described(self) -> bool:
        """Whether the item before a comma ends with what only a present finding has: "effusion small left"."""
        for i in range(len(self.found) - 1, self.first - 1, -1):
            sense = self.found[i][2]
            if sense.role == _OBSERVATION:
                return False
            if sense.affirming:
                return i > self.first and not self.denying
        return False

    def _has_item(self) -> bool:
        """Whether the denial has named an observation yet; an adjective does not count."""
        for i in range(len(self.found) - 1, self.cue_first - 1, -1):
            sense = self.found[i][2]
            if sense.role == _OBSERVATION and not _qualifies(sense):
                return True
        return False

    def clause(self, event: tuple[int, int, Sense]) -> None:
        """A comma with a word that begins a clause: ", the"."""
        self.comma(event)
        self.past = 0
        if self.denying:
            self._release(len(self.found))

    def conjunction(self, _: Any) -> None:
        self.first_normal = len(self.found)
        if self.denying and self.said:
            self._release(self.first_normal)
        if self.verb:
            self.verb = False
            self.first = self.first_normal
        self.joined = self.watching = self.listed = True
        self.fresh = self.either_or = False

    def disjunction(self, event: tuple[int, int, Sense]) -> None:
        self.said = False
        self.conjunction(event)
        self.either_or = True
        self.splice = -1

    def verb_(self, _: Any) -> None:
        self.verb = True
        self.joined = False
        if not self.denying or self.segment < 0:
            return
        if not self.listed and (self.commas == 1 or self.closed) and len(self.found) > self.segment:
            self._affirm(self.segment)
            self._release(self.first)
        else:
            self.predicate = self.watching = True

    def participle(self, event: tuple[int, int, Sense]) -> None:
        finite, self.verb = self.verb, True
        self.joined = False
        if self.denying and len(self.found) > self.cue_first:
            self.said = True
            if finite and _PAST.match(self.text, event[1]):  # "no effusion was present on the prior"
                for i in self._observations(self.cue_first):
                    self.polarity[i] = ASIDE

    def remains(self, event: tuple[int, int, Sense]) -> None:
        if self.denying and self.segment >= 0 and len(self.found) > self.segment:
            self._affirm(self.segment)
            self.splice = -1
        self.terminator(event)
        self.ends.pop()  # no border between an observation and its anatomy: "the aorta remains tortuous"

    # Cues

    def before(self, event: tuple[int, int, Sense]) -> None:
        self.joined = False
        start, end, _ = event
        text = self.text
        if self.ticked is not None:
            ticked, self.ticked = self.ticked, None
            if ticked:
                self._answer(DENIED)
            return
        if text[end : end + 1] != " " or not text[end + 1 : end + 2].isalpha():  # almost always a word follows
            if self._is_answer(start, end):
                self._back(event, DENIED)
                return
            if text[end + 1 : end + 2] in _BOX_STARTS and self._box_behind(end, DENIED):
                return
        if self.splice >= 0:
            self._affirm(self.splice)
            self.splice = -1
        if self.asked and not self.weak and len(self.found) == self.asked[1]:
            self.denial_asked = True
        self.cue_end, self.cue_first = end, len(self.found)
        self.denying = ASIDE if self.past == 2 else DENIED
        self.segment = -1
        self.commas = 0
        self.listed = self.closed = self.fresh = self.predicate = self.watching = self.said = False

    def _is_answer(self, start: int, end: int) -> bool:
        """Whether a word that denies ends its clause, and so speaks of the terms before it ("pneumothorax: no")."""
        match = _ANSWER_ENDS.match(self.text, end)
        if match is None or not self._targets():
            return False
        if match.end() > end and match.group()[-1] in "\n\r":  # else a line that was wrapped behind "no"
            return self.asked is not None or self.found[-1][1] >= len(self.text[:start].rstrip())
        return True

    def asked_for(self, event: tuple[int, int, Sense]) -> None:
        self.before(event)
        if self.denying:
            self.denying = ASIDE

    def after(self, event: tuple[int, int, Sense]) -> None:
        if self.text.startswith(":", event[1]) and not self._targets():
            self.before(event)  # "The following are absent: effusion, edema"
        else:
            self._back(event, DENIED)

    def either(self, event: tuple[int, int, Sense]) -> None:
        if self._targets():
            self._back(event, DENIED)
        else:
            self.before(event)

    def normal(self, event: tuple[int, int, Sense]) -> None:
        self.verb = True
        self.joined = False
        for i in self._observations(self.first_normal):
            self.polarity[i] = DENIED

    def unknown(self, event: tuple[int, int, Sense]) -> None:
        if event[2].word:  # a mark, such as ": n/a"
            self.ask(event)
        if self.asked and len(self.found) == self.asked[1]:
            self._answer(ASIDE)

    def yes(self, event: tuple[int, int, Sense]) -> None:
        self.joined = False
        end = event[1]
        if self.ticked is not None:
            self.ticked = None
            return
        if self.text[end + 1 : end + 2] in _BOX_STARTS and self._box_behind(end, STATED):
            return
        if not _ANSWER_ENDS.match(self.text, end):
            return
        if self.denying:
            self._affirm(self.segment if self.segment >= 0 else len(self.found))
            self._release(len(self.found))
        self.first = self.first_normal = len(self.found)
        self.asked = None

    def sign(self, event: tuple[int, int, Sense]) -> None:
        """An answer in signs: "= 0", "(+)"; before the terms of its line it is a box."""
        if self.text[event[0]] in "([" and (self.box_mode == "front" or len(self.found) == self.line_first):
            self._ahead(event[2].word == "yes")
            return
        if event[2].word == "yes":
            if self.denying and self.segment >= 0:
                self._affirm(self.segment)
            self._release(len(self.found))
            self.first = self.first_normal = len(self.found)
            self.asked = None
        else:
            self._back(event, DENIED)

    def _targets(self) -> list[int]:
        if targets := self._observations(self.first):
            return targets
        if self.asked and len(self.found) == self.asked[1]:
            return self._observations(*self.asked)
        return []

    def _back(self, event: tuple[int, int, Sense], polarity: int) -> None:
        """A denial of what stands before, unless it speaks of an earlier examination."""
        self.verb = True
        self.joined = False
        if _PAST.match(self.text, event[1]):
            return
        self._answer(polarity)

    def _answer(self, polarity: int) -> None:
        for i in self._targets():
            if self.polarity[i] != ASIDE:
                self.polarity[i] = polarity
        self.splice = -1
        self.asked = None
        self.denial_asked = False

    def pseudo(self, _: Any) -> None:
        self.joined = False

    # Boxes

    def box(self, event: tuple[int, int, Sense]) -> None:
        start, end, _ = event
        if start < self.skip_to:
            return
        ticked = bool(_TICKED.search(self.text, start, end))
        if _OPTION.match(self.text, end) and (self.asked or self._targets()):
            if self.asked is None:
                self.ask(event)
            self.ticked = ticked
            return
        if not self.box_mode:
            self.box_mode = "front" if len(self.found) == self.line_first else "back"
        if self.box_mode == "front":
            self._ahead(ticked)
        else:
            if not ticked:
                self._answer(DENIED)
            self.end()

    def _ahead(self, ticked: bool) -> None:
        """A box or sign before its terms."""
        self.end()
        self.box_mode = "front"
        self.denying = STATED if ticked else DENIED

    def _box_behind(self, end: int, polarity: int) -> bool:
        """Whether the answer before `end` is an option with its box behind it ("yes [ ] no [x]")."""
        match = _FOLLOWED_BY_BOX.match(self.text, end)
        if match is None:
            return False
        self.skip_to = match.end()
        if _TICKED.search(self.text, end, match.end()):
            targets = self._targets()
            self._answer(polarity) if polarity else self._affirm(targets[0] if targets else len(self.found))
        return True

    # Earlier examinations

    def past_(self, _: Any) -> None:
        self.joined = False
        self.past = 1

    def past_verb(self, event: tuple[int, int, Sense]) -> None:
        past = self.past
        self.terminator(event)
        if past:
            self.past = 2
            self.denying = ASIDE


_OPTION = re.compile(r"[ \t]*(?:yes|no|none|present|absent|ja|nein|s[i\u00ed]|oui|non)(?!\w)", re.IGNORECASE)
_BY_ROLE = {
    Role.BEFORE: _State.before,
    Role.AFTER: _State.after,
    Role.EITHER: _State.either,
    Role.NORMAL: _State.normal,
    Role.PSEUDO: _State.pseudo,
    Role.TERMINATOR: _State.terminator,
    Role.CONJUNCTION: _State.conjunction,
    Role.DISJUNCTION: _State.disjunction,
    Role.VERB: _State.verb_,
    Role.PARTICIPLE: _State.participle,
    Role.REMAINS: _State.remains,
    Role.ASKED: _State.asked_for,
    Role.YES: _State.yes,
    Role.UNKNOWN: _State.unknown,
    Role.PAST: _State.past_,
    Role.PAST_VERB: _State.past_verb,
    Role.COMMA: _State.comma,
    Role.CLAUSE: _State.clause,
    Role.END: _State.end,
    Role.LINE: _State.line,
    Role.ASK: _State.ask,
    Role.DASH: _State.dash,
    Role.NUMBER: _State.number,
    Role.BOX: _State.box,
    Role.SIGN: _State.sign,
    Role.LEADER: _State.leader,
}
_HANDLERS: list[Any] = [_BY_ROLE.get(role) for role in Role]
