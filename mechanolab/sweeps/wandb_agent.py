"""The server engine: W&B draws the trials and shows the sweep; its agents run them here and on other machines."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from mechanolab.config import RequestError
from mechanolab.loggers import has_wandb_key
from mechanolab.runs import write_json
from mechanolab.sweeps.processes import default_workers, gpus, slot_environments
from mechanolab.sweeps.study import only_driver, sweep_folder
from mechanolab.sweeps.sweep_file import Sweep, check_tested_run

MAX_FAILED_IN_A_ROW = 5


def register_and_run(sweep: Sweep, *, workers: int | None = None) -> int:
    """Register a sweep with W&B, once, and run its agents on this machine until the sweep ends.

    Args:
        sweep: what `load_sweep` returned.
        workers: agents on this machine; by default one a GPU, else one.

    Returns:
        Exit code of the agents: 0, or that of the first one that failed.

    Raises:
        RequestError: no key, no route, or the file changed since the sweep was registered.
    """
    if not has_wandb_key():
        raise RequestError("--wandb needs a W&B key: run `wandb login`, or leave --wandb out to search on this machine")
    if workers is not None and workers < 1:
        raise RequestError(f"--workers must be at least 1, got {workers}")
    check_tested_run(sweep)
    folder = sweep_folder(sweep.name)
    folder.mkdir(parents=True, exist_ok=True)
    with only_driver(folder, sweep.name):
        registered = _register(sweep, folder / "wandb.json")
    words = agent_command(registered)
    print(f"sweep '{sweep.name}' is {registered}; start more agents on any machine that has this checkout with:")
    print(f"  WANDB_RUN_GROUP={shlex.quote(sweep.name)} {shlex.join(['wandb', *words[3:]])}")
    return _run_agents(words, sweep, workers or (default_workers() if gpus() else 1))


def agent_command(registered: str) -> list[str]:
    """The words that start one agent of a registered sweep (`project/id` or `entity/project/id`)."""
    return [
        sys.executable, "-m", "wandb", "agent", "--forward-signals",
        "--max-consecutive-failed-runs", str(MAX_FAILED_IN_A_ROW), registered,
    ]  # fmt: skip


def _register(sweep: Sweep, path: Path) -> str:
    """The sweep's id at W&B: the one known from an earlier start, or a new one."""
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["fingerprint"] != sweep.fingerprint:
            raise RequestError(
                f"{sweep.path.name} or its experiment changed since sweep '{sweep.name}' was registered with W&B as "
                f"{known['sweep']}: begin another with --name NEW"
            )
        return str(known["sweep"])
    import wandb

    project = sweep.definition.get("project") or os.environ.get("WANDB_PROJECT") or "mechanolab"
    entity = sweep.definition.get("entity") or os.environ.get("WANDB_ENTITY")
    definition: dict[str, Any] = {"name": sweep.name, **sweep.definition}
    try:
        found = wandb.sweep(definition, project=project, entity=entity)
    except (wandb.errors.Error, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"W&B did not take sweep '{sweep.name}': {reason}") from None
    registered = "/".join(word for word in (entity, project, found) if word)
    write_json(path, {"sweep": registered, "fingerprint": sweep.fingerprint})
    return registered


def agent_environment(sweep: Sweep) -> dict[str, str]:
    """What an agent's environment needs: `${interpreter}` is `python` from PATH, and must be this one."""
    folder = str(Path(sys.executable).parent)
    return {"PATH": folder + os.pathsep + os.environ.get("PATH", ""), "WANDB_RUN_GROUP": sweep.name}


def _run_agents(words: list[str], sweep: Sweep, workers: int) -> int:
    base = {**os.environ, **agent_environment(sweep)}
    agents = [subprocess.Popen(words, env={**base, **slot}, process_group=0) for slot in slot_environments(workers)]

    def forward(number: int, frame: FrameType | None) -> None:
        for agent in agents:
            agent.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [agent.wait() for agent in agents]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return next((abs(code) for code in codes if code), 0)
