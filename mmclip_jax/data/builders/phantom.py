"""The chest phantom as a data set: everything is drawn, nothing is read."""

import concurrent.futures
import functools
import multiprocessing
import os
from collections.abc import Iterator, Mapping

from mmclip_jax.data.phantom.generate import (
    SOURCES,
    PhantomConfig,
    generate_patient,
    patient_of,
)
from mmclip_jax.data.records import RecordsBuilder
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import UserError

_CHUNK = 50  # patients that a worker process draws at a time


class Phantom(RecordsBuilder):
    """Builds the chest phantom described in docs/data.md; the result depends on `config` only.

    Args:
      data_dir: where data sets are kept.
      config: what to draw; default: everything at its default.
      workers: processes that draw; 1 draws in this one. With more, a script needs `if __name__ == "__main__":`.
    """

    name = "phantom"
    VERSION = "1.0.0"
    description = "A procedural chest phantom: drawn radiographs with reports, labels and lesion boxes."

    def __init__(self, data_dir: str | os.PathLike[str], config: PhantomConfig | None = None, *, workers: int = 1):
        super().__init__(data_dir)
        if workers < 1:
            raise UserError(f"the phantom's workers are {workers}: give at least 1")
        self.config = config or PhantomConfig()
        self.workers = workers

    def recipe(self) -> Mapping[str, object]:
        """The options that determine the result."""
        config = self.config
        return {"seed": config.seed, "image_size": config.image_size, "patients": config.patients}

    def total(self) -> int:
        """The number of studies."""
        return sum(
            patient_of(self.config.seed, split, source, number).studies
            for source, splits in self.config.patients.items()
            for split, patients in splits.items()
            for number in range(patients)
        )

    def examples(self, split: str) -> Iterator[Example]:
        """Yields a split's examples of both hospitals, patient by patient."""
        chunks = [
            (source, start, min(start + _CHUNK, patients))
            for source in SOURCES
            for patients in [self.config.patients.get(source, {}).get(split, 0)]
            for start in range(0, patients, _CHUNK)
        ]
        draw = functools.partial(_draw_chunk, self.config, split)
        if self.workers == 1 or len(chunks) < 2:
            for chunk in chunks:
                yield from draw(chunk)
            return
        # A fresh process each: a fork of one that runs JAX may hang.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(self.workers, mp_context=context) as pool:
            for examples in pool.map(draw, chunks):
                yield from examples


def small_phantom(data_dir: str | os.PathLike[str]) -> Phantom:
    """A phantom of about 160 images, for tests and first trials."""
    patients = {
        "phantom-a": {"train": 48, "validation": 8, "test": 14},
        "phantom-b": {"train": 24, "validation": 6, "test": 8},
    }
    return Phantom(data_dir, PhantomConfig(patients=patients))


def _draw_chunk(config: PhantomConfig, split: str, chunk: tuple[str, int, int]) -> list[Example]:
    source, start, end = chunk
    return [example for number in range(start, end) for example in generate_patient(config, split, source, number)]
