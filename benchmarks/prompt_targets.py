"""Which targets let prompts tell kinds of one disease apart? The contrastive loss alone, on frozen pixels, in minutes.

    python benchmarks/prompt_targets.py --data runs/real/data/{covid,shenzhen,nih,kermany}

The image side is what the floor of `real_films.py` has (PCA of 64 x 64 pixels), then two layers. The text side is a sum
of embeddings of words and of pairs of neighbours ("no viral"). Texts are drawn as in training, from both kinds of rows.
So only the texts and their targets decide whether a prompt finds what the pixels are known to hold. Each row is a run:
`contrastive.targets`, `data.max_negated`, `data.deny_alone`, the seed. AUROC on the validation split, beside the floor
of the same rows: by the difference of affirming and denying prompts / by the affirming ones alone / by the affirming
ones against the denying ones and "no finding" (`scoring.score_beside_normal`).
"""

import argparse
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import real_films
from real_films import Site, Task
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmclip_jax.config import default_config
from mmclip_jax.data import texts
from mmclip_jax.evaluate.stats import auroc
from mmclip_jax.inference import scoring
from mmclip_jax.models.similarity import normalize
from mmclip_jax.objectives.contrastive import TARGETS, contrastive_loss

PAIRED, UNPAIRED = 16, 48  # rows of a batch
WIDTH, HIDDEN = 64, 256
WORDS = 4096  # words and pairs of words are hashed to so many numbers
SCALE = 1 / 0.07  # of the logits, at the start
NOISE = 0.3  # of standardised features, in place of augmentation
TASKS = (
    "viral_pneumonia", "viral_pneumonia:bacterial_pneumonia", "bacterial_pneumonia", "pneumonia:no_finding",
    "tuberculosis:no_finding",
)  # fmt: skip


