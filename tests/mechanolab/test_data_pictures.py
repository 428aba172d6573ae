"""The picture of any data set: what is drawn is what the arrays hold, whatever their rank, unit and extent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from datamodules.batches import Sample
from datamodules.shards.lists import padded
from datamodules.shards.schema import Field
from datamodules.shards.writer import write_dataset
from mechanolab import data
from mechanolab.data_pictures import MOST_SAMPLES, contact_sheet

pytestmark = pytest.mark.slow


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sheet(*fields: tuple[str, str, str, Any], samples: int = 1) -> Figure:
    """The sheet of samples that all hold these (name, unit, axes, values), rendered once so that nothing is lazy."""
    values = {name: np.asarray(array) for name, _, _, array in fields}
    described = {n: Field(values[n].shape, values[n].dtype.name, unit, axes) for n, unit, axes, _ in fields}
    figure = contact_sheet(described, [Sample(f"cell{number}", "g", values) for number in range(samples)])
    figure.savefig(io.BytesIO(), format="png")
    return figure


def panels(figure: Figure) -> dict[str, Axes]:
    return {title: ax for ax in figure.axes if (title := ax.get_title(loc="left"))}


def drawn(ax: Axes) -> np.ndarray:
    (image,) = ax.get_images()
    return np.asarray(image.get_array())


def texts(figure: Figure) -> str:
    return " ".join(text.get_text().replace("\xa0", " ") for text in figure.texts)


def units_of_bars(figure: Figure) -> list[str]:
    return [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]


@pytest.mark.parametrize(
    ("axes", "shape", "project"),
    [
        ("cyx", (1, 5, 7), lambda a: a[0]),
        ("yx", (5, 7), lambda a: a),
        ("zyx", (4, 5, 7), lambda a: a.max(axis=0)),
        ("czyx", (1, 4, 5, 7), lambda a: a[0].max(axis=0)),
    ],
)
def test_images_and_volumes_are_shown_between_their_percentiles(
    axes: str, shape: tuple[int, ...], project: Any
) -> None:
    values = rng().integers(0, 60000, shape, dtype=np.uint16)
    figure = sheet(("image", "photon", axes, values))
    (title, ax), *others = panels(figure).items()
    assert not others
    assert title.startswith("image (photon)")
    assert ("maximum along z" in title) == ("z" in axes)
    assert np.array_equal(drawn(ax), project(values))
    assert ax.get_images()[0].get_clim() == pytest.approx(tuple(np.percentile(project(values), (0.5, 99.5))))
    assert units_of_bars(figure) == ["photon"]


def test_a_vector_field_is_a_map_of_its_size_with_arrows_along_it() -> None:
    field = np.stack([np.full((44, 44), 3.0), np.full((44, 44), -4.0)]).astype(np.float32)  # right and up
    (ax,) = panels(sheet(("traction_pa", "Pa", "cyx", field))).values()
    assert np.allclose(drawn(ax), 5.0)
    (quiver,) = [artist for artist in ax.get_children() if isinstance(artist, Quiver)]
    assert len(quiver.U) == 11 * 11
    assert np.allclose(quiver.U / quiver.V, 3 / -4)
    assert (quiver.V < 0).all()  # up on the page is towards smaller rows
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_every_small_spot_of_traction_has_its_arrow() -> None:
    field = np.zeros((2, 104, 104), np.float32)
    spots = [(13, 40), (50, 81), (97, 5)]
    for y, x in spots:
        field[0, y, x] = -500.0
    (ax,) = panels(sheet(("traction_pa", "Pa", "cyx", field))).values()
    (quiver,) = [artist for artist in ax.get_children() if isinstance(artist, Quiver)]
    assert sorted((int(y), int(x)) for x, y in quiver.XY) == spots
    assert (quiver.U < 0).all()
    assert np.allclose(quiver.V, 0)


def test_a_displacement_of_a_volume_is_taken_where_it_is_largest() -> None:
    field = np.zeros((3, 4, 6, 6), np.float32)
    field[:, 2] = np.array([0.0, 2.0, 1.0])[:, None, None]
    field[:, 0] = np.array([1.0, 0.0, 0.0])[:, None, None]
    (title, ax), *_ = panels(sheet(("displacement_um", "um", "czyx", field))).items()
    assert "largest along z" in title
    assert np.allclose(drawn(ax), np.sqrt(5))
    (quiver,) = [artist for artist in ax.get_children() if isinstance(artist, Quiver)]
    assert np.allclose(quiver.U, 0)
    assert (quiver.V > 0).all()


def test_channels_that_are_no_vectors_are_shown_one_by_one() -> None:
    values = rng().random((5, 4, 4))
    shown = panels(sheet(("stains", "1", "cyx", values)))
    assert [title.split("\n")[1] for title in shown] == [f"c = {number} of 5" for number in range(3)]
    for number, ax in enumerate(shown.values()):
        assert np.array_equal(drawn(ax), values[number])


def test_lists_are_outlines_on_the_first_image_as_far_as_they_go() -> None:
    corners = np.array([[1, 1], [5, 1], [5, 4]], np.float32)
    outline, length = padded(corners, 8)
    figure = sheet(
        ("displacement_um", "um", "cyx", np.ones((2, 6, 7))),
        ("image", "grey level", "cyx", np.zeros((1, 6, 7), np.uint8)),
        ("cell_px", "px", "nc", outline),
        ("cell_px_length", "1", "", length),
        ("nucleus_px", "px", "nc", corners / 2),
    )
    shown = panels(figure)
    assert list(shown) == ["displacement_um (um)", "image (grey level)"]
    assert not shown["displacement_um (um)"].lines
    first, second = shown["image (grey level)"].lines
    assert np.array_equal(first.get_xydata(), [*corners, corners[0]])
    assert (first.get_label(), second.get_label()) == ("cell_px", "nucleus_px")
    assert "length" not in texts(figure)


def test_a_list_without_image_is_drawn_alone_with_y_down() -> None:
    (ax,) = panels(sheet(("cell_um", "um", "nc", rng().random((5, 2))))).values()
    assert len(ax.lines[0].get_xydata()) == 6
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_scalars_are_text_below_the_id_with_their_unit() -> None:
    figure = sheet(
        ("image", "1", "yx", np.eye(3)),
        ("angle_rad", "rad", "", np.float32(1.25)),
        ("voxel_size_um", "um", "c", np.array([0.65, 0.65, 2.0])),
        ("dose", "mg", "", np.float64(3)),
        ("frame", "1", "", np.int64(123456789)),
        ("deep", "1", "abcde", np.zeros((1, 1, 1, 2, 2))),
    )
    for expected in ("cell0", "angle_rad 1.25", "voxel_size_um 0.65, 0.65, 2", "dose 3 mg", "frame 123456789"):
        assert expected in texts(figure)
    assert "deep has 5 axes: not drawn" in texts(figure)


def test_long_ids_are_cut_in_the_middle_and_dollars_are_no_formula() -> None:
    name = "plate_$3_" + 60 * "x" + "_$frame_0007"
    values = {"image": np.zeros((1, 4, 4), np.uint8)}
    figure = contact_sheet({"image": Field((1, 4, 4), "uint8", "grey level", "cyx")}, [Sample(name, "g", values)])
    figure.savefig(io.BytesIO(), format="png")
    shown = figure.texts[0].get_text()
    assert shown.startswith("plate_$3_x")
    assert shown.endswith("_$frame_0007")
    assert len(shown) < 40


@pytest.mark.parametrize("panels_each", [1, 2, 3, 5])
def test_no_panel_covers_another_or_leaves_the_sheet(panels_each: int) -> None:
    fields = [(f"image{number}", "1", "yx", rng().random((4, 4 + number))) for number in range(panels_each)]
    figure = sheet(*fields, ("angle_rad", "rad", "", np.float32(1)), samples=20)
    boxes = [ax.get_position() for ax in figure.axes]
    assert len(boxes) == 2 * panels_each * MOST_SAMPLES  # with its colour bar
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


@settings(max_examples=25, deadline=None)
@given(
    axes=st.sampled_from(["", "c", "k", "n", "yx", "nc", "cyx", "zyx", "nyx", "czyx", "tcyx", "tczyx"]),
    extents=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    unit=st.sampled_from(["1", "um", "mask", "grey level"]),
    dtype=st.sampled_from(["uint8", "int64", "float16", "float32", "float64"]),
    value=st.one_of(st.none(), st.sampled_from([0, 1, 100])),
    length=st.integers(0, 9),
)
def test_nothing_that_a_shard_can_hold_breaks_the_picture(
    axes: str, extents: list[int], unit: str, dtype: str, value: int | None, length: int
) -> None:
    shape = tuple(extents[: len(axes)])
    values = rng().integers(0, 100, shape) if value is None else np.full(shape, value)
    fields: list[tuple[str, str, str, Any]] = [("field", unit, axes, values.astype(dtype))]
    if axes.startswith("n"):
        fields.append(("field_length", "1", "", np.int32(min(length, shape[0]))))
    sheet(*fields, samples=2)


@pytest.mark.parametrize(
    ("axes", "shape", "unit"),
    [
        ("yx", (4, 4), "1"),
        ("cyx", (2, 4, 4), "Pa"),
        ("czyx", (3, 2, 4, 4), "um"),
        ("k", (9,), "1"),
        ("nc", (6, 2), "px"),
    ],
)
def test_numbers_near_the_largest_of_64_bits_are_drawn(axes: str, shape: tuple[int, ...], unit: str) -> None:
    values = 1e308 * rng().choice([-1.0, 1.0], shape)
    figure = sheet(("image", "1", "yx", np.eye(4)), ("field", unit, axes, values))
    assert any("cut at 1e+150" in title for title in panels(figure)) == ("y" in axes)


def test_unfit_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="samples must hold at least one"):
        contact_sheet({}, [])
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        contact_sheet({}, [Sample("a", "a", {})], most=0)


def test_inspect_draws_a_paper_that_has_no_picture_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    samples = [Sample(f"f{n}", f"g{n}", {"traction_pa": rng().normal(size=(2, 8, 8))}) for n in range(40)]
    write_dataset(
        tmp_path / "twin",
        samples,
        stem="unheard_of",
        fields={"traction_pa": {"unit": "Pa", "axes": "cyx"}},
        splits={},
        seed=0,
        provenance={},
    )
    assert data.inspect(tmp_path / "twin", picture=tmp_path / "sheet.png") == 0
    assert capfd.readouterr().out.splitlines()[-1] == f"contact sheet: {tmp_path / 'sheet.png'}"
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
