"""What the terminal shows of an evaluation."""

import os

from mmclip_jax import files
from mmclip_jax.data.leakage import audit
from mmclip_jax.evaluate import registry
from mmclip_jax.evaluate.base import Results
from mmclip_jax.evaluate.report.notes import classifier_facts, external_facts, start_facts
from mmclip_jax.evaluate.report.page import REPORT_FILE


def summary(results: Results, what: str, out_dir: str | os.PathLike[str]) -> str:
    """Results as a terminal should show them; what: was evaluated, in a few words."""
    data = results["data"]
    extent = f"{data['rows']:,} images of {data['patients']:,} patients, {results['seconds']['total']:.0f} s"
    return "\n".join(
        [
            f"{what}, {data['split']} split, {extent}",
            headline_text(results),
            *registry.lines(results),
            *(
                f"{what}: {value}"
                for what, value in external_facts(results) + classifier_facts(results) + start_facts(results)
            ),
            f"Audit: {audit.text(results['audit'])}",
            f"Report: {files.locate(out_dir) / REPORT_FILE}",
        ]
    )


def headline_text(results: Results) -> str:
    """The numbers of the page's head, one line a number."""
    lines = [
        (card.title, f"{card.value} {card.beside}".strip(), "; ".join(card.lines)) for card in registry.cards(results)
    ]
    first, second = (max(len(line[i]) for line in lines) for i in (0, 1))
    return "\n".join(f"  {a:<{first}}  {b:<{second}}  {c}".rstrip() for a, b, c in lines)
