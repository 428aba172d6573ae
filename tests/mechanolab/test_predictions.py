"""Predictions on disk: numbers as a table, fields as HDF5 and TIFF, with and without a run, whole or not at all."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import tifffile
import torch
import yaml

from mechanolab.cli import main
from mechanolab.runs import find_runs


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a wrong request ends with."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    return said[0]


def test_a_method_that_needs_no_training_predicts_without_a_run(toy: ModuleType, tmp_path: Path) -> None:
    assert main(["predict", "toy", "module.gain=3.0"]) == 0
    folder = tmp_path / "runs" / "toy" / "predictions" / "test"
    fields = toy.Fields(data_root="", seed=0, split="default", youngs_modulus_pa=10.0).fields
    rows = table(folder)
    assert [row["sample_id"] for row in rows] == sorted(fields)
    assert list(rows[0]) == ["sample_id", "group", "strength_pa"]
    with h5py.File(folder / "predictions.h5") as file:
        assert set(file) == {"sample_id", "group", "traction_pa", "inside", "force_n"}
        assert [text.decode() for text in file["sample_id"][:]] == sorted(fields)
        for i, (sample_id, row) in enumerate(zip(sorted(fields), rows, strict=True)):
            expected = 30.0 * fields[sample_id].astype(np.float32)
            np.testing.assert_allclose(file["traction_pa"][i], expected, rtol=1e-6)
            np.testing.assert_array_equal(file["inside"][i], expected[0] > 0)
            assert float(row["strength_pa"]) == pytest.approx(expected.max(), rel=1e-6)
        image = tifffile.imread(folder / "cell%204%2Fa_traction_pa.tif")
        np.testing.assert_array_equal(image, file["traction_pa"][sorted(fields).index("cell 4/a")])
    assert {path.name for path in folder.glob("*_inside.tif")} == {f"cell%20{i}%2Fa_inside.tif" for i in range(5)}
    assert not list(folder.glob("*_force_n.tif"))  # a vector is no image
    assert (folder / "field.png").is_file()
    assert yaml.safe_load((folder / "config.yaml").read_text())["module"]["gain"] == 3.0
    assert find_runs() == []


@pytest.mark.slow
def test_own_fields_are_read_by_the_suffixes_of_the_data_class(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    np.save(mine / "b.npy", np.ones((2, 3, 4)))
    np.save(mine / "a.NPY.npy", np.full((2, 3, 4), 2.0))
    (mine / "notes.png").touch()
    words = ["predict", "toy", "--input", str(mine)]
    assert "pixel_size_um is missing" in refused(words, capsys)
    assert main([*words, "--pixel-size-um", "0.5", "data.youngs_modulus_pa=100.0"]) == 0
    folder = tmp_path / "runs" / "toy" / "predictions" / "input-mine"
    assert [(row["sample_id"], float(row["strength_pa"])) for row in table(folder)] == [
        ("a.NPY.npy", 2.0 * 2.0 / 0.5 * 100.0),
        ("b.npy", 2.0 * 1.0 / 0.5 * 100.0),
    ]
    assert "notes.png is of a kind that cannot be read; it must be one of .npy, .field.txt" in refused(
        [*words[:-1], str(mine / "notes.png")], capsys
    )
    (mine / "empty").mkdir()
    assert "holds no file (.npy, .field.txt)" in refused([*words[:-1], str(mine / "empty")], capsys)
    assert "youngs_modulus_pa must be positive" in refused([*words, "data.youngs_modulus_pa=-1.0"], capsys)


@pytest.mark.slow
def test_files_of_one_name_from_two_places_keep_predictions_of_their_own(toy: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "toy" / "predictions"
    words = ["predict", "toy", "--pixel-size-um", "1", "data.youngs_modulus_pa=1.0", "--input"]
    for day, value in (("monday", 1.0), ("tuesday", 2.0)):
        (tmp_path / day / "cells").mkdir(parents=True)
        np.save(tmp_path / day / "cells" / "a.npy", np.full((2, 3, 4), value))
        assert main([*words, str(tmp_path / day / "cells")]) == 0

    def predicted() -> dict[str, float]:
        return {path.name: float(table(path)[0]["strength_pa"]) for path in folder.iterdir()}

    assert predicted() == {"input-cells": 2.0, "input-cells-2": 4.0}
    np.save(tmp_path / "tuesday" / "cells" / "a.npy", np.full((2, 3, 4), 3.0))
    assert main([*words, str(tmp_path / "tuesday" / "cells")]) == 0
    assert predicted() == {"input-cells": 2.0, "input-cells-2": 6.0}


def test_a_prediction_says_which_checkpoint_it_is_of_and_leaves_the_best_ones_alone(
    toy: ModuleType, tmp_path: Path
) -> None:
    run = toy.write_trained_run(tmp_path / "runs", "trained", factor=3.0, batches_seen=9)
    other = tmp_path / "epoch5.ckpt"
    torch.save({"state_dict": {"factor": torch.tensor(5.0)}}, other)
    words = ["predict", "toy_net", "--run", "trained"]
    assert main(words) == 0
    before = contents(run / "predictions" / "test")
    assert main([*words, "--checkpoint", str(other)]) == 0
    assert contents(run / "predictions" / "test") == before
    ratio = float(table(run / "predictions" / "test-epoch5")[0]["strength_pa"]) / float(
        table(run / "predictions" / "test")[0]["strength_pa"]
    )
    assert ratio == pytest.approx(5 / 3)
    assert main(["test", *words[1:], "--checkpoint", str(other)]) == 0
    assert not (run / "figures").exists()  # which would be another network's


@pytest.mark.parametrize("command", ["predict", "test"])
def test_a_stopped_command_says_so_and_leaves_nothing(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr(toy.Method, "interrupt", "stop")
    assert main([command, "toy"]) == 75
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "mechanolab: stopped on request; the same command starts again"
    assert said.out == ""
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_fields_of_several_sizes_have_a_dataset_per_sample(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy.Fields, "sizes", ((6, 8), (3, 5), (6, 8)))
    assert main(["predict", "toy", "--split", "val"]) == 0
    folder = tmp_path / "runs" / "toy" / "predictions" / "val"
    with h5py.File(folder / "predictions.h5") as file:
        shapes = {name: dataset.shape for name, dataset in file["traction_pa"].items()}
        assert isinstance(file["force_n"], h5py.Dataset)  # of one size all the same
    assert shapes == {"cell%204%2Fa": (2, 6, 8), "cell%203%2Fa": (2, 3, 5), "cell%202%2Fa": (2, 6, 8)}
    assert tifffile.imread(folder / "cell%203%2Fa_traction_pa.tif").shape == (2, 3, 5)


def test_a_new_prediction_replaces_the_earlier_one_and_an_interrupted_one_leaves_it(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "toy" / "predictions"
    assert main(["predict", "toy"]) == 0
    first = contents(folder)
    monkeypatch.setattr(toy.Method, "interrupt", "fail")
    with pytest.raises(RuntimeError, match="the fields are gone"):
        main(["predict", "toy", "module.gain=3.0"])
    assert contents(folder) == first
    assert [path.name for path in folder.iterdir()] == ["test"]
    monkeypatch.setattr(toy.Method, "interrupt", None)
    monkeypatch.setattr(toy.Fields, "sizes", ((6, 8),) * 2)
    assert main(["predict", "toy", "module.gain=3.0"]) == 0
    second = contents(folder)
    assert {name for name in second if name.endswith(".tif")} < set(first)
    assert len(table(folder / "test")) == 2
    assert [path.name for path in folder.iterdir()] == ["test"]


def test_two_samples_of_one_id_are_refused_and_nothing_is_left(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collate = toy.Fields._collate
    monkeypatch.setattr(toy.Fields, "_collate", lambda self, samples: collate(self, [("same", samples[0][1])]))
    assert "two predictions would share the file same_traction_pa.tif" in refused(["predict", "toy"], capsys)
    assert list((tmp_path / "runs" / "toy" / "predictions").iterdir()) == []


def test_a_trained_module_needs_a_run_and_predicts_into_its_folder(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "predict needs a trained run: name one with --run ID" in refused(["predict", "toy_net"], capsys)
    run = toy.write_trained_run(tmp_path / "runs", "trained", factor=5.0, batches_seen=7)
    assert main(["predict", "toy_net", "--run", "trained"]) == 0
    assert main(["predict", "toy"]) == 0
    ours, plain = (table(p / "predictions" / "test") for p in (run, tmp_path / "runs" / "toy"))
    for mine, other in zip(ours, plain, strict=True):
        assert float(mine["strength_pa"]) == pytest.approx(5.0 * float(other["strength_pa"]), rel=1e-6)


def test_predictions_for_another_data_set_stand_beside_those_for_ones_own(toy: ModuleType, tmp_path: Path) -> None:
    run = toy.write_trained_run(tmp_path / "runs", "trained", factor=5.0, batches_seen=7)
    for words in (["toy_net", "--run", "trained"], ["toy"]):
        assert main(["predict", *words]) == 0
        assert main(["predict", *words, "data.dataset=new_day", "--split", "val"]) == 0
        assert main(["predict", *words, "data.dataset=new_day"]) == 0
    for folder in (run, tmp_path / "runs" / "toy"):
        found = {path.name: yaml.safe_load((path / "config.yaml").read_text()) for path in folder.glob("predictions/*")}
        assert {name: config["data"]["dataset"] for name, config in found.items()} == {
            "test": "twin",
            "new_day-val": "new_day",
            "new_day-test": "new_day",
        }


def test_no_run_can_take_the_place_of_the_predictions(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "a run cannot be named 'predictions'" in refused(["test", "toy", "--run-id", "predictions"], capsys)
    assert not (tmp_path / "runs").exists()
