"""What labels mean: lists of strings, uncertain ones, and "no finding" beside a disease.

Devices alone are no disease: they never contradict "no finding", and a list that holds nothing else leaves it open.
"""

import enum
from collections.abc import Iterable, Mapping

from mmclip_jax.data.builders.cells import BadRow
from mmclip_jax.data.schema import LabelState
from mmclip_jax.text import prompts
from mmclip_jax.text.vocabulary import NO_FINDING

CHESTXRAY14 = frozenset({
    NO_FINDING, "atelectasis", "cardiomegaly", "consolidation", "edema", "emphysema", "fibrosis", "hernia",
    "infiltration", "mass", "nodule", "pleural_effusion", "pleural_thickening", "pneumonia", "pneumothorax",
})  # fmt: skip
"""A benchmark's classes, each absent wherever it is not listed: the published figures rest on that."""


UNCERTAIN_POLICIES = ("keep", "ones", "zeros", "mixed", "ignore")
_MIXED_ONES = frozenset({"atelectasis", "edema", "pleural_effusion"})


class Beside(enum.Enum):
    """What "no finding" beside a disease means, in what is said of one image."""

    BELIEVE = "the disease is believed, and the other label left out"
    KEEP = "both labels are stored; what is drawn from the record believes the disease"
    REFUSE = "the row is refused"
    NEVER = "the source's labels cannot say both"


def settle_no_finding(present: Iterable[str], policy: Beside) -> set[str]:
    """The kinds that an image is said to show, without the contradiction of "no finding" and a disease.

    Args:
      present: kinds that are said to be there.
      policy: what is done about a contradiction.

    Raises:
      BadRow: there is one, and the policy is to refuse such rows.
      ValueError: there is one where none can be.
    """
    kinds = set(present)
    diseases = prompts.beside_no_finding(kinds)
    if not diseases or policy is Beside.KEEP:
        return kinds
    said = f"labelled as no finding and as {', '.join(diseases)}"
    if policy is Beside.REFUSE:
        raise BadRow(said)
    if policy is Beside.NEVER:
        raise ValueError(said)
    return kinds - {NO_FINDING}


def without_contradiction(labels: Mapping[str, LabelState], policy: Beside) -> dict[str, LabelState]:
    """Labels of which those that are present are settled by `settle_no_finding`, which may raise."""
    kept = settle_no_finding((kind for kind, state in labels.items() if state == LabelState.PRESENT), policy)
    return {kind: state for kind, state in labels.items() if state != LabelState.PRESENT or kind in kept}


def settle_uncertain(labels: Mapping[str, LabelState], policy: str) -> dict[str, LabelState]:
    """Labels with the uncertain ones made present, absent or unknown; `policy` is one of `UNCERTAIN_POLICIES`.

    "mixed" is the common policy for CheXpert: present for atelectasis, edema and effusion, absent for cardiomegaly and
    consolidation (and all others).
    """
    settled: dict[str, LabelState] = {}
    for kind, state in labels.items():
        if state != LabelState.UNCERTAIN or policy == "keep":
            settled[kind] = state
        elif policy == "ones" or (policy == "mixed" and kind in _MIXED_ONES):
            settled[kind] = LabelState.PRESENT
        elif policy in ("zeros", "mixed"):
            settled[kind] = LabelState.ABSENT
    return settled


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
