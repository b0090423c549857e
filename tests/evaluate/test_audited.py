"""What evaluations do with the audit, what their pages say of it, and whose source counts as the model's own."""

import pathlib
import types
from collections.abc import Iterator
from typing import Any

import jinja2
import numpy as np
import pytest

import mmclip_jax
from mmclip_jax import ablate
from mmclip_jax.data import records
from mmclip_jax.data.leakage import audit
from mmclip_jax.data.schema import Example
from mmclip_jax.errors import LeakageError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.report import page as page_lib
from mmclip_jax.evaluate.rows import Split
from mmclip_jax.external import run as external
from mmclip_jax.inference import exposure


class Patients(records.RecordsBuilder):
    """Images of these patients in each split; the pixels tell the patient and nothing else."""

    def __init__(self, data_dir: pathlib.Path, name: str, **patients: range):
        super().__init__(data_dir)
        self.name, self._patients = name, patients

    def examples(self, split: str) -> Iterator[Example]:
        for number in self._patients.get(split, ()):
            yield example(number, split, self.name)


def example(number: int, split: str = "test", source: str = "mine") -> Example:
    pixels = np.random.default_rng(number).integers(0, 256, (24, 24), dtype=np.uint8)
    return records.finish_example(
        id=f"{source}-{split}-{number}.x", source=source, split=split, patient=f"{source}-{split}-{number}",
        study=f"{source}-{split}-s{number}", pixels=pixels, findings=f"Effusion of {number} ml.",
    )  # fmt: skip


def build(folder: pathlib.Path, name: str, **patients: range) -> str:
    return str(records.build(Patients(folder, name, **patients)))


def manifest_of(*directories: str) -> dict[str, Any]:
    return {"data": {each: {"fingerprint": audit._identity(each)[1]} for each in directories}}


PROTOCOL = protocols.load("table")


def test_scored_images_are_compared_with_training_and_with_what_thresholds_come_from(tmp_path: pathlib.Path) -> None:
    train = build(tmp_path, "a", train=range(10))
    clean = build(tmp_path, "b", validation=range(20, 25), test=range(30, 35))
    told = evaluation.audit_scored(manifest_of(train), [clean], "test", PROTOCOL)
    assert (told["status"], told["parts"]) == ("clean", {"training": "clean", "thresholds": "clean"})
    leaky = build(tmp_path, "c", validation=range(40, 43), test=range(8, 14))
    with pytest.raises(LeakageError, match="pixels: 2 of 6 images of c:test in a:train"):
        evaluation.audit_scored(manifest_of(train), [leaky], "test", PROTOCOL)
    chosen = build(tmp_path, "d", validation=range(50, 56), test=range(55, 60))
    with pytest.raises(LeakageError, match="pixels: 1 of 5 images of d:test in d:validation"):
        evaluation.audit_scored(manifest_of(train), [chosen], "test", PROTOCOL)
    allowed = evaluation.audit_scored(manifest_of(train), [chosen], "test", PROTOCOL, "a drill")
    assert allowed["parts"] == {"training": "clean", "thresholds": "leaks"}
    assert evaluation.audit_scored(manifest_of(train), [train], "train", PROTOCOL)["status"] == "not audited"
    assert evaluation.audit_scored({}, [clean], "test", PROTOCOL)["status"] == "not audited"


