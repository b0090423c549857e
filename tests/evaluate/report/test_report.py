import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import browser
import numpy as np
import pytest
import toy

import mmclip_jax
from mmclip_jax.data.records import RecordsBuilder, build
from mmclip_jax.data.schema import Box, Example
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate import run as evaluation
from mmclip_jax.evaluate.evaluations import retrieval, source_probe, zeroshot
from mmclip_jax.evaluate.report import figures, formats
from mmclip_jax.evaluate.report import page as page_lib
from mmclip_jax.evaluate.rows import Split, embed_images
from mmclip_jax.evaluate.stats.bootstrap import Bootstrap
from mmclip_jax.inference import pictures
from mmclip_jax.inference.exposure import REPORT_ONLY

CURVES: list[dict[str, Any]] = [
    {"step": step, "loss": 9.0 / (1 + step / 50), "contrastive/loss": 4.0 / (1 + step / 40), "odd/number": step % 7}
    for step in range(0, 400, 5)
]


class ToyBuilder(RecordsBuilder):
    name = "toy"

    def examples(self, split: str) -> Iterator[Example]:
        if split == "test":
            yield from toy.collection(patients=60)


@dataclasses.dataclass
class Evaluated:
    data: pathlib.Path
    out: pathlib.Path
    results: dict[str, Any]
    html: str
    hidden_html: str


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    data = build(ToyBuilder(tmp_path_factory.mktemp("data")))
    out = tmp_path_factory.mktemp("evaluation") / "7"
    model = toy.ToyModel(toy.MANIFEST, see_source=0.5)
    options: dict[str, Any] = {"bootstrap": Bootstrap(resamples=100), "progress": False, "curves": CURVES}
    evaluation.evaluate_checkpoint(model, data, "test", out, options=evaluation.Options(**options))
    hidden = (out / "report.html").read_text()
    results = evaluation.evaluate_checkpoint(
        model, data, "test", out, options=evaluation.Options(run_name="<toy> & run", show_text=True, **options)
    )
    return Evaluated(data, out, results, (out / "report.html").read_text(), hidden)


def test_results_hold_the_known_answers(evaluated: Evaluated) -> None:
    results = evaluated.results
    rows = toy.collection(patients=60)
    assert results["data"]["rows"] == len(rows)
    assert results["data"]["sources"] == {
        "here": {"paired": sum(r.source == "here" for r in rows), "unpaired": 0},
        "there": {"paired": 0, "unpaired": sum(r.source == "there" for r in rows)},
    }
    # The toy restores exactly what its own image shows; the swapped image never shows it.
    assert results["headline"]["entmlm_own"] == 1.0
    assert results["headline"]["entmlm_swapped"] == 0.0
    assert 0.6 < results["headline"]["pointing"] < 0.9
    assert results["grounding"]["overall"]["cross_attention"]["rate"] < results["headline"]["pointing"]
    assert results["source_probe"]["auroc"] == 1.0
    assert 0.7 < results["headline"]["macro_auroc"] < 0.9
    assert results["headline"]["macro_auroc_called"] == "partly prompt-supervised"
    strict = results["zero_shot"]["sources"][results["zero_shot"]["primary"]]["macro"]["difference"][REPORT_ONLY]
    assert results["headline"]["report_only_auroc"] == strict["auroc"]


def test_results_json_is_strict_json_and_the_same(evaluated: Evaluated) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((evaluated.out / "results.json").read_text(), parse_constant=refuse)
    assert read["headline"] == formats.finite(evaluated.results["headline"])
    assert read["zero_shot"]["primary"] == "here"


