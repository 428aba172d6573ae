"""The authors' stored cells and the output of a public traction package, through the converter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.converters import dl_tfm
from datamodules.converters.field_pairs import forward_residual
from datamodules.shards.lists import trimmed
from physics.traction_cytometry import traction_from_displacement

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real"
FOLDER = REAL / "dl_tfm"
PACKAGE = REAL / "insilico_tfm" / "fibroblast_3T3_10kPa.npz"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the authors' sample fields in shared/real/dl_tfm")

GRID_UM = 104 * 1.925
PAPER = {"youngs_modulus_pa": 10670.0, "poisson_ratio": 0.45}
EXACT, STORED = 1e-12, 1e-6
"""Residual of the authors' own operator in float64, and once the fields are float32."""


def archive(folder: Path, name: str, suffix: str = "", **changes: object) -> Path:
    """One of the stored cells as an archive of its own."""
    with np.load(FOLDER / name) as stored:
        arrays = {key: stored[f"{key}{suffix}"] for key in ("dspl", "trac") if f"{key}{suffix}" in stored}
        arrays |= {key: stored[key] for key in ("brdx", "brdy") if not suffix}
    np.savez(folder / name, **arrays)
    stated = PAPER | {"pixel_size_um": GRID_UM / len(arrays["dspl"])} | changes
    (folder / "conditions.json").write_text(json.dumps(stated))
    return folder


@pytest.mark.parametrize(
    ("name", "suffix", "stored_for_pa"),
    [
        ("generic_MLData0018_104.npz", "", 10670.0),
        ("neuron_MLData0001_160.npz", "", 10670.0),
        ("training_samples_104.npz", "", 10.0),
        ("training_samples_104.npz", "_radial", 10.0),
    ],
)
def test_the_converted_traction_explains_the_converted_displacement(tmp_path, name, suffix, stored_for_pa):
    source = archive(tmp_path, name, suffix, traction_modulus_pa=stored_for_pa)
    with np.load(FOLDER / name) as stored:
        u, t = (stored[f"{key}{suffix}"].transpose(2, 1, 0) for key in ("dspl", "trac"))
        assert forward_residual(u, t, modulus_pa=stored_for_pa, poisson_ratio=0.45) < EXACT
    (sample,) = dl_tfm.convert(source)
    values = {key: value.astype(np.float64) for key, value in sample.fields.items()}
    residual = forward_residual(
        values["displacement_um"] / values["pixel_size_um"],
        values["traction_pa"],
        modulus_pa=float(values["youngs_modulus_pa"]),
        poisson_ratio=float(values["poisson_ratio"]),
    )
    assert EXACT < residual < STORED


def test_the_generic_cell_has_its_published_interior(tmp_path):
    (sample,) = dl_tfm.convert(archive(tmp_path, "generic_MLData0018_104.npz"))
    assert int(sample.fields["cell_mask"].sum()) == 2213
    assert sample.group == "generic_MLData0018"
    outside = np.abs(sample.fields["traction_pa"]) * (1 - sample.fields["cell_mask"])
    assert outside.sum() == 0
    x, y = trimmed(sample, "outline_px").T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((19.15, 83.5, 25.0, 77.65))


def test_the_keratocyte_is_accepted_although_its_traction_was_stored_later(tmp_path):
    (sample,) = dl_tfm.convert(archive(tmp_path, "keratocyte_MLData0001_160.npz"))
    assert float(sample.fields["pixel_size_um"]) == pytest.approx(1.25125)
    assert sample.fields["outline_px"].max() < 160


def test_a_measured_cell_has_no_traction(tmp_path):
    source = archive(tmp_path, "real_cell_MLData001_104.npz")
    (sample,) = dl_tfm.convert(source)
    assert "traction_pa" not in sample.fields
    assert int(sample.fields["outline_px_length"]) == 130
    assert dl_tfm.splits(source) == dl_tfm.TEST_ONLY


def test_training_units_are_not_taken_for_pascals(tmp_path):
    with pytest.raises(ValueError, match=r"substrate of 10 Pa, not 1\.067e\+04.*traction_modulus_pa"):
        list(dl_tfm.convert(archive(tmp_path, "training_samples_104.npz")))


@pytest.mark.parametrize("swapped", ["outline", "components", "axes"])
@pytest.mark.parametrize("name", ["generic_MLData0018_104.npz", "neuron_MLData0001_160.npz"])
def test_swapped_axes_are_refused(tmp_path, name, swapped):
    archive(tmp_path, name)
    with np.load(tmp_path / name) as stored:
        arrays = dict(stored)
    if swapped == "outline":
        arrays["brdx"], arrays["brdy"] = arrays["brdy"], arrays["brdx"]
    else:
        turn = (0, 1, 2) if swapped == "components" else (1, 0, 2)
        step = -1 if swapped == "components" else 1
        arrays |= {key: arrays[key].transpose(turn)[..., ::step] for key in ("dspl", "trac")}
    np.savez(tmp_path / name, **arrays)
    with pytest.raises(ValueError, match="outline" if swapped == "outline" else "does not explain the displacement"):
        list(dl_tfm.convert(tmp_path))


@pytest.mark.skipif(not PACKAGE.is_file(), reason="needs the public package's fields in shared/real/insilico_tfm")
@pytest.mark.parametrize("filtering", ["nofilter", "gauss3um"])
def test_fields_of_the_public_package_keep_their_signs(tmp_path, filtering):
    with np.load(PACKAGE) as stored:
        names = {"u": "u_px", "v": "v_px", "tx": f"tx_Pa_{filtering}", "ty": f"ty_Pa_{filtering}"}
        for name, key in names.items():
            for frame, array in enumerate(stored[key]):
                np.save(tmp_path / f"{frame:02d}{name}.npy", array)
        sizes = {"image_pixel_size_um": float(stored["pixelsize1_um"]), "pixel_size_um": float(stored["pixelsize2_um"])}
        gel = {"youngs_modulus_pa": float(stored["young_Pa"]), "poisson_ratio": float(stored["nu"])}
    (tmp_path / "conditions.json").write_text(json.dumps(gel | sizes))
    samples = list(dl_tfm.convert(tmp_path))
    assert len(samples) == 6
    assert len({sample.group for sample in samples}) == 1
    if filtering == "nofilter":
        for sample in samples:
            u = torch.from_numpy(sample.fields["displacement_um"].astype(np.float64))
            computed = traction_from_displacement(u, pixel_size_um=sizes["pixel_size_um"], **gel).numpy()
            assert computed == pytest.approx(sample.fields["traction_pa"], abs=1e-3 * np.abs(computed).max())
    # the same with y pointing up
    for path in tmp_path.glob("*[vy].npy"):
        np.save(path, -np.load(path))
    with pytest.raises(ValueError, match="sign of its y component turned"):
        list(dl_tfm.convert(tmp_path))
