"""Where an evaluation's files go: never over those of another split or of other data."""

import json
import pathlib
import types
from typing import Any

import pytest

import mmclip_jax
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.report import terminal


@pytest.fixture
def evaluate(tmp_path: pathlib.Path, phantom_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`evaluation.run` with a model and an evaluation that do nothing but write results.json."""
    settings = types.SimpleNamespace(data=types.SimpleNamespace(evaluate=(), train=(str(phantom_dir),)))
    model = types.SimpleNamespace(step=7, config=settings, manifest={"data": {}})
    monkeypatch.setattr(mmclip_jax, "load", lambda *arguments, **named: model)

    def written(model: Any, data: Any, split: str, out: Any, options: Any) -> dict[str, Any]:
        out.mkdir(parents=True, exist_ok=True)
        results = {"data": {"split": split, "sets": [{"name": "phantom"}]}}
        (out / "results.json").write_text(json.dumps(results))
        return results

    monkeypatch.setattr(evaluation, "evaluate_checkpoint", written)
    monkeypatch.setattr(terminal, "summary", lambda results, what, out: str(out))
    (tmp_path / "run").mkdir()
    return lambda **named: pathlib.Path(evaluation.run(tmp_path / "run", **named))


def test_another_split_has_a_folder_of_its_own(evaluate: Any) -> None:
    test, validation = evaluate(), evaluate(split="validation")
    assert (test.name, validation.name) == ("7", "7-validation")
    assert evaluate(split="test") == test  # the same again takes the place of the old one
    for folder, split in ((test, "test"), (validation, "validation")):
        assert json.loads((folder / "results.json").read_text())["data"]["split"] == split


def test_results_of_another_split_or_of_other_data_are_not_overwritten(evaluate: Any, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "mine"
    evaluate(out=out, split="validation")
    with pytest.raises(UserError, match=r"mine holds results of phantom, validation split, .*--out"):
        evaluate(out=out)
    (out / "results.json").write_text(json.dumps({"data": {"split": "test", "sets": [{"name": "openi"}]}}))
    with pytest.raises(UserError, match="results of openi, test split"):
        evaluate(out=out)
    for damaged in ("", "{", "{}", '{"data": 3}'):
        (out / "results.json").write_text(damaged)
        assert evaluate(out=out) == out
