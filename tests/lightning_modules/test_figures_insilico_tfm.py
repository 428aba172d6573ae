"""Figures of the paper `insilico_tfm`: the published frame in our layout, time series, what runs differ in."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_modules.figures.calibration import calibration_plot, sparsification_plot
from lightning_modules.figures.force_maps import BORDER_PX, PANELS, uncertainty_panels
from lightning_modules.figures.force_movies import error_over_time, pixel_over_time
from lightning_modules.figures.insilico_tfm import comparison, force_figures

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "insilico_tfm"
PUBLISHED = REAL / "digitised_frame0_20160810-002-xy6.npz"
FRAMES, SIDE = 5, 40


def drawn(figure: Figure) -> Figure:
    """Render it, so that a broken artist shows; warnings are errors here."""
    assert isinstance(figure, Figure)
    figure.savefig(BytesIO(), format="png", dpi=50)
    return figure


def titled(figure: Figure) -> dict[str, np.ndarray]:
    """Title -> what is shown in the map of that name."""
    return {
        ax.get_title(): np.ma.filled(ax.images[0].get_array(), np.nan)
        for ax in figure.axes
        if ax.get_title() and ax.images
    }


def limits(figure: Figure) -> dict[str, tuple[float, float]]:
    return {ax.get_title(): ax.images[0].get_clim() for ax in figure.axes if ax.get_title() and ax.images}


# -- the published frame ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    """The test cell's first frame, read back from the colours of a published figure."""
    if not PUBLISHED.is_file():
        pytest.skip("the published frame, read back from its figure, is not here")
    with np.load(PUBLISHED) as file:
        return {name: np.asarray(file[name], dtype=np.float64) for name in file}


def test_the_published_parts_of_the_variance_add_up(published: dict[str, np.ndarray]) -> None:
    """Eq. 3; what is left is the reading of colours."""
    sd = published["force_std"]
    parts = np.hypot(published["std_epistemic"], published["std_aleatoric"])
    deviation = np.abs(parts - sd)[sd > 10] / sd[sd > 10]
    assert deviation.size > 5000
    assert np.median(deviation) == pytest.approx(0.03, abs=0.015)
    assert np.median(published["std_epistemic"] / sd) < 0.5  # the paper: nearly all of it is aleatoric


def test_the_published_frame_in_our_layout(published: dict[str, np.ndarray]) -> None:
    maps = {
        "image": published["raw"],
        "true_pa": published["force_true"],
        "mean_pa": published["force_pred"],
        "sd_pa": published["force_std"],
        "epistemic_sd_pa": published["std_epistemic"],
        "aleatoric_sd_pa": published["std_aleatoric"],
        "coefficient_of_variation": published["cv"],
        "entropy_bits": published["entropy"],
    }
    pixel_um = 0.2 * float(published["pixel_step_in_original_px"])
    figure = drawn(uncertainty_panels(maps, pixel_size_um=pixel_um, title="0 s"))
    shown = titled(figure)
    assert list(shown) == [panel.title for panel in PANELS]
    for panel in PANELS:
        inner = maps[panel.key][BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
        np.testing.assert_allclose(shown[panel.title], inner)


# -- panels -----------------------------------------------------------------------------------------------------------


def maps() -> dict[str, np.ndarray]:
    y, x = np.mgrid[:30, :44] / 10
    force = 50 * np.exp(-((y - 1.5) ** 2) - (x - 2) ** 2)
    epistemic, aleatoric = 0.1 * force + 1, 0.5 * force + 2
    return {
        "image": 200 + force,
        "true_pa": force,
        "mean_pa": 3 * force,
        "sd_pa": np.hypot(epistemic, aleatoric),
        "epistemic_sd_pa": epistemic,
        "aleatoric_sd_pa": aleatoric,
        "coefficient_of_variation": aleatoric / (force + 1),
        "entropy_bits": np.log2(aleatoric) - 2,
    }


def test_maps_that_are_compared_share_their_colours() -> None:
    known = limits(drawn(uncertainty_panels(maps(), pixel_size_um=0.2, title="c$_1")))
    assert known["true traction"] == known["predicted traction, mean"]
    assert known["true traction"][1] == pytest.approx(50, rel=0.05)
    assert known["standard deviation"] == known["epistemic part"] == known["aleatoric part"]
    assert known["coefficient of variation"][0] == 0


@pytest.mark.parametrize(
    "missing", [["true_pa"], ["true_pa", "sd_pa", "epistemic_sd_pa", "aleatoric_sd_pa"], ["image"]]
)
def test_what_is_unknown_is_said(missing: list[str]) -> None:
    known: dict[str, np.ndarray | None] = {**maps(), missing[0]: np.full((30, 44), np.nan)}
    known |= dict.fromkeys(missing[1:])
    figure = drawn(uncertainty_panels(known, pixel_size_um=np.nan, title="own"))
    blank = [ax for ax in figure.axes for text in ax.texts if text.get_text() == "unknown"]
    assert len(blank) == len(missing)
    with pytest.raises(ValueError, match="maps must hold an image or a mean_pa"):
        uncertainty_panels({}, pixel_size_um=0.2, title="")


@pytest.mark.slow
def test_a_pixels_series_is_in_order_of_time_with_its_bands_inside_each_other() -> None:
    time = np.array([60.0, 0.0, 30.0])
    levels = np.array([1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0])
    series = {"bands_pa": levels[:, None] + time / 30, "mean_pa": 7 + time, "entropy_bits": time}
    series |= {"true_pa": np.array([9.0, 7.0, 8.0]), "time_s": time}
    figure = drawn(pixel_over_time(**series, pixel=(3, 4)))
    force, entropy = figure.axes
    edges = [band.get_paths()[0].vertices[:, 1] for band in force.collections]
    spans = [(edge.min(), edge.max()) for edge in edges]
    assert spans == [(1.0, 14.0), (2.0, 12.0), (4.0, 10.0)]
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in force.lines}
    np.testing.assert_array_equal(lines["true"], [7, 8, 9])
    np.testing.assert_array_equal(lines["mean"], [7, 37, 67])
    np.testing.assert_array_equal(lines["median"], [6, 7, 8])
    np.testing.assert_array_equal(entropy.lines[0].get_xdata(), [0, 30, 60])


