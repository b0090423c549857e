"""The evaluations, in the order in which they run and stand on the page."""

from typing import Any

from mmclip_jax.evaluate.base import Card, Evaluation, Results
from mmclip_jax.evaluate.evaluations.counterfactual import COUNTERFACTUAL
from mmclip_jax.evaluate.evaluations.entmlm import ENTMLM
from mmclip_jax.evaluate.evaluations.grounding import GROUNDING
from mmclip_jax.evaluate.evaluations.ms_cxr import PHRASES
from mmclip_jax.evaluate.evaluations.operating import OPERATING
from mmclip_jax.evaluate.evaluations.retrieval import RETRIEVAL
from mmclip_jax.evaluate.evaluations.source_probe import SOURCE_PROBE
from mmclip_jax.evaluate.evaluations.studies import STUDIES
from mmclip_jax.evaluate.evaluations.trust import TRUST
from mmclip_jax.evaluate.evaluations.zeroshot import ZERO_SHOT

RESERVED = ("schema", "software", "checkpoint", "data", "exposure", "audit", "headline", "seconds")
"""Keys of results.json that are no evaluation's."""

EVALUATIONS: list[Evaluation[Any]] = [
    ZERO_SHOT,
    OPERATING,
    STUDIES,
    TRUST,
    COUNTERFACTUAL,
    GROUNDING,
    PHRASES,
    ENTMLM,
    RETRIEVAL,
    SOURCE_PROBE,
]


def register(evaluation: Evaluation[Any]) -> None:
    """Adds an evaluation, which then runs after the others.

    Raises:
      ValueError: its name is taken, or it builds on one that is not registered.
    """
    if evaluation.name in (*RESERVED, *(each.name for each in EVALUATIONS)):
        raise ValueError(f"the name {evaluation.name!r} is taken")
    if missing := [other.name for other in evaluation.after if other not in EVALUATIONS]:
        raise ValueError(f"{evaluation.name} builds on {missing[0]}, which is not registered")
    EVALUATIONS.append(evaluation)


def headline(results: Results) -> dict[str, Any]:
    """The few numbers that a script wants first."""
    return {name: value for each in EVALUATIONS for name, value in each.headline(results).items()}


def cards(results: Results) -> list[Card]:
    """The numbers of the page's head."""
    return [card for each in EVALUATIONS for card in each.cards(results)]


def lines(results: Results) -> list[str]:
    """What must be said beside the numbers."""
    return [line for each in EVALUATIONS for line in each.lines(results)]


def limits(results: Results) -> list[str]:
    """What the numbers do not say."""
    return [line for each in EVALUATIONS for line in each.limits(results)]
