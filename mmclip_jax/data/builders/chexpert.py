"""CheXpert of Stanford, in its small and its full size, with the labels and images of CheXlocalize."""

import functools
import re
from collections.abc import Iterator, Mapping

from mmclip_jax.data.builders import files
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.items import Item, Reject
from mmclip_jax.data.builders.labels import Beside
from mmclip_jax.data.builders.reading import labels_of_columns

_NOT_LABELS = frozenset({"Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"})
_PATH = re.compile(
    r"(?:.*/)?(?:train|valid|val|test)/(patient[0-9]+)/(study[0-9]+)/(view[0-9]+_(?:frontal|lateral)\.(?:jpe?g|png))",
    re.ASCII,
)
# Split -> (the folder that ids name, its tables). CheXlocalize's table of the validation part has the images and labels
# of valid.csv, but neither sex nor age.
_TABLES = {
    "train": ("train", ("train.csv",)),
    "validation": ("valid", ("valid.csv", "val_labels.csv")),
    "test": ("test", ("test_labels.csv",)),
}
_BATCHES = r"(?i)CheXpert-v1\.0 batch \d.*"


class CheXpert(Collection):
    """223,414 training images of 64,540 patients with labels mined from reports; validation and test by radiologists.

    The splits are the official ones. In the training labels 1 is present, 0 absent, -1 uncertain and blank unknown;
    `uncertain` says what becomes of -1, and the facts keep that choice. Images are found by patient, study and view, in
    the folders of the small size as in the four batches of the full one, unpacked or not.
    """

    name = "chexpert"
    no_finding = Beside.REFUSE
    description = "CheXpert: 224,316 radiographs of 65,240 patients with 14 labels."
    citation = "Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels, AAAI 2019."
    licence = "Stanford University Dataset Research Use Agreement (no sharing, no commercial use)."
    instructions = (
        "register at stanfordaimi.azurewebsites.net (CheXpert) and download the four batches of CheXpert-v1.0 (439 GB; "
        "batch 1 has train.csv, valid.csv and the folder valid/, batches 2 to 4 the training images) or "
        "CheXpert-v1.0-small (11 GB: train.csv, valid.csv, train/, valid/); the test part (CheXpert/test_labels.csv, "
        "val_labels.csv, test/, val/) comes with CheXlocalize there. Give the folder that holds it all."
    )
    index_depth = 3

    @functools.cached_property
    def index(self) -> files.FileIndex:
        """All files; where the first batch was named, those of its siblings too."""
        if re.fullmatch(_BATCHES, self.manual_dir.resolve().name):
            return files.FileIndex(self.manual_dir.resolve().parent, self.index_depth, _BATCHES)
        return super().index

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of the tables of training, validation and test, as far as they are there."""
        seen: set[str] = set()
        any_table = False
        for split, (folder, names) in _TABLES.items():
            file = self.optional(*names)
            if file is None:
                continue
            any_table = True
            for number, row in self.table(file, "Path"):
                match = _PATH.fullmatch(row["Path"])
                id = f"{folder}/{match[1]}/{match[2]}/{match[3]}" if match else ""
                if match is None or id in seen:
                    reason = (
                        "the image was named before" if match else "the path is not .../patientN/studyN/viewN_...jpg"
                    )
                    yield Reject(file.name, number, row["Path"], reason)
                    continue
                seen.add(id)
                yield self.attempt(file.name, number, id, self._item, file.name, number, row, id, match, split)
        if not any_table:
            self.required("train.csv")

    def _item(self, table: str, number: int, row: Mapping[str, str], id: str, match: re.Match[str], split: str) -> Item:
        return Item(
            table=table,
            row=number,
            file=self.index.find(row["Path"]),
            id=id,
            patient=match[1],
            study=f"{match[1]}/{match[2]}",
            split=split,
            view=_view(row),
            sex=self.sex(row.get("Sex", ""), table, number, id),
            age=self.age(row.get("Age", ""), table, number, id),
            labels=labels_of_columns(row, _NOT_LABELS, self.no_finding),
        )


def _view(row: Mapping[str, str]) -> str:
    """AP or PA where the table says so; the file name tells frontal from lateral. A few frontal ones are headed LL."""
    if "_lateral" in row["Path"]:
        return "LATERAL"
    return row.get("AP/PA", "") if row.get("AP/PA") in ("AP", "PA") else ""


BUILDER = CheXpert
