"""What a compiled step costs on a chip, kernel by kernel: bytes, FLOPs, how often it runs, and the least time of each.

A kernel is one operation of the program's text that the chip runs as a whole: a fusion, a product, a call of a library,
a copy. It reads its operands and writes its results once; of an operand that it only slices it reads the slices. What a
TPU keeps in its own fast memory costs no traffic, and what is copied there while kernels run is no kernel. Arrays of a
collective that goes on beside a kernel are handed through it, and cost it no traffic either. The least time is that of
the bytes or of the products, whichever is longer: no real kernel is faster, most are slower.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mmclip_jax.plan import hlo
from mmclip_jax.plan.topologies import Chip

KINDS = ("attention", "products", "norms", "optimizer", "other")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel: bytes and FLOPs of one run, how often a step runs it; where: JAX's name of the operation.

    still: the bytes among them that parameters and gradients make up: a larger batch moves no more of these. precision:
    of its products, see `Chip.peak_of`; computation, place: where it stands in the program.
    """

    name: str
    kind: str
    where: str
    bytes: float
    flops: float
    times: int
    still: float = 0.0
    precision: str = ""
    computation: str = ""
    place: int = 0

    def once(self, chip: Chip, grown: float = 1.0) -> float:
        """Seconds of one run at least; grown: with so many times the rows, in estimate."""
        grown = 1.0 if self.kind == "optimizer" else grown
        moved = self.still + grown * (self.bytes - self.still)
        return max(moved / chip.bandwidth, grown * self.flops / chip.peak_of(self.precision))

    def seconds(self, chip: Chip, grown: float = 1.0) -> float:
        """Seconds of a step at least."""
        return self.times * self.once(chip, grown)


