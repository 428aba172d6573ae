"""A small data set and an empty runs folder for the tests that launch something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
