"""Adds a column `split` to a table of images: patients with boxes are held out, so that grounding can be measured.

    python benchmarks/hold_out_boxes.py "$MMCLIP_REAL_DATA/nih_chestxray14_subset/metadata.csv" runs/real/nih.csv

Of the patients with a box about 30 % go to validation (where the thresholds are chosen) and the others to test; of the
patients without one 80 % to train, 10 % to validation, 10 % to test. The split hangs on the patient's id alone.
"""

import csv
import sys
import zlib
from pathlib import Path


def split(patient: str, boxed: bool) -> str:
    """The part of a patient: train, validation or test."""
    tenth = zlib.crc32(patient.encode()) % 10
    if boxed:
        return "validation" if tenth < 3 else "test"
    return ("validation", "test")[tenth] if tenth < 2 else "train"


def main(source: str, target: str) -> None:
    """Copies the table with the new column; needs the columns patient_id and bbox_1024."""
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    boxed = {row["patient_id"] for row in rows if row["bbox_1024"]}
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "split"])
        writer.writeheader()
        writer.writerows(row | {"split": split(row["patient_id"], row["patient_id"] in boxed)} for row in rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
