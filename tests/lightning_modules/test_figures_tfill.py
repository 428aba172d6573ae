"""Overlays pixel by pixel, the panels, and the paper's figures from runs that the test writes."""

import csv
import math

import numpy as np
import pytest
from matplotlib.image import imsave

from datamodules.batches import Sample
from lightning_modules.figures.nuclei_overlays import (
    BOTH_RGB,
    GENERATED_RGB,
    REAL_RGB,
    bar_um,
    outlines,
    overlay_rgb,
    scale_bar,
    side_by_side,
)
from lightning_modules.figures.tfill import comparison, contact_sheet, translation_panel

SIZE = 64


def square(top, left, side=10, number=1):
    labels = np.zeros((SIZE, SIZE), dtype=np.int64)
    labels[top : top + side, left : left + side] = number
    return labels


def test_outlines_are_the_border_pixels_of_every_nucleus():
    labels = square(5, 5) + square(5, 15, number=2)  # they touch
    edge = outlines(labels)
    assert edge.sum() == 2 * (10 * 10 - 8 * 8)
    assert not edge[6:14, 6:14].any()
    assert edge[5:15, 14:16].all()
    whole = np.ones((4, 4), dtype=int)
    assert not outlines(whole).any()  # the picture's border is no outline


def test_generated_is_red_real_is_blue_and_both_are_violet():
    picture = overlay_rgb(np.full((SIZE, SIZE), 0.5), square(5, 5), square(5, 10), pixel_size_um=1.0)
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[8, 5]) == GENERATED_RGB
    assert tuple(picture[8, 19]) == REAL_RGB
    assert tuple(picture[5, 12]) == BOTH_RGB
    assert len({*picture[30, 30].tolist()}) == 1  # elsewhere grey
    alone = overlay_rgb(np.zeros((SIZE, SIZE)), square(5, 5), None, pixel_size_um=1.0)
    assert not (alone == REAL_RGB).all(axis=-1).any()


@pytest.mark.parametrize(("width", "pixel_um", "length_um"), [(384, 0.4151, 20.0), (128, 1.2454, 20.0), (64, 0.1, 1.0)])
def test_the_bar_is_as_long_as_it_says(width, pixel_um, length_um):
    assert bar_um(width, pixel_size_um=pixel_um) == length_um
    rows, columns = scale_bar((width, width), pixel_size_um=pixel_um)
    assert (columns.stop - columns.start) * pixel_um == pytest.approx(length_um, abs=pixel_um / 2)
    assert rows.stop <= width
    black = np.zeros((width, width), dtype=int)
    picture = overlay_rgb(black.astype(float), black, None, pixel_size_um=pixel_um)
    assert (picture > 0).all(axis=-1).sum() == (rows.stop - rows.start) * (columns.stop - columns.start)


def test_three_pictures_in_a_row_unknown_ones_black():
    row = side_by_side(np.full((4, 5), 0.2), np.full((4, 5), np.nan), np.ones((4, 5)))
    assert row.shape == (4, 15, 3)
    assert [row[0, place, 0] for place in (0, 5, 10)] == [51, 0, 255]


def test_the_panel_has_a_row_per_image_and_names_the_bar():
    images = np.random.default_rng(0).random((2, SIZE, SIZE))
    overlays = [overlay_rgb(image, square(5, 5), None, pixel_size_um=1.0) for image in images]
    unknown = np.full_like(images, np.nan)
    figure = translation_panel(images, unknown, images, overlays, pixel_size_um=[1.0, 1.0], sample_ids=["a", "b_$"])
    assert len(figure.axes) == 8
    assert figure.axes[3].get_xlabel() == "bar 10 µm"
    assert [ax.get_ylabel() for ax in figure.axes[::4]] == ["a", "b_$"]
    figure.canvas.draw()


def test_the_sheet_shows_at_most_twelve_samples():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    samples = [Sample(f"s{i}", "g", {"actin": image, "nucleus": image}) for i in range(20)]
    figure = contact_sheet(samples)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(titles) == 12
    assert (titles[0], titles[-1]) == ("s0", "s19")
    assert len(contact_sheet([Sample("s", "g", {"actin": image})]).axes) == 1


def run(kind, folder=None, dataset="twin", **summary):
    module = {"class_path": f"lightning_modules.tfill.{kind}", "alpha": summary.pop("alpha", 10.0)}
    best = {"metric": "matched_4um", "value": 0.93, "others": {"matched_1um": 0.27, "detection_rate": 1.0}}
    numbers = {f"test/{name}": value for name, value in summary.items()}
    return {
        "run_id": f"{kind}-{len(numbers)}",
        "config": {"module": module, "data": {"data_root": "x", "dataset": dataset}, "seed": 0},
        "summary": numbers,
        "history": [{}],
        "irreducible_error": best,
        "folder": folder,
        "parameters": {"generator": 1_250_000, "back": 1_000_000, "discriminator": 2_000_000},
    }


