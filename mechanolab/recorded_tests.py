"""A test that is kept as a run of its own: `mechanolab test EXPERIMENT --run-id NEW`, and every trial of a sweep whose
command is `test`.

Its folder holds what a trained run's does, without checkpoints; `tested_run` in status.json names the run whose weights
were tested, null for a module that needs no training. An interrupted test starts again from the beginning.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from mechanolab import runs
from mechanolab.callbacks.exact_resume import Preempted, stop_on_request
from mechanolab.checkpoints import load_weights, steps_in
from mechanolab.config import RequestError, RunFailedError, last_line
from mechanolab.inference import weights_file, without_pretraining
from mechanolab.launch import (
    Parts,
    already_finished,
    construct,
    environment_of,
    environment_variables,
    group_of,
    make_trainer,
    mark_run,
    set_up,
)
from mechanolab.loggers import MetricsFile, finish_wandb, is_first_rank, start_wandb


def record(
    config: dict[str, Any], *, experiment: str, run_id: str, tested_run: str | None, checkpoint: str = "best"
) -> dict[str, float] | None:
    """Test and leave the result as the run `runs/<experiment>/<run_id>`; where it stands finished, only read it.

    Args:
        config: resolved, overrides applied.
        experiment: whose run it becomes.
        run_id: of the new run.
        tested_run: the run of this experiment whose weights are tested; None for a module that needs no training.
        checkpoint: which weights of it: best, last or a file.

    Returns:
        The test metrics; None when the test was stopped on request (the same call starts it again).

    Raises:
        RequestError: the request is wrong; nothing was made.
        RunFailedError: a sample cannot be scored; the run is marked failed.
    """
    folder = runs.run_folder(experiment, run_id)
    if run_id == tested_run:
        raise RequestError(f"--run-id {run_id} is the run that is to be tested; choose another --run-id for the result")
    parts = construct(without_pretraining(config, tested_run))
    weights = weights_file(parts, experiment, tested_run, checkpoint, command="test")
    facts = {"tested_run": tested_run, "checkpoint": checkpoint if weights is not None else None}
    if is_first_rank() and already_finished(folder, config, **facts):
        return _test_metrics(folder)
    set_up(parts.data, "test")
    if weights is not None:
        load_weights(parts.module, weights)
    with contextlib.ExitStack() as held:
        # the other ranks are this command again, and must join the same run
        held.enter_context(environment_variables(WANDB_RUN_ID=run_id))
        if is_first_rank():
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(runs.lock_run(folder))
            _open(parts, folder, config, experiment=experiment, facts=facts)
        try:
            with stop_on_request():
                _test(parts, folder, config, steps_in(weights))
        except Preempted:
            mark_run(folder, "preempted", message="stopped on request; the same command starts the test again")
            print(f"test {experiment}/{run_id} stopped; the same --run-id starts it again", file=sys.stderr)
            return None
        except BaseException as error:
            mark_run(folder, "failed", message=last_line(error))
            if isinstance(error, ValueError):  # a sample, or what is predicted of it, for which a score does not exist
                raise RunFailedError(last_line(error)) from error
            raise
        mark_run(folder, "finished", message=None)
    return _test_metrics(folder)


def _open(parts: Parts, folder: Path, config: dict[str, Any], *, experiment: str, facts: dict[str, Any]) -> None:
    """Write what a run folder says before the first batch, and drop what an interrupted test left."""
    # the status first: a folder with a config but without `tested_run` would count as a trained run
    runs.write_status(folder, "running", experiment=experiment, group=group_of(experiment), message=None, **facts)
    runs.write_config(folder, config)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    runs.write_json(folder / "environment.json", environment_of(parts))
    of = f" of run {facts['tested_run']}" if facts["tested_run"] else ""
    print(f"test {experiment}/{folder.name}{of} starts", file=sys.stderr)


def _test(parts: Parts, folder: Path, config: dict[str, Any], steps: int) -> None:
    trainer, _ = make_trainer(parts, folder)
    wandb_run = start_wandb(
        folder,
        run_id=folder.name,
        group=group_of(folder.parent.name),
        config=config,
        batches_seen=lambda: steps,
    )
    trainer.loggers = [MetricsFile(folder / "metrics.jsonl", lambda: steps), *([wandb_run] if wandb_run else [])]
    with finish_wandb(wandb_run):
        trainer.test(parts.module, datamodule=parts.data, verbose=False)


def _test_metrics(folder: Path) -> dict[str, float]:
    summary = runs.read_run(folder).summary
    return {name: value for name, value in summary.items() if name.startswith("test/")}
