"""MIMIC-CXR-JPG of Beth Israel Deaconess Medical Center, with the reports of MIMIC-CXR."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmclip_jax.data import prompts
from mmclip_jax.data.builders.cells import BadRow, label_state, parse_split, parse_view
from mmclip_jax.data.builders.collection import ON_PURPOSE, Collection, Item, Reject, ReportOptions, option
from mmclip_jax.data.reports import Reader
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError

_VIEWS = {"LL": "LATERAL", "LATERAL": "LATERAL", "": "UNKNOWN"}


@dataclasses.dataclass(frozen=True)
class MimicCxrOptions(ReportOptions):
    """What the build of MIMIC-CXR can be told."""

    labels: str = option("chexpert", "which labeller's labels to keep", ("chexpert", "negbio", "none"))
    without_report: str = option(
        "leave-out", "images whose report has neither findings nor impression: leave-out, or keep them as unpaired",
        ("leave-out", "unpaired"),
    )  # fmt: skip


class MimicCxr(Collection):
    """377,110 images of 227,827 studies of 65,379 patients, with reports in English.

    Splits are the official ones. A report's findings and impression are stored; both tables and raw text files of
    reports are understood, and give the same texts. Sections are told as the official parser tells them (see
    `data.headings`): where there is neither FINDINGS nor IMPRESSION, the last paragraphs are findings; what precedes
    the first heading, WET READ, ADDENDUM, RECOMMENDATION(S), NOTIFICATION and the like are left out, and counted.
    """

    name = "mimic_cxr"
    description = "MIMIC-CXR-JPG: 377,110 radiographs of 65,379 patients with reports and mined labels."
    citation = "Johnson et al., MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs, 2019."
    licence = "PhysioNet Credentialed Health Data License 1.5.0 (training and a signed agreement)."
    instructions = (
        "become a credentialed user of physionet.org and download mimic-cxr-jpg 2.0.0 or 2.1.0 (files/, 570 GB, and "
        "mimic-cxr-2.0.0-metadata.csv.gz, -split.csv.gz, -chexpert.csv.gz, -negbio.csv.gz), and from mimic-cxr 2.0.0 "
        "mimic-cxr-reports.zip, unpacked beside it (or mimic_cxr_sectioned.csv made of it)."
    )
    Options = MimicCxrOptions

    def __init__(self, options: Any, data_dir: str | os.PathLike[str]):
        super().__init__(options, data_dir)
        self._reader = Reader()

    def facts(self) -> Mapping[str, Any]:
        """What was read of the reports."""
        return self._reader.facts()

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of the metadata table, in its order."""
        file = self._named("metadata")
        split_of = {
            row["dicom_id"]: row["split"]
            for _, row in self.table(self._named("split"), "dicom_id", "split", count=False)
        }
        labels_of = self._labels()
        report_of = self._reports()
        for number, row in self.table(file, "dicom_id", "subject_id", "study_id", "ViewPosition"):
            image, patient, study = row["dicom_id"], row["subject_id"], row["study_id"]
            try:
                if not (image and patient and study):
                    raise BadRow("no image, patient or study is named")
                if image not in split_of:
                    raise BadRow("the image is not in the table of splits")
                split = parse_split("validation" if split_of[image] == "validate" else split_of[image])
            except BadRow as bad:
                yield Reject(file.name, number, image, str(bad))
                continue
            place = f"files/p{patient[:2]}/p{patient}/s{study}/{image}.jpg"
            view = parse_view(row["ViewPosition"])
            item = Item(
                table=file.name,
                row=number,
                file=str(self.manual_dir / place) if os.path.isfile(self.manual_dir / place) else "",
                id=image,
                patient=patient,
                study=study,
                split=split,
                view=_VIEWS.get(view, view),
                labels=labels_of.get(study, {}),
            )
            if not self._unwanted(item):
                findings, impression = report_of(patient, study)
                if findings or impression:
                    item = dataclasses.replace(item, findings=findings, impression=impression)
                elif self.options.without_report == "leave-out" or not item.labels:
                    yield Reject(file.name, number, image, "the report has neither findings nor impression", ON_PURPOSE)
                    continue
            yield item

    def _named(self, what: str) -> pathlib.Path:
        return self.required(f"mimic-cxr-2.0.0-{what}.csv.gz", f"mimic-cxr-2.0.0-{what}.csv")

    def _labels(self) -> dict[str, dict[str, LabelState]]:
        """Study -> labels."""
        if self.options.labels == "none":
            return {}
        file = self._named(self.options.labels)
        found: dict[str, dict[str, LabelState]] = {}
        for number, row in self.table(file, "subject_id", "study_id", count=False):
            labels: dict[str, LabelState] = {}
            for name, cell in row.items():
                kind = None if name in ("subject_id", "study_id") else prompts.kind_of(name)
                try:
                    state = None if kind is None else label_state(name, cell)
                except BadRow as bad:
                    self.rejects.append(Reject(file.name, number, row["study_id"], str(bad), "label left out"))
                    continue
                if kind is not None and state is not None:
                    labels[kind] = state
            found[row["study_id"]] = labels
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
