"""The table of a study: means over seeds, differences paired by seed, and how they are printed."""

import io
import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import scipy.stats

from mmclip_jax import files, spreadsheet
from mmclip_jax.ablate.studies import MEASURES

LEVEL = 0.95


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation with n-1 (None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], level: float = LEVEL
) -> dict[str, float | int | None] | None:
    """Mean of values - reference over the seeds that both have, with Student's t interval of the paired differences.

    The interval covers what the seed decides (initialisation, data order, masks), not the choice of test images.

    Returns:
      {"mean", "low", "high", "seeds"}; low and high are None with one seed; None if no seed is shared.
    """
    shared = sorted(values.keys() & reference.keys())
    if not shared:
        return None
    mean, sd = mean_and_sd([values[seed] - reference[seed] for seed in shared])
    if sd is None:
        return {"mean": mean, "low": None, "high": None, "seeds": 1}
    half = scipy.stats.t.ppf(0.5 + level / 2, len(shared) - 1) * sd / math.sqrt(len(shared))
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": len(shared)}


def summarize(study: str, rows: Mapping[str, int], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table's content, as in table.json.

    Args:
      study: its name.
      rows: {row: runs planned}, the first being the reference.
      results: what every run gave (`running._run_study`).

    Returns:
      {"study", "reference", "level", "measures": [key...], "rows": [{"row", "runs", "planned", "failed": [message...],
      "values": {measure: {"mean", "sd", "by_seed": {seed: value}, "difference": see `paired_difference`}}}]}.
    """
    by_row: dict[str, dict[str, dict[int, float]]] = {row: {} for row in rows}
    for result in results:
        for measure, value in result.get("measures", {}).items():
            by_row[result["row"]].setdefault(measure, {})[result["seed"]] = value
    reference = next(iter(rows))
    lines = []
    for row, planned in rows.items():
        values: dict[str, Any] = {}
        for measure, by_seed in by_row[row].items():
            mean, sd = mean_and_sd(list(by_seed.values()))
            values[measure] = {"mean": mean, "sd": sd, "by_seed": by_seed}
            if row != reference:
                values[measure]["difference"] = paired_difference(by_seed, by_row[reference].get(measure, {}))
        mine = [result for result in results if result["row"] == row]
        failed = [f"seed {result['seed']}: {result['failed']}" for result in mine if "failed" in result]
        runs = sum("measures" in result for result in mine)
        lines.append({"row": row, "runs": runs, "planned": planned, "failed": failed, "values": values})
    known = [key for key, *_ in MEASURES]
    found = {measure for values in by_row.values() for measure in values}
    measures = [key for key in known if key in found] + sorted(found.difference(known))
    return {"study": study, "reference": reference, "level": LEVEL, "measures": measures, "rows": lines}


def _heading(measure: str) -> str:
    for key, heading, better in MEASURES:
        if key == measure:
            return heading + ("" if better is None else " ↑" if better else " ↓")
    return measure


def _plain(value: float | None, sign: bool = False) -> str:
    return "–" if value is None else format(value, "+.3f" if sign else ".3f").replace("-", "−")


def _cells(table: Mapping[str, Any]) -> list[list[str]]:
    """The two halves of the table: a heading, then a line a row; differences below, after an empty line."""
    head = ["", *(_heading(measure) for measure in table["measures"])]
    absolute, relative = [head], []
    for line in table["rows"]:
        name = line["row"] + ("" if line["runs"] == line["planned"] else f" ({line['runs']} of {line['planned']} runs)")
        cells, changes = [name], [f"{line['row']} − {table['reference']}"]
        for measure in table["measures"]:
            value = line["values"].get(measure)
            if value is None:
                cells.append("–")
                changes.append("–")
                continue
            cells.append(_plain(value["mean"]) + ("" if value["sd"] is None else f" ± {_plain(value['sd'])}"))
            change = value.get("difference")
            if change is None:
                changes.append("–")
            else:
                bounds = ", ".join(_plain(change[name], True) for name in ("low", "high"))
                changes.append(_plain(change["mean"], True) + ("" if change["low"] is None else f" [{bounds}]"))
        absolute.append(cells)
        if line["row"] != table["reference"]:
            relative.append(changes)
    return [*absolute, [], *relative]


def _caption(table: Mapping[str, Any]) -> str:
    made = table.get("made_with", {})
    facts = [f"{name} {value}" for name, value in made.items() if name != "batch"]
    if "batch" in made:
        facts.insert(0, "rows a step " + " + ".join(f"{count} {part}" for part, count in made["batch"].items()))
    lines = [
        f"Mean ± sd over seeds {', '.join(map(str, table.get('seeds', ())))} on the {table.get('split', '')} split; "
        f"below, differences paired by seed with {table['level']:.0%} intervals of Student's t. They cover what the "
        "seed decides, not the choice of images.",
        "; ".join(facts),
    ]
    lines += [f"Failed: {line['row']}, {message}" for line in table["rows"] for message in line["failed"]]
    return "\n".join(line for line in lines if line)


def as_text(table: Mapping[str, Any]) -> str:
    """The table for a terminal, columns aligned; wide ones are turned: a line a measure."""
    cells = [row for row in _cells(table) if row]
    turned = [list(column) for column in zip(*cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*turned, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in turned]
    return "\n".join([f"Study: {table['study']}", *lines, _caption(table)])


def as_markdown(table: Mapping[str, Any]) -> str:
    """The table for a page."""
    head, *rows = [row for row in _cells(table) if row]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    caption = "\n\n".join(_caption(table).split("\n"))
    return f"### {table['study']}\n\n{body}\n\n{caption}\n"


def as_csv(table: Mapping[str, Any]) -> str:
    """One line a row and measure: means, sds, differences; numbers in full."""
    out = io.StringIO()
    writer = spreadsheet.Writer(out)
    writer.writerow(["study", "row", "measure", "runs", "mean", "sd", "difference", "low", "high"])
    for line in table["rows"]:
        for measure in table["measures"]:
            value = line["values"].get(measure)
            if value is not None:
                change = value.get("difference") or {}
                numbers = [value["mean"], value["sd"], *(change.get(name) for name in ("mean", "low", "high"))]
                writer.writerow([table["study"], line["row"], measure, len(value["by_seed"]), *numbers])
    return out.getvalue()


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    files.write_whole(path, json.dumps(content, indent=1) + "\n")


def write_table(table: Mapping[str, Any], folder: pathlib.Path) -> str:
    """Writes table.txt, .md, .csv and .json; returns the text with the place where it lies."""
    folder.mkdir(parents=True, exist_ok=True)
    text = as_text(table)
    for name, content in (("txt", text + "\n"), ("md", as_markdown(table)), ("csv", as_csv(table))):
        (folder / f"table.{name}").write_text(content, encoding="utf-8")
    write_json(folder / "table.json", table)
    return f"{text}\nTable: {folder / 'table.md'}"
