"""How a search proposes points, keeps them in its journal, and is handed to W&B's server."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mechanolab.config import RequestError
from mechanolab.sweeps import local, sweep_file, wandb_agent
from mechanolab.sweeps.local import asked_for
from mechanolab.sweeps.study import Study
from mechanolab.sweeps.sweep_file import load_sweep

RATE = {"parameters": {"module.rate": {"min": 0.0, "max": 1.0}, "module.kind": {"values": ["a", "b"]}}}


def compose_toy(
    experiment: str, *, values: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Stands for the real composition, which would import torch."""
    module = {path.partition(".")[2]: value for path, value in (values or {}).items()}
    return {"seed": 0, "module": module, "monitor": {"metric": "val/error", "mode": "min"}}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setattr(sweep_file, "compose", compose_toy)
    monkeypatch.setenv("MECHANOLAB_RUNS", str(tmp_path / "runs"))

    def write_sweep(kinds: Sequence[str], **changes: Any) -> Path:
        definition = {
            "method": "grid",
            "metric": {"name": "val/error", "goal": "minimize"},
            "parameters": {"module.kind": {"values": list(kinds)}},
            "command": ["${env}", "${interpreter}", "-m", "mechanolab", "fit", "toy", "--config-json", "${args_json}"],
        }
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(definition | changes, sort_keys=False), encoding="utf-8")
        return path

    return write_sweep


@pytest.mark.slow
def test_a_bayesian_search_comes_nearer_to_the_optimum_than_chance(write: Callable[..., Path]) -> None:
    sweep = load_sweep(str(write([], method="bayes", run_cap=18, **RATE)))
    study = Study(sweep, None)
    while trial := study.next_trial():
        study.tell(trial, (trial.values["module.rate"] - 0.3) ** 2 + (trial.values["module.kind"] == "b"))
    best = study.best()
    assert best is not None
    assert best[0] < 1e-4  # 18 random points come this near in one search of six


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_that_was_interrupted_proposes_the_same_points(
    write: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    sweep = load_sweep(str(write([], method=method, run_cap=13, **RATE)))
    points = []
    for journal in (None, tmp_path / "study.journal"):
        study = Study(sweep, journal)
        values = []
        for _ in range(13):
            if journal:
                study = Study(sweep, journal)
            trial = study.next_trial()
            assert trial is not None
            study.tell(trial, trial.values["module.rate"])
            values.append(trial.values)
        points.append(values)
    assert points[0] == points[1]


def test_a_trial_that_was_being_drawn_when_the_driver_was_killed_is_drawn_again(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    journal = tmp_path / "study.journal"
    sweep = load_sweep(str(write(["a", "b"])))
    first = Study(sweep, journal).next_trial()
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n")  # without its parameter
    study = Study(sweep, journal)
    assert study.in_state("RUNNING") == []
    again = study.next_trial()
    assert first is not None
    assert again is not None
    assert (again.run_id, again.values) == (first.run_id, first.values)


def test_the_words_that_continue_a_sweep_ask_for_the_same_sweep(write: Callable[..., Path]) -> None:
    path = str(write(["a", "b"]))
    for name, words in ((None, []), ("mine", ["--name", "mine"])):
        sweep = load_sweep(path, experiment="other", name=name, arguments=["trainer.max_epochs=2"])
        assert shlex.split(asked_for(sweep)) == [path, "--experiment", "other", *words, "trainer.max_epochs=2"]


# -- the server engine ------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_commands_and_touches_nothing(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert local.dry_run(load_sweep(str(write(["a", "b"])))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("WANDB_RUN_ID=toy-000 WANDB_RUN_GROUP=toy /usr/bin/env")
    assert lines[0].endswith("""fit toy --config-json '{"module.kind": "a"}'""")
    assert lines[-1].startswith("2 trials of sweep 'toy'")
    assert not (tmp_path / "runs").exists()


def test_without_a_key_the_server_engine_says_how_to_get_one(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_agent, "has_wandb_key", lambda: False)
    with pytest.raises(RequestError, match="--wandb needs a W&B key: run `wandb login`"):
        wandb_agent.register_and_run(load_sweep(str(write(["a"]))))


def test_a_sweep_is_registered_once_and_its_agents_find_this_interpreter(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registered: list[dict[str, Any]] = []

    def register(definition: dict[str, Any], *, project: str, entity: str | None) -> str:
        registered.append(definition)
        return "x1y2z3"

    code = "import os, sys; open(sys.argv[1], 'w').write(os.environ['PATH'] + ' ' + os.environ['WANDB_RUN_GROUP'])"
    seen = tmp_path / "seen"
    monkeypatch.setattr("wandb.sweep", register)
    monkeypatch.setattr(wandb_agent, "has_wandb_key", lambda: True)
    monkeypatch.setattr(wandb_agent, "agent_command", lambda name: [sys.executable, "-c", code, str(seen), name])
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    path = write(["a"], early_terminate={"type": "hyperband", "min_iter": 3})
    assert wandb_agent.register_and_run(load_sweep(str(path))) == 0
    assert wandb_agent.register_and_run(load_sweep(str(path))) == 0
    assert len(registered) == 1
    assert registered[0]["parameters"] == {"module.kind": {"values": ["a"]}}
    assert registered[0]["early_terminate"] == {"type": "hyperband", "min_iter": 3}
    assert seen.read_text() == f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']} toy"
    assert "sweep 'toy' is mechanolab/x1y2z3; start more agents" in capsys.readouterr().out
    with pytest.raises(RequestError, match="was registered with W&B as mechanolab/x1y2z3: begin another"):
        wandb_agent.register_and_run(load_sweep(str(write(["a", "b"]))))
