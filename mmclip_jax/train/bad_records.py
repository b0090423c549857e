"""The lists that a run keeps of what was wrong: records that cannot be read, and batches whose update was left out."""

from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from mmclip_jax import files
from mmclip_jax.data import pipeline
from mmclip_jax.errors import UserError

Fields = dict[str, np.ndarray]  # one field of a batch's rows by part


class DamagedRecords:
    """The records that could not be read or decoded and were replaced, of all processes, since the run began."""

    def __init__(self, workdir: str, limit: int, iterator: pipeline.TrainIterator):
        self._path = files.locate(workdir) / "damaged_records.json"
        self._limit, self._iterator = limit, iterator
        remedy = "delete it, and the run counts anew"
        self._known: list[dict[str, Any]] = []
        if self._path.exists():
            self._known = files.read_json(self._path, remedy, kind=list)
        if any(not isinstance(entry, dict) or not isinstance(entry.get("number"), int) for entry in self._known):
            raise UserError(f"{self._path} is damaged (an entry has no number): {remedy}")

    def add(self, replaced: Fields) -> str:
        """Lists what is new; all processes must call it, at the same step.

        replaced: this process's field `damaged` of each part. Returns why the run must stop, "" while it need not.
        """
        mine = np.concatenate([replaced[part] for part in sorted(replaced)])
        everyone = mine if jax.process_count() == 1 else multihost_utils.process_allgather(mine)
        known = {entry["number"] for entry in self._known}
        new = sorted({int(number) for number in np.unique(everyone)} - known - {-1})
        if not new:
            return ""
        self._known += [{"number": number} | self._iterator.problem(number) for number in new]
        for entry in self._known[-len(new) :]:
            logging.warning("%(data_set)s, %(part)s record %(record)d is damaged and replaced: %(problem)s", entry)
        if jax.process_index() == 0:
            files.write_json(self._path, self._known)
        if len(self._known) <= self._limit:
            return ""
        return (
            f"{len(self._known)} training records cannot be read or decoded, more than data.max_damaged={self._limit}; "
            f"{self._path} lists them. Build or copy the data again, or raise data.max_damaged"
        )


def report_bad_batch(workdir: str, number: int, records: Fields, iterator: pipeline.TrainIterator, finite: bool) -> str:
    """Writes the ids of the batch's records beside the checkpoints; returns what happened and where they are listed."""
    name, what = ("spike", "the loss is a spike") if finite else ("not_finite", "loss or gradient is not finite")
    path = files.locate(workdir) / f"{name}_step_{number}_process_{jax.process_index()}.json"
    files.write_json(
        path, {"step": number, "records": {part: iterator.record_ids(ids) for part, ids in records.items()}}
    )
    return f"{what} at step {number}: the update was left out, and the records of the batch are listed in {path}"
