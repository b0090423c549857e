"""The RSNA Pneumonia Detection Challenge of 2018."""

import collections
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmclip_jax.data.builders import files
from mmclip_jax.data.builders.cells import BadRow, parse_view
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.items import Item, Reject
from mmclip_jax.data.builders.labels import Beside
from mmclip_jax.data.builders.reading import four_numbers
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError, shown
from mmclip_jax.text.vocabulary import NO_FINDING

_BOX_COLUMNS = ("x", "y", "width", "height")
_CLASSES = {
    "Lung Opacity": {"pneumonia": LabelState.PRESENT, NO_FINDING: LabelState.ABSENT},
    "No Lung Opacity / Not Normal": {"pneumonia": LabelState.ABSENT, NO_FINDING: LabelState.ABSENT},
    "Normal": {"pneumonia": LabelState.ABSENT, NO_FINDING: LabelState.PRESENT},
}
_MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
_NIH_FILE = re.compile(r"0*([0-9]+)_[0-9]+\.png", re.ASCII)


class Rsna(Collection):
    """26,684 frontal images of ChestX-ray14, labelled anew; boxes of opacities suspicious for pneumonia.

    The challenge's "patientId" is an image's. Who the patients are is told by the mapping that the RSNA published
    beside it (challenge image -> file of ChestX-ray14): with it, patients have their numbers of ChestX-ray14, so that
    splits are by patient and ids of both sets can be compared. Without it every image counts as a patient of its own,
    and the build says so. Sex, age and view come from the DICOM headers, or, with the mapping, from the table of
    ChestX-ray14 where it lies there too.
    """

    name = "rsna"
    no_finding = Beside.NEVER
    description = "RSNA Pneumonia Detection Challenge: 26,684 radiographs of ChestX-ray14 with boxes."
    citation = "Shih et al., Augmenting the NIH Chest Radiograph Dataset with Expert Annotations, Radiology AI 2019."
    licence = "as of the challenge's rules at Kaggle: academic and other non-commercial use."
    instructions = (
        "accept the rules of rsna-pneumonia-detection-challenge at Kaggle and download stage_2_train_labels.csv, "
        "stage_2_detailed_class_info.csv and the folder stage_2_train_images (DICOM, 4 GB); all may stay zipped. Put "
        f"{_MAPPING} of the RSNA's page of the challenge beside them."
    )

    def __init__(self, options: Any, data_dir: Any):
        super().__init__(options, data_dir)
        self._patients: dict[str, Any] = {"of": self.name, "mapped": 0, "not_mapped": 0}

    def facts(self) -> Mapping[str, object]:
        """Whose patients the ids name: "chestxray14" where the mapping was there, else "rsna" (an image each)."""
        return {"patient_ids": self._patients}

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of stage_2_train_labels.csv."""
        file = self.required("stage_2_train_labels.csv")
        classes = self._classes()
        nih_of = self._mapping()
        people = self._people() if nih_of else {}
        rows_of: dict[str, list[tuple[int, dict[str, str]]]] = collections.defaultdict(list)
        for number, row in self.table(file, "patientId", *_BOX_COLUMNS, "Target"):
            rows_of[row["patientId"]].append((number, row))
        for image, rows in rows_of.items():
            made = self.attempt(
                file.name, rows[0][0], image, self._item, file.name, image, rows, classes, nih_of, people
            )
            if isinstance(made, Reject):
                yield from (Reject(file.name, number, image, made.reason) for number, _ in rows)
            else:
                yield made
        self._tell_patients()

    def _item(
        self,
        table: str,
        image: str,
        rows: Sequence[tuple[int, Mapping[str, str]]],
        classes: Mapping[str, str],
        nih_of: Mapping[str, str],
        people: Mapping[str, Mapping[str, str]],
    ) -> Item:
        targets = {row["Target"] for _, row in rows}
        try:
            boxes = [four_numbers(row[c] for c in _BOX_COLUMNS) for _, row in rows if row["Target"] == "1"]
        except BadRow:
            targets = set()
        if not image or targets not in ({"0"}, {"1"}):
            raise BadRow("Target and box do not fit: 0 without a box, or 1 with one")
        state = LabelState.PRESENT if boxes else LabelState.ABSENT
        labels = _CLASSES.get(classes.get(image, ""), {"pneumonia": state})
        if labels["pneumonia"] != state:
            raise BadRow(f"Target contradicts the class {classes[image]!r}")
        number, nih = rows[0][0], nih_of.get(image, "")
        self._patients["mapped" if nih else "not_mapped"] += 1
        person = people.get(nih, {})
        return Item(
            table=table,
            row=number,
            file=self.index.find_any(image),
            id=image,
            patient=_patient(nih) or image,
            study=image,
            view=parse_view(person.get("View Position", "")),
            sex=self.sex(person.get("Patient Gender", ""), table, number, image),
            age=self.age(person.get("Patient Age", ""), table, number, image),
            labels=labels,
            boxes=tuple(("pneumonia", box) for box in boxes),
            frame=(1024.0, 1024.0),
            from_header=True,
        )

    def _classes(self) -> dict[str, str]:
        file = self.optional("stage_2_detailed_class_info.csv")
        if file is None:
            return {}
        classes = {}
        for number, row in self.table(file, "patientId", "class", count=False):
            if row["class"] in _CLASSES:
                classes[row["patientId"]] = row["class"]
            else:
                reason = f"unknown class {shown(row['class'])}"
                self.rejects.append(Reject(file.name, number, row["patientId"], reason))
        return classes

    def _mapping(self) -> dict[str, str]:
        """Image of the challenge -> file of ChestX-ray14; {} without the mapping."""
        file = self.optional(_MAPPING)
        if file is None:
            return {}
        with files.plain_table(file) as plain:
            try:
                entries = json.loads(files.read_text(plain))
                pairs = [(str(entry["subset_img_id"]), str(entry["img_id"])) for entry in entries]
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise UserError(
                    f"{file} is not the RSNA's mapping, a list of subset_img_id and img_id ({type(error).__name__}): "
                    "download it again"
                ) from None
        found: dict[str, str] = {}
        for image, name in pairs:
            if not _patient(name) or found.setdefault(image, name) != name:
                raise UserError(f"{file}: {shown(image)} has no one file of ChestX-ray14: download it again")
        self._patients["of"] = "chestxray14"
        return found

    def _people(self) -> dict[str, Mapping[str, str]]:
        """File of ChestX-ray14 -> its row in that set's table, where it lies here too."""
        file = self.optional("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
        return (
            {} if file is None else {row["Image Index"]: row for _, row in self.table(file, "Image Index", count=False)}
        )

    def _tell_patients(self) -> None:
        mapped, not_mapped = self._patients["mapped"], self._patients["not_mapped"]
        if mapped and not_mapped:
            self.notes.append(
                f"{not_mapped} images are not in {_MAPPING}: each counts as a patient of its own, though its patient "
                "may be in another split"
            )
        elif not_mapped:
            self.notes.append(
                f"PATIENTS ARE UNKNOWN: {_MAPPING} is not there, so every image counts as a patient of its own, and "
                "images of one patient are in different splits. Get it from the RSNA's page of the challenge"
            )


def _patient(nih: str) -> str:
    """The patient's number in ChestX-ray14, from the name of a file of it; "" if it is none."""
    match = _NIH_FILE.fullmatch(nih)
    return match[1] if match else ""


BUILDER = Rsna
