"""Findings by prompts: an image's similarity to what affirms a finding, against what denies it.

Two scores of an image v for a finding, from the normalised means p and n of its positive and negative prompts:
"difference" is v.p - v.n, whose softmax is sigmoid(logit scale * difference); "positive" is v.p alone. A protocol says
which of them is the score, over which findings, with what prompts. Each number carries the exposure of the finding:
whether its labels were texts of the training. Sources are evaluated one by one, since an image's source must not help
to find a disease.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.leakage import numbering
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate.base import Encoder, Foreign, Progress, Split, uncertain_only, with_ancestors
from mmclip_jax.evaluate.protocols import Protocol
from mmclip_jax.evaluate.stats import metrics, thresholds
from mmclip_jax.text import prompts

SCORES = ("difference", "positive")
SCORE_OF = {"softmax": "difference", "cosine": "positive"}
"""What a protocol calls its score, and the column that holds it."""
METRICS = {"auroc": metrics.auroc, "auprc": metrics.auprc}
FEW_POSITIVES = 30

REPORT_ONLY = "report-only"
OTHER_SOURCE = "kind seen through another source's labels"
SAME_SOURCE = "same source's labels"
UNKNOWN_EXPOSURE = "exposure not recorded"
NOT_OURS = "unknown: not trained by this software"
STARTED_ELSEWHERE = "unknown: started from weights of others"
AS_STATED = ", as the spec's author states"
EXPOSURES = {
    REPORT_ONLY: "No label of this finding was ever a training text; the model met it in reports, if at all. Only this "
    "is called zero-shot.",
    OTHER_SOURCE: "Training prompts were made from this finding's labels, in images of another source.",
    SAME_SOURCE: "Training prompts were made from this finding's labels, in other images of the very same source, or "
    "of one that holds images of it.",
    UNKNOWN_EXPOSURE: "The checkpoint does not say what it was trained on.",
    NOT_OURS: "Another program trained this model. What it learnt from is not recorded here, and cannot be audited.",
    STARTED_ELSEWHERE: "The training began with weights of others, who do not state what these had learnt from.",
}
EXPOSURES |= {
    stamp + AS_STATED: f"{EXPOSURES[stamp]} So states the author of the spec; nothing here can check it."
    for stamp in (REPORT_ONLY, OTHER_SOURCE, SAME_SOURCE)
}


@dataclasses.dataclass
class Scored:
    """The rows of a split with their labels float64 [n, K] (NaN left out) and scores ("difference", "positive")."""

    split: Split
    embedded: np.ndarray
    labels: np.ndarray
    scores: dict[str, np.ndarray]

    def of_source(self, source: str) -> "SourceRows":
        """The rows of one source."""
        rows = self.split.rows_of(source)
        return SourceRows(
            rows=rows,
            examples=[self.split.examples[row] for row in rows],
            embedded=self.embedded[rows],
            labels=self.labels[rows],
            scores={name: values[rows] for name, values in self.scores.items()},
            patients=np.array(self.split.patients, object)[rows],
        )


@dataclasses.dataclass
class SourceRows:
    """The n rows of one source: their numbers in the split, and the rest in the same order."""

    rows: np.ndarray
    examples: list[Example]
    embedded: np.ndarray
    labels: np.ndarray
    scores: dict[str, np.ndarray]
    patients: np.ndarray


@dataclasses.dataclass
class ZeroShot:
    """Scores of all rows and what was made of them.

    findings: K kinds, those of the protocol. rows: of the split that is scored; validation: of the other one, None
    where there is none. summary: JSON, see `evaluate`.
    """

    findings: list[str]
    rows: Scored
    validation: Scored | None
    protocol: Protocol
    summary: dict[str, Any]

    @property
    def labels(self) -> np.ndarray:
        """float64 [n, K]: 1 present, 0 absent, NaN unknown."""
        return self.rows.labels

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Float64 [n, K] by name: "difference" and "positive"."""
        return self.rows.scores

    @property
    def score(self) -> str:
        """The protocol's score: a key of `scores`."""
        return SCORE_OF[self.protocol.score]


