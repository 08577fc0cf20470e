"""A plot is well-formed SVG whose marks stand where their values are."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from recsys.report import Axis, Plot, Point, Series, bytes_text
from recsys.report.plot import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, SHAPES, TOP, WIDTH

SVG = "{http://www.w3.org/2000/svg}"


def point(x: float, y: float, spread: float = 0.0, label: str = "", hollow: bool = False) -> Point:
    return Point(x=x, y=y, low=y - spread, high=y + spread, about=f"at {x}", label=label, hollow=hollow)


def plot(*points: Point, log: bool = False, **options: object) -> Plot:
    series = [Series(name="one", number=0, points=points)]
    values: dict[str, object] = {
        "title": "t",
        "x": Axis(label="bytes", log=log),
        "y": Axis(label="auc"),
        "series": series,
    }
    return Plot(**(values | options))  # type: ignore[arg-type]


def drawn(made: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(made.svg())


def circles(made: Plot) -> list[tuple[float, float]]:
    found = drawn(made).iter(f"{SVG}circle")
    return [(float(mark.attrib["cx"]), float(mark.attrib["cy"])) for mark in found]


def texts(made: Plot) -> list[str]:
    return [str(text.text) for text in drawn(made).iter(f"{SVG}text")]


def test_plot_is_well_formed_and_names_axes_and_levels() -> None:
    made = plot(point(1, 0.5, 0.1, label="a & b"), point(9, 0.7), levels=[(0.8, "the ceiling <")])
    assert {"t", "bytes", "auc", "a & b", "the ceiling <"} <= set(texts(made))
    assert "auc against bytes" in drawn(made).attrib["aria-label"]


@pytest.mark.parametrize("log", [False, True])
def test_marks_keep_order_and_stay_within_the_axes(log: bool) -> None:
    values = [(10.0, 0.1), (100.0, 0.5), (1000.0, 0.2)]
    found = circles(plot(*(point(*value) for value in values), log=log))
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert found[1][1] < found[2][1] < found[0][1]  # y runs downwards
    assert all(LEFT < x < WIDTH - RIGHT and TOP < y < HEIGHT - BOTTOM for x, y in found)


def test_log_axis_sets_powers_equally_apart() -> None:
    places = [x for x, _ in circles(plot(*(point(10.0**power, 0.5) for power in range(4)), log=True))]
    steps = [right - left for left, right in pairwise(places)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.2)


def test_one_point_alone_has_a_place() -> None:
    assert len(circles(plot(point(5, 0.5)))) == 1
    assert len(circles(plot(point(5, 0.0), log=True))) == 1


def test_error_bar_spans_low_to_high() -> None:
    made = plot(point(1, 0.5, 0.1), point(2, 0.5))
    bars = [line for line in drawn(made).iter(f"{SVG}line") if line.attrib["class"] == "bar"]
    assert len(bars) == 1
    middle = (float(bars[0].attrib["y1"]) + float(bars[0].attrib["y2"])) / 2
    assert middle == pytest.approx(circles(made)[0][1], abs=0.11)


def test_front_is_a_staircase_to_the_right_edge() -> None:
    made = plot(point(1, 0.5), point(2, 0.6), front=[(1, 0.5), (2, 0.6)])
    (path,) = drawn(made).iter(f"{SVG}path")
    assert re.fullmatch(rf"M[\d.]+ [\d.]+H[\d.]+V[\d.]+H{WIDTH - RIGHT}", path.attrib["d"])


def test_every_mark_says_what_it_is() -> None:
    found = [mark.find(f"{SVG}title") for mark in drawn(plot(point(1, 0.5), point(2, 0.6))).iter(f"{SVG}circle")]
    assert [title is not None and title.text for title in found] == ["at 1", "at 2"]


def test_series_repeat_no_look_before_forty() -> None:
    looks = {(number % COLOURS, SHAPES[number % len(SHAPES)]) for number in range(40)}
    assert len(looks) == 40
    marks = {number: Plot.html(looked(number)) for number in range(len(SHAPES))}
    assert len(set(marks.values())) == len(SHAPES)


def looked(number: int) -> Plot:
    return plot(series=[Series(name="x", number=number, points=[point(1, 1)])])


@pytest.mark.parametrize(
    ("points", "log", "says"),
    [
        ([], False, "has no points"),
        ([point(math.nan, 1)], False, "nan has no place on the axis 'bytes'"),
        ([point(0, 1)], True, "0 has no place on the axis 'bytes'"),
        ([point(1, math.inf)], False, "inf has no place on the axis 'auc'"),
    ],
)
def test_plot_refuses_what_has_no_place(points: Sequence[Point], log: bool, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plot(*points, log=log)


def test_ticks_are_written_by_the_axis() -> None:
    made = plot(point(10_000, 0.5), point(1_000_000, 0.6), x=Axis(label="bytes", log=True, text=bytes_text))
    assert {"10 kB", "100 kB", "1 MB"} <= set(texts(made))
