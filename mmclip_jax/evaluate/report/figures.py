"""The report's pictures: PNG data URIs of images, and charts as inline SVG that takes its colours from the page.

Charts are SVG elements without colours of their own (classes `axis`, `grid`, `line`, `faint`, `mark` and the page's
text colour), so that they follow the page into the dark and print well.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np


def png_uri(pixels: np.ndarray) -> str:
    """uint8 [H, W] or [H, W, 3] as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def roc_chart(false_rate: np.ndarray, true_rate: np.ndarray, label: str) -> str:
    """A small square ROC curve with its diagonal; `label` describes it to those who cannot see it."""
    side, pad = 120.0, 4.0
    points = _thinned_curve(false_rate, true_rate, 160)
    path = " ".join(
        f"{'L' if i else 'M'}{pad + side * x:.1f} {pad + side * (1 - y):.1f}" for i, (x, y) in enumerate(points)
    )
    area = f"{path} L{pad + side:.1f} {pad + side:.1f} Z"
    return (
        f'<svg class="plot roc" viewBox="0 0 {side + 2 * pad:g} {side + 2 * pad:g}" role="img" '
        f'aria-label="{html.escape(label)}"><rect class="axis" x="{pad}" y="{pad}" width="{side}" height="{side}"/>'
        f'<path class="area" d="{area}"/><path class="chance" d="M{pad} {pad + side} L{pad + side} {pad}"/>'
        f'<path class="line" d="{path}"/></svg>'
    )


def reliability_chart(bins: Sequence[Mapping[str, float]], label: str) -> str:
    """A small square of dots on and off the diagonal: {"rows", "probability", "share" of positives} of each bin."""
    side, pad = 120.0, 10.0
    total = sum(entry["rows"] for entry in bins)
    dots = [
        (pad + side * entry["probability"], pad + side * (1 - entry["share"]), 9 * math.sqrt(entry["rows"] / total))
        for entry in bins
    ]
    path = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y, _) in enumerate(dots))
    marks = "".join(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{max(r, 1.0):.1f}"/>' for x, y, r in dots)
    return (
        f'<svg class="plot reliability" viewBox="0 0 {side + 2 * pad:g} {side + 2 * pad:g}" role="img" '
        f'aria-label="{html.escape(label)}"><rect class="axis" x="{pad}" y="{pad}" width="{side}" height="{side}"/>'
        f'<path class="chance" d="M{pad} {pad + side} L{pad + side} {pad}"/><path class="faint" d="{path}"/>'
        f"{marks}</svg>"
    )


def line_chart(steps: Sequence[float], values: Sequence[float], label: str) -> str:
    """One curve over the training steps: every value faint, a running mean over it.

    Args:
      steps: ascending, at least two.
      values: the same length, finite.
      label: what the curve shows, for those who cannot see it.
    """
    width, height, left, right, top, bottom = 320.0, 150.0, 46.0, 10.0, 8.0, 22.0
    low, high = min(values), max(values)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = steps[0], steps[-1]

    def at(step: float, value: float) -> tuple[float, float]:
        x = left + (width - left - right) * (step - first) / max(last - first, 1e-9)
        y = top + (height - top - bottom) * (high - value) / (high - low)
        return x, y

    def path(numbers: Sequence[float]) -> str:
        places = [at(step, value) for step, value in zip(steps, numbers, strict=True)]
        return " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(places))

    parts = [
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}: from '
        f'{_number(values[0])} at step {first:g} to {_number(values[-1])} at step {last:g}">'
    ]
    for tick in ticks:
        _, y = at(first, tick)
        parts.append(f'<path class="grid" d="M{left:g} {y:.1f} H{width - right:g}"/>')
        parts.append(f'<text x="{left - 5:g}" y="{y + 3.5:.1f}" text-anchor="end">{_number(tick)}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        x, _ = at(step, low)
        parts.append(f'<text x="{x:.1f}" y="{height - 6:g}" text-anchor="{anchor}">{_number(step)}</text>')
    window = max(1, len(values) // 20)
    if window > 1:
        parts.append(f'<path class="faint" d="{path(values)}"/>')
    parts.append(f'<path class="line" d="{path(_running_mean(values, window))}"/></svg>')
    return "".join(parts)


def interval_mark(value: float, low: float, high: float, span: tuple[float, float], chance: float | None = None) -> str:
    """A dot with its interval on a scale, for a table cell whose numbers are written beside it."""
    width, height = 120.0, 16.0
    start, stop = span

    def at(number: float) -> float:
        return 4 + (width - 8) * (min(max(number, start), stop) - start) / (stop - start)

    parts = [f'<svg class="plot interval" viewBox="0 0 {width:g} {height:g}" aria-hidden="true">']
    parts.append(f'<path class="axis" d="M4 {height / 2} H{width - 4:g}"/>')
    if chance is not None:
        parts.append(f'<path class="chance" d="M{at(chance):.1f} 2 V{height - 2:g}"/>')
    if math.isfinite(low) and math.isfinite(high):
        parts.append(f'<path class="whisker" d="M{at(low):.1f} {height / 2} H{at(high):.1f}"/>')
    parts.append(f'<circle class="mark" cx="{at(value):.1f}" cy="{height / 2}" r="3.6"/></svg>')
    return "".join(parts)


def curves_of(records: Sequence[Mapping[str, object]]) -> dict[str, tuple[list[float], list[float]]]:
    """{name: (steps, values)} of the logged numbers; of a step that was logged twice the later record counts."""
    by_name: dict[str, dict[float, float]] = {}
    for record in records:
        step = record.get("step")
        if not isinstance(step, int | float):
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                by_name.setdefault(name, {})[float(step)] = float(value)
    ordered = {name: sorted(points.items()) for name, points in by_name.items()}
    return {name: ([s for s, _ in p], [v for _, v in p]) for name, p in ordered.items() if len(p) > 1}


def _thinned_curve(x: np.ndarray, y: np.ndarray, count: int) -> list[tuple[float, float]]:
    if len(x) > count:
        keep = np.unique(np.linspace(0, len(x) - 1, count).round().astype(int))
        x, y = x[keep], y[keep]
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred, over fewer values at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, stop = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    return ((total[stop] - total[start]) / (stop - start)).tolist()


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers that cover [low, high]."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    unit = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    start, stop = math.floor(low / unit + 1e-9), math.ceil(high / unit - 1e-9)
    return [i * unit for i in range(start, stop + 1)]


def _number(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"