def exposure(kind: str, source: str, manifest: Mapping[str, Any]) -> str:
    """How the training knew of `kind` as seen from an image of `source`: one of `EXPOSURES`.

    A label of a narrower kind counts too: a prompt "viral pneumonia" teaches "pneumonia". Sources that hold images of
    each other are one (`numbering.is_same_source`). A run that began with weights of others says so in
    `manifest["start"]`: {"exposure": what their authors state, as in `manifest["exposure"]`, or None}.
    """
    recorded = manifest.get("exposure")
    foreign = bool(manifest.get("foreign"))
    if recorded is None or "label_kinds" not in recorded:
        return NOT_OURS if foreign else UNKNOWN_EXPOSURE
    own = _stamp(kind, source, recorded["label_kinds"])
    start = manifest.get("start")
    if not start or own == SAME_SOURCE:
        return own + (AS_STATED if foreign else "")
    stated = (start.get("exposure") or {}).get("label_kinds")
    if stated is None:
        return STARTED_ELSEWHERE if own == REPORT_ONLY else own
    return max(own, _stamp(kind, source, stated), key=(REPORT_ONLY, OTHER_SOURCE, SAME_SOURCE).index) + AS_STATED


def _stamp(kind: str, source: str, label_kinds: Mapping[str, Sequence[str]]) -> str:
    """The stamp by a record of source -> kinds whose labels were texts."""
    taught = [name for name, kinds in label_kinds.items() if kind in with_ancestors(kinds)]
    if any(numbering.is_same_source(name, source) for name in taught):
        return SAME_SOURCE
    return OTHER_SOURCE if taught else REPORT_ONLY


def called(stamps: Sequence[str]) -> str:
    """What a score with these exposures may be called."""
    if {UNKNOWN_EXPOSURE, NOT_OURS, STARTED_ELSEWHERE} & set(stamps):
        return "by prompts, exposure unknown"
    suffix = AS_STATED if any(stamp.endswith(AS_STATED) for stamp in stamps) else ""
    unseen = [stamp.removesuffix(AS_STATED) == REPORT_ONLY for stamp in stamps]
    if unseen and all(unseen):
        return "zero-shot" + suffix
    return ("partly prompt-supervised" if any(unseen) else "prompt-supervised") + suffix


def prompt_embeddings(
    model: Encoder, findings: Sequence[str], protocol: Protocol | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative) float64 [K, E]: of each finding the normalised mean of its prompts' embeddings.

    Each member of an ensemble normalises its own.
    """
    embedded = embed_prompts(model, findings, protocol)
    means = [np.stack([texts.mean(axis=0) for texts in polarity]) for polarity in zip(*embedded, strict=True)]
    for mean in means:
        for columns, _, root in _members(model):
            length = np.linalg.norm(mean[:, columns], axis=1, keepdims=True)
            mean[:, columns] /= np.maximum(length, 1e-12) * root
    positive, negative = means
    return positive, negative


def _members(model: Encoder) -> list[tuple[slice, float, float]]:
    """(columns of the embedding, logit scale, root of their number) of the models that `model` is made of."""
    if not isinstance(model, Foreign):
        return [(slice(None), float(model.logit_scale), 1.0)]
    return [(columns, float(scale), len(model.members) ** 0.5) for columns, scale in model.members]


def embed_prompts(
    model: Encoder, findings: Sequence[str], protocol: Protocol | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each finding the embeddings of its affirming texts, float64 [P, E], and of its denying ones [N, E]."""
    protocol = protocol or protocols.load(protocols.DEFAULT)
    lists = [texts for finding in findings for texts in protocol.prompts_of(finding)]
    embedded = np.asarray(model.encode_text([text for texts in lists for text in texts]), np.float64)
    parts = np.split(embedded, np.cumsum([len(texts) for texts in lists])[:-1])
    return list(zip(parts[0::2], parts[1::2], strict=True))


def score_images(
    image_embed: np.ndarray, positive: np.ndarray, negative: np.ndarray, model: Encoder | None = None
) -> dict[str, np.ndarray]:
    """The scores [n, K] of images [n, E] for findings with prompt embeddings [K, E].

    model: of an ensemble, "difference" is the logit of the mean of its members' probabilities, over its logit scale.
    """
    images = image_embed.astype(np.float64)
    affirmed, denied = images @ positive.T, images @ negative.T
    if model is None or len(_members(model)) == 1:
        return {"difference": affirmed - denied, "positive": affirmed}
    margins = [
        scale * root**2 * (images[:, columns] @ (positive - negative)[:, columns].T)
        for columns, scale, root in _members(model)
    ]
    return {"difference": mean_logit(np.stack(margins, axis=-1)) / float(model.logit_scale), "positive": affirmed}


