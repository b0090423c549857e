"""How well images and texts find each other within one source.

Over a whole batch much of the contrastive loss can be had from the source alone (reports come from one hospital,
prompts from another). Here every comparison is within one source and one part, in blocks of a fixed number of rows, so
that the numbers of data sets of different size compare and no large matrix is ever built.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.texts import full_text, text_ids
from mmclip_jax.evaluate.base import Model, Progress, Split

BLOCK = 64


def contrastive_numbers(
    image_embed: np.ndarray, text_embed: np.ndarray, text_id: np.ndarray, logit_scale: float, block: int = BLOCK
) -> dict[str, float] | None:
    """Contrastive loss and recall@1 in blocks of `block` rows; the last, incomplete block is left out.

    Args:
      image_embed: [n, E], L2-normalised.
      text_embed: the same.
      text_id: int [n, G]; rows whose ids agree in any column are each other's positives.
      logit_scale: multiplies the similarities.
      block: rows that are compared with each other.

    Returns:
      "loss" (mean of both directions, targets uniform over equal texts, whatever the run's targets), "chance" (the
      loss of a model that knows nothing, averaged likewise: the log of the block), "image_to_text" and "text_to_image"
      (recall@1: the best match is a positive), "random" (its chance) and "rows"; None with fewer rows than one block.
    """
    blocks = len(image_embed) // block
    if not blocks:
        return None
    totals = np.zeros(5)
    for b in range(blocks):
        rows = slice(b * block, (b + 1) * block)
        ids = text_id[rows]
        positive = (ids[:, np.newaxis, :] == ids[np.newaxis, :, :]).any(axis=2)
        target = positive / positive.sum(axis=1, keepdims=True)
        logits = logit_scale * (image_embed[rows].astype(np.float64) @ text_embed[rows].astype(np.float64).T)
        best = positive[np.arange(block), logits.argmax(axis=1)], positive[np.arange(block), logits.argmax(axis=0)]
        loss = -0.5 * ((target * _log_softmax(logits)).sum() + (target * _log_softmax(logits.T)).sum()) / block
        totals += [loss, np.log(block), best[0].mean(), best[1].mean(), positive.mean()]
    return dict(
        zip(("loss", "chance", "image_to_text", "text_to_image", "random"), (totals / blocks).tolist(), strict=True)
    ) | {"rows": blocks * block}


def evaluate(
    model: Model, split: Split, image_embed: np.ndarray, *, block: int = BLOCK, progress: Progress | None = None
) -> dict[str, Any]:
    """`contrastive_numbers` of each source and part: {"block", "parts": [{"source", "part", ...}]}.

    The text of a paired row is its whole report, that of an unpaired row a prompt of its labels. Parts of fewer rows
    than a block are left out. Rows are shuffled once, the same way at every call.
    """
    share = bool(getattr(getattr(model.config, "data", None), "share_no_finding", True))
    groups: dict[tuple[str, str], list[int]] = {}
    for row in np.random.default_rng(0).permutation(len(split)).tolist():
        groups.setdefault((split.examples[row].source, split.examples[row].part), []).append(row)
    parts = []
    with (progress or Progress(False)).bar("embedding texts", len(split)) as advance:
        for (source, part), rows in sorted(groups.items()):
            if len(rows) >= block:
                drawn = [full_text(split.examples[row], share) for row in rows]
                embedded = encode_texts(model, [d.text for d in drawn])
                ids = np.stack([text_ids(d) for d in drawn])
                numbers = contrastive_numbers(image_embed[rows], embedded, ids, float(model.logit_scale), block)
                parts.append({"source": source, "part": part, **(numbers or {})})
            advance(len(rows))
    return {"block": block, "parts": parts}


def encode_texts(model: Model, texts: Sequence[str]) -> np.ndarray:
    """float32 [n, E]; a text that recurs (as prompts do) is encoded once."""
    distinct = list(dict.fromkeys(texts))
    number = {text: i for i, text in enumerate(distinct)}
    embedded = np.asarray(model.encode_text(distinct), np.float32)
    return embedded[[number[text] for text in texts]]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
