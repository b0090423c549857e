"""Options of the builders; the command line makes a flag of each field."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mmclip_jax.data.builders.labels import UNCERTAIN_POLICIES
from mmclip_jax.errors import UserError
from mmclip_jax.text import recognisers, vocabulary

ALIKE_POLICIES = ("refuse", "same", "other")


def option(default: Any, help: str, choices: Sequence[str] = ()) -> Any:
    """A field of an options class; the command line makes a flag of it."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": tuple(choices)})


def alike_option(default: str) -> Any:
    """What ids mean that differ only in zeros in front, case or compatibility forms; see `ids.alike`."""
    return option(
        default,
        "patients (and a patient's studies) whose ids differ only by zeros in front, case or full-width letters: "
        "refuse to build; same: one patient; other: several patients",
        ALIKE_POLICIES,
    )


def entities_option() -> Any:
    """Which recogniser finds the entities; a field of the options of collections that have reports."""
    return option(
        recognisers.LEXICON, f"the recogniser that finds the entities of reports: {', '.join(recognisers.NAMES)}"
    )


def language_option() -> Any:
    """The language of the reports; a field of the options of collections that have reports."""
    return option(
        vocabulary.ENGLISH,
        f"language of the reports: {', '.join(vocabulary.languages())}, or a folder with the words of another one "
        f"({vocabulary.LEXICON}, {vocabulary.NEGATION}, {vocabulary.WORDS})",
    )


@dataclasses.dataclass(frozen=True)
class CollectionOptions:
    """Options of the builders of published data sets."""

    manual_dir: str = dataclasses.field(metadata={"help": "folder of the downloaded files"})
    views: str = option("frontal", "which views to keep", ("frontal", "all"))
    uncertain: str = option(
        "keep",
        "what uncertain labels become: keep: uncertain; ones: present; zeros: absent; mixed: present for "
        "atelectasis, edema and pleural effusion, else absent; ignore: unknown",
        UNCERTAIN_POLICIES,
    )
    shorter_side: int = option(256, "pixels of the shorter side of stored images; smaller images stay as they are")
    encoding: str = option("jpeg", "how changed images are stored: jpeg (quality 95) or png", ("jpeg", "png"))
    on_bad: str = option(
        "fail", "when more than --max-reject-share of the rows cannot be used: fail, or skip them", ("fail", "skip")
    )
    max_reject_share: float = option(0.001, "the share of rows that may be unusable without the build failing")
    split_salt: str = option("", "any text; changes which patients are in which split (if there is no official split)")
    alike_ids: str = alike_option("same")
    workers: int = option(0, "processes that read images; 0: one for each core")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata.get("choices")
            if choices and getattr(self, field.name) not in choices:
                name = field.name.replace("_", " ")
                raise UserError(f"{name} {getattr(self, field.name)!r} is not one of {', '.join(choices)}")
        check_storing(self.shorter_side, self.max_reject_share, self.workers)


@dataclasses.dataclass(frozen=True)
class ReportOptions(CollectionOptions):
    """Options of the builders of published data sets with reports."""

    entities: str = entities_option()
    language: str = language_option()


def check_storing(shorter_side: int, max_reject_share: float, workers: int) -> None:
    """Raises UserError where an option that all builders have is out of its range."""
    if shorter_side < 16:
        raise UserError(f"shorter side {shorter_side}: at least 16 pixels")
    if not 0 <= max_reject_share <= 1:
        raise UserError(f"max reject share {max_reject_share} is not between 0 and 1")
    if workers < 0:
        raise UserError(f"workers {workers}: 0 for one for each core, or their number")
