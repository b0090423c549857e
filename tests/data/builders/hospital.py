"""An invented hospital's export: DICOM files as a PACS writes them, and an Excel table that came with them."""

import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from dicoms import dataset, written

SOP = "1.2.826.0.1.3680043.9999"
REPORTS = (
    "EXAMINATION: Chest, two views.\nINDICATION: Cough, fever.\nFINDINGS: There is a small right pleural effusion. The "
    "heart is enlarged.\nIMPRESSION: Small pleural effusion and cardiomegaly.",
    "EXAMINATION: Chest, two views.\nINDICATION: Preoperative.\nFINDINGS: The lungs are clear. No pneumothorax.\n"
    "IMPRESSION: No acute cardiopulmonary process.",
    "EXAMINATION: Chest, two views.\nINDICATION: Fall.\nFINDINGS: There is a left pneumothorax. No pleural effusion.\n"
    "IMPRESSION: Left pneumothorax.",
)


def xlsx(file: pathlib.Path, rows: Sequence[Sequence[Any]], sheet: str = "Export") -> str:
    """Writes a minimal Excel workbook of one sheet: text as inline strings, numbers as numbers."""

    def cell(value: Any) -> str:
        if value is None:
            return "<c/>"
        if isinstance(value, int | float):
            return f"<c><v>{value}</v></c>"
        return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'

    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    lines = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" '
        f'ContentType="{kind}.sheet.main+xml"/><Override PartName="/xl/worksheets/sheet1.xml" '
        f'ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="{sheet}" sheetId="1" '
        f'r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{lines}</sheetData></worksheet>',
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')
    return str(file)


def film(file: pathlib.Path, seed: int, **header: Any) -> None:
    """Writes a small radiograph with such a header; a SOP instance UID that the seed gives."""
    stored = np.random.default_rng(seed).integers(0, 4096, (24, 20), dtype=np.uint16)
    ds = dataset(stored, 12, PatientID="", **header)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{SOP}.{seed}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(written(ds))


def export(folder: pathlib.Path, studies: int = 34) -> tuple[str, str]:
    """(table, folder of images) of an export: two views a study, a row an image, names without suffix.

    Half of the files have the suffix .DCM, the others none; views stand in the headers only.
    """
    images = folder / "PACS"
    rows: list[list[Any]] = [
        ["Datei", "PatID", "Geschlecht", "Alter", "Befund", "Diagnosis", "Pneumothorax", "Stauung", "Bemerkung"]
    ]
    for n in range(studies):
        which = n % len(REPORTS)
        for view in range(2):
            name = f"E{n:03d}/IM{2 * n + view:04d}"
            where: dict[str, Any] = {"ViewPosition": "PA"} if view == 0 else {"ViewPosition": "LL"}
            if n % 3 == 1:
                where = {"SeriesDescription": ("Thorax p.a.", "Thorax seitlich")[view]}
            if n % 3 == 2:
                where = {"PatientOrientation": (["L", "F"], ["A", "F"])[view]}
            film(
                images / (name + (".DCM" if n % 2 else "")),
                2 * n + view,
                StudyInstanceUID=f"{SOP}.77.{n}",
                AccessionNumber=f"00{4000 + n}",
                PatientSex="",
                **where,
            )
            yes = ("ja", "nein")
            rows.append(
                [
                    name,
                    20000000 + n % 29,
                    ("weiblich", "männlich")[n % 29 % 2],
                    20 + n % 29,
                    REPORTS[which],
                    ("J90", "Z01.8", "S27.0")[which],
                    yes[which != 2],
                    yes[n % 2],
                    None if n % 5 else "siehe Vorbefund",
                ]
            )
    return xlsx(folder / "Export Röntgen.xlsx", rows), str(images)
