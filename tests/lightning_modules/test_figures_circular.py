"""Figures of the paper `circular`: arrows point where the angles say, folds are averaged, printed numbers are shown."""

import math
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure

from datamodules.batches import Sample
from lightning_modules.figures.circular import (
    TABLE_3_ORDER,
    comparison,
    contact_sheet,
    direction_panel,
    polar_error,
)

RNG = np.random.default_rng(0)
CHOSEN = TABLE_3_ORDER[-1]


def drawn(figure):
    """Render it, so that a broken artist shows; warnings are errors here."""
    assert isinstance(figure, Figure)
    figure.savefig(BytesIO(), format="png", dpi=50)
    return figure


def arrows(ax):
    """(dx, dy) of every arrow in data coordinates."""
    return [np.subtract(text.xy, text.xyann) for text in ax.texts if text.arrow_patch is not None]


def run(configuration=CHOSEN, split="fold0", test=20.0, val=25.0, *, published=(), limit=11.6, **changes):
    module = {"class_path": "circular", "configuration": configuration, "backbone": "probing_cnn", **changes}
    summary = {"val/angular_error_deg": val} | ({} if test is None else {"test/angular_error_deg": test})
    return {
        "run_id": "a1",
        "config": {
            "seed": 1,
            "module": module,
            "data": {"dataset": "twin", "split": split, "batch_size": 32},
            "trainer": {"max_epochs": 2},
            "published": list(published),
        },
        "summary": summary,
        "history": [{"step": 5, "epoch": 0, "val/angular_error_deg": 90.0}, {"step": 9, "epoch": 1, "train/loss": 1.0}],
        "irreducible_error": None if limit is None else {"metric": "angular_error_deg", "value": limit},
    }


def bars(figure):
    """Label -> length of the bar."""
    ax = figure.axes[0]
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    return dict(zip(labels, [patch.get_width() for patch in ax.patches], strict=True))


def test_arrows_point_up_for_a_quarter_turn_and_right_for_zero():
    images = RNG.random((3, 40, 40))
    figure = drawn(direction_panel(images, np.array([math.pi / 2, math.nan, math.pi]), np.array([0.0, 1.0, 2.0])))
    (true, predicted), only_predicted, _ = (arrows(ax) for ax in figure.axes)
    assert true[0] == pytest.approx(0, abs=1e-9)
    assert true[1] < 0  # up in image coordinates
    assert predicted[0] > 0
    assert predicted[1] == pytest.approx(0, abs=1e-9)
    assert len(only_predicted) == 1


def test_panel_names_the_images_and_their_errors_and_stops_at_its_limit():
    images = RNG.random((20, 16, 16))
    figure = drawn(
        direction_panel(images, np.zeros(20), np.full(20, 6.0), sample_ids=[f"cell{i}" for i in range(20)], most=6)
    )
    assert len(figure.axes) == 6
    assert figure.axes[5].get_title() == f"cell5\n{math.degrees(2 * math.pi - 6):.0f}° off"


def test_polar_plot_puts_counter_clockwise_errors_outside_the_ring():
    target = np.array([0.1, 3.0, 6.2, math.nan])
    error = np.array([0.3, -0.5, 0.4, 0.0])
    figure = drawn(polar_error(target, (target + error) % (2 * math.pi)))
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, np.column_stack([target[:3], np.degrees(error[:3])]), atol=1e-9)
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert f"mean {np.degrees(0.4):.1f}°" in legend


def test_figures_without_any_known_direction_are_still_drawn():
    drawn(polar_error(np.array([math.nan]), np.array([1.0])))
    drawn(direction_panel(np.zeros((1, 8, 8)), np.array([math.nan]), np.array([1.0])))
    drawn(contact_sheet([]))


def test_contact_sheet_shows_ids_directions_and_unknown_directions():
    samples = [
        Sample(
            f"cell{i}_000",
            f"cell{i}",
            {"image": RNG.integers(0, 255, (1, 128, 128), np.uint8), "angle_rad": np.float32(a)},
        )
        for i, a in enumerate([0.0, math.pi / 2, math.nan])
    ]
    figure = drawn(contact_sheet(samples, columns=2))
    assert [ax.get_title() for ax in figure.axes] == ["cell0_000\n0°", "cell1_000\n90°", "cell2_000\n?"]
    assert [len(arrows(ax)) for ax in figure.axes] == [1, 1, 0]