def test_scores_csv_gives_back_the_auroc(evaluated: Evaluated) -> None:
    from sklearn.metrics import roc_auc_score

    with open(evaluated.out / "scores.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == evaluated.results["data"]["rows"]
    for finding in evaluated.results["zero_shot"]["sources"]["here"]["findings"]:
        name = finding["finding"]
        known = [line for line in lines if line["source"] == "here" and line[f"{name}/label"]]
        truth = [int(line[f"{name}/label"]) for line in known]
        scores = [float(line[f"{name}/difference"]) for line in known]
        assert roc_auc_score(truth, scores) == pytest.approx(finding["difference"]["auroc"], abs=1e-12)
    assert len({line["patient"] for line in lines}) == evaluated.results["data"]["patients"]


def test_the_model_card_holds_data_audit_numbers_and_limits(evaluated: Evaluated) -> None:
    card = (evaluated.out / "model_card.md").read_text()
    for heading in ("Intended use", "Training data", "Evaluation", "Limits"):
        assert f"## {heading}" in card
    assert "here: 600 images with reports, 0 without; labels that became texts: none" in card
    assert "Audit: not audited: these rows were not compared" in card
    for finding in evaluated.results["zero_shot"]["sources"]["here"]["findings"]:
        area = formats.number(finding["difference"]["auroc"])
        assert f"| {finding['name']} | {finding['positives']} | {area} (" in card


def test_the_page_asks_for_nothing_outside_itself(evaluated: Evaluated) -> None:
    assert "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", evaluated.html)
    for address in re.findall(r"""(?:src|href)="([^"]*)""", evaluated.html):
        assert address.startswith(("data:", "#")), address


def test_names_are_escaped(evaluated: Evaluated) -> None:
    assert "&lt;toy&gt; &amp; run" in evaluated.html
    assert "<toy>" not in evaluated.html


def test_texts_and_ids_of_a_users_data_are_shown_on_request_only(evaluated: Evaluated) -> None:
    for page, shown in ((evaluated.html, True), (evaluated.hidden_html, False)):
        assert ('class="report-text"' in page) == shown
        assert ("There is" in page) == shown
        assert bool(re.search(r"\bhere-\d+\b", page)) == shown
        assert str(evaluated.data) not in page


def test_every_section_is_there(evaluated: Evaluated) -> None:
    for name in ("evaluated", "findings", "trust", "pointing", "restoring", "retrieval", "sources", "training", "cases",
                 "honesty"):  # fmt: skip
        assert f'<section id="{name}">' in evaluated.html
        assert f'href="#{name}"' in evaluated.html
    assert evaluated.html.count('<article class="case"') == 12
    assert evaluated.html.count('class="plot roc"') == 5
    assert evaluated.html.count("same source&#39;s labels") > 3
    assert "More curves (1)" in evaluated.html


