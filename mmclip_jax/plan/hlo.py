"""Reads the text of a compiled program (HLO): its collectives, and how often a step runs each."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from absl import logging


class Operation(NamedTuple):
    """One collective of a program.

    name: all-gather, ...; arrays: (dtype, shape) of each result; times: how often a step runs it, 0 where nobody is
    seen to call it; group: how many chips do it together.
    """

    name: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    group: int


_OPERATION = re.compile(
    r" = (\(?.*?\)?) (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|"
    r"collective-broadcast|send|recv)(-start)?\("
)
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[([^\]]*)\][^{]*?\{([^}]*)\})")
# A line of a program: name, type, operation, what follows its bracket.
RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
OPERAND = re.compile(r"%([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+\w*)\[([0-9,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|(?:true|false)_computation|branch_computations|called_computations)="
    r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_LOOP = re.compile(r" while\(.*\bcondition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ELEMENT = re.compile(r"\), index=(\d+)")


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation of an HLO text by its name, and the name of the entry."""
    lines: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name = found[1]
            lines[name] = []
            if line.startswith("ENTRY"):
                entry = name
        elif name:
            lines[name].append(line)
    return lines, entry


def turns(condition: Sequence[str], body: Sequence[str]) -> int:
    """How often a loop turns whose counter starts at 0 and stays below a constant (or up to it).

    It grows by the constant that the body adds to it; by 1 where that is not to be seen, as in a fusion. A condition of
    another kind counts as one turn, with a warning.
    """

    def parsed(lines: Sequence[str]) -> tuple[dict[str, tuple[str, str]], str]:
        found = {match[1]: (match[3], match[4]) for line in lines if (match := RESULT.match(line))}
        root = next((match[1] for line in lines if "ROOT " in line and (match := RESULT.match(line))), "")
        return found, root

    def integer(operations: Mapping[str, tuple[str, str]], name: str) -> int | None:
        code, rest = operations.get(name, ("", ""))
        value = rest.split(")", 1)[0]
        return int(value) if code == "constant" and value.isdecimal() else None

    def element(operations: Mapping[str, tuple[str, str]], name: str) -> int | None:
        code, rest = operations.get(name, ("", ""))
        index = _ELEMENT.search(rest)
        return int(index[1]) if code == "get-tuple-element" and index else None

    asked, root = parsed(condition)
    code, rest = asked.get(root, ("", ""))
    counter, bound = [*OPERAND.findall(rest.split(")", 1)[0]), "", ""][:2]
    end = integer(asked, bound)
    direction = next((each for each in ("LT", "LE") if f"direction={each}" in rest), "")
    if code != "compare" or not direction or end is None:
        logging.warning("a loop of the compiled program counts as one turn: its end is not to be seen")
        return 1
    step, index = 1, element(asked, counter)
    done, root = parsed(body)
    code, rest = done.get(root, ("", ""))
    results = OPERAND.findall(rest.split(")", 1)[0]) if code == "tuple" else []
    if index is not None and index < len(results):
        name = results[index]
        while done.get(name, ("", ""))[0] == "copy":
            name = OPERAND.findall(done[name][1])[0]
        code, rest = done.get(name, ("", ""))
        operands = OPERAND.findall(rest.split(")", 1)[0])
        if code == "add" and index in (element(done, each) for each in operands):
            step = max((integer(done, each) or 1 for each in operands), default=1)
    return max(math.ceil((end + (direction == "LE")) / step), 1)


def repetitions(lines: Mapping[str, Sequence[str]], entry: str) -> dict[str, int]:
    """How often a step runs each computation.

    The layers are a loop, and the compiler makes further ones. It notes how often one turns, or else `turns` tells.
    """
    callers: dict[str, list[tuple[str, int]]] = {}
    for caller, own in lines.items():
        for line in own:
            each = 1
            if loop := _LOOP.search(line):
                noted = _TRIPS.findall(line)
                each = int(noted[0]) if noted else turns(lines.get(loop[1], ()), lines.get(loop[2], ()))
            for several, single in _CALLED.findall(line):
                for name in (several or single).split(", "):
                    callers.setdefault(name.lstrip("%"), []).append((caller, each))
    times = {entry: 1}

    def count(name: str) -> int:
        if name not in times:
            times[name] = sum(count(caller) * each for caller, each in callers.get(name, ()))
        return times[name]

    return {name: count(name) for name in lines}


