"""Tractions in Pa of the user's own displacement fields, on disk: any size, any stiffness, without training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
from matplotlib.image import imread

from mechanolab.cli import main
from physics.half_space import displacement_from_traction
from physics.traction_cytometry import traction_from_displacement

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm" / "real_cell_MLData001_104.npz"
LAMBDA_PX = 6e-10  # (px/Pa)^2, what experiments/dl_tfm_fttc.yaml takes from the paper
FTTC = ["predict", "dl_tfm_fttc", "module.centre_element=exact"]


@pytest.fixture
def predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the predictions of a run-less method go."""
    monkeypatch.setenv("MECHANOLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MECHANOLAB_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path / "runs" / "dl_tfm_fttc" / "predictions"


def declared(folder: Path, modulus_pa: float) -> Path:
    folder.mkdir(parents=True)
    stated = {"youngs_modulus_pa": modulus_pa, "poisson_ratio": 0.45, "pixel_size_um": 1.5}
    (folder / "conditions.json").write_text(json.dumps(stated))
    return folder


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return {row["sample_id"]: row for row in csv.DictReader(file)}


def test_tractions_of_own_fields_are_in_pa_whatever_size_and_stiffness(predictions: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes, moduli_pa = {"wide": (19, 40), "odd": (33, 33), "stiff": (33, 33)}, {"stiff": 8000.0}
    fields = {name: generator.normal(scale=0.2, size=(2, *size)) for name, size in sizes.items()}
    for name, displacement_px in fields.items():
        folder = declared(tmp_path / "mine" / name, moduli_pa.get(name, 2000.0))
        np.savez(folder / f"{name}.npz", displacement_um=displacement_px * 1.5)
    assert main([*FTTC, "module.reach=full", "--input", str(tmp_path / "mine")]) == 0
    folder = predictions / "input-mine"
    table = rows(folder)
    assert list(table) == ["odd.npz", "stiff.npz", "wide.npz"]
    with h5py.File(folder / "predictions.h5") as file:
        for name, displacement_px in fields.items():
            modulus_pa = moduli_pa.get(name, 2000.0)
            expected = traction_from_displacement(
                torch.from_numpy(displacement_px * 1.5),
                pixel_size_um=1.5,
                youngs_modulus_pa=modulus_pa,
                poisson_ratio=0.45,
                regularization=LAMBDA_PX * 1.5**2,
            ).numpy()
            largest = np.hypot(*expected).max()
            np.testing.assert_allclose(file["traction_pa"][f"{name}.npz"], expected, atol=1e-4 * largest)
            np.testing.assert_allclose(
                tifffile.imread(folder / f"{name}.npz_traction_pa.tif"), file["traction_pa"][f"{name}.npz"]
            )
            assert float(table[f"{name}.npz"]["largest_traction_pa"]) == pytest.approx(largest, rel=1e-3)
            assert table[f"{name}.npz"]["traction_nrmse"] == "nan"
        # heat maps and arrows of every field, of whatever size; they differ as the fields do
        pictures = {name: imread(folder / f"{name}.npz_maps.png") for name in fields}
    assert all(len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50 for picture in pictures.values())
    assert len({picture.tobytes() for picture in pictures.values()}) == len(fields)
    assert (folder / "tractions.png").stat().st_size > 10_000


def test_a_wrong_request_is_one_sentence_that_names_the_mend(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = declared(tmp_path / "mine", 2000.0)
    np.savez(folder / "wide.npz", displacement_px=np.random.default_rng(0).normal(size=(2, 9, 12)))
    words = [*FTTC, "--input", str(folder)]
    for more, said in (
        (["module.transfer_function=[0.5,0.5]"], "transfer_function must be a real kernel (n,) or (n_y, n_x) of odd"),
        (["module.reach=full", "module.cutoff_percentile=98"], "wide.npz: cell_mask must leave background"),
        (["module.reach=full", "module.cutoff_percentile=98"], "give the cell's outline, or apply no cutoff"),
        (["--pixel-size-um", "-1"], "pixel_size_um must be positive, got -1.0"),
    ):
        capsys.readouterr()
        assert main([*words, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    (folder / "conditions.json").unlink()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "conditions.json: the files do not say on which substrate" in line
    assert not list(predictions.glob("*"))


def test_a_measured_field_has_its_maps_also_beside_one_whose_truth_is_known(predictions: Path, tmp_path: Path) -> None:
    folder = declared(tmp_path / "mine", 2000.0)
    traction_pa = np.zeros((2, 16, 16))
    traction_pa[0, 8, 4], traction_pa[0, 8, 11] = 300.0, -300.0
    substrate = {"pixel_size_um": 1.5, "youngs_modulus_pa": 2000.0, "poisson_ratio": 0.45}
    displacement_um = displacement_from_traction(torch.from_numpy(traction_pa), **substrate).numpy()
    np.savez(folder / "known.npz", displacement_um=displacement_um, traction_pa=traction_pa)
    np.savez(folder / "measured.npz", displacement_um=displacement_um)
    assert main([*FTTC, "module.reach=full", "--input", str(folder)]) == 0
    assert (predictions / "input-mine" / "measured.npz_maps.png").is_file()
    table = rows(predictions / "input-mine")
    assert float(table["known.npz"]["traction_nrmse"]) < 1
    assert table["measured.npz"]["traction_nrmse"] == "nan"


@pytest.mark.skipif(not REAL.is_file(), reason="needs the authors' measured cell in shared/real/dl_tfm")
def test_a_measured_cell_pulls_inside_its_outline_and_explains_its_displacement(
    predictions: Path, tmp_path: Path
) -> None:
    folder = declared(tmp_path / "cell", 10670.0)
    (folder / REAL.name).write_bytes(REAL.read_bytes())
    words = [*FTTC, "module.reach=full", "--input", str(folder), "--pixel-size-um", "1.925"]
    assert main(words) == 0
    (row,) = rows(predictions / "input-cell").values()
    # the network of Wang & Lin leaves 0.271 unexplained, tractions of plain U-Nets 0.23 to 0.28
    assert float(row["forward_residual"]) < 0.3
    # FTTC balances by construction
    assert float(row["net_force_nn"]) < 1e-3
    assert 5000 < float(row["largest_traction_pa"]) < 15000


def test_folders_whose_names_hold_a_dot_keep_predictions_of_their_own(predictions: Path, tmp_path: Path) -> None:
    for name in ("gel.1", "gel.2"):
        folder = declared(tmp_path / name, 2000.0)
        np.savez(folder / "cell.npz", displacement_um=np.random.default_rng(0).normal(0, 0.1, (2, 16, 16)))
        assert main([*FTTC, "module.reach=full", "--input", str(folder)]) == 0
    assert {path.name for path in predictions.iterdir()} == {"input-gel.1", "input-gel.2"}
