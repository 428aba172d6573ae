"""Seconds until the command answers: `--help`, and `fit` until its first training step is logged."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3


def run() -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "MECHANOLAB_DATA": f"{scratch}/data",
            "MECHANOLAB_RUNS": f"{scratch}/runs",
            "WANDB_MODE": "offline",
        }
        command = [sys.executable, "-m", "mechanolab"]
        subprocess.run(
            [*command, "data", "simulate", "circular", "--count", "400"],
            env=environment,
            check=True,
            capture_output=True,
        )
        helps = [_seconds([*command, "--help"], environment) for _ in range(ROUNDS)]
        steps = [_first_step(command, environment, Path(scratch), i) for i in range(ROUNDS)]
    return [
        {"what": "mechanolab --help", "median s": statistics.median(helps), "goal s": 1.0},
        {"what": "fit circular_twin to its first logged step", "median s": statistics.median(steps), "goal s": 10.0},
    ]


def _seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def _first_step(command: list[str], environment: dict[str, str], scratch: Path, i: int) -> float:
    metrics = scratch / "runs" / "circular_twin" / f"bench{i}" / "metrics.jsonl"
    words = ["fit", "circular_twin", "--run-id", f"bench{i}", "trainer.log_every_n_steps=1", "trainer.max_epochs=1"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (metrics.is_file() and metrics.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"fit ended with exit code {process.returncode} before its first step")
            time.sleep(0.01)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()