def test_an_ablation_audits_what_it_scores(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = build(tmp_path, "a", train=range(6)), build(tmp_path, "b", test=range(5, 9))
    config = types.SimpleNamespace(data=types.SimpleNamespace(allow_leakage=""))
    model = types.SimpleNamespace(manifest=manifest_of(train), config=config)
    monkeypatch.setattr(mmclip_jax, "load", lambda workdir: model, raising=False)
    with pytest.raises(LeakageError, match="pixels: 1 of 4 images of b:test in a:train"):
        ablate.evaluate_run(tmp_path, [test], "test")


# External models


def test_of_a_model_of_others_the_stated_sources_are_told_by_family() -> None:
    spec = external.load_spec("chexzero")  # which states mimic_cxr

    def told(source: str) -> dict[str, Any]:
        return external.audited(spec.stated["sources"], Split.of([example(1, source=source)], "test"))

    assert told("mine")["status"] == told("ms_cxr")["status"] == "not audited"
    assert "trained on mimic_cxr, which is scored here" in told("ms_cxr")["note"]
    assert "scored here" not in told("mine")["note"]
    assert audit.text(told("ms_cxr")).startswith("not audited: the training data of this model are not here")


# Exposure


@pytest.mark.parametrize(
    ("learnt", "scored", "expected"),
    [("nih", "chestxray14", exposure.SAME_SOURCE), ("chestxray14", "nih", exposure.SAME_SOURCE),
     ("chestxray14", "rsna", exposure.SAME_SOURCE), ("siim", "chestxray14", exposure.SAME_SOURCE),
     ("rsna", "covidx", exposure.SAME_SOURCE), ("vinbigdata", "vindr", exposure.SAME_SOURCE),
     ("mimic_cxr", "ms_cxr", exposure.SAME_SOURCE), ("chexpert", "chexlocalize", exposure.SAME_SOURCE),
     ("chexpert", "mimic_cxr", exposure.OTHER_SOURCE), ("padchest", "chestxray14", exposure.OTHER_SOURCE),
     ("mine", "ours", exposure.OTHER_SOURCE), ("mine", "mine", exposure.SAME_SOURCE)],
)  # fmt: skip
def test_a_source_under_another_name_is_the_same_source(learnt: str, scored: str, expected: str) -> None:
    manifest = {"exposure": {"label_kinds": {learnt: ["edema"], "else": ["hernia"]}}}
    assert exposure.exposure("edema", scored, manifest) == expected
    assert exposure.exposure("nodule", scored, manifest) == exposure.REPORT_ONLY


def test_a_start_from_weights_of_others_is_what_their_authors_state() -> None:
    own = {"exposure": {"label_kinds": {"mine": ["edema"]}}}
    silent = own | {"start": {"name": "theirs", "exposure": None}}
    assert exposure.exposure("edema", "mine", silent) == exposure.SAME_SOURCE
    assert exposure.exposure("edema", "ours", silent) == exposure.OTHER_SOURCE
    assert exposure.exposure("hernia", "mine", silent) == exposure.STARTED_ELSEWHERE
    assert exposure.called([exposure.STARTED_ELSEWHERE]) == "by prompts, exposure unknown"
    stated = own | {"start": {"name": "theirs", "exposure": {"label_kinds": {"chestxray14": ["hernia"]}}}}
    assert exposure.exposure("hernia", "nih", stated) == exposure.SAME_SOURCE + exposure.AS_STATED
    assert exposure.exposure("hernia", "ours", stated) == exposure.OTHER_SOURCE + exposure.AS_STATED
    assert exposure.exposure("nodule", "ours", stated) == exposure.REPORT_ONLY + exposure.AS_STATED
    assert exposure.exposure("edema", "mine", stated) == exposure.SAME_SOURCE
    for stamp in (exposure.STARTED_ELSEWHERE, *(exposure.exposure(k, "nih", stated) for k in ("hernia", "nodule"))):
        assert stamp in exposure.EXPOSURES


def test_images_that_were_trained_on_are_counted_by_family() -> None:
    seen = {
        "nih": {"paired": 0, "unpaired": 7},
        "rsna": {"paired": 0, "unpaired": 2},
        "x": {"paired": 5, "unpaired": 0},
    }
    results = {"exposure": {"sources": seen}, "data": {"sources": {"chestxray14": {}, "x": {}, "y": {}}}}
    assert page_lib._trained_on(results) == {
        "chestxray14": {"paired": 0, "unpaired": 9}, "x": seen["x"], "y": {"paired": 0, "unpaired": 0},
    }  # fmt: skip


# Pages


def results_of(status: str) -> dict[str, Any]:
    sets = {
        "clean": ("p", "mine", "q", "mine"), "leaks": ("p", "mine", "p", "mine"),
        "to be looked at": ("p", "mine", "p", "ours"), "not comparable": ("p", "siim", "q", "rsna"),
    }  # fmt: skip
    if status == "not audited":
        return audit.judge([], [], missing=["gone"])
    a, one, b, other = sets[status]
    train = [audit.Row(f"i{n}", one, f"{a}{n}") for n in range(3)]
    test = [audit.Row(f"j{n}", other, f"{b}{n}") for n in range(3)]
    return audit.judge([audit.AuditSet("a", train)], [audit.AuditSet("b", test)], allowed="a drill")


@pytest.mark.parametrize("status", audit.STATUSES)
def test_only_what_was_compared_is_called_without_a_patient_in_common(status: str) -> None:
    result = results_of(status)
    assert result["status"] == status
    said = audit.text(result)
    assert ("no patient" in said) == (status == "clean")
    assert ("a drill" in said) == (status in ("leaks", "to be looked at"))
    assert "alike not run" in said or status in ("leaks", "to be looked at", "not audited")
    source = (pathlib.Path(page_lib.__file__).parent / "resources" / "report.html.j2").read_text()
    line = next(line for line in source.splitlines() if "<dt>Audit</dt>" in line)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(line)
    shown = page.render(r=types.SimpleNamespace(audit=result), audited=said)
    assert said in shown
    assert ("<b>" in shown) == (status in ("leaks", "to be looked at"))
    assert ("kin" in shown) == (status == "not comparable")
