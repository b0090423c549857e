"""The rows of a split with their labels and their scores by prompts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.model import Encoder, Supervised
from mmclip_jax.evaluate.protocols import BESIDE_NORMAL, Protocol
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.evaluate.stats import metrics
from mmclip_jax.inference import scoring
from mmclip_jax.text import prompts

SCORE_OF = {"softmax": "difference", BESIDE_NORMAL: "difference", "cosine": "positive"}
"""What a protocol calls its score, and the column that holds it."""


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


def score_by_protocol(
    model: scoring.TextEncoder | Supervised, image_embed: np.ndarray, findings: Sequence[str], protocol: Protocol
) -> dict[str, np.ndarray]:
    """The scores [n, K] of images [n, E] by a protocol's prompts and ensemble ("embeddings" or "scores").

    A classifier's logits are both scores: it is asked without prompts.
    """
    if not findings:
        return {name: np.zeros((len(image_embed), 0)) for name in scoring.SCORES}
    if isinstance(model, Supervised):
        columns = [list(model.findings).index(finding) for finding in findings]
        return dict.fromkeys(scoring.SCORES, model.logits_of(image_embed)[:, columns])
    if protocol.ensemble == "embeddings":
        embedded = scoring.prompt_embeddings(model, findings, protocol.prompts_of)
        return score_embedded(model, image_embed, findings, *embedded, protocol)
    return scoring.score_pairs(model, image_embed, findings, protocol.prompts_of)


def diseases(findings: Sequence[str]) -> list[int]:
    """The places of those that a normal image cannot have: neither "no finding" nor a device."""
    return [k for k, name in enumerate(findings) if name != prompts.NO_FINDING and not prompts.is_device(name)]


def score_embedded(
    model: scoring.TextEncoder,
    image_embed: np.ndarray,
    findings: Sequence[str],
    positive: np.ndarray,
    negative: np.ndarray,
    protocol: Protocol,
) -> dict[str, np.ndarray]:
    """The scores [n, K] of images [n, E] by the embeddings [K, E] of the findings' prompts.

    Where the protocol asks for it, "difference" compares with "no finding" too, but for "no finding" itself and for
    devices: a normal image may have one.
    """
    scores = scoring.score_images(image_embed, positive, negative, model)
    others = diseases(findings)
    if protocol.score == BESIDE_NORMAL and others:
        normal, _ = scoring.prompt_embeddings(model, [prompts.NO_FINDING], protocol.prompts_of)
        beside = scoring.beside_normal(model, image_embed, positive[others], negative[others], normal)
        scores["difference"][:, others] = beside
    return scores


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
    named = [*asked, prompts.NO_FINDING] if protocol.score == BESIDE_NORMAL else asked
    texts = list(dict.fromkeys(text for finding in named for part in protocol.prompts_of(finding) for text in part))
    embedded = dict(zip(texts, np.asarray(model.encode_text(texts), np.float64), strict=True))
    areas = []
    for columns, scale, root in scoring.members(model):
        alone = _Alone(embedded, columns, root, scale, model.manifest)
        scores = score_by_protocol(alone, root * here.embedded[:, columns], asked, protocol)[SCORE_OF[protocol.score]]
        areas.append(float(np.mean([metrics.auroc(here.labels[:, k], scores[:, i]) for i, k in enumerate(defined)])))
    return areas


def findings_of(split: Split) -> list[str]:
    """The kinds with both classes among the labels of at least one source, in the vocabulary's order.

    Raises:
      UserError: a label that is no finding of the vocabulary.
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
        raise UserError(
            f"label {strange[0]!r} is no finding of the vocabulary; build the data set again, or add the finding"
        )
    return [kind for kind in prompts.KINDS if kind in found]
