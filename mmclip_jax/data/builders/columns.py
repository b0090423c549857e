"""From the header of a user's table to roles: which column is which, and what label strings mean."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from mmclip_jax.data.builders.tablefile import Row, Table
from mmclip_jax.errors import UserError, listed
from mmclip_jax.text import prompts

UNUSED = "-"

# What columns are usually called, small letters without accents and digits only: English, German, French, Spanish.
USUAL_NAMES: dict[str, str] = {
    "image": "image imagepath imagefile imagefilename imagename imageindex path filepath filename file img imageid "
    "bild bilddatei bildname datei dateiname dateipfad fichier nomfichier imagen archivo nombrearchivo",
    "patient": "patient patientid patientnumber subject subjectid pid mrn "
    "patientnr patientennummer patientennr patnr patid patientenid patientin idpatient numeropatient paciente "
    "idpaciente pacienteid npatient nopatient numpatient identifiantpatient patientidentifier patientno patientnum "
    "npaciente nopaciente numpaciente numeropaciente",
    "study": "study studyid studyuid studyinstanceuid accession accessionnumber "
    "studie studienid studieninstanzuid untersuchung untersuchungsid etude idetude estudio idestudio",
    "accession": "accession accessionnumber accessionno accno anforderungsnummer auftragsnummer numeroaccession",
    "sop": "sop sopuid sopinstanceuid instanceuid imageuid",
    "view": "view viewposition viewclass projection projektion strahlengang aufnahmerichtung incidence proyeccion",
    "sex": "sex gender patientsex patientgender geschlecht sexe genre sexo genero",
    "age": "age patientage ageyears alter patientenalter edad",
    "report": "report reporttext text notes clinicalnotes caption bericht befundbericht befundtext befund compterendu "
    "rapport informe",
    "findings": "findings findingstext resultats hallazgos",
    "impression": "impression impressions conclusion beurteilung conclusiones conclusions impresion",
    "labels": "labels label findinglabels diagnosis diagnoses diagnose diagnosen diagnostic diagnostico",
    "split": "split subset partition",
    "box kind": "boxkind boxlabel bboxkind bboxlabel",
}
# What is a whole report where it stands alone, and the findings beside a column of impressions.
_FINDINGS_BESIDE_IMPRESSION = ("befund", "befundtext")
REPORT_ROLES = ("report", "findings", "impression")

# How rows find their images -> the roles that it needs, any one of each tuple.
JOINS = {
    "path": (("image",),),
    "accession": (("accession",),),
    "sop": (("sop", "image"),),
    "folder": (("image", "study"),),
}
_REMEDIES = {
    "image": "name it with --image-column, or join images by their DICOM headers (--join accession, --join sop)",
    "patient": "name it with --patient-column (the image column will do if each image is another patient's)",
}


class Columns:
    """Which column of a table plays which role.

    Args:
      chosen: role -> column, for the roles of `USUAL_NAMES` that the user named; `UNUSED` turns a role off.
      label_columns, box_columns: likewise, for the roles that several columns share; () finds them.
      box_format: "xywh" or "xyxy", which tells the usual names of four box columns.
      join: how rows find their images, one of `JOINS`.

    Raises:
      UserError: a named column does not exist, there is none of images or patients, or two mean the same kind.
    """

    def __init__(
        self,
        table: Table,
        kinds: "Kinds",
        chosen: Mapping[str, str],
        label_columns: Sequence[str] = (),
        box_columns: Sequence[str] = (),
        box_format: str = "xywh",
        join: str = "path",
    ):
        self._table = table
        self._index = {name: index for index, name in enumerate(table.header)}
        squashed: dict[str, str] = {}
        for name in table.header:
            squashed.setdefault(_squash(name), name)
        self.role: dict[str, str] = {}
        for role, usual in USUAL_NAMES.items():
            if chosen.get(role):
                if chosen[role] != UNUSED:
                    self.role[role] = self._existing(chosen[role])
                continue
            found = next((squashed[name] for name in usual.split() if name in squashed), None)
            if found is not None:
                self.role[role] = found
        is_section = _squash(self.role.get("report", "")) in _FINDINGS_BESIDE_IMPRESSION and not chosen.get("report")
        if is_section and "impression" in self.role and "findings" not in self.role:
            self.role["findings"] = self.role.pop("report")
        if not chosen.get("report") and {"findings", "impression"} & self.role.keys():
            self.role.pop("report", None)  # the sections say the same, and say what is what
        for roles in (*JOINS[join], ("patient",)):
            if not any(role in self.role for role in roles):
                remedy = _REMEDIES.get(roles[0], f"name it with --{roles[0]}-column")
                header = listed(table.header)
                raise UserError(f"table {table.file}: no column of {roles[0]}s among {header}; {remedy}")
        self.boxes = self._find_boxes(box_columns, box_format, squashed)
        taken = set(self.role.values()) | set(self.boxes)
        self.labels = self._find_labels(label_columns, kinds, taken)
        self.unused = [name for name in table.header if name not in taken and name not in self.labels]

    def _existing(self, name: str) -> str:
        if name not in self._index:
            header = listed(self._table.header)
            raise UserError(f"table {self._table.file}: there is no column {name!r} among {header}")
        return name

    def _find_labels(self, chosen: Sequence[str], kinds: "Kinds", taken: set[str]) -> dict[str, str]:
        """Columns of one label each -> their kind."""
        if tuple(chosen) == (UNUSED,):
            return {}
        if chosen:
            found = {self._existing(name): kinds.required(name) for name in chosen}
        else:
            found = {name: kind for name in self._table.header if name not in taken and (kind := kinds(name))}
        column_of: dict[str, str] = {}
        for name, kind in found.items():
            if kind in column_of:
                raise UserError(
                    f"table {self._table.file}: columns {column_of[kind]!r} and {name!r} both mean {kind}; "
                    f"leave one out with --ignore-labels"
                )
            column_of[kind] = name
        return found

    def _find_boxes(self, chosen: Sequence[str], box_format: str, squashed: Mapping[str, str]) -> tuple[str, ...]:
        if tuple(chosen) == (UNUSED,):
            return ()
        if chosen:
            return tuple(self._existing(name) for name in chosen)
        for key, name in squashed.items():
            if re.fullmatch(r"(b|bounding)?box(es)?\d*", key):
                return (name,)
        usual = ("x y width height", "x y w h") if box_format == "xywh" else ("xmin ymin xmax ymax", "x1 y1 x2 y2")
        for names in usual:
            if all(name in squashed for name in names.split()):
                return tuple(squashed[name] for name in names.split())
        return ()

    def get(self, row: Row, role: str) -> str:
        """The cell of a role, "" if no column has it."""
        return row.cells[self._index[self.role[role]]] if role in self.role else ""

    def cell(self, row: Row, column: str) -> str:
        """The cell of a column."""
        return row.cells[self._index[column]]

    def described(self) -> dict[str, str]:
        """Role -> column, for a person to check."""
        roles = dict(self.role)
        if self.boxes:
            roles["boxes"] = ", ".join(self.boxes)
        if self.labels:
            roles["label columns"] = ", ".join(self.labels)
        return roles


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", name.casefold()))


class Kinds:
    """What a label string means: a kind of the vocabulary, "" to leave it out, None if nobody knows.

    Args:
      label_map: "LABEL=KIND" strings, stronger than the vocabulary.
      ignored: label strings to leave out.
    """

    def __init__(self, label_map: Sequence[str] = (), ignored: Sequence[str] = ()):
        self._known: dict[str, str | None] = {_plain(label): "" for label in ignored}
        self._mapped: set[str] = set()
        for item in label_map:
            label, _, meaning = item.partition("=")
            kind = prompts.kind_of(meaning.strip())
            if kind is None:
                raise UserError(f"label map {item!r}: {meaning.strip()!r} is not one of {', '.join(prompts.KINDS)}")
            self._known[_plain(label)] = kind
            self._mapped.add(_plain(label))

    def __call__(self, label: str) -> str | None:
        """The meaning of `label`; see the class."""
        key = _plain(label)
        if key not in self._known:
            self._known[key] = prompts.kind_of(label)
        return self._known[key]

    def denies(self, label: str) -> bool:
        """Whether the label's absence denies its kind: not where the label names a part, unless the user maps it."""
        return _plain(label) in self._mapped or not prompts.is_narrow(label)

    def required(self, label: str) -> str:
        """The kind of a label that the user named; UserError if it has none."""
        kind = self(label)
        if not kind:
            raise UserError(
                f"{label!r} is not the name of a known finding; say what it means with --label-map {label}=KIND"
            )
        return kind


def _plain(label: str) -> str:
    return " ".join(label.replace("_", " ").split()).casefold()
