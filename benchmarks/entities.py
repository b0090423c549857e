"""Entities on real reports: coverage, MeSH recall, negation, speed with cleaning and sections. Prints one table.

    python benchmarks/entities.py DIRECTORY      # the folder torchxrayvision/data of the wheel torchxrayvision==1.5.7
    python benchmarks/entities.py DIRECTORY --entities medspacy      # by another recogniser, without the speeds

MeSH recall, precisely: of each report (findings and impression, not empty), the distinct heads of its manual MeSH terms
count (the part before the first "/", lower case), without "normal" and "no indexing". Words are compared by their first
six letters. A head is covered if one of its words is a word of an entity (observation, anatomy or device, whatever its
polarity). Its ceiling is the same with all words of the report in place of the entities' words.
"with synonyms": a head listed in `SYNONYMS`, which MeSH calls otherwise than radiologists do, is covered if an entity
has a word that starts with one of the stems given there; the others as before.
"""

import argparse
import re
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmclip_jax.text import recognisers
from mmclip_jax.text import reports as report_texts
from mmclip_jax.text.entities import find_entities, find_terms
from mmclip_jax.text.schema import Entity, report_text

STEM = 6
IGNORED_HEADS = ("normal", "no indexing")
SYNONYMS = {
    "cicatrix": ("scar", "cicatri", "fibrotic"),
    "implanted medical device": ("pacemaker", "pacer", "pacing", "icd", "aicd", "defibrillator", "device", "lead",
                                 "generator", "valve", "stimulator", "recorder"),
    "catheters, indwelling": ("catheter", "picc", "port", "line", "mediport", "shunt"),
    "surgical instruments": ("clip", "staple", "suture", "wire", "surgical"),
    "medical device": ("lead", "device", "electrode", "wire", "monitor", "pacemaker"),
    "scoliosis": ("scolio", "dextro", "levo", "kyphosco", "rotosco", "curvature"),
    "cardiomegaly": ("cardiomegal", "enlarged", "enlargement", "prominent", "cardiac"),
    "bone diseases, metabolic": ("osteopen", "osteopor", "demineral"),
    "foreign bodies": ("foreign", "bullet", "shrapnel", "metallic", "piercing", "jewelry"),
    "diaphragm": ("diaphrag", "hemidiaphrag"),
    "markings": ("marking", "interstitial", "bronchovascular"),
    "deformity": ("deform", "fracture"),
    "osteophyte": ("osteophyt", "spur", "spondyl", "degenerat"),
    "blister": ("bleb", "bulla", "bullous", "blister"),
    "funnel chest": ("pectus",),
    "pulmonary disease, chronic obstructive": ("copd", "obstructive", "emphysema"),
}  # fmt: skip


class Report(NamedTuple):
    """A report's stored text, the heads of its manual MeSH terms, lower case, and its sections as they came."""

    text: str
    heads: frozenset[str]
    sections: dict[str, str]


def read_reports(directory: Path) -> list[Report]:
    """The reports of Open-I that are not empty, in order of their file names."""
    reports = []
    with tarfile.open(directory / "NLMCXR_reports.tgz") as archive:
        for member in sorted((m for m in archive if m.name.endswith(".xml")), key=lambda m: m.name):
            file = archive.extractfile(member)
            root = ElementTree.fromstring(file.read() if file else b"")
            sections = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
            read = report_texts.read_columns(sections.get("FINDINGS", ""), sections.get("IMPRESSION", ""))
            text = report_text(read.findings, read.impression)
            if text:
                heads = {(term.text or "").split("/")[0].strip().lower() for term in root.iter("major")}
                reports.append(Report(text, frozenset(heads), {str(k): v for k, v in sections.items() if v}))
    return reports


def mesh_recall(reports: Sequence[Report], found: Iterable[str], synonyms: bool = False) -> float:
    """Share of MeSH heads that the words of `found`, one string a report, cover (see the head of this file)."""
    covered = total = 0
    for report, text in zip(reports, found, strict=True):
        words = set(re.findall(r"[a-z]+", text.lower()))
        stems = {word[:STEM] for word in words}
        for head in report.heads.difference(IGNORED_HEADS):
            total += 1
            if synonyms and head in SYNONYMS:
                covered += any(word.startswith(SYNONYMS[head]) for word in words)
            else:
                covered += any(word[:STEM] in stems for word in re.findall(r"[a-z]+", head))
    return covered / total


def entity_words(entities: Iterable[Entity]) -> str:
    """The texts of entities that are no modifiers, joined."""
    return " ".join(entity.text for entity in entities if entity.label != "modifier")


def is_affirmed(entities: Iterable[Entity]) -> bool:
    """Whether an observation is stated."""
    return any(entity.label == "observation" and not entity.negated for entity in entities)