def words_of(text: str) -> np.ndarray:
    """How often each word and each pair of neighbours is in a text, over the root of their number: float32 [WORDS]."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    found = np.zeros(WORDS, np.float32)
    for term in [*words, *map(" ".join, itertools.pairwise(words))]:
        found[texts.stable_hash(term) % WORDS] += 1.0
    return found / max(found.sum(), 1.0) ** 0.5


class Bench:
    """One set of compiled functions and features for all settings."""

    def __init__(self, sites: Sequence[Site], steps: int):
        self.sites, self.steps = sites, steps
        flat = np.concatenate([site.train.flat for site in sites])
        features = make_pipeline(PCA(real_films.COMPONENTS, random_state=0), StandardScaler()).fit(flat)
        self.train = features.transform(flat).astype(np.float32)
        self.scored = [features.transform(site.scored.flat).astype(np.float32) for site in sites]
        self.examples = [example for site in sites for example in site.train.examples]
        self.known = np.stack([texts.stated(*texts.known(example)) for example in self.examples])
        schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, steps // 20, steps)
        self.optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05))
        self.step = jax.jit(self._step)

    def start(self, seed: int) -> Any:
        """Initial parameters: of the logits, of words, and of two layers over the features."""
        one, two, three = jax.random.split(jax.random.key(seed), 3)
        return {
            "scale": jnp.log(SCALE),
            "words": WIDTH**-0.5 * jax.random.normal(three, (WORDS, WIDTH)),
            "first": 0.1 * jax.random.normal(one, (self.train.shape[1], HIDDEN)),
            "second": HIDDEN**-0.5 * jax.random.normal(two, (HIDDEN, WIDTH)),
        }

    def image(self, params: Any, features: jax.Array) -> jax.Array:
        """Embeddings of features, L2-normalised."""
        return normalize(jax.nn.gelu(features @ params["first"]) @ params["second"])

    def text(self, params: Any, words: jax.Array) -> jax.Array:
        """Embeddings of `words_of` texts, L2-normalised."""
        return normalize(words @ params["words"])

    def _step(self, params: Any, state: Any, features: jax.Array, rows: Any, weights: jax.Array) -> Any:
        """One update; weights [T]: which of `TARGETS` count."""

        def loss(params: Any) -> jax.Array:
            pair = self.image(params, features), self.text(params, rows["words"])
            scale, ids = jnp.exp(params["scale"]), rows["text_id"]
            known = {name: rows[name] for name in ("stated", "known")}
            losses = [contrastive_loss(*pair, scale, ids, targets=targets, **known)[0] for targets in TARGETS]
            return jnp.stack(losses) @ weights

        updates, state = self.optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def batch(self, numbers: np.ndarray, rng: np.random.Generator, data: Any) -> dict[str, np.ndarray]:
        """The rows of some training examples, without their images."""
        drawn = [texts.draw_text(self.examples[i], rng, data) for i in numbers]
        return {
            "words": np.stack([words_of(each.text) for each in drawn]),
            "text_id": np.stack([texts.text_ids(each) for each in drawn]),
            "stated": np.stack([texts.stated(each.present, each.absent) for each in drawn]),
            "known": self.known[numbers],
        }

    def trained(self, targets: str, max_negated: int, deny_alone: float, seed: int) -> "Trained":
        """A run."""
        rng, params = np.random.default_rng(seed), self.start(seed)
        data = default_config().data
        data.update({"max_negated": max_negated, "deny_alone": deny_alone})
        parts = [np.flatnonzero([e.part == part for e in self.examples]) for part in ("paired", "unpaired")]
        state, weights = self.optimizer.init(params), np.array([name == targets for name in TARGETS], np.float32)
        for _ in range(self.steps):
            numbers = np.concatenate([rng.choice(p, n, False) for p, n in zip(parts, (PAIRED, UNPAIRED), strict=True)])
            noise = NOISE * rng.normal(size=(len(numbers), self.train.shape[1])).astype(np.float32)
            rows = self.batch(numbers, rng, data)
            params, state = self.step(params, state, self.train[numbers] + noise, rows, weights)
        return Trained(self, params)


class Trained:
    """What scoring by prompts needs of a model."""

    def __init__(self, bench: Bench, params: Any):
        self.bench, self.params = bench, params
        self.logit_scale = float(np.exp(params["scale"]))

    def encode_text(self, lines: Sequence[str]) -> np.ndarray:
        """float32 [n, WIDTH], L2-normalised."""
        return np.asarray(self.bench.text(self.params, jnp.asarray(np.stack([words_of(line) for line in lines]))))

    def scores(self, features: np.ndarray, finding: str) -> dict[str, np.ndarray]:
        """See `scoring.score_images`; "beside normal": see `scoring.score_beside_normal`."""
        embedded = np.asarray(self.bench.image(self.params, jnp.asarray(features)))
        found = scoring.score_images(embedded, *scoring.prompt_embeddings(self, [finding]))
        found["beside normal"] = scoring.score_beside_normal(self, embedded, [finding])
        return {name: values[:, 0] for name, values in found.items()}


def chosen(bench: Bench, tasks: Sequence[str]) -> list[tuple[Task, int, np.ndarray, np.ndarray]]:
    """(task, number of its site, rows, labels) of each task that a site can score."""
    found = []
    for number, site in enumerate(bench.sites):
        for task in real_films.tasks_of(site, tasks):
            if f"{task.finding}:{task.against}".strip(":") in tasks:
                found.append((task, number, *site.scored.of(task)))
    return found


def main() -> None:
    """Prints a row a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="built data sets")
    parser.add_argument("--targets", nargs="+", default=["kinds", "known"], choices=TARGETS)
    parser.add_argument("--max-negated", nargs="+", type=int, default=[2])
    parser.add_argument("--deny-alone", nargs="+", type=float, default=[0.0, 0.25])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    read = real_films.read_rows
    bench = Bench([Site(path.name, read(path, "train"), read(path, "validation")) for path in args.data], args.steps)
    tasks = chosen(bench, TASKS)
    names = [f"{bench.sites[number].name}: {task}" for task, number, _, _ in tasks]
    real_films.print_head(
        "targets", "max_negated", "deny_alone", "seed", *names, "cosine viral, bacterial", "viral, not viral"
    )
    floors = []
    for task, number, rows, labels in tasks:
        train, train_labels = bench.sites[number].train.of(task)
        flat = bench.sites[number].train.flat[train], bench.sites[number].scored.flat[rows]
        floors.append(f"{auroc(labels, real_films.floor_scores(flat[0], train_labels, flat[1])):.3f}")
    real_films.print_row("floor", "", "", "", *floors, "", "")
    settings = itertools.product(args.seeds, args.max_negated, args.deny_alone, args.targets)
    for seed, max_negated, deny_alone, targets in settings:
        model = bench.trained(targets, max_negated, deny_alone, seed)
        cells = []
        for task, number, rows, labels in tasks:
            scores = model.scores(bench.scored[number][rows], task.finding)
            cells.append(" / ".join(f"{auroc(labels, values):.3f}" for values in scores.values()))
        (viral, bacterial), (not_viral, _) = scoring.prompt_embeddings(
            model, ["viral_pneumonia", "bacterial_pneumonia"]
        )
        cosines = f"{viral @ bacterial:.2f}", f"{viral @ not_viral:.2f}"
        real_films.print_row(targets, max_negated, deny_alone, seed, *cells, *cosines)


if __name__ == "__main__":
    main()
