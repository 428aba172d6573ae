"""Figures of the paper `cfm_3d` show what they are given."""

import numpy as np
import pytest

from lightning_modules.figures.cfm_3d import comparison, force_views, volume_slices

VOXEL_UM = np.array([[0.8, 0.3, 0.3]])


def fields(count=1, size=12):
    rng = np.random.default_rng(0)
    return rng.random((count, size, size, size)), rng.standard_normal((count, 3, size, size, size))


def titles(figure):
    return [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes]


def test_slices_show_three_planes_of_prediction_and_truth():
    volume, field = fields()
    figure = volume_slices(volume, field, 2 * field, VOXEL_UM, sample_ids=["cell00_000"])
    assert len(figure.axes) == 2 * 5  # the volume, three planes and a colour bar
    expected = np.linalg.norm(field[0][:, 6], axis=0)
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), expected)
    assert figure.axes[1].images[0].get_clim() == figure.axes[6].images[0].get_clim()
    assert titles(figure)[1] == "predicted u, xy"


def test_slices_without_truth_have_one_row():
    volume, field = fields()
    figure = volume_slices(volume, field, np.full_like(field, np.nan), VOXEL_UM, sample_ids=["cell00_000"])
    assert len(figure.axes) == 5


@pytest.mark.parametrize("known", [True, False])
def test_forces_are_drawn_beside_the_true_ones(known):
    _, field = fields()
    true = field if known else np.full_like(field, np.nan)
    figure = force_views(field, true, VOXEL_UM, sample_ids=["cell00_000"])
    assert len(figure.axes) == (2 if known else 1)
    low, high = figure.axes[0].get_zlim()
    assert low > high == 0  # z goes down into the gel
    assert figure.axes[0].get_zlabel() == "z (µm)"


def test_every_view_says_its_own_longest_arrow():
    _, field = fields()
    longest = np.linalg.norm(field[0], axis=0).max()
    figure = force_views(3 * field, field, VOXEL_UM, sample_ids=["cell00_000"])
    assert titles(figure) == [
        f"cell00_000: {kind} force\nlongest arrow {value:.2g} N/m³"
        for kind, value in (("predicted", 3 * longest), ("true", longest))
    ]


def test_without_true_force_the_predicted_ones_are_drawn_to_their_own_scale():
    """A cell on a surface exerts none inside the gel: arrows in units of it would leave the picture."""
    _, field = fields()
    alone, beside = (
        force_views(1e8 * field, true, VOXEL_UM, sample_ids=["cell00_000"]).axes[0].collections[0]._segments3d
        for true in (np.full_like(field, np.nan), 0 * field)
    )
    np.testing.assert_allclose(np.array(beside), np.array(alone))


def test_a_volume_without_force_is_drawn():
    _, field = fields()
    assert force_views(0 * field, 0 * field, VOXEL_UM, sample_ids=["cell00_000"]).axes


def run(name, error, seconds, dataset="twin"):
    summary = {
        "test/displacement_median_error_vx": error,
        "test/body_force_relative_l2": 10 * error,
        "test/zero_displacement_median_error_vx": 1.0,
        "test/seconds_per_volume": seconds,
    }
    config = {"module": {"class_path": f"lightning_modules.cfm_3d.{name}"}, "data": {"dataset": dataset}}
    return {"config": config, "summary": summary}


def test_the_comparison_draws_errors_and_times():
    runs = [run("Slow", 0.2, 1.0), run("Slow", 0.1, 2.0), run("Quick", 0.05, 0.1), run("Quick", 0.3, 0.1, "sparse")]
    figures = comparison(runs)
    assert set(figures) == {"errors", "error_against_time"}
    lines = {line.get_label(): line.get_xydata().tolist() for line in figures["error_against_time"].axes[0].lines}
    assert lines["Slow, twin"] == [[1.0, 0.2], [2.0, 0.1]]
    heights = sorted(bar.get_height() for bar in figures["errors"].axes[0].patches if np.isfinite(bar.get_height()))
    assert heights == [0.05, 0.1, 0.3]  # the best of each method and data set


def test_data_sets_named_after_a_number_become_a_line():
    runs = [run("Slow", 0.3, 1.0, "density_0.0025"), run("Slow", 0.1, 1.0, "density_0.01"), run("Quick", 0.2, 1.0)]
    runs += [run("Quick", 0.05, 1.0, "density_0.01"), run("Slow", 0.4, 1.0, "photons_50")]
    figures = comparison(runs)
    assert set(figures) == {"errors", "error_against_time", "error_against_density"}  # one number makes no line
    displacement, force = figures["error_against_density"].axes
    lines = {line.get_label(): line.get_xydata() for line in displacement.lines}
    assert lines["Slow"].tolist() == [[0.0025, 0.3], [0.01, 0.1]]
    np.testing.assert_array_equal(lines["Quick"], [[0.0025, np.nan], [0.01, 0.05]])
    assert {line.get_label(): line.get_ydata().tolist() for line in force.lines}["Slow"] == [3.0, 1.0]
    assert [tick.get_text() for tick in figures["errors"].axes[0].get_xticklabels()] == ["photons_50", "twin"]
    figures["error_against_density"].canvas.draw()
    assert {"0.1", "0.2"} <= {tick.get_text() for tick in displacement.get_yticklabels()}


def test_tests_that_differ_in_the_force_alone_are_one_point_in_time():
    figures = comparison([run("Slow", 0.2, 1.0), run("Slow", 0.2, 3.0), run("Slow", 0.1, 2.0)])
    (line,) = figures["error_against_time"].axes[0].lines
    assert line.get_xydata().tolist() == [[1.0, 0.2], [2.0, 0.1]]


def test_runs_without_a_test_are_not_compared():
    assert comparison([{"config": run("Slow", 1, 1)["config"], "summary": {}}]) == {}
