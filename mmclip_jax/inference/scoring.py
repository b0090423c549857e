"""Findings by prompts: an image's similarity to what affirms a finding, against what denies it.

Two scores of an image v for a finding, from the normalised means p and n of its affirming and denying prompts:
"difference" is v.p - v.n, whose softmax is sigmoid(logit scale * difference); "positive" is v.p alone. A protocol may
compare with what affirms "no finding", too (`beside_normal`): its evaluation has that under "difference".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from mmclip_jax.errors import UserError
from mmclip_jax.inference.inputs import check_several
from mmclip_jax.text import prompts

SCORES = ("difference", "positive")

PromptsOf = Callable[[str], tuple[Sequence[str], Sequence[str]]]
"""finding -> (texts that affirm it, texts that deny it)."""

Texts: TypeAlias = tuple[Sequence[str], Sequence[str]]
Findings: TypeAlias = Sequence[str] | Mapping[str, Texts | None]
"""Names of the vocabulary, or any names with (texts that affirm, texts that deny); None for the vocabulary's texts."""


def texts_of(findings: Findings) -> dict[str, tuple[list[str], list[str]]]:
    """The texts that affirm and that deny each finding.

    Raises:
      UserError: it is no list and no mapping; a finding that the vocabulary does not know; or texts that are no pair of
        lists of words.
    """
    if not isinstance(findings, Mapping):
        check_several("findings", findings)
        return {finding: prompts.zero_shot_prompts(finding) for finding in findings}
    asked = {}
    for name, texts in findings.items():
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"findings: the name of a finding is a string, not {name!r:.40}")
        asked[name] = prompts.zero_shot_prompts(name) if texts is None else _checked(name, texts)
    return asked


def _checked(name: str, texts: object) -> tuple[list[str], list[str]]:
    """A pair of lists of texts, each with a text at least; a text alone is a list of one."""
    if not isinstance(texts, tuple | list) or len(texts) != 2:
        raise UserError(f"findings[{name!r:.40}] must be (texts that affirm it, texts that deny it)")
    lists = [[each] if isinstance(each, str) else each for each in texts]
    for each, what in zip(lists, ("affirms", "denies"), strict=True):
        if not isinstance(each, Sequence) or not all(isinstance(text, str) for text in each):
            raise UserError(f"findings[{name!r:.40}]: what {what} it must be a list of strings")
        if not each or not all(text.strip() for text in each):
            raise UserError(f"findings[{name!r:.40}]: a text that {what} it is needed, and none may be blank")
    return list(lists[0]), list(lists[1])


class TextEncoder(Protocol):
    """What scoring by prompts needs of a model; embeddings of size E."""

    @property
    def logit_scale(self) -> float:
        """What similarities are multiplied by to give logits."""

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, E], L2-normalised."""


@runtime_checkable
class Ensemble(TextEncoder, Protocol):
    """Several models whose embeddings stand side by side, each over the root of their number."""

    @property
    def members(self) -> Sequence[tuple[slice, float]]:
        """(columns of the embedding, logit scale) of each."""


def members(model: TextEncoder) -> list[tuple[slice, float, float]]:
    """(columns of the embedding, logit scale, root of their number) of the models that `model` is made of."""
    if not isinstance(model, Ensemble):
        return [(slice(None), float(model.logit_scale), 1.0)]
    return [(columns, float(scale), len(model.members) ** 0.5) for columns, scale in model.members]


def embed_prompts(
    model: TextEncoder, findings: Sequence[str], prompts_of: PromptsOf = prompts.zero_shot_prompts
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each finding the embeddings of its affirming texts, float64 [P, E], and of its denying ones [N, E].

    Raises:
      UserError: a finding that the vocabulary does not know.
    """
    lists = [texts for finding in findings for texts in prompts_of(finding)]
    embedded = np.asarray(model.encode_text([text for texts in lists for text in texts]), np.float64)
    parts = np.split(embedded, np.cumsum([len(texts) for texts in lists])[:-1])
    return list(zip(parts[0::2], parts[1::2], strict=True))


def prompt_embeddings(
    model: TextEncoder, findings: Sequence[str], prompts_of: PromptsOf = prompts.zero_shot_prompts
) -> tuple[np.ndarray, np.ndarray]:
    """(positive, negative) float64 [K, E]: of each finding the normalised mean of its prompts' embeddings.

    Each member of an ensemble normalises its own.
    """
    embedded = embed_prompts(model, findings, prompts_of)
    means = [np.stack([texts.mean(axis=0) for texts in polarity]) for polarity in zip(*embedded, strict=True)]
    for mean in means:
        for columns, _, root in members(model):
            length = np.linalg.norm(mean[:, columns], axis=1, keepdims=True)
            mean[:, columns] /= np.maximum(length, 1e-12) * root
    positive, negative = means
    return positive, negative


