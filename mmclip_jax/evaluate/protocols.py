"""Protocols of evaluation by prompts, read from protocols.yaml or a file of the user's own.

A protocol fixes whatever could be chosen after seeing the numbers: findings, splits, what uncertain labels count as,
prompts, score, ensemble, threshold. Its digest is kept with the results, so that runs are compared only under the same.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.schema import SPLITS, Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.stats.thresholds import CRITERIA
from mmclip_jax.text import prompts, vocabulary, yaml_tree

PACKAGED = pathlib.Path(__file__).parent / "protocols.yaml"
DEFAULT = "table"
LABELLED = "labelled"
UNCERTAIN = {"ignore": float("nan"), "present": 1.0, "absent": 0.0}
BESIDE_NORMAL = "softmax_no_finding"
SCORES = ("softmax", BESIDE_NORMAL, "cosine")
ENSEMBLES = ("embeddings", "scores")
_POLARITIES = ("present", "absent")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One entry of a protocol file; the head of protocols.yaml describes the fields.

    findings: kinds; None for every kind with a known label. uncertain: one of `UNCERTAIN`, or one a kind.
    """

    name: str
    title: str
    findings: tuple[str, ...] | None
    data: tuple[str, ...] = ()
    split: str = "test"
    validation: str = "validation"
    uncertain: str | Mapping[str, str] = "ignore"
    templates: Mapping[str, tuple[str, ...]] | None = None
    phrases: bool | None = None
    texts: Mapping[str, Mapping[str, tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    score: str = "softmax"
    ensemble: str = "embeddings"
    threshold: str = "f1"
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    seen: bool = False
    note: str = ""
    prompts_of_model: str = ""
    given_digest: str = ""

    @property
    def digest(self) -> str:
        """Of all that may change a number; with a model's own prompts, that of the protocol without them."""
        return self.given_digest or self.wording_digest

    @functools.cached_property
    def wording_digest(self) -> str:
        """Of all that may change a number: the fields, and the words that prompts are made of."""
        apart = ("title", "data", "note", "prompts_of_model", "given_digest")
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in apart}
        asked = set(self.findings or prompts.KINDS) | ({prompts.NO_FINDING} if self.score == BESIDE_NORMAL else set())
        wording = {kind: self.prompts_of(kind) for kind in asked}
        return hashlib.sha256(json.dumps([fields, wording], sort_keys=True).encode()).hexdigest()[:16]

    def with_prompts(self, model: str, prompts: Mapping[str, Any]) -> "Protocol":
        """The same protocol, asked in a model's own words: the fields of `parse_prompts` in place of its prompts."""
        fields: dict[str, Any] = {"templates": None, "phrases": None, "texts": {}, **prompts}
        return dataclasses.replace(self, **fields, prompts_of_model=model, given_digest=self.digest)

    def prompts_of(self, kind: str) -> tuple[list[str], list[str]]:
        """The texts that affirm a finding and those that deny it."""
        if kind in self.texts:
            return list(self.texts[kind]["present"]), list(self.texts[kind]["absent"])
        return prompts.zero_shot_prompts(kind, self._words)

    def single_prompts_of(self, kind: str) -> list[tuple[str, str]]:
        """Pairs of an affirming and a denying text, one a template and always by the kind's display name.

        Where one polarity has fewer templates, they are used again in turn.
        """
        if kind in self.texts:
            present, absent = self.prompts_of(kind)
        else:
            present, absent = prompts.zero_shot_prompts(kind, _without_phrases(self._words))
        count = max(len(present), len(absent))
        return [(present[i % len(present)], absent[i % len(absent)]) for i in range(count)]

    def labels_of(self, examples: Sequence[Example], findings: Sequence[str]) -> np.ndarray:
        """float64 [n, K]: 1 present, 0 absent, NaN unknown; uncertain ones as the protocol says."""
        values = {LabelState.PRESENT: 1.0, LabelState.ABSENT: 0.0}
        labels = np.full((len(examples), len(findings)), np.nan)
        for k, kind in enumerate(findings):
            uncertain = UNCERTAIN[self.uncertain_as(kind)]
            for row, example in enumerate(examples):
                state = example.labels.get(kind, LabelState.UNKNOWN)
                labels[row, k] = uncertain if state == LabelState.UNCERTAIN else values.get(state, np.nan)
        return labels

    def uncertain_as(self, kind: str) -> str:
        """What an uncertain label of this kind counts as."""
        return self.uncertain if isinstance(self.uncertain, str) else self.uncertain.get(kind, "ignore")

    def describe(self) -> dict[str, Any]:
        """For results.json: the fields that a reader of a table must know."""
        return {
            "name": self.name,
            "title": self.title,
            "digest": self.digest,
            "prompts": f"{self.prompts_of_model}'s own ({self.wording_digest})" if self.prompts_of_model else "",
            "default_prompts": self.templates is None and self.phrases is None and not self.texts,
            "findings": LABELLED if self.findings is None else list(self.findings),
            "uncertain": self.uncertain if isinstance(self.uncertain, str) else dict(self.uncertain),
            "uncertain_text": self.uncertain_text,
            "score": self.score,
            "ensemble": self.ensemble,
            "threshold": self.threshold,
            "validation": self.validation,
            "note": self.note,
        }

    @property
    def uncertain_text(self) -> str:
        """The policy for uncertain labels in words."""
        words = {"ignore": "left out", "present": "present", "absent": "absent"}
        if isinstance(self.uncertain, str):
            return words[self.uncertain] if self.uncertain == "ignore" else f"counted as {words[self.uncertain]}"
        by_policy: dict[str, list[str]] = {}
        for kind, policy in self.uncertain.items():
            by_policy.setdefault(policy, []).append(prompts.display_name(kind))
        parts = [f"{words[policy]} for {', '.join(kinds)}" for policy, kinds in by_policy.items()]
        return "; ".join([*parts, "else left out"])

    @functools.cached_property
    def _words(self) -> vocabulary.Resources:
        """The words of the package or of the user, with this protocol's templates in the place of theirs."""
        words = vocabulary.default()
        grammar = dict(words.prompts["zero_shot"])
        if self.templates is not None:
            grammar |= {polarity: list(self.templates[polarity]) for polarity in _POLARITIES}
        if self.phrases is not None:
            grammar["phrases"] = self.phrases
        return dataclasses.replace(words, prompts={**words.prompts, "zero_shot": grammar})


def load(spec: str) -> Protocol:
    """The protocol of that name, or the one of a file: "mine.yaml", or "mine.yaml:NAME" where it holds several.

    Raises:
      UserError: no such protocol or file, or a mistake in it.
    """
    protocol: Protocol = yaml_tree.find_entry(spec, PACKAGED, _read, "protocol")
    return protocol


def for_data(names: Iterable[str]) -> Protocol:
    """The packaged protocol for data sets of these names; `DEFAULT` where there is none, or not the same for all."""
    known = _read(PACKAGED)
    by_data = {data: protocol for protocol in known.values() for data in protocol.data}
    found = {by_data.get(name, known[DEFAULT]).name for name in names}
    return known[found.pop()] if len(found) == 1 else known[DEFAULT]


@functools.lru_cache(maxsize=8)
def _without_phrases(words: vocabulary.Resources) -> vocabulary.Resources:
    grammar = {**words.prompts["zero_shot"], "phrases": False}
    return dataclasses.replace(words, prompts={**words.prompts, "zero_shot": grammar})


def _read(file: pathlib.Path) -> dict[str, Protocol]:
    protocols = {str(name): _protocol(file, str(name), entry) for name, entry in yaml_tree.read_mapping(file).items()}
    taken: dict[str, str] = {}
    for protocol in protocols.values():
        for name in protocol.data:
            if taken.setdefault(name, protocol.name) != protocol.name:
                raise UserError(f"{file}: data {name} belongs to both {taken[name]} and {protocol.name}")
    return protocols


def _protocol(file: pathlib.Path, name: str, entry: Any) -> Protocol:
    where = f"{file}: protocol {name}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not followed by fields such as findings")
    known = {field.name for field in dataclasses.fields(Protocol)} - {"name", "templates", "phrases", "texts"}
    if unknown := sorted(map(str, set(entry) - known - {"prompts"})):
        raise UserError(f"{where} has the unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}, prompts")
    if "findings" not in entry:
        raise UserError(f"{where} needs findings: a list, or the word {LABELLED}")
    fields: dict[str, Any] = {"name": name, "title": str(entry.get("title", name)), "note": str(entry.get("note", ""))}
    listed = entry["findings"]
    fields["findings"] = None if listed == LABELLED else _kinds(where, "findings", listed)
    if listed != LABELLED and not fields["findings"]:
        raise UserError(f"{where}: findings is empty")
    fields["data"] = _strings(where, "data", entry.get("data", []))
    choices: Mapping[str, Sequence[str]] = {
        "split": SPLITS,
        "validation": SPLITS,
        "score": SCORES,
        "ensemble": ENSEMBLES,
        "threshold": CRITERIA,
    }
    for field, allowed in choices.items():
        if field in entry:
            fields[field] = _choice(where, field, entry[field], allowed)
    if fields.get("score") == BESIDE_NORMAL and fields.get("ensemble", "embeddings") != "embeddings":
        raise UserError(f"{where}: score {BESIDE_NORMAL} needs ensemble: embeddings")
    fields["uncertain"] = _uncertain(where, entry.get("uncertain", "ignore"))
    fields["seen"] = entry.get("seen", False)
    if not isinstance(fields["seen"], bool):
        raise UserError(f"{where}: seen is true or false, not {fields['seen']!r}")
    fields["groups"] = {
        str(group): _kinds(where, f"group {group}", kinds) for group, kinds in _mapping(where, "groups", entry).items()
    }
    for group, kinds in fields["groups"].items():
        if fields["findings"] is not None and (other := set(kinds) - set(fields["findings"])):
            raise UserError(f"{where}: {sorted(other)[0]} of group {group!r} is not among the findings")
    return Protocol(**fields, **parse_prompts(where, _mapping(where, "prompts", entry)))


