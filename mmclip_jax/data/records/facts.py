"""What `facts.json` says of a data set: counted over its examples, written with a digest, read back."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from mmclip_jax import files
from mmclip_jax.data import schema
from mmclip_jax.data.records.example import check_example
from mmclip_jax.data.schema import PARTS, SPLITS, Example, LabelState
from mmclip_jax.errors import UserError

FACTS_FILE = "facts.json"
COPY_AGAIN = "copy the data set again, or build it again"
_FACTS = ("name", "version", "examples", "fingerprint", "splits", "sources")
_DIGEST = "digest"  # of all other facts: a flipped bit would be another number


def _digest_of(facts: Mapping[str, Any]) -> str:
    stored = json.loads(json.dumps({name: value for name, value in facts.items() if name != _DIGEST}))
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def stored_facts(directory: epath.Path) -> dict[str, Any] | None:
    """The facts in the file of a version directory; None where there is no file.

    Raises:
      UserError: the file is damaged.
    """
    file = directory / FACTS_FILE
    if not file.exists():
        return None
    facts: dict[str, Any] = files.read_json(file, COPY_AGAIN, _FACTS)
    if facts.pop(_DIGEST, made := _digest_of(facts)) != made:  # data sets of older versions have none
        raise UserError(f"{file} is damaged (it holds other facts than were written): {COPY_AGAIN}")
    return facts


def facts_text(facts: Mapping[str, Any]) -> str:
    """What the file of these facts holds."""
    return json.dumps({**facts, _DIGEST: _digest_of(facts)}, indent=1, sort_keys=True) + "\n"


class FactsCounter:
    """Counts over examples what `facts.json` says of a data set."""

    def __init__(self) -> None:
        self._parts: dict[str, _PartCounter] = collections.defaultdict(_PartCounter)
        self._patients: set[tuple[str, str]] = set()
        self._studies: set[tuple[str, str]] = set()
        self._digests: list[bytes] = []

    def add(self, example: Example) -> None:
        """Counts one more example."""
        self._parts[f"{example.split}_{example.part}"].add(example)
        self._patients.add((example.source, example.patient))
        self._studies.add((example.source, example.study))
        self._digests.append(_content_digest(example))

    def result(self) -> dict[str, Any]:
        """The facts, see `dataset_facts`."""
        order = [f"{split}_{part}" for split in SPLITS for part in PARTS]
        splits = {name: self._parts[name].result() for name in order if name in self._parts}
        labels: dict[str, collections.Counter[str]] = {}
        sources: dict[str, dict[str, int]] = {}
        for name, part in splits.items():
            for kind, states in part["labels"].items():
                labels.setdefault(kind, collections.Counter({"present": 0, "absent": 0, "uncertain": 0})).update(states)
            for source, entry in part["sources"].items():
                counts = sources.setdefault(source, {"paired": 0, "unpaired": 0})
                counts[name.rpartition("_")[2]] += entry["examples"]
        return {
            "examples": len(self._digests),
            "patients": len(self._patients),
            "studies": len(self._studies),
            "sources": sources,
            "splits": splits,
            "labels": {kind: dict(labels[kind]) for kind in sorted(labels)},
            "fingerprint": hashlib.sha256(b"".join(sorted(self._digests))).hexdigest(),
        }


class _PartCounter:
    """The counts of one split and part, e.g. "train_paired"."""

    def __init__(self) -> None:
        self.examples = 0
        self.image_bytes = 0
        self.patients: set[tuple[str, str]] = set()
        self.studies: set[tuple[str, str]] = set()
        self.views: collections.Counter[str] = collections.Counter()
        self.sexes: collections.Counter[str] = collections.Counter()
        self.ages: collections.Counter[float] = collections.Counter()
        self.labels: dict[str, collections.Counter[str]] = {}
        self.boxes: collections.Counter[str] = collections.Counter()
        self.words: collections.Counter[int] = collections.Counter()
        self.entities: collections.Counter[int] = collections.Counter()
        self.entity_labels: collections.Counter[str] = collections.Counter()
        self.findings: collections.Counter[bool] = collections.Counter()
        self.affirmed: collections.Counter[str] = collections.Counter()
        self.negated: collections.Counter[str] = collections.Counter()
        self.sources: collections.Counter[str] = collections.Counter()
        self.label_kinds: dict[str, set[str]] = collections.defaultdict(set)
        self.report_kinds: dict[str, set[str]] = collections.defaultdict(set)

    def add(self, example: Example) -> None:
        self.examples += 1
        self.image_bytes += len(example.image)
        self.patients.add((example.source, example.patient))
        self.studies.add((example.source, example.study))
        self.views[example.view or "unknown"] += 1
        self.sexes[example.sex or "unknown"] += 1
        if not np.isnan(example.age):
            self.ages[example.age] += 1
        self.sources[example.source] += 1
        for kind, state in example.labels.items():
            if state != LabelState.UNKNOWN:
                counts = self.labels.setdefault(kind, collections.Counter({"present": 0, "absent": 0, "uncertain": 0}))
                counts[LabelState(state).name.lower()] += 1
            if state in (LabelState.PRESENT, LabelState.ABSENT):
                self.label_kinds[example.source].add(kind)
        self.boxes.update(box.kind for box in example.boxes)
        if example.part == "paired":
            self.words[len(example.text.split())] += 1
            self.entities[len(example.entities)] += 1
            for entity in example.entities:
                self.entity_labels[entity.label] += 1
                if entity.label in ("observation", "device"):
                    self.findings[entity.negated] += 1
                if entity.kind:
                    (self.negated if entity.negated else self.affirmed)[entity.kind] += 1
                    if not entity.negated:
                        self.report_kinds[example.source].add(entity.kind)

    def result(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "examples": self.examples,
            "patients": len(self.patients),
            "studies": len(self.studies),
            "image_bytes": self.image_bytes,
            "views": dict(sorted(self.views.items())),
            "sexes": dict(sorted(self.sexes.items())),
            "age": _spread(self.ages),
            "labels": {kind: dict(self.labels[kind]) for kind in sorted(self.labels)},
            "boxes": dict(sorted(self.boxes.items())),
            "sources": {
                source: {
                    "examples": count,
                    "label_kinds": sorted(self.label_kinds[source]),
                    "report_kinds": sorted(self.report_kinds[source]),
                }
                for source, count in sorted(self.sources.items())
            },
        }
        if self.words:
            findings = sum(self.findings.values())
            facts["reports"] = {"words": _spread(self.words)}
            facts["entities"] = {
                "per_report": _spread(self.entities),
                "reports_without": self.entities[0],
                "by_label": dict(sorted(self.entity_labels.items())),
                "negated_share": self.findings[True] / findings if findings else None,
                "affirmed": dict(sorted(self.affirmed.items())),
                "negated": dict(sorted(self.negated.items())),
            }
        return facts


def _spread(counts: Mapping[Any, int]) -> dict[str, float] | None:
    """Number, minimum, median, mean and maximum of values given as value -> how often; None where there are none."""
    number = sum(counts.values())
    if not number:
        return None
    values = sorted(counts)
    cumulative = np.cumsum([counts[value] for value in values])
    low = values[int(np.searchsorted(cumulative, (number - 1) // 2, side="right"))]
    high = values[int(np.searchsorted(cumulative, number // 2, side="right"))]
    mean = sum(value * count for value, count in counts.items()) / number
    return {"number": number, "min": values[0], "median": (low + high) / 2, "mean": mean, "max": values[-1]}


def _content_digest(example: Example) -> bytes:
    """Digest of all that an example says, with its pixels in place of the compressed file."""
    content = dataclasses.asdict(dataclasses.replace(example, image=b"", labels={}))
    content["image"] = ""
    for name in schema.LATER_FIELDS:
        if not content[name]:
            del content[name]
    content["labels"] = {kind: int(state) for kind, state in example.labels.items()}
    # Numbers are hashed as they are stored, so that what is read back has the same digest.
    for name in ("age", "original_min", "original_max"):
        content[name] = repr(np.float32(content[name]))
    for box in content["boxes"]:
        box.update({name: repr(np.float32(box[name])) for name in ("x_min", "y_min", "x_max", "y_max")})
    for mask in content["masks"]:
        mask["image"] = hashlib.sha256(mask["image"]).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()


class Census:
    """Checks each example of a data set, and that ids are unique and patients in one split; counts its facts."""

    def __init__(self, name: str):
        self._name = name
        self._counter = FactsCounter()
        self._seen: set[bytes] = set()
        self._split_of: dict[tuple[str, str], str] = {}

    def add(self, example: Example) -> None:
        """Takes one more example.

        Raises:
          ValueError: it breaks the promises of the schema.
          UserError: its id has been seen, or its patient is in another split.
        """
        check_example(example)
        key = hashlib.blake2b(example.id.encode(), digest_size=16).digest()
        if key in self._seen:
            raise UserError(
                f"{self._name}: example {len(self._seen) + 1} has the id of an earlier one; ids must be unique"
            )
        self._seen.add(key)
        other = self._split_of.setdefault((example.source, example.patient), example.split)
        if other != example.split:
            raise UserError(
                f"{self._name}: the patient of example {len(self._seen)} is in two splits, {other} and "
                f"{example.split}; split by patient"
            )
        self._counter.add(example)

    def facts(self) -> dict[str, Any]:
        """The facts so far, see `dataset_facts`."""
        return self._counter.result()
