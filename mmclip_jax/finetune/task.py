"""What a transfer run learns: its settings, the rows of three splits, and their targets."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from mmclip_jax import ranges
from mmclip_jax.data.builders import fractions
from mmclip_jax.data.builders.labels import UNCERTAIN_POLICIES, settle_uncertain
from mmclip_jax.data.records import dataset_dir, dataset_facts
from mmclip_jax.data.schema import Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.rows import Split, labels_of, uncertain_only
from mmclip_jax.finetune import scores as scores_lib
from mmclip_jax.text import prompts

MODES = ("probe", "full")
# What a setting of 0 (or a negative one) stands for.
DEFAULTS = {
    "probe": {"peak_lr": 1e-2, "weight_decay": 1e-3, "epochs": 100},
    "full": {"peak_lr": 5e-4, "weight_decay": 0.05, "epochs": 30},
}


# Every field of `Settings` has its entry (tests/finetune/test_finetune.py).
RANGES: dict[str, ranges.Range] = {
    "mode": ranges.Choice(MODES),
    "task": ranges.Choice(tuple(scores_lib.TASKS)),
    "fractions": ranges.Several(ranges.positive(1), least=1, distinct=True),
    "seeds": ranges.Several(ranges.SEED, least=1, distinct=True),
    "findings": ranges.Several(ranges.TEXT, distinct=True),
    "uncertain": ranges.Choice(tuple(UNCERTAIN_POLICIES)),
    "batch": ranges.count(1),
    "peak_lr": ranges.Number(0),
    "weight_decay": ranges.Number(),  # negative: the mode's default
    "epochs": ranges.Number(0),
    "steps": ranges.count(0, 2**31 - 2),
    "least_steps": ranges.count(0, 2**31 - 2),
    "layer_decay": ranges.positive(1),
    "head_rate": ranges.positive(),
    "evaluations": ranges.count(1),
    "patience": ranges.count(1),
    "workers": ranges.count(0, 1024),
    "keep_checkpoints": ranges.BOOLEAN,
    "discard_classifiers": ranges.BOOLEAN,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to transfer. Zeros stand for the default of the mode (`DEFAULTS`).

    findings: kinds to learn, or the classes of a multi-class task; () all kinds of the training labels.
    uncertain: one of `UNCERTAIN_POLICIES`, for training labels alone ("keep" is "ignore": nothing is learnt from them).
    steps: 0: `epochs` of the fraction, and at least `least_steps`.
    patience: evaluations without a better validation score before the run ends; there are `evaluations` of them if none
      ends early.
    layer_decay, head_rate: of full fine-tuning: the factor on the learning rate from each layer to the one below it,
      and that of the head, which starts from nothing.
    """

    mode: str = "probe"
    task: str = "multi-label"
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    findings: tuple[str, ...] = ()
    uncertain: str = "ignore"
    batch: int = 64
    peak_lr: float = 0.0
    weight_decay: float = -1.0
    epochs: float = 0.0
    steps: int = 0
    least_steps: int = 200
    layer_decay: float = 0.75
    head_rate: float = 10.0
    evaluations: int = 20
    patience: int = 5
    workers: int = 0
    keep_checkpoints: bool = False
    discard_classifiers: bool = False

    def __post_init__(self) -> None:
        ranges.check({field.name: getattr(self, field.name) for field in dataclasses.fields(self)}, RANGES)
        if strange := [kind for kind in self.findings if kind not in prompts.KINDS]:
            raise UserError(
                f"finding {strange[0]!r} is no finding of the vocabulary (mmclip_jax/text/resources/vocabulary.yaml)"
            )


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be learnt: rows and targets of three splits.

    train, validation, scored: the rows with a usable label are `train_rows` and so on. targets: of all training rows,
    int8 [n, K] (1, 0, -1 unknown), or of a multi-class task int32 [n] (-1 unknown). validation_labels, scored_labels:
    float [m, K] of the rows that are used (here the splits are cut to them), NaN unknown.
    """

    train: Split
    train_rows: np.ndarray
    targets: np.ndarray
    validation: Split
    validation_labels: np.ndarray
    scored: Split
    scored_labels: np.ndarray
    findings: tuple[str, ...]
    directories: tuple[epath.Path, ...]
    policy: str
    left_out: dict[str, Any]

    @classmethod
    def load(cls, data: Sequence[str | os.PathLike[str]], split: str, settings: Settings) -> "Task":
        """Reads the splits.

        Raises:
          UserError: a split has no rows or no usable labels, or the findings do not have both classes.
        """
        directories = tuple(dataset_dir(directory) for directory in data)
        loaded = {name: Split.load(directories, name) for name in dict.fromkeys(("train", "validation", split))}
        learnt = [
            dataclasses.replace(example, labels=settle_uncertain(example.labels, settings.uncertain))
            for example in loaded["train"].examples
        ]
        findings = settings.findings or _findings_of(learnt, settings.task)
        if len(findings) < (2 if settings.task == "multi-class" else 1):
            raise UserError(
                f"the training labels of {', '.join(map(str, data))} leave nothing to learn ({settings.task})"
            )
        targets = targets_of(learnt, findings, settings.task)
        known = {"train": targets if targets.ndim == 1 else targets.max(axis=1, initial=-1)}
        labels = {}
        for name in loaded.keys() - {"train"}:
            target = targets_of(loaded[name].examples, findings, settings.task)
            known[name] = target if target.ndim == 1 else target.max(axis=1, initial=-1)
            labels[name] = (
                scores_lib.one_hot(target, len(findings))
                if settings.task == "multi-class"
                else labels_of(loaded[name].examples, findings)
            )
        rows = {name: np.flatnonzero(values >= 0) for name, values in known.items()}
        for name, kept in rows.items():
            if not len(kept):
                raise UserError(f"no image of {name} has a label of {', '.join(findings)} that can be used")
        left_out = {
            name: _left_out(each.examples, learnt if name == "train" else each.examples, len(rows[name]), findings)
            for name, each in loaded.items()
        }
        validation, scored = (loaded[name].only(rows[name]) for name in ("validation", split))
        sources = [example.source for example in validation.examples]
        if np.isnan(
            scores_lib.macro_auroc(
                labels["validation"][rows["validation"]], np.zeros((len(sources), len(findings))), sources
            )
        ):
            raise UserError("no finding has both classes in the validation split, which decides when to stop")
        return cls(
            loaded["train"],
            rows["train"],
            targets,
            validation,
            labels["validation"][rows["validation"]],
            scored,
            labels[split][rows[split]],
            tuple(findings),
            directories,
            _policy(directories, settings),
            left_out,
        )

    def fraction(self, share: float) -> tuple[np.ndarray, bool]:
        """(training rows of a fraction with a usable label, whether the data sets' builders saved the fraction)."""
        chosen: set[int] = set()
        every_saved = True
        for number, directory in enumerate(self.directories):
            mine = self.train.rows_of_set(number)
            examples = [self.train.examples[row] for row in mine]
            rows = [
                fractions.Row(e.id, e.patient, frozenset(k for k, s in e.labels.items() if s == LabelState.PRESENT))
                for e in examples
            ]
            ids, saved = fractions.of(directory, rows, share)
            every_saved &= saved
            chosen |= {int(row) for row, example in zip(mine, examples, strict=True) if example.id in ids}
        kept = np.array(sorted(chosen & set(self.train_rows.tolist())), np.int64)
        if not len(kept):
            raise UserError(f"{100 * share:g} % of the training patients have no usable label: take a larger fraction")
        return kept, every_saved


def _findings_of(examples: Sequence[Example], task: str) -> tuple[str, ...]:
    """The kinds with both classes, or for a multi-class task those that are ever present, in the vocabulary's order."""
    seen: dict[str, set[LabelState]] = {}
    for example in examples:
        for kind, state in example.labels.items():
            seen.setdefault(kind, set()).add(LabelState(state))
    if strange := sorted(seen.keys() - set(prompts.KINDS)):
        raise UserError(
            f"label {strange[0]!r} is no finding of the vocabulary; build the data set again, or add the finding"
        )
    needed = {LabelState.PRESENT} if task == "multi-class" else {LabelState.PRESENT, LabelState.ABSENT}
    return tuple(kind for kind in prompts.KINDS if needed <= seen.get(kind, set()))


def targets_of(examples: Sequence[Example], findings: Sequence[str], task: str) -> np.ndarray:
    """int8 [n, K]: 1 present, 0 absent, -1 neither; for a multi-class task int32 [n]: the one class that is present.

    An image with none or several of the classes has no class: -1.
    """
    if task == "multi-label":
        return np.nan_to_num(labels_of(examples, findings), nan=-1.0).astype(np.int8)
    classes = np.full(len(examples), -1, np.int32)
    for row, example in enumerate(examples):
        present = [k for k, kind in enumerate(findings) if example.labels.get(kind) == LabelState.PRESENT]
        if len(present) == 1:
            classes[row] = present[0]
    return classes


def _left_out(
    examples: Sequence[Example], settled: Sequence[Example], used: int, findings: Sequence[str]
) -> dict[str, Any]:
    """What a split has of rows and labels that are not used; settled: with the policy for uncertain labels applied."""
    return {
        "rows": len(examples),
        "without_label": len(examples) - used,
        "findings": {
            kind: _unknown([example.labels.get(kind, LabelState.UNKNOWN) for example in examples]) for kind in findings
        },
        "uncertain_only": uncertain_only(settled),
    }


def _unknown(states: Sequence[LabelState]) -> dict[str, int]:
    return {
        name: sum(state == getattr(LabelState, name.upper()) for state in states) for name in ("unknown", "uncertain")
    }


def _policy(directories: Sequence[epath.Path], settings: Settings) -> str:
    policy = {
        "keep": "left out",
        "ignore": "left out",
        "ones": "taken as present",
        "zeros": "taken as absent",
        "mixed": "taken as present for atelectasis, edema and pleural effusion, else as absent",
    }[settings.uncertain]
    said = [f"in training {policy}, in validation and test left out"]
    for directory in directories:
        built = (dataset_facts(directory).get("options") or {}).get("uncertain", "keep")
        if built != "keep":
            said.append(f"{directory.parent.name} was built with --uncertain {built}")
    return "; ".join(said)
