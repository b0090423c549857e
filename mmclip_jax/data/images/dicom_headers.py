"""What the header of a DICOM file says of its image, without its pixels: ids, view, side, sex, age.

The codes of views are those of the standard's context group 4010 (PS3.16), in SNOMED CT's and in older numbers.
"""

import dataclasses
import functools
import os
from typing import Any

from mmclip_jax.data.images.dicom import is_dicom, read_elements
from mmclip_jax.data.images.quiet import quiet
from mmclip_jax.data.images.views import view_of, views_in

_START = 4096  # bytes of a file that tell whether it is DICOM, and its transfer syntax
_TAGS = """SOPInstanceUID StudyInstanceUID AccessionNumber PatientID PatientSex PatientAge Modality Rows ViewPosition
    ViewCodeSequence ImageLaterality Laterality PatientOrientation SeriesDescription ProtocolName
    AcquisitionDeviceProcessingDescription"""
_CODES = {
    "399348003": "AP", "R-10206": "AP",
    "272479007": "PA", "R-40888": "PA", "R-10214": "PA",
    "399067008": "LATERAL", "R-102CD": "LATERAL", "399173006": "LATERAL", "R-10236": "LATERAL",
    "399198007": "LATERAL", "R-10232": "LATERAL", "30730003": "LATERAL", "G-A145": "LATERAL",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Header:
    """Texts as the file has them, "" where it does not say; `view` is PA, AP, LATERAL or the file's own word.

    laterality: L, R, B or U of the part that is shown; is_image: whether there are pixels.
    """

    sop: str = ""
    study: str = ""
    accession: str = ""
    patient: str = ""
    view: str = ""
    laterality: str = ""
    sex: str = ""
    age: str = ""
    series: str = ""
    modality: str = ""
    is_image: bool = False


def read(file: str) -> Header | None:
    """The header of a file; None if it is no DICOM file, or its header cannot be read."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return _read(file, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=200_000)
def _read(file: str, size: int, changed: int) -> Header | None:
    """`size` and `changed` tell a file that was written anew."""
    if not is_dicom_file(file):
        return None
    try:
        with quiet():  # pydicom looks at a value when it is asked for, and quotes it in what it warns of
            return _header(read_elements(file, _TAGS.split()))
    except Exception:  # pydicom raises whatever a damaged file leads to; reading the image will say what is wrong
        return None


def _header(found: Any) -> Header:
    def text(name: str) -> str:
        value = found.get(name)
        value = value[0] if isinstance(value, list) or type(value).__name__ == "MultiValue" else value
        return "" if value is None else str(value).replace("\0", "").strip()

    age = text("PatientAge")
    return Header(
        sop=text("SOPInstanceUID"),
        study=text("StudyInstanceUID"),
        accession=text("AccessionNumber"),
        patient=text("PatientID"),
        view=_view(found, text),
        laterality=text("ImageLaterality") or text("Laterality"),
        sex=text("PatientSex"),
        age="" if age.strip("0") in ("", "Y") else age,  # zero years is what de-identification leaves
        series=text("SeriesDescription"),
        modality=text("Modality"),
        is_image="Rows" in found,
    )


def _view(found: Any, text: Any) -> str:
    """The view by the best of what a header has: position, code, the directions of its rows and columns, words."""
    if position := text("ViewPosition"):
        return view_of(position)
    for item in found.get("ViewCodeSequence") or ():
        if view := _CODES.get(str(item.get("CodeValue", ""))):
            return view
        if len(views := views_in(str(item.get("CodeMeaning", "")))) == 1:
            return views.pop()
    orientation = text("PatientOrientation")
    if orientation[:1] in ("A", "P"):
        return "LATERAL"
    for name in ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription"):
        if len(views := views_in(text(name))) == 1:
            return views.pop()
    return ""


def is_dicom_file(file: str | os.PathLike[str]) -> bool:
    """Whether the content of a file begins as DICOM does."""
    try:
        with open(file, "rb") as stream:
            return is_dicom(stream.read(_START))
    except OSError:
        return False
