"""What a report says of its terms: stated, denied, or only spoken of. One pass over terms, cues and marks.

`judge` walks through the matches of a text from left to right. A denial lasts to the end of its sentence, to a word
that ends it ("but", "there is") or to the clause that a comma splices on ("No pneumothorax, left effusion is
unchanged"). A word behind its terms denies back to the start of their clause. An answer ("Pneumothorax: none",
"effusion (-)") denies the terms before it, a box ("[ ] effusion") those on its other side.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mmclip_jax.text.answers import Reader
from mmclip_jax.text.clauses import ASIDE, DENIED, STATED
from mmclip_jax.text.marks import Role, Sense

__all__ = ["ASIDE", "DENIED", "STATED", "Verdict", "judge"]

_OBSERVATION, _OTHER, _END = int(Role.OBSERVATION), int(Role.OTHER), int(Role.END)


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
    state = Reader(text)
    found, polarity = state.found, state.polarity
    composable: list[int] = []
    handlers = _HANDLERS
    ends = state.ends
    for event in events:
        sense = event[2]
        role = sense[0]  # by its place: a third faster than by its name
        if role > _OTHER:
            if role == _END and state.splice < 0 and not state.asked and not state.denying:
                # `Clauses.end` where it has nothing to settle
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


_Handler = Callable[[Reader, tuple[int, int, Sense]], None]
_BY_ROLE: dict[Role, _Handler] = {
    Role.BEFORE: Reader.before,
    Role.AFTER: Reader.after,
    Role.EITHER: Reader.either,
    Role.NORMAL: Reader.normal,
    Role.PSEUDO: Reader.pseudo,
    Role.TERMINATOR: Reader.terminator,
    Role.CONJUNCTION: Reader.conjunction,
    Role.DISJUNCTION: Reader.disjunction,
    Role.VERB: Reader.verb_,
    Role.PARTICIPLE: Reader.participle,
    Role.REMAINS: Reader.remains,
    Role.ASKED: Reader.asked_for,
    Role.YES: Reader.yes,
    Role.UNKNOWN: Reader.unknown,
    Role.PAST: Reader.past_,
    Role.PAST_VERB: Reader.past_verb,
    Role.COMMA: Reader.comma,
    Role.CLAUSE: Reader.clause,
    Role.END: Reader.end,
    Role.LINE: Reader.line,
    Role.ASK: Reader.ask,
    Role.DASH: Reader.dash,
    Role.NUMBER: Reader.number,
    Role.BOX: Reader.box,
    Role.SIGN: Reader.sign,
    Role.LEADER: Reader.leader,
}
_HANDLERS = [_BY_ROLE.get(role, Reader.pseudo) for role in Role]  # terms have none: `judge` takes them itself
