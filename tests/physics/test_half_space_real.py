"""Forward elasticity against the displacements that Wang & Lin stored with their tractions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from physics.half_space import displacement_from_traction

FOLDER = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "dl_tfm"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the authors' sample fields in shared/real/dl_tfm")


def stored(name, suffix=""):
    """(traction, displacement in px, E), turned into (component, y, x)."""
    with np.load(FOLDER / name) as arrays:
        modulus = arrays["E_Pa"] if "E_Pa" in arrays else arrays["E_training_units"]
        fields = [torch.tensor(arrays[f"{key}{suffix}"].transpose(2, 1, 0).copy()) for key in ("trac", "dspl")]
        return *fields, float(modulus), float(arrays["nu"])


def mismatch(name, suffix="", **options):
    traction, displacement, modulus, nu = stored(name, suffix)
    published = {"centre_element": "published", "reach": "published", **options}
    u = displacement_from_traction(
        traction, pixel_size_um=1.0, youngs_modulus_pa=modulus, poisson_ratio=nu, **published
    )
    return float((u - displacement).norm() / displacement.norm())


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("generic_MLData0018_104.npz", ""),
        ("neuron_MLData0001_160.npz", ""),
        ("training_samples_104.npz", ""),
        ("training_samples_104.npz", "_radial"),
    ],
)
def test_the_published_operator_gives_the_stored_displacement(name, suffix):
    assert mismatch(name, suffix) < 1e-12


def test_the_keratocyte_was_not_stored_with_the_traction_that_moved_it():
    assert mismatch("keratocyte_MLData0001_160.npz") == pytest.approx(4.8e-3, rel=0.02)


@pytest.mark.parametrize("options", [{"centre_element": "exact"}, {"reach": "full"}])
def test_the_exact_operator_is_another_one(options):
    assert 1e-2 < mismatch("generic_MLData0018_104.npz", **options) < 0.5