def group_size(line: str, chips: int) -> int:
    """How many chips do a collective together, by its replica groups: {{0,1},...}, [64,4]<=[256] or axes of a mesh."""
    found = _GROUPS.search(line)
    if found is None:
        return chips
    listed, sized, axes, taken = found.groups()
    if listed:
        return listed.count(",") + 1
    if sized:
        return int(sized)
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes))
    named = re.findall(r"'([^']+)'", taken)
    return math.prod(int(sizes[name]) for name in named) if named and ":" not in taken else chips


def bytes_of(dtype: str) -> int:
    """Bytes of one number of an HLO type."""
    bits = re.search(r"\d+", dtype)
    return max(int(bits[0]) // 8, 1) if bits else 1  # pred


def collectives(text: str, chips: int) -> Iterator[Operation]:
    """The collectives of a program, each once, in the order of the text."""
    for _, operation in named_collectives(text, chips):
        yield operation


def channel(name: str, line: str) -> str:
    """What tells a collective from others: its channel, or else the name of its line."""
    found = _CHANNEL.search(line)
    return f"channel {found[1]}" if found else name


def _joined(lines: Mapping[str, Sequence[str]], computation: str, name: str) -> list[tuple[str, str]]:
    """The arrays that an operand of a collective was joined of, end to end; [] where it was not."""
    matches = (RESULT.match(line) for line in lines[computation])
    found = next((match for match in matches if match and match[1] == name), None)
    if found is None:
        return []
    operands = OPERAND.findall(found[4].partition(")")[0])
    if found[3] == "concatenate":
        types = {each[1]: each[2] for row in lines[computation] if (each := RESULT.match(row))}
        return [array for operand in operands for array in _ARRAY.findall(types.get(operand, ""))]
    if found[3] == "fusion" and (called := _CALLED.search(found[4])):
        inner = (called[1] or called[2]).lstrip("%")
        root = next((row for row in lines.get(inner, ()) if row.lstrip().startswith("ROOT ")), "")
        return _joined(lines, inner, each[1]) if (each := RESULT.match(root)) else []
    return _joined(lines, computation, operands[0]) if found[3] in ("bitcast", "copy") and operands else []


def _apart(
    lines: Mapping[str, Sequence[str]], computation: str, line: str, arrays: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The arrays of a reduction; one that was joined of several is given as these."""
    operands = OPERAND.findall(line.partition("all-reduce")[2].partition("(")[2].partition(")")[0])
    if len(operands) != len(arrays):
        return arrays
    parts = [_joined(lines, computation, operand) or [array] for operand, array in zip(operands, arrays, strict=True)]
    return [array for each in parts for array in each]


def named_collectives(text: str, chips: int) -> Iterator[tuple[str, Operation]]:
    """(`channel`, collective) for the collectives of a program, each once, in the order of the text."""
    lines, entry = computations(text)
    times = repetitions(lines, entry)
    seen: set[tuple[str, ...]] = set()
    for name, own in lines.items():
        for line in own:
            operation = _OPERATION.search(line)
            if operation is None:
                continue
            arrays = _ARRAY.findall(operation[1])
            if operation[3] and operation[2] in ("all-gather", "collective-permute", "reduce-scatter"):
                # What starts one returns its operands, its results, and for permutes two counters.
                counters = 2 if operation[2] == "collective-permute" else 0
                arrays = arrays[: len(arrays) - counters]
                arrays = arrays[len(arrays) // 2 :]
            # A TPU's compiler spreads a collective over several fusions; all of them name its channel.
            if operation[2] == "all-reduce":
                arrays = _apart(lines, name, line, arrays)
            own_name = line.split(" = ")[0].split()[-1].lstrip("%")
            if _CHANNEL.search(line):
                key = (channel(own_name, line), operation[2], *(f"{dtype}[{sizes}]" for dtype, sizes in arrays))
                if key in seen:
                    continue
                seen.add(key)
            shapes = tuple((dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in arrays)
            yield channel(own_name, line), Operation(operation[2], shapes, times[name], group_size(line, chips))
