"""W&B offline, switched off, and with a key but no route; figures reach it as pictures one can see."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
from matplotlib.figure import Figure

from mechanolab.callbacks.exact_resume import Preempted
from mechanolab.callbacks.figures import pixels
from mechanolab.cli import main
from mechanolab.loggers import MetricsFile, finish_wandb, has_wandb_key, start_wandb


def steps() -> int:
    return 7


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_a_key_is_found_where_wandb_looks(tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n login user\n password 0123\n")
    assert has_wandb_key()
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()


def test_disabled_means_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert start_wandb(tmp_path, run_id="a", group="g", config={}, batches_seen=steps) is None
    assert not list(tmp_path.iterdir())


def test_a_figure_becomes_eight_bit_colours() -> None:
    figure = Figure(figsize=(2, 1), dpi=50, facecolor="white")
    image = pixels(figure)
    assert image.shape == (50, 100, 3)
    assert image.dtype.name == "uint8"
    assert image.min() == 255


def test_metrics_that_are_no_numbers_are_still_json(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.jsonl", steps)
    log.log_metrics({"val/loss": float("nan"), "epoch": 2})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["step"], line["epoch"], line["val/loss"]) == (7, 2, "nan")


@pytest.mark.parametrize(
    ("error", "said"),
    [(None, ["finish 0"]), (Preempted, ["preempting", "finish 1"]), (RuntimeError, ["finish 1"])],
    ids=["finished", "preempted", "failed"],
)
def test_wandb_is_told_how_a_run_ended(error: type[BaseException] | None, said: list[str]) -> None:
    heard: list[str] = []
    summary: dict[str, float] = {}
    run = SimpleNamespace(
        mark_preempting=lambda: heard.append("preempting"),
        finish=lambda exit_code: heard.append(f"finish {exit_code}"),
        summary=summary,
    )
    logger: Any = SimpleNamespace(experiment=run)
    with pytest.raises(error) if error else nullcontext(), finish_wandb(logger, lambda: {"best_score": 2.0}):
        if error:
            raise error("stop")
    assert heard == said
    assert summary == {"best_score": 2.0}


@pytest.mark.slow
def test_an_offline_run_holds_config_history_and_pictures(
    places: Path, no_key: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data.batch_size=8", "trainer.max_epochs=1", "--run-id", "offline"]
    assert main(["fit", "circular_twin", *words]) == 0
    said = capsys.readouterr().err
    assert said.count("this run logs offline") == 1
    (folder,) = (places / "circular_twin" / "offline" / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(folder)]
    inspected = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    config = inspected["config"]
    assert config["module"]["configuration"] == "circle-sigmoid-distance_squared"
    assert inspected["summary"]["val/angular_error_deg"] > 0
    assert inspected["summary"]["trainer/batches"] == 8
    pictures = list(folder.rglob("*.png"))
    assert {path.name.rsplit("_", 2)[0] for path in pictures} == {"learning_curves", "directions", "polar_error"}
    for path in pictures:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.std() > 10


@pytest.mark.slow
def test_a_key_without_a_route_falls_back_to_offline_in_time(
    tmp_path: Path, no_key: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    run = start_wandb(tmp_path, run_id="a", group="g", config={}, batches_seen=steps)
    assert time.monotonic() - began < 15
    assert "this run logs offline" in capsys.readouterr().err
    assert run is not None
    run.log_metrics({"val/loss": 1.0})
    run.experiment.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
