"""ChestX-ray14 of the NIH Clinical Center."""

import collections
import pathlib
from collections.abc import Iterable, Iterator, Mapping

from mmclip_jax.data import ids
from mmclip_jax.data.builders import files
from mmclip_jax.data.builders.cells import BadRow, parse_view
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.items import Item, Reject
from mmclip_jax.data.builders.labels import Beside, listed_labels
from mmclip_jax.data.builders.reading import four_numbers
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts

# BBox_List_2017.csv heads its four columns so.
_BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")
_FRAME = (1024.0, 1024.0)


class ChestXray14(Collection):
    """112,120 frontal images of 30,805 patients, 14 labels by text mining, 984 boxes.

    With `train_val_list.txt` and `test_list.txt` the official test part is the test split, and a tenth of the other
    patients is the validation split; without them, patients are divided by a hash of their id.
    """

    name = "chestxray14"
    no_finding = Beside.BELIEVE
    description = "ChestX-ray14: 112,120 frontal radiographs of 30,805 patients with 14 text-mined labels."
    citation = "Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks, CVPR 2017."
    licence = "no restrictions; name the NIH Clinical Center and cite the paper."
    instructions = (
        "download from the NIH Clinical Center's Box folder (nihcc.app.box.com, ChestXray-NIHCC): Data_Entry_2017.csv "
        "or Data_Entry_2017_v2020.csv, BBox_List_2017.csv, train_val_list.txt, test_list.txt and images_001.tar.gz to "
        "images_012.tar.gz (42 GB), the latter unpacked; or Kaggle's copy (nih-chest-xrays/data) whole."
    )

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of Data_Entry_2017, in its order."""
        file = self.required("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
        official = self._official()
        boxes = self._boxes()
        rows = list(self.table(file, "Image Index", "Finding Labels", "Patient ID"))
        names = {label for _, row in rows for label in row["Finding Labels"].split("|")}
        universe = prompts.denied_by(names)
        seen: set[str] = set()
        for number, row in rows:
            image = row["Image Index"]
            if not image or not row["Patient ID"] or image in seen:
                yield Reject(file.name, number, image, "no image or no patient is named, or the image was named before")
                continue
            seen.add(image)
            split = official.get(image, "") if official else ""
            if official and not split:
                yield Reject(file.name, number, image, "the image is in neither train_val_list.txt nor test_list.txt")
                continue
            found = boxes.get(image, ())
            yield self.attempt(file.name, number, image, self._item, file.name, number, row, split, universe, found)

    def _item(
        self,
        table: str,
        number: int,
        row: Mapping[str, str],
        split: str,
        universe: Iterable[str],
        boxes: Iterable[tuple[str, tuple[float, float, float, float]]],
    ) -> Item:
        image = row["Image Index"]
        patient = patient_number(row["Patient ID"])
        present = self.kinds_of(filter(None, row["Finding Labels"].split("|")), table, number, image)
        return Item(
            table=table,
            row=number,
            file=self.index.find(image),
            id=image,
            patient=patient,
            study=f"{patient}_{row.get('Follow-up #') or image}",
            split=self.divided(patient) if split == "train" else split,
            view=parse_view(row.get("View Position", "")),
            sex=self.sex(row.get("Patient Gender", ""), table, number, image),
            age=self.age(row.get("Patient Age", ""), table, number, image),
            labels=listed_labels(present, universe if present else ()),
            boxes=tuple(boxes),
            frame=_FRAME,
        )

    def _official(self) -> dict[str, str]:
        """File name -> "train" or "test" by the official lists; {} if they are not there."""
        lists = {"train": self.optional("train_val_list.txt"), "test": self.optional("test_list.txt")}
        there = [file for file in lists.values() if file is not None]
        if len(there) == 1:
            raise UserError(f"{self.manual_dir} has {there[0].name} without the other list: give both or none")
        return {name: split for split, file in lists.items() if file is not None for name in _lines(file)}

    def _boxes(self) -> dict[str, list[tuple[str, tuple[float, float, float, float]]]]:
        found: dict[str, list[tuple[str, tuple[float, float, float, float]]]] = collections.defaultdict(list)
        file = self.optional("BBox_List_2017.csv")
        if file is None:
            return found
        for number, row in self.table(file, "Image Index", "Finding Label", *_BOX_COLUMNS, count=False):
            image = row["Image Index"]
            for kind in self.kinds_of([row["Finding Label"]], file.name, number, image):
                try:
                    found[image].append((kind, four_numbers(row[column] for column in _BOX_COLUMNS)))
                except BadRow as bad:
                    self.rejects.append(Reject(file.name, number, image, str(bad)))
        return found


def patient_number(cell: str) -> str:
    """The patient's number without zeros in front: file names have them ("00000013_005.png"), the table has not."""
    cell = ids.clean_id(cell)
    return cell.lstrip("0") or "0" if cell.isdecimal() else cell


def _lines(file: pathlib.Path) -> list[str]:
    with files.plain_table(file) as plain:
        return [line.strip() for line in files.read_text(plain).splitlines() if line.strip()]


BUILDER = ChestXray14
