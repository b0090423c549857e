"""Attacks files, settings and names on purpose, and writes the results into docs/reliability.md.

    python benchmarks/attacks.py            # all of it; `--short` is what the tests run

Each kind of attack is a function that yields (what was tried, what went wrong), where "" means that the attack was
held: it was refused in one line, an earlier good state was used, or it had no effect. A new kind is a function with
`@kind(...)`, here or in a module that is named in MODULES. The exit status is 1 if anything went wrong.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import math
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
MODULES = ("attacks_data", "attacks_readers", "attacks_commands")  # of further kinds, beside this file
Outcomes = Iterator[tuple[str, str]]
Attack = Callable[["Attacker"], Outcomes]


@dataclasses.dataclass
class Attacker:
    """What a kind may use: a folder of its own, a source of chance, and whether to be brief."""

    folder: pathlib.Path
    chance: random.Random
    short: bool

    def some(self, each: Sequence[Any], count: int) -> list[Any]:
        """All of them, or so many drawn by chance where it should be short."""
        return self.chance.sample(list(each), min(count, len(each))) if self.short else list(each)


KINDS: dict[str, tuple[str, Attack]] = {}


def kind(name: str, held: str) -> Callable[[Attack], Attack]:
    """Registers a kind of attack. held: what happens where nothing goes wrong, for the table."""

    def register(attack: Attack) -> Attack:
        KINDS[name] = (held, attack)
        return attack

    return register


def refused(call: Callable[[], Any], words: str = "", also: Callable[[Any], bool] = lambda _: False) -> str:
    """What went wrong: "" if the call raises one of our own errors, in one line with these words.

    also: whether what the call returns is as good.
    """
    from mmclip_jax.errors import UserError

    try:
        found = call()
    except UserError as error:
        return "" if words in str(error) and "\n" not in str(error) else f"said: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if also(found) else "was taken"


def clear(call: Callable[[], Any], words: str = "") -> str:
    """What went wrong: "" if the call returns, or raises one of our own errors in one line."""
    return refused(call, words, also=lambda _: True)


def as_test(test: Callable[..., Any], *arguments: Any) -> str:
    """What went wrong: "" if a test of the suite, called with these arguments, holds."""
    try:
        test(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def change(file: pathlib.Path, how: str, chance: random.Random) -> None:
    """Flips a bit of a file, cuts it off somewhere, empties it, or removes it."""
    content = bytearray(file.read_bytes())
    if how == "removed":
        file.unlink()
        return
    if how == "emptied" or not content:
        content = bytearray()
    elif how == "cut off":
        del content[chance.randrange(len(content)) :]
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(bytes(content))


# ---------------------------------------------------------------------------------------------------------------------
# Settings, numbers, names


@kind("settings out of their range", "refused before anything is computed; the message names the setting")
def settings(attacker: Attacker) -> Outcomes:
    """Every number below and above its range, not finite, and of another type."""
    from mmclip_jax import ranges
    from mmclip_jax.check import setting_ranges
    from mmclip_jax.config import default_config, flat

    values, table = flat(default_config()), setting_ranges()
    for name in attacker.some(sorted(table), 25):
        allowed = table[name]
        bad: list[Any] = [object(), "no such word"] if not isinstance(allowed, ranges.Text) else [3]
        if isinstance(allowed, ranges.Number):
            bad = ["1", math.nan, math.inf, True]
            bad += [allowed.low if allowed.above else allowed.low - 1] if allowed.low > -math.inf else []
            bad += [allowed.high if allowed.below else allowed.high + 1] if allowed.high < math.inf else []
        for value in bad:
            yield (
                f"{name}={value!r}",
                refused(functools.partial(ranges.check, values | {name: value}, table), name),
            )


@kind("names of folders", "they work, or are refused at the start")
def names(attacker: Attacker) -> Outcomes:
    """Every printable ASCII character that a folder's name may have, and some others, in a workdir's path."""
    from mmclip_jax import files

    characters = [chr(code) for code in range(1, 128) if chr(code) not in "/\0~"] + ["é", "日", "\u202e"]
    special = set("[]*?\\") | {chr(code) for code in range(32)} | {"\x7f"}
    for character in attacker.some(characters, 30):
        path = f"{attacker.folder}/a{character}b/run"
        if character in special:
            yield repr(character), refused(functools.partial(files.locate, path), "in its name")
        else:
            files.write_whole(f"{path}/x", "x")
            yield (
                repr(character),
                "" if pathlib.Path(path, "x").read_text(encoding="utf-8") == "x" else "was not written",
            )


# ---------------------------------------------------------------------------------------------------------------------
# Files


@kind("damaged JSON files", "refused in one line with the remedy, or nothing changes")
def json_files(attacker: Attacker) -> Outcomes:
    """Results, facts and metrics, each damaged in every way."""
    from mmclip_jax import files, writers
    from mmclip_jax.evaluate.report import comparison

    rows = b"".join(json.dumps({"step": n, "loss": n / 7, "x": None}).encode() + b"\n" for n in range(1, 30))
    facts = json.dumps({"name": "a", "version": "1", "examples": 3, "splits": {"train": [1, 2, {"x": "é"}]}}, indent=1)
    results = {
        "zero_shot": {"protocol": {"name": "a"}, "score": "cosine"}, "data": {"rows": 3, "split": "test", "sets": []},
        "checkpoint": {"run": "r", "step": 3},
    }  # fmt: skip
    header = "id,source,part,patient,edema/label,edema/cosine\n"
    table = header + "".join(f"i{n},a,paired,{n},{n % 2},0.{n}5\n" for n in range(3))

    def compared(name: str) -> Callable[[pathlib.Path], Any]:
        def read(file: pathlib.Path) -> Any:
            folder = attacker.folder / "evaluation"
            folder.mkdir(exist_ok=True)
            (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
            (folder / "scores.csv").write_text(table, encoding="utf-8")
            shutil.copy(file, folder / name)
            return comparison.SavedEvaluation.read(folder)

        return read

    readers: dict[str, tuple[bytes, Callable[[pathlib.Path], Any]]] = {
        "results.json": (json.dumps(results).encode(), compared("results.json")),
        "scores.csv": (table.encode(), compared("scores.csv")),
        "metrics.jsonl": (rows, writers.read_rows),
        "facts.json": (facts.encode(), lambda path: files.read_json(path, "build it again", ("name", "splits"))),
    }
    for name, (content, read) in readers.items():
        file = attacker.folder / name
        for number in range(6 if attacker.short else 40):
            for how in ("flipped", "cut off", "emptied"):
                file.write_bytes(content)
                change(file, how, attacker.chance)
                # What JSON still reads may be another value: of these files no sum is kept.
                yield f"{name} {how} {number}", refused(functools.partial(read, file), also=lambda _: True)
        for text in ("[" * 100_000, "null", "7", '"x"', "[]", "{}", "\ufeff{}", '{"step": ' + "9" * 400 + "}", "\0"):
            file.write_text(text + "\n", encoding="utf-8")
            yield f"{name}: {text[:12]!r}…", refused(functools.partial(read, file))


def of_tests(name: str) -> Any:
    """A module of the tests, for its helpers."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    rooms = ("data", "data/builders", "data/images", "data/leakage", "evaluate", "external", "inference", "train")
    for folder in ("tests", *(f"tests/{room}" for room in rooms), "benchmarks"):
        if str(ROOT / folder) not in sys.path:
            sys.path.append(str(ROOT / folder))
    return importlib.import_module(name)


