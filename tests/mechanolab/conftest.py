"""What the tests that launch something share: a small data set, an empty runs folder, an untrained experiment."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def twin_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that holds circular/twin with 80 pictures."""
    from mechanolab import data

    root = tmp_path_factory.mktemp("data")
    data.simulate("circular", out=root / "circular" / "twin", count=80, seed=3, workers=1)
    return root


@pytest.fixture(scope="module")
def places(twin_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runs folder of this file's tests; data come from `twin_root`, nothing reaches W&B."""
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MECHANOLAB_DATA", str(twin_root))
        patch.setenv("MECHANOLAB_RUNS", str(runs))
        patch.setenv("WANDB_MODE", "disabled")
        patch.delenv("WANDB_RUN_ID", raising=False)
        patch.delenv("WANDB_RUN_GROUP", raising=False)
        yield runs


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`_toy_fields.py` as experiments `toy` (no training) and `toy_net`, in a checkout and with runs of their own."""
    path = Path(__file__).with_name("_toy_fields.py")
    specification = importlib.util.spec_from_file_location("toy_fields", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "toy_fields", module)
    specification.loader.exec_module(module)
    module.install(tmp_path, monkeypatch)
    return module
