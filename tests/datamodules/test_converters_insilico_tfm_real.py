"""The published fibroblast, bead tracking and tractions by another package, against its own stored numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from datamodules.converters.insilico_tfm import convert

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "insilico_tfm"
FIBROBLAST = REAL / "fibroblast_3T3_10kPa.npz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FIBROBLAST.is_file(), reason="the real recording lies beside the checkout only"),
]


@pytest.mark.parametrize("filtering", ["nofilter", "gauss3um"])
def test_the_fibroblast_becomes_frames_with_its_stored_tractions(tmp_path: Path, filtering: str) -> None:
    shutil.copy(FIBROBLAST, tmp_path)
    conditions = {
        "image": "cell_brightfield",
        "traction_x": f"tx_Pa_{filtering}",
        "traction_y": f"ty_Pa_{filtering}",
    }
    (tmp_path / "conditions.json").write_text(json.dumps(conditions))
    samples = list(convert(tmp_path))
    with np.load(FIBROBLAST) as arrays:
        images = arrays["cell_brightfield"]
        grid = np.hypot(arrays[f"tx_Pa_{filtering}"], arrays[f"ty_Pa_{filtering}"])
    assert len(samples) == 6
    # vectors lie at 15.5, 23.5, ...: halfway between pixels, whose four neighbours average to them
    for sample, image, vectors in zip(samples, images, grid, strict=True):
        np.testing.assert_array_equal(sample.fields["image"][0], image)
        assert float(sample.fields["pixel_size_um"]) == pytest.approx(0.41501, abs=1e-5)
        found = sample.fields["traction_pa"][0].astype(np.float64)
        around = np.mean(
            [found[15 + dy : 504 : 8, 15 + dx : 504 : 8][:61, :61] for dy in (0, 1) for dx in (0, 1)], axis=0
        )
        assert np.corrcoef(around.ravel(), vectors.ravel())[0, 1] > 0.99
        assert found.max() <= vectors.max() * (1 + 1e-6)
        assert found.max() > 0.85 * vectors.max()
        # components cancel where neighbouring vectors disagree, as unfiltered noise does
        assert around.mean() == pytest.approx(vectors.mean(), rel=0.02 if filtering == "gauss3um" else 0.12)


def test_the_largest_filtered_tractions_are_the_published_ones(tmp_path: Path) -> None:
    numbers = json.loads((REAL / "reference_numbers.json").read_text())
    shutil.copy(FIBROBLAST, tmp_path)
    (tmp_path / "conditions.json").write_text(
        json.dumps({"image": "beads", "traction_x": "tx_Pa_gauss3um", "traction_y": "ty_Pa_gauss3um"})
    )
    largest = [float(sample.fields["traction_pa"].max()) for sample in convert(tmp_path)]
    published = [frame["t_max_gauss"] for frame in numbers]
    assert len(largest) == len(published)
    # the camera's pixels lie between the vectors of the grid, and linear interpolation makes no new maximum
    for pixel_pa, vector_pa in zip(largest, published, strict=True):
        assert 0.9 * vector_pa < pixel_pa <= vector_pa * (1 + 1e-6)
