"""What a network that normalises by the moments of its batch asks of training is asked when a run is composed."""

from __future__ import annotations

import pytest

from mechanolab.config import RequestError, compose


def test_a_crop_of_which_the_halvings_leave_one_value_is_refused_in_advance():
    said = r"^data\.crop_px must be above 32 px where a crop comes alone, .* got 32"
    for words, refused in (
        (["data.crop_px=32", "data.batch_size=1"], said),
        (["data.crop_px=32", "data.steps_per_epoch=null"], said),
        (["data.crop_px=100"], r"^data\.crop_px must be a multiple of 32 px, .* got 100"),
    ):
        with pytest.raises(RequestError, match=refused):
            compose("insilico_tfm_small", overrides=["module.blocks=5", *words])
    for words, side in ((["data.crop_px=64", "data.batch_size=1"], 64), (["data.crop_px=32"], 32)):
        assert compose("insilico_tfm_small", overrides=["module.blocks=5", *words])["data"]["crop_px"] == side


def test_moments_over_several_devices_are_refused_in_advance():
    with pytest.raises(RequestError, match=r"^trainer\.sync_batchnorm must be false, .*: raise data\.batch_size"):
        compose("insilico_tfm", overrides=["trainer.sync_batchnorm=true"])
