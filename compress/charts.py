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

from compress.report_tables import is_share, score
from compress.units import milliseconds, significant, size

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

DASHES = ("-", "--", "-.", ":")

# Where a label may stand: points away from its bubble, and in which direction.
DISTANCES = (3, 9, 18, 30, 44, 62)
FAR = 18  # beyond this a thin line leads to the point
DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1))

Model = dict[str, Any]
Picture = Callable[[Axes, Sequence[Model]], None]


def draw(picture: Picture, models: Sequence[Model], label: str, width: float, height: float) -> str:
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
    """Quality against latency; the line is the front: nothing is both faster and better.

    A bubble's area is the file's size, a diamond is a peer.

    A narrow picture has the models' numbers, from 1, in place of their names: the page has to say whose they are.
    """
    name = score(models[0])[0]
    scale = 100 if is_share(models[0]) else 1
    latency = [model["latency_ms"]["median"] for model in models]
    accuracy = [score(model)[1] * scale for model in models]
    intervals = [score(model)[2] or [score(model)[1]] * 2 for model in models]
    spans = [(scale * low, scale * high) for low, high in intervals]
    largest = max(model["bytes"] for model in models)
    areas = [30 + 500 * model["bytes"] / largest for model in models]  # square points
    best = front(latency, accuracy)
    axes.step([latency[one] for one in best], [accuracy[one] for one in best], where="post", color=ACCENT, linewidth=1.2, alpha=0.6)
    for number, model in enumerate(models):
        low, high = spans[number]
        colour, marker = ACCENT if number in best else OTHER, "D" if model.get("peer") else "o"
        axes.vlines(latency[number], low, high, color=colour, linewidth=1.2, alpha=0.45)
        axes.scatter(latency[number], accuracy[number], s=areas[number], color=colour, alpha=0.3, linewidth=0)
        face = PAPER if model.get("peer") else colour
        axes.scatter(latency[number], accuracy[number], s=24, marker=marker, facecolor=face, edgecolor=colour, linewidth=1.2, zorder=3)
    axes.set_xlim(min(latency) / 2.2, max(latency) * 2.2)
    lowest, highest = min(low for low, _ in spans), max(high for _, high in spans)
    spare = 0.18 * max(highest - lowest, 0.01 * scale)
    axes.set_ylim(lowest - spare, highest + spare)
    axes.set_xscale("log")
    _ticks(axes, float)
    axes.set_xlabel("median latency, text → answer (log scale; left is faster)")
    axes.set_ylabel(name if scale == 1 else f"{name}, %")
    axes.grid(axis="y")
    narrow = _width(axes) < NARROW
    texts = [str(number) if narrow else f"{model['name']}\n{size(model['bytes'])}" for number, model in enumerate(models, start=1)]
    label_points(axes, list(zip(latency, accuracy, strict=True)), texts, spans, areas, best)


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


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    spans: Sequence[tuple[float, float]],
    areas: Sequence[float],
    line: Sequence[int],
    fontsize: float = 9,
    colours: Sequence[str] = (),
) -> None:
    """Write each text near its point, where it covers least of points, intervals (`spans`), the front (`line`) and other texts.

    `colours`: one a text (default: the ink of the page).
    """
    figure = axes.get_figure(root=True)
    assert figure
    figure.draw_without_rendering()  # settles the layout, so that pixels mean something
    scale = figure.dpi / 72  # pixels a point
    pixels = axes.transData.transform(points)
    lows, highs = (axes.transData.transform([(x, span[end]) for (x, _), span in zip(points, spans, strict=True)]) for end in (0, 1))
    margin = np.array([3, 0])
    radii = np.sqrt(np.asarray(areas) / math.pi)  # points
    around = (radii * scale)[:, None]
    taken = [*np.hstack([lows - margin, highs + margin]), *np.hstack([pixels - around, pixels + around])]
    for (x, y), (right, up) in itertools.pairwise(pixels[line]):  # the front's steps: across, then up
        taken += [np.array([x, y - 2, right, y + 2]), np.array([right - 2, y, right + 2, up])]
    inside = np.array(axes.get_window_extent().extents)
    for point, pixel, radius, text, colour in zip(points, pixels, radii, texts, colours or [INK] * len(texts), strict=True):
        note = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", fontsize=fontsize, color=colour, annotation_clip=False)
        extent = np.array(note.get_window_extent().size)
        best = (math.inf, 0, 0, pixel)
        for distance, (across, up) in itertools.product(DISTANCES, DIRECTIONS):
            middle = pixel + np.array([across, up]) * (scale * (radius + distance) + extent / 2)
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
            axes.plot([point[0], end[0]], [point[1], end[1]], color=colour if colours else MUTED, linewidth=0.6)
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
        colour = OTHER if model.get("peer") else ACCENT
        parts["bodies"][0].set(facecolor=colour, alpha=0.35, linewidth=0)
        middle = np.log10(latency["median"])
        axes.hlines(row, samples.min(), samples.max(), color=LINE, linewidth=1)
        axes.vlines(middle, row - 0.55, row, color=colour, linewidth=1.6)
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
    axes.set_xlabel("latency of one text, text → answer (log scale)")
    axes.grid(axis="x")
    axes.set_xlim(low, high)
    _ticks(axes, np.log10)


