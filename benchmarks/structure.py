"""The package's structure in figures: sizes, types at the doors, docstrings, and imports that run back up.

    python benchmarks/structure.py [CHECKOUT …]      # default: the checkout that this file is of

Prints one Markdown table with a column for each checkout. Nothing is imported; tests are not counted.

A public function is one of a module or of a public class whose name has no leading underscore. An arrow is a pair of
modules of which the first imports the second, anywhere in its text; it runs back up where the second is of a room above
the first's in the order of docs/architecture.md.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

# From the top down; rooms in one line are level.
ORDER = (
    ("cli",),
    ("external", "finetune", "ablate", "plan", "export"),
    ("train", "evaluate", "serve"),
    ("inference",),
    ("checkpoints", "check", "flops", "settings", "state"),
    ("objectives",),
    ("models",),
    ("data",),
    ("text",),
    ("config", "sharding", "trackers", "writers"),
    (
        *("ends", "errors", "fields", "files", "locks", "memory", "processes", "python_files", "ranges"),
        *("setting_names", "spreadsheet"),
    ),
)
# Where modules of older checkouts would stand today.
_FORMERLY = {
    "arguments": "cli",
    "classifier": "finetune",
    "guard": "train",
    "interop": "external",
    "interop.api": "inference",
    "interop.inputs": "inference",
    "optim": "train",
    "step": "train",
    "transfer": "finetune",
}
_LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
LONG_FILE, LONG_FUNCTION = 500, 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(checkout: Path) -> dict[str, tuple[str, ast.Module]]:
    """The text and the syntax of every module, by its dotted name within the package."""
    found = {}
    package = checkout / "mmclip_jax"
    for file in sorted(package.rglob("*.py")):
        name = ".".join(file.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        text = file.read_text(encoding="utf-8")
        found[name] = (text, ast.parse(text))
    return found


def functions(tree: ast.AST) -> list[Function]:
    """All functions, those within functions too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Functions and methods without a leading underscore; a class's __init__ and __call__ are doors too."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        if isinstance(node, Function) and (not node.name.startswith("_") or node.name in ("__init__", "__call__")):
            yield node


def count_any(function: Function) -> int:
    """How often `Any` stands in the annotations of a function's arguments and of what it returns."""
    arguments = function.args
    each = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    annotations = [argument.annotation for argument in each if argument is not None] + [function.returns]
    names = [ast.parse(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else node
             for node in annotations if node is not None]  # fmt: skip
    return sum(isinstance(one, ast.Name) and one.id == "Any" for node in names for one in ast.walk(node))


def level(module: str) -> int | None:
    """The level of a module's room, 0 at the top; None for what is in no room."""
    for depth in (2, 1):
        room = ".".join(module.split(".")[:depth])
        if (found := _LEVEL.get(_FORMERLY.get(room, room))) is not None:
            return found
    return None


def arrows_up(found: dict[str, tuple[str, ast.Module]]) -> list[tuple[str, str]]:
    """The pairs of modules of which the first imports the second from a room above its own."""
    pairs = set()
    for module, (_, tree) in found.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                wanted = name.removeprefix("mmclip_jax.")
                wanted = wanted if wanted in found else wanted.rpartition(".")[0]
                here, there = level(module), level(wanted)
                inside = name.startswith("mmclip_jax.")
                if inside and wanted in found and here is not None and there is not None and there < here:
                    pairs.add((module, wanted))
    return sorted(pairs)


def measure(checkout: Path) -> dict[str, str]:
    """The figures of one checkout, by what they count."""
    found = modules(checkout)
    every = [function for _, tree in found.values() for function in functions(tree)]
    public = [function for _, tree in found.values() for function in public_functions(tree.body)]
    named = [function for function in public if not function.name.startswith("_")]
    lines = [len(text.splitlines()) for text, _ in found.values()]
    long = sum((function.end_lineno or 0) - function.lineno + 1 > LONG_FUNCTION for function in every)
    documented = sum(ast.get_docstring(function) is not None for function in named)
    return {
        "modules": f"{len(found):,}",
        "lines": f"{sum(lines):,}",
        f"modules of more than {LONG_FILE} lines": str(sum(count > LONG_FILE for count in lines)),
        "lines of the longest module": str(max(lines)),
        "functions": f"{len(every):,}",
        f"functions of more than {LONG_FUNCTION} lines": str(long),
        "`Any` in signatures of public functions": str(sum(map(count_any, public))),
        "public functions with a docstring": f"{documented / len(named):.0%}",
        "imports that run back up": str(len(arrows_up(found))),
    }


def main() -> None:
    """Prints the table."""
    checkouts = [Path(word).resolve() for word in sys.argv[1:]] or [Path(__file__).resolve().parents[1]]
    columns = [measure(checkout) for checkout in checkouts]
    print("| | " + " | ".join(checkout.name for checkout in checkouts) + " |")
    print("|---|" + "--:|" * len(checkouts))
    for what in columns[0]:
        print(f"| {what} | " + " | ".join(column[what] for column in columns) + " |")
    for checkout in checkouts:
        for importer, imported in arrows_up(modules(checkout)):
            print(f"{checkout.name}: {importer} imports {imported}", file=sys.stderr)


if __name__ == "__main__":
    main()
