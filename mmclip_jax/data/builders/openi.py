"""The Indiana University chest X-ray collection, as Open-I of the NLM or as Kaggle has it."""

import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from mmclip_jax.data.builders import files
from mmclip_jax.data.builders.cells import BadRow
from mmclip_jax.data.builders.collection import Collection
from mmclip_jax.data.builders.items import ON_PURPOSE, Item, Reject
from mmclip_jax.data.builders.labels import Beside, settle_no_finding
from mmclip_jax.data.builders.options import ReportOptions
from mmclip_jax.data.schema import LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.text import prompts
from mmclip_jax.text.reports import Reader

_MAX_BYTES = 1_000_000
_SERIES = re.compile(r"IM-[0-9-]+")
_VIEWS = {"Frontal": "", "Lateral": "LATERAL"}


class OpenI(Collection):
    """7,470 images of 3,955 studies with reports and manual MeSH codes.

    Every study is a patient of its own, as far as is published, and there is no official split: patients are divided by
    a hash of their number. The codes say what is there ("normal" means no finding); what is not coded is unknown. The
    NLM's copy does not tell frontal from lateral images: Kaggle's `indiana_projections.csv` does, for both copies.
    """

    name = "openi"
    no_finding = Beside.BELIEVE
    description = "Indiana University / Open-I: 7,470 radiographs of 3,955 studies with reports."
    citation = "Demner-Fushman et al., Preparing a collection of radiology examinations for distribution, JAMIA 2016."
    licence = "CC BY-NC-ND 4.0."
    instructions = (
        "download NLMCXR_png.tgz (1.2 GB; or NLMCXR_dcm.tgz, DICOM, 80 GB) and NLMCXR_reports.tgz (ecgen-radiology/) "
        "from openi.nlm.nih.gov/faq and unpack both into one folder, with indiana_projections.csv of Kaggle's "
        "chest-xrays-indiana-university beside them; or that copy whole (indiana_reports.csv, "
        "indiana_projections.csv, images/, 14 GB)."
    )
    Options = ReportOptions

    def __init__(self, options: Any, data_dir: str | os.PathLike[str]):
        super().__init__(options, data_dir)
        self._reader = Reader()

    def facts(self) -> Mapping[str, object]:
        """What was read of the reports."""
        return self._reader.facts()

    def read(self) -> Iterator[Item | Reject]:
        """Yields the images of each report, in the order of the reports' numbers."""
        views = self._views()
        reports = self.optional("indiana_reports.csv")
        if reports is not None:
            yield from self._read_kaggle(reports, views)
        else:
            yield from self._read_nlm(views)

    def _views(self) -> dict[tuple[str, str], tuple[str, str]]:
        """(study number, series) -> (file name at Kaggle, view)."""
        file = self.optional("indiana_projections.csv")
        if file is None:
            if self.options.views == "frontal":
                raise UserError(
                    f"{self.manual_dir} has no indiana_projections.csv, which alone tells frontal from lateral images; "
                    f"get it, or take both with --views all. How to get {self.name}: {self.instructions}"
                )
            return {}
        views = {}
        for number, row in self.table(file, "uid", "filename", "projection", count=False):
            series = _SERIES.search(row["filename"])
            if series is None or row["projection"] not in _VIEWS:
                reason = "the file name has no series, or the projection is neither Frontal nor Lateral"
                self.rejects.append(Reject(file.name, number, row["filename"], reason))
                continue
            views[row["uid"], series[0].rstrip("-")] = row["filename"], _VIEWS[row["projection"]]
        return views

    def _read_kaggle(
        self, file: pathlib.Path, views: dict[tuple[str, str], tuple[str, str]]
    ) -> Iterator[Item | Reject]:
        of_study: dict[str, list[tuple[str, str]]] = {}
        for (uid, _), image in views.items():
            of_study.setdefault(uid, []).append(image)
        for number, row in self.table(file, "uid", "MeSH", "findings", "impression"):
            shown = [(name, self.index.find(name), view) for name, view in of_study.get(row["uid"], [])]
            codes = [code for code in row["MeSH"].split(";") if code.strip()]
            texts = {name.upper(): row.get(name, "") for name in ("findings", "impression", "indication", "comparison")}
            yield from self._items(file.name, number, row["uid"], codes, texts, shown)

    def _read_nlm(self, views: dict[tuple[str, str], tuple[str, str]]) -> Iterator[Item | Reject]:
        reports = sorted(self.index.tables(r".*\.xml"), key=lambda file: (len(file.stem), file.stem))
        if not reports:
            raise UserError(f"{self.manual_dir} has no reports (*.xml); how to get {self.name}: {self.instructions}")
        for file in reports:
            self.rows += 1
            try:
                root = _parse(file)
                uid = root.find("uId")
                number = "" if uid is None else str(uid.get("id", "")).removeprefix("CXR")
                if not number:
                    raise BadRow("the report has no number (uId)")
            except BadRow as bad:
                yield Reject(file.name, 1, "", str(bad))
                continue
            texts = {str(part.get("Label")).upper(): "".join(part.itertext()) for part in root.iter("AbstractText")}
            shown = []
            for parent in root.iter("parentImage"):
                name = str(parent.get("id", ""))
                series = _SERIES.search(name)
                _, view = views.get((number, series[0].rstrip("-")) if series else ("", ""), ("", "UNKNOWN"))
                shown.append((f"{name}.png", self._find(name), view))
            codes = [_text(code) for code in root.findall("MeSH/major")]
            yield from self._items(file.name, 1, number, codes, texts, shown)

    def _find(self, name: str) -> str:
        """The NLM's PNG have the whole name ("CXR1_1_IM-0001-3001.png"), its DICOM and Kaggle's lack the beginning."""
        short = re.sub(r"^CXR\d+_", "", name)
        return self.index.find(f"{name}.png", f"{short}.dcm", f"{short}.dcm.png")

    def _items(
        self,
        table: str,
        row: int,
        study: str,
        codes: Iterable[str],
        texts: Mapping[str, str],
        shown: Iterable[tuple[str, str, str]],
    ) -> Iterator[Item | Reject]:
        shown = list(shown)
        others = {name: text for name, text in texts.items() if name not in ("FINDINGS", "IMPRESSION")}
        report = self._reader.columns(study, texts.get("FINDINGS", ""), texts.get("IMPRESSION", ""), others)
        findings, impression = report.findings, report.impression
        if not shown or not (findings or impression):
            reason = "the report has neither findings nor impression" if shown else "the report has no image"
            yield Reject(table, row, study, reason, ON_PURPOSE)
            return
        heads = {code.split("/")[0].strip() for code in codes} - {"No Indexing"}
        kinds = {kind for head in heads if (kind := prompts.kind_of(head)) is not None}
        kinds = settle_no_finding(kinds, self.no_finding)
        for name, place, view in shown:
            yield Item(
                table=table,
                row=row,
                file=place,
                id=name,
                patient=study,
                study=study,
                view=view,
                findings=findings,
                impression=impression,
                labels=dict.fromkeys(sorted(kinds), LabelState.PRESENT),
            )


def _parse(file: pathlib.Path) -> ElementTree.Element:
    """A report's XML. Entities are refused: published reports have none, and a few lines of them can fill memory."""
    try:
        data = files.read_bytes(file, 64 * _MAX_BYTES)
    except (UserError, OSError) as error:
        raise BadRow(f"the report cannot be read ({error})") from None
    if len(data) > _MAX_BYTES:
        raise BadRow(f"the report has {len(data)} bytes, more than {_MAX_BYTES}")
    if b"<!ENTITY" in data or b"<!DOCTYPE" in data:
        raise BadRow("the report declares a document type or entities, as no published one does")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadRow(f"the report is not valid XML ({error})") from None


def _text(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


BUILDER = OpenI