def test_errors_over_time_are_one_line_per_cell_with_mean_and_deviation() -> None:
    time, groups = np.array([0.0, 30.0, 0.0, 30.0]), ["a", "a", "b$", "b$"]
    figure = drawn(error_over_time({"mean": np.array([1.0, 3.0, 5.0, 5.0])}, time_s=time, groups=groups, name="MAE"))
    labels = [str(line.get_label()) for line in figure.axes[0].lines]
    assert labels == ["a, mean: 2 ± 1 Pa", r"b\$, mean: 5 ± 0 Pa"]
    unknown = drawn(error_over_time({"mean": np.full(4, np.nan)}, time_s=time * np.nan, groups=groups, name="MAE"))
    assert unknown.axes[0].get_xlabel() == "frame"
    assert not unknown.axes[0].lines


def test_errors_of_many_cells_are_their_mean_and_deviation_at_every_time() -> None:
    """As figure 4; a time that one cell alone has is in that cell's line only."""
    groups = [cell for cell in "abcde" for _ in range(2)] + ["a"]
    time, error = np.array([0.0, 30.0] * 5 + [60.0]), np.array([1, 2, 2, 2, 3, 2, 4, 2, 5, 7, 99.0])
    figure = drawn(error_over_time({"mean": error}, time_s=time, groups=groups, name="MAE"))
    (mean,) = (line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_"))
    np.testing.assert_array_equal(mean.get_xdata(), [0, 30])
    np.testing.assert_allclose(mean.get_ydata(), [3, 3])
    assert str(mean.get_label()) == f"5 cells, mean: {error.mean():.3g} ± {error.std():.2g} Pa"
    assert len(figure.axes[0].lines) == 6
    edge = figure.axes[0].collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([edge[:, 1].min(), edge[:, 1].max()], [1, 5])  # 3 ± 2 at 30 s
    alone = error_over_time({"mean": error[:4]}, time_s=np.arange(4.0), groups=list("abcd"), name="MAE")
    assert drawn(alone).axes[0].lines


def test_calibration_and_sparsification_state_their_areas() -> None:
    levels = np.linspace(0.05, 0.95, 19)
    assert drawn(calibration_plot(levels, levels + 0.02)).axes[0].get_title() == "mean distance 0.020"
    share = np.linspace(0, 1, 101)
    figure = drawn(sparsification_plot(share, np.ones(101), 1 - share))
    assert figure.axes[0].get_title() == "area 0.500"


def frames(**changes: np.ndarray) -> dict[str, Figure]:
    rng = np.random.default_rng(0)
    log_force = rng.uniform(0, 4, (FRAMES, SIDE, SIDE))
    spread = {name: np.ones((FRAMES, SIDE, SIDE)) for name in ("aleatoric_sd_pa", "epistemic_sd_pa")}
    spread |= {name: rng.random((FRAMES, SIDE, SIDE)) for name in ("coefficient_of_variation", "entropy_bits")}
    forces = {name: np.exp(log_force) for name in ("median_pa", "mean_pa")}
    time_s = 2160.0 * np.arange(FRAMES)
    errors = {"time_s": time_s, **{f"mae_{name}_pa": rng.random(FRAMES) for name in ("mean", "median")}}
    series = {name: rng.random(FRAMES) for name in ("mean_pa", "entropy_bits", "true_pa")}
    series |= {"pixel": (3, 4), "bands_pa": rng.random((7, FRAMES)), "time_s": time_s}
    curves = {"calibration": np.tile(np.linspace(0.1, 0.9, 9), (2, 1)), "sparsification": rng.random((3, 20))}
    given = {
        **{"log_image": 5 + rng.random((FRAMES, SIDE, SIDE)), "log_force": log_force},
        **{"maps": {**forces, **spread}, "curves": curves, "pixel_size_um": np.full(FRAMES, 0.2)},
        **{"time_s": time_s, "sample_ids": [f"s{i}" for i in range(FRAMES)], "groups": ["cell"] * FRAMES},
        **{"errors": errors, "cells": ["cell"] * FRAMES, "pixel": series},
    }
    return {name: drawn(figure) for name, figure in force_figures(**{**given, **changes}).items()}


@pytest.mark.slow
def test_a_movie_gets_all_figures_and_figure_2_the_published_time() -> None:
    figures = frames()
    assert set(figures) == {"uncertainty", "frames", "pixel", "error", "calibration", "sparsification"}
    assert figures["uncertainty"].texts[0].get_text() == "s2, 4320 s"


@pytest.mark.parametrize("lacking", ["calibration", "sparsification"])
def test_a_first_cell_without_force_beside_others_costs_one_curve_alone(lacking: str) -> None:
    curves = {"calibration": np.tile(np.linspace(0.1, 0.9, 9), (2, 1)), "sparsification": np.ones((3, 20))}
    del curves[lacking]
    figures = frames(curves=curves)
    assert {"calibration", "sparsification"} - set(figures) == {lacking}


def test_single_images_of_unknown_truth_get_the_maps_alone() -> None:
    unknown = np.full(FRAMES, np.nan)
    errors = {"time_s": unknown, **{f"mae_{name}_pa": unknown for name in ("mean", "median")}}
    force = np.ones((FRAMES, SIDE, SIDE))
    blank = dict.fromkeys(("aleatoric_sd_pa", "epistemic_sd_pa", "coefficient_of_variation", "entropy_bits"))
    figures = frames(
        log_force=np.full((FRAMES, SIDE, SIDE), np.nan),
        maps={"median_pa": force, "mean_pa": force, **blank},
        curves={},
        errors=errors,
        pixel=None,
        time_s=unknown,
    )
    assert set(figures) == {"uncertainty"}


# -- runs -------------------------------------------------------------------------------------------------------------


def run_of(coverage: float | None = None, *, kind: str = "BayesianTractionRegression", data=None, **module) -> dict:
    """A tested run; `coverage` is that of the 95 % interval, the others scale with it."""
    settings = {"class_path": f"lightning_modules.insilico_tfm.{kind}", "dropout_rate": 0.2, "growth": 12, **module}
    summary = {"test/mae_median_foreground_pa": 15.0, "test/mae_mean_pa": 3.0, "test/crps_foreground_pa": 11.0}
    if coverage is not None:
        levels = (50, 68, 90, 95)
        summary |= {f"test/coverage_{percent}_foreground": coverage * percent / 95 for percent in levels}
    published = [
        {"table": "figure 4", "match": {"data.dataset": "ht1080"}, "metric": "test/mae_mean_pa", "value": 50.57}
    ]
    config = {"module": settings, "data": {"dataset": "twin", **(data or {})}, "published": published}
    return {"config": config, "summary": summary}


def test_coverage_is_drawn_against_what_was_swept_and_nothing_else() -> None:
    runs = [run_of(0.90, dropout_rate=0.1), run_of(0.92, dropout_rate=0.1), run_of(0.97, dropout_rate=0.4)]
    runs.append({**run_of(), "summary": {"val/loss": 1.0}})
    figures = comparison(runs)
    assert set(figures) == {"calibration_against_dropout_rate", "errors"}
    ax = drawn(figures["calibration_against_dropout_rate"]).axes[0]
    last = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"][-1]
    np.testing.assert_allclose(last.get_xdata(), [0.1, 0.4])
    np.testing.assert_allclose(last.get_ydata(), [0.91 - 0.95, 0.97 - 0.95], atol=1e-12)


def test_one_pass_without_draws_has_its_place_beside_them() -> None:
    figures = comparison([run_of(0.8, draws=None), run_of(0.9, draws=1), run_of(0.95, draws=20)])
    ax = drawn(figures["calibration_against_draws"]).axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["none", "1", "20"]
    salted = [run_of(0.8, data={"salt_image_probability": share}) for share in (0.0, 0.5)]
    assert "calibration_against_salt_image_probability" in comparison(salted)


def test_methods_are_named_and_the_papers_number_stands_only_by_the_papers_cells() -> None:
    runs = [
        run_of(0.9, draws=20),
        run_of(loss="squared_error"),
        run_of(kind="ZeroForce"),
        run_of(kind="ConstantForce", statistic="median", cell_grey=None),
        run_of(kind="ConstantForce", statistic="mean", cell_grey=100.0, data={"dataset": "ht1080"}),
    ]
    figure = drawn(comparison(runs)["errors"])
    ax = figure.axes[0]
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["Tiramisu, 20 draws", "deterministic", "no force", "median", "mean of the cell"]
    marks = [line for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert [(round(float(m.get_xdata()[0])), float(m.get_ydata()[0])) for m in marks] == [(4, 50.57)]
    assert comparison([runs[0]]) == {}
