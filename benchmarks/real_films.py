"""Real films: findings by prompts beside supervised floors, sites never seen, and AttMIM's masks beside the lungs.

    DATA="runs/real/data/kermany runs/real/data/nih runs/real/data/shenzhen"
    python benchmarks/real_films.py scores --data $DATA [--workdir runs/real/small]
    python benchmarks/real_films.py transfer --data $DATA [--workdir RUN_WITHOUT_A_SITE]
    python benchmarks/real_films.py masks --data runs/real/data/shenzhen --workdir runs/real/small --masks FOLDER

`scores`: each finding (by default pneumonia and tuberculosis against no finding, kinds of pneumonia against each other
and against the rest, and what has 20 images on both sides) on the rows of `--split`: the floor, which is what
scikit-learn makes of the 64 x 64 pixels of the same source's training rows (PCA, then logistic regression); with
`--workdir` also the checkpoint's score by prompts, and a linear probe of its image embeddings (what the image encoder
knows, whatever the prompt says). AUROC with 95 % patient-clustered bootstrap intervals. Floor and probe learn from
labels of the same source; the column "exposure" says what the prompts have seen, from the checkpoint's own record.

`transfer`: the floor of the same source beside one that has learnt from all the other sources alone. Scores by prompts
are those of a site never seen where the checkpoint was trained without it: "exposure" tells.

`masks`: how much of what AttMIM hides lies inside the lungs, by strategy and by the map that chooses, and where the
most responsive patch lies. The text is each film's own. Chance is the share of the whole square that is lung. FOLDER
holds ID.png, a mask of the image's size, for some films at least.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mmclip_jax
from mmclip_jax.data import texts
from mmclip_jax.data.images import transforms
from mmclip_jax.data.records import open_records
from mmclip_jax.data.schema import PARTS, Example, LabelState
from mmclip_jax.errors import UserError
from mmclip_jax.evaluate.evaluations.localization import inside_mask
from mmclip_jax.evaluate.stats import auroc, bootstrap_ci
from mmclip_jax.inference import scoring
from mmclip_jax.inference.exposure import exposure
from mmclip_jax.models import masking
from mmclip_jax.models.mmclip import RESPONSES
from mmclip_jax.text import prompts

FLOOR_SIZE = 64
COMPONENTS = 100
FEWEST = 20  # positives and negatives that a finding needs for a row of its own
CHOSEN = (
    "pneumonia:no_finding", "tuberculosis:no_finding", "viral_pneumonia", "viral_pneumonia:bacterial_pneumonia",
    "bacterial_pneumonia",
)  # fmt: skip
POINTS = 16  # a mask is looked at in so many points a patch and direction


class Task(NamedTuple):
    """A finding against another one, or ("") against all rows that are labelled without it."""

    finding: str
    against: str

    def __str__(self) -> str:
        """As the tables print it."""
        other = prompts.display_name(self.against) if self.against else "the rest"
        return f"{prompts.display_name(self.finding)} / {other}"

    def label(self, example: Example) -> float | None:
        """1 or 0; None where the row is of neither side."""
        state = example.labels.get(self.finding)
        if state == LabelState.PRESENT:
            return 1.0
        without = example.labels.get(self.against) == LabelState.PRESENT if self.against else state == LabelState.ABSENT
        return 0.0 if without else None


class Rows(NamedTuple):
    """The rows of a split: examples, and their images [H,W] uint8 and [n, 4096] in [0, 1]."""

    examples: list[Example]
    images: list[np.ndarray]
    flat: np.ndarray

    def of(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """(numbers of the rows of a task, their labels float64)."""
        labels = [task.label(example) for example in self.examples]
        numbers = np.array([i for i, label in enumerate(labels) if label is not None], int)
        return numbers, np.array([label for label in labels if label is not None])


class Site(NamedTuple):
    """A data set: its name, the rows that floors learn from, and those that are scored."""

    name: str
    train: Rows
    scored: Rows


def read_rows(directory: Path, split: str) -> Rows:
    """All rows of a split."""
    examples = [
        records[i] for part in PARTS for records in [open_records(directory, split, part)] for i in range(len(records))
    ]
    images = [transforms.decode_image(example.image) for example in examples]
    flat = np.stack([transforms.fit_image(image, FLOOR_SIZE).ravel() for image in images]) / 255.0
    return Rows(examples, images, flat)


def tasks_of(site: Site, chosen: Iterable[str]) -> Iterator[Task]:
    """The tasks that have FEWEST rows on both sides; every disease against the rest behind those that are chosen."""
    named = [Task(*(name.partition(":")[::2])) for name in chosen]
    diseases = [kind for kind in prompts.KINDS if kind != texts.NO_FINDING]
    every = [Task(kind, "") for kind in diseases if any(kind in e.labels for e in site.scored.examples)]
    for task in dict.fromkeys([*named, *every]):
        labels = site.scored.of(task)[1]
        if min(labels.sum(), len(labels) - labels.sum()) >= FEWEST and len(set(site.train.of(task)[1])) == 2:
            yield task


def linear_scores(train: np.ndarray, labels: np.ndarray, scored: np.ndarray, *before: Any) -> np.ndarray:
    """Scores by logistic regression on the standardised features of training rows."""
    model = make_pipeline(*before, StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    model.fit(train, labels)
    return model.decision_function(scored)


def floor_scores(train: np.ndarray, labels: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """What pixels alone give: PCA, then `linear_scores`."""
    return linear_scores(train, labels, scored, PCA(min(COMPONENTS, len(train) - 1), random_state=0))


def cell(labels: np.ndarray, values: np.ndarray, patients: Sequence[str]) -> str:
    """AUROC and its interval."""
    low, high = bootstrap_ci(labels, values, patients)
    return f"{auroc(labels, values):.3f} ({low:.3f} to {high:.3f})"


def print_row(*cells: object) -> None:
    """A row of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_head(*cells: str) -> None:
    """The head of a table."""
    print_row(*cells)
    print(f"|{'---|' * len(cells)}")


