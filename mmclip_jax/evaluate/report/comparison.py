"""Two or more evaluations side by side: paired bootstrap of the differences, p-values, Holm's correction.

An evaluation is the directory that `mmclip evaluate` wrote, of a model that is asked by prompts or of a classifier.
Only evaluations of the same images under the same protocol are compared: the same data fingerprints, split and protocol
digest, and the same rows and labels in scores.csv. All resample the same patients, so a difference has an interval of
its own, narrower than those of its ends.
"""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmclip_jax import files
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.report.formats import finite
from mmclip_jax.evaluate.report.notes import about
from mmclip_jax.evaluate.report.page import RESULTS_FILE
from mmclip_jax.evaluate.report.scores_file import NAME as SCORES_FILE
from mmclip_jax.evaluate.stats import intervals, metrics
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap, fewest_patients, macro_replicates
from mmclip_jax.text import prompts

COMPARISON_FILE, COMPARISON_JSON = "compare.html", "compare.json"
RESAMPLES = 2000
METRICS = {"auroc": metrics.auroc, "auprc": metrics.auprc}
FEWEST_PATIENTS, FEWEST_OF_MEAN = 3, 5
"""No p is given of a finding that fewer patients have, or lack, than the first number: nothing can be told from one or
two. A mean gets none where one of its findings has fewer than the second: with three patients who have all findings,
chance is called a difference too often (docs/results.md)."""


@dataclasses.dataclass(frozen=True)
class SavedEvaluation:
    """An evaluation as read back: its results, and the rows of scores.csv.

    name: what to call it; ids, sources, patients: of the n rows; labels, scores: float64 [n, K] of `findings`.
    """

    name: str
    path: pathlib.Path
    results: dict[str, Any]
    ids: list[str]
    sources: np.ndarray
    patients: np.ndarray
    findings: list[str]
    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> "SavedEvaluation":
        """Reads results.json and scores.csv of a directory (or of the newest evaluation of a training run).

        Raises:
          UserError: one of the files is missing, damaged, or was written by another version.
        """
        path = newest_evaluation(pathlib.Path(directory))
        try:
            return cls._read(path)
        except UserError:
            raise
        except (
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            OSError,
            csv.Error,
        ) as error:  # something is not what it should be
            said = " ".join(str(error).split())[:100]
            raise UserError(f"{path}: {RESULTS_FILE} or {SCORES_FILE} is damaged ({said}): evaluate again") from error

    @classmethod
    def _read(cls, path: pathlib.Path) -> "SavedEvaluation":
        for name in (RESULTS_FILE, SCORES_FILE):
            if not (path / name).is_file():
                raise UserError(f"{path} has no {name}: it is not what `mmclip evaluate` wrote")
        results = files.read_json(path / RESULTS_FILE, "evaluate again", ("zero_shot", "data"))
        if "protocol" not in results["zero_shot"]:
            raise UserError(f"{path / RESULTS_FILE} has no protocol: evaluate the checkpoint again with this version")
        table = _read_columns(path / SCORES_FILE)
        rows = len(table["id"])
        if rows != results["data"]["rows"]:
            raise UserError(
                f"{path / SCORES_FILE} is damaged ({rows} rows, and {RESULTS_FILE} says "
                f"{results['data']['rows']}): evaluate again"
            )

        def numbers(columns: Sequence[str]) -> np.ndarray:
            cells = [[float(cell or "nan") for cell in table[column]] for column in columns]
            return np.array(cells, np.float64).reshape(len(columns), rows).T

        if "patient" not in table:
            raise UserError(f"{path / SCORES_FILE} has no patients: evaluate the checkpoint again with this version")
        findings = [name.removesuffix("/label") for name in table if name.endswith("/label")]
        score = results["zero_shot"]["score"]
        return cls(
            name=_name(results, path),
            path=path,
            results=results,
            ids=table["id"],
            sources=np.array(table["source"], object),
            patients=np.array(table["patient"], object),
            findings=findings,
            labels=numbers([f"{finding}/label" for finding in findings]),
            scores=numbers([f"{finding}/{score}" for finding in findings]),
        )

    def only(self, findings: Sequence[str]) -> "SavedEvaluation":
        """The same evaluation with these of its findings, in this order."""
        columns = [self.findings.index(finding) for finding in findings]
        return dataclasses.replace(
            self, findings=list(findings), labels=self.labels[:, columns], scores=self.scores[:, columns]
        )


