"""The RSNA Pneumonia Detection Challenge of 2018."""

import collections
from collections.abc import Iterator

from mmclip_jax.data.builders.collection import Collection, Item, Reject
from mmclip_jax.data.builders.files import ImageFiles
from mmclip_jax.data.resources import NO_FINDING
from mmclip_jax.data.schema import LabelState

_BOX_COLUMNS = ("x", "y", "width", "height")
_CLASSES = {
    "Lung Opacity": {"pneumonia": LabelState.PRESENT, NO_FINDING: LabelState.ABSENT},
    "No Lung Opacity / Not Normal": {"pneumonia": LabelState.ABSENT, NO_FINDING: LabelState.ABSENT},
    "Normal": {"pneumonia": LabelState.ABSENT, NO_FINDING: LabelState.PRESENT},
}


class Rsna(Collection):
    """26,684 frontal images of ChestX-ray14, labelled anew; boxes of opacities suspicious for pneumonia.

    The challenge hides who the patients are: every image counts as a patient of its own, although ChestX-ray14 has
    several images of many. Audit it against ChestX-ray14 by pixels.
    """

    name = "rsna"
    description = "RSNA Pneumonia Detection Challenge: 26,684 radiographs of ChestX-ray14 with boxes."
    citation = "Shih et al., Augmenting the NIH Chest Radiograph Dataset with Expert Annotations, Radiology AI 2019."
    licence = "as of the challenge's rules at Kaggle: academic and other non-commercial use."
    instructions = (
        "accept the rules of rsna-pneumonia-detection-challenge at Kaggle and download stage_2_train_labels.csv, "
        "stage_2_detailed_class_info.csv and the folder stage_2_train_images (DICOM, 4 GB)."
    )

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of stage_2_train_labels.csv."""
        file = self.required("stage_2_train_labels.csv", "stage_2_train_labels.csv.gz")
        images = ImageFiles([self.manual_dir])
        classes = self._classes()
        rows_of: dict[str, list[tuple[int, dict[str, str]]]] = collections.defaultdict(list)
        for number, row in self.table(file, "patientId", *_BOX_COLUMNS, "Target"):
            rows_of[row["patientId"]].append((number, row))
        for patient, rows in rows_of.items():
            number = rows[0][0]
            targets = {row["Target"] for _, row in rows}
            try:
                boxes = [tuple(float(row[c]) for c in _BOX_COLUMNS) for _, row in rows if row["Target"] == "1"]
            except ValueError:
                boxes = []
                targets = set()
            if not patient or targets not in ({"0"}, {"1"}):
                for each, _ in rows:
                    yield Reject(file.name, each, patient, "Target and box do not fit: 0 without a box, or 1 with one")
                continue
            state = LabelState.PRESENT if boxes else LabelState.ABSENT
            labels = _CLASSES.get(classes.get(patient, ""), {"pneumonia": state})
            if labels["pneumonia"] != state:
                yield Reject(file.name, number, patient, f"Target contradicts the class {classes[patient]!r}")
                continue
            yield Item(
                table=file.name,
                row=number,
                file=images.find_any(patient),
                id=patient,
                patient=patient,
                study=patient,
                labels=labels,
                boxes=tuple(("pneumonia", (x, y, width, height)) for x, y, width, height in boxes),
                frame=(1024.0, 1024.0),
            )

    def _classes(self) -> dict[str, str]:
        file = self.manual_dir / "stage_2_detailed_class_info.csv"
        if not file.is_file():
            return {}
        classes = {}
        for number, row in self.table(file, "patientId", "class", count=False):
            if row["class"] in _CLASSES:
                classes[row["patientId"]] = row["class"]
            else:
                self.rejects.append(Reject(file.name, number, row["patientId"], f"unknown class {row['class']!r}"))
        return classes


BUILDER = Rsna