@kind("damaged checkpoints", "an earlier checkpoint is used, or it is refused, or what is read equals what was saved")
def checkpoints(attacker: Attacker) -> Outcomes:
    """Every file of a checkpoint flipped, cut off, emptied and removed; every folder removed; read both ways."""
    made = of_tests("test_checkpoints")
    whole = attacker.folder / "whole"
    made.save(whole, 3, 7)
    step = whole / "checkpoints" / "7"
    every = [path for path in sorted(step.rglob("*")) if path.is_file()]
    tried = [(path, how) for path in every for how in ("flipped", attacker.chance.choice(("cut off", "removed")))]
    words = [path for path in every if path.name == "metadata"]  # settings, tokenizer, manifest, position, sums
    tried += [(path, how) for path in words for how in ("flipped", "flipped", "emptied")]
    tried += [(path, "removed") for path in sorted(step.rglob("*")) if path.is_dir()]
    for number, (path, how) in enumerate(attacker.some(tried, 12)):
        copy = attacker.folder / str(number)
        shutil.copytree(whole, copy)
        victim = copy / path.relative_to(whole)
        if victim.is_dir():
            shutil.rmtree(victim)
        else:
            change(victim, how, attacker.chance)
        place = path.relative_to(step)
        yield f"{place} {how}, going on", _resumed(made, copy)
        if place.parts[0] not in ("params", "optimizer", "data"):  # which an evaluation does not read
            yield f"{place} {how}, evaluating", _evaluated(made, copy)
        shutil.rmtree(copy)


def _resumed(made: Any, workdir: pathlib.Path) -> str:
    import jax
    import numpy as np

    from mmclip_jax.checkpoints import Checkpoints

    data = made.iterator()
    kept = Checkpoints(workdir, 5)
    try:
        state = kept.restore_latest(made.abstract(made.make_state(7)), data)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        kept.close()
    if state is None:
        return "began anew"
    number = int(state.step)
    same = jax.tree.map(np.array_equal, state, made.make_state(number))
    if number not in (3, 7) or not all(jax.tree.leaves(same)):
        return f"other bits, step {number}"
    return "" if next(data) == number else "another position of the data"


