"""Scores of other people's checkpoints, against transformers, scikit-learn and hand-made embeddings."""

import csv
import dataclasses
import hashlib
import json
import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import others
import pytest
import toy
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score

from mmclip_jax import cli
from mmclip_jax.data.records import RecordsBuilder, build
from mmclip_jax.data.schema import SPLITS, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import protocols
from mmclip_jax.evaluate import rows as rows_lib
from mmclip_jax.evaluate.evaluations import retrieval, trust, zeroshot
from mmclip_jax.evaluate.evaluations.scored import score_by_protocol
from mmclip_jax.evaluate.model import Foreign
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.external import run as external
from mmclip_jax.inference import exposure, scoring

# ---------------------------------------------------------------------------------------------------------------------
# Specs


def test_the_packaged_specs() -> None:
    names = list(yaml.safe_load(external.PACKAGED.read_text()))
    specs = {name: external.load_spec(name) for name in names}
    assert {"chexzero", "biomedclip", "openai-clip", "open_clip", "huggingface"} <= set(specs)
    assert len({spec.digest for spec in specs.values()}) == len(names)
    chexzero = specs["chexzero"]
    assert str(chexzero.preprocess).startswith("longest 320 (lanczos, rounded down), pad 320, interpolate 224; mean")
    assert chexzero.scale == 1.0
    asked = protocols.load("chexpert-14").with_prompts("x", chexzero.prompts or {})
    # The labels of CheXzero's notebook, with its pair of templates; its tokenizer lowers all letters.
    labels = ["No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
              "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
              "Fracture", "Support Devices"]  # fmt: skip
    for kind, label in zip(asked.findings or (), labels, strict=True):
        present, absent = asked.prompts_of(kind)
        assert [text.lower() for text in present] == [label.lower()]
        assert [text.lower() for text in absent] == [f"no {label.lower()}"]


def test_a_models_prompts_leave_the_protocol_comparable() -> None:
    protocol = protocols.load("chexpert-5")
    asked = protocol.with_prompts("Other", {"templates": {"present": ("{present}",), "absent": ("no {absent}",)}})
    assert asked.digest == protocol.digest
    assert asked.wording_digest != protocol.digest
    assert asked.prompts_of("edema") != protocol.prompts_of("edema")
    assert asked.describe()["prompts"] == f"Other's own ({asked.wording_digest})"
    assert protocol.describe()["prompts"] == ""


GOOD: dict[str, Any] = {
    "layout": "openai",
    "preprocess": {"steps": [{"squash": 21, "filter": "bilinear"}], "mean": [0.5], "std": [0.25]},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layot": 1}, "has the unknown field 'layot'; known are title"),
        ({"layout": "keras"}, "layout is one of openai, open_clip, huggingface, not 'keras'"),
        ({"preprocess": None}, "preprocess needs steps, mean and std"),
        ({"preprocess": "folder"}, "nothing beside a checkpoint of layout openai says how to preprocess"),
        ({"heads": {"images": 3}}, "heads are numbers of image and text"),
        ({"heads": {"image": 0}}, "heads are numbers of image and text"),
        ({"heads": 3}, "heads are numbers of image and text"),
        ({"heads": []}, "heads are numbers of image and text"),
        ({"layout": "huggingface", "heads": {"image": 3}}, "says heads and activation; leave them out"),
        ({"layout": "huggingface", "activation": "gelu"}, "says heads and activation; leave them out"),
        ({"activation": "relu"}, "activation is one of gelu, gelu_tanh, quick_gelu, not 'relu'"),
        ({"activation": "tanh"}, "activation is one of gelu, gelu_tanh, quick_gelu, not 'tanh'"),
        ({"title": 3}, "title is a word, not 3"),
        ({"scale": float("inf")}, "scale is a number above 0 or the word checkpoint, not inf"),
        ({"scale": float("nan")}, "scale is a number above 0 or the word checkpoint, not nan"),
        ({"scale": -1}, "scale is a number above 0 or the word checkpoint, not -1"),
        ({"prompts": ["no"]}, "prompts is not followed by templates"),
        ({"prompts": {"templates": {"present": ["{present}"]}}}, "templates needs the two lists present and absent"),
        ({"trained_on": "MIMIC"}, "trained_on has text, sources and labels"),
        ({"trained_on": {"sources": "mimic_cxr"}}, "sources of trained_on is no list"),
        ({"trained_on": {"labels": {"x": ["plague"]}}}, "'plague' of trained_on is no finding of the vocabulary"),
    ],
)
def test_mistakes_in_a_spec(tmp_path: pathlib.Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"mine": GOOD}))
    assert external.load_spec(str(file)).title == "mine"
    file.write_text(yaml.safe_dump({"mine": GOOD | change}))
    file.write_text(yaml.safe_dump({"mine": GOOD | {"title": None}}))
    assert external.load_spec(str(file)).title == "mine"
    file.write_text(yaml.safe_dump({"mine": GOOD | change}))
    with pytest.raises(UserError, match=message) as caught:
        external.load_spec(str(file))
    assert str(file) in str(caught.value)


