"""Which findings a study has, where and how severe: the plan that the drawing and the report both follow.

This file fixes the phantom's difficulty together with `lesions` and `render`; docs/data.md states it. Long-standing
findings belong to the patient and stay from study to study, acute ones come and go.
"""

import dataclasses
import functools

from mmclip_jax.data.phantom.anatomy import SIDES, Anatomy, draw_anatomy
from mmclip_jax.data.phantom.dice import Dice

# Chance of each finding in a patient (chronic) or a study (acute) that is not healthy, before rules of anatomy.
CHRONIC = {
    "cardiomegaly": 0.23,
    "hernia": 0.15,
    "support_device": 0.17,
    "mass": 0.15,
    "nodule": 0.19,
    "fibrosis": 0.17,
}
ACUTE = {
    "pleural_effusion": 0.26,
    "pneumothorax": 0.19,
    "edema": 0.17,
    "consolidation": 0.25,
    "atelectasis": 0.23,
}
DISEASES = tuple(sorted((set(CHRONIC) | set(ACUTE)) - {"support_device"}))
KINDS = tuple(sorted(set(CHRONIC) | set(ACUTE)))
HEALTHY_PATIENT = 0.20  # patients who never have a finding other than a device
QUIET_STUDY = 0.12  # studies without acute findings
SEVERITY = (0.4, 0.8)  # mild below, severe from the second on; severities are uniform in 0..1
BILATERAL = {"pleural_effusion": 0.25, "edema": 1.0, "fibrosis": 0.35}
LUNG_ZONES = tuple((side, zone) for side in SIDES for zone in ("upper", "middle", "lower"))
DEVICES = ("pacemaker", "endotracheal tube", "central venous catheter")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding of one study.

    zone: "upper", "middle" or "lower" third of the lung; "" where that says nothing. severity: 0..1.
    key: seed of everything else about its shape, the same in all studies for a long-standing finding.
    device: which, for a support device.
    """

    kind: str
    severity: float
    key: tuple[int, ...]
    sides: tuple[str, ...] = ()
    zone: str = ""
    device: str = ""

    @property
    def grade(self) -> str:
        """The severity as a word: "mild", "moderate" or "severe"."""
        return ("mild", "moderate", "severe")[sum(self.severity >= limit for limit in SEVERITY)]


@dataclasses.dataclass(frozen=True)
class Patient:
    """A patient: the key that all its randomness comes from, anatomy, number of studies, long-standing findings."""

    key: tuple[int, ...]
    anatomy: Anatomy
    studies: int
    healthy: bool
    chronic: tuple[Finding, ...]


# A patient's studies follow each other, so one place is enough; a few more serve threads.
@functools.lru_cache(maxsize=16)
def draw_patient(key: tuple[int, ...]) -> Patient:
    """Draws the patient that `key` (seed, source, split, number) stands for."""
    dice = Dice(*key, 0)
    anatomy = draw_anatomy(dice)
    studies = 1 + dice.chance(0.36) + dice.chance(0.14)
    healthy = dice.chance(HEALTHY_PATIENT)
    free = set(LUNG_ZONES)
    found = [
        _place(kind, dice, free, (*key, 0, number))
        for number, (kind, chance) in enumerate(CHRONIC.items(), start=1)
        if dice.chance(chance) and (kind == "support_device" or not healthy)
    ]
    return Patient(key, anatomy, studies, healthy, tuple(finding for finding in found if finding))


def draw_findings(patient: Patient, study: int) -> tuple[Finding, ...]:
    """The findings of the patient's study number `study` (from 1), long-standing ones first."""
    dice = Dice(*patient.key, study)
    free = set(LUNG_ZONES)
    for finding in patient.chronic:
        free -= {(side, finding.zone) for side in finding.sides}
    # What is there already changes a little.
    found = [
        dataclasses.replace(finding, severity=min(1.0, max(0.0, finding.severity + dice.uniform(-0.06, 0.06))))
        for finding in patient.chronic
    ]
    if not patient.healthy and not dice.chance(QUIET_STUDY):
        present = {finding.kind for finding in found}
        for number, (kind, chance) in enumerate(ACUTE.items(), start=1):
            if kind == "edema" and "cardiomegaly" in present:
                chance *= 2.0
            if kind == "atelectasis" and "pleural_effusion" in present:
                chance *= 1.5
            if dice.chance(chance):
                placed = _place(kind, dice, free, (*patient.key, study, number))
                if placed:
                    found.append(placed)
                    present.add(kind)
    return tuple(found)


def _place(kind: str, dice: Dice, free: set[tuple[str, str]], key: tuple[int, ...]) -> Finding | None:
    """Finds room for a finding and takes its zones out of `free`; None where there is no room."""
    severity = dice.random()
    if kind in ("cardiomegaly", "hernia"):
        return Finding(kind, severity, key)
    if kind == "support_device":
        return Finding(kind, severity, key, device=dice.choice(DEVICES))
    if kind == "edema":
        return Finding(kind, severity, key, SIDES)
    zones = {"pleural_effusion": ("lower",), "pneumothorax": ("upper",), "atelectasis": ("lower", "middle")}.get(
        kind, ("upper", "lower") if kind == "fibrosis" else ("upper", "middle", "lower")
    )
    both = dice.chance(BILATERAL.get(kind, 0.0))
    places = [
        (sides, zone)
        for zone in zones
        for sides in ([SIDES] if both else [(side,) for side in SIDES])
        if all((side, zone) in free for side in sides)
    ]
    if not places:
        return None
    sides, zone = dice.choice(places)
    taken = {zone}
    if kind == "pleural_effusion" and severity >= SEVERITY[0]:
        taken.add("middle")
        if any((side, "middle") not in free for side in sides):
            severity *= SEVERITY[0]
    if kind == "pneumothorax":
        taken.add("middle")
        if any((side, "middle") not in free for side in sides):
            severity *= SEVERITY[0]
    free -= {(side, zone) for side in sides for zone in taken}
    return Finding(kind, severity, key, sides, zone)
