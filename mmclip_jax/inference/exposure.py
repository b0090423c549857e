"""How the training knew of a finding: whether its labels were texts, and what a score may be called for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmclip_jax.data.leakage import numbering
from mmclip_jax.text.prompts import with_ancestors

REPORT_ONLY = "report-only"
OTHER_SOURCE = "kind seen through another source's labels"
SAME_SOURCE = "same source's labels"
UNKNOWN_EXPOSURE = "exposure not recorded"
NOT_OURS = "unknown: not trained by this software"
STARTED_ELSEWHERE = "unknown: started from weights of others"
AS_STATED = ", as stated"
TUNED_SAME = "fine-tuned on labels of this source"
TUNED_OTHER = "fine-tuned on another source's labels"
NOT_TUNED = "no label of it among the images of the fine-tuning"
EXPOSURES = {
    REPORT_ONLY: "No label of this finding was ever a training text; the model met it in reports, if at all. Only this "
    "is called zero-shot.",
    OTHER_SOURCE: "Training prompts were made from this finding's labels, in images of another source.",
    SAME_SOURCE: "Training prompts were made from this finding's labels, in other images of the very same source, or "
    "of one that holds images of it.",
    UNKNOWN_EXPOSURE: "The checkpoint does not say what it was trained on.",
    NOT_OURS: "Another program trained this model. What it learnt from is not recorded here, and cannot be audited.",
    TUNED_SAME: "The classifier learnt this finding from labels of other images of the very same source, or of one "
    "that holds images of it.",
    TUNED_OTHER: "The classifier learnt this finding from labels of images of another source.",
    NOT_TUNED: "The classifier has an output for this finding, but no image that it learnt from has a label of "
    "it: a small share of them, or labels that are all uncertain.",
    STARTED_ELSEWHERE: "The training began with weights of others, who do not state what these had learnt from.",
}
EXPOSURES |= {
    stamp + AS_STATED: f"{EXPOSURES[stamp]} So states the author of the spec; nothing here can check it."
    for stamp in (REPORT_ONLY, OTHER_SOURCE, SAME_SOURCE)
}
_TUNED = {SAME_SOURCE: TUNED_SAME, OTHER_SOURCE: TUNED_OTHER, REPORT_ONLY: NOT_TUNED}


def exposure(kind: str, source: str, manifest: Mapping[str, Any]) -> str:
    """How the training knew of `kind` as seen from an image of `source`: one of `EXPOSURES`.

    A label of a narrower kind counts too: a prompt "viral pneumonia" teaches "pneumonia". Sources that hold images of
    each other are one (`numbering.is_same_source`). A run that began with weights of others says so in
    `manifest["start"]`: {"exposure": what their authors state, as in `manifest["exposure"]`, or None}. Of a fine-tuned
    classifier (`manifest["classifier"]`) the labels that it learnt from count.
    """
    if tuned := manifest.get("classifier"):
        return _TUNED[_stamp(kind, source, tuned["label_kinds"])]
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


def legend(stamps: set[str], recorded: Mapping[str, Any] | None, foreign: bool) -> dict[str, str]:
    """The stamps that a reader has to know, with their meanings.

    foreign: a model of others, or a classifier, of which those are shown that occur.
    """
    own = {REPORT_ONLY, OTHER_SOURCE, SAME_SOURCE} | (set() if recorded else {UNKNOWN_EXPOSURE})
    wanted = stamps if foreign else own | stamps
    return {stamp: meaning for stamp, meaning in EXPOSURES.items() if stamp in wanted}


def called(stamps: Sequence[str]) -> str:
    """What a score with these exposures may be called."""
    if set(_TUNED.values()) & set(stamps):
        return "supervised"
    if {UNKNOWN_EXPOSURE, NOT_OURS, STARTED_ELSEWHERE} & set(stamps):
        return "by prompts, exposure unknown"
    suffix = AS_STATED if any(stamp.endswith(AS_STATED) for stamp in stamps) else ""
    unseen = [stamp.removesuffix(AS_STATED) == REPORT_ONLY for stamp in stamps]
    if unseen and all(unseen):
        return "zero-shot" + suffix
    return ("partly prompt-supervised" if any(unseen) else "prompt-supervised") + suffix


def seen_in_training(manifest: Mapping[str, Any]) -> set[str]:
    """The kinds that training texts affirmed (labels that became prompts, and reports), broader kinds with them."""
    recorded = manifest.get("exposure") or {}
    return {
        kind
        for name in ("label_kinds", "report_kinds")
        for kinds in recorded.get(name, {}).values()
        for kind in with_ancestors(kinds)
    }
