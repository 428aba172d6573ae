"""FTTC on stored fields: a fibroblast analysed by a public TFM package, and a simulated cell with its true traction."""

from pathlib import Path

import numpy as np
import pytest
import torch

from physics.traction_cytometry import choose_regularization, cutoff_filter, traction_from_displacement

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real"
FIBROBLAST = REAL / "insilico_tfm" / "fibroblast_3T3_10kPa.npz"
GENERIC = REAL / "dl_tfm" / "generic_MLData0018_104.npz"
INTERIOR_PX = 2213


@pytest.mark.skipif(not FIBROBLAST.is_file(), reason="needs the recordings in shared/real/insilico_tfm")
def test_the_fibroblasts_tractions_come_out_as_the_public_package_stored_them():
    with np.load(FIBROBLAST) as arrays:
        displacement_px = np.stack((arrays["u_px"], arrays["v_px"]), axis=1)  # (frame, component, 61, 61)
        stored = torch.tensor(np.stack((arrays["tx_Pa_nofilter"], arrays["ty_Pa_nofilter"]), axis=1))
        image_pixel_um, grid_um = float(arrays["pixelsize1_um"]), float(arrays["pixelsize2_um"])
        substrate = {"youngs_modulus_pa": float(arrays["young_Pa"]), "poisson_ratio": float(arrays["nu"])}
    traction = traction_from_displacement(
        torch.tensor(displacement_px * image_pixel_um), pixel_size_um=grid_um, **substrate
    )
    assert float((traction - stored).norm() / stored.norm()) < 1e-12


def on_or_inside(corners_x, corners_y, height, width):
    """Pixel centres (counted from 1) inside the polygon or exactly on it."""
    y, x = np.mgrid[1 : height + 1, 1 : width + 1].astype(float)
    inside, on = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    for x0, y0, x1, y1 in zip(corners_x, corners_y, np.roll(corners_x, -1), np.roll(corners_y, -1), strict=True):
        across = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
        between = (x >= min(x0, x1)) & (x <= max(x0, x1)) & (y >= min(y0, y1)) & (y <= max(y0, y1))
        on |= (np.abs(across) < 1e-9) & between
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return torch.tensor(inside | on)


@pytest.fixture(scope="module")
def generic():
    if not GENERIC.is_file():
        pytest.skip("needs the authors' sample fields in shared/real/dl_tfm")
    with np.load(GENERIC) as arrays:
        traction, displacement = (torch.tensor(arrays[k].transpose(2, 1, 0).copy()) for k in ("trac", "dspl"))
        mask = on_or_inside(arrays["brdx"], arrays["brdy"], 104, 104)
        substrate = {
            "pixel_size_um": 1.0,
            "youngs_modulus_pa": float(arrays["E_Pa"]),
            "poisson_ratio": float(arrays["nu"]),
        }
    return traction, displacement, mask, substrate


def interior_error(found, traction, mask):
    return float((found - traction)[:, mask].norm() / traction[:, mask].norm())


def best_error(displacement, traction, mask, substrate):
    strengths = torch.logspace(-11, -7, 41, dtype=torch.float64)
    fields = displacement.expand(41, -1, -1, -1)
    found = traction_from_displacement(fields, **substrate, regularization=strengths)
    return min(interior_error(field, traction, mask) for field in found)


def test_the_generic_cell_at_its_best_lambda(generic):
    traction, displacement, mask, substrate = generic
    assert int(mask.sum()) == INTERIOR_PX
    best = best_error(displacement, traction, mask, substrate)
    assert best == pytest.approx(0.1477, abs=5e-4)
    chosen = choose_regularization(displacement, **substrate)
    found = traction_from_displacement(displacement, **substrate, regularization=chosen)
    assert interior_error(found, traction, mask) < 1.03 * best


@pytest.mark.parametrize("noise_px", [0.00765, 0.0188, 0.0375])
def test_evidence_is_near_the_best_on_the_generic_cell_with_noise(generic, noise_px):
    traction, displacement, mask, substrate = generic
    rng = np.random.default_rng(0)
    noisy = displacement + torch.tensor(rng.normal(scale=noise_px / np.sqrt(2), size=displacement.shape))
    best = best_error(noisy, traction, mask, substrate)
    found = traction_from_displacement(noisy, **substrate, regularization=choose_regularization(noisy, **substrate))
    error = interior_error(found, traction, mask)
    assert error < 1.05 * best
    assert interior_error(cutoff_filter(found, mask, frame_border_px=8), traction, mask) < error
