"""Figures: what is drawn, what is written, and that it does not depend on or change a notebook's matplotlib."""

import struct
import subprocess
import sys

import numpy as np
import pytest

from common.plotting import (
    COLUMN_WIDTH,
    METHODS,
    PAGE_WIDTH,
    Line,
    curve,
    legend,
    legend_below,
    level,
    logarithmic_step_axis,
    new_figure,
    panel_title,
    save,
    shade_transition,
    step_axis,
)

STEPS = [0, 200_000, 1_000_000]
VALUES = [[0.5, 0.5, 0.9], [0.5, 0.6, 1.0], [0.5, 0.9, 1.0]]


def example():
    figure, axes = new_figure()
    curve(axes[0, 0], STEPS, VALUES, METHODS["progressive"])
    step_axis(axes[0, 0])
    panel_title(axes[0, 0], "(a) student")
    legend(axes[0, 0], seeds=3)
    return figure


def chunks(png):
    """Names of the chunks of a PNG."""
    position = 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        yield png[position + 4 : position + 8].decode()
        position += length + 12


def test_a_curve_is_the_mean_and_the_band_is_the_range():
    axis = example().axes[0]
    (line,) = axis.lines
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([STEPS, np.mean(VALUES, axis=0)]))
    (band,) = axis.collections
    corners = band.get_paths()[0].vertices
    for step, low, high in zip(STEPS, np.min(VALUES, axis=0), np.max(VALUES, axis=0), strict=True):
        at_step = corners[corners[:, 0] == step, 1]
        assert (at_step.min(), at_step.max()) == (low, high)


def test_a_curve_has_the_line_of_its_method():
    (line,) = example().axes[0].lines
    expected = METHODS["progressive"]
    assert (line.get_label(), line.get_color(), line.get_linestyle(), line.get_marker()) == (
        expected.label,
        expected.colour,
        expected.dashes,
        expected.marker,
    )


def test_the_legend_has_no_frame_and_says_what_the_band_is():
    shown = example().axes[0].get_legend()
    assert not shown.get_frame_on()
    assert shown.get_title().get_text() == "mean and range\nof 3 seeds"
    assert [text.get_text() for text in shown.get_texts()] == ["progressive"]


def test_one_seed_has_no_band_to_explain():
    _, axes = new_figure()
    curve(axes[0, 0], STEPS, VALUES[:1], METHODS["teacher"])
    legend(axes[0, 0], seeds=1)
    assert axes[0, 0].get_legend().get_title().get_text() == ""


def test_steps_are_short():
    axis = example().axes[0]
    write = axis.xaxis.get_major_formatter()
    assert [write(step) for step in (0, 50, 2500, 200_000, 1e6, 2.5e6)] == ["0", "50", "2.5k", "200k", "1M", "2.5M"]
    assert axis.get_xlim() == (0, 1_000_000)


def test_a_level_is_the_mean_and_the_band_is_the_range():
    _, axes = new_figure()
    level(axes[0, 0], [0.5, 0.9, 0.7], METHODS["one-shot"])
    (line,) = axes[0, 0].lines
    np.testing.assert_allclose(line.get_ydata(), 0.7)
    (band,) = axes[0, 0].patches
    np.testing.assert_allclose((band.get_y(), band.get_y() + band.get_height()), (0.5, 0.9))


def test_few_points_are_all_marked():
    _, axes = new_figure()
    curve(axes[0, 0], STEPS, VALUES, METHODS["progressive"], mark_every_point=True)
    assert axes[0, 0].lines[0].get_markevery() is None  # every point


def test_logarithmic_steps_are_short_and_have_no_room_beside_them():
    figure, axes = new_figure()
    logarithmic_step_axis(axes[0, 0], "teacher's steps", 50, 3000)
    figure.draw_without_rendering()
    ticks = axes[0, 0].get_xticks()
    labels = [text.get_text() for text in axes[0, 0].get_xticklabels()]
    shown = [label for tick, label in zip(ticks, labels, strict=True) if 50 <= tick <= 3000]
    assert shown == ["50", "100", "200", "500", "1k", "2k"]
    assert axes[0, 0].get_xlim() == (50, 3000)


def test_the_legend_below_names_every_label_once():
    figure, axes = new_figure(columns=2)
    for axis, method in zip(axes[0], ("ce", "progressive"), strict=True):
        curve(axis, STEPS, VALUES, METHODS[method])
        shade_transition(axis, 100, 200)
    legend_below(figure, 3, "mean of 3 seeds")
    (shown,) = figure.legends
    assert [text.get_text() for text in shown.get_texts()] == ["cross entropy", "transition", "progressive"]
    assert shown.get_title().get_text() == "mean of 3 seeds"
    figure.draw_without_rendering()
    assert shown.get_window_extent().y1 < min(axis.get_tightbbox().y0 for axis in axes[0])


def test_every_method_has_a_line_of_its_own():
    assert len({line.label for line in METHODS.values()}) == len(METHODS)
    assert len({(line.colour, line.dashes, line.marker) for line in METHODS.values()}) == len(METHODS)
    assert len({(line.dashes, line.marker) for line in METHODS.values()}) == len(METHODS)  # apart in grey


@pytest.mark.parametrize("width", [COLUMN_WIDTH, PAGE_WIDTH])
def test_a_figure_has_its_size_and_axes(width):
    figure, axes = new_figure(columns=2, rows=3, width=width, height=4)
    assert figure.get_size_inches().tolist() == [width, 4]
    assert axes.shape == (3, 2)
    assert axes[0, 0].xaxis.label.get_size() == 8


def test_saving_writes_the_same_bytes_without_metadata(tmp_path):
    save(example(), tmp_path / "a.png")
    save(example(), tmp_path / "b.png")
    png = (tmp_path / "a.png").read_bytes()
    assert png == (tmp_path / "b.png").read_bytes()
    assert set(chunks(png)) == {"IHDR", "pHYs", "IDAT", "IEND"}
    assert struct.unpack(">I", png[16:20]) == (round(300 * COLUMN_WIDTH),)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_picture_for_a_screen_has_fewer_dots(tmp_path):
    save(example(), tmp_path / "a.png", dots_per_inch=100)
    assert struct.unpack(">I", (tmp_path / "a.png").read_bytes()[16:20]) == (round(100 * COLUMN_WIDTH),)


def test_a_line_can_be_anything():
    _, axes = new_figure()
    curve(axes[0, 0], STEPS, VALUES, Line("degree 1", "#123456", "-."))
    assert axes[0, 0].lines[0].get_linestyle() == "-."


def test_pyplot_and_the_global_style_are_left_alone(tmp_path):
    code = f"""
import sys, matplotlib
before = dict(matplotlib.rcParams.copy())
from common.plotting import new_figure, save
save(new_figure()[0], {str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
assert dict(matplotlib.rcParams.copy()) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
