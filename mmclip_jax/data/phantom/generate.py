"""From a configuration to examples: pure functions that depend on nothing but the configuration."""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np

from mmclip_jax.data.phantom.dice import Dice
from mmclip_jax.data.phantom.findings import DISEASES, KINDS, Finding, Patient, draw_findings, draw_patient
from mmclip_jax.data.phantom.render import render
from mmclip_jax.data.phantom.reports import write_report
from mmclip_jax.data.records import finish_example
from mmclip_jax.data.schema import SPLITS, Example, LabelState
from mmclip_jax.errors import UserError

PAIRED_SOURCE = "phantom-a"
UNPAIRED_SOURCE = "phantom-b"
SOURCES = (PAIRED_SOURCE, UNPAIRED_SOURCE)
# Kinds that the unpaired hospital never labels: they can be learnt from reports alone.
UNLABELLED = ("fibrosis", "hernia")
# A patient has 1.5 studies on average: 4,000 patients are about 6,000 images.
PATIENTS = {
    PAIRED_SOURCE: {"train": 4000, "validation": 270, "test": 800},
    UNPAIRED_SOURCE: {"train": 4000, "validation": 135, "test": 270},
}
# Chance of a view from the front (AP); higher for patients who cannot stand.
_AP = 0.25
_AP_SICK = 0.6


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """What determines a phantom data set.

    seed: non-negative; image_size in pixels; patients: patients per source and split, see `PATIENTS`. A patient's
    studies depend on the seed, its source, split and number only: fewer patients are the same patients, but the first.
    """

    seed: int = 0
    image_size: int = 64
    patients: dict[str, dict[str, int]] = dataclasses.field(default_factory=lambda: scaled_patients(1.0))

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"the phantom's seed is {self.seed}: it must not be negative")
        if not 32 <= self.image_size <= 1024:
            raise UserError(f"the phantom's image_size is {self.image_size}: choose 32 to 1024 pixels")
        for source, splits in self.patients.items():
            if source not in SOURCES or set(splits) - set(SPLITS) or min(splits.values(), default=0) < 0:
                raise UserError(
                    f"the phantom's patients of {source!r} are {splits}: sources are {', '.join(SOURCES)}, splits are "
                    f"{', '.join(SPLITS)}, numbers are not negative"
                )


def scaled_patients(scale: float) -> dict[str, dict[str, int]]:
    """The default numbers of patients times `scale`, at least four of each."""
    if not scale > 0:
        raise UserError(f"the phantom's scale is {scale}: it must be positive")
    return {
        source: {split: max(4, round(number * scale)) for split, number in splits.items()}
        for source, splits in PATIENTS.items()
    }


def generate(config: PhantomConfig, split: str, source: str) -> Iterator[Example]:
    """Yields the examples of one split of one hospital, patient by patient."""
    for number in range(config.patients.get(source, {}).get(split, 0)):
        yield from generate_patient(config, split, source, number)


def generate_patient(config: PhantomConfig, split: str, source: str, number: int) -> Iterator[Example]:
    """Yields the examples of one patient, in order of time."""
    patient = patient_of(config.seed, split, source, number)
    name = f"{source[-1]}-{split}-{number:05d}"
    for study in range(1, patient.studies + 1):
        yield _example(config, patient, name, study, split, source)


def patient_of(seed: int, split: str, source: str, number: int) -> Patient:
    """The patient with this number."""
    return draw_patient((seed, SOURCES.index(source), SPLITS.index(split), number))


def view_of(patient: Patient, study: int, findings: tuple[Finding, ...]) -> str:
    """The view of a study: "PA", or "AP" for most of those who cannot stand."""
    sick = any(finding.kind == "edema" or finding.device == "endotracheal tube" for finding in findings)
    return "AP" if Dice(*patient.key, study, 5).chance(_AP_SICK if sick else _AP) else "PA"


def labels_of(findings: tuple[Finding, ...], source: str) -> dict[str, LabelState]:
    """What a hospital says of a study.

    "no_finding" means no disease; a support device alone is none. The unpaired hospital does not look for `UNLABELLED`
    kinds; where there is nothing else, it leaves "no_finding" unknown too.
    """
    present = {finding.kind for finding in findings}
    diseased = bool(present & set(DISEASES))
    labels = {kind: LabelState.PRESENT if kind in present else LabelState.ABSENT for kind in KINDS}
    labels["no_finding"] = LabelState.ABSENT if diseased else LabelState.PRESENT
    if source == UNPAIRED_SOURCE:
        for kind in UNLABELLED:
            labels[kind] = LabelState.UNKNOWN
        if diseased and not present & (set(DISEASES) - set(UNLABELLED)):
            labels["no_finding"] = LabelState.UNKNOWN
    return {kind: state for kind, state in labels.items() if state != LabelState.UNKNOWN}


def encode_png(pixels: np.ndarray) -> bytes:
    """An 8-bit grey PNG of pixels uint8 [H, W]."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _example(config: PhantomConfig, patient: Patient, name: str, study: int, split: str, source: str) -> Example:
    findings = draw_findings(patient, study)
    pixels, boxes = render(patient, study, findings, source, config.image_size)
    view = view_of(patient, study, findings)
    paired = source == PAIRED_SOURCE
    sections = write_report(patient, study, findings, view) if paired else ("", "")
    return finish_example(
        id=f"{name}-{study}",
        source=source,
        split=split,
        patient=name,
        study=f"{name}-{study}",
        image=encode_png(pixels),
        pixels=pixels,
        findings=sections[0],
        impression=sections[1],
        labels=labels_of(findings, source),
        boxes=boxes if paired else (),
        view=view,
        sex=patient.anatomy.sex,
        age=patient.anatomy.age + 0.5 * (study - 1),
    )
