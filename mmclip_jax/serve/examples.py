"""Images of the phantom to try the page with, drawn when they are asked for."""

import functools

from mmclip_jax.data.phantom.generate import PAIRED_SOURCE, PhantomConfig, generate_patient
from mmclip_jax.data.schema import LabelState
from mmclip_jax.text import prompts

# Patients of the test split, which no training draws, by number, with the study.
_STUDIES = ((29, 1), (16, 2), (25, 1), (28, 1), (9, 1), (12, 1))
_SIDE = 256
COUNT = len(_STUDIES)


@functools.cache
def example(number: int) -> tuple[bytes, str]:
    """(a PNG file, what was drawn into it, in words) of the example `number`, from 0."""
    patient, study = _STUDIES[number]
    drawn = list(generate_patient(PhantomConfig(image_size=_SIDE), "test", PAIRED_SOURCE, patient))[study - 1]
    kinds = [kind for kind, state in drawn.labels.items() if state == LabelState.PRESENT]
    return drawn.image, ", ".join(prompts.display_name(kind) for kind in kinds)
