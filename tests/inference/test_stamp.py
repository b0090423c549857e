"""What a model says of its own training: domain and exposure in words, by hand-made records of training."""

from typing import Any

import pytest

from mmclip_jax.errors import UserError
from mmclip_jax.inference import stamp
from mmclip_jax.inference.exposure import (
    NOT_OURS,
    NOT_TUNED,
    STARTED_ELSEWHERE,
    TUNED_OTHER,
    TUNED_SAME,
    UNKNOWN_EXPOSURE,
    called,
    exposure,
)


def record(labels: dict[str, list[str]], reports: dict[str, list[str]], **more: Any) -> dict[str, Any]:
    sources = {name: {"paired": 0, "unpaired": 1500} for name in labels} | {
        name: {"paired": 2000, "unpaired": 0} for name in reports
    }
    return {"exposure": {"sources": sources, "label_kinds": labels, "report_kinds": reports}, **more}


PHANTOM = record({"phantom-b": ["edema", "viral_pneumonia"]}, {"phantom-a": ["edema", "pneumothorax"]})


def test_a_model_of_drawn_images_says_so() -> None:
    found = stamp.stamp_of(PHANTOM)
    assert found.is_artificial
    assert found.domain == (
        "artificial X-rays alone, phantom-b (1,500 images), phantom-a (2,000 images): its numbers say nothing about "
        "real radiographs"
    )
    assert found.of("pulmonary edema") == stamp.LABELS
    assert found.of("pneumonia") == stamp.LABELS, "a narrower kind's label teaches the broader one"
    assert found.of("pneumothorax") == stamp.REPORTS
    assert found.of("hernia") == stamp.NOT_MET
    assert found.of("a swallowed coin") == stamp.OWN_WORDS
    text = str(found)
    assert text.splitlines()[-1] == stamp.RESEARCH_ONLY
    assert f"{stamp.REPORTS[0].upper()}{stamp.REPORTS[1:]}: pneumothorax" in text
    assert set(stamp.known_findings(PHANTOM)) == {"edema", "pneumothorax", "viral_pneumonia"}


def test_real_and_drawn_images_together() -> None:
    found = stamp.stamp_of(record({"phantom-b": ["edema"]}, {"mimic_cxr": ["edema"]}))
    assert not found.is_artificial
    assert found.domain == "phantom-b (1,500 images), mimic_cxr (2,000 images); artificial X-rays: phantom-b"


@pytest.mark.parametrize(
    ("manifest", "said", "domain"),
    [
        ({}, UNKNOWN_EXPOSURE, "not recorded"),
        ({"foreign": True}, NOT_OURS, "not recorded"),
        (record({"nih": ["edema"]}, {}, start={"exposure": None}), STARTED_ELSEWHERE, "first weights"),
        (
            record({}, {"openi": ["edema"]}, start={"exposure": {"label_kinds": {"nih": ["hernia"]}}}),
            f"{stamp.LABELS}, as stated",
            "first weights",
        ),
    ],
)
def test_what_is_not_known_is_not_called_zero_shot(manifest: dict[str, Any], said: str, domain: str) -> None:
    found = stamp.stamp_of(manifest)
    assert found.of("hernia") == said
    assert domain in found.domain
    assert not found.is_artificial


def test_without_a_record_all_findings_are_known() -> None:
    assert len(stamp.known_findings({})) > 20


def test_a_classifier_tells_findings_that_it_learnt_without_any_label() -> None:
    told = {
        "mode": "probe", "fraction": 0.01, "findings": ["edema", "hernia"], "sources": {"nih": 9},
        "label_kinds": {"nih": ["edema"]}, "checkpoint": {"run": "demo"},
    }  # fmt: skip
    manifest = PHANTOM | {"classifier": told}
    assert exposure("edema", "nih", manifest) == TUNED_SAME
    assert exposure("edema", "openi", manifest) == TUNED_OTHER
    assert exposure("hernia", "nih", manifest) == NOT_TUNED
    assert called([TUNED_SAME, NOT_TUNED]) == called([NOT_TUNED]) == "supervised"
    found = stamp.stamp_of_classifier(manifest)
    assert (found.of("edema"), found.of("hernia")) == (stamp.TUNED, NOT_TUNED)
    with pytest.raises(UserError, match="has no output for 'nodule'; it has: edema, hernia"):
        found.of("nodule")
