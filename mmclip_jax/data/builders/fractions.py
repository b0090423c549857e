"""Which training images make up 1 %, 10 % of a training split: by patient, nested, with the mix of kinds kept."""

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

from mmclip_jax.errors import UserError

FRACTIONS = (0.01, 0.1)
FOLDER = "fractions"


@dataclasses.dataclass(frozen=True)
class Row:
    """What the choice depends on: the example's id, its patient, and the kinds that are present."""

    id: str
    patient: str
    present: frozenset[str]


def choose(rows: Sequence[Row], shares: Sequence[float] = FRACTIONS, salt: str = "") -> dict[float, list[str]]:
    """The ids of nested, stratified fractions of patients, from nothing but ids and labels.

    Patients are grouped by their rarest kind that is present (rarity counted in patients) and ordered by a hash of
    their id within the group. The groups are then merged into one order in which each is spread evenly, and a fraction
    is the beginning of that order: so a larger fraction holds every smaller one.

    Args:
      rows: of one training split, in any order.
      shares: fractions of patients, each in (0, 1].
      salt: another string, another choice.

    Returns:
      share -> sorted ids of the images of round(share * patients), at least 1, patients.
    """
    kinds_of: dict[str, set[str]] = collections.defaultdict(set)
    ids_of: dict[str, list[str]] = collections.defaultdict(list)
    for row in rows:
        kinds_of[row.patient] |= row.present
        ids_of[row.patient].append(row.id)
    patients_with = collections.Counter(kind for kinds in kinds_of.values() for kind in kinds)
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for patient, kinds in kinds_of.items():
        groups[min(kinds, key=lambda kind: (patients_with[kind], kind), default="")].append(patient)
    places: list[tuple[float, str]] = []
    for kind, patients in groups.items():
        # Where in its first gap a group begins is drawn: else small groups would all be at the same places.
        start = _draw("group", salt, kind)
        ordered = sorted(patients, key=lambda patient: _draw("patient", salt, patient))
        places += [((number + start) / len(patients), patient) for number, patient in enumerate(ordered)]
    order = [patient for _, patient in sorted(places)]
    return {
        share: sorted(id for patient in order[: max(1, round(share * len(order)))] for id in ids_of[patient])
        for share in shares
    }


def _draw(what: str, salt: str, name: str) -> float:
    """A number in [0, 1) that depends on these strings alone."""
    digest = hashlib.sha256(f"{what}\0{salt}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def write(rows: Sequence[Row], directory: pathlib.Path) -> dict[str, int]:
    """Writes `fractions/train_1.txt` (1 %) and so on below `directory`, an id a line; returns file -> number of ids."""
    folder = directory / FOLDER
    folder.mkdir()
    counts = {}
    for share, ids in choose(rows).items():
        file = folder / f"train_{100 * share:g}.txt"
        file.write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")
        counts[f"{FOLDER}/{file.name}"] = len(ids)
    return counts


def read(directory: pathlib.Path, share: float) -> frozenset[str]:
    """The ids of a fraction that `write` wrote into a built data set's version directory.

    Raises:
      UserError: the data set has no such fraction; the message names those that there are.
    """
    file = directory / FOLDER / f"train_{100 * share:g}.txt"
    if not file.is_file():
        there = sorted(path.stem.removeprefix("train_") + " %" for path in (directory / FOLDER).glob("train_*.txt"))
        raise UserError(f"{directory} has no fraction of {100 * share:g} % (there: {', '.join(there) or 'none'})")
    return frozenset(file.read_text(encoding="utf-8").splitlines())


def of(directory: pathlib.Path, rows: Sequence[Row], share: float) -> tuple[frozenset[str], bool]:
    """(the ids of a fraction, whether its builder saved it) of a data set whose training rows are `rows`.

    What was not saved is chosen by the same rule, which gives fractions that are nested in and around the saved ones.

    Raises:
      UserError: share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"fraction {share:g} is not in (0, 1]")
    if (directory / FOLDER / f"train_{100 * share:g}.txt").is_file():
        return read(directory, share), True
    if share == 1:
        return frozenset(row.id for row in rows), True
    return frozenset(choose(rows, (share,))[share]), False
