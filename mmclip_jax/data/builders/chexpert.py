"""CheXpert of Stanford, in its small and its full size."""

import os
import re
from collections.abc import Iterator, Mapping

from mmclip_jax.data import prompts
from mmclip_jax.data.builders.cells import BadRow, label_state, parse_sex
from mmclip_jax.data.builders.collection import Collection, Item, Reject
from mmclip_jax.data.schema import LabelState

_NOT_LABELS = frozenset({"Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"})
_PATH = re.compile(r"(?:.*?/)?((?:train|valid|test)/(patient\d+)/(study\d+)/view\d+_(?:frontal|lateral)\.jpg)")


class CheXpert(Collection):
    """223,414 training images of 64,540 patients with labels mined from reports; validation and test by radiologists.

    The splits are the official ones. In the training labels 1 is present, 0 absent, -1 uncertain and blank unknown;
    `uncertain` says what becomes of -1, and the facts keep that choice.
    """

    name = "chexpert"
    description = "CheXpert: 224,316 radiographs of 65,240 patients with 14 labels."
    citation = "Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels, AAAI 2019."
    licence = "Stanford University Dataset Research Use Agreement (no sharing, no commercial use)."
    instructions = (
        "register at stanfordaimi.azurewebsites.net (CheXpert) and download CheXpert-v1.0 (439 GB) or "
        "CheXpert-v1.0-small (11 GB) with train.csv and valid.csv; test_labels.csv and the test images come with "
        "CheXlocalize there. Give the folder that holds train.csv."
    )

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of train.csv, then of valid.csv and test_labels.csv where they are there."""
        tables = [(self.required("train.csv", "train.csv.gz"), "train")]
        for name, split in (("valid.csv", "validation"), ("test_labels.csv", "test")):
            if (self.manual_dir / name).is_file():
                tables.append((self.manual_dir / name, split))
        seen: set[str] = set()
        for file, split in tables:
            for number, row in self.table(file, "Path"):
                match = _PATH.fullmatch(row["Path"])
                if not match or match[1] in seen:
                    reason = (
                        "the image was named before" if match else "the path is not .../patientN/studyN/viewN_...jpg"
                    )
                    yield Reject(file.name, number, row["Path"], reason)
                    continue
                seen.add(match[1])
                try:
                    labels = _labels(row)
                    sex = parse_sex(row.get("Sex", ""))
                except BadRow as bad:
                    yield Reject(file.name, number, match[1], str(bad))
                    continue
                yield Item(
                    table=file.name,
                    row=number,
                    file=self._find(row["Path"], match[1]),
                    id=match[1],
                    patient=match[2],
                    study=f"{match[2]}/{match[3]}",
                    split=split,
                    view=_view(row),
                    sex=sex,
                    age=self.age(row.get("Age", ""), file.name, number, match[1]),
                    labels=labels,
                )

    def _find(self, path: str, inner: str) -> str:
        """Tables name the folder that the archive had ("CheXpert-v1.0-small/..."); users have others."""
        for place in (self.manual_dir / inner, self.manual_dir / path, self.manual_dir.parent / path):
            if os.path.isfile(place):
                return str(place)
        return ""


def _view(row: Mapping[str, str]) -> str:
    """AP or PA where the table says so; the file name tells frontal from lateral. A few frontal ones are headed LL."""
    if "_lateral" in row["Path"]:
        return "LATERAL"
    return row.get("AP/PA", "") if row.get("AP/PA") in ("AP", "PA") else ""


def _labels(row: Mapping[str, str]) -> dict[str, LabelState]:
    labels: dict[str, LabelState] = {}
    for name, cell in row.items():
        kind = None if name in _NOT_LABELS else prompts.kind_of(name)
        state = None if kind is None else label_state(name, cell)
        if kind is not None and state is not None:
            labels[kind] = state
    if diseases := prompts.beside_no_finding(k for k, state in labels.items() if state == LabelState.PRESENT):
        raise BadRow(f"labelled as no finding and as {', '.join(diseases)}")
    return labels


BUILDER = CheXpert
