"""A run stopped anywhere and started again ends with the weights and metrics of the uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules.circular import CircularRegression, QuadrantClassifier
from mechanolab import launch, runs
from mechanolab.callbacks.exact_resume import ExactResume, derive_seed
from mechanolab.config import compose
from mechanolab.runs import read_metrics

EPOCHS = 3
BATCHES = 8  # of an epoch: 64 training samples in batches of 8
WORDS = ["data.batch_size=8", f"trainer.max_epochs={EPOCHS}", "trainer.log_every_n_steps=1", "data.augment=true"]


class PowerCut(BaseException):
    """What a kill looks like from inside: nothing gets a chance to tidy up."""


def fit(run_id: str, *, words: list[str] = WORDS, values: dict[str, Any] | None = None) -> int:
    config = compose("circular_twin", values=values, overrides=words)
    return launch.fit(config, experiment="circular_twin", run_id=run_id)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(folder / "metrics.jsonl")]


def assert_same_run(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert lines(one) == lines(other)
    assert runs.read_status(other)["state"] == "finished"


@pytest.fixture(scope="module")
def uninterrupted(places: Path) -> Path:
    assert fit("whole") == 0
    return places / "circular_twin" / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save_every_s", "cuts"),
    [(0.0, (2, BATCHES, BATCHES + 1)), (1e9, (BATCHES + 3, 3 * BATCHES - 1))],
    ids=["saved every batch", "saved every epoch"],
)
def test_a_run_cut_at_any_step_ends_like_the_whole_run(
    uninterrupted: Path, places: Path, monkeypatch: pytest.MonkeyPatch, save_every_s: float, cuts: tuple[int, ...]
) -> None:
    original = CircularRegression.training_step
    for cut in cuts:
        done = 0

        def step(self: Any, batch: Any, batch_idx: int, cut: int = cut) -> Any:
            nonlocal done
            if done == cut:
                raise PowerCut
            done += 1
            return original(self, batch, batch_idx)

        monkeypatch.setattr(ExactResume, "save_every_s", save_every_s)
        monkeypatch.setattr(CircularRegression, "training_step", step)
        with pytest.raises(PowerCut):
            fit(f"cut{cut}")
        monkeypatch.undo()
        assert runs.read_status(places / "circular_twin" / f"cut{cut}")["state"] == "failed"
        assert fit(f"cut{cut}") == 0
        assert_same_run(uninterrupted, places / "circular_twin" / f"cut{cut}")


@pytest.mark.slow
def test_dropout_and_a_schedule_that_looks_at_a_metric_are_resumed_too(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"class_path": "lightning_modules.circular.QuadrantClassifier", "class_weights": None}
    module = {**section, "learning_rate": 1e-6, "momentum": 0.9, "weight_decay": 0.0}
    assert fit("quadrants", values={"module": module}) == 0
    original = QuadrantClassifier.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == EPOCHS - 1 and batch_idx == 2:
            raise PowerCut
        return original(self, batch, batch_idx)

    monkeypatch.setattr(QuadrantClassifier, "training_step", step)
    with pytest.raises(PowerCut):
        fit("cut", values={"module": module})
    checkpoint = torch.load(places / "circular_twin" / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == EPOCHS - 1
    monkeypatch.undo()
    assert fit("cut", values={"module": module}) == 0
    assert_same_run(places / "circular_twin" / "quadrants", places / "circular_twin" / "cut")


@pytest.mark.slow
def test_a_run_that_gathers_gradients_is_saved_between_steps_only(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "trainer.accumulate_grad_batches=3"]  # of 8 batches: the third step has two
    assert fit("gathered", words=words) == 0
    original = CircularRegression.training_step
    monkeypatch.setattr(ExactResume, "save_every_s", 0.0)
    for cut in (1, BATCHES - 1, BATCHES + 2):
        done = 0

        def step(self: Any, batch: Any, batch_idx: int, cut: int = cut) -> Any:
            nonlocal done
            done += 1
            if done == cut + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, batch, batch_idx)

        monkeypatch.setattr(CircularRegression, "training_step", step)
        assert fit(f"gathered{cut}", words=words) == launch.PREEMPTED
        monkeypatch.setattr(CircularRegression, "training_step", original)
        assert fit(f"gathered{cut}", words=words) == 0
        assert_same_run(places / "circular_twin" / "gathered", places / "circular_twin" / f"gathered{cut}")


@pytest.mark.slow
def test_a_position_within_an_epoch_means_nothing_in_another_order(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CircularRegression.training_step

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CircularRegression, "training_step", step)
    assert fit("within") == launch.PREEMPTED
    monkeypatch.undo()
    for words, sentence in (
        (
            ["data.batch_size=4", *WORDS[1:]],
            "stands within an epoch with data.batch_size 8, not 4: go on with the same",
        ),
        ([*WORDS, "seed=1"], "with seed 0, not 1"),
        ([*WORDS, "trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp"], "num_nodes): 1, not 2"),
    ):
        config = compose("circular_twin", overrides=words)
        with pytest.raises(launch.RequestError, match=re.escape(sentence)):
            launch.fit(config, experiment="circular_twin", run_id="other", resume=places / "circular_twin" / "within")
        assert not (places / "circular_twin" / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("where", ["on_fit_start", "test_step", "on_test_end"])
def test_a_stop_outside_the_training_loop_is_no_success(
    uninterrupted: Path, places: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    original = getattr(CircularRegression, where)

    def stop(self: Any, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(CircularRegression, where, stop)
    folder = places / "circular_twin" / where
    assert fit(where) == launch.PREEMPTED
    assert runs.read_status(folder)["state"] == "preempted"
    monkeypatch.undo()
    assert fit(where) == 0
    assert_same_run(uninterrupted, folder)


@pytest.mark.slow
def test_a_run_that_is_stopped_while_its_checkpoints_shrink_is_finished(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(path: Path) -> None:
        raise PowerCut

    monkeypatch.setattr(launch, "keep_weights_only", cut)
    with pytest.raises(PowerCut):
        fit("shrinking")
    assert runs.read_status(places / "circular_twin" / "shrinking")["state"] == "finished"
    monkeypatch.undo()
    assert fit("shrinking") == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_process_stopped_by_a_signal_goes_on_where_it_was(
    uninterrupted: Path, places: Path, number: signal.Signals
) -> None:
    folder = places / "circular_twin" / number.name
    words = [*WORDS, "data.num_workers=2", "--run-id", number.name]
    command = [sys.executable, "-m", "mechanolab", "fit", "circular_twin", *words]
    process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.PIPE, text=True)
    reached = 11  # in the second epoch
    deadline = time.monotonic() + 120
    while not any(line["step"] >= reached for line in read_metrics(folder / "metrics.jsonl")):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert runs.read_run(folder).state == "preempted"
    else:
        assert process.returncode == 75, said
        assert runs.read_status(folder)["state"] == "preempted"
    assert subprocess.run(command, env=dict(os.environ), capture_output=True, check=False).returncode == 0
    assert_same_run(uninterrupted, folder)  # which had no workers: batches must not depend on them


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_another_configuration_is_refused(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    assert fit("whole") == 0
    assert "finished already" in capsys.readouterr().err
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
    assert fit("whole", words=[*WORDS, "data.num_workers=1"]) == 0  # how data are read is no other configuration
    with pytest.raises(launch.RequestError, match=r"made with data\.batch_size = 8, not 4; choose another --run-id"):
        fit("whole", words=["data.batch_size=4", *WORDS[1:]])
    checkpoint = torch.load(uninterrupted / "checkpoints" / "best.ckpt", weights_only=True)
    assert set(checkpoint) == {
        "state_dict", "hyper_parameters", "pytorch-lightning_version", "epoch", "global_step", "batches_seen",
    }  # fmt: skip
    with pytest.raises(launch.RequestError, match="holds weights only"):
        launch.fit(
            compose("circular_twin", overrides=WORDS), experiment="circular_twin", run_id="b", resume=uninterrupted
        )


def test_seeds_differ_in_every_part() -> None:
    seeds = {
        derive_seed(seed, stage, epoch, batch)
        for seed in (0, 1)
        for stage in "ab"
        for epoch in (0, 1)
        for batch in (0, 1)
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
