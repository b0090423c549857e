"""scores.csv: the label and the scores of every image."""

import pathlib
from collections.abc import Sequence

import numpy as np

from mmclip_jax import spreadsheet
from mmclip_jax.evaluate.evaluations.scored import Scored

NAME = "scores.csv"


def write(path: pathlib.Path, scored: Scored, findings: Sequence[str]) -> None:
    """One line an image: id, source, part, patient and, for each finding, its label (empty if unknown) and both scores.

    Patients are numbered by first appearance. Scores have all their digits, so that every metric can be had from the
    file exactly.
    """
    numbers: dict[str, int] = {}
    patients = [numbers.setdefault(patient, len(numbers)) for patient in scored.split.patients]
    header = ["id", "source", "part", "patient"]
    header += [f"{finding}/{column}" for finding in findings for column in ("label", *scored.scores)]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = spreadsheet.Writer(stream)
        writer.writerow(header)
        for row, example in enumerate(scored.split.examples):
            line = [example.id, example.source, example.part, str(patients[row])]
            for k in range(len(findings)):
                label = scored.labels[row, k]
                line.append("" if np.isnan(label) else str(int(label)))
                line += [repr(float(values[row, k])) for values in scored.scores.values()]
            writer.writerow(line)