_NAME = re.compile(r'op_name="([^"]*)"')
_TYPE = re.compile(r"\b(pred|[a-z]+[0-9]+\w*)\[([0-9,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_GOES_ON = re.compile(
    r"\b(?:body|condition|to_apply|branch_computations|(?:true|false)_computation)=\{?([^,}]*(?:, *%[^,}]*)*)\}?"
)
_NO_WORK = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"),
        *("after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"),
    )
)
# Both ends of what runs beside kernels: copies and slices on their way to a TPU's fast memory, collectives.
_BESIDE = re.compile(r"-(start|update|done)$")
_COLLECTIVE = re.compile(
    r"^(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast|send|"
    r"recv)(-start|-done)?$"
)
_SLICES = ("dynamic-slice", "slice", "gather")
_WINDOW = (("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))
_VIEWS = ("bitcast", "reshape", "copy", "convert", "transpose")


@dataclasses.dataclass(frozen=True)
class _Op:
    """One line of a program."""

    name: str
    types: str
    code: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return hlo.OPERAND.findall(_within(self.rest))


def _within(rest: str) -> str:
    """What stands before the bracket that ends the operands."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:place]
    return rest


def _arrays(types: str) -> list[tuple[str, tuple[int, ...], bool]]:
    """(dtype, shape, whether it lies in the chip's fast memory) of each array of a type."""
    return [
        (dtype, tuple(int(n) for n in sizes.split(",") if n), "S(1)" in layout)
        for dtype, sizes, layout in _TYPE.findall(types)
    ]


class _Program:
    """The text of a compiled program, line by line."""

    def __init__(self, text: str):
        lines, self.entry = hlo.computations(text)
        self.times = hlo.repetitions(lines, self.entry)
        self.ops: dict[str, list[_Op]] = {}
        for name, own in lines.items():
            found = (hlo.RESULT.match(line) for line in own)
            self.ops[name] = [_Op(*match.groups()) for match in found if match]
        self._by_name = {name: {op.name: op for op in ops} for name, ops in self.ops.items()}
        roots = {
            name: next((line for line in own if line.lstrip().startswith("ROOT ")), "") for name, own in lines.items()
        }
        self.roots = {name: m[1] if (m := hlo.RESULT.match(line)) else "" for name, line in roots.items()}

    def op(self, computation: str, name: str) -> _Op | None:
        """An operation by its name."""
        return self._by_name[computation].get(name)

    def run_by_themselves(self) -> list[str]:
        """The computations whose operations are kernels: the entry, loops, branches, calls; not the inside of one."""
        found, new = [self.entry], [self.entry]
        while new:
            for op in self.ops.get(new.pop(), ()):
                if op.code in ("while", "conditional", "call"):
                    named = [name for names in _GOES_ON.findall(op.rest) for name in re.split(r",\s*", names)]
                elif op.code == "async-start":
                    named = _CALLS.findall(op.rest)
                else:
                    continue
                for name in (name.lstrip("%") for name in named):
                    if name in self.ops and name not in found:
                        found.append(name)
                        new.append(name)
        return found

    def called(self, op: _Op) -> str | None:
        """The computation that a fusion consists of."""
        found = _CALLS.search(op.rest)
        return found[1] if found and found[1] in self.ops else None

    def root(self, computation: str) -> _Op | None:
        """The operation whose result is the computation's."""
        return self.op(computation, self.roots[computation])

    def parameters(self, computation: str) -> dict[int, str]:
        """The names of a fusion's parameters by their number."""
        return {int(_within(op.rest)): op.name for op in self.ops[computation] if op.code == "parameter"}

    def hands_on(self, computation: str) -> set[str]:
        """Of a fusion beside which a collective goes on: this collective, and the tuple of what the fusion hands on."""
        found = {op.name for op in self.ops[computation] if _COLLECTIVE.match(op.code)}
        root = self.root(computation)
        return found | {root.name} if found and root is not None and root.code == "tuple" else found

    def made_of(self, computation: str, name: str) -> set[str] | None:
        """The views and writes over parts that lead from a parameter to a fusion's result; None: others do, or none."""
        codes: set[str] = set()
        op = self.root(computation)
        while op is not None and op.name != name:
            if op.code not in (*_VIEWS, "dynamic-update-slice"):
                return None
            codes.add(op.code)
            op = self.op(computation, op.operands[0])
        return codes if op is not None else None

    def is_kernel(self, op: _Op) -> bool:
        """Whether the chip runs it as a kernel: it computes or copies, and does not run beside kernels."""
        if op.code in _NO_WORK or _BESIDE.search(op.code) or _COLLECTIVE.match(op.code):
            return False
        inner = self.called(op) if op.code == "fusion" else None
        root = self.root(inner) if inner else None
        return root is None or root.code != "custom-call" or "AsyncCollective" not in root.rest

    def inside(self, computation: str) -> Iterator[tuple[str, _Op]]:
        """All operations of a fusion, those of fusions inside it too, each with its computation."""
        for op in self.ops[computation]:
            yield computation, op
            if op.code == "fusion" and (more := self.called(op)):
                yield from self.inside(more)


@functools.lru_cache(maxsize=1)  # of 50 MB of text, read again for each batch of a plan
def _program(text: str) -> _Program:
    return _Program(text)


Counts = Callable[[str, tuple[int, ...]], bool]
_NUMBERS = ("f64", "f32", "f16", "bf16")


@dataclasses.dataclass(frozen=True)
class _Traffic:
    """Bytes in the chip's main memory that operations move; counts: (dtype, shape) -> whether an array is asked for."""

    program: _Program
    counts: Counts

    def size(self, types: str) -> float:
        """Bytes of the arrays of a type."""
        return sum((self._bytes(*each) for each in _arrays(types)), 0.0)

    def _bytes(self, dtype: str, shape: tuple[int, ...], fast: bool) -> float:
        """Bytes of an array; 0 in fast memory, or where it is not asked for."""
        return 0.0 if fast or not self.counts(dtype, shape) else float(hlo.bytes_of(dtype) * math.prod(shape))

    def read(self, computation: str, op: _Op) -> float:
        """Bytes that a kernel reads."""
        types = [(self.program.op(computation, name) or _Op("", "", "", "")).types for name in op.operands]
        if op.code in _SLICES:
            return self.size(op.types) + sum(map(self.size, types[1:]))
        if op.code == "dynamic-update-slice":
            return sum(map(self.size, types[1:]))
        inner = self.program.called(op) if op.code == "fusion" else None
        if inner is None:
            return sum(map(self.size, types))
        total = 0.0
        for number, name in self.program.parameters(inner).items():
            whole = self.size(types[number]) if number < len(types) else 0.0
            total += min(whole, self._touched(inner, name, whole)) if whole else 0.0
        return total

    def _touched(self, computation: str, name: str, whole: float) -> float:
        """Bytes of a fusion's operand that it reads: the slices, where it only takes slices or writes over some."""
        if name == self.program.roots[computation]:
            return whole
        total, handed_on = 0.0, self.program.hands_on(computation)
        for op in self.program.ops[computation]:
            if name not in op.operands or op.name in handed_on:
                continue
            if op.code in _SLICES and op.operands[0] == name:
                total += self.size(op.types)
            elif op.code == "dynamic-update-slice" and op.operands[0] == name:
                total += 0.0 if self._only_returned(computation, op.name) else whole
            elif op.code in _VIEWS:
                total += self._touched(computation, op.name, whole)
            elif op.code == "fusion" and (inner := self.program.called(op)):
                parameters = self.program.parameters(inner)
                for place, operand in enumerate(op.operands):
                    if operand == name:
                        total += self._touched_within(computation, op, inner, parameters[place], whole)
            else:
                return whole
        return total

    def _touched_within(self, computation: str, op: _Op, inner: str, name: str, whole: float) -> float:
        """The same for an operand of a fusion within the fusion; name: of its parameter there."""
        codes = self.program.made_of(inner, name)
        if codes is None:
            return self._touched(inner, name, whole)
        if "dynamic-update-slice" not in codes:
            return self._touched(computation, op.name, whole)
        return 0.0 if self._only_returned(computation, op.name) else whole

    def _only_returned(self, computation: str, name: str) -> bool:
        """Whether a fusion returns what an operation in it made, viewed or written over at most, without reading it."""
        for op in self.program.ops[computation]:
            if name not in op.operands or (op.code == "tuple" and op.name == self.program.roots[computation]):
                continue
            passes = op.code in (*_VIEWS, "dynamic-update-slice") and op.operands[0] == name
            if not passes or not self._only_returned(computation, op.name):
                return False
        return True

    def written(self, computation: str, op: _Op) -> float:
        """Bytes that a kernel writes: of a result that is written over in part, the part."""
        if op.code == "dynamic-update-slice":
            update = self.program.op(computation, op.operands[1])
            return self.size(update.types if update else op.types)
        if op.code == "custom-call":  # of a library: its workspace of bytes may never be written
            return sum(self._bytes(*each) for each in _arrays(op.types) if each[0] in _NUMBERS)
        inner = self.program.called(op) if op.code == "fusion" else None
        root = self.program.root(inner) if inner else None
        if inner is None or root is None:
            return self.size(op.types)
        # The results of the fusion say where they lie, those inside it do not.
        outside = [self._bytes(*each) for each in _arrays(op.types)]
        results = [self.program.op(inner, name) for name in root.operands] if root.code == "tuple" else [root]
        if len(results) != len(outside):
            return sum(outside)
        handed_on = self.program.hands_on(inner)
        return sum(
            min(size, self._part(inner, result)) if result is not None else size
            for size, result in zip(outside, results, strict=True)
            if not (handed_on and result is not None and (result.code == "parameter" or result.name in handed_on))
        )

    def _part(self, computation: str, op: _Op) -> float:
        """Bytes that a fusion writes for one result: the part that is written over; infinite where it is no part."""
        while op.code in _VIEWS and op.operands and (behind := self.program.op(computation, op.operands[0])):
            if behind.code == "parameter":
                break
            op = behind
        if op.code == "fusion" and (inner := self.program.called(op)):
            root = self.program.root(inner)
            return self._part(inner, root) if root is not None else math.inf
        if op.code == "dynamic-update-slice" and (update := self.program.op(computation, op.operands[1])):
            return self.size(update.types)
        return math.inf


def _numbers(name: str, text: str) -> list[int]:
    """The numbers of NAME={0,1}, or of "name":["0","1"]."""
    found = re.search(rf'\b{name}=\{{([\d,]*)\}}|"{name}":\[([^\]]*)\]', text)
    return [int(n) for n in re.findall(r"\d+", found[1] or found[2] or "")] if found else []


def _product(program: _Program, computation: str, op: _Op) -> tuple[float, str]:
    """(FLOPs, precision) of one product; (0, "") for all other operations."""
    target = re.search(r'custom_call_target="([^"]*)"', op.rest)
    call = target[1] if op.code == "custom-call" and target else ""
    library = "gemm" in call or "matmul" in call
    attention = "fmha" in call
    if op.code not in ("dot", "convolution") and not library and not attention:
        return 0.0, ""
    operands = [found for name in op.operands if (found := program.op(computation, name))]
    shapes = [array for operand in operands for array in _arrays(operand.types)[:1]]
    out = _arrays(op.types)[0]
    if len(shapes) < 2:
        return 0.0, ""
    (left, one, _), (_, two, _) = shapes[:2]
    asked = re.search(r"operand_precision\"?[=:][\[{]\"?(\w+)", op.rest)
    precision = (asked[1].lower() if asked else "default") if left == "f32" else ""
    if attention:
        # q k^T and its product with v; backward five products, of which one is the logits again.
        rows, queries, heads, width = one
        products = 5 if "ackward" in call else 2
        return 2.0 * products * rows * heads * queries * two[1] * width, ""
    if op.code == "convolution":
        return _convolution(op.rest, one, two, out[1]), precision
    contracted = _numbers("lhs_contracting_dims", op.rest) or _numbers("lhs_contracting_dimensions", op.rest)
    return 2.0 * math.prod(out[1]) * math.prod(one[n] for n in contracted), precision


def _convolution(rest: str, left: Sequence[int], right: Sequence[int], out: Sequence[int]) -> float:
    """FLOPs of a convolution [left] * [right] -> [out].

    TPUs write every product as one. The rows of a batched product are then an axis of the image whose window is as wide
    as itself and mostly beside it: only positions that lie within the image are counted.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    if labels is None:
        return 0.0
    of_left, of_right, of_out = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", rest) or ["", ""])[1]))
    axes = sorted(letter for letter in of_out if letter.isdigit())

    def along(name: str, default: str) -> list[str]:
        return window[name].split("x") if name in window else [default] * len(axes)

    flops = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    options = [along(name, default) for name, default in _WINDOW]
    for axis, stride, pad, apart, spread in zip(axes, *options, strict=True):
        before = int(pad.partition("_")[0])
        place = np.arange(out[of_out.index(axis)])[:, None] * int(stride) - before
        place = place + np.arange(right[of_right.index(axis)])[None] * int(spread)
        inside = (place >= 0) & (place < left[of_left.index(axis)] * int(apart)) & (place % int(apart) == 0)
        flops *= float(inside.sum())
    return flops


def _kind(where: str, call: str, flops: float) -> str:
    if "fmha" in call or re.search(r"/attend/|bhqc|/attend\b", where):
        return "attention"
    if flops:
        return "products"
    if "update_state" in where:
        return "optimizer"
    if re.search(r"/norm|norm_(self|cross|mlp|pre)|/(\w+/)*norm/", where):
        return "norms"
    return "other"


def _kernel(program: _Program, counts: Counts, computation: str, op: _Op, place: int) -> Kernel:
    named = _NAME.search(op.rest)
    where, call = named[1] if named else "", ""
    products = [_product(program, computation, op)]
    if op.code == "fusion" and (inner := program.called(op)):
        inside = list(program.inside(inner))
        products = [_product(program, name, each) for name, each in inside]
        names = [found[1] for _, each in inside if (found := _NAME.search(each.rest))]
        where = next((name for name, (_, each) in zip(names, inside, strict=False) if each.code == "dot"), where)
        where = where or next(iter(names), "")
    if op.code == "custom-call":
        call = (re.search(r'custom_call_target="([^"]*)"', op.rest) or ["", ""])[1]
    flops = sum(work for work, _ in products)
    precision = max(products)[1]
    everything, parameters = _Traffic(program, lambda dtype, shape: True), _Traffic(program, counts)
    moved, still = (each.read(computation, op) + each.written(computation, op) for each in (everything, parameters))
    return Kernel(
        op.name,
        _kind(where, call, flops),
        where,
        moved,
        flops,
        program.times[computation],
        still,
        precision,
        computation,
        place,
    )


def kernels(text: str, parameter: Counts = lambda dtype, shape: False) -> list[Kernel]:
    """The kernels of a compiled program, without what they send each other.

    Args:
      text: of the program.
      parameter: (dtype, shape) -> whether such an array is a parameter or a gradient, for `Kernel.still`.
    """
    program = _program(text)
    return [
        _kernel(program, parameter, name, op, place)
        for name in program.run_by_themselves()
        for place, op in enumerate(program.ops[name])
        if program.is_kernel(op)
    ]


def shares(found: Sequence[Kernel], chip: Chip, grown: float = 1.0) -> dict[str, float]:
    """Seconds of a step by kind of kernel, in the order of `KINDS`; grown: with so many times the rows."""
    sums: Mapping[str, float] = collections.defaultdict(float)
    for kernel in found:
        sums[kernel.kind] += kernel.seconds(chip, grown)  # type: ignore[index]
    return {kind: sums[kind] for kind in KINDS}


def hidden_seconds(
    text: str, found: Sequence[Kernel], chip: Chip, sending: Mapping[str, tuple[float, int]], grown: float = 1.0
) -> float:
    """Seconds of communication that the program's order puts beside kernels.

    A collective that is started, and ended later, is hidden by the kernels between. On a TPU a collective may be spread
    over fusions, those of a loop too: these hide it. A kernel hides one collective at a time, and no collective is
    hidden for longer than it takes.

    Args:
      text: of the program.
      found: its kernels.
      chip: on which it runs.
      sending: see `collectives.sending`.
      grown: the kernels have so many times the rows.
    """
    program = _program(text)
    left = {name: seconds * runs for name, (seconds, runs) in sending.items()}
    for computation in program.run_by_themselves():
        times = program.times[computation]
        free = {kernel.place: kernel.once(chip, grown) for kernel in found if kernel.computation == computation}
        taken: dict[str, float] = collections.defaultdict(float)  # of one run, in one turn
        for name, place in _beside(program, computation):
            if times and name in sending:
                seconds = min(sending[name][0] - taken[name], left[name] / times, free.get(place, 0.0))
                taken[name] += seconds
                left[name] -= times * seconds
                free[place] = free.get(place, 0.0) - seconds
    return sum(seconds * runs for seconds, runs in sending.values()) - sum(left.values())


def _beside(program: _Program, computation: str) -> Iterator[tuple[str, int]]:
    """(collective by `hlo.channel`, place of an operation that may hide it), in the program's order."""
    started: dict[str, tuple[str, int]] = {}
    for place, op in enumerate(program.ops[computation]):
        if op.code == "fusion" and (inner := program.called(op)):
            for _, each in program.inside(inner):
                if _COLLECTIVE.match(each.code):
                    yield hlo.channel(each.name, each.rest), place
        elif op.code.endswith("-start") and '"is_sync":true' not in op.rest:
            started[op.name] = (hlo.channel(op.name, op.rest), place)
        elif op.code.endswith("-done") and op.operands and op.operands[0] in started:
            name, begun = started.pop(op.operands[0])
            yield from ((name, between) for between in range(begun + 1, place))
    for name, begun in started.values():  # ended in the next turn of the loop
        yield from ((name, between) for between in range(begun + 1, len(program.ops[computation])))