def _read_columns(file: pathlib.Path) -> dict[str, list[str]]:
    """The cells of a CSV file by the name of their column; ValueError where a line has too few or too many."""
    with file.open(encoding="utf-8", newline="") as stream:
        header, *lines = csv.reader(stream, strict=True)
    columns = list(zip(*lines, strict=True)) or [()] * len(header)
    return {name: list(cells) for name, cells in zip(header, columns, strict=True)}


def newest_evaluation(path: pathlib.Path) -> pathlib.Path:
    """The directory itself, or of a training run the evaluation of the latest step."""
    if (path / RESULTS_FILE).is_file() or not (path / "evaluation").is_dir():
        return path
    # What a killed evaluation was writing lies here too, under a hidden name (`files.whole_folder`).
    there = [each for each in (path / "evaluation").iterdir() if not each.name.startswith(".")]
    found = [each for each in there if (each / RESULTS_FILE).is_file()]
    return max(found, key=lambda each: (int(each.name) if each.name.isdigit() else -1, each.name), default=path)


def in_common(evaluations: Sequence[SavedEvaluation]) -> list[SavedEvaluation]:
    """The evaluations with the findings that all of them have; a classifier may lack some of the protocol's.

    Raises:
      UserError: they are not of the same images by the same protocol, or have no finding in common; the message names
        the two directories and what differs.
    """
    if len(evaluations) < 2:
        raise UserError("a comparison needs two evaluations or more")
    if len(evaluations) > 26:
        raise UserError("at most 26 evaluations have a letter on the page; compare fewer at a time")
    first = evaluations[0]
    for other in evaluations[1:]:
        pair = f"{first.path} and {other.path} cannot be compared:"
        for what, key in (("data sets", _sets), ("splits", _split), ("protocols", _protocol)):
            one, two = key(first.results), key(other.results)
            if one != two:
                raise UserError(f"{pair} their {what} differ ({one} and {two}); evaluate both alike")
        if first.ids != other.ids or not np.array_equal(first.sources, other.sources):
            raise UserError(f"{pair} their scores.csv do not hold the same images in the same order")
        shared = [finding for finding in first.findings if finding in other.findings]
        tuned = [each for each in (first, other) if each.results["checkpoint"].get("classifier")]
        if first.findings != other.findings and (not tuned or not shared):
            raise UserError(f"{pair} their scores.csv do not hold the same findings in the same order")
        if not np.array_equal(first.only(shared).labels, other.only(shared).labels, equal_nan=True):
            raise UserError(f"{pair} the labels in their scores.csv differ; evaluate both alike")
    common = [finding for finding in first.findings if all(finding in each.findings for each in evaluations)]
    if not common and first.findings:
        raise UserError("the evaluations have no finding in common; compare fewer at a time")
    return [each.only(common) for each in evaluations]


