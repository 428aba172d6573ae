"""Prediction on the user's own pictures: what is cut, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules.circular import CircularData


def build() -> CircularData:
    """A data module whose data set does not exist: own pictures do not need one."""
    return CircularData(
        data_root="nowhere",
        dataset="twin",
        split="default",
        batch_size=2,
        num_workers=0,
        seed=0,
        augment=True,
        copies=1,
        rotation_step_deg=None,
        shift_fraction=0.2,
        zoom_fraction=0.1,
        mirror=True,
        motion_probability=1.0,
        memory_gib=0.0,
    )


def picture(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def test_prediction_on_files_of_the_right_size_takes_them_as_they_are(tmp_path):
    data, generator = build(), np.random.default_rng(1)
    names = ["b.tif", "a.png", "c.tif"]
    images = {name: generator.integers(0, 256, (128, 128), dtype=np.uint8) for name in names}
    data.predict_on(files=[picture(tmp_path / name, image) for name, image in images.items()])
    data.prepare_data()
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [name for batch in batches for name in batch.sample_id] == names
    expected = np.stack(list(images.values()))[:, None] / np.float32(255)
    np.testing.assert_array_equal(torch.cat([batch.image for batch in batches]).numpy(), expected)
    assert all(batch.angle_rad.isnan().all() for batch in batches)
    assert data.data_folder is None
    assert data.irreducible_error is None


def test_prediction_with_a_pixel_size_cuts_the_papers_window(tmp_path):
    rng = np.random.default_rng(0)
    big = rng.integers(0, 256, (301, 200), dtype=np.uint8)
    data = build()
    data.predict_on(files=[picture(tmp_path / "u373.png", big)], pixel_size_um=0.65)
    (batch,) = data.predict_dataloader()
    expected = cv2.resize(np.ascontiguousarray(big[65:235, 15:185]), (128, 128), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(batch.image[0, 0].numpy() * 255, expected)
    exact = rng.integers(0, 256, (128, 128), dtype=np.uint8)
    data.predict_on(files=[picture(tmp_path / "own.png", exact)], pixel_size_um=110.5 / 128)
    (batch,) = data.predict_dataloader()
    np.testing.assert_array_equal(np.rint(batch.image[0, 0].numpy() * 255), exact)


def test_files_that_cannot_be_predicted_on_are_refused_by_name(tmp_path):
    data, grey = build(), np.arange(128 * 128, dtype=np.uint16).reshape(128, 128)
    small = picture(tmp_path / "small.png", np.zeros((100, 128), np.uint8))
    for files, pixel_size_um, message in [
        ([picture(tmp_path / "deep.tif", grey)], None, r"deep.tif is uint16 .* 8-bit grey was expected"),
        ([picture(tmp_path / "red.png", np.dstack([grey % 250, grey % 249, grey % 7]))], None, "red.png is a colour"),
        ([small], None, r"small.png is 128 x 100 px, without a pixel size 128 x 128 px are needed: give pixel_size_um"),
        ([small], 0.65, r"small.png is 128 x 100 px, too small for the window of 110.5 um, which is 170 x 170 px"),
        ([small], 0.0, "^pixel_size_um must be positive"),
        ([small], math.inf, "^pixel_size_um must be positive"),
        ([small, small], None, "would be listed under one name"),
        ([], None, "^files must name at least one image"),
        (None, 0.65, "^pixel_size_um needs files"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.predict_on(files=files, pixel_size_um=pixel_size_um)
    with pytest.raises(FileNotFoundError, match="no image at"):
        data.predict_on(files=[tmp_path / "absent.png"])
    with pytest.raises(ValueError, match=r"^split must be"):
        data.predict_on(split="all")
    assert data.data_folder is not None
