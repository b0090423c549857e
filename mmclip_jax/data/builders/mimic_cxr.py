"""MIMIC-CXR-JPG of Beth Israel Deaconess Medical Center, with the reports of MIMIC-CXR."""

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmclip_jax.data.builders.cells import BadRow, label_state, parse_split, parse_view
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.files import TABLE_PACKINGS
from mmclip_jax.data.builders.items import ON_PURPOSE, Item, Reject
from mmclip_jax.data.builders.labels import Beside, without_contradiction
from mmclip_jax.data.builders.options import ReportOptions, option
from mmclip_jax.data.builders.reading import OTHER_HEADINGS
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts
from mmclip_jax.text.reports import Reader

_MANUAL = "mimic-cxr-2.1.0-test-set-labeled.csv"
_PLAIN = re.compile(r"[A-Za-z0-9-]+")  # ids become parts of paths
_VIEWS = {"LL": "LATERAL", "LATERAL": "LATERAL", "": "UNKNOWN"}


@dataclasses.dataclass(frozen=True)
class MimicCxrOptions(ReportOptions):
    """Options of the builder of MIMIC-CXR."""

    labels: str = option("chexpert", "which labeller's labels to keep", ("chexpert", "negbio", "none"))
    test_labels: str = option(
        "manual", "labels of the test split: manual, a radiologist's where their table (of 2.1.0) is there; or mined",
        ("manual", "mined"),
    )  # fmt: skip
    without_report: str = option(
        "leave-out", "images whose report has neither findings nor impression: leave-out, or keep them as unpaired",
        ("leave-out", "unpaired"),
    )  # fmt: skip