def cells(page: str, table: str) -> list[list[str]]:
    """The text of a table's body, by row and cell."""
    body = re.search(rf'aria-label="{table}"><table>.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body is not None, table
    rows = re.findall(r"<tr.*?</tr>", body[1], re.DOTALL)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


def test_retrieval_and_overlap_are_on_the_page(evaluated: Evaluated) -> None:
    found = evaluated.results["contrastive"]["recall"]
    assert len(found) == 1  # only one source has reports
    rows = cells(evaluated.html, "Retrieval")
    for row, way in zip(rows, ("image_to_text", "text_to_image"), strict=True):
        numbers = [found[0][way][f"recall@{k}"] for k in (1, 5, 10)]
        rank = formats.number(found[0][way]["median_rank"]["value"], 1)
        assert [cell.split()[0] for cell in row[3::2]] == [
            *(formats.number(entry["value"]) for entry in numbers),
            rank,
        ]
        assert row[4:9:2] == [formats.number(entry["random"], 4) for entry in numbers]
    grounding = evaluated.results["grounding"]
    rows = cells(evaluated.html, "Overlap and contrast, findings")
    assert [row[0] for row in rows] == [*(f["name"] for f in grounding["findings"]), "all findings"]
    for row, entry in zip(rows, [*grounding["findings"], grounding["overall"]], strict=True):
        shown = [cell.split()[0] for cell in row[2:]]
        digits = {"iou": 3, "dice": 3, "cnr": 2}
        assert shown == [formats.number(entry[name][m], digits[m]) for name in grounding["responses"] for m in digits]


def test_studies_and_phrases_are_on_the_page_where_there_are_some(evaluated: Evaluated) -> None:
    results = dict(evaluated.results)
    assert "By study" not in evaluated.html
    assert "<h3>Phrases</h3>" not in evaluated.html
    areas = {"image": 0.811, "mean": 0.822, "max": 0.833}
    macro = {way: {"auroc": area, "auroc_interval": [0.1, 0.9]} for way, area in areas.items()}
    results["studies"] = {"here": {"images": 31, "studies": 17, "several": 11, "macro": macro, "findings": []}}
    here = results["zero_shot"]["sources"]["here"] | {"uncertain_only": {"edema": 1041}}
    results["zero_shot"] = results["zero_shot"] | {"sources": results["zero_shot"]["sources"] | {"here": here}}
    results["phrases"] = results["grounding"] | {"phrases": 1163, "elsewhere": 1009}
    model, split = toy.ToyModel(toy.MANIFEST), Split.load([evaluated.data], "test")
    scored = zeroshot.evaluate(model, split, embed_images(model, split), bootstrap=Bootstrap(resamples=20))
    page = page_lib.render(results, {"zero_shot": scored})
    assert [[cell.split()[0] for cell in row] for row in cells(page, "Scores by study")] == [
        ["here", "31", "17", "11", "0.811", "0.822", "0.833"]
    ]
    assert "1,163 phrases" in page
    assert "In here every label is uncertain, so that nothing is scored, of: edema (1,041)." in page
    assert "every label is uncertain" not in evaluated.html
    assert cells(page, "Pointing game, phrases") == cells(page, "Pointing game, findings")


def test_the_reliability_chart_has_a_dot_a_bin_above_its_probability() -> None:
    bins = [{"rows": 30, "probability": 0.25, "share": 0.0}, {"rows": 10, "probability": 0.75, "share": 1.0}]
    dots = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', figures.reliability_chart(bins, "x"))
    (x1, y1, r1), (x2, y2, r2) = [[float(number) for number in dot] for dot in dots]
    assert x2 - x1 == pytest.approx(60)
    assert y1 - y2 == pytest.approx(120)  # up is more
    assert r1 / r2 == pytest.approx(3**0.5, abs=0.05)


def test_a_split_without_rows_names_those_that_have_some(evaluated: Evaluated) -> None:
    with pytest.raises(UserError, match=r"no rows in split 'validation' \(toy: test 90\)"):
        evaluation.evaluate_checkpoint(
            toy.ToyModel(), evaluated.data, "validation", options=evaluation.Options(progress=False)
        )


def test_data_without_labels_boxes_or_reports_still_gives_a_report(tmp_path: pathlib.Path) -> None:
    class Bare(RecordsBuilder):
        name = "bare"

        def examples(self, split: str) -> Iterator[Example]:
            if split == "test":
                for n in range(5):
                    yield toy.example(n, toy.plant([n] * 5, shape=(48, 31)), {})

    data = build(Bare(tmp_path))
    results = evaluation.evaluate_checkpoint(
        toy.ToyModel(), data, "test", tmp_path / "out", options=evaluation.Options(progress=False)
    )
    assert results["headline"]["macro_auroc"] is None
    assert results["grounding"] is results["entmlm"] is results["source_probe"] is None
    assert "No finding has both" in (tmp_path / "out" / "report.html").read_text()


def test_run_loads_evaluates_and_says_where(
    evaluated: Evaluated, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(workdir: pathlib.Path, step: int | None, *, all_devices: bool) -> toy.ToyModel:
        asked.append((workdir, step))
        return toy.ToyModel(toy.MANIFEST)

    monkeypatch.setattr(mmclip_jax, "load", load, raising=False)
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, CURVES)) + '\n{"step": 400, "lo')
    text = evaluation.run(tmp_path, 7, evaluated.data, resamples=20, progress=False)
    assert asked == [(tmp_path, 7)]
    page = tmp_path / "evaluation" / "7" / "report.html"
    assert str(page) in text
    assert "Macro AUROC" in text
    assert "Total loss" in page.read_text()
    (tmp_path / "run").mkdir()  # as a single checkpoint has it
    with pytest.raises(UserError, match=r"single checkpoint.*--out"):
        evaluation.run(tmp_path, 7, evaluated.data, resamples=20, progress=False)