def test_comparison_keeps_the_order_of_table_3_and_averages_folds():
    runs = [run(name, f"fold{k}", test=20 + k) for name in reversed(TABLE_3_ORDER) for k in range(4)]
    figures = comparison(runs)
    assert set(figures) == {"angular_error", "learning_curves"}
    lengths = bars(drawn(figures["angular_error"]))
    assert list(lengths) == [name.replace("_squared", "²").replace("-", " · ") for name in TABLE_3_ORDER]
    assert list(lengths.values()) == pytest.approx([21.5] * 9)
    texts = [text.get_text() for text in figures["angular_error"].axes[0].texts]
    assert texts == ["21.5 ± 1.1 (4 folds)"] * 9  # population deviation of 20, 21, 22, 23
    drawn(figures["learning_curves"])


def test_settings_of_one_configuration_are_told_apart_by_what_differs():
    runs = [run(learning_rate=rate, test=test) for rate, test in ((1e-3, 20.0), (1e-4, 30.0))]
    lengths = bars(comparison(runs)["angular_error"])
    name = "circle · sigmoid · distance²"
    assert lengths == {f"{name}, learning_rate 0.0001": 30.0, f"{name}, learning_rate 0.001": 20.0}


def test_backbones_and_the_baseline_are_named():
    baseline = run(test=33.0)
    baseline["config"]["module"] = {"class_path": "circular", "learning_rate": 0.01}
    runs = [run(backbone="resnet50", test=20.0), run(backbone="efficientnet_v2_s", test=17.0), baseline]
    assert bars(drawn(comparison(runs)["angular_error"])) == {
        "four quadrants": 33.0,
        "efficientnet_v2_s": 17.0,
        "resnet50": 20.0,
    }


def test_test_and_validation_errors_are_never_mixed():
    figure = comparison([run(test=20.0), run("circle-sigmoid-distance", test=None, val=40.0)])["angular_error"]
    assert list(bars(figure).values()) == [40.0, 25.0]
    assert "val split" in figure.axes[0].get_xlabel()


def test_printed_numbers_stand_only_beside_the_settings_they_belong_to():
    published = [
        {
            "table": "Table 3, U373",
            "match": {"module.configuration": CHOSEN},
            "metric": "test/angular_error_deg",
            "value": 21.9,
            "sd": 1.05,
        },
        {
            "table": "Table 4, U373",
            "match": {"module.backbone": "resnet50"},
            "metric": "test/angular_error_deg",
            "value": 23.77,
        },
    ]
    figure = drawn(comparison([run(published=published)])["angular_error"])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "paper, Table 3, U373" in legend
    assert not any("Table 4" in text for text in legend)
    assert "best possible on this data" in legend
    no_limit = comparison([run(limit=None)])["angular_error"].legends[0].get_texts()
    assert not any("best possible" in text.get_text() for text in no_limit)


def test_views_are_drawn_against_their_number_with_table_5():
    published = [
        {"table": "Table 5, U373", "match": {}, "metric": f"test/angular_error_deg{name}", "value": value, "sd": 3.0}
        for name, value in (("", 16.93), ("_tta2", 17.59), ("_tta14", 17.47))
    ]
    runs = [run(split=f"fold{k}", test=20.0 + k, published=published) for k in range(2)]
    for k, one in enumerate(runs):
        one["summary"] |= {"test/angular_error_deg_tta2": 19.0 + k, "test/angular_error_deg_tta14": 18.0 + k}
    ax = drawn(comparison(runs)["test_time_augmentation"]).axes[0]
    ours, printed = (container.lines[0] for container in ax.containers)
    np.testing.assert_allclose(ours.get_xydata(), [[1, 20.5], [2, 19.5], [14, 18.5]])
    np.testing.assert_allclose(printed.get_xydata(), [[1, 16.93], [2, 17.59], [14, 17.47]])


def test_learning_curves_average_the_folds_that_reached_an_epoch():
    short, long = run(split="fold0"), run(split="fold1")
    long["history"] = [{"step": 5 * e, "epoch": e, "val/angular_error_deg": 80.0 - 10 * e} for e in range(3)]
    line = drawn(comparison([short, long])["learning_curves"]).axes[0].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[0, 85.0], [1, 70.0], [2, 60.0]])


@pytest.mark.slow
def test_large_sweeps_show_the_best_settings_and_runs_without_numbers_give_no_figure():
    runs = [run(learning_rate=rate, test=10 + 1000 * rate) for rate in np.linspace(1e-4, 1e-2, 40)]
    figure = drawn(comparison(runs)["angular_error"])
    assert figure.axes[0].get_title() == "the best 24 of 40 settings"
    assert max(bars(figure).values()) < 17
    drawn(comparison(runs)["learning_curves"])
    empty = run() | {"summary": {}, "history": []}
    assert comparison([empty]) == {}
    assert comparison([]) == {}
