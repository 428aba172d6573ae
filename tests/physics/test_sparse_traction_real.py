"""Group-sparse traction on the cell that Wang & Lin stored with its true traction."""

from pathlib import Path

import numpy as np
import pytest
import torch

from physics.sparse_traction import estimate_noise_std, traction_from_displacement_sparse

FOLDER = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the authors' sample fields in shared/real/dl_tfm")
PUBLISHED_ERROR = 0.1144  # of the network on this cell's displacement without noise
NOISE_PX = 0.00765  # magnitude of the vector, as the source has it


@pytest.fixture(scope="module")
def cell():
    """(traction in Pa, displacement in px, operator), turned into (component, y, x)."""
    with np.load(FOLDER / "generic_MLData0018_104.npz") as arrays:
        traction, displacement = (torch.tensor(arrays[key].transpose(2, 1, 0).copy()) for key in ("trac", "dspl"))
        substrate = {"youngs_modulus_pa": float(arrays["E_Pa"]), "poisson_ratio": float(arrays["nu"])}
    return (
        traction,
        displacement,
        {"pixel_size_um": 1.0, "centre_element": "published", "reach": "published"} | substrate,
    )


def test_the_stored_traction_is_found_from_the_stored_displacement(cell):
    traction, displacement, operator = cell
    found = traction_from_displacement_sparse(displacement, **operator)
    assert float((found - traction).norm() / traction.norm()) < 5e-4


def test_with_noise_the_error_stays_below_that_of_the_published_network_without(cell):
    traction, displacement, operator = cell
    rng = np.random.default_rng(0)
    noisy = displacement + torch.tensor(rng.normal(0, NOISE_PX / np.sqrt(2), displacement.shape))
    assert float(estimate_noise_std(noisy)) == pytest.approx(NOISE_PX / np.sqrt(2), rel=0.15)
    found = traction_from_displacement_sparse(noisy, **operator)
    assert float((found - traction).norm() / traction.norm()) < PUBLISHED_ERROR
