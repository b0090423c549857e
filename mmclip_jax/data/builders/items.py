"""What a builder makes of rows: an `Item` for each image, or a `Reject` that says why there is none."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

from mmclip_jax.data import ids
from mmclip_jax.data.builders.cells import Frame
from mmclip_jax.data.builders.masks import RunLengths
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import shorten

REJECTS_FILE = "rejects.csv"
LEFT_OUT = "row left out"
ON_PURPOSE = "left out on purpose"
LABEL_LEFT_OUT = "label left out"
BETWEEN_FAULTS = " | "  # of one row
ID_JOINED = "taken for another spelling of the id"
SHOWN_BY_RANGE = "its values span black to white"

FRONTAL_VIEWS = frozenset({"PA", "AP", "AP_HORIZONTAL", ""})
"""Views that `views="frontal"` keeps; "" is a source that does not tell and is known to be frontal."""

_PARTICULAR = re.compile(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"|(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")


@dataclasses.dataclass(frozen=True)
class Reject:
    """A row that could not be used (or a cell: see `consequence`). `row` counts as a spreadsheet does: header is 1."""

    table: str
    row: int
    image: str
    reason: str
    consequence: str = LEFT_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", shorten(self.reason))


@dataclasses.dataclass(frozen=True)
class Item:
    """An image that has passed every check that does not need its pixels.

    table, row: where a person finds it; the first row that names it, where there are several.
    file: as `files.read_bytes` takes it, or "" or a `files.NotFound` if it was not found.
    scanner: the manufacturer of the machine, or "".
    laterality: "L", "R" or "B", the side that is shown, or "".
    from_header: whether a DICOM file's header fills in view, sex and age where they are unknown.
    split: "" has the patient's id decide.
    boxes: (kind, four numbers in units of `frame` as `box_format` says).
    masks: regions; several of one kind are one mask, and each gives a box.
    value_range: what is white in a file of more than 8 bits, see `images.store_image`.
    """

    table: str
    row: int
    file: str
    id: str
    patient: str
    study: str
    split: str = ""
    view: str = ""
    sex: str = ""
    age: float = math.nan
    scanner: str = ""
    laterality: str = ""
    from_header: bool = False
    findings: str = ""
    impression: str = ""
    labels: Mapping[str, LabelState] = dataclasses.field(default_factory=dict)
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    frame: Frame = "pixels"
    frame_was_told: bool = False
    box_format: str = "xywh"
    masks: tuple[RunLengths, ...] = ()
    value_range: str | int = "auto"


def reasons_by_kind(rejects: Iterable[Reject]) -> list[tuple[str, int]]:
    """The reasons without what differs from row to row, and how many rows have each; the most frequent first.

    A row with several faults counts for each.
    """
    kinds: collections.Counter[str] = collections.Counter()
    for reject in rejects:
        for reason in reject.reason.split(BETWEEN_FAULTS):
            kinds[_PARTICULAR.sub("…", reason)] += 1
    return kinds.most_common()


def cleaned(item: Item) -> Item | Reject:
    """The item with ids in the spelling that is stored, or why they cannot be trusted."""
    own_study = item.study == item.id  # a study of its own
    try:
        id, patient = ids.clean_id(item.id), ids.clean_id(item.patient)
        study = id if own_study else ids.clean_id(item.study)
    except ids.BadId as bad:
        return Reject(item.table, item.row, item.id, str(bad))
    for name, value in (("image", id), ("patient", patient), ("study", study)):
        if not value:
            return Reject(item.table, item.row, item.id, f"no {name} is named")
    return dataclasses.replace(item, id=id, patient=patient, study=study)