def compare(
    evaluations: Sequence[SavedEvaluation], *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Compares every evaluation with the first.

    Returns (for JSON): "runs": [{"name", "path", "run", "step", "model", "exposure", "audit", "external", "classifier",
    "prompts", "headline"}], "protocol", "primary" (source), "data", "left_out" (findings that not all runs have),
    "level", "resamples", "sources": {source: {"rows", "patients", "findings": [{"finding", "name", "positives",
    "negatives", "note", "auroc", "auprc": {"values" (one a run), "intervals", "differences" (to the first; None for
    it): {"difference", "interval", "p", "p_holm"}}}], "macro": the same for the mean of the defined findings}}. p is
    two-sided, and NaN where fewer than `FEWEST_PATIENTS` patients have or lack the finding (of a mean: fewer than
    `FEWEST_OF_MEAN` one of its findings); Holm's correction is over the findings of a source that have a p, for each
    metric and run apart, without the macro.

    Raises:
      UserError: they cannot be compared (`in_common`).
    """
    given = evaluations
    evaluations = in_common(given)
    first = evaluations[0]
    left_out = sorted({finding for each in given for finding in each.findings} - set(first.findings))
    sources = {}
    for source in dict.fromkeys(first.sources.tolist()):
        rows = np.flatnonzero(first.sources == source)
        patients = first.patients[rows]
        sources[source] = _compare_source(evaluations, rows, Bootstrap(patients, resamples, level, seed))
    return {
        "runs": [
            {
                "name": each.name,
                "path": str(each.path),
                "run": each.results["checkpoint"]["run"],
                "step": each.results["checkpoint"]["step"],
                "model": each.results["checkpoint"]["model"],
                "exposure": each.results["exposure"],
                "audit": each.results["audit"],
                "external": _external(each.results["checkpoint"]),
                "classifier": each.results["checkpoint"].get("classifier"),
                "prompts": about(each.results).protocol.get("prompts", ""),
                "headline": each.results["headline"],
            }
            for each in evaluations
        ],
        "protocol": about(first.results).protocol,
        "primary": about(first.results).source,
        "data": first.results["data"],
        "left_out": [prompts.display_name(finding) for finding in left_out],
        "level": level,
        "resamples": resamples,
        "sources": sources,
    }


def _compare_source(evaluations: Sequence[SavedEvaluation], rows: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    first = evaluations[0]
    labels = first.labels[rows]
    counts = [metrics.counts(labels[:, k]) for k in range(labels.shape[1])]
    defined = [k for k, counted in enumerate(counts) if not counted.note]
    table: list[dict[str, Any]] = [
        {
            "finding": finding,
            "name": prompts.display_name(finding),
            "positives": counted.positives,
            "negatives": counted.negatives,
            "note": counted.note,
        }
        for finding, counted in zip(first.findings, counts, strict=True)
    ]
    macro: dict[str, Any] = {"name": f"mean of {len(defined)}"}
    for metric, function in METRICS.items():
        found = compared(function, labels, [each.scores[rows] for each in evaluations], defined, bootstrap)
        for row, each in zip(table, found, strict=True):
            row[metric] = each.entry(bootstrap)
        for e in range(1, len(evaluations)):
            entries = [table[k][metric]["differences"][e] for k in defined]
            tested = [entry for entry in entries if not np.isnan(entry["p"])]
            for entry, adjusted in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
                entry["p_holm"] = adjusted
        if defined:
            scores = [each.scores[rows][:, defined] for each in evaluations]
            mean = mean_of([found[k] for k in defined], function, labels[:, defined], scores, bootstrap)
            macro[metric] = mean.entry(bootstrap)
    return {"rows": len(rows), "patients": bootstrap.count, "findings": table, "macro": macro}


def compared(
    function: metrics.Metric,
    labels: np.ndarray,
    scores: Sequence[np.ndarray],
    defined: Sequence[int],
    bootstrap: Bootstrap,
) -> list["Drawn"]:
    """A metric of each finding; labels [n, K], scores [n, K] of each run, defined: the findings with both classes."""
    points = np.full((len(scores), labels.shape[1]), np.nan)
    drawn = np.full((len(scores), bootstrap.resamples, labels.shape[1]), np.nan)
    for e, each in enumerate(scores):
        for k in defined:
            points[e, k] = function(labels[:, k], each[:, k])
        drawn[e][:, defined] = bootstrap.metric(labels[:, defined], each[:, defined], function)
    result = []
    for k in range(labels.shape[1]):
        found = Drawn(points[:, k], drawn[:, :, k], fewest_patients(labels[:, k], bootstrap.patients))
        if function is metrics.auprc and k in defined:
            found.left_out = [bootstrap.jackknife(labels[:, k], each[:, k], function) for each in scores]
        result.append(found)
    return result


def mean_of(
    findings: Sequence["Drawn"],
    function: metrics.Metric,
    labels: np.ndarray,
    scores: Sequence[np.ndarray],
    bootstrap: Bootstrap,
) -> "Drawn":
    """The mean over findings of a metric; labels [n, K], scores [n, K] of each run.

    The findings of a patient go together, so the deviation of a difference and its degrees of freedom come from leaving
    out patients, as for the AUPRC.
    """
    means = np.stack([macro_replicates(each) for each in np.stack([each.replicates for each in findings], axis=2)])
    left_out = [macro_replicates(bootstrap.jackknife(labels, each, function)) for each in scores]
    points = np.mean([each.points for each in findings], axis=0)
    return Drawn(points, means, min(each.fewest for each in findings), left_out, is_mean=True)


@dataclasses.dataclass
class Drawn:
    """A metric of all runs: points [E], replicates [E, R] of the same resamples, and what intervals need besides.

    fewest: patients of the rarer class, of a mean those of its rarest finding. left_out: [k] of each run, of an AUPRC
    and of a mean. is_mean: over findings, whose values have the interval that evaluations give.
    """

    points: np.ndarray
    replicates: np.ndarray
    fewest: int
    left_out: Sequence[np.ndarray] | None = None
    is_mean: bool = False

    def entry(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """The values with intervals, and the differences to the first run with intervals and p."""
        left_out: Sequence[np.ndarray | None] = self.left_out if self.left_out else [None for _ in self.points]
        own = [
            bootstrap.logit_interval(float(point), drawn, *(() if self.is_mean else (self.fewest, left)))
            for point, drawn, left in zip(self.points, self.replicates, left_out, strict=True)
        ]
        differences: list[dict[str, Any] | None] = [None]
        for e in range(1, len(self.points)):
            apart = float(self.points[e] - self.points[0])
            paired = self.replicates[e] - self.replicates[0]
            first, left = left_out[0], left_out[e]
            left_apart = None if left is None or first is None else left - first
            found = bootstrap.difference_interval(apart, paired, self.fewest, left_apart)
            few = self.fewest < (FEWEST_OF_MEAN if self.is_mean else FEWEST_PATIENTS)
            differences.append(
                {
                    "difference": apart,
                    "interval": found.bounds,
                    "p": float("nan") if few else intervals.p_value(apart, paired, self.fewest, left_apart),
                    "p_holm": float("nan"),
                }
            )
        return {
            "values": self.points.tolist(),
            "intervals": [interval.bounds for interval in own],
            "differences": differences,
        }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for as many tests as there are p-values; none of them may be NaN."""
    order = np.argsort(p_values, kind="stable")
    count = len(order)
    raised = np.asarray(p_values, np.float64)[order] * (count - np.arange(count))
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return adjusted.tolist()


def run(
    directories: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, resamples: int = RESAMPLES
) -> str:
    """What `mmclip compare` does: writes compare.html and compare.json into `out`; returns the text for a terminal.

    Raises:
      UserError: fewer than two evaluations, or evaluations that cannot be compared.
    """
    from mmclip_jax.evaluate.report import comparison_page

    result = compare([SavedEvaluation.read(directory) for directory in directories], resamples=resamples)
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_whole(folder / COMPARISON_JSON, json.dumps(finite(result), indent=1, ensure_ascii=False) + "\n")
    (folder / COMPARISON_FILE).write_text(comparison_page.render(result), encoding="utf-8")
    return f"{comparison_page.as_text(result)}\nReport: {folder / COMPARISON_FILE}"


def _name(results: dict[str, Any], path: pathlib.Path) -> str:
    run, step = results["checkpoint"]["run"] or path.name, results["checkpoint"]["step"]
    return run if step is None else f"{run} @ {step}"


def _sets(results: dict[str, Any]) -> str:
    return ", ".join(f"{data['name']} {data['fingerprint'][:12]}" for data in results["data"]["sets"])


def _split(results: dict[str, Any]) -> str:
    return str(results["data"]["split"])


def _protocol(results: dict[str, Any]) -> str:
    protocol = about(results).protocol
    return f"{protocol['name']} {protocol['digest']}"


def _external(checkpoint: Mapping[str, Any]) -> Any:
    """What results say of a model of somebody else's; "referee" was its name before."""
    return checkpoint.get("external", checkpoint.get("referee"))