def test_quick_metrics_agree_with_the_full_evaluation(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "BLOCK", 16)
    quick = evaluation.quick_metrics(toy.ToyModel(toy.MANIFEST, see_source=0.5), toy.collection(patients=60))
    assert quick["macro_auroc"] == quick["macro_auroc/here"]
    assert quick["macro_auroc"] == pytest.approx(evaluated.results["headline"]["macro_auroc"])
    there = evaluated.results["zero_shot"]["sources"]["there"]["macro"]["difference"]["all"]["auroc"]
    assert quick["macro_auroc/there"] == pytest.approx(there)
    assert quick["source_probe_accuracy"] == 1.0
    assert {"contrastive_loss/here/paired", "contrastive_loss/there/unpaired"} <= set(quick)
    assert all(isinstance(value, float) for value in quick.values())


def test_contrastive_numbers_against_a_plain_computation() -> None:
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(37, 11)) for _ in range(2))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    ids = np.column_stack([np.arange(37), rng.integers(0, 9, 37)])
    got = retrieval.contrastive_numbers(image, text, ids, 5.0, block=17)
    assert got is not None
    losses, firsts = [], []
    for start in (0, 17):
        for a, b in ((image, text), (text, image)):
            for i in range(17):
                logits = [5.0 * float(a[start + i] @ b[start + j]) for j in range(17)]
                match = [bool((ids[start + i] == ids[start + j]).any()) for j in range(17)]
                chance = np.exp(logits) / np.exp(logits).sum()
                losses.append(-np.mean([np.log(p) for p, m in zip(chance, match, strict=True) if m]))
                firsts.append(match[int(np.argmax(logits))])
    assert got["loss"] == pytest.approx(np.mean(losses))
    assert (got["image_to_text"] + got["text_to_image"]) / 2 == pytest.approx(np.mean(firsts))
    assert got["rows"] == 34
    assert retrieval.contrastive_numbers(image, text, ids, 5.0, block=38) is None


@pytest.mark.parametrize(("see", "low", "high"), [(0.0, 0.3, 0.7), (1.0, 1.0, 1.0)])
def test_the_source_probe_finds_the_source_if_it_is_there(see: float, low: float, high: float) -> None:
    rows = [
        toy.example(n, toy.plant(np.random.default_rng(n).integers(0, 9999, 5).tolist(), source=n % 2), {},
                    source=toy.SOURCES[n % 2])
        for n in range(150)
    ]  # fmt: skip
    split = Split.of(rows)
    embedded = embed_images(toy.ToyModel(see_source=see), split)
    probe = source_probe.evaluate(embedded, [r.source for r in rows], split.patients, bootstrap=Bootstrap(resamples=50))
    assert probe is not None
    assert low <= probe["auroc"] <= high
    assert low <= probe["accuracy"] <= high
    assert probe["majority"] == 0.5


