"""Evaluations that chose thresholds, as a run's folder holds them."""

import json
import pathlib
from typing import Any


def results(**changes: Any) -> dict[str, Any]:
    """A results.json: "edema" has a threshold in the headline's source, "pneumothorax" none; changes: of its fields."""
    finding = {"finding": "edema", "decision": {"threshold": 0.02}}
    nothing = {"finding": "pneumothorax", "decision": {"threshold": None}}
    protocol = {
        "score": "softmax",
        "ensemble": "embeddings",
        "default_prompts": True,
        "threshold": "f1",
        "validation": "validation",
    }
    scored: dict[str, Any] = {
        "protocol": protocol | {k: v for k, v in changes.items() if k in protocol},
        "score": "positive" if changes.get("score") == "cosine" else "difference",
        "primary": changes.get("primary", "phantom-a"),
        "sources": {"phantom-a": {"findings": [finding, nothing]}, "phantom-b": {"findings": [nothing]}},
    }
    return {"zero_shot": scored}


def write(run: pathlib.Path, name: str, content: Any) -> None:
    """As `mmclip evaluate` leaves it in a run's folder; name: of the evaluation."""
    folder = run / "evaluation" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
