"""COVIDx CXR of the University of Waterloo, up to CXR-4."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

from mmclip_jax.data.builders import files
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.items import ON_PURPOSE, Item, Reject
from mmclip_jax.data.builders.labels import Beside
from mmclip_jax.data.builders.options import CollectionOptions, option
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text.vocabulary import NO_FINDING

_P, _A = LabelState.PRESENT, LabelState.ABSENT
# From CXR-2 on there are two classes. "negative" is all that is no COVID-19: healthy people and other pneumonias, and
# the lists do not tell which. "positive" is by a test of the person: the image may be without a finding.
_CLASSES = {
    "positive": {"covid_19": _P},
    "negative": {"covid_19": _A},
    "covid-19": {"covid_19": _P},
    "pneumonia": {"pneumonia": _P, "covid_19": _A, NO_FINDING: _A},
    "normal": {NO_FINDING: _P, "pneumonia": _A, "covid_19": _A},
}
_FOLDERS = {"train": "train", "validation": "val", "test": "test"}


@dataclasses.dataclass(frozen=True)
class CovidXOptions(CollectionOptions):
    """Options of the builder of COVIDx."""

    version: str = option("", "part of the lists' names, such as COVIDx9B, where several versions lie in one folder")
    shared_patients: str = option(
        "out-of-train", "images of a patient that the lists have in two splits: leave them out-of-train or out-of-test",
        ("out-of-train", "out-of-test"),
    )  # fmt: skip


class CovidX(Collection):
    """Up to 84,818 images put together from other collections; COVID-19 or not.

    Its lists give the splits; val*.txt is there from CXR-4 on; without it, training patients are divided nine to one.
    From CXR-2 on, "negative" says that it is no COVID-19, and nothing else: pneumonia and "no finding" are unknown.
    Patient numbers are unique within a source only. Published lists have patients in two splits: images of such a
    patient stay in one of them and are left out of the other on purpose.
    """

    name = "covidx"
    no_finding = Beside.NEVER
    description = "COVIDx CXR: radiographs of several public collections, COVID-19 or not."
    citation = "Wang et al., COVID-Net, Scientific Reports 2020; Wu et al., COVIDx CXR-4, 2023."
    licence = "that of each source; academic use."
    instructions = (
        "download covidx-cxr2 (which also holds CXR-3 and CXR-4) from Kaggle: train*.txt, test*.txt, val*.txt and the "
        "folders train/, test/, val/ (30 GB)."
    )
    index_depth = 2  # an image's name is unique in the folder of its split
    Options = CovidXOptions

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of the lists."""
        lists = {split: self._list(split) for split in _FOLDERS}
        for needed in ("train", "test"):
            if lists[needed] is None:
                raise UserError(f"{self.manual_dir} has no {needed}*.txt; how to get {self.name}: {self.instructions}")
        items = [item for split, file in lists.items() if file is not None for item in self._read(file, split)]
        order = ("test", "validation", "train") if self.options.shared_patients == "out-of-train" else (
            "train", "validation", "test",
        )  # fmt: skip
        home: dict[str, str] = {}
        for split in order:
            for item in items:
                if isinstance(item, Item) and item.split == split:
                    home.setdefault(item.patient, split)
        for item in items:
            if isinstance(item, Item) and home[item.patient] != item.split:
                reason = f"in {item.split}, of a patient who is in {home[item.patient]} too"
                yield Reject(item.table, item.row, item.id, reason, ON_PURPOSE)
            elif isinstance(item, Item) and item.split == "train" and lists["validation"] is None:
                yield dataclasses.replace(item, split=self.divided(item.patient))
            else:
                yield item

    def _list(self, split: str) -> pathlib.Path | None:
        stem = _FOLDERS[split]
        listed = [file for file in self.manual_dir.iterdir() if re.fullmatch(rf"{stem}.*\.txt", file.name)]
        listed = sorted(file for file in listed if file.is_file()) or self.index.tables(rf"{stem}.*\.txt")
        found = [file for file in listed if self.options.version in file.name]
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise UserError(f"{self.manual_dir} has several lists ({names}): choose with --version")
        return found[0] if found else None

    def _read(self, file: pathlib.Path, split: str) -> list[Item | Reject]:
        read: list[Item | Reject] = []
        seen: set[str] = set()
        lines = files.read_text(file).splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            self.rows += 1
            words = line.split()
            if len(words) < 4 or words[-2].lower() not in _CLASSES:
                reason = "the line is not: patient, file name, class, source"
                read.append(Reject(file.name, number, "", reason))
                continue
            image, label, source = " ".join(words[1:-2]), words[-2].lower(), words[-1].lower()
            if image in seen:
                read.append(Reject(file.name, number, image, "the image was named before"))
                continue
            seen.add(image)
            read.append(
                Item(
                    table=file.name,
                    row=number,
                    file=self.index.find(f"{_FOLDERS[split]}/{image}"),
                    id=f"{_FOLDERS[split]}/{image}",
                    patient=f"{source}:{words[0]}",
                    study=f"{source}:{image}",
                    split=split,
                    labels=_CLASSES[label],
                )
            )
        return read


BUILDER = CovidX