def beside_no_finding(model: Any, embedded: np.ndarray, finding: str) -> np.ndarray:
    """Scores by the finding's prompts and those of "no finding"."""
    return scoring.score_beside_normal(model, embedded, [finding])[:, 0]


def by_prompts(model: Any, embedded: np.ndarray, finding: str) -> np.ndarray:
    """Scores of embedded images by the finding's prompts."""
    pair = scoring.prompt_embeddings(model, [finding])
    return scoring.score_images(embedded, *pair)["difference"][:, 0]


def print_scores(sites: Sequence[Site], model: Any, chosen: Sequence[str]) -> None:
    """Each finding of each data set: the floor; with a model the prompts, their exposure and the probe."""
    more = ["by prompts", "exposure", "beside no finding", "linear probe"] if model else []
    print_head("data set", "finding / against", "rows (positive)", "patients", "floor", *more)
    macro: dict[str, list[list[float]]] = {}
    for site in sites:
        embedded = (model.encode_image(site.scored.images), model.encode_image(site.train.images)) if model else None
        for task in tasks_of(site, chosen):
            rows, labels = site.scored.of(task)
            train, train_labels = site.train.of(task)
            patients = [site.scored.examples[i].patient for i in rows]
            scores = {"floor": floor_scores(site.train.flat[train], train_labels, site.scored.flat[rows])}
            if embedded:
                scores["prompts"] = by_prompts(model, embedded[0][rows], task.finding)
                how = by_prompts if task.finding == texts.NO_FINDING else beside_no_finding
                scores["beside no finding"] = how(model, embedded[0][rows], task.finding)
                scores["probe"] = linear_scores(embedded[1][train], train_labels, embedded[0][rows])
            cells = [cell(labels, values, patients) for values in scores.values()]
            if embedded:
                cells.insert(2, exposure(task.finding, site.scored.examples[0].source, model.manifest))
            print_row(site.name, task, f"{len(labels)} ({int(labels.sum())})", len(set(patients)), *cells)
            if not task.against:
                macro.setdefault(site.name, []).append([auroc(labels, values) for values in scores.values()])
    for name, found in macro.items():
        mean = ", ".join(f"{value:.3f}" for value in np.mean(found, axis=0))
        print(f"\nmacro of the {len(found)} findings of {name} against the rest ({', '.join(scores)}): {mean}")


