"""The run folder `runs/<experiment>/<run id>/`: written by the launcher, read back by sweeps and comparisons.

config.yaml       the resolved configuration
metrics.jsonl     one line per logged step
status.json       running, finished, failed, preempted or pruned; written by the run itself
environment.json  commit, package versions, checksums of the data
checkpoints/      best.ckpt, last.ckpt
figures/, predictions/, wandb/
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import platform
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mechanolab.config import RequestError, checkout, flatten, runs_root

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
STATES = ("running", "finished", "failed", "preempted", "pruned")
RESERVED = ("sweeps", "reports")
PREDICTIONS = "predictions"
"""Folder of a run's predictions, and in an experiment's folder of those that need no run."""
PACKAGES = ("torch", "lightning", "torchmetrics", "numpy", "h5py", "wandb", "omegaconf", "albumentations", "optuna")


@dataclass
class Run:
    """One run, as its folder tells it."""

    path: Path
    run_id: str
    experiment: str
    group: str
    """The sweep that the run belongs to, else its experiment."""
    config: dict[str, Any]
    status: dict[str, Any]
    summary: dict[str, float] = field(default_factory=dict)
    """Last value of every metric; under `best` the best value of the monitored one."""
    history: list[dict[str, Any]] = field(default_factory=list)
    irreducible_error: dict[str, Any] | None = None

    @property
    def state(self) -> str:
        """Running, finished, failed, preempted or pruned; a running one whose process is gone counts as preempted."""
        state = str(self.status.get("state", "failed"))
        if state == "running" and not _alive(self.status):
            return "preempted"
        return state

    @property
    def metric(self) -> str:
        """The metric that ranks the run; empty when its configuration names none."""
        return ranking_metric(self.config, self.status)


def new_run_id() -> str:
    """A fresh id of eight letters and digits."""
    return secrets.token_hex(4)


def run_folder(experiment: str, run_id: str) -> Path:
    """The folder of a run.

    Raises:
        RequestError: the id cannot be a folder's name, or it or the experiment's name is reserved.
    """
    if run_id == PREDICTIONS:
        raise RequestError(f"a run cannot be named '{PREDICTIONS}': runs/{experiment}/{PREDICTIONS}/ is taken")
    if not RUN_ID.fullmatch(run_id):
        raise RequestError(f"run id '{run_id}' must be 1 to 64 letters, digits, '.', '_' or '-'")
    if experiment in RESERVED:
        raise RequestError(
            f"an experiment cannot be named '{experiment}': runs/{experiment}/ is taken; rename the file"
        )
    return runs_root() / experiment / run_id


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the run for this process.

    Raises:
        RequestError: another process is running it.
    """
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RequestError(
                f"run {folder.name} is being run by another process; wait for it or choose another --run-id"
            ) from None
        yield


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=False, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def write_status(folder: Path, state: str, **facts: Any) -> None:
    """Set the state of a run and what goes with it; what was known before is kept."""
    if state not in STATES:
        raise ValueError(f"state must be one of {STATES}, got {state!r}")
    status = read_status(folder)
    status.update(facts)
    now = time.time()
    status.update(state=state, updated=round(now, 3), pid=os.getpid(), host=socket.gethostname())
    status.setdefault("started", round(now, 3))
    status["ended"] = round(now, 3) if state != "running" else None
    write_json(folder / "status.json", status)


def read_status(folder: Path) -> dict[str, Any]:
    """The status of a run; empty when it has none."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return status if isinstance(status, dict) else {}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.yaml."""
    partial = folder / "config.yaml.partial"
    partial.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    partial.replace(folder / "config.yaml")


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.yaml.

    Raises:
        RequestError: it is missing or damaged.
    """
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{folder} is not a run: it holds no config.yaml") from None
    except yaml.YAMLError:
        raise RequestError(f"{path} is not valid YAML") from None
    if not isinstance(config, dict):
        raise RequestError(f"{path} does not hold a configuration")
    return config


def environment(data_folder: Path | None) -> dict[str, Any]:
    """What the run stood on: commit, versions, machine, checksums of its shards."""
    from importlib.metadata import PackageNotFoundError, version

    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    shards: dict[str, Any] = {}
    if data_folder is not None and (data_folder / "manifest.json").is_file():
        manifest = json.loads((data_folder / "manifest.json").read_text(encoding="utf-8"))
        shards = {
            "shards": {shard["name"]: shard["sha256"] for shard in manifest["shards"]},
            "irreducible_error": manifest.get("provenance", {}).get("irreducible_error"),
        }
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "git": _git(),
        "packages": versions,
        "data": shards,
    }


def read_run(folder: Path) -> Run:
    """Read a run folder back.

    Raises:
        RequestError: the folder is not a run.
    """
    config, status = read_config(folder), read_status(folder)
    history = read_metrics(folder / "metrics.jsonl")
    summary: dict[str, float] = {}
    for line in history:
        summary.update({k: v for k, v in line.items() if k not in ("step", "epoch", "time")})
    metric = ranking_metric(config, status)
    values = [line[metric] for line in history if metric in line]
    values = [value for value in values if not math.isnan(value)]
    if values:
        summary["best"] = min(values) if config["monitor"]["mode"] == "min" else max(values)
    try:
        facts = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        facts = {}
    return Run(
        path=folder,
        run_id=folder.name,
        experiment=folder.parent.name,
        group=str(status.get("group") or folder.parent.name),
        config=config,
        status=status,
        summary=summary,
        history=history,
        irreducible_error=_possible(facts, config),
    )


def _possible(facts: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best possible score of a run's data, where it holds for the run's configuration.

    A simulator that knows it for some settings only says so: `match` maps dotted keys to the value that it holds for,
    or to {"at_least": value}, where null is no limit.
    """
    known: dict[str, Any] | None = (facts.get("data") or {}).get("irreducible_error")
    flat = flatten(config)
    if known and all(_holds(flat.get(key), wanted) for key, wanted in known.get("match", {}).items()):
        return known
    return None


def _holds(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return value is None or value >= wanted["at_least"]
    return bool(value == wanted)


def ranking_metric(config: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """The monitored metric; of a recorded test, which validates nothing, the same quantity of the test set.

    >>> ranking_metric({"monitor": {"metric": "val/traction_nrmse"}}, {"tested_run": "a"})
    'test/traction_nrmse'
    """
    metric = str(config.get("monitor", {}).get("metric", ""))
    return f"test/{metric.split('/')[-1]}" if metric and "tested_run" in status else metric


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a metrics.jsonl; a last line cut short by a kill is left out."""
    lines: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            lines.append({k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in line.items()})
    return lines


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the lines up to `step`, and none of a test that a resumed run will repeat."""
    kept = [
        line
        for line in read_metrics(path)
        if line["step"] <= step and not any(name.startswith("test/") for name in line)
    ]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)


def find_runs(name: str | None = None) -> list[Run]:
    """Runs of an experiment or a sweep, in the order in which they started; all runs when no name is given."""
    found = []
    for path in sorted(runs_root().glob("*/*/config.yaml")):
        folder = path.parent
        if folder.parent.name in RESERVED:
            continue
        if name is None or folder.parent.name == name or read_status(folder).get("group") == name:
            found.append(read_run(folder))
    return sorted(found, key=lambda run: (run.status.get("started", 0.0), run.run_id))


def _alive(status: Mapping[str, Any]) -> bool:
    if status.get("host") != socket.gethostname():
        return True  # another machine's process cannot be seen from here
    try:
        os.kill(int(status["pid"]), 0)
    except (KeyError, ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        return subprocess.run(["git", "-C", str(checkout()), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "modified": bool(ask("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return None
