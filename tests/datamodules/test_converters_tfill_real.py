"""A real pair of DNA and cell body from the files to a batch, and the nuclei that are known to be in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from datamodules.converters import tfill
from datamodules.tfill import ActinNucleusData
from lightning_modules.metrics.nuclei import segment
from mechanolab import data

FOLDER = Path(__file__).resolve().parents[2] / ".." / "shared" / "real" / "tfill"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the real pair in shared/real/tfill")

FIELD_UM = 512 * 0.656  # of a test's own: the recording's scale is not stated
OPTIONS = {
    "split": "default", "batch_size": 1, "num_workers": 0, "seed": 0, "memory_gib": 0.0, "load_px": 512,
    "crop_px": 512, "symmetries": "none", "test_view": "whole", "contrast": "full_range", "nucleus_mask": "otsu",
    "tile_um": FIELD_UM,
}  # fmt: skip


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "ht29"
    folder.mkdir()
    for name in ("d0", "d2"):
        shutil.copy(FOLDER / f"AS_09125_050116030001_D03f00{name}.tif", folder)
    stated = {"field_um": FIELD_UM, "actin_files": "AS_*d2.tif", "nucleus_files": "AS_*d0.tif"}
    (folder / "conditions.json").write_text(json.dumps(stated))
    return folder


def test_the_pair_is_read_as_it_was_stored(source):
    (sample,) = tfill.convert(source)
    with np.load(FOLDER / "pair.npz") as known:
        assert np.array_equal(sample.fields["nucleus"][0], known["nuclei_dna"])
        assert np.array_equal(sample.fields["actin"][0], known["actin"])
    stated = json.loads((FOLDER / "reference_numbers.json").read_text())
    actin, nucleus = (sample.fields[name].ravel().astype(float) for name in ("actin", "nucleus"))
    assert np.corrcoef(actin, nucleus)[0, 1] == pytest.approx(stated["pearson_dna_actin"])


def test_the_batch_still_shows_its_nuclei(source, tmp_path, monkeypatch):
    monkeypatch.setenv("MECHANOLAB_DATA", str(tmp_path / "data"))
    assert data.convert("tfill", source=source) == 0
    module = ActinNucleusData(data_root=str(tmp_path / "data"), dataset="ht29", **OPTIONS)
    module.setup("test")
    (batch,) = module.test_dataloader()
    grey = np.rint((batch.nucleus[0, 0].numpy() + 1) / 2 * 255)
    assert segment(grey, minimum_area_px=30).max() == 269
    assert segment(grey).max() == 263
    assert batch.pixel_size_um.item() == pytest.approx(0.656)
    assert 0.1 < batch.nucleus_mask.float().mean() < 0.14
    assert batch.cell_mask.float().mean() > 0.3
    assert (batch.nucleus_mask[0, 0] & ~batch.cell_mask[0]).sum() < 0.35 * batch.nucleus_mask.sum()


def test_its_actin_alone_is_predicted_on(source, tmp_path):
    module = ActinNucleusData(
        data_root=str(tmp_path), dataset="none", **OPTIONS | {"load_px": 384, "crop_px": 384, "tile_um": 159.41}
    )
    module.predict_on(files=[source / "AS_09125_050116030001_D03f00d2.tif"], pixel_size_um=0.656)
    batches = list(module.predict_dataloader())
    assert len(batches) == 9  # windows of 243 px cover 512 px in threes
    assert {batch.actin.shape for batch in batches} == {(1, 1, 384, 384)}
    assert batches[0].pixel_size_um.item() == pytest.approx(159.41 / 384, rel=2e-3)
    assert all(batch.nucleus.isnan().all() for batch in batches)
