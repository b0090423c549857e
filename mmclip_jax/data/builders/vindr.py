"""VinDr-CXR of Hanoi, as PhysioNet has it, or its training part as the Kaggle challenge VinBigData has it."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

from mmclip_jax.data.builders.cells import BadRow, Frame, parse_frame
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.files import DICOM_SUFFIXES
from mmclip_jax.data.builders.items import Item, Reject
from mmclip_jax.data.builders.labels import Beside
from mmclip_jax.data.builders.making import RESIZED
from mmclip_jax.data.builders.options import CollectionOptions, option
from mmclip_jax.data.builders.reading import finite, four_numbers
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts

_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_CONSENSUS = "consensus"
# Columns of the originals' width and height, as the tables of copies have them: xhlulu's train_meta.csv at Kaggle has
# dim0 (rows) and dim1 (columns).
_SIZES = (("width", "height"), ("original_width", "original_height"), ("dim1", "dim0"))
_SIZE_TABLES = ("train_meta.csv", "test_meta.csv")


@dataclasses.dataclass(frozen=True)
class VinDrOptions(CollectionOptions):
    """Options of the builder of VinDr-CXR."""

    box_frame: str = option(
        "auto",
        "what boxes are in pixels of: auto, the DICOM file or, for copies of it, the original's size of a table "
        "(columns width and height of the boxes' table, or train_meta.csv with image_id, dim0, dim1); pixels, the "
        "image files as they are; or WIDTHxHEIGHT",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.box_frame not in ("auto", "pixels") and isinstance(parse_frame(self.box_frame), str):
            raise UserError(f"box frame {self.box_frame!r} is not auto, pixels or WIDTHxHEIGHT")


@dataclasses.dataclass
class _Readings:
    """What the readers say of one image."""

    table: str
    row: int
    split: str
    labels: dict[str, set[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(set))
    boxes: list[tuple[str, tuple[float, float, float, float]]] = dataclasses.field(default_factory=list)


class VinDr(Collection):
    """15,000 training images read by three radiologists each and 3,000 test images read in consensus.

    A kind is present if more than half of an image's readers name it, absent if none does, else uncertain. The boxes of
    all readers are kept for kinds that are present. PhysioNet's test part is the test split; a tenth of the training
    images is the validation split. Who the patients are is not published: every image counts as a patient of its own.

    Boxes are in pixels of the DICOM files. Images that are copies of these (PNG, JPEG) are often smaller, so their
    boxes are used only where the size of the original is known: see `VinDrOptions.box_frame`. Sex, age and view come
    from the DICOM headers.
    """

    name = "vindr"
    no_finding = Beside.BELIEVE
    description = "VinDr-CXR: 18,000 frontal radiographs with labels and boxes by radiologists."
    citation = "Nguyen et al., VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations, 2022."
    licence = "PhysioNet Credentialed Health Data License 1.5.0 (training and a signed agreement)."
    instructions = (
        "become a credentialed user of physionet.org and download vindr-cxr 1.0.0: annotations/*.csv, train/ and "
        "test/ (DICOM, 200 GB); or accept the rules of vinbigdata-chest-xray-abnormalities-detection at Kaggle: "
        "train.csv and train/ (DICOM, 192 GB; or a copy as PNG with its train_meta.csv)."
    )
    Options = VinDrOptions
    shares = (0.9, 0.1, 0.0)
    box_flags = "--box-frame"

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of the tables."""
        self._sizes: dict[str, tuple[float, float]] = {}
        readings: dict[str, _Readings] = {}
        universe: set[str] = set()
        for part, split in (("train", ""), ("test", "test")):
            labels_file = self._annotations(f"image_labels_{part}.csv")
            boxes_file = self._annotations(f"annotations_{part}.csv")
            if labels_file is None or boxes_file is None:
                continue
            universe |= self._read_labels(labels_file, split, readings)
            self._read_boxes(boxes_file, split, readings, count=False)
        if not readings:
            universe = self._read_boxes(self.required("train.csv"), "", readings, count=True)
        for name in _SIZE_TABLES:
            if (file := self.optional(name)) is not None:
                for number, row in self.table(file, "image_id", count=False):
                    self._read_size(file.name, number, row)
        for image, seen in readings.items():
            yield self.attempt(seen.table, seen.row, image, self._item, image, seen, universe)
        self.notes.append("who the patients are is not published: every image counts as a patient of its own")

    def _annotations(self, name: str) -> pathlib.Path | None:
        direct = self.manual_dir / "annotations" / name
        return direct if direct.is_file() else self.optional(name)

    def _item(self, image: str, seen: _Readings, universe: set[str]) -> Item:
        labels = _settle(seen.labels, universe)
        file = self.index.find_any(image)
        boxes = tuple(box for box in seen.boxes if labels.get(box[0]) == LabelState.PRESENT)
        frame: Frame = self._sizes.get(image, "dicom")
        if self.options.box_frame != "auto":
            frame = parse_frame(self.options.box_frame) or "pixels"
        if frame == "dicom" and boxes and file and not file.lower().endswith(DICOM_SUFFIXES):
            raise BadRow(f"{RESIZED}; see {self.box_flags}")  # as reading the image would say, but at once
        return Item(
            table=seen.table,
            row=seen.row,
            file=file,
            id=image,
            patient=image,
            study=image,
            split=seen.split,
            labels=labels,
            boxes=boxes,
            frame=frame,
            frame_was_told=True,
            box_format="xyxy",
            from_header=True,
        )

    def _read_labels(self, file: pathlib.Path, split: str, readings: dict[str, _Readings]) -> set[str]:
        """Adds a table of one column a label; returns the kinds that it has columns for."""
        universe: set[str] = set()
        for number, row in self.table(file, "image_id"):
            image = row["image_id"]
            seen = readings.setdefault(image, _Readings(file.name, number, split))
            names = {name: cell for name, cell in row.items() if name.lower() not in ("image_id", "rad_id")}
            if not universe:
                self.kinds_of(names, file.name, 1, "")  # lists those that nobody knows
                universe = prompts.denied_by(names)
            seen.labels[_reader(row)] |= self.kinds_of(
                [name for name, cell in names.items() if cell in ("1", "1.0")], file.name, number, image
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
            seen.labels[_reader(row)] |= kinds
            self._read_size(file.name, number, row)
            if not any(row[corner] for corner in _CORNERS):
                continue
            try:
                box = four_numbers(row[corner] for corner in _CORNERS)
            except BadRow as bad:
                self.rejects.append(Reject(file.name, number, image, str(bad)))
                continue
            seen.boxes += [(kind, box) for kind in sorted(kinds)]
        return universe

    def _read_size(self, table: str, row_number: int, row: Mapping[str, str]) -> None:
        """Notes the original's size, where the row has one; a size that is none, or another than before, is listed."""
        image = row["image_id"]
        cells = {name.lower(): cell for name, cell in row.items()}
        for names in _SIZES:
            if not all(cells.get(name) for name in names):
                continue
            try:
                width, height = (finite(cells[name], f"column {name!r}:") for name in names)
                if min(width, height) < 1 or self._sizes.setdefault(image, (width, height)) != (width, height):
                    raise BadRow(f"the size {width:g} x {height:g} is none, or another than before")
            except BadRow as bad:
                self.rejects.append(Reject(table, row_number, image, str(bad), "size left out"))
            return


def _reader(row: Mapping[str, str]) -> str:
    return next((cell for name, cell in row.items() if name.lower() == "rad_id" and cell), _CONSENSUS)


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