def parse_prompts(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields templates, phrases and texts of an entry's `prompts`, those that it has.

    Raises:
      UserError: a mistake in them, with `where` before it.
    """
    if unknown := sorted(map(str, set(entry) - {"templates", "phrases", "texts"})):
        raise UserError(f"{where}: prompts has the unknown field {unknown[0]!r}; known are templates, phrases, texts")
    fields: dict[str, Any] = {}
    if "templates" in entry:
        fields["templates"] = _polarities(where, "templates", entry["templates"])
        for polarity, templates in fields["templates"].items():
            for template in templates:
                slots = (f"{{{polarity}}}", f"{{a {polarity}}}")
                if template.count("{") != 1 or not any(slot in template for slot in slots):
                    raise UserError(f"{where}: the template {template!r} of {polarity} must hold {slots[0]} once")
    if "phrases" in entry:
        if not isinstance(entry["phrases"], bool):
            raise UserError(f"{where}: phrases is true or false, not {entry['phrases']!r}")
        fields["phrases"] = entry["phrases"]
    texts = _mapping(where, "texts", entry)
    fields["texts"] = {
        _kinds(where, "texts", [kind])[0]: _polarities(where, f"texts of {kind}", each) for kind, each in texts.items()
    }
    return fields


def _polarities(where: str, field: str, value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or set(value) != set(_POLARITIES):
        raise UserError(f"{where}: {field} needs the two lists present and absent")
    lists = {polarity: _strings(where, f"{field}, {polarity}", value[polarity]) for polarity in _POLARITIES}
    for polarity, texts in lists.items():
        if not texts:
            raise UserError(f"{where}: {field}, {polarity} is empty")
    return lists


def _uncertain(where: str, value: Any) -> str | dict[str, str]:
    if isinstance(value, dict):
        kinds = _kinds(where, "uncertain", list(value))
        return {
            kind: _choice(where, "uncertain", each, UNCERTAIN) for kind, each in zip(kinds, value.values(), strict=True)
        }
    return _choice(where, "uncertain", value, UNCERTAIN)


def _choice(where: str, field: str, value: Any, allowed: Iterable[str]) -> str:
    if value not in allowed:
        raise UserError(f"{where}: {field} is one of {', '.join(allowed)}, not {value!r}")
    return value


def _mapping(where: str, field: str, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    value = entry.get(field, {})
    if not isinstance(value, dict):
        raise UserError(f"{where}: {field} is not followed by names with their values")
    return value


def _strings(where: str, field: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise UserError(f"{where}: {field} must be a list of words; put quotes around no, yes, on, off and numbers")
    return tuple(value)


def _kinds(where: str, field: str, value: Any) -> tuple[str, ...]:
    names = _strings(where, field, value)
    kinds = [prompts.kind_of(name) for name in names]
    for name, kind in zip(names, kinds, strict=True):
        if kind is None:
            raise UserError(f"{where}: {name!r} of {field} is no finding of mmclip_jax/text/resources/vocabulary.yaml")
    if len(set(kinds)) < len(kinds):
        raise UserError(f"{where}: {field} names a finding twice")
    return tuple(kind for kind in kinds if kind is not None)
