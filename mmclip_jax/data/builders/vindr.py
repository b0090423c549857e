"""VinDr-CXR of Hanoi, as PhysioNet has it, or its training part as the Kaggle challenge VinBigData has it."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

from mmclip_jax.data import prompts
from mmclip_jax.data.builders.collection import Collection, Item, Reject
from mmclip_jax.data.builders.files import ImageFiles
from mmclip_jax.data.schema import LabelState

_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_CONSENSUS = "consensus"


@dataclasses.dataclass
class _Readings:
    """What the readers say of one image."""

    table: str
    row: int
    split: str
    labels: dict[str, set[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(set))
    boxes: list[tuple[str, tuple[float, float, float, float]]] = dataclasses.field(default_factory=list)
    frame: tuple[float, float] | None = None


class VinDr(Collection):
    """15,000 training images read by three radiologists each and 3,000 test images read in consensus.

    A kind is present if more than half of an image's readers name it, absent if none does, else uncertain. The boxes of
    all readers are kept for kinds that are present. PhysioNet's test part is the test split; a tenth of the training
    images is the validation split. Who the patients are is not published: every image counts as a patient of its own.
    """

    name = "vindr"
    description = "VinDr-CXR: 18,000 frontal radiographs with labels and boxes by radiologists."
    citation = "Nguyen et al., VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations, 2022."
    licence = "PhysioNet Credentialed Health Data License 1.5.0 (training and a signed agreement)."
    instructions = (
        "become a credentialed user of physionet.org and download vindr-cxr 1.0.0: annotations/*.csv, train/ and "
        "test/ (DICOM, 200 GB); or accept the rules of vinbigdata-chest-xray-abnormalities-detection at Kaggle: "
        "train.csv and train/ (DICOM, 192 GB)."
    )
    shares = (0.9, 0.1, 0.0)

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of the tables."""
        images = ImageFiles([self.manual_dir])
        readings: dict[str, _Readings] = {}
        universe: set[str] = set()
        folder = self.manual_dir / "annotations"
        if folder.is_dir():
            for part, split in (("train", ""), ("test", "test")):
                labels_file, boxes_file = folder / f"image_labels_{part}.csv", folder / f"annotations_{part}.csv"
                if not labels_file.is_file() or not boxes_file.is_file():
                    continue
                universe |= self._read_labels(labels_file, split, readings)
                self._read_boxes(boxes_file, split, readings, count=False)
        if not readings:
            universe = self._read_boxes(self.required("train.csv", "train.csv.gz"), "", readings, count=True)
        for image, seen in readings.items():
            labels = _settle(seen.labels, universe)
            yield Item(
                table=seen.table,
                row=seen.row,
                file=images.find_any(image),
                id=image,
                patient=image,
                study=image,
                split=seen.split,
                labels=labels,
                boxes=tuple(box for box in seen.boxes if labels.get(box[0]) == LabelState.PRESENT),
                frame=seen.frame or "pixels",
                frame_was_told=True,
                box_format="xyxy",
            )

    def _read_labels(self, file: pathlib.Path, split: str, readings: dict[str, _Readings]) -> set[str]:
        """Adds a table of one column a label; returns the kinds that it has columns for."""
        universe: set[str] = set()
        for number, row in self.table(file, "image_id"):
            seen = readings.setdefault(row["image_id"], _Readings(file.name, number, split))
            names = {name: cell for name, cell in row.items() if name not in ("image_id", "rad_id")}
            if not universe:
                self.kinds_of(names, file.name, 1, "")  # lists those that nobody knows
                universe = prompts.denied_by(names)
            seen.labels[row.get("rad_id") or _CONSENSUS] |= self.kinds_of(
                [name for name, cell in names.items() if cell in ("1", "1.0")], file.name, number, row["image_id"]
            )
        return universe

    def _read_boxes(self, file: pathlib.Path, split: str, readings: dict[str, _Readings], count: bool) -> set[str]:
        """Adds a table of one row a box; returns the kinds that occur in it."""
        universe: set[str] = set()
        for number, row in self.table(file, "image_id", "class_name", *_CORNERS, count=count):
            image = row["image_id"]
            kinds = self.kinds_of([row["class_name"]], file.name, number, image)
            universe |= prompts.denied_by([row["class_name"]])
            seen = readings.setdefault(image, _Readings(file.name, number, split))
            seen.labels[row.get("rad_id") or _CONSENSUS] |= kinds
            if row.get("width") and row.get("height"):
                seen.frame = (float(row["width"]), float(row["height"]))
            if not any(row[corner] for corner in _CORNERS):
                continue
            try:
                x_min, y_min, x_max, y_max = (float(row[corner]) for corner in _CORNERS)
            except ValueError:
                self.rejects.append(Reject(file.name, number, image, "the box is not four numbers"))
                continue
            seen.boxes += [(kind, (x_min, y_min, x_max, y_max)) for kind in kinds]
        return universe


def _settle(named: Mapping[str, set[str]], universe: set[str]) -> dict[str, LabelState]:
    """The state of each kind from what each reader names; who names a kind names its broader ones of the universe."""
    labels = {}
    readers = [kinds | (prompts.implied(kinds) & universe) for kinds in named.values()]
    for kind in sorted(universe.union(*readers)):
        votes = sum(kind in kinds for kinds in readers)
        if 2 * votes > len(named):
            labels[kind] = LabelState.PRESENT
        else:
            labels[kind] = LabelState.UNCERTAIN if votes else LabelState.ABSENT
    return labels


BUILDER = VinDr
