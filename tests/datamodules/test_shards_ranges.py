"""Values against their units, names against units, lists against lengths: in the writer, and in what is on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batches import Sample
from datamodules.shards.lists import declaration_faults, length_fault, list_fields, padded, trimmed
from datamodules.shards.ranges import unit_fault, value_fault
from datamodules.shards.schema import Field, Manifest
from datamodules.shards.verify import verify_dataset
from datamodules.shards.writer import write_dataset

TURN = 2 * math.pi
FIELDS = {
    "image": {"axes": "cyx", "unit": "photon"},
    "mask": {"axes": "yx", "unit": "mask"},
    "angle_rad": {"axes": "", "unit": "rad"},
    "pixel_size_um": {"axes": "", "unit": "um"},
    "outline_px": {"axes": "nc", "unit": "px"},
    "outline_px_length": {"axes": "", "unit": "1"},
}


def sample(number: int, **changes: Any) -> Sample:
    outline, length = padded(np.full((number % 5, 2), 3.0, np.float32), 6)
    fields: dict[str, Any] = {
        "image": np.full((1, 3, 4), 7.5, np.float32),
        "mask": np.ones((3, 4), np.uint8),
        "angle_rad": np.float64(number),
        "pixel_size_um": np.float32(0.65),
        "outline_px": outline,
        "outline_px_length": length,
    }
    return Sample(f"cell{number}", f"track{number}", fields | changes)


def write(folder: Path, samples: list[Sample], fields: dict[str, dict[str, str]] = FIELDS) -> None:
    write_dataset(folder, samples, stem="circular", fields=fields, splits={}, seed=0, provenance={})


def forge(folder: Path, field: str, place: Any, value: Any) -> None:
    """Change a value on disk, with a manifest that is right about the new checksum."""
    path = folder / "00000.h5"
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        file[field][place] = value
    content = path.read_bytes()
    manifest = Manifest.read(folder)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    dataclasses.replace(manifest, shards=[manifest.shards[0] | entry]).write(folder)


# -- one value --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit", "dtype", "legal", "illegal"),
    [
        ("angle_rad", "rad", "float64", [0.0, math.nextafter(TURN, 0)], [-1e-300, TURN, 270.0]),
        # in float32 the nearest number to 2 pi lies above it
        ("angle_rad", "rad", "float32", [np.nextafter(np.float32(TURN), np.float32(0))], [np.float32(TURN)]),
        ("angle_rad", "rad", "float16", [np.float16(TURN)], [np.float16(6.2852)]),
        ("mask", "mask", "uint8", [0, 1], [2, 255]),
        ("confluence", "fraction", "float32", [0.0, 1.0], [-0.01, 1.01, 55.0]),
        ("edge", "probability", "float32", [0.0, 0.5, 1.0], [1.5]),
        ("image", "grey level", "float32", [0.0, 1e9], [-0.5]),
        ("image", "photon", "int16", [0, 32767], [-1]),
        ("cells", "count", "int64", [0, 2**60], [-1]),
        ("pixel_size_um", "um", "float32", [1e-3, 100.0], [0.0, -0.65]),
        ("camera_pixel_size_um", "um", "float32", [6.5], [0.0]),
        ("voxel_size_um", "um", "float64", [0.2], [0.0]),
        ("youngs_modulus_pa", "Pa", "float32", [1.0, 1e5], [0.0, -6700.0]),
        ("gel_youngs_modulus_pa", "Pa", "float32", [6700.0], [-6700.0]),
        ("poisson_ratio", "1", "float32", [0.3, 0.5], [0.0, 0.51, -0.2]),
        ("displacement_um", "um", "float32", [-3.0, 0.0, 3.0], []),
        ("drift_px", "px", "float32", [-3.0], []),
        ("traction_pa", "Pa", "float32", [-900.0, 900.0], []),
        ("image", "1", "float32", [-2.0, 2.0], []),
    ],
)
def test_a_unit_says_which_values_are_legal(
    name: str, unit: str, dtype: str, legal: list[float], illegal: list[float]
) -> None:
    field = Field((), dtype, unit, "")
    for value in legal:
        assert value_fault(name, field, np.array(value, dtype)) is None
    for value in illegal:
        message = value_fault(name, field, np.array(value, dtype))
        assert message is not None
        assert repr(name) in message
        assert f" {np.array(value, dtype)}; " in message


@given(rows=st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=1, max_size=8))
def test_the_first_illegal_row_is_named(rows: list[list[float]]) -> None:
    bad = [number for number, row in enumerate(rows) if not all(0 <= value < TURN for value in row)]
    message = value_fault("angle_rad", Field((3,), "float64", "rad", "c"), np.array(rows), first_row=100)
    assert (message is None) == (not bad)
    if message is not None:
        assert f"of row {100 + bad[0]} has the value" in message


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("displacement_um", "um"),
        ("um", "px"),
        ("bend_per_um", "1/um"),
        ("body_force_n_per_m3", "N/m3"),
        ("force_nn", "nN"),
        ("force_n", "N"),
        ("area_um2", "um2"),
        ("album", "1"),
        ("time_s", "s"),
        ("angle_deg", "deg"),
    ],
)
def test_a_name_that_fits_its_unit_is_no_fault(name: str, unit: str) -> None:
    assert unit_fault(name, Field((), "float32", unit, "")) is None


@pytest.mark.parametrize(
    ("name", "unit", "promised"),
    [
        ("displacement_um", "px", "um"),
        ("traction_pa", "kPa", "Pa"),
        ("shift_px", "um", "px"),
        ("angle_rad", "deg", "rad"),
        ("angle_deg", "rad", "deg"),
        ("force_n", "nN", "N"),
    ],
)
def test_a_wrong_unit_is_a_fault_that_names_both(name: str, unit: str, promised: str) -> None:
    message = unit_fault(name, Field((), "float32", unit, ""))
    assert message is not None
    assert all(repr(word) in message for word in (name, unit, promised))


def test_a_mask_is_uint8() -> None:
    assert "store a mask as uint8" in (unit_fault("cell", Field((2, 2), "float32", "mask", "yx")) or "")


# -- writer and verification ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "place", "value", "complaint"),
    [
        ("image", (2, 0, 1, 1), -1.0, "field 'image' of row 2 has the value -1.0; intensities and counts"),
        ("mask", (4, 2, 2), 255, "field 'mask' of row 4 has the value 255; masks are 0 or 1"),
        ("angle_rad", 1, 90.0, r"field 'angle_rad' of row 1 has the value 90.0; angles in rad lie in [0, 2 pi)"),
        ("pixel_size_um", 3, 0.0, "field 'pixel_size_um' of row 3 has the value 0.0; sizes"),
        ("outline_px_length", 3, 7, "field 'outline_px_length' of row 3 is 7; 'outline_px' has room for 0 to 6"),
        ("outline_px_length", 0, -1, "field 'outline_px_length' of row 0 is -1"),
        ("outline_px", (2, 5, 1), 4.0, "field 'outline_px' of row 2 is not zero beyond its length 2"),
    ],
)
def test_what_a_unit_does_not_allow_is_refused_by_the_writer_and_found_on_disk(
    tmp_path: Path, field: str, place: Any, value: float, complaint: str
) -> None:
    samples = [sample(number) for number in range(6)]
    write(tmp_path / "twin", samples)
    assert verify_dataset(tmp_path / "twin") == []
    forge(tmp_path / "twin", field, place, value)
    (line,) = verify_dataset(tmp_path / "twin")
    assert line.startswith(f"{tmp_path / 'twin' / '00000.h5'}: {complaint}")

    row, *inner = place if isinstance(place, tuple) else (place,)
    wrong = samples[row].fields[field].copy() if inner else samples[row].fields[field].dtype.type(value)
    if inner:
        wrong[tuple(inner)] = value
    samples[row] = sample(row, **{field: wrong})
    with pytest.raises(ValueError, match=f"sample 'cell{row}': field '{field}'"):
        write(tmp_path / "other", samples)
    assert not (tmp_path / "other").exists()


def test_a_unit_that_contradicts_its_name_is_refused_by_the_writer_and_found_on_disk(tmp_path: Path) -> None:
    wrong = {**FIELDS, "pixel_size_um": {"axes": "", "unit": "nm"}}
    with pytest.raises(ValueError, match="field 'pixel_size_um' has unit 'nm', its name says 'um'"):
        write(tmp_path / "twin", [sample(0)], wrong)
    folder = tmp_path / "nm"
    write(folder, [sample(0)])
    manifest = Manifest.read(folder)
    fields = {**manifest.fields, "pixel_size_um": manifest.fields["pixel_size_um"]._replace(unit="nm")}
    dataclasses.replace(manifest, fields=fields).write(folder)
    lines = verify_dataset(folder)
    assert lines[0].startswith(f"{folder / 'manifest.json'}: field 'pixel_size_um' has unit 'nm', its name says 'um'")
    assert "00000.h5: field 'pixel_size_um' has unit 'um', the manifest says 'nm'" in lines[1]


@pytest.mark.parametrize("changes", [{"unit": "px"}, {"axes": "k"}])
def test_a_length_that_is_no_whole_number_is_refused(tmp_path: Path, changes: dict[str, str]) -> None:
    fields = {**FIELDS, "outline_px_length": {"axes": "", "unit": "1"} | changes}
    length = np.ones(1, np.int32) if "axes" in changes else np.int32(0)
    with pytest.raises(ValueError, match="'outline_px_length' must be a scalar whole number of unit '1'"):
        write(tmp_path / "twin", [sample(0, outline_px_length=length)], fields)
    fields["outline_px_length"] = {"axes": "", "unit": "1"}
    with pytest.raises(ValueError, match="'outline_px_length' must be a scalar whole number"):
        write(tmp_path / "twin", [sample(0, outline_px_length=np.float32(0))], fields)


# -- lists ------------------------------------------------------------------------------------------------------------


def test_only_fields_along_n_are_lists() -> None:
    fields = {
        "outline": Field((6, 2), "float32", "px", "nc"),
        "outline_length": Field((), "uint8", "1", ""),
        "corners": Field((4, 2), "float32", "px", "nc"),  # always four
        "cell": Field((1, 8, 8), "uint8", "grey level", "cyx"),
        "cell_length": Field((), "float32", "um", ""),  # how long the cell is
    }
    assert list_fields(fields) == {"outline": "outline_length"}
    assert declaration_faults(fields) == []


@given(length=st.integers(0, 6), n=st.integers(6, 9), dtype=st.sampled_from(["uint8", "int64", "float16"]))
def test_a_padded_list_is_legal_and_comes_back(length: int, n: int, dtype: str) -> None:
    entries = np.arange(1, 2 * length + 1, dtype=dtype).reshape(length, 2)
    filled, stored = padded(entries, n)
    assert (filled.shape, filled.dtype, int(stored)) == ((n, 2), np.dtype(dtype), length)
    assert length_fault("outline", filled[None], stored[None]) is None
    back = trimmed(Sample("s", "g", {"outline": filled, "outline_length": stored}), "outline")
    assert np.array_equal(back, entries)


def test_unfit_lists_are_refused_with_the_argument_named() -> None:
    with pytest.raises(ValueError, match="values has 3 entries, n leaves room for 2"):
        padded([1, 2, 3], 2)
    with pytest.raises(ValueError, match="values must be a list"):
        padded(1.0, 2)
    fields = {"outline": np.zeros((4, 2)), "outline_length": np.int32(5)}
    with pytest.raises(ValueError, match=r"sample 's': outline_length is 5, outline has shape \(4, 2\)"):
        trimmed(Sample("s", "g", fields), "outline")
    with pytest.raises(ValueError, match="sample 's' has no field 'nucleus'"):
        trimmed(Sample("s", "g", fields), "nucleus")
