"""`mmclip predict` and `mmclip embed`: their files against the model's own methods, and what they say of the rest."""

import csv
import json
import math
import pathlib
from typing import Any

import chosen
import numpy as np
import pytest
import tiny
from PIL import Image

import mmclip_jax
from mmclip_jax import cli
from mmclip_jax.data.images.transforms import decode_image
from mmclip_jax.data.records import open_records
from mmclip_jax.errors import UserError
from mmclip_jax.inference import prediction, stamp

pytestmark = pytest.mark.compiles

MANIFEST = {
    "exposure": {
        "sources": {"phantom-b": {"paired": 0, "unpaired": 1500}, "phantom-a": {"paired": 2000, "unpaired": 0}},
        "label_kinds": {"phantom-b": ["edema"]},
        "report_kinds": {"phantom-a": ["edema", "pneumothorax"]},
    }
}
COIN = (["A swallowed coin.", "A round foreign body."], ["No foreign body."])
PROMPT = "coin=A swallowed coin.; A round foreign body.|No foreign body."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny.save_run(tmp_path_factory.mktemp("run"), (7,), MANIFEST)


@pytest.fixture(scope="module")
def model(run: pathlib.Path) -> Any:
    return mmclip_jax.load(run)


@pytest.fixture(autouse=True)
def one_model(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands take the one that is compiled already."""
    monkeypatch.setattr("mmclip_jax.inference.model.load", lambda run, step=None: model)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    for name in ("a.png", "=b.png", "inner/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 50), dtype=np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:90])
    return folder


def good(films: pathlib.Path) -> list[pathlib.Path]:
    return [films / "=b.png", films / "a.png", films / "inner" / "c.png"]


def test_csv_json_and_figures_hold_the_models_numbers_with_their_stamp(
    run: pathlib.Path, model: Any, films: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, file, maps = tmp_path / "o.csv", tmp_path / "o.json", tmp_path / "maps"
    words = ["predict", run, films, "--findings", "edema,pneumothorax,hernia", "--prompt", PROMPT]
    words += ["--csv", table, "--json", file, "--heatmaps", maps]
    assert cli.main(list(map(str, words))) == 1
    err = capsys.readouterr().err
    assert f"not read: {films / 'broken.png'}: the image cannot be decoded" in err
    assert err.endswith("mmclip: 1 of 4 images could not be read\n")

    names = ["edema", "pneumothorax", "hernia", "coin"]
    expected = model.zero_shot(good(films), {**dict.fromkeys(names[:3]), "coin": COIN})
    said = dict(zip(names, (stamp.LABELS, stamp.REPORTS, stamp.NOT_MET, stamp.OWN_WORDS), strict=True))
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [(row["image"], row["finding"]) for row in rows] == [
        *((str(path), name) for path in good(films) for name in names),
        (str(films / "broken.png"), ""),
    ]
    for number, row in enumerate(rows[:-1]):
        name = row["finding"]
        assert float(row["probability"]) == pytest.approx(expected[name][number // 4], abs=6e-5)
        assert row["exposure"] == said[name]
        assert row["domain"].startswith("artificial X-rays alone, phantom-b (1,500 images)")
        assert (maps / row["figure"]).exists()
        assert (row["step"], row["threshold"], row["problem"]) == ("7", "", "")
    assert (rows[-1]["probability"], rows[-1]["problem"][:30]) == ("", "the image cannot be decoded (i")

    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["domain"] == rows[0]["domain"]
    assert [image["image"] for image in content["images"]] == list(map(str, good(films)))
    assert [each["image"] for each in content["unreadable"]] == [str(films / "broken.png")]
    flat = [facts for image in content["images"] for facts in image["findings"].values()]
    assert [str(facts["probability"]) for facts in flat] == [row["probability"] for row in rows[:-1]]
    assert len(list(maps.iterdir())) == 12
    with Image.open(maps / rows[0]["figure"]) as figure:
        assert figure.size[0] == 1048


def test_the_terminal_shows_findings_by_probability_and_the_domain(
    run: pathlib.Path, model: Any, films: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", str(films / "a.png"), "--model", str(run)]) == 0
    first, *lines, domain, note = capsys.readouterr().out.splitlines()
    assert first == str(films / "a.png")
    assert sorted(line.split()[1] for line in lines) == ["edema", "pneumothorax"], "what training texts stated"
    shown = [float(line.split()[0]) for line in lines]
    assert shown == sorted(shown, reverse=True)
    assert domain == f"Learnt from: {model.stamp.domain}"
    assert note == stamp.RESEARCH_ONLY
    assert cli.main(["predict", str(run), str(films / "a.png"), "--prompt", PROMPT, "--json", "-"]) == 0
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert list(image["findings"]) == ["coin"], "own words alone, where no findings are named"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predict RUN", "name the run and the images: RUN PLACE…, or PLACE… --model RUN"),
        ("predict RUN FILMS/no.png", "no.png does not exist"),
        ("predict RUN FILMS/a.png --prompt coin", "--prompt 'coin': it has the form 'NAME=AFFIRMS|DENIES'"),
        ("predict RUN FILMS/a.png --prompt coin=a|b|c", "it has the form"),
        ("predict RUN FILMS/a.png --prompt coin=a|", "it has the form"),
        ("predict RUN FILMS/a.png --prompt coin=a|b --prompt coin=c|d", "'coin' is given twice"),
        ("predict RUN FILMS/a.png --findings gout", "unknown finding 'gout'"),
        ("embed RUN --out x.npz", "name the run and the images"),
        ("embed RUN FILMS --out x.csv", "x.csv: embeddings are written to a file whose name ends in .npz or .parquet"),
        ("embed RUN FILMS --texts FILMS/a.png --out x.npz", "give one of them"),
        ("embed RUN FILMS --split test --out x.npz", "--split is of a data set"),
        ("embed RUN --texts FILMS/a.png --out x.npz", "a.png cannot be read as UTF-8 text"),
    ],
)
def test_mistakes_are_one_line(
    words: str, message: str, run: pathlib.Path, films: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("RUN", str(run)).replace("FILMS", str(films)) for word in words.split()]
    assert cli.main(given) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


# Thresholds


def test_thresholds_are_those_of_the_steps_evaluation(tmp_path: pathlib.Path) -> None:
    assert prediction.read_thresholds(tmp_path, 7, 10.0) == {}
    chosen.write(tmp_path, "70", chosen.results())
    assert prediction.read_thresholds(tmp_path, 7, 10.0) == {}
    chosen.write(tmp_path, "7-validation", chosen.results(score="cosine"))
    chosen.write(tmp_path, "7", chosen.results())
    (found,) = prediction.read_thresholds(tmp_path, 7, 10.0).items()
    assert found[0] == "edema"
    assert found[1].probability == pytest.approx(1 / (1 + math.exp(-0.2)))
    assert found[1].source == "highest f1 on validation rows of phantom-a, evaluation 7"
    assert list(prediction.read_thresholds(tmp_path / "checkpoints" / "7", 7, 10.0)) == ["edema"]


@pytest.mark.parametrize(
    "changes",
    [
        {"score": "cosine"},
        {"score": "softmax_no_finding"},
        {"primary": None},
        {"default_prompts": False},
        {"ensemble": "scores"},
    ],
)
def test_thresholds_of_another_score_or_other_prompts_are_none(changes: Any, tmp_path: pathlib.Path) -> None:
    chosen.write(tmp_path, "7", chosen.results(**changes))
    assert prediction.read_thresholds(tmp_path, 7, 10.0) == {}


def test_damaged_results_are_one_line(tmp_path: pathlib.Path) -> None:
    chosen.write(tmp_path, "7", {"zero_shot": {"protocol": 3}})
    with pytest.raises(UserError, match=r"results\.json is damaged .*: evaluate the run again"):
        prediction.read_thresholds(tmp_path, 7, 10.0)


def test_a_finding_beside_its_threshold(model: Any, films: pathlib.Path) -> None:
    at = float(model.zero_shot(good(films), ["edema"])["edema"][0])
    for shift, positive in ((-0.01, True), (0.01, False)):
        thresholds = {"edema": prediction.Threshold(at + shift, "where it was chosen")}
        asked = prediction.ask(model, {"pulmonary edema": None, "edema": COIN}, thresholds)
        assert [each.threshold is None for each in asked] == [False, True], "own words have none, whatever their name"
        assert [each.exposure for each in asked] == [stamp.LABELS, stamp.OWN_WORDS]
        found = prediction.predict(model, good(films)[:1], asked, "run")
        facts = found.as_json()["images"][0]["findings"]["pulmonary edema"]
        assert (facts["positive"], facts["threshold_from"]) == (positive, "where it was chosen")
        assert f"{'≥' if positive else '<'} {at + shift:.3f}" in found.as_text()
        assert "Thresholds: where it was chosen" in found.as_text()


# Embeddings


def test_embeddings_of_files_are_those_of_the_model(
    run: pathlib.Path, model: Any, films: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert cli.main(["embed", str(run), str(films), "--out", str(tmp_path / "e.npz")]) == 1  # one is broken
    with np.load(tmp_path / "e.npz") as found:
        assert found["id"].tolist() == list(map(str, good(films)))
        np.testing.assert_allclose(found["embedding"], model.encode_image(good(films)), atol=1e-6)
        said = json.loads(found["stamp"].item())
    assert said["domain"] == model.stamp.domain
    assert said["exposure"]["edema"] == stamp.LABELS
    assert said["step"] == 7


def test_embeddings_of_a_data_set_have_its_ids(
    run: pathlib.Path, model: Any, phantom_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    import pyarrow.parquet

    out = tmp_path / "e.parquet"
    words = ["embed", "--model", run, "--data", phantom_dir, "--split", "test", "--out", out]
    assert cli.main(list(map(str, words))) == 0
    table = pyarrow.parquet.read_table(out)
    examples = [one for part in ("paired", "unpaired") for one in open_records(phantom_dir, "test", part)]
    assert table["id"].to_pylist() == [one.id for one in examples]
    assert table["patient"].to_pylist() == [one.patient for one in examples]
    assert set(table["split"].to_pylist()) == {"test"}
    expected = model.encode_image([decode_image(one.image) for one in examples])
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-6)
    assert json.loads(table.schema.metadata[b"stamp"])["data"] == str(phantom_dir)


def test_embeddings_of_texts(run: pathlib.Path, model: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "t.txt").write_text("\ufeffEdema.\n\n  No edema.\n", encoding="utf-8")
    words = ["embed", run, "--texts", tmp_path / "t.txt", "--out", tmp_path / "t.npz"]
    assert cli.main(list(map(str, words))) == 0
    with np.load(tmp_path / "t.npz") as found:
        assert found["id"].tolist() == ["1", "3"]
        assert found["text"].tolist() == ["Edema.", "No edema."]
        np.testing.assert_allclose(found["embedding"], model.encode_text(["Edema.", "No edema."]), atol=1e-6)