def scatter(axes: Axes, models: Sequence[Model]) -> None:
    """Answers against the truth, a mark a text: rings for the first model, dots for the last; the line is where the two are equal."""
    shown = [models[0], *models[1:][-1:]]
    for number, model in enumerate(shown):
        truth, answers = np.transpose(model["quality"]["points"])
        last = number == len(shown) - 1
        face, edge = (ACCENT, "none") if last else ("none", OTHER)
        axes.scatter(truth, answers, s=16 if last else 26, facecolor=face, edgecolor=edge, linewidth=0.8, alpha=0.6)
    if all("errors" in model["quality"] for model in shown):  # cosines are on another scale than scores
        truth = np.concatenate([np.transpose(model["quality"]["points"])[0] for model in shown])
        axes.plot([truth.min(), truth.max()], [truth.min(), truth.max()], color=LINE, linewidth=1.2, zorder=0)
    axes.set_xlabel("score in the data")
    axes.set_ylabel("answer")
    axes.grid(axis="y")


def bands(axes: Axes, models: Sequence[Model]) -> None:
    """Median latency against the middle of each band of lengths, the band's interval as a bar; the first model is the baseline."""
    for number, model in enumerate(models):
        middles = [sum(band["tokens"]) / 2 for band in model["bands"]]
        medians = [band["median_ms"] for band in model["bands"]]
        colour = _line(axes, middles, medians, number, len(models))
        for middle, band in zip(middles, model["bands"], strict=True):
            if band["interval"]:
                axes.vlines(middle, *band["interval"], color=colour, linewidth=1.2, alpha=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    spans = sorted({tuple(band["tokens"]) for model in models for band in model["bands"]})
    axes.set_xticks([sum(span) / 2 for span in spans], [f"{low}–{high}" for low, high in spans])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens of the text (log scale)")
    axes.set_ylabel("median latency, ms")
    _decades(axes)
    _ends(axes, models, [(sum(model["bands"][-1]["tokens"]) / 2, model["bands"][-1]["median_ms"]) for model in models])


def sweep(axes: Axes, models: Sequence[Model]) -> None:
    """Texts a second against the batch, with the threads and processes that were fastest at each."""
    ends = []
    for number, model in enumerate(models):
        best: dict[int, float] = {}
        for one in model["throughput_sweep"]:
            best[one["batch"]] = max(best.get(one["batch"], 0.0), one["texts_per_second"])
        batches = sorted(best)
        _line(axes, batches, [best[batch] for batch in batches], number, len(models))
        ends.append((batches[-1], best[batches[-1]]))
    everything = sorted({one["batch"] for model in models for one in model["throughput_sweep"]})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(everything, [str(batch) for batch in everything])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("texts in a batch (log scale)")
    axes.set_ylabel("texts a second")
    _decades(axes)
    _ends(axes, models, ends)


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], number: int, count: int) -> str:
    """One model's line: ours to be told apart by dashes, the last in the accent."""
    colour = ACCENT if number == count - 1 else OTHER
    axes.plot(x, y, color=colour, linewidth=1.6, marker="o", markersize=3.5, linestyle=DASHES[number % len(DASHES)])
    return colour


def _ends(axes: Axes, models: Sequence[Model], ends: Sequence[tuple[float, float]]) -> None:
    """Write each name right of the end of its line, apart from the others."""
    figure = axes.get_figure(root=True)
    assert figure
    narrow = _width(axes) < NARROW
    notes = [
        axes.annotate(
            str(number) if narrow else model["name"],
            end,
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
        for number, (model, end) in enumerate(zip(models, ends, strict=True), start=1)
    ]
    figure.draw_without_rendering()
    scale, lowest = figure.dpi / 72, -math.inf
    for note, end in sorted(zip(notes, ends, strict=True), key=lambda pair: pair[1][1]):
        pixel = float(axes.transData.transform(end)[1])
        placed = max(pixel, lowest + 13 * scale)
        note.xyann = (9, (placed - pixel) / scale)
        lowest = placed


def _decades(axes: Axes) -> None:
    """1, 3, 10 … on a logarithmic y axis."""
    low, high = axes.get_ylim()
    shown = [step * 10.0**power for power in range(-5, 9) for step in (1, 3) if low <= step * 10.0**power <= high]
    axes.set_yticks(shown, [significant(tick, 1) for tick in shown])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y")


def _ticks(axes: Axes, scale: Callable[[float], float]) -> None:
    """1 and 3 of every power of ten of milliseconds, where `scale` puts them on the axis."""
    low, high = axes.get_xlim()
    ticks = [step * 10.0**power for power in range(-5, 7) for step in (1, 3)]
    shown = [tick for tick in ticks if low <= scale(tick) <= high]
    axes.set_xticks([scale(tick) for tick in shown], [f"{tick:g} ms" for tick in shown])
    axes.set_xticks([], minor=True)
