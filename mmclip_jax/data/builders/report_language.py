"""Finds reports in another language than that of the build, before any image is read."""

import dataclasses
from collections.abc import Sequence

from mmclip_jax.data.builders.items import Item, Reject
from mmclip_jax.text import language
from mmclip_jax.text.schema import report_text
from mmclip_jax.text.vocabulary import for_language

REPORT_LEFT_OUT = "report left out"


def without_other_languages(items: Sequence[Item], named: str) -> tuple[list[Item], list[Reject], dict[str, object]]:
    """Leaves out the reports in another language; their images stay.

    Args:
      items: with their reports.
      named: the language, as `vocabulary.for_language` takes it.

    Returns:
      The items; of each report that was left out, why; what the facts say.

    Raises:
      UserError: hardly any report is in the language, or there are no words for it.
    """
    words = for_language(named)
    census = language.Census()
    covered: dict[tuple[str, str], bool] = {}
    kept, rejects = [], []
    for item in items:
        text = report_text(item.findings, item.impression)
        if text:
            key = (item.study or item.id, text)  # a report of several images counts once
            if key not in covered:
                covered[key] = language.is_covered(text, words, census)
            if not covered[key]:
                reason = f"the report is not in {words.language_name}, as far as its words tell"
                rejects.append(Reject(item.table, item.row, item.id, reason, REPORT_LEFT_OUT))
                item = dataclasses.replace(item, findings="", impression="")
        kept.append(item)
    language.check(census, words)
    return kept, rejects, census.facts(words) if covered else {}
