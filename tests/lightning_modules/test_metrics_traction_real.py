"""Traction metrics on the published test cell: the authors' error, from the authors' arrays and outline."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.metrics.traction import forward_residual, grown, net_force_share, nrmse, share_outside

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm"
CELL = REAL / "generic_MLData0018_104.npz"
PRINTED = REAL / "TError.csv"
INTERIOR_PX = 2213
ON_EDGE_PX = 1e-9

pytestmark = pytest.mark.skipif(not CELL.is_file(), reason="needs the published cell generic_MLData0018_104.npz")


def inside_or_on(polygon_x, polygon_y, size):
    """Pixel centres (1-based) inside the polygon or on it: even-odd crossings, then distance to every edge."""
    y, x = np.mgrid[1 : size + 1, 1 : size + 1].astype(float)
    inside, on = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    for x1, y1, x2, y2 in zip(polygon_x, polygon_y, np.roll(polygon_x, -1), np.roll(polygon_y, -1), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1) + x1)
        squared = (x2 - x1) ** 2 + (y2 - y1) ** 2
        share = np.clip(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / squared, 0, 1) if squared else 0.0
        on |= np.hypot(x1 + share * (x2 - x1) - x, y1 + share * (y2 - y1) - y) < ON_EDGE_PX
    return torch.from_numpy(inside | on)


@pytest.fixture(scope="module")
def cell():
    with np.load(CELL) as arrays:
        fields = {
            name: torch.from_numpy(arrays[key].astype(np.float64).transpose(2, 1, 0).copy())
            for name, key in (("truth", "trac"), ("published", "tracnet_pred_matlab"), ("displacement_px", "dspl"))
        }
        substrate = {"youngs_modulus_pa": float(arrays["E_Pa"]), "poisson_ratio": float(arrays["nu"])}
        interior = inside_or_on(arrays["brdx"], arrays["brdy"], 104)
    generator = {"pixel_size_um": 1.0, "centre_element": "published", "reach": "published"}
    return fields, interior, {**substrate, **generator}


def test_published_output_has_the_published_error(cell):
    fields, interior, _ = cell
    assert interior.sum().item() == INTERIOR_PX
    error = nrmse(fields["published"], fields["truth"], interior).item()
    assert error == pytest.approx(0.114393, abs=5e-7)
    printed = float(PRINTED.read_text(encoding="utf-8").splitlines()[1].split(",")[1])
    assert error == pytest.approx(printed, abs=1e-6)


def test_stored_truth_explains_the_stored_displacement_exactly(cell):
    fields, _, generator = cell
    assert forward_residual(fields["truth"], fields["displacement_px"], **generator).item() < 1e-12
    assert 0.01 < forward_residual(fields["published"], fields["displacement_px"], **generator).item() < 0.1


def test_stored_truth_is_balanced_and_stays_inside(cell):
    fields, interior, _ = cell
    assert net_force_share(fields["truth"]).item() < 0.1
    assert share_outside(fields["truth"], grown(interior, radius_px=1)).item() < 1e-12
