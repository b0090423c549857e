"""What a built data set holds, as text for a person: `mmclip data info`."""

import collections
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmclip_jax.data import records


def describe(path: str | os.PathLike[str]) -> str:
    """The facts of a built data set as readable tables.

    Args:
      path: as `records.dataset_dir` takes it.

    Raises:
      UserError: there is no data set, or more than one.
    """
    directory = records.dataset_dir(path)
    facts = records.dataset_facts(directory)
    splits: dict[str, dict[str, Any]] = facts["splits"]
    lines = [
        f"{facts['name']} {facts['version']} in {directory}",
        f"{facts['examples']} images, {facts['patients']} patients, {facts['studies']} studies; "
        f"fingerprint {facts['fingerprint'][:16]}",
    ]
    if len(facts["sources"]) > 1:
        counts = [f"{name} ({c['paired']} paired, {c['unpaired']} unpaired)" for name, c in facts["sources"].items()]
        lines.append(f"sources: {', '.join(counts)}")
    if "rejects" in facts:
        lines.append(f"{facts['rejects']} rows could not be used; {directory / 'rejects.csv'} lists them")
    lines += [f"NOTE: {note}" for note in facts.get("notes", [])]
    lines += [
        "",
        *_table(("part", "images", "patients", "studies", "boxes", "MB"), [_part_row(*i) for i in splits.items()]),
    ]
    for title, field in (("view", "views"), ("sex", "sexes")):
        values = _summed(part[field] for part in splits.values())
        lines.append(f"{title}: {', '.join(f'{value} {count}' for value, count in values.most_common())}")
    for name, part in splits.items():
        if part["age"]:
            age = part["age"]
            unknown = part["examples"] - age["number"]
            years = f"{age['min']:g} to {age['max']:g} years, median {age['median']:g}"
            lines.append(f"age in {name}: {years}, unknown for {unknown}")
    lines += _reports(splits)
    lines += _labels(facts["labels"], _summed(part["boxes"] for part in splits.values()))
    return "\n".join(lines)


def _part_row(name: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    megabytes = f"{part['image_bytes'] / 1e6:.1f}"
    counts = (part["examples"], part["patients"], part["studies"], sum(part["boxes"].values()))
    return (name, *map(str, counts), megabytes)


def _reports(splits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    paired = {name: part for name, part in splits.items() if "reports" in part}
    if not paired:
        return ["", "no reports"]
    rows = []
    for name, part in paired.items():
        words, entities = part["reports"]["words"], part["entities"]
        negated = entities["negated_share"]
        rows.append(
            (
                name,
                f"{words['min']:g} / {words['median']:g} / {words['max']:g}",
                f"{entities['per_report']['mean']:.1f}",
                str(entities["reports_without"]),
                "-" if negated is None else f"{100 * negated:.0f} %",
            )
        )
    header = ("reports", "words min / median / max", "entities a report", "without entities", "observations denied")
    affirmed = _summed(part["entities"]["affirmed"] for part in paired.values())
    denied = _summed(part["entities"]["negated"] for part in paired.values())
    kinds = sorted(affirmed.keys() | denied.keys(), key=lambda kind: (-affirmed[kind], kind))
    mentions = [(kind, str(affirmed[kind]), str(denied[kind])) for kind in kinds]
    return ["", *_table(header, rows), "", *_table(("mentions in reports", "affirmed", "denied"), mentions)]


def _labels(labels: Mapping[str, Mapping[str, int]], boxes: Mapping[str, int]) -> list[str]:
    kinds = sorted(labels.keys() | boxes.keys())
    if not kinds:
        return ["", "no labels"]
    states = ("present", "absent", "uncertain")
    rows = [
        (kind, *(str(labels.get(kind, {}).get(state, 0)) for state in states), str(boxes.get(kind, 0)))
        for kind in kinds
    ]
    return ["", *_table(("label", *states, "boxes"), rows)]


def _summed(counts: Any) -> collections.Counter[str]:
    total: collections.Counter[str] = collections.Counter()
    for each in counts:
        total.update(each)
    return total


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