def print_transfer(sites: Sequence[Site], model: Any, chosen: Sequence[str]) -> None:
    """Each finding that another data set has, too: floors of the own source and of all the others."""
    more = ["by prompts", "exposure"] if model else []
    print_head("scored on", "finding / against", "rows (positive)", "learnt there", "learnt elsewhere", *more)
    for site in sites:
        for task in tasks_of(site, chosen):
            rows, labels = site.scored.of(task)
            patients = [site.scored.examples[i].patient for i in rows]
            others = [
                (o.train.flat[n], y) for o in sites if o is not site for n, y in [o.train.of(task)] if len(set(y)) == 2
            ]
            if not others:
                continue
            elsewhere, their_labels = (np.concatenate(parts) for parts in zip(*others, strict=True))
            own, own_labels = site.train.of(task)
            scores = [
                floor_scores(site.train.flat[own], own_labels, site.scored.flat[rows]),
                floor_scores(elsewhere, their_labels, site.scored.flat[rows]),
            ]
            if model:
                scores.append(
                    by_prompts(model, model.encode_image([site.scored.images[i] for i in rows]), task.finding)
                )
            cells = [cell(labels, values, patients) for values in scores]
            if model:
                cells.append(exposure(task.finding, site.scored.examples[0].source, model.manifest))
            print_row(site.name, task, f"{len(labels)} ({int(labels.sum())})", *cells)


def lung_shares(examples: Sequence[Example], masks: Path, side: int) -> tuple[list[int], np.ndarray]:
    """(numbers of the examples with a lung mask, the share of each patch that is lung [n, side * side])."""
    numbers, shares = [], []
    for number, example in enumerate(examples):
        file = masks / f"{Path(example.id).stem}.png"
        if file.is_file():
            inside = inside_mask(file.read_bytes(), (side * POINTS, side * POINTS))
            shares.append(inside.reshape(side, POINTS, side, POINTS).mean(axis=(1, 3)).ravel())
            numbers.append(number)
    if not numbers:
        raise UserError(f"{masks} holds no lung mask ID.png of any of the {len(examples)} rows")
    return numbers, np.array(shares)


def print_masks(site: Site, model: Any, masks: Path) -> None:
    """The share of hidden patches that is lung, of films with a finding and of normal ones."""
    side = model.config.model.image_size // model.config.model.patch_size
    numbers, lungs = lung_shares(site.scored.examples, masks, side)
    examples = [site.scored.examples[i] for i in numbers]
    said = [texts.full_text(example) for example in examples]
    normal = np.array([drawn.present == (texts.NO_FINDING,) for drawn in said])
    options = model.config.objective.attmim
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), len(examples)))
    print(f"{len(examples)} films of {site.name} with a lung mask, {int((~normal).sum())} of them with a finding")
    print_head("map", "strategy", "with a finding", "normal", "most responsive patch in a lung, with a finding")
    everywhere = [f"{lungs[who].mean():.3f}" for who in (~normal, normal)]
    print_row("", "the whole square", *everywhere, f"{lungs[~normal].mean():.3f}")
    for kind in RESPONSES:
        images = [site.scored.images[i] for i in numbers]
        response = model.response_maps(images, [drawn.text for drawn in said], kind).reshape(len(examples), -1)
        best = np.take_along_axis(lungs, response.argmax(axis=1)[:, None], axis=1)[:, 0]
        for strategy in masking.STRATEGIES:
            hidden, _ = masking.select_masked_patches(
                jnp.asarray(response), keys, ratio=options.mask_ratio, hint=options.hint, strategy=strategy
            )
            share = np.take_along_axis(lungs, np.asarray(hidden), axis=1).mean(axis=1)
            cells = [
                f"{share[who].mean():.3f} ± {share[who].std() / max(who.sum(), 1) ** 0.5:.3f}"
                for who in (~normal, normal)
            ]
            pointed = f"{best[~normal].mean():.3f}" if strategy == "attention" else ""
            print_row(kind, strategy, *cells, pointed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("scores", "transfer", "masks"))
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="built data sets")
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--workdir", help="training run whose checkpoint is scored")
    parser.add_argument("--step", type=int, help="its checkpoint; the newest unless given")
    parser.add_argument("--masks", type=Path, help="folder of lung masks ID.png")
    parser.add_argument("--findings", nargs="+", default=CHOSEN, metavar="FINDING[:AGAINST]")
    args = parser.parse_args(arguments)
    if args.table == "masks" and not (args.workdir and args.masks):
        parser.error("masks needs --workdir and --masks")
    try:
        model = mmclip_jax.load(args.workdir, args.step) if args.workdir else None
        if model:
            print(f"checkpoint: step {model.step} of {args.workdir}")
        sites = [Site(path.name, read_rows(path, "train"), read_rows(path, args.split)) for path in args.data]
        tables: dict[str, Callable[[], None]] = {
            "scores": lambda: print_scores(sites, model, args.findings),
            "transfer": lambda: print_transfer(sites, model, args.findings),
            "masks": lambda: print_masks(sites[0], model, args.masks),
        }
        tables[args.table]()
    except UserError as error:
        sys.exit(f"real_films.py: {error}")


if __name__ == "__main__":
    main()