def _evaluated(made: Any, workdir: pathlib.Path) -> str:
    import jax
    import numpy as np

    from mmclip_jax.checkpoints import find_checkpoint

    expected = made.run()

    def read() -> str:
        found = find_checkpoint(workdir, 7)
        params = found.restore_params(made.abstract(made.make_state(7)).params)
        same = jax.tree.map(np.array_equal, params, made.make_state(7).ema)
        said = (json.loads(found.config.to_json()), found.tokenizer_model, found.manifest)
        kept = (expected["config"], made.TOKENIZER, expected["manifest"])
        return "" if all(jax.tree.leaves(same)) and said == kept else "another model"

    return refused(read, also=lambda problem: not problem)


@kind("locks left behind", "a lock blocks others while its process lives, and not after that")
def held_folders(attacker: Attacker) -> Outcomes:
    """Locks of processes that are gone, of numbers used again, cut off at every length; and of one that lives."""
    from mmclip_jax import locks, processes

    here = processes.this_process()
    folder = attacker.folder / "held"
    folder.mkdir()

    def write(owner: processes.Owner, length: int | None = None) -> None:
        content = json.dumps({"owner": dataclasses.asdict(owner), "what": "mmclip train", "mark": "m"})
        (folder / locks.LOCK_FILE).write_text(content[:length], encoding="utf-8")

    def take() -> None:
        locks.Lock(folder, "attack").release()

    write(here)
    yield "of a living process", refused(take, f"process {here.pid}")
    for name, owner in (
        ("a number that is free", dataclasses.replace(here, pid=2**22 + 9)),
        ("a number used again", dataclasses.replace(here, started=1)),
    ):
        write(owner)
        yield name, refused(take, also=lambda _: True)
    before, locks._STALE_SECONDS = locks._STALE_SECONDS, 0.01  # cut off by a full disk: nobody touches it
    try:
        for length in range(0, 150, 30 if attacker.short else 5):
            write(here, length)
            yield f"cut off at {length} bytes", refused(take, also=lambda _: True)
    finally:
        locks._STALE_SECONDS = before


# ---------------------------------------------------------------------------------------------------------------------
# The table


@dataclasses.dataclass
class Row:
    """A kind of attack: how often it was tried, and what went wrong."""

    name: str
    held: str
    attempts: int
    failures: list[str]
    seconds: float


def load() -> None:
    """Registers the kinds of `MODULES`."""
    folder = str(pathlib.Path(__file__).resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    for name in MODULES:
        importlib.import_module(name)


def run(chosen: Sequence[str], short: bool, seed: int = 0, show: Callable[[str], object] = print) -> list[Row]:
    """Runs kinds of attacks; [] of `chosen` means all."""
    rows = []
    for name in chosen or list(KINDS):
        held, attack = KINDS[name]
        start, attempts, failures = time.perf_counter(), 0, []
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            for what, problem in _all(attack(Attacker(pathlib.Path(folder), random.Random(seed), short))):
                attempts += 1
                if problem:
                    failures.append(f"{what}: {' '.join(problem.split())[:200]}")
                    show(f"{name}: {failures[-1]}")
        rows.append(Row(name, held, attempts, failures, time.perf_counter() - start))
        show(f"{name}: {attempts} attempts, {len(failures)} failures, {rows[-1].seconds:.0f} s")
    return rows


def _all(outcomes: Outcomes) -> Outcomes:
    """The outcomes of a kind; what its own code raises is one, and costs no other kind."""
    try:
        yield from outcomes
    except Exception as error:
        yield "the attack itself", f"{type(error).__name__}: {error}"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| kind | attempts | failures | outcome |", "|---|---|---|---|"]
    for row in rows:
        outcome = "; ".join(row.failures[:3]).replace("|", "\\|") if row.failures else row.held
        lines.append(f"| {row.name} | {row.attempts:,} | {len(row.failures)} | {outcome} |")
    attempts, failures = sum(row.attempts for row in rows), sum(len(row.failures) for row in rows)
    return "\n".join([*lines, f"| **all** | **{attempts:,}** | **{failures}** | |"])


def write(text: str) -> None:
    """Puts the table between the marks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    new, count = re.subn(
        r"(<!-- attacks -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{PAGE} has no place for the table")
    PAGE.write_text(new, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the attacks, prints the table and, in the long form of all kinds, writes it."""
    load()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("kinds", nargs="*", help=f"default: all of {', '.join(KINDS)}")
    parser.add_argument("--short", action="store_true", help="a few of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn by chance")
    args = parser.parse_args(argv)
    rows = run(args.kinds, args.short, args.seed, lambda text: print(text, file=sys.stderr, flush=True))
    print(table(rows))
    if not args.kinds and not args.short:
        write(table(rows))
    return 1 if any(row.failures for row in rows) else 0


if __name__ == "__main__":
    # Kinds of other modules register in the module "attacks", and not in this script.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
    sys.exit(importlib.import_module("attacks").main())
