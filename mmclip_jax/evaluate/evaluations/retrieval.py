"""How well images and texts find each other within one source.

Over a whole batch much of the contrastive loss can be had from the source alone (reports come from one hospital,
prompts from another). Here every comparison is within one source and one part. `contrastive_numbers` compares blocks of
a fixed number of rows, so that the numbers of data sets of different size compare; `recall_numbers` looks for each
image's report, and each report's image, among all of the source, as the literature does.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mmclip_jax.data.texts import full_text, text_ids
from mmclip_jax.evaluate.base import TEXTS, Card, Context, Evaluation, Part, Result, Results, Section, Summary, template
from mmclip_jax.evaluate.evaluations import source_probe
from mmclip_jax.evaluate.model import Encoder, Foreign
from mmclip_jax.evaluate.report.formats import interval, number
from mmclip_jax.evaluate.rows import Progress, Split
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.evaluate.stats.ranks import match_counts, retrieval_ranks

BLOCK = 64
RECALL_AT = (1, 5, 10)
RECALL = Section("retrieval", "Retrieval", "Retrieval")


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


def recall_numbers(
    image_embed: np.ndarray, text_embed: np.ndarray, ids: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Recall@1, 5, 10 and the median rank, of images among all texts and of texts among all images.

    Args:
      image_embed: [n, E], L2-normalised.
      text_embed: the same.
      ids: int [n, G], see `retrieval_ranks`.
      bootstrap: of the n rows; intervals resample the patients of the queries, the gallery stays whole.

    Returns (for JSON):
      {"rows", "with_several" (queries with more than one positive), "image_to_text" and "text_to_image": {"recall@1",
      "recall@5", "recall@10": {"value", "interval", "random"}, "median_rank": {"value", "interval"}}}. random: what a
      random order of the gallery gives, exactly.
    """
    n = len(ids)
    positives = match_counts(ids)
    result: dict[str, Any] = {"rows": n, "with_several": int((positives > 1).sum())}
    both = retrieval_ranks(image_embed, text_embed, ids)
    for name, rank in zip(("image_to_text", "text_to_image"), both, strict=True):
        hits = np.stack([rank <= k for k in RECALL_AT], axis=1).astype(np.float64)
        replicates = bootstrap.ratio(hits)
        entry: dict[str, Any] = {}
        for i, k in enumerate(RECALL_AT):
            value = float(hits[:, i].mean())
            entry[f"recall@{k}"] = {
                "value": value,
                "interval": bootstrap.rate_interval(value, replicates[:, i]).bounds,
                "random": float(_random_recall(positives, n, k).mean()),
            }
        medians = bootstrap.metric(np.zeros(n), rank, lambda _, drawn: float(np.median(drawn)))
        middle = bootstrap.percentile_interval(medians)
        entry["median_rank"] = {"value": float(np.median(rank)), "interval": middle.bounds}
        result[name] = entry
    return result


def _random_recall(positives: np.ndarray, n: int, k: int) -> np.ndarray:
    """The chance that one of p positives is among the first k of n in random order: 1 - C(n-p, k) / C(n, k)."""
    missed = np.ones(len(positives))
    for drawn in range(min(k, n)):
        missed *= np.clip((n - positives - drawn) / (n - drawn), 0.0, 1.0)
    return 1.0 - missed


def evaluate(
    model: Encoder,
    split: Split,
    image_embed: np.ndarray,
    *,
    block: int | None = None,
    recall: Bootstrap | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`contrastive_numbers` of each source and part: {"block", "parts": [{"source", "part", ...}]}.

    The text of a paired row is its whole report, that of an unpaired row a prompt of its labels. Parts of fewer rows
    than a block (None: `BLOCK`) are left out. Rows are shuffled once, the same way at every call.

    Given `recall`, "recall": [{"source", ...}] holds the `recall_numbers` of every source with reports. Positives of
    each other are rows of one study, and rows whose reports have the same sentences; normal reports in other words are
    not, whatever training took them for.
    """
    galleries = []
    block = block or BLOCK
    share = bool(getattr(getattr(getattr(model, "config", None), "data", None), "share_no_finding", True))
    scale = float(model.trained_logit_scale if isinstance(model, Foreign) else model.logit_scale)
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
                numbers = contrastive_numbers(image_embed[rows], embedded, ids, scale, block)
                parts.append({"source": source, "part": part, **(numbers or {})})
            elif recall is not None and part == "paired":
                embedded = encode_texts(model, [full_text(split.examples[row]).text for row in rows])
            if recall is not None and part == "paired":
                strict = np.stack([text_ids(full_text(split.examples[row], False)) for row in rows])
                patients = [split.patients[row] for row in rows]
                found = recall_numbers(image_embed[rows], embedded, strict, recall.of(patients))
                galleries.append({"source": source, **found})
            advance(len(rows))
    return {"block": block, "parts": parts} | ({} if recall is None else {"recall": galleries})


def encode_texts(model: Encoder, texts: Sequence[str]) -> np.ndarray:
    """float32 [n, E]; a text that recurs (as prompts do) is encoded once."""
    distinct = list(dict.fromkeys(texts))
    number = {text: i for i, text in enumerate(distinct)}
    embedded = np.asarray(model.encode_text(distinct), np.float32)
    return embedded[[number[text] for text in texts]]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class RetrievalEvaluation(Evaluation[None]):
    """Images and texts of one source, which find each other."""

    name = "contrastive"
    needs = (TEXTS,)
    nothing: ClassVar[Summary] = {"block": BLOCK, "parts": [], "recall": []}

    def run(self, context: Context) -> Result[None]:
        """See `evaluate`."""
        given = context.encoder, context.rows, context.embedded
        return Result(evaluate(*given, recall=context.bootstrap, progress=context.progress))

    def cards(self, results: Results) -> Sequence[Card]:
        """Recall at 10 in the first source with reports."""
        cards = []
        for found in results["contrastive"]["recall"][:1]:
            there, back = found["image_to_text"], found["text_to_image"]
            recall, rank = there["recall@10"], there["median_rank"]["value"]
            lines = [
                f"image → report, {found['rows']:,} images of {found['source']} (random {number(recall['random'])})",
                f"Median rank {number(rank, 0)}; report → image: {number(back['recall@10']['value'])}",
            ]
            cards.append(Card("Retrieval R@10", number(recall["value"]), interval(recall["interval"]), lines))
        return cards

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """A section on recall, and a table of blocks among the sources."""
        recall = [Part(RECALL, template("retrieval"))] if results["contrastive"]["recall"] else []
        blocks = Part(source_probe.PAGE_SECTION, template("contrastive_blocks"), guest=True)
        return [*recall, *([blocks] if results["contrastive"]["parts"] else [])]

    def quick(self, context: Context) -> Mapping[str, float]:
        """Of each source and part "contrastive_loss/SOURCE/PART", "image_to_text/..." and "text_to_image/..."."""
        values: dict[str, float] = {}
        for part in evaluate(context.encoder, context.rows, context.embedded)["parts"]:
            name = f"{part['source']}/{part['part']}"
            values |= {
                f"contrastive_loss/{name}": part["loss"],
                f"image_to_text/{name}": part["image_to_text"],
                f"text_to_image/{name}": part["text_to_image"],
            }
        return values


RETRIEVAL = RetrievalEvaluation()
