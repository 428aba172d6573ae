"""Predicted arrays on disk: they come back as they were, in order, whoever staged them, and never half."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from datamodules.shards.predicted_fields import FieldStage, PredictionFolder, file_stem, write_fields
from datamodules.shards.schema import ShardError

SHAPES = array_shapes(min_dims=1, max_dims=5, max_side=4)
ARRAYS = st.sampled_from([np.float32, np.float64, np.int16, np.uint8, np.bool_]).flatmap(
    lambda dtype: st.lists(arrays(dtype, SHAPES), min_size=1, max_size=5)
)


def read(path: Path, name: str) -> list[NDArray[Any]]:
    """One array per sample, in the order of the file."""
    with h5py.File(path / "predictions.h5") as file:
        if isinstance(file[name], h5py.Dataset):
            return list(file[name][:])
        return [file[name][file_stem(sample_id.decode())][()] for sample_id in file["sample_id"][:]]


@settings(deadline=None, max_examples=30)
@given(ARRAYS, st.booleans())
def test_arrays_of_any_size_come_back_in_order_from_whichever_process_staged_them(
    tmp_path_factory: pytest.TempPathFactory, fields: list[NDArray[Any]], same_size: bool
) -> None:
    fields = [fields[0] for _ in fields] if same_size else fields
    folder = tmp_path_factory.mktemp("stage")
    with FieldStage(folder, 0) as first, FieldStage(folder, 1) as second:
        staged = [(first, second)[i % 2].add(f"s{i}", "stress_pa", values) for i, values in enumerate(fields)]
    order = list(reversed(range(len(fields))))
    ids = [f"s{i}" for i in order]
    write_fields(folder, ids, ["g"] * len(ids), {"stress_pa": [staged[i] for i in order]})
    for i, values in zip(order, read(folder, "stress_pa"), strict=True):
        np.testing.assert_array_equal(values, fields[i])
        assert values.shape == fields[i].shape
        if 2 <= values.ndim <= 5:
            image = tifffile.imread(folder / f"s{i}_stress_pa.tif")
            assert image.dtype == np.float32
            order_in_file = {2: (0, 1), 3: (0, 1, 2), 4: (1, 0, 2, 3), 5: (0, 2, 1, 3, 4)}[values.ndim]
            with np.errstate(over="ignore"):
                expected = fields[i].astype(np.float32).transpose(order_in_file)
            np.testing.assert_array_equal(image.squeeze(), expected.squeeze())
    assert not list(folder.glob(".fields-*"))
    with h5py.File(folder / "predictions.h5") as file:
        assert isinstance(file["stress_pa"], h5py.Dataset) == (len({f.shape for f in fields}) == 1)


def test_imagej_sees_channels_slices_and_frames(tmp_path: Path) -> None:
    with FieldStage(tmp_path, 0) as stage:
        stage.add("a", "stress_pa", np.zeros((2, 3, 4, 5), np.float64))
    with tifffile.TiffFile(tmp_path / "a_stress_pa.tif") as file:
        assert file.is_imagej
        assert file.series[0].axes == "ZCYX"
        assert file.series[0].shape == (3, 2, 4, 5)


def test_a_field_one_pixel_wide_keeps_its_axes_for_imagej(tmp_path: Path) -> None:
    values = np.arange(15, dtype=np.float32).reshape(3, 5, 1)
    with FieldStage(tmp_path, 0) as stage:
        stage.add("a", "stress_pa", values)
    with tifffile.TiffFile(tmp_path / "a_stress_pa.tif") as file:
        assert (file.series[0].axes, file.series[0].shape) == ("CYX", (3, 5, 1))
        assert np.array_equal(file.series[0].asarray(), values)


def test_texts_have_a_fixed_length_and_datasets_say_their_axes(tmp_path: Path) -> None:
    with FieldStage(tmp_path, 0) as stage:
        staged = [stage.add(name, "traction_pa", np.zeros((2, 3, 4), np.float32)) for name in ("Zelle 1/ä", "b")]
    write_fields(tmp_path, ["Zelle 1/ä", "b"], ["g", "gg"], {"traction_pa": staged})
    with h5py.File(tmp_path / "predictions.h5") as file:
        assert [text.decode() for text in file["sample_id"][:]] == ["Zelle 1/ä", "b"]
        assert h5py.check_string_dtype(file["sample_id"].dtype).length == len("Zelle 1/ä".encode())
        assert file["traction_pa"].attrs["axes"] == b"cyx"
        assert file["traction_pa"].chunks == (1, 2, 3, 4)
        assert file["traction_pa"].fletcher32
    names = {path.name for path in tmp_path.glob("*.tif")}
    assert {unquote(name).removesuffix("_traction_pa.tif") for name in names} == {"Zelle 1/ä", "b"}


@given(st.text(min_size=1, max_size=20))
def test_a_name_is_safe_and_leads_back_to_the_id(sample_id: str) -> None:
    name = file_stem(sample_id)
    assert unquote(name) == sample_id
    assert not {"/", "\\", "\0", ":"} & set(name)
    assert not name.startswith(".")


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    field = np.random.default_rng(0).normal(size=(2, 256, 256))  # 1 MiB
    tracemalloc.start()
    with FieldStage(tmp_path, 0) as stage:
        staged = [stage.add(f"{i:02d}", "traction_pa", field) for i in range(40)]
    write_fields(tmp_path, [f"{i:02d}" for i in range(40)], ["g"] * 40, {"traction_pa": staged})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * field.nbytes


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.zeros(2, complex), "stress_pa must hold real numbers, got complex128"), (np.array(["a"]), "real numbers")],
)
def test_what_is_no_number_is_refused_by_name(tmp_path: Path, values: NDArray[Any], message: str) -> None:
    with FieldStage(tmp_path, 0) as stage, pytest.raises(ValueError, match=message):
        stage.add("a", "stress_pa", values)


def test_samples_that_would_share_a_file_or_an_id_are_named(tmp_path: Path) -> None:
    with FieldStage(tmp_path, 0) as stage:
        one = stage.add("a_b", "c", np.zeros((2, 2)))
        with pytest.raises(ValueError, match=r"share the file a_b_c\.tif: rename sample 'a'"):
            stage.add("a", "b_c", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="sample id 'a' occurs twice"):
        write_fields(tmp_path, ["a", "a"], ["g", "g"], {"c": [one, one]})
    with pytest.raises(ValueError, match="c is there for 1 of 2 samples"):
        write_fields(tmp_path, ["a", "b"], ["g", "g"], {"c": [one]})
    with pytest.raises(ValueError, match="prediction group has the name"):
        write_fields(tmp_path, ["a"], ["g"], {"group": [one]})


# -- the folder -------------------------------------------------------------------------------------------------------


def test_a_finished_folder_takes_the_place_of_the_earlier_one_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with PredictionFolder(tmp_path / "p" / "test") as folder:
            (folder.path / name).touch()
            folder.publish()
        assert [path.name for path in (tmp_path / "p" / "test").iterdir()] == [name]
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["test"]


def test_an_unfinished_folder_leaves_the_earlier_one_alone(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "old").touch()
    with PredictionFolder(tmp_path / "test") as folder:
        (folder.path / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["test"]
    assert (tmp_path / "test" / "old").is_file()


def test_what_a_killed_process_left_is_cleared_and_a_living_one_is_not_disturbed(tmp_path: Path) -> None:
    with PredictionFolder(tmp_path / "test"), pytest.raises(ShardError, match=f"process {os.getpid()} is writing"):
        PredictionFolder(tmp_path / "test").__enter__()
    (tmp_path / ".test.complete").mkdir()
    (tmp_path / ".test.complete" / "left").touch()
    with PredictionFolder(tmp_path / "test") as folder:
        folder.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["test"]
    assert not list((tmp_path / "test").iterdir())


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with FieldStage(tmp_path, 0) as stage, pytest.raises(ShardError, match="the disk is full: cannot write"):
        stage.add("a", "stress_pa", np.zeros((2, 2)))