def predicted(folder, distances_um, grey):
    """A run's predictions as `mechanolab predict` leaves them."""
    test = folder / "predictions" / "test"
    test.mkdir(parents=True)
    with (test / "nuclei.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "group", "kind", "distance_um"])
        writer.writerows(["s", "g", "generated", distance] for distance in distances_um)
        writer.writerow(["s", "g", "real", math.nan])
    parts = [np.full((8, 8), value) for value in (0.1, 0.5, grey)]
    imsave(test / "s%201_side_by_side.png", side_by_side(*parts))
    return folder


def test_the_table_has_a_row_per_run_and_the_best_possible():
    numbers = {"l1": 0.1, "matched_4um": 0.7, "matched_1um": math.nan}
    figures = comparison([run("TFillTranslation", **numbers), run("Pix2PixTranslation", l1=0.2, f1=0.5)])
    assert set(figures) == {"figure_2e"}
    (table,) = figures["figure_2e"].axes[0].tables
    cells = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    heads = {text: column for (row, column), text in cells.items() if row == 0 and column >= 0}
    assert [cells[row, -1] for row in (1, 2, 3)] == ["TFill", "pix2pix", "best possible"]
    assert [cells[row, heads["< 4 µm"]] for row in (1, 2, 3)] == ["70.0%", "–", "93.0%"]
    assert cells[1, heads["< 1 µm"]] == "–"
    assert cells[2, heads["F1"]] == "0.500"
    assert [cells[row, heads["weights (M)"]] for row in (1, 3)] == ["1.25 + 3.00", ""]
    (table,) = comparison([{**run("TFillTranslation", l1=0.1), "parameters": None}])["figure_2e"].axes[0].tables
    assert not any(cell.get_text().get_text() == "weights (M)" for cell in table.get_celld().values())


def test_runs_of_one_method_are_told_apart_by_their_settings():
    figures = comparison([run("TFillTranslation", f1=0.5, alpha=alpha) for alpha in (1.0, 10.0)])
    (table,) = figures["figure_2e"].axes[0].tables
    labels = [cell.get_text().get_text() for (_, column), cell in table.get_celld().items() if column == -1]
    assert labels[:2] == ["TFill, alpha 1.0", "TFill, alpha 10.0"]


def test_distances_and_strips_come_from_the_predictions(tmp_path):
    runs = [
        run("CycleGANTranslation", predicted(tmp_path / "b", [2.1], 0.7), f1=0.6),
        run("TFillTranslation", predicted(tmp_path / "a", [0.1, 0.3, 5.0, math.nan], 0.9), f1=0.5),
        run("Pix2PixTranslation", tmp_path / "nothing", f1=0.1),
    ]
    figures = comparison(runs)
    assert set(figures) == {"figure_2e", "figure_3", "figure_2d"}
    coarse, fine = figures["figure_3"].axes
    shares = coarse.patches[1].get_data().values
    np.testing.assert_allclose(shares[:3], [0.5, 0.25, 0.0])  # of four, the unmatched one included
    np.testing.assert_allclose(fine.patches[1].get_data().values[:2], [0.25, 0.25])
    strip = figures["figure_2d"].axes
    assert [ax.get_title() for ax in strip] == ["actin", "real", "TFill", "CycleGAN"]
    greys = [float(ax.images[0].get_array()[0, 0, 0]) for ax in strip]
    np.testing.assert_allclose(greys, [0.1, 0.5, 0.9, 0.7], atol=0.005)
    for figure in figures.values():
        figure.canvas.draw()


def labels_of(figure):
    (table,) = figure.axes[0].tables
    return [cell.get_text().get_text() for (_, column), cell in sorted(table.get_celld().items()) if column == -1]


def test_many_runs_of_one_method_leave_the_others_their_rows():
    many = [run("TFillTranslation", f1=0.9 - 0.01 * number, alpha=float(number)) for number in range(20)]
    runs = [*many, run("Pix2PixTranslation", f1=0.2), run("CycleGANTranslation", f1=0.1)]
    labels = labels_of(comparison(runs)["figure_2e"])
    assert labels[:14] == [f"TFill, alpha {number}.0" for number in range(14)]
    assert labels[14:] == ["pix2pix", "CycleGAN"]


def test_runs_on_different_data_share_no_strip_and_no_limit(tmp_path):
    runs = [
        run("TFillTranslation", predicted(tmp_path / "far", [0.1], 0.3), dataset="other", f1=0.9),
        run("TFillTranslation", predicted(tmp_path / "a", [0.1], 0.9), f1=0.8, alpha=1.0),
        run("TFillTranslation", predicted(tmp_path / "b", [0.1], 0.8), f1=0.7, alpha=3.0),
        run("Pix2PixTranslation", predicted(tmp_path / "c", [0.1], 0.7), f1=0.6),
    ]
    runs[0]["irreducible_error"] = {"metric": "f1", "value": 0.5}
    runs[1]["irreducible_error"] = {"metric": "f1", "value": 0.95}
    runs[2]["irreducible_error"] = runs[3]["irreducible_error"] = runs[1]["irreducible_error"]
    figures = comparison(runs)
    assert labels_of(figures["figure_2e"])[4:] == ["best possible (other)", "best possible (twin)"]
    strip = figures["figure_2d"].axes
    greys = [float(ax.images[0].get_array()[0, 0, 0]) for ax in strip]
    np.testing.assert_allclose(greys, [0.1, 0.5, 0.9, 0.7], atol=0.005)


def test_runs_without_numbers_draw_nothing():
    assert comparison([run("TFillTranslation")]) == {}
    assert comparison([]) == {}