class MimicCxr(Collection):
    """377,110 images of 227,827 studies of 65,379 patients, with reports in English.

    Splits are the official ones. Where the table of a radiologist's labels is there (2.1.0 has it, for 687 studies),
    labels of the test split come from it alone, and the build tells so. A report's findings and impression are stored;
    both tables and raw text files of reports are understood, and give the same texts. Sections are told as the official
    parser tells them (see `data.headings`): where there is neither FINDINGS nor IMPRESSION, the last paragraphs are
    findings; what precedes the first heading, WET READ, ADDENDUM, RECOMMENDATION(S), NOTIFICATION and the like are left
    out, and counted.
    """

    name = "mimic_cxr"
    no_finding = Beside.KEEP
    description = "MIMIC-CXR-JPG: 377,110 radiographs of 65,379 patients with reports and mined labels."
    citation = "Johnson et al., MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs, 2019."
    licence = "PhysioNet Credentialed Health Data License 1.5.0 (training and a signed agreement)."
    instructions = (
        "become a credentialed user of physionet.org and download mimic-cxr-jpg 2.0.0 or 2.1.0 (files/, 570 GB, and "
        "mimic-cxr-2.0.0-metadata.csv.gz, -split.csv.gz, -chexpert.csv.gz, -negbio.csv.gz; of 2.1.0 also "
        "mimic-cxr-2.1.0-test-set-labeled.csv), and from mimic-cxr 2.0.0 "
        "mimic-cxr-reports.zip, unpacked beside it (or mimic_cxr_sectioned.csv made of it)."
    )
    Options = MimicCxrOptions

    def __init__(self, options: Any, data_dir: str | os.PathLike[str]):
        super().__init__(options, data_dir)
        self._test_images: collections.Counter[str] = collections.Counter()
        self._reader = Reader()

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of the metadata table, in its order."""
        file = self._named("metadata")
        split_of = {
            row["dicom_id"]: row["split"]
            for _, row in self.table(self._named("split"), "dicom_id", "split", count=False)
        }
        labels_of = self._labels()
        manual_of = self._manual_labels(file.parent)
        report_of = self._reports()
        for number, row in self.table(file, "dicom_id", "subject_id", "study_id", "ViewPosition"):
            image = row["dicom_id"]
            item = self.attempt(file.name, number, image, self._item, file, number, row, split_of)
            if isinstance(item, Reject):
                yield item
                continue
            labels = labels_of.get(item.study, {})
            if item.split == "test" and manual_of is not None:
                labels = manual_of.get(item.study, {})
                self._test_images["labelled" if labels else "without_labels"] += 1
            item = dataclasses.replace(item, labels=labels)
            if not self._unwanted(item):
                findings, impression = report_of(item.patient, item.study)
                if findings or impression:
                    item = dataclasses.replace(item, findings=findings, impression=impression)
                elif self.options.without_report == "leave-out" or not item.labels:
                    yield Reject(file.name, number, image, "the report has neither findings nor impression", ON_PURPOSE)
                    continue
            yield item
        if manual_of is not None:
            labelled, others = self._test_images["labelled"], self._test_images["without_labels"]
            self.notes.append(
                f"labels of the test split are a radiologist's ({_MANUAL}): {labelled} images have them, {others} are "
                f"left without labels; --test-labels mined takes the labeller's for all"
            )

    def _item(self, file: pathlib.Path, number: int, row: Mapping[str, str], split_of: Mapping[str, str]) -> Item:
        image, patient, study = (row[name] for name in ("dicom_id", "subject_id", "study_id"))
        if not (image and patient and study):
            raise BadRow("no image, patient or study is named")
        if not all(map(_PLAIN.fullmatch, (image, patient, study))):
            raise BadRow("an id has other characters than letters, digits and hyphens")
        if image not in split_of:
            raise BadRow("the image is not in the table of splits")
        split = parse_split("validation" if split_of[image] == "validate" else split_of[image])
        place = f"files/p{patient[:2]}/p{patient}/s{study}/{image}.jpg"
        found = next((root / place for root in (file.parent, self.manual_dir) if os.path.isfile(root / place)), "")
        view = parse_view(row["ViewPosition"])
        return Item(
            table=file.name,
            row=number,
            file=str(found),
            id=image,
            patient=patient,
            study=study,
            split=split,
            view=_VIEWS.get(view, view),
        )

    def facts(self) -> Mapping[str, object]:
        """What was read of the reports, and how many images of the test split have a radiologist's labels, if used."""
        manual = {"test_labels": {"from": _MANUAL, **self._test_images}} if self._test_images else {}
        return {**manual, **self._reader.facts()}

    def _named(self, what: str) -> pathlib.Path:
        return self.required(f"mimic-cxr-2.0.0-{what}.csv.gz")

    def _labels(self) -> dict[str, dict[str, LabelState]]:
        """Study -> labels."""
        return {} if self.options.labels == "none" else self._read_labels(self._named(self.options.labels))

    def _manual_labels(self, folder: pathlib.Path) -> dict[str, dict[str, LabelState]] | None:
        """Study -> labels by a radiologist; None where they are not there or not wanted."""
        if self.options.labels == "none" or self.options.test_labels != "manual":
            return None
        files = [folder / f"{_MANUAL}{packing}" for packing in TABLE_PACKINGS]
        file = next((file for file in files if file.is_file()), None)
        return None if file is None else self._read_labels(file)

    def _read_labels(self, file: pathlib.Path) -> dict[str, dict[str, LabelState]]:
        found: dict[str, dict[str, LabelState]] = {}
        for number, row in self.table(file, "study_id", count=False):
            labels: dict[str, LabelState] = {}
            for name, cell in row.items():
                heading = OTHER_HEADINGS.get(name, name)
                kind = None if name in ("subject_id", "study_id") else prompts.kind_of(heading)
                try:
                    state = None if kind is None else label_state(name, cell)
                except BadRow as bad:
                    self.rejects.append(Reject(file.name, number, row["study_id"], str(bad), "label left out"))
                    continue
                if kind is not None and state is not None:
                    labels[kind] = state
            found[row["study_id"]] = without_contradiction(labels, self.no_finding)
        return found

    def _reports(self) -> Callable[[str, str], tuple[str, str]]:
        """A function from patient and study to findings and impression, "" where there are none."""
        for name in ("mimic_cxr_sectioned.csv", "mimic_cxr_sectioned.csv.gz"):
            if (self.manual_dir / name).is_file():
                return self._sectioned(self.manual_dir / name)
        roots = [self.manual_dir / name for name in ("mimic-cxr-reports/files", "files")]
        root = next((root for root in roots if next(root.glob("p*/p*/s*.txt"), None)), None)
        if root is None:
            raise UserError(
                f"{self.manual_dir} has no reports, neither mimic_cxr_sectioned.csv nor p*/p*/s*.txt below "
                f"mimic-cxr-reports/files or files; how to get them: {self.instructions}"
            )

        def read(patient: str, study: str) -> tuple[str, str]:
            file = root / f"p{patient[:2]}" / f"p{patient}" / f"s{study}.txt"
            if not file.is_file():
                return "", ""
            with open(file, encoding="utf-8", errors="replace", newline="") as stream:
                report = self._reader.report(study, stream.read(), beginning_counts=False)
            return report.findings, report.impression

        return read

    def _sectioned(self, file: pathlib.Path) -> Callable[[str, str], tuple[str, str]]:
        """`_reports` by the table that the official scripts make: study, impression, findings, last_paragraph."""
        rows = self.table(file, "study", "findings", "impression", count=False)
        by_study = {row["study"].removeprefix("s"): row for _, row in rows}

        def read(patient: str, study: str) -> tuple[str, str]:
            row = by_study.get(study, {})
            others: dict[str, str] = {name: row[name] for name in ("last_paragraph", "comparison") if name in row}
            report = self._reader.columns(study, row.get("findings", ""), row.get("impression", ""), others)
            return report.findings, report.impression

        return read


BUILDER = MimicCxr
