"""Displacement fields of thin gels: conditions.json says how thick, and the pairs, the shards and the batches know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.converters import dl_tfm
from datamodules.dl_tfm import TractionData
from lightning_modules.dl_tfm import FourierTractionCytometry
from mechanolab import data
from mechanolab.config import compose
from physics.half_space import displacement_from_traction

THICKNESS_UM, PIXEL_UM, SIZE = 3.0, 2.0, 32
GEL = {"youngs_modulus_pa": 5000.0, "poisson_ratio": 0.45}
LAYER = {**GEL, "pixel_size_um": PIXEL_UM, "centre_element": "published", "reach": "published"}


def pulled() -> tuple[torch.Tensor, torch.Tensor]:
    """(displacement in um, traction in Pa), (2, y, x) each: two dipoles of patches across each other."""
    traction_pa = torch.zeros(2, SIZE, SIZE, dtype=torch.float64)
    traction_pa[0, 10:16, 6:12], traction_pa[0, 10:16, 20:26] = 1500.0, -1500.0
    traction_pa[1, 5:11, 13:19], traction_pa[1, 20:26, 13:19] = 700.0, -700.0
    return displacement_from_traction(traction_pa, thickness_um=THICKNESS_UM, **LAYER), traction_pa


def archive(folder: Path, *, names: tuple[str, ...] = ("cell1.npz",), **conditions: float) -> Path:
    """Write the pair as the authors store theirs, once for each name."""
    folder.mkdir(parents=True)
    displacement_um, traction_pa = pulled()
    for name in names:
        dspl, trac = (field.numpy().transpose(2, 1, 0) for field in (displacement_um / PIXEL_UM, traction_pa))
        np.savez(folder / name, dspl=dspl, trac=trac)
    (folder / "conditions.json").write_text(json.dumps({**GEL, "pixel_size_um": PIXEL_UM, **conditions}))
    return folder


def loaded(**changes: object) -> TractionData:
    arguments = compose("dl_tfm_fttc")["data"] | {"noise_px": 0.0, "batch_size": 4, "seed": 0} | changes
    arguments.pop("class_path")
    return TractionData(**arguments)


def test_a_pair_of_a_thin_gel_is_one_once_its_thickness_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cell1\.npz.* gel_thickness_um of a thin gel"):
        list(dl_tfm.convert(archive(tmp_path / "untold")))
    told = archive(tmp_path / "told", gel_thickness_um=THICKNESS_UM)
    (sample,) = dl_tfm.convert(told)
    assert float(sample.fields["gel_thickness_um"]) == THICKNESS_UM
    assert set(dl_tfm.fields(told)) - {"recipe"} == set(sample.fields)


@pytest.mark.parametrize("value", [0, -3.0, "thin", True])
def test_a_thickness_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    folder = archive(tmp_path / "wrong", gel_thickness_um=value)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"conditions\.json: gel_thickness_um must be a positive number"):
        list(dl_tfm.convert(folder))


def test_own_fields_on_a_thin_gel_are_predicted_as_such_without_a_word_to_the_method(tmp_path: Path) -> None:
    folder = archive(tmp_path / "own", gel_thickness_um=THICKNESS_UM)
    module = loaded()
    module.predict_on(files=[folder / "cell1.npz"])
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert batch.gel_thickness_um.tolist() == [THICKNESS_UM]
    numbers = compose("dl_tfm_fttc", overrides=["module.regularization=0.0"])["module"]
    numbers.pop("class_path")
    untold, told = (
        FourierTractionCytometry(**{**numbers, "gel_thickness_um": told}).predict_step(batch, 0)
        for told in (None, THICKNESS_UM)
    )
    assert torch.equal(untold.traction_pa, told.traction_pa)
    half_space = FourierTractionCytometry(**{**numbers, "gel_thickness_um": torch.inf}).predict_step(batch, 0)
    assert untold.traction_nrmse < 0.5 * half_space.traction_nrmse


def test_converted_shards_keep_the_thickness_and_another_operator_is_one_of_the_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHANOLAB_DATA", str(tmp_path / "data"))
    names = ("cell1.npz", "cell2.npz", "cell3.npz")
    assert data.convert("dl_tfm", source=archive(tmp_path / "thin", names=names, gel_thickness_um=THICKNESS_UM)) == 0
    where = {"data_root": str(tmp_path / "data"), "dataset": "thin"}
    stored, wider = loaded(**where), loaded(**where, reach="full", poisson_ratio=0.5)
    for module in (stored, wider):
        module.setup("test")
    (batch,), (anew,) = stored.test_dataloader(), wider.test_dataloader()
    assert batch.gel_thickness_um.tolist() == anew.gel_thickness_um.tolist() == [THICKNESS_UM]
    displacement_um, traction_pa = pulled()
    expected = displacement_from_traction(
        traction_pa, thickness_um=THICKNESS_UM, **{**LAYER, "reach": "full", "poisson_ratio": 0.5}
    )
    torch.testing.assert_close(batch.displacement_px[0].double() * PIXEL_UM, displacement_um, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(anew.displacement_px[0].double() * PIXEL_UM, expected, rtol=1e-4, atol=1e-5)


def test_a_reach_that_does_not_fit_the_stored_fields_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHANOLAB_DATA", str(tmp_path / "data"))
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ("u", "v", "tx", "ty"):
        np.save(folder / f"{name}.npy", np.zeros((9, 12)))
    conditions = {**GEL, "pixel_size_um": PIXEL_UM, "image_pixel_size_um": PIXEL_UM}
    (folder / "conditions.json").write_text(json.dumps(conditions))
    assert data.convert("dl_tfm", source=folder) == 0
    module = loaded(data_root=str(tmp_path / "data"), dataset="odd", reach="published")
    with pytest.raises(
        ValueError, match=r"reach 'published' needs a square field of even size, got \(y, x\) = \(9, 12"
    ):
        module.setup("test")