def test_specs_that_are_not_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="there is no spec 'medklip'; known are chexzero"):
        external.load_spec("medklip")
    with pytest.raises(UserError, match="there is no such spec file"):
        external.load_spec(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"layoutless": {"preprocess": "folder"}}))
    with pytest.raises(UserError, match="spec layoutless needs layout"):
        external.load_spec(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate --data /", "evaluate needs --model RUN, or --external SPEC with --checkpoint"),
        ("evaluate --model / --checkpoint /", "--checkpoint and --vocabulary belong to --external"),
        ("evaluate --external chexzero --model /", "--model is of runs of this software"),
        ("evaluate --external chexzero --step 3", "--step is of runs of this software"),
        ("evaluate --external chexzero --data /", "--external needs --checkpoint, too"),
        ("evaluate --external chexzero --checkpoint / --data /", "--external needs --out, too"),
        ("evaluate --external none --checkpoint / --data / --out x", "there is no spec 'none'"),
    ],
)
def test_mistakes_on_the_command_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("place", ["taken", "taken/below/it"])
@pytest.mark.parametrize("what", ["--model {}/run", "--external chexzero --checkpoint {} --data {}"])
def test_an_out_that_is_a_file_is_refused_before_anything_is_read(
    tmp_path: pathlib.Path, what: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "run").mkdir()
    line = f"evaluate {what.format(tmp_path, tmp_path)} --out {tmp_path / place}"
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'taken'} is a file, and a report needs a folder: name another with --out" in said
    assert said.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------------------------
# Stamps


def test_what_is_stated_is_never_taken_for_a_record() -> None:
    unknown = {"foreign": True, "exposure": None}
    none = {"foreign": True, "exposure": {"label_kinds": {}}}
    some = {"foreign": True, "exposure": {"label_kinds": {"there": ["viral_pneumonia"]}}}
    assert exposure.exposure("edema", "here", unknown) == "unknown: not trained by this software"
    assert exposure.exposure("edema", "here", none) == "report-only, as stated"
    assert exposure.exposure("pneumonia", "there", some) == "same source's labels, as stated"
    seen = "kind seen through another source's labels, as stated"
    assert exposure.exposure("pneumonia", "here", some) == seen
    assert exposure.called([exposure.NOT_OURS]) == "by prompts, exposure unknown"
    assert exposure.called([exposure.exposure("edema", "here", none)]) == "zero-shot, as stated"
    both = [exposure.exposure(kind, "here", some) for kind in ("edema", "pneumonia")]
    assert exposure.called(both) == "partly prompt-supervised, as stated"
    assert all(stamp in exposure.EXPOSURES for stamp in (*both, exposure.NOT_OURS))


# ---------------------------------------------------------------------------------------------------------------------
# Ensembles, of planted embeddings