def score_images(
    image_embed: np.ndarray, positive: np.ndarray, negative: np.ndarray, model: TextEncoder | None = None
) -> dict[str, np.ndarray]:
    """The scores [n, K] of images [n, E] for findings with prompt embeddings [K, E].

    model: of an ensemble, "difference" is the logit of the mean of its members' probabilities, over its logit scale.
    """
    images = image_embed.astype(np.float64)
    affirmed, denied = images @ positive.T, images @ negative.T
    if model is None or len(members(model)) == 1:
        return {"difference": affirmed - denied, "positive": affirmed}
    margins = [
        scale * root**2 * (images[:, columns] @ (positive - negative)[:, columns].T)
        for columns, scale, root in members(model)
    ]
    return {"difference": mean_logit(np.stack(margins, axis=-1)) / float(model.logit_scale), "positive": affirmed}


def probabilities(model: TextEncoder, image_embed: np.ndarray, asked: Mapping[str, Texts]) -> dict[str, np.ndarray]:
    """Of images [n, E] the probability of each finding by its texts: {finding: float32 [n]}."""
    if not asked:
        return {}
    chances = chances_of(model, image_embed, *prompt_embeddings(model, list(asked), asked.__getitem__))
    return dict(zip(asked, chances.T, strict=True))


def chances_of(model: TextEncoder, image_embed: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The probabilities float32 [n, K] of images [n, E] for findings with prompt embeddings [K, E]."""
    scores = score_images(image_embed, positive, negative)["difference"]
    return (1.0 / (1.0 + np.exp(-model.logit_scale * scores))).astype(np.float32)


def score_beside_normal(
    model: TextEncoder,
    image_embed: np.ndarray,
    findings: Sequence[str],
    prompts_of: PromptsOf = prompts.zero_shot_prompts,
) -> np.ndarray:
    """The scores [n, K] of images [n, E]: what affirms a finding against what denies it and against "no finding".

    Of the softmax over three normalised mean texts (p, n, and f, what affirms "no finding") the logit of p,
    over the logit scale s: v.p - log(exp(s v.n) + exp(s v.f)) / s. A denial is learnt from the images whose texts deny,
    which are seldom the normal ones; "no finding" says of these that they lack the finding.

    Raises:
      UserError: a finding that the vocabulary does not know, or "no finding" itself.
    """
    if prompts.NO_FINDING in map(prompts.kind_of, findings):
        raise UserError("no finding is what this score compares with: score it by score_images")
    positive, negative = prompt_embeddings(model, [*findings, prompts.NO_FINDING], prompts_of)
    return beside_normal(model, image_embed, positive[:-1], negative[:-1], positive[-1:])


def beside_normal(
    model: TextEncoder, image_embed: np.ndarray, positive: np.ndarray, negative: np.ndarray, normal: np.ndarray
) -> np.ndarray:
    """`score_beside_normal` from the embeddings of the prompts [K, E], and of what affirms "no finding" [1, E]."""
    images, margins = image_embed.astype(np.float64), []
    for columns, scale, root in members(model):
        present, absent, none = (
            scale * root**2 * images[:, columns] @ texts[:, columns].T for texts in (positive, negative, normal)
        )
        margins.append(present - np.logaddexp(absent, none))
    return mean_logit(np.stack(margins, axis=-1)) / float(model.logit_scale)


def score_pairs(
    model: TextEncoder, image_embed: np.ndarray, findings: Sequence[str], prompts_of: PromptsOf
) -> dict[str, np.ndarray]:
    """The scores [n, K] of images [n, E], averaged over texts in place of their embeddings.

    "positive" is the mean similarity to the affirming texts, and "difference" is the logit of the mean softmax
    probability over all pairs of an affirming and a denying text, over the logit scale.
    """
    images = image_embed.astype(np.float64)
    scores: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    for positive, negative in embed_prompts(model, findings, prompts_of):
        margins = []
        for columns, scale, root in members(model):
            affirmed, denied = images[:, columns] @ positive[:, columns].T, images[:, columns] @ negative[:, columns].T
            pairs = (affirmed[:, :, np.newaxis] - denied[:, np.newaxis, :]).reshape(len(images), -1)
            margins.append(scale * root**2 * pairs)
        scores["difference"].append(mean_logit(np.concatenate(margins, axis=1)) / float(model.logit_scale))
        scores["positive"].append((images @ positive.T).mean(axis=1))
    return {name: np.stack(values, axis=1) for name, values in scores.items()}


def mean_logit(margins: np.ndarray) -> np.ndarray:
    """The logit of the mean of sigmoid(margins) over the last axis, without rounding a probability to 0 or 1."""
    # log of the sum of sigmoid(x), and of 1 - sigmoid(x).
    present = np.logaddexp.reduce(-np.logaddexp(0.0, -margins), axis=-1)
    absent = np.logaddexp.reduce(-np.logaddexp(0.0, margins), axis=-1)
    return np.asarray(present - absent)
