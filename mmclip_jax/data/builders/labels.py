"""What a list of label strings says of all the findings that its source looks for."""

from collections.abc import Iterable

from mmclip_jax.data.schema import LabelState
from mmclip_jax.text import prompts
from mmclip_jax.text.vocabulary import NO_FINDING

CHESTXRAY14 = frozenset({
    NO_FINDING, "atelectasis", "cardiomegaly", "consolidation", "edema", "emphysema", "fibrosis", "hernia",
    "infiltration", "mass", "nodule", "pleural_effusion", "pleural_thickening", "pneumonia", "pneumothorax",
})  # fmt: skip
"""A benchmark's classes, each absent wherever it is not listed: the published figures rest on that."""


def listed_labels(present: Iterable[str], universe: Iterable[str], labels: Iterable[str] = ()) -> dict[str, LabelState]:
    """Labels of an image whose annotators looked for every kind of `universe` and listed what is there.

    A broader kind of one that is listed is present. What is not listed is absent, except what the list leaves open (see
    `prompts.left_open`): all but the broader kinds is absent where the universe holds classes of ChestX-ray14 alone.
    "No finding" is open where only devices are listed.

    Args:
      present: the kinds of the list.
      universe: the kinds that the source's strings can deny, see `prompts.denied_by`.
      labels: the list's strings, those without a kind included: some of them leave kinds open.
    """
    present, universe = set(present), set(universe)
    shown = present | (prompts.implied(present) & universe)
    spared = {wider for kind in present for wider in prompts.ancestors(kind)}
    if not universe <= CHESTXRAY14:
        spared |= prompts.left_open(present, labels)
    if all(kind != NO_FINDING and prompts.is_device(kind) for kind in present):
        spared.add(NO_FINDING)
    found = dict.fromkeys(sorted(shown), LabelState.PRESENT)
    return found | dict.fromkeys(sorted(universe - shown - spared), LabelState.ABSENT)