class Planted:
    """Two members of 3 and 2 dimensions with scales 3 and 7; texts get a vector each, drawn from their letters."""

    manifest: Mapping[str, Any] = types.MappingProxyType({"foreign": True, "exposure": None})
    logit_scale, trained_logit_scale, description = 5.0, 50.0, "planted"
    members: Sequence[tuple[slice, float]] = ((slice(0, 3), 3.0), (slice(3, 5), 7.0))
    sizes: Sequence[int] = (3, 2)

    def parts_of(self, text: str) -> list[np.ndarray]:
        rng = np.random.default_rng(list(text.encode()))
        return [unit(rng.normal(size=size)) for size in self.sizes]

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([np.concatenate(self.parts_of(text)) / 2**0.5 for text in texts], np.float32)

    def encode_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return self.encode_text([str(image.sum()) for image in images])


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def mean_text(model: Planted, texts: Sequence[str], member: int) -> np.ndarray:
    return unit(np.mean([model.parts_of(text)[member] for text in texts], axis=0))


@pytest.mark.parametrize(
    ("ensemble", "score"), [("embeddings", "softmax"), ("embeddings", "softmax_no_finding"), ("scores", "softmax")]
)
def test_an_ensemble_is_the_mean_of_probabilities(ensemble: str, score: str) -> None:
    model = Planted()
    assert isinstance(model, Foreign)
    protocol = dataclasses.replace(protocols.load("chexpert-5"), ensemble=ensemble, score=score)
    findings = ["edema", "pleural_effusion"]
    images = [f"image {number}" for number in range(4)]
    made = score_by_protocol(model, model.encode_text(images), findings, protocol)
    for row, image in enumerate(images):
        for k, finding in enumerate(findings):
            probabilities, similarities = [], []
            for member, scale in enumerate((3.0, 7.0)):
                v = model.parts_of(image)[member]
                p, n = (
                    np.array([model.parts_of(text)[member] for text in texts]) for texts in protocol.prompts_of(finding)
                )
                if ensemble == "embeddings":
                    p, n = unit(p.mean(axis=0))[None], unit(n.mean(axis=0))[None]
                against = [np.exp(scale * v @ b) for b in n]
                if score == "softmax_no_finding":
                    healthy = mean_text(model, protocol.prompts_of("no_finding")[0], member)
                    against = [against[0] + np.exp(scale * v @ healthy)]
                probabilities += [1 / (1 + b / np.exp(scale * v @ a)) for a in p for b in against]
                similarities.append((p @ v).mean())
            wanted = np.mean(probabilities)
            assert sigmoid(5.0 * made["difference"][row, k]) == pytest.approx(wanted, abs=1e-6)
            assert made["positive"][row, k] == pytest.approx(np.mean(similarities), abs=1e-6)


def test_members_and_single_templates_are_scored_by_the_protocols_score() -> None:
    """With one template there is nothing between its score and that of all templates."""
    words = {"present": ("{present}",), "absent": ("no {absent}",)}
    protocol = dataclasses.replace(
        protocols.load("chexpert-5"), score="softmax_no_finding", templates=words, phrases=False
    )
    model, split = Planted(), rows_lib.Split.of([e for e in toy.collection(patients=60) if e.part == "paired"])
    embedded = rows_lib.embed_images(model, split)
    findings = tuple(toy.KINDS[:2])
    scored = zeroshot.evaluate(model, split, embedded, protocol=dataclasses.replace(protocol, findings=findings))
    alone = []
    for member, scale in enumerate((3.0, 7.0)):
        v = embedded[:, slice(0, 3) if member == 0 else slice(3, 5)] * 2**0.5
        healthy = v @ mean_text(model, protocol.prompts_of("no_finding")[0], member)
        areas = []
        for k, finding in enumerate(findings):
            p, n = (v @ mean_text(model, texts, member) for texts in protocol.prompts_of(finding))
            known = ~np.isnan(scored.labels[:, k])
            odds = np.exp(scale * p) / (np.exp(scale * n) + np.exp(scale * healthy))
            areas.append(roc_auc_score(scored.labels[known, k], odds[known]))
        alone.append(np.mean(areas))
    assert scored.summary["members"] == pytest.approx(alone, abs=1e-9)
    found = trust.prompt_sensitivity(trust.Asked.of(model, scored, Bootstrap(resamples=11)), model)
    assert [entry["lowest"] for entry in found["findings"]] == [entry["ensemble"] for entry in found["findings"]]