def test_the_source_probe_keeps_patients_apart() -> None:
    """Embeddings that name the patient, not the source, must not help."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 6)
    embedded = np.eye(40)[patients] + 0.01 * rng.normal(size=(240, 40))
    sources = [toy.SOURCES[p % 2] for p in patients]
    probe = source_probe.evaluate(embedded, sources, [str(p) for p in patients], bootstrap=Bootstrap(resamples=10))
    assert probe is not None
    assert probe["accuracy"] < 0.75


def test_one_source_has_nothing_to_probe() -> None:
    assert source_probe.evaluate(np.zeros((9, 3)), ["a"] * 9, [str(n) for n in range(9)]) is None


def test_the_overlay_marks_boxes_and_the_highest_patch() -> None:
    image = np.full((32, 32), 100, np.uint8)
    response = np.zeros((4, 4))
    response[1, 2] = 1.0
    plain = pictures.overlay(image, response)
    boxed = pictures.overlay(image, response, [Box("nodule", 0.0, 0.5, 0.5, 1.0)])
    assert plain.shape == boxed.shape == (256, 256, 3)
    changed = (plain != boxed).any(axis=2)
    assert changed[128:, :128].any()
    assert not changed[:120].any()
    # Orange in the responding patch, grey elsewhere.
    red, green, blue = plain[68, 132].astype(int)
    assert red > green > blue
    assert len(set(plain[200, 20].tolist())) == 1


def test_masked_patches_are_hidden_and_no_others() -> None:
    image = np.random.default_rng(0).integers(0, 80, (32, 32)).astype(np.uint8)
    masked = np.zeros((4, 4), bool)
    masked[3, 1] = True
    shown = pictures.masked_image(image, masked)
    flat = shown[192:256, 64:128].reshape(-1, 3)
    assert len(np.unique(flat, axis=0)) == 1
    shown[192:256, 64:128] = np.repeat(image.repeat(8, 0).repeat(8, 1)[192:256, 64:128, None], 3, axis=2)
    np.testing.assert_array_equal(shown[:, :, 0], image.repeat(8, 0).repeat(8, 1))


def test_curves_take_the_later_record_of_a_step_and_only_numbers() -> None:
    records: list[dict[str, Any]] = [
        {"step": 1, "loss": 3.0, "note": "x"},
        {"step": 2, "loss": 9.0},
        {"loss": 5.0},
        {"step": 2, "loss": 2.0, "nan": float("nan")},
    ]
    assert figures.curves_of(records) == {"loss": ([1.0, 2.0], [3.0, 2.0])}


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.1, 3.1), (-0.2, 7e5), (1e-6, 3e-6), (0.0, 0.0)])
def test_ticks_are_round_and_cover_the_range(low: float, high: float) -> None:
    ticks = figures._ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    assert np.allclose(np.diff(ticks), np.diff(ticks)[0])


@pytest.mark.browser
@pytest.mark.parametrize(
    ("width", "scheme"),
    [(width, scheme) for width in (browser.LAPTOP, browser.PHONE) for scheme in ("light", "dark")] + [(1920, "light")],
)
def test_the_page_opens_without_errors_and_shows_its_pictures(evaluated: Evaluated, width: int, scheme: Any) -> None:
    with browser.opened() as chromium:
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        troubles: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url[:60]))
        page.goto((evaluated.out / "report.html").as_uri(), wait_until="load")
        widths = page.eval_on_selector_all("img", "all => all.map(one => one.naturalWidth)")
        overflow = browser.sideways(page)
        unnamed = page.eval_on_selector_all("img", "all => all.filter(one => !one.alt).length")
        colours = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
    assert troubles == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len(widths) == 4 * 12
    assert min(widths) > 0
    assert unnamed == 0
    assert overflow <= 0, "the page scrolls sideways"
    luminance = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
    assert (luminance[0] < luminance[1]) == (scheme == "dark")


@pytest.mark.browser
def test_the_report_prints_whole_with_its_pictures_first(evaluated: Evaluated, tmp_path: pathlib.Path) -> None:
    with browser.opened() as chromium:
        # A dark screen prints dark ink on white all the same.
        page = browser.show(chromium, evaluated.out / "report.html", scheme="dark")
        first = page.eval_on_selector("main", "main => main.querySelector('img, table').tagName")
        folded = page.eval_on_selector_all("details[open]", "all => all.length")
        printed = browser.print_a4(page, tmp_path / "report.pdf")
        missing = browser.missing_cells(page, printed)
        page.emulate_media(media="print")
        ink = page.evaluate("getComputedStyle(document.body).color")
    assert first == "IMG"
    assert folded == 0
    assert missing == []
    # Folded cases too.
    for number in range(1, 13):
        assert f"{number}." in printed
    assert "Morecases(9)" in printed
    assert sum(map(int, re.findall(r"\d+", ink)[:3])) < 200
