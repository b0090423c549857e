"""Trains the default tokenizer from the project's own words: `python -m mmclip_jax.data.build_default_tokenizer`.

The texts are the lexicon's terms but for those of resources/newer_terms.txt, sentences of resources/sentences.txt
filled with them, training prompts and the phantom's reports. Nothing in them comes from a data set. The same versions
give the same model.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmclip_jax.text import prompts
from mmclip_jax.text.tokenizer import train_tokenizer
from mmclip_jax.text.vocabulary import NO_FINDING, PACKAGED, TOKENIZER, Resources, load

VOCAB_SIZE = 2000
SENTENCES, NEWER = "sentences.txt", "newer_terms.txt"
SEED = 20240729
PROMPTS = 4_000
REPORTS = 4_000
FILLED = 40  # times that each sentence is filled anew
NAMED = 20  # sentences that each term of the lexicon stands in beside those


def own_texts(words: Resources) -> Iterator[str]:
    """All texts that the default model is trained on, in a fixed order."""
    rng = np.random.default_rng(SEED)
    yield from _sentences(words, rng)
    yield from _prompts(words, rng)
    yield from _phantom_reports()


def _lines(name: str) -> list[str]:
    lines = (PACKAGED / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _sentences(words: Resources, rng: np.random.Generator) -> Iterator[str]:
    templates, newer = _lines(SENTENCES), set(_lines(NEWER))
    by_slot = {
        slot: sorted(term for term, meaning in words.terms.items() if meaning.label == label and term not in newer)
        for slot, label in (("o", "observation"), ("a", "anatomy"), ("d", "device"), ("m", "modifier"))
    }

    def fill(template: str, slot: str = "", term: str = "") -> str:
        if term:
            template = template.replace(f"{{{slot}}}", term, 1)
        for name, terms in by_slot.items():
            while f"{{{name}}}" in template:
                template = template.replace(f"{{{name}}}", terms[rng.integers(len(terms))], 1)
        return template

    for template in templates:
        for _ in range(FILLED if "{" in template else FILLED // 4):
            yield fill(template)
    for slot, terms in by_slot.items():
        carriers = [template for template in templates if f"{{{slot}}}" in template]
        for term in terms:
            for i in rng.permutation(len(carriers))[:NAMED]:
                yield fill(carriers[i], slot, term)


def _prompts(words: Resources, rng: np.random.Generator) -> Iterator[str]:
    kinds = [kind for kind in words.kinds if kind != NO_FINDING]
    for number in range(PROMPTS):
        some = [kinds[i] for i in rng.permutation(len(kinds))[: rng.integers(1, 6)]]
        cut = int(rng.integers(0, len(some) + 1))
        present: Sequence[str] = some[:cut]
        if number % 8 == 0:
            present = [NO_FINDING]
        yield prompts.training_prompt(rng, present, some[cut:], words)


def _phantom_reports() -> Iterator[str]:
    from mmclip_jax.data.phantom.findings import draw_findings
    from mmclip_jax.data.phantom.generate import PAIRED_SOURCE, patient_of, view_of
    from mmclip_jax.data.phantom.reports import write_report
    from mmclip_jax.text.schema import report_text

    for number in range(REPORTS):
        patient = patient_of(SEED, "train", PAIRED_SOURCE, number)
        findings = draw_findings(patient, 1)
        view = view_of(patient, 1, findings)
        yield report_text(*write_report(patient, 1, findings, view))


def main(arguments: Sequence[str] = ()) -> None:
    """Writes the model to the path given, else over the package's own."""
    path = Path(arguments[0]) if arguments else PACKAGED / TOKENIZER
    tokenizer = train_tokenizer(own_texts(load()), VOCAB_SIZE, path)
    print(f"{path}: {tokenizer.vocab_size} pieces, {len(tokenizer.model_bytes)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
