"""Options of the builder of a user's table."""

import dataclasses
import re

from mmclip_jax import ranges
from mmclip_jax.data.builders.cells import parse_frame
from mmclip_jax.data.builders.columns import JOINS
from mmclip_jax.data.builders.options import (
    ALIKE_POLICIES,
    alike_option,
    check_storing,
    entities_option,
    language_option,
    option,
)
from mmclip_jax.data.schema import SPLITS
from mmclip_jax.errors import UserError

_FRONTAL = ("frontal",)


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """Options of `mmclip data build table`. Lists may be given as one comma-separated string.

    A column option is the column's name in the table, "" to find it by its usual names, or "-" to leave it unused.
    """

    table: str = dataclasses.field(
        metadata={"help": "CSV, TSV, Excel or Parquet file with a row for each image or study"}
    )
    images: str = dataclasses.field(metadata={"help": "folder that the image column's paths are relative to"})
    name: str = dataclasses.field(metadata={"help": "name of the data set (directory, and source of its images)"})
    unpaired_table: str = option("", "second table, of images with labels only (its report columns are not read)")
    unpaired_images: str = option("", "folder of the second table's images; default: that of --images")

    join: str = option(
        "path",
        "how rows find images: path, of the image column; accession or sop, by accession number or SOP instance UID in "
        "DICOM headers; folder, all images of a study's folder",
        tuple(JOINS),
    )
    allow_outside: bool = option(False, "paths of images may lead out of --images (.., absolute paths, links)")

    image_column: str = option("", "column of image paths")
    patient_column: str = option(
        "", "column of patient ids (if each image is of another patient, name the image column)"
    )
    study_column: str = option("", "column of study ids; default: each image is its own study")
    accession_column: str = option("", "column of accession numbers, for --join accession")
    sop_column: str = option("", "column of SOP instance UIDs, for --join sop")
    view_column: str = option("", "column of views (PA, AP, ...); default: by name, else from DICOM headers")
    sex_column: str = option("", "column of sexes; default: by name, else from DICOM headers")
    age_column: str = option("", "column of ages in years; default: by name, else from DICOM headers")
    report_column: str = option("", "column of whole reports")
    findings_column: str = option("", "column of reports' findings")
    impression_column: str = option("", "column of reports' impressions")
    split_column: str = option("", "column of splits (train, validation, test); default: by patient, see --shares")
    labels_column: str = option("", "column that lists an image's labels, joined by --label-separator; - for none")
    label_columns: tuple[str, ...] = option(
        (),
        "columns of one label each (1 or yes present, 0 or no absent, -1 uncertain, blank unknown); default: all that "
        "are named like a finding; - uses none",
    )
    box_columns: tuple[str, ...] = option((), "one column of box lists, or four: x, y, width, height")
    box_kind_column: str = option("", "column of the finding that a row's box shows")

    label_separator: str = option(
        "auto", 'character between labels: "|", ";", ","; auto: the first of these that occurs'
    )
    label_universe: tuple[str, ...] = option((), "labels the annotators looked for; default: all seen in the column")
    absent_if_unlisted: bool = option(
        True, "what an unlisted finding of the universe is: absent (true) or unknown (false)"
    )
    label_map: tuple[str, ...] = option((), 'what label strings mean, e.g. "NORMAL=no_finding"')
    ignore_labels: tuple[str, ...] = option((), "label strings to leave out")
    box_frame: str = option(
        "", '"pixels" of the file, "fraction", or WIDTHxHEIGHT; default: the number in the column\'s name, else pixels'
    )
    box_format: str = option("xywh", "xywh (corner, width, height) or xyxy (two corners)")
    views: tuple[str, ...] = option(_FRONTAL, "views to keep, e.g. PA,AP; frontal: all but laterals; all: every one")
    sex_map: tuple[str, ...] = option((), 'what the words of the sex column mean, e.g. "0=F,1=M"')

    split: str = option("", "put every row into this one split")
    shares: tuple[float, ...] = option((0.8, 0.1, 0.1), "shares of patients in train, validation, test")
    split_salt: str = option("", "any text; changes which patients are in which split")
    alike_ids: str = alike_option("refuse")

    shorter_side: int = option(256, "pixels of the shorter side of stored images; smaller images stay as they are")
    value_range: str = option("auto", 'white in 16-bit files: "auto", "full" (65535), or the maximum itself')
    encoding: str = option("jpeg", "how changed images are stored: jpeg (quality 95) or png", ("jpeg", "png"))
    max_reject_share: float = option(0.001, "the build stops if more than this share of rows cannot be used")
    entities: str = entities_option()
    language: str = language_option()
    csv_encoding: str = option("utf-8", "character encoding of a CSV file")
    csv_separator: str = option("", "character between columns of a CSV file; default: detected")
    sheet: str = option("", "sheet of an Excel file; default: the first that is not empty")
    workers: int = option(0, "processes that read images; 0: one for each core")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "shares":
                parts = value.split(",") if isinstance(value, str) else value
                try:
                    object.__setattr__(self, field.name, tuple(float(part) for part in parts))
                except ValueError:
                    raise UserError(f"shares {value!r} are not numbers; e.g. 0.8,0.1,0.1") from None
            elif isinstance(field.default, tuple):
                parts = value.split(",") if isinstance(value, str) else value
                object.__setattr__(self, field.name, tuple(part.strip() for part in parts if part.strip()))
        self._check()

    @property
    def white(self) -> str | int:
        """`value_range` as `images.store_image` takes it."""
        return self.value_range if self.value_range in ("auto", "full") else int(self.value_range)

    def _check(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise UserError(f"name {self.name!r}: use small letters, digits and _ only, a letter first")
        if self.name == "phantom":
            raise UserError("name 'phantom' is that of the built-in data set, whose texts are shown: choose another")
        bad = ranges.Several(ranges.SHARE).problem(self.shares)
        if bad or len(self.shares) != 3 or abs(sum(self.shares) - 1) > 1e-6:
            raise UserError(f"shares {self.shares}: three numbers, for train, validation, test, that sum to 1")
        if self.split and self.split not in SPLITS:
            raise UserError(f"split {self.split!r} is not one of {', '.join(SPLITS)}")
        for name, known in (
            ("encoding", ("jpeg", "png")),
            ("alike_ids", ALIKE_POLICIES),
            ("join", tuple(JOINS)),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"{name.replace('_', ' ')} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.box_format not in ("xywh", "xyxy"):
            raise UserError(f"box format {self.box_format!r} is not xywh or xyxy")
        if len(self.box_columns) not in (0, 1, 4):
            raise UserError(f"box columns {', '.join(self.box_columns)}: give one column of lists, or four of numbers")
        check_storing(self.shorter_side, self.max_reject_share, self.workers)
        if self.value_range not in ("auto", "full") and not re.fullmatch(r"[1-9]\d{0,4}", self.value_range):
            raise UserError(f"value range {self.value_range!r} is not auto, full or a maximum such as 4095")
        for item in self.label_map:
            if "=" not in item:
                raise UserError(f"label map {item!r}: write LABEL=finding")
        for item in self.sex_map:
            if item.rpartition("=")[2] not in ("M", "F", "") or "=" not in item:
                raise UserError(f"sex map {item!r}: write WORD=M, WORD=F, or WORD= for unknown")
        parse_frame(self.box_frame)
