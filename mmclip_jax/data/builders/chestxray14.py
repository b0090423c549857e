"""ChestX-ray14 of the NIH Clinical Center."""

import collections
import pathlib
from collections.abc import Iterator

from mmclip_jax.data import prompts
from mmclip_jax.data.builders.cells import parse_sex, parse_view
from mmclip_jax.data.builders.collection import Collection, Item, Reject
from mmclip_jax.data.builders.files import ImageFiles
from mmclip_jax.data.builders.labels import listed_labels
from mmclip_jax.errors import UserError

# BBox_List_2017.csv heads its four columns so.
_BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")
_FRAME = (1024.0, 1024.0)


class ChestXray14(Collection):
    """112,120 frontal images of 30,805 patients, 14 labels by text mining, 984 boxes.

    With `train_val_list.txt` and `test_list.txt` the official test part is the test split, and a tenth of the other
    patients is the validation split; without them, patients are divided by a hash of their id.
    """

    name = "chestxray14"
    description = "ChestX-ray14: 112,120 frontal radiographs of 30,805 patients with 14 text-mined labels."
    citation = "Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks, CVPR 2017."
    licence = "no restrictions; name the NIH Clinical Center and cite the paper."
    instructions = (
        "download from the NIH Clinical Center's Box folder (nihcc.app.box.com, ChestXray-NIHCC): Data_Entry_2017.csv "
        "or Data_Entry_2017_v2020.csv, BBox_List_2017.csv, train_val_list.txt, test_list.txt and images_001.tar.gz to "
        "images_012.tar.gz (42 GB), the latter unpacked."
    )

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of Data_Entry_2017, in its order."""
        file = self.required("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv.gz")
        images = ImageFiles([self.manual_dir], (".png",))
        official = self._official()
        boxes = self._boxes()
        rows = list(self.table(file, "Image Index", "Finding Labels", "Patient ID"))
        names = {label for _, row in rows for label in row["Finding Labels"].split("|")}
        universe = prompts.denied_by(names)
        seen: set[str] = set()
        for number, row in rows:
            image, patient = row["Image Index"], row["Patient ID"]
            if not image or not patient or image in seen:
                yield Reject(file.name, number, image, "no image or no patient is named, or the image was named before")
                continue
            seen.add(image)
            split = official.get(image, "") if official else ""
            if official and not split:
                yield Reject(file.name, number, image, "the image is in neither train_val_list.txt nor test_list.txt")
                continue
            if split == "train":
                split = self.divided(patient)
            present = self.kinds_of(filter(None, row["Finding Labels"].split("|")), file.name, number, image)
            yield Item(
                table=file.name,
                row=number,
                file=images.find(image) or "",
                id=image,
                patient=patient,
                study=f"{patient}_{row.get('Follow-up #', image)}",
                split=split,
                view=parse_view(row.get("View Position", "")),
                sex=parse_sex(row.get("Patient Gender", "")),
                age=self.age(row.get("Patient Age", ""), file.name, number, image),
                labels=listed_labels(present, universe if present else ()),
                boxes=tuple(boxes.get(image, ())),
                frame=_FRAME,
            )

    def _official(self) -> dict[str, str]:
        """File name -> "train" or "test" by the official lists; {} if they are not there."""
        lists = {"train": self.manual_dir / "train_val_list.txt", "test": self.manual_dir / "test_list.txt"}
        there = [file for file in lists.values() if file.is_file()]
        if len(there) == 1:
            raise UserError(f"{self.manual_dir} has {there[0].name} without the other list: give both or none")
        if not there:
            return {}
        return {name: split for split, file in lists.items() for name in _lines(file)}

    def _boxes(self) -> dict[str, list[tuple[str, tuple[float, float, float, float]]]]:
        found: dict[str, list[tuple[str, tuple[float, float, float, float]]]] = collections.defaultdict(list)
        file = next((f for f in self.manual_dir.glob("BBox_List_2017.csv*") if f.suffix in (".csv", ".gz")), None)
        if file is None:
            return found
        for number, row in self.table(file, "Image Index", "Finding Label", *_BOX_COLUMNS, count=False):
            image = row["Image Index"]
            for kind in self.kinds_of([row["Finding Label"]], file.name, number, image):
                try:
                    x, y, width, height = (float(row[column]) for column in _BOX_COLUMNS)
                except ValueError:
                    self.rejects.append(Reject(file.name, number, image, "the box is not four numbers"))
                    continue
                found[image].append((kind, (x, y, width, height)))
        return found


def _lines(file: pathlib.Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


BUILDER = ChestXray14
