"""Which ids mean the same patient, study or image, and what the user has said about others.

`canonical_id` gives equal keys to one image, study or patient, whichever builder or table wrote its id. `loose_id` goes
further: ids that it makes equal may mean the same, and the user has to say so. The families are in numbering.yaml.
"""

import dataclasses
import functools
import itertools
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmclip_jax.data import ids
from mmclip_jax.errors import UserError
from mmclip_jax.text import yaml_tree

WHATS = ("image", "study", "patient")

_SUFFIX = re.compile(r"(?:\.(?:png|jpe?g|dcm|dicom|tiff?|bmp|webp|gif|nii|gz|npy|zip))+$", re.IGNORECASE)


class Key(NamedTuple):
    """An id in the one spelling of its family; `family` is the source's own name where numbering.yaml has none."""

    family: str
    id: str


@dataclasses.dataclass(frozen=True)
class _Kinship:
    patterns: Mapping[str, Mapping[str, re.Pattern[str]]]
    families: Mapping[str, tuple[str, ...]]
    kin: Mapping[frozenset[str], str]


@functools.cache
def _kinship() -> _Kinship:
    read = yaml_tree.read_mapping(pathlib.Path(__file__).with_suffix(".yaml"))
    patterns = {
        family: {what: re.compile(f"(?:.*/)?(?:{pattern})") for what, pattern in given.items()}
        for family, given in read["families"].items()
    }
    kin = {frozenset((a, b)): why for a, others in read["kin"].items() for b, why in others.items()}
    return _Kinship(patterns, {source: tuple(of) for source, of in read["sources"].items()}, kin)


def families(source: str) -> tuple[str, ...]:
    """The families that ids of a source may be of; its own name where nothing is known of it."""
    return _kinship().families.get(source, (source,))


def is_published(family: str) -> bool:
    """Whether numbering.yaml knows the family: ids of two such families are independent."""
    return family in _kinship().patterns


def kin(family: str, other: str) -> str:
    """Why two families hold the same images or patients under other ids; "" if they do not, as far as is known."""
    return _kinship().kin.get(frozenset((family, other)), "")


def shares_images(source: str, other: str) -> bool:
    """Whether two sources hold images of each other, under whatever ids."""
    pairs = itertools.product(families(source), families(other))
    return any(a == b or bool(kin(a, b)) for a, b in pairs)


def is_same_source(source: str, other: str) -> bool:
    """Whether a model that learnt from one has met the other: the same name, family, or images."""
    return source == other or shares_images(source, other)


def canonical_id(source: str, id: str, what: str) -> Key | None:
    """The id of an image, study or patient in the one spelling of its family; None for an empty id.

    Args:
      source: of the record.
      id: as the record has it.
      what: one of `WHATS`.
    """
    plain = ids.spelt(id)
    if not plain:
        return None
    there = families(source)
    searched = _SUFFIX.sub("", plain.replace("\\", "/").casefold())
    for family in there:
        pattern = _kinship().patterns.get(family, {}).get(what)
        if pattern and (match := pattern.fullmatch(searched)):
            return Key(family, "_".join(group for group in match.groups() if group is not None))
    return Key(there[0], plain)


def loose_id(id: str) -> str:
    """An id without what spellings differ in: case, Unicode form, padding by blanks or zeros, suffix, ".0".

    Folders in front of an image's name stay (`tails` deals with them).
    """
    return ids.alike_key(ids.spelt(_SUFFIX.sub("", unicodedata.normalize("NFKC", ids.spelt(id)).replace("\\", "/"))))


def tails(paths: Sequence[Sequence[str]], longest: int = 4) -> list[list[str]]:
    """Names of images without the folders that do not matter: the fewest last parts that keep all ids of a set apart.

    Args:
      paths: as `loose_id` gives them, set by set.
      longest: where more parts than this are needed, paths stay as they are.
    """
    for parts in range(1, longest + 1):
        cut = [["/".join(id.rsplit("/", parts)[-parts:]) for id in one] for one in paths]
        if all(len(set(short)) == len(set(whole)) for short, whole in zip(cut, paths, strict=True)):
            return cut
    return [list(one) for one in paths]


def may_be_one(path: str, other: str) -> bool:
    """Whether two paths that end alike may name one file: not if they part within one folder ("a/1/x", "a/2/x")."""
    one, two = path.split("/"), other.split("/")
    while one and two and one[-1] == two[-1]:
        one, two = one[:-1], two[:-1]
    return not (one and two and one[0] == two[0])


# ---------------------------------------------------------------------------------------------------------------------
# What the user says


@dataclasses.dataclass(frozen=True)
class IdStatements:
    """Pairs of sources about whose equal ids the user has said: they mean the same (`same`), or not (`other`)."""

    same: frozenset[frozenset[str]] = frozenset()
    other: frozenset[frozenset[str]] = frozenset()

    @classmethod
    def read(cls, same: Iterable[str] = (), other: Iterable[str] = ()) -> "IdStatements":
        """From arguments "A,B"; A may be B, of ids within one source.

        Raises:
          UserError: not two names, or a pair that both options name.
        """
        pairs = []
        for option, given in (("same-ids", same), ("other-ids", other)):
            names = [[name.strip() for name in each.split(",")] for each in given]
            if wrong := [each for each, found in zip(given, names, strict=True) if len(found) != 2 or not all(found)]:
                raise UserError(f"--{option} {wrong[0]}: write two sources, as in --{option} ours,chexpert")
            pairs.append(frozenset(frozenset(found) for found in names))
        if both := pairs[0] & pairs[1]:
            pair = " and ".join(sorted(min(both, key=sorted)))
            raise UserError(f"--same-ids and --other-ids both name {pair}: give the pair to one of them")
        return cls(*pairs)

    def joined(self, settings: Any) -> "IdStatements":
        """This, and what a run's settings `data.same_ids` and `data.other_ids` say.

        Raises:
          UserError: as `read`.
        """
        read = IdStatements.read(*(getattr(settings, name, ()) for name in ("same_ids", "other_ids")))
        return IdStatements(self.same | read.same, self.other | read.other)

    def as_json(self) -> dict[str, list[list[str]]]:
        """What results keep of it."""
        return {
            "same": sorted(_two_names(pair) for pair in self.same),
            "other": sorted(_two_names(pair) for pair in self.other),
        }


NOTHING_STATED = IdStatements()


def _two_names(pair: frozenset[str]) -> list[str]:
    names = sorted(pair)
    return names * 2 if len(names) == 1 else names


def relation(source: str, family: str, other_source: str, other_family: str, stated_ids: IdStatements) -> str:
    """What equal ids of two sources mean.

    Returns:
      "same": one family of ids; "told same": the user said so; "other": two families, so that equal ids say nothing;
      "unknown": the user has to say.
    """
    names = [frozenset(pair) for pair in itertools.product({source, family}, {other_source, other_family})]
    if any(pair in stated_ids.other for pair in names):
        return "other"
    if any(pair in stated_ids.same for pair in names):
        return "told same"
    if family == other_family:
        return "same"
    return "other" if is_published(family) and is_published(other_family) else "unknown"
