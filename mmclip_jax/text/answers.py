"""What cues, answers and boxes say of the terms before and behind them."""

import re

from mmclip_jax.text.clauses import ASIDE, DENIED, GOES_ON, PAST, STATED, Clauses
from mmclip_jax.text.marks import BOX, OPTION, Sense

_TICKED = re.compile(r"[xXvV\u2713\u2714\u2611\u2612\u25a0\u25fc\u2705]")
_OPTION = re.compile(rf"[ \t]*(?:{OPTION})(?!\w)", re.IGNORECASE)
_ANSWER_ENDS = re.compile(r"[ \t]*(?:[.,;|(/)\]!\n\r\t]|$)")
_FOLLOWED_BY_BOX = re.compile(rf"[ \t]*(?:{BOX})")
_BOX_STARTS = frozenset("[(\u2610\u2611\u2612")
_RANGE = re.compile(r"\d\s*[-\u2013\u2014]\s*\d")


class Reader(Clauses):
    """Reads a text from left to right: its methods take the events that `Clauses` does not."""

    __slots__ = ()

    # Cues

    def before(self, event: tuple[int, int, Sense]) -> None:
        """A word that denies what follows: "no", "without"."""
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
            self.affirm(self.splice)
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
        """A word that asks for what follows: "evaluate for"."""
        self.before(event)
        if self.denying:
            self.denying = ASIDE

    def after(self, event: tuple[int, int, Sense]) -> None:
        """A word that denies what stands before it: "is absent"."""
        if self.text.startswith(":", event[1]) and not self._targets():
            self.before(event)  # "The following are absent: effusion, edema"
        else:
            self._back(event, DENIED)

    def either(self, event: tuple[int, int, Sense]) -> None:
        """A word that denies what stands before it, or else what follows: "absent"."""
        if self._targets():
            self._back(event, DENIED)
        else:
            self.before(event)

    def normal(self, event: tuple[int, int, Sense]) -> None:
        """A word that denies the observations of its clause and leaves the sentence open: "is normal"."""
        self.verb = True
        self.joined = False
        for i in self.observations(self.first_normal):
            self.polarity[i] = DENIED

    def unknown(self, event: tuple[int, int, Sense]) -> None:
        """An answer that says nothing: "n/a"."""
        if event[2].word:  # a mark, such as ": n/a"
            self.ask(event)
        if self.asked and len(self.found) == self.asked[1]:
            self._answer(ASIDE)

    def yes(self, event: tuple[int, int, Sense]) -> None:
        """An answer that states what stands before it: "yes"."""
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
            self.affirm(self.segment if self.segment >= 0 else len(self.found))
            self.release(len(self.found))
        self.first = self.first_normal = len(self.found)
        self.asked = None

    def sign(self, event: tuple[int, int, Sense]) -> None:
        """An answer in signs: "= 0", "(+)"; before the terms of its line it is a box."""
        if self.text[event[0]] in "([" and (self.box_mode == "front" or len(self.found) == self.line_first):
            self._ahead(event[2].word == "yes")
            return
        if event[2].word == "yes":
            if self.denying and self.segment >= 0:
                self.affirm(self.segment)
            self.release(len(self.found))
            self.first = self.first_normal = len(self.found)
            self.asked = None
        else:
            self._back(event, DENIED)

    def leader(self, event: tuple[int, int, Sense]) -> None:
        """Dots that lead to an answer; three may also be a pause."""
        self.ask(event)
        self.weak = event[1] - event[0] == 3

    def dash(self, event: tuple[int, int, Sense]) -> None:
        """A dash: an answer ("effusion -"), a pause, or part of a word or a range."""
        start, end, _ = event
        text = self.text
        apart = start == 0 or text[start - 1].isspace()
        if text[start] == "-" and not apart:
            return
        if apart and _ANSWER_ENDS.match(text, end) and self._targets() and not text[self.found[-1][1] : start].strip():
            self._back(event, DENIED)  # "effusion -"
            self.first = len(self.found)
            return
        if GOES_ON.match(text, end) or _RANGE.match(text, len(text[:start].rstrip()) - 1):
            return
        self.ask(event)

    def _targets(self) -> list[int]:
        if targets := self.observations(self.first):
            return targets
        if self.asked and len(self.found) == self.asked[1]:
            return self.observations(*self.asked)
        return []

    def _back(self, event: tuple[int, int, Sense], polarity: int) -> None:
        """A denial of what stands before, unless it speaks of an earlier examination."""
        self.verb = True
        self.joined = False
        if PAST.match(self.text, event[1]):
            return
        self._answer(polarity)

    def _answer(self, polarity: int) -> None:
        for i in self._targets():
            if self.polarity[i] != ASIDE:
                self.polarity[i] = polarity
        self.splice = -1
        self.asked = None
        self.denial_asked = False

    def pseudo(self, _: object) -> None:
        """Words that look like a cue and are none: "no change"."""
        self.joined = False

    # Boxes

    def box(self, event: tuple[int, int, Sense]) -> None:
        """A box, ticked or not, before or behind its terms, or with an option."""
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
            self._answer(polarity) if polarity else self.affirm(targets[0] if targets else len(self.found))
        return True

    # Earlier examinations

    def past_(self, _: object) -> None:
        """Words that name an earlier examination: "on the prior"."""
        self.joined = False
        self.past = 1

    def past_verb(self, event: tuple[int, int, Sense]) -> None:
        """A verb that tells of an earlier examination, where one is named: "showed"."""
        past = self.past
        self.terminator(event)
        if past:
            self.past = 2
            self.denying = ASIDE
