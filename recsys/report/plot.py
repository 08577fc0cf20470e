"""Points with error bars against two axes, as SVG: no script, no plotting library.

Series differ by colour and by shape, so that no reader needs to tell colours apart; colours are those of the page's
style, which follow the reader's light or dark setting. Every point says what it is when pointed at.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from recsys.report.labels import LINE, Box, Labels
from recsys.report.scale import Scale

WIDTH, HEIGHT = 780, 430
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 34, 56
COLOURS, SHAPES = 8, ("circle", "square", "up", "diamond", "down")  # coprime: 40 series before one repeats
RADIUS = 5.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value, its error bar from `low` to `high`, and what it is. label: written beside it; hollow: not filled."""

    x: float
    y: float
    low: float
    high: float
    about: str
    label: str = ""
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind, in the colour and shape of its `number`. linked: a thin line runs through them in order."""

    name: str
    number: int
    points: Sequence[Point]
    linked: bool = True


@dataclass(frozen=True, kw_only=True)
class Axis:
    """label: with its unit. log: powers of ten are equally far apart. text: how a tick is written."""

    label: str
    log: bool = False
    text: Callable[[float], str] = "{:.4g}".format


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Points against two axes. front: the corners of a staircase, by x. levels: (y, what it is), dashed lines across.

    Raises ValueError when there is no point, or one that is not finite, or not above 0 on a log axis.
    """

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    front: Sequence[tuple[float, float]] = ()
    levels: Sequence[tuple[float, str]] = ()
    caption: str = ""
    legend: Sequence[str] = ()

    def __post_init__(self) -> None:
        points = [point for series in self.series for point in series.points]
        if not points:
            raise ValueError(f"plot {self.title!r} has no points")
        for axis, values in (
            (self.x, [p.x for p in points]),
            (self.y, [v for p in points for v in (p.y, p.low, p.high)]),
        ):
            wrong = [value for value in values if not math.isfinite(value) or (axis.log and value <= 0)]
            if wrong:
                raise ValueError(f"plot {self.title!r}: {wrong[0]} has no place on the axis {axis.label!r}")

    def html(self) -> str:
        """A figure: the drawing, a legend of its series, a caption."""
        kinds = "".join(f"<li>{_key(series.number)}{escape(series.name)}</li>" for series in self.series)
        words = "".join(f"<li>{escape(line)}</li>" for line in self.legend)
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return f'<figure>{self.svg()}<ul class="legend">{kinds}{words}</ul>{caption}</figure>'

    def svg(self) -> str:
        """The drawing alone, well-formed XML."""
        points = [point for series in self.series for point in series.points]
        heights = [value for point in points for value in (point.low, point.high)] + [y for y, _ in self.levels]
        x = Scale.over([point.x for point in points], self.x.log, LEFT, WIDTH - RIGHT)
        y = Scale.over(heights, self.y.log, HEIGHT - BOTTOM, TOP)
        parts = [*self._axes(x, y), *self._front(x, y)]
        parts += [_line("level", LEFT, y.at(value), WIDTH - RIGHT, y.at(value)) for value, _ in self.levels]
        parts += [part for series in self.series for part in _drawn(series, x, y)]
        parts += self._labels(points, x, y)
        name = escape(f"{self.title}: {self.y.label} against {self.x.label}", quote=True)
        start = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        )
        return f'{start}<text class="title" x="{LEFT}" y="18">{escape(self.title)}</text>{"".join(parts)}</svg>'

    def _axes(self, x: Scale, y: Scale) -> Iterator[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for tick in x.ticks():
            place = x.at(tick)
            yield _line("grid", place, TOP, place, bottom)
            yield _text(place, bottom + 18, self.x.text(tick), "middle", "soft")
        for tick in y.ticks():
            place = y.at(tick)
            yield _line("grid", LEFT, place, right, place)
            yield _text(LEFT - 8, place + 4, self.y.text(tick), "end", "soft")
        yield _line("axis", LEFT, bottom, right, bottom)
        yield _line("axis", LEFT, TOP, LEFT, bottom)
        yield _text((LEFT + right) / 2, HEIGHT - 12, self.x.label, "middle")
        middle = (TOP + bottom) / 2
        yield _text(18, middle, self.y.label, "middle", turned=True)

    def _labels(self, points: Sequence[Point], x: Scale, y: Scale) -> Iterator[str]:
        """Of the levels, which are always written, and of the points that there is room for."""
        frame = Box(left=LEFT, top=TOP - LINE, right=WIDTH, bottom=HEIGHT - BOTTOM)
        marks = [Box.around(x.at(point.x), y.at(point.y), RADIUS + 1) for point in points]
        labels = Labels(frame, marks)
        for value, label in self.levels:
            place = labels.along(label, y.at(value), LEFT + 6, WIDTH - RIGHT)
            yield _text(place.left, place.baseline, label, "start", "soft")
        for point, mark in zip(points, marks, strict=True):
            beside = labels.beside(point.label, mark) if point.label else None
            if beside is not None:
                yield _text(beside.left, beside.baseline, point.label, "start")

    def _front(self, x: Scale, y: Scale) -> Iterator[str]:
        if not self.front:
            return
        steps = f"M{x.at(self.front[0][0]):.1f} {y.at(self.front[0][1]):.1f}"
        for _, (right, height) in pairwise(self.front):
            steps += f"H{x.at(right):.1f}V{y.at(height):.1f}"
        yield f'<path class="front" d="{steps}H{WIDTH - RIGHT}"/>'


# --- drawing ---


def _drawn(series: Series, x: Scale, y: Scale) -> Iterator[str]:
    """A series: its line, then for each point the bar and the mark with what it says when pointed at."""
    yield f'<g style="color:var(--s{series.number % COLOURS})">'
    if series.linked and len(series.points) > 1:
        places = " ".join(f"{x.at(point.x):.1f},{y.at(point.y):.1f}" for point in series.points)
        yield f'<polyline class="link" points="{places}"/>'
    for point in series.points:
        if point.high > point.low:
            yield _line("bar", x.at(point.x), y.at(point.low), x.at(point.x), y.at(point.high))
        yield _mark(series.number, x.at(point.x), y.at(point.y), point.hollow, point.about)
    yield "</g>"


def _mark(number: int, x: float, y: float, hollow: bool, about: str) -> str:
    r = RADIUS
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "up": ((0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)),
        "diamond": ((0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)),
        "down": ((0, 1.3 * r), (1.2 * r, -r), (-1.2 * r, -r)),
    }
    kind = "mark hollow" if hollow else "mark"
    title = f"<title>{escape(about)}</title>" if about else ""
    shape = SHAPES[number % len(SHAPES)]
    if shape == "circle":
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{title}</circle>'
    places = " ".join(f"{x + right:.1f},{y + down:.1f}" for right, down in corners[shape])
    return f'<polygon class="{kind}" points="{places}">{title}</polygon>'


def _key(number: int) -> str:
    """The mark of a series in a legend."""
    mark = _mark(number, 0, 0, False, "")
    colour = f"color:var(--s{number % COLOURS})"
    return f'<svg viewBox="-8 -8 16 16" style="{colour}" aria-hidden="true">{mark}</svg>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "", turned: bool = False) -> str:
    named = f' class="{kind}"' if kind else ""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'
