"""How far a denial reaches: sentences and clauses, lists and lines, and the questions that wait for an answer."""

import re

from mmclip_jax.text.marks import BULLETS, Role, Sense

STATED, DENIED, ASIDE = 0, 1, 2
"""Polarities. ASIDE: spoken of, but neither stated nor denied of today, as in "evaluate for pneumonia"."""

_OBSERVATION = int(Role.OBSERVATION)
_NEXT_ITEM = re.compile(rf"\s*(?:[\n\r\x85\u2028\u2029]|\(?(?:\d{{1,2}}|[a-z])[.)]\s|[-*{BULLETS}\[\u2610-\u2612]|$)")
_CAPITAL = re.compile(r"\s*[A-Z\u00c0-\u00de](?:[a-z\u00df-\u00ff]|\s)")
GOES_ON = re.compile(r"[\s,\-\u2013\u2014]*(?:or|and|nor|oder|und|ou|et|o|y|ni)\b", re.IGNORECASE)
_WORD = re.compile(r"\S+")
_NEAR = 20  # characters from a denial to the colon before its list
_SHORT_LINE = 40  # characters; shorter lines are not wrapped, they end where the writer ended them
PAST = re.compile(
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


class Clauses:
    """Where the reading of a text stands: its methods take the events that are no cues."""

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
                self.release(len(self.found))
        if self.fresh:
            self.fresh = False
            if self.splice < 0 and self.denying and (sense.affirming or (sense.sided and self._is_unsided())):
                self.splice = len(self.found)
        elif self.segment >= 0 and not self.listed and self._is_predicate(sense):
            self.affirm(self.segment)
            self.release(self.first)
        if self.predicate:
            self.predicate = False
            if sense.affirming and self.denying and self.segment >= 0:
                self.affirm(self.segment)
                self.release(self.first)
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

    def release(self, first: int) -> None:
        """Ends the denial of what follows."""
        if self.splice >= 0:
            self.affirm(self.splice)
        self.denying = STATED
        self.first = first
        self.splice = self.segment = -1
        self.commas = 0
        self.listed = self.closed = self.fresh = self.predicate = self.said = False
        self.watching = self.joined

    def affirm(self, first: int) -> None:
        """States the terms from one on."""
        for i in range(first, len(self.found)):
            self.polarity[i] = STATED

    def observations(self, first: int, last: int | None = None) -> list[int]:
        """The numbers of the observations among the terms from `first` to `last`."""
        found = self.found
        return [i for i in range(first, len(found) if last is None else last) if found[i][2].role == _OBSERVATION]

    # Ends

    def settle(self) -> None:
        """Decides what was left open until the end of the sentence."""
        if self.splice >= 0:
            self.affirm(self.splice)
        if self.asked:
            self.settle_question()

    def settle_question(self) -> None:
        """A heading takes the denial that stands alone behind it, and that of its own finding named again."""
        assert self.asked is not None
        first, last = self.asked
        since = self.observations(last)
        for i in self.observations(first, last):
            sense = self.found[i][2]
            name = sense.kind or sense.word
            same = [j for j in since if (self.found[j][2].kind or self.found[j][2].word) == name]
            repeated = not self.weak and same and all(self.polarity[j] == DENIED for j in same)
            if repeated or (self.denial_asked and not since):
                self.polarity[i] = DENIED
        self.asked = None
        self.denial_asked = False

    def end(self, _: object = None) -> None:
        """The end of a sentence."""
        if self.splice >= 0 or self.asked:
            self.settle()
        self.first = self.first_normal = number = len(self.found)
        self.ends.append(number)
        self.verb = self.joined = self.watching = False
        self.past = 0
        if self.denying:
            self._forget()

    def terminator(self, _: object) -> None:
        """A word that ends a denial: "but", "there is"."""
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
        """A line break: perhaps the end of a sentence, and of a question."""
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
        if self.joined or GOES_ON.match(text, end):
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
        """A mark behind a heading or a question, such as a colon: what stands before it waits for its answer."""
        mark = self.text[event[0]]
        if self.asked and self.denial_asked and mark == self.asked_mark and self.observations(self.asked[1]):
            # "Pneumothorax: no Effusion: yes": the denial was the answer, and the next question stands behind it.
            first = self.asked[1]
            self.affirm(first)
            for i in self.observations(*self.asked):
                self.polarity[i] = DENIED
            self.asked, self.denial_asked = None, False
            self.segment = -1
            self.first = first
        self.asked_mark = mark
        question = self.question()
        waiting = self.asked if self.asked and len(self.found) == self.asked[1] and not self.denial_asked else None
        # "Absent: effusion, edema": the colon stands between the denial and what it denies.
        near = mark == ":" and event[0] - self.cue_end <= _NEAR
        carried = self.denying if near and not self.observations(self.cue_first) else STATED
        self.end()
        self.denying = carried
        self.asked = question or waiting
        self.weak = False

    def question(self) -> tuple[int, int] | None:
        """The observations of the clause that ends here, if nothing denies them yet."""
        first = max(self.first, self.segment)
        if self.observations(first):
            return first, len(self.found)
        return None

    def number(self, event: tuple[int, int, Sense]) -> None:
        """The number of a list's item, as in "2) Moderate cardiomegaly"."""
        start = event[0]
        text = self.text
        if start and not text[start - 1].isspace():
            return
        if text.rfind("(", 0, start) <= text.rfind(")", 0, start):
            self.end()

    # Commas and words that join

    def comma(self, _: object) -> None:
        """A comma: the next item of a list, or a clause that is spliced on."""
        number = len(self.found)
        self.first_normal = number
        if self.denying and self.said:
            self.release(number)
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
        if self.asked and self.denial_asked and not self.observations(self.asked[1]):
            self.settle_question()
            self.release(number)
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
            self.release(len(self.found))

    def conjunction(self, _: object) -> None:
        """A word that joins: "and"."""
        self.first_normal = len(self.found)
        if self.denying and self.said:
            self.release(self.first_normal)
        if self.verb:
            self.verb = False
            self.first = self.first_normal
        self.joined = self.watching = self.listed = True
        self.fresh = self.either_or = False

    def disjunction(self, event: tuple[int, int, Sense]) -> None:
        """A word that joins alternatives: "or"."""
        self.said = False
        self.conjunction(event)
        self.either_or = True
        self.splice = -1

    def verb_(self, _: object) -> None:
        """A verb of the clause."""
        self.verb = True
        self.joined = False
        if not self.denying or self.segment < 0:
            return
        if not self.listed and (self.commas == 1 or self.closed) and len(self.found) > self.segment:
            self.affirm(self.segment)
            self.release(self.first)
        else:
            self.predicate = self.watching = True

    def participle(self, event: tuple[int, int, Sense]) -> None:
        """A participle or adjective that closes a clause: "seen", "present"."""
        finite, self.verb = self.verb, True
        self.joined = False
        if self.denying and len(self.found) > self.cue_first:
            self.said = True
            if finite and PAST.match(self.text, event[1]):  # "no effusion was present on the prior"
                for i in self.observations(self.cue_first):
                    self.polarity[i] = ASIDE

    def remains(self, event: tuple[int, int, Sense]) -> None:
        """A verb that states what it follows: "remains"."""
        if self.denying and self.segment >= 0 and len(self.found) > self.segment:
            self.affirm(self.segment)
            self.splice = -1
        self.terminator(event)
        self.ends.pop()  # no border between an observation and its anatomy: "the aorta remains tortuous"
