"""Tables of vectors from particle image velocimetry: headers, separators, row order, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.converters.displacement_tables import read_table

SPACING, START = 7.0, (3.5, 10.5)
FIELD = np.random.default_rng(0).normal(0.0, 2.0, (2, 4, 6)).round(6)


def rows(field: np.ndarray = FIELD, spacing: float = SPACING) -> list[tuple[float, ...]]:
    """(x, y, u, v) of every vector, row by row."""
    return [
        (START[0] + spacing * x, START[1] + spacing * y, field[0, y, x], field[1, y, x])
        for y in range(field.shape[1])
        for x in range(field.shape[2])
    ]


def write(path, header: str, vectors: list[tuple[float, ...]], separator: str = ","):
    lines = [separator.join(f"{value:.9g}" for value in vector) for vector in vectors]
    path.write_text("\n".join(filter(None, [header, *lines])) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        ("x,y,u,v", ","),
        ("X;Y;U;V", ";"),
        ("x_px\ty_px\tu_px\tv_px", "\t"),
        ("# x y u v", " "),
        ("# x\ty\tu\tv", "\t"),
        ("x [px],y [px],u [px/frame],v [px/frame]", ","),
        ("x [px] y [px] u [px] v [px]", "  "),
        ('"x","y","u","v"', ","),
        ("Measured on Monday, twice\n\nx,y,u,v", ","),
        ("", " "),
        ("", "\t"),
    ],
)
def test_a_header_is_read_whatever_program_wrote_it(tmp_path, header, separator):
    grid = read_table(write(tmp_path / "a.csv", header, rows(), separator))
    assert grid.spacing_px == pytest.approx(SPACING)
    assert grid.displacement_px == pytest.approx(FIELD)


def test_further_columns_and_another_order_of_columns_do_not_matter(tmp_path):
    vectors = [(v, 1.0, u, y, 99.0, x) for x, y, u, v in rows()]
    grid = read_table(write(tmp_path / "a.csv", "v,flag,u,y,peak,x", vectors))
    assert grid.displacement_px == pytest.approx(FIELD)
    # ImageJ's plugin: x, y, u, v and twelve more columns
    vectors = [(*row, *range(12)) for row in rows()]
    assert read_table(write(tmp_path / "a.txt", "", vectors, " ")).displacement_px == pytest.approx(FIELD)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(order=st.permutations(range(FIELD[0].size)), spacing=st.sampled_from([1.0, 7.0, 16.0, 10.666666]))
def test_the_order_of_the_rows_does_not_matter(tmp_path_factory, order, spacing):
    path = tmp_path_factory.getbasetemp() / "shuffled.csv"
    vectors = rows(spacing=spacing)
    grid = read_table(write(path, "x,y,u,v", [vectors[index] for index in order]))
    assert grid.spacing_px == pytest.approx(spacing)
    assert np.array_equal(grid.displacement_px, read_table(write(path, "x,y,u,v", vectors)).displacement_px)
    assert grid.displacement_px == pytest.approx(FIELD)


def test_positions_rounded_to_whole_pixels_keep_their_places(tmp_path):
    field = np.random.default_rng(1).normal(size=(2, 5, 90)).round(6)
    vectors = [(x, y, u, v) for x, y, u, v in rows(field, spacing=40.25)]
    vectors = [(round(x), round(y), u, v) for x, y, u, v in vectors]
    grid = read_table(write(tmp_path / "a.csv", "x,y,u,v", vectors))
    assert grid.displacement_px == pytest.approx(field)
    assert grid.spacing_px == pytest.approx(40.25, rel=1e-3)


def test_the_grid_of_a_small_measurement_rounded_to_whole_pixels_counts_as_square(tmp_path):
    vectors = [(round(x), round(y), u, v) for x, y, u, v in rows(spacing=7.4)]
    grid = read_table(write(tmp_path / "a.csv", "x,y,u,v", vectors))
    assert grid.displacement_px == pytest.approx(FIELD)
    assert grid.spacing_px == pytest.approx(7.4, rel=0.03)


def changed(index: int, **values: float) -> list[tuple[float, ...]]:
    vectors = [dict(zip("xyuv", row, strict=True)) for row in rows()]
    vectors[index] |= values
    return [tuple(vector.values()) for vector in vectors]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (rows()[:8] + rows()[9:], r"lacks 1 of 24 vectors of its grid, the first at x = 17\.5, y = 17\.5: interpolate"),
        ([r for r in rows() if r[0] != 17.5], r"lacks 4 of 24 vectors of its grid, the first at x = 17\.5, y = 10\.5"),
        (rows() + rows()[:1], r"line 26: the vector at x = 3\.5, y = 10\.5 stands twice"),
        (changed(8, u=float("nan")), "line 10: u is 'nan', no finite number: interpolate"),
        (changed(8, v=float("inf")), "line 10: v is 'inf', no finite number"),
        (changed(8, x=float("nan")), "line 10: x is 'nan'"),
        (changed(8, x=21.0), r"line 10: x = 21 lies off the grid that starts at 3\.5 with 7 px"),
        ([(x, 2 * y, u, v) for x, y, u, v in rows()], "are 7 px apart along x and 14 px along y"),
        (rows()[:6], "holds a single y: a field needs several rows"),
        ([], "has no vector below its header"),
    ],
)
def test_faulty_vectors_are_refused_by_name(tmp_path, vectors, message):
    path = write(tmp_path / "a.csv", "x,y,u,v", vectors)
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        read_table(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("x,y,u,w", "is no table of displacements: it needs a header with the columns x, y, u and v"),
        ("x,y,u,v,u", "line 1: column u stands twice"),
        ("x [px],y [px],u [m/s],v [m/s]", r"line 1: column u is in m/s, pixels are expected"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path, header, message):
    path = tmp_path / "a.csv"
    path.write_text(header + "\na,b,c,d\n")
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        read_table(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("x_um,y_um,u_um,v_um", "line 1: column x is in um, pixels are expected"),
        ("X µm,Y µm,U µm,V µm", "line 1: column x is in µm, pixels are expected"),
        ("x,y,u (nm),v (nm)", "line 1: column u is in nm, pixels are expected"),
        ("y,x,dy,dx", r"no line above its numbers \(line 2\) names the columns x, y, u and v: write them"),
        ("row,col,v,u", "no line above its numbers"),
        ("Measured on Monday\n\n# exported", r"no line above its numbers \(line 4\)"),
    ],
)
def test_numbers_are_not_taken_for_pixels_along_x_y_u_v_where_the_header_says_otherwise(tmp_path, header, message):
    path = write(tmp_path / "a.csv", header, rows())
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        read_table(path)


def test_a_row_that_is_cut_off_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "x,y,u,v", rows())
    path.write_text(path.read_text()[:-12])
    with pytest.raises(ValueError, match=r"a\.csv, line 25: (u|v) is "):
        read_table(path)


@pytest.mark.parametrize("spacing", [7.0, 0.1])
def test_positions_that_differ_by_rounding_are_one_column(tmp_path, spacing):
    chance = np.random.default_rng(1)
    vectors = [(x + 1e-5 * spacing * chance.normal(), y, u, v) for x, y, u, v in rows(spacing=spacing)]
    grid = read_table(write(tmp_path / "a.csv", "x,y,u,v", vectors))
    assert grid.spacing_px == pytest.approx(spacing, rel=1e-4)
    assert grid.displacement_px == pytest.approx(FIELD)


def test_decimal_commas_are_told_from_missing_vectors(tmp_path):
    (tmp_path / "a.csv").write_text("x;y;u;v\n0;0;0,1;0,2\n8;0;0,1;0,2\n")
    with pytest.raises(ValueError, match=r"line 2: u is '0,1', no finite number: write numbers with a point"):
        read_table(tmp_path / "a.csv")
