"""What `trainer.precision: auto` means on which machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mechanolab import config, data, launch, recorded_tests


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def pretend(*, cuda: bool | None, **processor: bool) -> None:
        """A machine; `cuda` is whether its GPU computes in bfloat16, None for no GPU."""
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **processor})
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: cuda or including_emulation)

    return pretend


@pytest.mark.parametrize(
    ("facts", "options", "expected"),
    [
        ({"cuda": None}, {}, "32-true"),
        ({"cuda": None, "avx512_bf16": False, "amx_bf16": False}, {}, "32-true"),
        ({"cuda": None, "avx512_bf16": True}, {}, "bf16-mixed"),
        ({"cuda": None, "amx_bf16": True}, {}, "bf16-mixed"),
        ({"cuda": True}, {}, "bf16-mixed"),
        ({"cuda": True}, {"accelerator": "cuda"}, "bf16-mixed"),
        ({"cuda": True}, {"accelerator": "cpu"}, "32-true"),
        ({"cuda": False, "amx_bf16": True}, {}, "32-true"),
        ({"cuda": False, "amx_bf16": True}, {"accelerator": "cpu"}, "bf16-mixed"),
    ],
)
def test_auto_is_bfloat16_only_where_the_machine_computes_in_it(
    machine: Callable[..., None], facts: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    machine(**facts)
    assert launch.precision_of({"precision": "auto", **options}) == expected
    for asked in ("32-true", "64-true", "bf16-mixed", 16, None):
        assert launch.precision_of({"precision": asked, **options}) == asked


@pytest.mark.parametrize(("amx", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_run_computes_in_what_auto_means_and_says_so(
    machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amx: bool, expected: str
) -> None:
    machine(cuda=None, amx_bf16=amx)
    monkeypatch.setenv("MECHANOLAB_RUNS", str(tmp_path / "runs"))
    data.simulate("dl_tfm", out=tmp_path / "dl_tfm" / "twin", count=4, seed=0, workers=1)
    settings = {"data.data_root": str(tmp_path), "data.dataset": "twin"}
    composed = config.compose("dl_tfm_fttc", values={**settings, "trainer.precision": "auto"})
    trainer, _ = launch.make_trainer(launch.construct(composed), None)
    assert trainer.precision == expected
    recorded_tests.record(composed, experiment="dl_tfm_fttc", run_id="a", tested_run=None)
    assert json.loads((tmp_path / "runs/dl_tfm_fttc/a/environment.json").read_text())["precision"] == expected
