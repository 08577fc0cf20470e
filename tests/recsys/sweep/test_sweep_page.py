"""The page of a sweep says what every row is, shows every failure, and stands at any stage of the sweep."""

import json
from xml.etree import ElementTree

import pytest

from features.prepared import Prepared
from recsys.config import RunConfig
from recsys.sweep.outcome import Outcome
from recsys.sweep.page import Story, page, table_rows, values
from recsys.sweep.plan import Cell
from recsys.sweep.summary import Limits, Summary
from tests.recsys.sweep.outcomes import cell, ended, finished
from tests.recsys.sweep.small_sweep import small_sweep

Told = dict[Cell, Outcome]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    made: tuple[RunConfig, Prepared] = small_sweep(tmp_path_factory.mktemp("pages"))
    return Story(command="recsys compress sweep a.toml --methods 'hash,<b>'", config=made[0], prepared=made[1])


def outcomes() -> Told:
    found: Told = {}
    for seed in (1, 2, 3):
        for size, precision in ((10_000, "float32"), (5_000, "float16"), (3_000, "int8"), (1_500, "int4")):
            found[cell("dense", "", precision, seed)] = finished(0.8 + seed / 1000, size, 1.0, training=11_000)
        found[cell("hash", "10%", "float32", seed)] = finished(0.7 + seed / 500, 1_000, 1.5)
        found[cell("unified", "10%", "float32", seed)] = finished(0.75, 990, 3.5, peak_bytes=10**9)
        found[cell("ttrec", "1%", "float32", seed)] = ended("unreachable", "the minimum is 240B & more")
    found[cell("robe", "1%", "float32", 1)] = ended("failed", "the loss is nan")
    return found


def summary(found: Told, higher: bool = True) -> Summary:
    return Summary.of(found, list(found), "auc", higher, 10_000)


def html(found: Summary, story: Story) -> str:
    return page(found, [found.advise("10%", Limits(bytes=1000))], story).html()


def test_page_shows_every_row_and_every_reason(story: Story) -> None:
    text = html(summary(outcomes()), story)
    for shown in ("collisionless", "unified", "the minimum is 240B &amp; more", "the loss is nan", "1, 2, 3"):
        assert shown in text
    assert "unified at 10%, float32: validation auc 0.7500 ± 0.0000 (3 seeds)." in text
    assert "hash,&lt;b&gt;" in text
    assert "18 runs finished, 4 did not, 0 are still to come." in text
    assert "every row" in text  # the protocol
    assert '<td class="number">1 GB</td>' in text  # the peak


def test_page_plots_three_costs_with_every_finished_row(story: Story) -> None:
    text = html(summary(outcomes()), story)
    drawings = [part.partition("</svg>")[0] for part in text.split("<figure>")[1:] if "close up" not in part]
    assert len(drawings) == 3
    for drawing in drawings:
        svg = ElementTree.fromstring(drawing + "</svg>")
        kinds = [mark.attrib.get("class", "") for mark in svg.iter()]
        assert sum(kind.startswith("mark") for kind in kinds) == 6
        assert kinds.count("mark hollow") == 3  # float16, int8, int4
        assert kinds.count("level") == kinds.count("front") == 1


def test_rows_that_lie_on_each_other_are_shown_close_up(story: Story) -> None:
    spread: Told = {cell("dense", "", "float32"): finished(0.8, 10_000)}
    spread |= {cell(f"mypkg.tables:T{n}"): finished(0.8 + n / 1000, 900 + n) for n in range(6)}
    spread |= {cell(f"mypkg.tables:F{n}"): finished(0.6 - n / 10, 800 + n) for n in range(3)}
    assert html(summary(spread), story).count("close up: the best 6 rows") == 2 * 3  # drawn, and read aloud
    near = {name: outcome for name, outcome in spread.items() if not name.method.startswith("mypkg.tables:F")}
    assert "close up" not in html(summary(near), story)


def test_page_stands_before_anything_has_finished(story: Story) -> None:
    found = Summary.of({}, list(outcomes()), "auc", True, 10_000)
    text = html(found, story)
    assert "0 runs finished, 0 did not, 22 are still to come." in text
    assert "No run has finished yet." in text


def test_page_is_a_function_of_what_was_found(story: Story) -> None:
    assert html(summary(outcomes()), story) == html(summary(outcomes()), story)


def test_lower_is_better_is_said(story: Story) -> None:
    assert "(lower is better)" in html(summary(outcomes(), higher=False), story)


def test_rows_for_a_terminal_are_the_finished_ones() -> None:
    rows = table_rows(summary(outcomes()))
    assert [row["method"] for row in rows] == ["collisionless"] * 4 + ["hash", "unified"]
    assert rows[-1] == {
        "method": "unified", "budget": "10%", "precision": "float32", "test": "0.7600 ± 0.0000",
        "validation": "0.7500 ± 0.0000", "served": "1.09 kB", "of float32": "9.9%", "µs/id": "0.035",
        "training": "5 kB", "seeds": "3",
    }  # fmt: skip


def test_values_are_json_and_complete() -> None:
    found = summary(outcomes())
    told = json.loads(json.dumps(values(found, [found.advise("10%", Limits(bytes=1000))]), allow_nan=False))
    assert len(told["rows"]) == 6
    assert [(left["method"], left["seeds"]) for left in told["unfinished"]] == [("ttrec", [1, 2, 3]), ("robe", [1])]
    assert told["recommends"][0]["best"] == "unified at 10%, float32"
    assert told["rows"][4]["validation"]["mean"] == pytest.approx(0.704)
