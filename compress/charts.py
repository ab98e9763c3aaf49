"""The report's pictures: matplotlib draws them as SVG that takes its colours and its font from the page around it.

Colours are drawn as stand-ins and then replaced by CSS variables, so one picture serves light and dark. Text stays text.
"""

import html
import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from compress.units import milliseconds, size

INK, MUTED, LINE, ACCENT, OTHER, PAPER = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", ACCENT: "accent", OTHER: "other", PAPER: "paper"}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}

NARROW = 6.0  # inches

# Where a label may stand: points away from its point, and in which direction.
DISTANCES = (9, 16, 26, 38, 52, 70)
FAR = 26  # beyond this a thin line leads to the point
DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))

Model = dict[str, Any]


def draw(picture: Callable[[Axes, Sequence[Model]], None], models: Sequence[Model], label: str, width: float, height: float) -> str:
    """One picture as an `<svg>` element of `width` × `height` inches (72 units each), described by `label` for who cannot see it."""
    name = f"{picture.__name__}{round(width * 10)}"
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        picture(axes, models)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(file.getvalue(), name, label)


def _inline(svg: str, name: str, label: str) -> str:
    """An SVG file as an element of a page: no declarations, no fixed size or font, the page's colours, ids that no other picture has."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg))
    wanted = {one or other for one, other in used}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in wanted else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]+"', svg)
    assert box
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-label="{html.escape(label)}">'
    return opening + svg[svg.index(">") + 1 :].strip()


def pareto(axes: Axes, models: Sequence[Model]) -> None:
    """Accuracy against latency; a bubble's area is the file's size, the line is the front: nothing is both faster and better.

    A narrow picture has the models' numbers, from 1, in place of their names: the page has to say whose they are.
    """
    latency = [model["latency_ms"]["median"] for model in models]
    accuracy = [model["quality"]["accuracy"] * 100 for model in models]
    intervals = [model["quality"]["accuracy_interval"] or [model["quality"]["accuracy"]] * 2 for model in models]
    largest = max(model["bytes"] for model in models)
    best = front(latency, accuracy)
    axes.step([latency[one] for one in best], [accuracy[one] for one in best], where="post", color=ACCENT, linewidth=1.2, alpha=0.6)
    for number, model in enumerate(models):
        low, high = (100 * end for end in intervals[number])
        colour = ACCENT if number in best else OTHER
        axes.vlines(latency[number], low, high, color=colour, linewidth=1.2, alpha=0.45)
        axes.scatter(latency[number], accuracy[number], s=30 + 500 * model["bytes"] / largest, color=colour, alpha=0.3, linewidth=0)
        axes.scatter(latency[number], accuracy[number], s=22, color=colour, linewidth=0, zorder=3)
    axes.set_xlim(min(latency) / 2.2, max(latency) * 2.2)
    lowest, highest = 100 * min(low for low, _ in intervals), 100 * max(high for _, high in intervals)
    spare = 0.18 * max(highest - lowest, 1.0)
    axes.set_ylim(lowest - spare, highest + spare)
    axes.set_xscale("log")
    _ticks(axes, float)
    axes.set_xlabel("median latency, text → label (log scale; left is faster)")
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y")
    narrow = _width(axes) < NARROW
    texts = [str(number) if narrow else f"{model['name']}\n{size(model['bytes'])}" for number, model in enumerate(models, start=1)]
    _label(axes, list(zip(latency, accuracy, strict=True)), texts, [(100 * low, 100 * high) for low, high in intervals], best)


def _width(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    assert figure
    return float(figure.get_figwidth())


def front(latency: Sequence[float], accuracy: Sequence[float]) -> list[int]:
    """The numbers of the models that no other beats in both, the fastest first."""
    best: list[int] = []
    for number in sorted(range(len(latency)), key=lambda one: (latency[one], -accuracy[one])):
        if not best or accuracy[number] > accuracy[best[-1]]:
            best.append(number)
    return best


def _label(
    axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], spans: Sequence[tuple[float, float]], line: Sequence[int]
) -> None:
    """Write each text near its point, where it covers least of points, intervals (`spans`), the front (`line`) and other texts."""
    figure = axes.get_figure(root=True)
    assert figure
    figure.draw_without_rendering()  # settles the layout, so that pixels mean something
    scale = figure.dpi / 72  # pixels a point
    pixels = axes.transData.transform(points)
    lows, highs = (axes.transData.transform([(x, span[end]) for (x, _), span in zip(points, spans, strict=True)]) for end in (0, 1))
    margin = np.array([3, 0])
    taken = [*np.hstack([lows - margin, highs + margin]), *np.hstack([pixels - 8 * scale, pixels + 8 * scale])]
    for (x, y), (right, up) in itertools.pairwise(pixels[line]):  # the front's steps: across, then up
        taken += [np.array([x, y - 2, right, y + 2]), np.array([right - 2, y, right + 2, up])]
    inside = np.array(axes.get_window_extent().extents)
    for point, pixel, text in zip(points, pixels, texts, strict=True):
        note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=9, annotation_clip=False)
        extent = np.array(note.get_window_extent().size)
        best = (math.inf, 0, 0, pixel)
        for distance, (across, up) in itertools.product(DISTANCES, DIRECTIONS):
            middle = pixel + np.array([across, up]) * (scale * distance + extent / 2)
            mine = np.concatenate([middle - extent / 2, middle + extent / 2])
            hidden = np.prod(extent) - _overlap(mine, inside)
            cost = sum(_overlap(mine, other) for other in taken) + 10 * hidden + distance / 100
            if cost < best[0]:
                best = (cost, across, distance, mine)
        _, across, distance, mine = best
        note.set(ha="center", va="center", multialignment=("center", "left", "right")[across])
        note.xyann = tuple(((mine[:2] + mine[2:]) / 2 - pixel) / scale)
        if distance > FAR:
            end = axes.transData.inverted().transform(np.clip(pixel, mine[:2], mine[2:]))
            axes.plot([point[0], end[0]], [point[1], end[1]], color=MUTED, linewidth=0.6)
        taken.append(mine)


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(np.prod(sides.clip(0)))


def distribution(axes: Axes, models: Sequence[Model]) -> None:
    """Every latency sample, a row a model: the shape, the median marked and written."""
    everything = np.log10(np.concatenate([np.ravel(model["latency_ms"]["rounds"]) for model in models]))
    low, high = everything.min() - 0.1, everything.max() + 0.1
    for row, model in enumerate(models):
        latency = model["latency_ms"]
        samples = np.log10(np.ravel(latency["rounds"]))
        parts: dict[str, Any] = axes.violinplot(samples, [row], orientation="horizontal", widths=1.1, showextrema=False, side="low")
        parts["bodies"][0].set(facecolor=ACCENT, alpha=0.35, linewidth=0)
        middle = np.log10(latency["median"])
        axes.hlines(row, samples.min(), samples.max(), color=LINE, linewidth=1)
        axes.vlines(middle, row - 0.55, row, color=ACCENT, linewidth=1.6)
        right = middle > (low + high) / 2
        axes.annotate(
            f"{model['name']}: {milliseconds(latency['median'])}",
            (samples.max() if right else samples.min(), row),
            xytext=(0, -4),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            fontsize=9,
        )
    axes.set_ylim(len(models) - 0.4, -0.7)  # the first row on top
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("latency of one text, text → label (log scale)")
    axes.grid(axis="x")
    axes.set_xlim(low, high)
    _ticks(axes, np.log10)


def _ticks(axes: Axes, scale: Callable[[float], float]) -> None:
    """1 and 3 of every power of ten of milliseconds, where `scale` puts them on the axis."""
    low, high = axes.get_xlim()
    ticks = [step * 10.0**power for power in range(-5, 7) for step in (1, 3)]
    shown = [tick for tick in ticks if low <= scale(tick) <= high]
    axes.set_xticks([scale(tick) for tick in shown], [f"{tick:g} ms" for tick in shown])
    axes.set_xticks([], minor=True)
