"""Text that tells the user what a build did."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mmclip_jax.data.builders.items import REJECTS_FILE
from mmclip_jax.errors import listed
from mmclip_jax.text import reports


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a build did; `str(summary)` is the text that the user sees."""

    path: pathlib.Path
    facts: Mapping[str, Any]
    seconds: float

    @property
    def rejects_path(self) -> pathlib.Path:
        """The list of what was left out."""
        return self.path / REJECTS_FILE

    def __str__(self) -> str:
        facts = self.facts
        lines = [
            f"built {self.path}: {facts['examples']} images of {facts['patients']} patients in {self.seconds:.1f} s"
        ]
        for part, counts in facts["splits"].items():
            lines.append(f"  {part:20s} {counts['examples']:7d} images {counts['patients']:7d} patients")
        return "\n".join([*lines, *(f"  {line}" for line in self.details())])

    def details(self) -> list[str]:
        """The lines that follow those of the splits."""
        raise NotImplementedError


class CollectionSummary(Summary):
    """What the build of a published data set did."""

    def details(self) -> list[str]:
        """Notes, what was skipped or left out, and the reports."""
        facts = self.facts
        lines = [f"NOTE: {note}" for note in facts.get("notes", [])]
        passed_over = {"companions": "companion files of operating systems", "masks": "images in folders of masks"}
        for key, what in passed_over.items():
            if count := facts.get(f"{key}_passed_over"):
                lines.append(f"{count} {what} passed over")
        for reason, count in facts["left_out_on_purpose"].items():
            lines.append(f"{count} rows left out on purpose: {reason}")
        return [
            *lines,
            *reports.told(facts),
            f"{facts['rejects']} rows could not be used, {facts['cells_left_out']} cells left out",
            f"all are listed in {self.rejects_path}",
        ]


class TableSummary(Summary):
    """What the build of a user's table did."""

    def details(self) -> list[str]:
        """How the tables were understood, the reports, what label strings mean, and what was left out."""
        facts = self.facts
        lines = []
        for table in facts["tables"]:
            used = ", ".join(f"{role} = {column}" for role, column in table["columns"].items())
            lines.append(f"{table['file']}: {table['rows']} rows; {used}")
            if table["columns_not_used"]:
                lines.append(f"  not used: {listed(table['columns_not_used'])}")
            if table["rows_of_other_views"]:
                lines.append(
                    f"  {table['rows_of_other_views']} rows of other views left out (--views all keeps every view)"
                )
            lines += [f"  {note}" for note in table["notes"]]
        lines += reports.told(facts)
        meanings: dict[str, list[str]] = {}
        for string, kind in facts["label_strings"].items():
            meanings.setdefault(kind or "(ignored)", []).append(string)
        lines += [f"label {kind}: {', '.join(meanings[kind])}" for kind in sorted(meanings)]
        left_out = f"{facts['rejects']} rows left out, {facts['cells_left_out']} cells left out"
        return [*lines, f"{left_out}: {self.rejects_path}"]