def mean_logit(margins: np.ndarray) -> np.ndarray:
    """The logit of the mean of sigmoid(margins) over the last axis, without rounding a probability to 0 or 1."""
    # log of the sum of sigmoid(x), and of 1 - sigmoid(x).
    present = np.logaddexp.reduce(-np.logaddexp(0.0, -margins), axis=-1)
    absent = np.logaddexp.reduce(-np.logaddexp(0.0, margins), axis=-1)
    return np.asarray(present - absent)


def score_by_protocol(
    model: Encoder, image_embed: np.ndarray, findings: Sequence[str], protocol: Protocol
) -> dict[str, np.ndarray]:
    """The scores [n, K] of images [n, E] by a protocol's prompts and ensemble.

    With `ensemble: scores`, "positive" is the mean similarity to the affirming texts, and "difference" is the logit of
    the mean softmax probability over all pairs of an affirming and a denying text, over the logit scale.
    """
    if not findings:
        return {name: np.zeros((len(image_embed), 0)) for name in SCORES}
    if protocol.ensemble == "embeddings":
        return score_images(image_embed, *prompt_embeddings(model, findings, protocol), model)
    images = image_embed.astype(np.float64)
    scores: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    for positive, negative in embed_prompts(model, findings, protocol):
        margins = []
        for columns, scale, root in _members(model):
            affirmed, denied = images[:, columns] @ positive[:, columns].T, images[:, columns] @ negative[:, columns].T
            pairs = (affirmed[:, :, np.newaxis] - denied[:, np.newaxis, :]).reshape(len(images), -1)
            margins.append(scale * root**2 * pairs)
        scores["difference"].append(mean_logit(np.concatenate(margins, axis=1)) / float(model.logit_scale))
        scores["positive"].append((images @ positive.T).mean(axis=1))
    return {name: np.stack(values, axis=1) for name, values in scores.items()}


@dataclasses.dataclass(frozen=True)
class _Alone:
    """One member of an ensemble as a model of its own, for texts that have been encoded."""

    embedded: Mapping[str, np.ndarray]
    columns: slice
    root: float
    logit_scale: float
    manifest: Mapping[str, Any]

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return self.root * np.array([self.embedded[text] for text in texts])[:, self.columns]

    def encode_image(self, images: Sequence[Any]) -> np.ndarray:
        raise NotImplementedError("the images of an ensemble are encoded together")


def member_aurocs(
    model: Encoder, scored: Scored, findings: Sequence[str], protocol: Protocol, source: str
) -> list[float]:
    """The macro AUROC in a source of each member of an ensemble alone, over the findings that are defined."""
    here = scored.of_source(source)
    defined = [k for k in range(len(findings)) if not metrics.counts(here.labels[:, k]).note]
    asked = [findings[k] for k in defined]
    texts = list(dict.fromkeys(text for finding in asked for part in protocol.prompts_of(finding) for text in part))
    embedded = dict(zip(texts, np.asarray(model.encode_text(texts), np.float64), strict=True))
    areas = []
    for columns, scale, root in _members(model):
        alone = _Alone(embedded, columns, root, scale, model.manifest)
        scores = score_by_protocol(alone, root * here.embedded[:, columns], asked, protocol)[SCORE_OF[protocol.score]]
        areas.append(float(np.mean([metrics.auroc(here.labels[:, k], scores[:, i]) for i, k in enumerate(defined)])))
    return areas


def findings_of(split: Split) -> list[str]:
    """The kinds with both classes among the labels of at least one source, in the vocabulary's order.

    Raises:
      UserError: a label that is no kind of the vocabulary.
    """
    return _labelled(split, lambda states: {LabelState.PRESENT, LabelState.ABSENT} <= states)


def findings_by_protocol(split: Split, protocol: Protocol) -> list[str]:
    """The protocol's findings; where it says "labelled", all kinds with a known label in the split."""
    if protocol.findings is not None:
        return list(protocol.findings)
    return _labelled(split, lambda states: bool({LabelState.PRESENT, LabelState.ABSENT} & states))


