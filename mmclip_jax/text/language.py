"""Checks by their words whether reports are in the language of the lexicon and the cues."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable

from mmclip_jax.errors import UserError
from mmclip_jax.text.entities import lowercase
from mmclip_jax.text.vocabulary import Resources, for_language, languages

__all__ = ["LEAST_COVERED", "LEAST_KNOWN", "Census", "check", "is_covered"]

LEAST_KNOWN = 0.45
"""A build stops where a smaller share of the words of all its reports is known, words of digits aside."""
LEAST_COVERED = 0.9
"""And where a smaller share of its reports is in the language."""
LEAST_KNOWN_OF_ONE = 0.15
"""A single report of which less is known is in another language: names and notes lower the share of an English one."""

_WORD = re.compile(r"[^\W\d_]+")


@dataclasses.dataclass
class Census:
    """What was counted over the reports of a data set.

    covered, foreign: reports in the language and in another; known, words: of all of them. seen: of the foreign ones,
    how many look like which language of the package ("" for none).
    """

    covered: int = 0
    foreign: int = 0
    known: int = 0
    words: int = 0
    seen: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def facts(self, resources: Resources) -> dict[str, object]:
        """As the facts of a data set keep them."""
        return {
            "name": resources.language,
            "reports": self.covered,
            "reports_in_another": self.foreign,
            "known_words": round(self.known / self.words, 3) if self.words else 0.0,
        }


@functools.lru_cache(maxsize=16)
def _vocabulary(resources: Resources) -> frozenset[str]:
    cues = (cue for listed in resources.cues.values() for cue in listed)
    return resources.words.union(*(_WORD.findall(phrase) for each in (resources.terms, cues) for phrase in each))


def _known(words: Iterable[str], resources: Resources) -> int:
    known = _vocabulary(resources)
    return sum(word in known for word in words)


def is_covered(text: str, resources: Resources, census: Census | None = None) -> bool:
    """Whether a report is in the language of `resources`, judged by its words.

    It is not, if another language of the package knows more of its words, or if hardly any is known
    (`LEAST_KNOWN_OF_ONE`). A text without words is covered.

    Args:
      text: the report.
      resources: of `vocabulary.for_language`, or of `vocabulary.default`.
      census: the report is added to it.
    """
    words = _WORD.findall(lowercase(text))
    if not words:
        return True
    known = _known(words, resources)
    covered = known >= LEAST_KNOWN_OF_ONE * len(words)
    rival = ""
    if known < 0.9 * len(words):
        others = [language for language in languages() if language != resources.language]
        best, rival = max(((_known(words, for_language(each)), each) for each in others), default=(0, ""))
        # The languages share words ("pneumothorax", "in"): the other one has to know clearly more.
        if best > known + 0.1 * len(words):
            covered = False
        elif best <= known:
            rival = ""
    if census is not None:
        census.known += known
        census.words += len(words)
        census.covered += covered
        if not covered:
            census.foreign += 1
            census.seen[rival] += 1
    return covered


def check(census: Census, resources: Resources) -> None:
    """Ends a build whose reports are in another language than `--language` says.

    Raises:
      UserError: fewer than `LEAST_COVERED` of the reports are in the language of `resources`.
    """
    total = census.covered + census.foreign
    known = census.known / census.words if census.words else 1.0
    if not total or (census.covered >= LEAST_COVERED * total and known >= LEAST_KNOWN):
        return
    rival, number = max(census.seen.items(), key=lambda each: each[1] if each[0] else 0, default=("", 0))
    if rival and number > total / 2:
        name = for_language(rival).language_name
        looks, remedy = f", {number} look {name}", f"--language {rival} reads {name}"
    else:
        looks, remedy = "", f"--language takes {', '.join(languages())} or a folder with the words of another one"
    name = resources.language_name
    raise UserError(
        f"the reports are not in {name}: of {total} reports {census.foreign} are in another language{looks}, and "
        f"{known:.0%} of all words are known ({name} reports have {LEAST_KNOWN:.0%} or more). What they deny would be "
        f"read as present; {remedy}"
    )
