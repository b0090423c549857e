"""Which flips of a report are left out; the edits themselves: tests/evaluate/evaluations/test_counterfactual.py."""

import pytest

from mmclip_jax.text import flips
from mmclip_jax.text.entities import find_entities


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Turned round, these would say what is true.
        ("Left pleural effusion. Right pleural effusion.", None),
        ("Small left and moderate right pleural effusions.", None),
        ("There is a left effusion.\nImpression: effusions on the right and on the left.", None),
        # The other side is another finding's, or is denied.
        ("Left effusion and right basilar atelectasis.", "Right effusion and right basilar atelectasis."),
        ("Left effusion. No right effusion.", "Right effusion. No right effusion."),
        ("Left effusion. The right lung is clear.", "Right effusion. The right lung is clear."),
        ("Left effusion. Effusion on the left.", "Right effusion. Effusion on the left."),
    ],
)
def test_no_side_is_turned_round_of_what_is_on_both(text: str, expected: str | None) -> None:
    entities = find_entities(text)
    findings = flips.findings_of(entities)
    assert flips.flip_report(text, entities, "side", findings[:1]).text == expected


def test_a_finding_on_both_sides_is_passed_over_for_the_next() -> None:
    text = "Right effusion. Left effusion. A left pneumothorax."
    entities = find_entities(text)
    found = flips.flip_report(text, entities, "side", flips.findings_of(entities))
    assert found.text == "Right effusion. Left effusion. A right pneumothorax."
    assert entities[found.entity].kind == "pneumothorax"