def _labelled(split: Split, wanted: Callable[[set[LabelState]], bool]) -> list[str]:
    seen: dict[tuple[str, str], set[LabelState]] = {}
    for example in split.examples:
        for kind, state in example.labels.items():
            seen.setdefault((example.source, kind), set()).add(LabelState(state))
    found = {kind for (_, kind), states in seen.items() if wanted(states)}
    if strange := sorted(found - set(prompts.KINDS)):
        raise UserError(f"label {strange[0]!r} is no kind of the vocabulary; build the data set again, or add the kind")
    return [kind for kind in prompts.KINDS if kind in found]


def seen_in_training(manifest: Mapping[str, Any]) -> set[str]:
    """The kinds that training texts affirmed (labels that became prompts, and reports), broader kinds with them."""
    recorded = manifest.get("exposure") or {}
    return {
        kind
        for name in ("label_kinds", "report_kinds")
        for kinds in recorded.get(name, {}).values()
        for kind in with_ancestors(kinds)
    }


def evaluate(
    model: Encoder,
    split: Split,
    image_embed: np.ndarray,
    *,
    protocol: Protocol | None = None,
    validation: tuple[Split, np.ndarray] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> ZeroShot:
    """Scores every row for every finding of a protocol, and summarises source by source.

    Args:
      model: gives the prompts' embeddings.
      split: the rows.
      image_embed: [n, E] of these rows.
      protocol: None for the data set's own labels.
      validation: rows of other patients with their embeddings, which thresholds are chosen on; None for none.
      resamples: of the bootstrap intervals.
      level: of the same.
      seed: of the same.
      progress: bars.

    The summary holds, for JSON: "protocol", "score" (the key of the protocol's score), "primary" (the source of the
    headline: the paired source with most evaluable rows, else the largest), "level", "resamples", "few_positives", and
    "sources": {source: {"rows", "patients", "paired", "unpaired", "findings": [{"finding", "name", "positives",
    "negatives", "unknown", "uncertain", "note" (why it is undefined, or ""), "exposure", "called", "difference" and
    "positive": {"auroc", "auroc_interval", "auprc", "auprc_interval", "unusable_resamples"}, "decision": {"threshold",
    "f1", "accuracy", "sensitivity", "specificity", each with "..._interval", "max_f1_test", "note"}}], "macro":
    {"difference", "positive": {"all", "min_positives", groups of the protocol, one entry for each exposure: {"auroc",
    "auroc_interval", "auprc", "auprc_interval", "findings" (how many are defined), "undefined" (names of the others),
    "exposures", "called", "label"; of the protocol's score also the decisions' means}}, "uncertain_only": {finding:
    how many labels it has in the source, all uncertain}}}; of an ensemble also
    "members": the macro AUROC of each of them alone in the primary source.

    A finding that lacks a class in a source is there with NaN and a note. All findings of a source share the resamples
    of its patients, so the interval of a macro is a joint one.
    """
    protocol = protocol or protocols.load(protocols.DEFAULT)
    findings = findings_by_protocol(split, protocol)

    def scored(of: Split, embedded: np.ndarray) -> Scored:
        labels = protocol.labels_of(of.examples, findings)
        return Scored(of, embedded, labels, score_by_protocol(model, embedded, findings, protocol))

    rows = scored(split, image_embed)
    chosen_on = scored(*validation) if validation is not None else None
    sources: dict[str, Any] = {}
    # What somebody states of another program's training says nothing of the texts that it saw.
    seen = seen_in_training(model.manifest) if protocol.seen and not model.manifest.get("foreign") else None
    with (progress or Progress(False)).bar("bootstrap", len(split)) as advance:
        for source, parts in split.source_counts.items():
            stamps = [exposure(finding, source, model.manifest) for finding in findings]
            one = _Source(rows, chosen_on, source, findings, stamps, protocol, seen, resamples, level, seed)
            sources[source] = one.head | parts | one.summarise()
            advance(one.head["rows"])
    summary: dict[str, Any] = {
        "protocol": protocol.describe(),
        "score": SCORE_OF[protocol.score],
        "primary": _primary(sources),
        "level": level,
        "resamples": resamples,
        "few_positives": FEW_POSITIVES,
        "sources": sources,
    }
    if isinstance(model, Foreign) and len(model.members) > 1 and summary["primary"] is not None:
        summary["members"] = member_aurocs(model, rows, findings, protocol, str(summary["primary"]))
    return ZeroShot(findings, rows, chosen_on, protocol, summary)


def _primary(sources: Mapping[str, Any]) -> str | None:
    """The source whose numbers are the headline: one with reports and evaluable labels, if there is one."""
    usable = [name for name, entry in sources.items() if any(not finding["note"] for finding in entry["findings"])]
    return max(usable, key=lambda name: (sources[name]["paired"], sources[name]["rows"]), default=None)


class _Source:
    """The tables of one source."""

    def __init__(
        self,
        scored: Scored,
        chosen_on: Scored | None,
        source: str,
        findings: Sequence[str],
        stamps: Sequence[str],
        protocol: Protocol,
        seen: set[str] | None,
        resamples: int,
        level: float,
        seed: int,
    ):
        here = scored.of_source(source)
        self._examples, self._labels, self._scores, self._groups = (
            here.examples,
            here.labels,
            here.scores,
            here.patients,
        )
        self._validation: tuple[np.ndarray, np.ndarray] | None = None
        score = SCORE_OF[protocol.score]
        if chosen_on is not None:
            others = chosen_on.of_source(source)
            self._validation = others.labels, others.scores[score]
        self._findings, self._stamps, self._protocol, self._seen = findings, stamps, protocol, seen
        self._score, self._level = score, level
        self._draws: dict[str, int] = {"resamples": resamples, "seed": seed}
        self._counts = [metrics.counts(self._labels[:, k]) for k in range(len(findings))]
        self.head = {"rows": len(here.rows), "patients": len(set(here.patients))}

    def summarise(self) -> dict[str, Any]:
        """The findings and macros."""
        defined = [k for k, counted in enumerate(self._counts) if not counted.note]
        groups = self._macro_groups(defined)
        table = [self._row(k) for k in range(len(self._findings))]
        macro: dict[str, dict[str, Any]] = {
            score: {name: self._macro_head(label, columns) for name, (label, columns) in groups.items()}
            for score in self._scores
        }
        for score, values in self._scores.items():
            for metric, function in METRICS.items():
                points = [function(self._labels[:, k], values[:, k]) for k in range(len(table))]
                replicates = metrics.resample_metric(self._labels, values, self._groups, metric=function, **self._draws)
                for k, row in enumerate(table):
                    column = self._labels[:, k], values[:, k], self._groups, replicates[:, k]
                    interval = metrics.ranking_interval(*column, metric=function, level=self._level)
                    numbers = [points[k], interval.low, interval.high]
                    if row["note"]:  # without a negative an AUPRC is 1 whatever the scores: undefined like the AUROC
                        numbers = [float("nan")] * 3
                    row.setdefault(score, {})[metric] = float(numbers[0])
                    row[score] |= {f"{metric}_interval": numbers[1:], "unusable_resamples": interval.unusable}
                self._add_macros(macro[score], metric, np.array(points), replicates, groups)
        self._decide(table, macro[self._score], groups)
        return {"findings": table, "macro": macro, "uncertain_only": self._uncertain_only()}

    def _uncertain_only(self) -> dict[str, int]:
        asked = self._protocol.findings
        found = uncertain_only(self._examples)
        return {kind: count for kind, count in found.items() if asked is None or kind in asked}

    def _row(self, k: int) -> dict[str, Any]:
        finding, counted = self._findings[k], self._counts[k]
        uncertain = sum(example.labels.get(finding) == LabelState.UNCERTAIN for example in self._examples)
        ignored = uncertain if self._protocol.uncertain_as(finding) == "ignore" else 0
        return {
            "finding": finding,
            "name": prompts.display_name(finding),
            "positives": counted.positives,
            "negatives": counted.negatives,
            "uncertain": uncertain,
            "unknown": counted.unknown - ignored,
            "note": counted.note,
            "exposure": self._stamps[k],
            "called": called([self._stamps[k]]),
        }

    def _macro_groups(self, defined: Sequence[int]) -> dict[str, tuple[str, list[int]]]:
        """{key: (label, columns)} of the means, defined columns or not."""
        every = list(range(len(self._findings)))
        groups = {
            "all": ("", every),
            "min_positives": ("", [k for k in defined if self._counts[k].positives >= FEW_POSITIVES]),
        }
        for name, kinds in self._protocol.groups.items():
            groups[name] = (name, [k for k in every if self._findings[k] in kinds])
        if self._seen is not None:
            there = [k for k in every if self._findings[k] in self._seen]
            groups["seen"] = ("seen: affirmed in training texts", there)
            groups["unseen"] = ("unseen: in no training text", [k for k in every if k not in there])
        for stamp in EXPOSURES:
            if columns := [k for k in defined if self._stamps[k] == stamp]:
                groups[stamp] = ("", columns)
        return groups

    def _macro_head(self, label: str, columns: Sequence[int]) -> dict[str, Any]:
        inside = [self._stamps[k] for k in columns if not self._counts[k].note]
        nothing = {f"{metric}{suffix}": None for metric in METRICS for suffix in ("", "_interval")}
        return nothing | {
            "label": label,
            "findings": len(inside),
            "undefined": [prompts.display_name(self._findings[k]) for k in columns if self._counts[k].note],
            "exposures": {stamp: inside.count(stamp) for stamp in EXPOSURES if stamp in inside},
            "called": called(inside),
        }

    def _add_macros(
        self,
        macro: dict[str, Any],
        measure: str,
        points: np.ndarray,
        replicates: np.ndarray,
        groups: Mapping[str, tuple[str, list[int]]],
    ) -> None:
        """Adds to each group the mean over its columns that are defined, with its interval."""
        for name, (_, columns) in groups.items():
            usable = [k for k in columns if not self._counts[k].note and not np.isnan(points[k])]
            if usable:
                mean = float(points[usable].mean())
                joint = metrics.macro_replicates(replicates[:, usable])
                interval = metrics.logit_interval(mean, joint, self._level)
                macro[name] |= {measure: mean, f"{measure}_interval": [interval.low, interval.high]}

    def _decide(
        self, table: list[dict[str, Any]], macro: dict[str, Any], groups: Mapping[str, tuple[str, list[int]]]
    ) -> None:
        """Adds the measures at thresholds that were chosen on validation, and the highest F1 on these rows."""
        values = self._scores[self._score]
        points = np.full((len(table), len(thresholds.MEASURES)), np.nan)
        replicates = np.full((self._draws["resamples"], *points.shape), np.nan)
        highest = np.full(len(table), np.nan)
        for k, row in enumerate(table):
            threshold, note = self._threshold(k)
            labels, scores = self._labels[:, k], values[:, k]
            highest[k] = float("nan") if row["note"] else thresholds.max_f1(labels, scores)
            if not (note or row["note"]):
                points[k] = list(thresholds.at_threshold(labels, scores, threshold).values())
                replicates[:, k] = thresholds.resample_at_threshold(
                    labels, scores, threshold, self._groups, **self._draws
                )
            row["decision"] = {"threshold": threshold, "max_f1_test": float(highest[k]), "note": row["note"] or note}
            for m, measure in enumerate(thresholds.MEASURES):
                interval = thresholds.interval(
                    measure, points[k, m], replicates[:, k, m], labels, self._groups, self._level
                )
                row["decision"] |= {
                    measure: float(points[k, m]),
                    f"{measure}_interval": [interval.low, interval.high],
                }
        for m, measure in enumerate(thresholds.MEASURES):
            self._add_macros(macro, measure, points[:, m], replicates[:, :, m], groups)
        self._add_macros(macro, "max_f1_test", highest, np.full((2, len(table)), np.nan), groups)

    def _threshold(self, k: int) -> tuple[float, str]:
        """(threshold chosen on validation rows of this source, "") or (NaN, why there is none)."""
        if self._validation is None:
            return float("nan"), "no validation split to choose a threshold on"
        labels, scores = self._validation
        threshold = thresholds.choose_threshold(labels[:, k], scores[:, k], self._protocol.threshold)
        if np.isnan(threshold):
            return threshold, f"validation: {metrics.counts(labels[:, k]).note}"
        return threshold, ""
