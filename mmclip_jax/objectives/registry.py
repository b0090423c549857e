"""The objectives that a run can have."""

from ml_collections import ConfigDict

from mmclip_jax.errors import UserError, nearest
from mmclip_jax.objectives.attmim import AttMIM
from mmclip_jax.objectives.base import Objective
from mmclip_jax.objectives.contrastive import Contrastive
from mmclip_jax.objectives.entmlm import EntMLM
from mmclip_jax.objectives.hard_negatives import HardNegatives
from mmclip_jax.objectives.local import Local
from mmclip_jax.ranges import Range

# In the order in which the losses are summed.
OBJECTIVES: dict[str, Objective] = {
    each.name: each for each in (Contrastive(), AttMIM(), EntMLM(), Local(), HardNegatives())
}


def register(objective: Objective) -> None:
    """Adds an objective; runs whose config has its block and gives it a weight train with it.

    Raises:
      ValueError: there is another one of that name.
    """
    if not isinstance(OBJECTIVES.get(objective.name, objective), type(objective)):
        raise ValueError(f"there is another objective {objective.name!r}")
    OBJECTIVES[objective.name] = objective


def active(config: ConfigDict) -> tuple[Objective, ...]:
    """The objectives of a run: those whose weight is not 0."""
    return tuple(objective for objective in OBJECTIVES.values() if objective.weight(config))


def ranges() -> dict[str, Range]:
    """The range of every setting of every objective, by dotted name."""
    return {
        f"objective.{objective.name}.{setting}": allowed
        for objective in OBJECTIVES.values()
        for setting, allowed in objective.ranges.items()
    }


def check(config: ConfigDict) -> None:
    """Refuses blocks that no objective has, and what the objectives refuse.

    Raises:
      UserError: naming the setting and the remedy.
    """
    for name in config.objective:
        if name not in OBJECTIVES:
            raise UserError(f"objective.{name}: there is no such objective{nearest(name, OBJECTIVES)}")
        OBJECTIVES[name].check(config)
    if not active(config):
        raise UserError("no objective has a weight: there is nothing to learn from")