def test_one_member_is_scored_as_any_model() -> None:
    class One(Planted):
        members = ((slice(0, 5), 5.0),)
        sizes = (5,)

        def encode_text(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([self.parts_of(text)[0] for text in texts], np.float32)

    model = One()
    images = model.encode_text(["a", "b"])
    positive, negative = scoring.prompt_embeddings(model, ["edema"])
    np.testing.assert_allclose(np.linalg.norm(positive, axis=1), 1, atol=1e-12)
    made = scoring.score_images(images, positive, negative, model)["difference"]
    np.testing.assert_allclose(made, images.astype(np.float64) @ (positive - negative).T, atol=1e-12)


def test_the_contrastive_loss_is_at_the_trained_scale() -> None:
    model = Planted()
    split = rows_lib.Split.of([e for e in toy.collection(patients=60) if e.part == "paired"])
    embedded = rows_lib.embed_images(model, split)
    (part,) = retrieval.evaluate(model, split, embedded, block=16)["parts"]
    model.trained_logit_scale = model.logit_scale
    (other,) = retrieval.evaluate(model, split, embedded, block=16)["parts"]
    assert part["loss"] > other["loss"] + 1
    assert part["image_to_text"] == other["image_to_text"]


# ---------------------------------------------------------------------------------------------------------------------
# From files to results


class Pictures(RecordsBuilder):
    name = "pictures"

    def examples(self, split: str) -> Any:
        if split == "train":
            return
        rng = np.random.default_rng(len(split))
        start = 100 * SPLITS.index(split)
        for number in range(start, start + 30):
            small = rng.integers(0, 256, (5, 4)).astype(np.uint8)
            size = (30 + number % 3, 41 + number % 5)
            pixels = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
            states = [LabelState.PRESENT, LabelState.ABSENT]
            labels = {kind: states[int(rng.integers(2))] for kind in ("edema", "pneumothorax")}
            report = "No pleural effusion. Small mass." if number % 2 else "The lungs are clear. No edema."
            yield toy.example(number, pixels, labels, report=report, split=split)


@dataclasses.dataclass
class Scored:
    folder: pathlib.Path
    data: pathlib.Path
    models: list[Any]
    said: str


SPEC = {
    "title": "Tiny & friends",
    "layout": "openai",
    "heads": others.HEADS,
    "preprocess": {
        "steps": [{"squash": others.IMAGE_SIZE, "filter": "bilinear"}],
        "mean": [110.0],
        "std": [60.0],
        "white": 255,
    },
    "prompts": {"templates": {"present": ["{present}"], "absent": ["no {absent}"]}, "phrases": False},
    "scale": 2,
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Two checkpoints scored together (out), the first alone (alone), and with our prompts and a statement (stated)."""
    torch = pytest.importorskip("torch", reason="torch has an environment of its own: make test-interop")
    folder = tmp_path_factory.mktemp("external")
    data = build(Pictures(folder))
    models = [others.clip(seed) for seed in (0, 1)]
    for number, model in enumerate(models):
        torch.save(others.openai_layout(model), folder / f"{number}.pt")
    others.write_openai_vocabulary(folder)
    stated = {key: value for key, value in SPEC.items() if key != "prompts"}
    steps = [{"longest": 44, "filter": "lanczos"}, {"pad": 44}, {"interpolate": others.IMAGE_SIZE}]
    stated["preprocess"] = {"steps": steps, "mean": [0.5], "std": [0.25]}
    stated["trained_on"] = {"text": "here and there", "sources": ["here"], "labels": "none"}
    (folder / "specs.yaml").write_text(yaml.safe_dump({"tiny": SPEC, "stated": stated}))
    said = []
    for name, out, files in (("tiny", "out", (0, 1)), ("tiny", "alone", (0,)), ("stated", "stated", (0,))):
        said.append(
            external.run(
                f"{folder / 'specs.yaml'}:{name}",
                [folder / f"{number}.pt" for number in files],
                data,
                folder / out,
                resamples=50,
                progress=False,
            )
        )
    return Scored(folder, data, models, said[0])


def read(foreign: Scored, out: str) -> dict[str, Any]:
    return json.loads((foreign.folder / out / "results.json").read_text())


@pytest.mark.torch
def test_the_numbers_are_those_of_transformers(foreign: Scored) -> None:
    from transformers import CLIPTokenizer

    rows = rows_lib.Split.load([foreign.data], "test")
    pixels = rows.pixels(range(len(rows)))
    small = [Image.fromarray(each).resize((21, 21), Image.Resampling.BILINEAR) for each in pixels]
    grey = (np.stack([np.asarray(each, np.float32) for each in small]) - 110) / 60
    fitted = np.repeat(grey[..., None], 3, axis=3)
    pieces = {piece: number for number, piece in enumerate(others.VOCABULARY)}
    tokenizer = CLIPTokenizer(vocab=pieces, merges=others.MERGES)
    findings = read(foreign, "out")["zero_shot"]["sources"]["here"]["findings"]
    members = []
    assert [finding["finding"] for finding in findings] == ["edema", "pneumothorax"]
    for finding in findings:
        name = finding["finding"]
        tokens = tokenizer([name, f"no {name}"], padding=True, return_tensors="np")
        each = []
        for model in foreign.models:
            ids, count = tokens["input_ids"], tokens["attention_mask"].sum(axis=1)
            seen, read_ = others.features(model, fitted, ids, count)
            affirmed, denied = (seen @ read_.T).T
            each.append(np.exp(2 * affirmed) / (np.exp(2 * affirmed) + np.exp(2 * denied)))
        truth = [example.labels[name] == LabelState.PRESENT for example in rows.examples]
        assert finding["difference"]["auroc"] == pytest.approx(roc_auc_score(truth, np.mean(each, axis=0)), abs=1e-9)
        with open(foreign.folder / "out" / "scores.csv", newline="") as stream:
            scores = [float(row[f"{name}/difference"]) for row in csv.DictReader(stream)]
        np.testing.assert_allclose(sigmoid(2 * np.array(scores)), np.mean(each, axis=0), atol=1e-5)
        members.append([roc_auc_score(truth, probabilities) for probabilities in each])
    assert np.mean(members, axis=0) == pytest.approx(read(foreign, "out")["zero_shot"]["members"], abs=1e-9)
    assert members[0][0] != members[0][1]


@pytest.mark.torch
def test_results_page_and_card_say_what_was_scored(foreign: Scored) -> None:
    results = read(foreign, "out")
    facts = results["checkpoint"]["external"]
    sums = [hashlib.sha256((foreign.folder / f"{n}.pt").read_bytes()).hexdigest() for n in (0, 1)]
    assert [each["sha256"] for each in facts["checkpoints"]] == sums
    for each in facts["checkpoints"]:
        for part, heads in others.HEADS.items():
            origin = {"heads": "the spec", "activation": "OpenAI's layout"}
            assert each["encoders"][part] == {"heads": heads, "activation": "quick_gelu", "origin": origin}
    page = (foreign.folder / "out" / "report.html").read_text()
    assert "with 5 heads (the spec), quick_gelu (OpenAI&#39;s layout)" in page
    assert facts["ensemble"] == "mean of the probabilities of 2 checkpoints"
    assert results["checkpoint"]["step"] is None
    assert results["exposure"] is None
    assert results["audit"]["status"] == "not audited"
    assert results["grounding"] is None
    assert results["entmlm"] is None
    page = (foreign.folder / "out" / "report.html").read_text()
    card = (foreign.folder / "out" / "model_card.md").read_text()
    for text in (page, card, foreign.said):
        for fact in (
            *sums,
            "unknown: not trained by this software",
            "squash 21 (bilinear)",
            "mean of the probabilities of 2 checkpoints",
            "not audited: the training data of this model",
        ):
            assert fact in text, fact
    assert "Tiny &amp; friends, a model that this software did not train," in page
    assert "zero-shot" not in foreign.said.lower()
    assert {f["exposure"] for f in results["zero_shot"]["sources"]["here"]["findings"]} == {exposure.NOT_OURS}
    assert "AttMIM" not in page


@pytest.mark.torch
def test_a_statement_is_shown_as_one(foreign: Scored) -> None:
    results = read(foreign, "stated")
    (stamp,) = {f["exposure"] for f in results["zero_shot"]["sources"]["here"]["findings"]}
    assert stamp == "report-only, as stated"
    assert "trained on here, which is scored here" in results["audit"]["note"]
    assert results["checkpoint"]["external"]["prompts"] == "the protocol's"
    card = (foreign.folder / "stated" / "model_card.md").read_text()
    assert "here and there (as stated by the spec's author)" in card
    assert stamp in card


@pytest.mark.torch
def test_images_that_any_step_enlarges_are_counted(foreign: Scored) -> None:
    # Of five heights from 41 to 45 three are below 44, which the first step makes of them; the input is 21.
    assert read(foreign, "stated")["data"]["rows"] == 30
    assert read(foreign, "stated")["checkpoint"]["external"]["enlarged"] == 18
    assert "Images smaller than its input" in (foreign.folder / "stated" / "report.html").read_text()
    assert read(foreign, "out")["checkpoint"]["external"]["enlarged"] == 0


@pytest.mark.torch
def test_evaluations_with_other_prompts_compare(foreign: Scored, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(foreign.folder / name) for name in ("stated", "out", "alone")]
    assert cli.main(["compare", *folders, "--out", str(foreign.folder / "compare"), "--resamples", "50"]) == 0
    said = capsys.readouterr().out
    assert "B  Tiny & friends" in said
    assert "Prompts of B: Tiny & friends's own" in said
    assert "Prompts of A" not in said
    page = (foreign.folder / "compare" / "compare.html").read_text()
    assert page.count("not trained by this software, read by spec") == 3
    assert page.count("prompts: Tiny &amp; friends&#39;s own") == 2
    assert "the difference is one of whole systems" in page


@pytest.mark.torch
def test_the_command(foreign: Scored, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--external", f"{foreign.folder / 'specs.yaml'}:tiny", "--data", str(foreign.data)]
    words += ["--checkpoint", str(foreign.folder / "0.pt")]
    alone = tmp_path / "alone"
    alone.mkdir()
    moved = [*words[:-1], str(alone / "0.pt")]
    (alone / "0.pt").write_bytes((foreign.folder / "0.pt").read_bytes())
    assert cli.main([*moved, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "holds no vocabulary" in said[-1]
    assert "--vocabulary" in said[-1]
    assert not (tmp_path / "out").exists()
    assert cli.main([*moved, "--vocabulary", str(foreign.folder), "--out", str(tmp_path / "out")]) == 0
    assert "Macro AUROC by prompts" in capsys.readouterr().out
    made = json.loads((tmp_path / "out" / "results.json").read_text())
    assert made["headline"]["macro_auroc"] == read(foreign, "alone")["headline"]["macro_auroc"]


def resized(pixels: Sequence[np.ndarray], filter: Image.Resampling) -> np.ndarray:
    """Grey levels float32 [n,21,21] of 0 to 1 of the middle 21 pixels, the shorter side being 21."""
    cut = []
    for each in pixels:
        height, width = each.shape
        short = min(height, width)
        size = int(21 * width / short), int(21 * height / short)
        image = np.asarray(Image.fromarray(each).resize(size, filter), np.float32) / 255
        top, left = (image.shape[0] - 21) // 2, (image.shape[1] - 21) // 2
        cut.append(image[top : top + 21, left : left + 21])
    return np.stack(cut)


@pytest.mark.torch
def test_a_folder_of_hugging_face(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch", reason="torch has an environment of its own: make test-interop")
    model = others.clip()
    model.save_pretrained(tmp_path)
    others.write_huggingface_vocabulary(tmp_path)
    mean, std = [0.3, 0.4, 0.5], [0.2, 0.3, 0.4]
    told = {"size": {"shortest_edge": 21}, "crop_size": {"height": 21, "width": 21}, "resample": 2}
    told |= {"image_mean": mean, "image_std": std}  # type: ignore[dict-item]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    opened = external.open_model(external.load_spec("huggingface"), [tmp_path])
    pixels = [np.random.default_rng(n).integers(0, 256, (43, 25 + 3 * n)).astype(np.uint8) for n in range(3)]
    fitted = (resized(pixels, Image.Resampling.BILINEAR)[..., None] - np.array(mean)) / np.array(std)
    seen, _ = others.features(model, fitted.astype(np.float32), np.ones((1, 3), int), np.array([3]))
    np.testing.assert_allclose(opened.model.encode_image(pixels), seen, atol=1e-5)
    assert opened.facts["checkpoints"][0]["file"] == "model.safetensors"
    assert opened.model.logit_scale == pytest.approx(np.exp(2.3), rel=1e-6)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json: .*this layout needs the file beside the weights"):
        external.open_model(external.load_spec("huggingface"), [tmp_path])


@pytest.mark.torch
def test_a_folder_of_biomedclips_kind(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch", reason="torch has an environment of its own: make test-interop")
    _, text, heads = others.biomedclip_like(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "this", "is", "a", "photo", "of", "no", "edema"]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *(f"word{n}" for n in range(59 - len(words)))]))
    spec = external.load_spec("biomedclip")
    opened = external.open_model(spec, [tmp_path])
    asked = protocols.load("chexpert-5").with_prompts(spec.title, spec.prompts or {})
    (present,), (absent,) = asked.prompts_of("edema")
    assert (present, absent) == ("This is a photo of edema", "This is a photo of no edema")
    made = opened.model.encode_text([present, absent])
    for row, sentence in zip(made, (present, absent), strict=True):
        ids = [2, *(words.index(word) for word in sentence.lower().split()), 3]
        with torch.no_grad():
            read_ = text(torch.tensor([ids])).last_hidden_state[:, 0]
            wanted = (torch.nn.functional.gelu(read_ @ heads[1].T) @ heads[2].T)[0].numpy()
        np.testing.assert_allclose(row, unit(wanted), atol=1e-5)
    rules = opened.facts["preprocess"]
    assert rules.startswith("shortest 21 (bicubic), crop 21 (rounded nearest); mean and deviation 0.481455, 0.457827")


@pytest.mark.torch
@pytest.mark.slow
def test_the_phantom(foreign: Scored, phantom_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    said = external.run(
        f"{foreign.folder / 'specs.yaml'}:tiny",
        [foreign.folder / "0.pt", foreign.folder / "1.pt"],
        phantom_dir,
        tmp_path,
        resamples=50,
        progress=False,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    scored = results["zero_shot"]["sources"][results["zero_shot"]["primary"]]["findings"]
    assert len(scored) == 12
    assert all(0 <= f["difference"]["auroc"] <= 1 for f in scored if not f["note"])
    assert results["headline"]["protocol"] == "phantom"
    assert results["counterfactual"]["reports"] > 0
    assert "Prompts: Tiny & friends's own" in said
