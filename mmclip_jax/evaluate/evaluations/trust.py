"""Reasons to trust a score by prompts, or not: calibration, negation, wording, subgroups, sanity, "no finding".

Everything here is computed for the source of the headline, from the embeddings that the scores were made of. Each part
is a test with a known answer for a model that has learnt nothing: 0.5 for every AUROC and rate.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmclip_jax.data.schema import Example
from mmclip_jax.evaluate.base import Context, Evaluation, Part, Result, Results, Section, template
from mmclip_jax.evaluate.evaluations import subgroups
from mmclip_jax.evaluate.evaluations.scored import SourceRows, diseases, score_by_protocol, score_embedded
from mmclip_jax.evaluate.evaluations.zeroshot import ZERO_SHOT, ZeroShot
from mmclip_jax.evaluate.model import Encoder, Supervised
from mmclip_jax.evaluate.protocols import Protocol
from mmclip_jax.evaluate.report import figures
from mmclip_jax.evaluate.rows import Split, chunked
from mmclip_jax.evaluate.stats import calibration, metrics
from mmclip_jax.evaluate.stats.bootstrap import DEFAULT, Bootstrap, count_patients, macro_replicates
from mmclip_jax.inference import scoring
from mmclip_jax.text import prompts
from mmclip_jax.text.vocabulary import NO_FINDING

TRUST_SECTION = Section("trust", "Trust", "Reasons to trust these scores, or not")
_GREY = 128


@dataclasses.dataclass(frozen=True)
class Asked:
    """What every part is asked of: the n rows of the headline's source, and the K findings with both classes there.

    labels, scores (the protocol's), margins (logits): float64 [n, K]. validation: margins and labels of other patients,
    None where there are none. bootstrap: of the rows.
    """

    model: Encoder | Supervised
    scored: ZeroShot
    here: SourceRows
    findings: Sequence[str]
    labels: np.ndarray
    scores: np.ndarray
    margins: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None
    bootstrap: Bootstrap

    @classmethod
    def of(cls, model: Encoder | Supervised, scored: ZeroShot, bootstrap: Bootstrap) -> "Asked":
        """Takes them from the scores by prompts, which have a headline."""
        source = str(scored.summary["primary"])
        here = scored.rows.of_source(source)
        columns = [k for k in range(len(scored.findings)) if not metrics.counts(here.labels[:, k]).note]
        scale, validation = float(model.logit_scale), None
        if scored.validation is not None:
            other = scored.validation.of_source(source)
            validation = scale * other.scores["difference"][:, columns], other.labels[:, columns]
        return cls(
            model=model,
            scored=scored,
            here=here,
            findings=[scored.findings[k] for k in columns],
            labels=here.labels[:, columns],
            scores=here.scores[scored.score][:, columns],
            margins=scale * here.scores["difference"][:, columns],
            validation=validation,
            bootstrap=bootstrap.of(here.patients),
        )


def evaluate(model: Encoder | Supervised, scored: ZeroShot, bootstrap: Bootstrap = DEFAULT) -> dict[str, Any] | None:
    """All parts, for the source of the headline; None if nothing could be scored there.

    Returns (for JSON): "source", "calibration" (`calibration.evaluate`), "negation" (`negation`), "prompts"
    (`prompt_sensitivity`), "subgroups" (`subgroups.evaluate`), "sanity" (`sanity`), "no_finding" (`no_finding`; None
    where nobody says which images are normal). A classifier reads no text: "negation" and "prompts" are None.
    """
    if scored.summary["primary"] is None:
        return None
    asked = Asked.of(model, scored, bootstrap)
    names = [prompts.display_name(finding) for finding in asked.findings]
    return {
        "source": scored.summary["primary"],
        "calibration": calibration.evaluate(asked.margins, asked.labels, names, asked.validation, asked.bootstrap),
        "negation": None if isinstance(model, Supervised) else negation(asked, model),
        "prompts": None if isinstance(model, Supervised) else prompt_sensitivity(asked, model),
        "subgroups": subgroups.evaluate(asked.here.examples, asked.labels, asked.scores, names, asked.bootstrap),
        "sanity": sanity(asked),
        "no_finding": no_finding(asked),
    }


def negation(asked: Asked, model: Encoder) -> dict[str, Any]:
    """Does "no X" say the opposite of "X"?

    Of an image that shows X the affirming prompts must be nearer than the denying ones, of one without X farther; ties
    count one half. A model that overhears the "no" gets 0.5 on average of the two, and one that always prefers one of
    them too. "auroc" asks the harder question of all (image, prompt) pairs at once: does one that is true score above
    one that is false?

    Returns (for JSON): "overall" and "findings" [...], each with "name", "present" (rate among images that show it),
    "absent", "balanced" (their mean), "auroc", each with "..._interval".
    """
    here, labels, bootstrap = asked.here, asked.labels, asked.bootstrap
    positive, negative = scoring.prompt_embeddings(model, asked.findings, asked.scored.protocol.prompts_of)
    images = here.embedded.astype(np.float64)
    affirmed, denied = images @ positive.T, images @ negative.T
    nearer = (affirmed > denied) + 0.5 * (affirmed == denied)
    # [n, K, 2]: what an image adds to the rate of the present and of the absent.
    above = np.stack([np.where(labels == 1, nearer, 0.0), np.where(labels == 0, 1 - nearer, 0.0)], axis=2)
    below = np.stack([labels == 1, labels == 0], axis=2).astype(float)
    rates = bootstrap.ratio(above, below)
    points = above.sum(axis=0) / below.sum(axis=0)
    true, both = np.concatenate([labels, 1 - labels]), np.concatenate([affirmed, denied])
    areas = bootstrap.of(np.concatenate([here.patients, here.patients])).metric(true, both)
    area = [metrics.auroc(true[:, k], both[:, k]) for k in range(len(asked.findings))]
    # Columns: present, absent, balanced, auroc.
    values = np.column_stack([points, points.mean(axis=1), area])
    replicates = np.concatenate([rates, rates.mean(axis=2, keepdims=True), areas[:, :, np.newaxis]], axis=2)

    def entry(name: str, value: np.ndarray, drawn: np.ndarray, people: Sequence[int] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = {"name": name}
        for column, measure in enumerate(("present", "absent", "balanced", "auroc")):
            point = float(value[column])
            rule = bootstrap.logit_interval if people is None or measure == "auroc" else bootstrap.rate_interval
            interval = rule(point, drawn[:, column], None if people is None else people[column])
            result |= {measure: point, f"{measure}_interval": interval.bounds}
        return result

    def people_of(k: int) -> list[int]:
        of_class = [count_patients(here.patients[labels[:, k] == value]) for value in (1, 0)]
        return [*of_class, min(of_class), min(of_class)]

    overall = np.stack([macro_replicates(replicates[:, :, column]) for column in range(4)], axis=1)
    return {
        "overall": entry("mean of all findings", values.mean(axis=0), overall),
        "findings": [
            entry(prompts.display_name(finding), values[k], replicates[:, k], people_of(k))
            for k, finding in enumerate(asked.findings)
        ],
    }


def prompt_sensitivity(asked: Asked, model: Encoder) -> dict[str, Any]:
    """How much hangs on the wording: the AUROC by each single template, against that of the ensemble.

    Where the protocol compares with "no finding", all of its texts stand beside each template.

    Returns (for JSON): "templates": [{"present", "absent" (the texts of the first finding), "macro"}], "macro" and
    "findings" [...], each with "name", "ensemble", "lowest", "highest", "sd" (over templates, n - 1).
    """
    findings, labels, scored = asked.findings, asked.labels, asked.scored
    pairs = [scored.protocol.single_prompts_of(finding) for finding in findings]
    count = max(len(each) for each in pairs)
    by_template = np.zeros((count, len(findings)))
    texts = [[each[t % len(each)] for each in pairs] for t in range(count)]
    embedded = np.asarray(model.encode_text([text for row in texts for pair in row for text in pair]), np.float64)
    embedded = embedded.reshape(count, len(findings), 2, -1)
    for t in range(count):
        pair = embedded[t, :, 0], embedded[t, :, 1]
        single = score_embedded(model, asked.here.embedded, findings, *pair, scored.protocol)[scored.score]
        by_template[t] = [metrics.auroc(labels[:, k], single[:, k]) for k in range(len(findings))]
    ensemble = np.array([metrics.auroc(labels[:, k], asked.scores[:, k]) for k in range(len(findings))])

    def entry(name: str, values: np.ndarray, together: float) -> dict[str, Any]:
        spread = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
        return {
            "name": name,
            "ensemble": float(together),
            "lowest": float(values.min()),
            "highest": float(values.max()),
            "sd": spread,
        }

    return {
        "templates": [
            {"present": texts[t][0][0], "absent": texts[t][0][1], "macro": float(by_template[t].mean())}
            for t in range(count)
        ],
        "macro": entry("mean of all findings", by_template.mean(axis=1), ensemble.mean()),
        "findings": [
            entry(prompts.display_name(finding), by_template[:, k], ensemble[k]) for k, finding in enumerate(findings)
        ],
    }


def sanity(asked: Asked) -> list[dict[str, Any]]:
    """What must fall to chance when one of the modalities is taken away.

    "blank image": grey images of the true sizes; what is left is what shape and padding give away. "another image": the
    scores of a random other row. "another finding's prompts": each finding is asked for in the words of the next one
    ("no finding" left out); what is left is how findings go together.

    Returns (for JSON): [{"name", "auroc", "auroc_interval" (macro), "expected" (0.5, or None where chance is not
    exact), "holds" (whether the interval holds it)}].
    """
    findings, labels, scores, scored = asked.findings, asked.labels, asked.scores, asked.scored

    def entry(name: str, columns: Sequence[int], values: np.ndarray, exact: bool) -> dict[str, Any]:
        chosen = labels[:, columns]
        points = np.array([metrics.auroc(chosen[:, i], values[:, i]) for i in range(len(columns))])
        mean = float(points.mean())
        interval = asked.bootstrap.logit_interval(mean, macro_replicates(asked.bootstrap.metric(chosen, values)))
        return {
            "name": name,
            "auroc": mean,
            "auroc_interval": interval.bounds,
            "expected": 0.5 if exact else None,
            "holds": bool(interval.low <= 0.5 <= interval.high) if exact else None,
        }

    every = range(len(findings))
    blank = _blank_embeddings(asked.model, scored.rows.split, asked.here.rows)
    unseen = score_by_protocol(asked.model, blank, findings, scored.protocol)[scored.score]
    moved = np.random.default_rng(asked.bootstrap.seed).permutation(len(scores))
    checks = [
        entry("blank image", every, unseen, True),
        entry("another image", every, scores[moved], True),
    ]
    named = [k for k in every if findings[k] != NO_FINDING]
    if len(named) > 1:
        other = "another finding's output" if isinstance(asked.model, Supervised) else "another finding's prompts"
        checks.append(entry(other, named, scores[:, np.roll(named, 1)], False))
    return checks


def no_finding(asked: Asked) -> dict[str, Any] | None:
    """Is "no finding" the opposite of every disease? Its score must be higher in normal images than in those with one.

    Returns (for JSON): "normal" (images), "findings": [{"name", "abnormal" (images that show it), "auroc",
    "auroc_interval" (normal above abnormal)}]; None if the labels do not say which images are normal.
    """
    here, protocol, findings = asked.here, asked.scored.protocol, asked.findings
    if isinstance(asked.model, Supervised) and NO_FINDING not in asked.model.findings:
        return None
    normal = _labels_of(here.examples, protocol) == 1
    abnormal = diseases(findings)
    if not normal.any() or not abnormal:
        return None
    values = score_by_protocol(asked.model, here.embedded, [NO_FINDING], protocol)[asked.scored.score]
    table = []
    for k in abnormal:
        contrast = np.where(normal, 1.0, np.where(asked.labels[:, k] == 1, 0.0, np.nan))
        known = ~np.isnan(contrast)
        interval = asked.bootstrap.among(known).ranking_interval(contrast[known], values[known, 0])
        table.append(
            {
                "name": prompts.display_name(findings[k]),
                "abnormal": int((contrast == 0).sum()),
                "auroc": metrics.auroc(contrast, values[:, 0]),
                "auroc_interval": interval.bounds,
            }
        )
    return {"normal": int(normal.sum()), "findings": table}


def _labels_of(examples: Sequence[Example], protocol: Protocol) -> np.ndarray:
    return protocol.labels_of(examples, [NO_FINDING])[:, 0]


def _blank_embeddings(model: Encoder | Supervised, split: Split, rows: np.ndarray) -> np.ndarray:
    """Embeddings [n, E] of grey images of these rows' sizes; each size is encoded once."""
    shapes = [split.shapes[row] for row in rows]
    distinct = list(dict.fromkeys(shapes))
    blank = [np.full(shape, _GREY, np.uint8) for shape in distinct]
    parts = [model.encode_image([blank[i] for i in part]) for part in chunked(range(len(blank)), None, "")]
    embedded = np.concatenate(parts)
    number = {shape: i for i, shape in enumerate(distinct)}
    return np.asarray(embedded, np.float32)[[number[shape] for shape in shapes]]


class TrustEvaluation(Evaluation[None]):
    """Reasons to trust the scores by prompts, or not."""

    name = "trust"
    after = (ZERO_SHOT,)

    def run(self, context: Context) -> Result[None]:
        """See `evaluate`."""
        scored = context.found(ZERO_SHOT)
        return Result(None if scored is None else evaluate(context.model, scored, context.bootstrap))

    def parts(self, results: Results, found: None) -> Sequence[Part]:
        """Its section."""
        if not results["trust"]:
            return ()
        calibrated = results["trust"]["calibration"]
        charts = [
            {
                "title": title,
                "ece": calibrated[name]["ece"],
                "svg": figures.reliability_chart(calibrated[name]["reliability"], f"Reliability, {title}"),
            }
            for name, title in (("as_trained", "As trained"), ("fitted", "With the temperature"))
            if calibrated[name]
        ]
        return [Part(TRUST_SECTION, template("trust"), {"reliability": charts})]


TRUST = TrustEvaluation()
