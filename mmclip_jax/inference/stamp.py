"""What a number of a model has to be read with, in words: what images it learnt from, how it knew of a finding."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from mmclip_jax.data.phantom.generate import SOURCES as ARTIFICIAL
from mmclip_jax.errors import UserError
from mmclip_jax.inference.exposure import (
    AS_STATED,
    NOT_TUNED,
    OTHER_SOURCE,
    REPORT_ONLY,
    SAME_SOURCE,
    exposure,
    seen_in_training,
)
from mmclip_jax.text import prompts

RESEARCH_ONLY = "Research use only: no diagnosis, and no calibrated probability."
LABELS = "its labels were training texts"
REPORTS = "zero-shot: met in reports alone"
NOT_MET = "zero-shot: in no training text"
TUNED = "fine-tuned on its labels"
OWN_WORDS = "own words: not looked up in the training texts"


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Domain and exposure of a model.

    domain: what it learnt from, in a line. is_artificial: from drawn images alone. findings: of each finding of the
    vocabulary, by its kind, how the training knew of it.
    """

    domain: str
    is_artificial: bool
    findings: Mapping[str, str]

    def of(self, finding: str) -> str:
        """How the training knew of a finding, by any of its names; `OWN_WORDS` of what the vocabulary does not know.

        Raises:
          UserError: a classifier has no output for it.
        """
        kind = prompts.kind_of(finding)
        if kind is not None and kind not in self.findings:
            raise UserError(f"the classifier has no output for {finding!r}; it has: {', '.join(self.findings)}")
        return OWN_WORDS if kind is None else self.findings[kind]

    @property
    def caption(self) -> str:
        """The end of a line under a figure."""
        return f"learnt from {self.domain}. {RESEARCH_ONLY}"

    def __str__(self) -> str:
        """Some lines for a person: the domain, the findings by exposure, and what the model is not for."""
        lines = [f"Learnt from: {self.domain}"]
        for words in dict.fromkeys(self.findings.values()):
            named = ", ".join(prompts.display_name(kind) for kind, said in self.findings.items() if said == words)
            lines.append(f"{words[0].upper()}{words[1:]}: {named}")
        return "\n".join([*lines, RESEARCH_ONLY])


def stamp_of(manifest: Mapping[str, Any]) -> Stamp:
    """The stamp of a model by the record of its training (`manifest["exposure"]`, see `train.manifest`)."""
    met = seen_in_training(manifest)
    sources = (manifest.get("exposure") or {}).get("sources") or {}
    artificial = set(sources) & set(ARTIFICIAL)
    return Stamp(
        domain=_domain(sources, artificial, bool(manifest.get("start"))),
        is_artificial=bool(sources) and artificial == set(sources) and not manifest.get("start"),
        findings={kind: _words(exposure(kind, "", manifest), kind in met) for kind in prompts.KINDS},
    )


def stamp_of_classifier(manifest: Mapping[str, Any]) -> Stamp:
    """The stamp of a fine-tuned classifier (`manifest["classifier"]`), of its own findings alone."""
    told = manifest["classifier"]
    sources = {name: {"labelled": count} for name, count in told["sources"].items()}
    before = (manifest.get("exposure") or {}).get("sources") or {}
    artificial = {*sources, *before} & set(ARTIFICIAL)
    way = "its encoder, too" if told["mode"] == "full" else "a linear layer"
    return Stamp(
        domain=f"labels of {_domain(sources, set(sources) & artificial, bool(manifest.get('start')))}; {way}, on "
        f"{100 * told['fraction']:g} % of training, after the pre-training of {told['checkpoint']['run']}",
        is_artificial=artificial == {*sources, *before} and not manifest.get("start"),
        findings={kind: NOT_TUNED if exposure(kind, "", manifest) == NOT_TUNED else TUNED for kind in told["findings"]},
    )


def describe(sizes: Any) -> str:
    """A model's sizes (`config.model`) in a line."""
    depth = sum(getattr(sizes.image, "depths", ())) or sizes.image.depth
    return (
        f"{sizes.image_size} px in patches of {sizes.patch_size}, image encoder {depth} × "
        f"{sizes.image.width}, text encoder {sizes.text.depth} × {sizes.text.width}, embedding {sizes.embed_dim}"
    )


def describe_classifier(sizes: Any, told: Mapping[str, Any]) -> str:
    """A classifier's sizes in a line; sizes: `config.model`; told: `manifest["classifier"]`."""
    what = "classes" if told["task"] == "multi-class" else "findings"
    return (
        f"linear layer to {len(told['findings'])} {what} on an image encoder of width {sizes.image.width}, "
        f"{sizes.image_size} px in patches of {sizes.patch_size}"
    )


def name_of_classifier(told: Mapping[str, Any]) -> str:
    """What to call a classifier: what it began with, and how it was made."""
    way = "fine-tuned" if told["mode"] == "full" else "probe"
    return f"{told['checkpoint']['run']}, {way} on {100 * told['fraction']:g} %, seed {told['seed']}"


def known_findings(manifest: Mapping[str, Any]) -> list[str]:
    """The kinds that training texts stated, in the vocabulary's order; all where none is recorded."""
    recorded = manifest.get("exposure") or {}
    stated = {
        kind for name in ("label_kinds", "report_kinds") for kinds in recorded.get(name, {}).values() for kind in kinds
    }
    return [kind for kind in prompts.KINDS if kind in stated] or list(prompts.KINDS)


def _words(stamp: str, met: bool) -> str:
    """An exposure for somebody whose image comes from a source that nobody knows."""
    bare = stamp.removesuffix(AS_STATED)
    if bare == REPORT_ONLY:
        return (REPORTS if met else NOT_MET) + stamp[len(bare) :]
    if bare in (OTHER_SOURCE, SAME_SOURCE):
        return LABELS + stamp[len(bare) :]
    return stamp


def _domain(sources: Mapping[str, Mapping[str, int]], artificial: Iterable[str], has_start: bool) -> str:
    if not sources:
        said = "not recorded"
    else:
        counted = [f"{name} ({sum(counts.values()):,} images)" for name, counts in sources.items()]
        said = ", ".join(counted)
        if set(artificial) == set(sources):
            said = f"artificial X-rays alone, {said}: its numbers say nothing about real radiographs"
        elif artificial:
            said += f"; artificial X-rays: {', '.join(sorted(artificial))}"
    return said + ("; before that from what the authors of its first weights used" if has_start else "")