def rate(function: Callable[[Any], object], texts: Sequence[Any], repeats: int = 5) -> float:
    """Texts a second of processor time on one core, the best of several runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        for text in texts:
            function(text)
        best = min(best, time.process_time() - start)
    return len(texts) / best


def measure(reports: Sequence[Report], recogniser: str = recognisers.LEXICON) -> dict[str, float]:
    """All figures of the table but the speeds."""
    entities = recognisers.load(recogniser).recognise([report.text for report in reports])
    counts = [sum(entity.label != "modifier" for entity in found) for found in entities]
    observations = [entity for found in entities for entity in found if entity.label == "observation"]
    normal = [is_affirmed(f) for f, r in zip(entities, reports, strict=True) if r.heads == {"normal"}]
    abnormal = [is_affirmed(f) for f, r in zip(entities, reports, strict=True) if not r.heads & set(IGNORED_HEADS)]
    words = [entity_words(found) for found in entities]
    texts = [report.text for report in reports]
    return {
        "reports": len(reports),
        "with an entity": sum(count > 0 for count in counts) / len(counts),
        "entities a report": sum(counts) / len(counts),
        "modifiers a report": sum(map(len, entities)) / len(counts) - sum(counts) / len(counts),
        "MeSH heads covered": mesh_recall(reports, words),
        "  ceiling in the text": mesh_recall(reports, texts),
        "MeSH heads covered, with synonyms": mesh_recall(reports, words, synonyms=True),
        "  ceiling in the text, with synonyms": mesh_recall(reports, texts, synonyms=True),
        "observations denied": sum(entity.negated for entity in observations) / len(observations),
        "normal reports with an affirmed observation": sum(normal) / len(normal),
        "abnormal reports with an affirmed observation": sum(abnormal) / len(abnormal),
        "observations with a kind": sum(bool(entity.kind) for entity in observations) / len(observations),
    }


def stored_text(report: Report) -> str:
    """The text that is stored of a report whose sections come apart, as Open-I has them."""
    read = report_texts.read_columns(report.sections.get("FINDINGS", ""), report.sections.get("IMPRESSION", ""))
    return report_text(read.findings, read.impression)


def in_passes(reports: Sequence[Report]) -> None:
    """Cleans all reports and then finds the entities of all, as a build does."""
    for text in [stored_text(report) for report in reports]:
        find_entities(text)


def stored_text_of_whole(whole: str) -> str:
    """The text that is stored of a whole report, with headings."""
    read = report_texts.read_report.__wrapped__(whole)  # not what it remembers
    return report_text(read.findings, read.impression)


def speeds(reports: Sequence[Report]) -> dict[str, float]:
    """What the package's own recogniser and tokenizer do in a second, and how long reports become."""
    from mmclip_jax.text.tokenizer import load_tokenizer

    texts = [report.text for report in reports]
    wholes = ["\n".join(f"{name}: {text}" for name, text in report.sections.items()) for report in reports]
    tokenizer = load_tokenizer()
    pairs = {text: find_entities(text) for text in texts}
    lengths = sorted(len(tokenizer.encode(text)[0]) for text in texts)
    return {
        "terms alone, reports/s": rate(find_terms, texts),
        "entities with negation, reports/s": rate(find_entities, texts),
        "cleaning and sections, reports/s": rate(stored_text, reports),
        "  of whole reports": rate(stored_text_of_whole, wholes),
        "cleaning, sections and entities, reports/s": len(reports) * rate(in_passes, [reports]),
        "  report by report": rate(lambda each: find_entities(stored_text(each)), reports),
        "  of whole reports, with entities": rate(lambda each: find_entities(stored_text_of_whole(each)), wholes),
        "tokens with masks, reports/s": rate(lambda text: tokenizer.tokenize(text, pairs[text], 128), texts),
        "tokens a report, median": lengths[len(lengths) // 2],
        "tokens a report, 95th percentile": lengths[int(0.95 * len(lengths))],
        "tokens a word": sum(lengths) / sum(len(text.split()) for text in texts),
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="torchxrayvision/data of the wheel")
    parser.add_argument("--entities", default=recognisers.LEXICON, help=", ".join(recognisers.NAMES))
    options = parser.parse_args()
    reports = read_reports(options.directory)
    start = time.perf_counter()
    figures = measure(reports, options.entities)
    seconds = time.perf_counter() - start
    if options.entities == recognisers.LEXICON:
        figures |= speeds(reports)
    else:
        figures["reports/s, loading included"] = len(reports) / seconds
    for name, value in figures.items():
        print(f"{name:<48}{value:>10.3f}" if value < 100 else f"{name:<48}{value:>10,.0f}")


if __name__ == "__main__":
    main()
