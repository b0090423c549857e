"""PadChest of BIMCV, Alicante."""

import collections
import dataclasses
import re
from collections.abc import Iterator

from mmclip_jax.data import ids
from mmclip_jax.data.builders.cells import BadRow, split_labels
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.items import ON_PURPOSE, Item, Reject
from mmclip_jax.data.builders.labels import Beside, listed_labels
from mmclip_jax.text import prompts

_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
_VIEWS = {"L": "LATERAL", "AP_horizontal": "AP_HORIZONTAL"}
_UNUSABLE = frozenset({"exclude", "suboptimal study"})
_RENAMED = {"mass": "mass of unspecified site"}
"""PadChest's tree of findings has the masses of the lung, mediastinum, pleura and breast below "mass"."""


class PadChest(Collection):
    """160,861 images of 67,625 patients with 174 findings, of which 39,053 images were labelled by physicians.

    The physicians' images are the test split. The other images of their patients (labelled by a recurrent network) are
    left out on purpose; a tenth of the remaining patients is the validation split. Unlisted kinds are absent, except
    those that the list leaves open, and kinds that only physicians use are unknown where the network labelled. Images
    without a label of the vocabulary are left out on purpose. The Spanish reports are not stored. The manufacturer of
    the machine is kept as the scanner.
    """

    name = "padchest"
    no_finding = Beside.BELIEVE
    description = "PadChest: 160,861 radiographs of 67,625 patients with labels of 174 findings."
    citation = "Bustos et al., PadChest: A large chest x-ray image dataset with multi-label annotated reports, 2020."
    licence = "PadChest Dataset Research Use Agreement (registration; no redistribution)."
    instructions = (
        f"register at bimcv.cipf.es (PadChest) and download {_TABLE}.gz and the image archives 0.zip to 54.zip (about "
        "1 TB; they may stay zipped)."
    )

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of the table, in its order."""
        file = self.required(f"{_TABLE}.gz")
        rows = list(self.table(file, "ImageID", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels"))
        for _, row in rows:
            row["PatientID"] = _patient(row["PatientID"])
        by_physicians = {row["PatientID"] for _, row in rows if row["MethodLabel"] == "Physician"}
        names: dict[str, set[str]] = collections.defaultdict(set)
        for _, row in rows:
            names[row["MethodLabel"]].update(_listed(row["Labels"]))
        by_network = prompts.denied_by(names["RNN_model"])
        universe = prompts.denied_by(set().union(*names.values()))
        seen: set[str] = set()
        for number, row in rows:
            image, patient = row["ImageID"], row["PatientID"]
            if not image or not patient or image in seen:
                reason = (
                    "no image or no patient (whose number must have all its digits) is named, or the image was before"
                )
                yield Reject(file.name, number, image, reason)
                continue
            seen.add(image)
            try:
                labels = _split(row["Labels"])
            except BadRow as bad:
                yield Reject(file.name, number, image, str(bad))
                continue
            view = _VIEWS.get(row["Projection"], row["Projection"] or "UNK")
            item = Item(
                table=file.name,
                row=number,
                file=self.index.find(image),
                id=image,
                patient=patient,
                study=row["StudyID"] or image,
                view=view,
                sex=self.sex(row.get("PatientSex_DICOM", ""), file.name, number, image),
                scanner=row.get("Manufacturer_DICOM", "").strip(),
                age=self.age(_years(row), file.name, number, image),
            )
            if self._unwanted(item):
                yield item
                continue
            problem = ""
            if unusable := _UNUSABLE & set(labels):
                problem = f"labelled {', '.join(sorted(unusable))}"
            elif patient in by_physicians and row["MethodLabel"] != "Physician":
                problem = "not labelled by physicians, of a patient in the test split"
            present = set() if problem else self.kinds_of(labels, file.name, number, image)
            if not problem and not present:
                problem = "no label is a finding of the vocabulary"
            if problem:
                yield Reject(file.name, number, image, problem, ON_PURPOSE)
                continue
            split = "test" if patient in by_physicians else self.divided(patient)
            known = by_network if row["MethodLabel"] == "RNN_model" else universe
            yield dataclasses.replace(item, split=split, labels=listed_labels(present, known, labels))


def _listed(cell: str) -> list[str]:
    try:
        return _split(cell)
    except BadRow:
        return []  # the row itself is listed when its turn comes


def _split(cell: str) -> list[str]:
    return [_RENAMED.get(label, label) for label in split_labels(cell, ",")]


def _years(row: dict[str, str]) -> str:
    """Age at the study, from the years that the table has; "" where it lacks one."""
    born = re.fullmatch(r"([0-9]{4})(?:\.0)?", row.get("PatientBirth", ""))
    taken = re.fullmatch(r"([0-9]{4})[0-9]{4}(?:\.0)?", row.get("StudyDate_DICOM", ""))
    return str(int(taken[1]) - int(born[1])) if born and taken else ""


def _patient(cell: str) -> str:
    """The patient's number; "" where a spreadsheet has cut its 39 digits."""
    try:
        return ids.clean_id(cell)
    except ids.BadId:
        return ""


BUILDER = PadChest
