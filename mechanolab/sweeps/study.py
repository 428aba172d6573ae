"""The durable side of a local sweep: `runs/sweeps/<name>/` with its lock, its study, its definition and its ledger.

lock            held by the one driver at work
sweep.json      fingerprint of the definition, the experiment's resolved values, the trials planned
study.journal   Optuna's journal: which points were drawn, which trials are done, their values
driver.jsonl    what the driver did, one JSON line an event
trials/         what each trial printed
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechanolab.config import RequestError, runs_root
from mechanolab.runs import write_json
from mechanolab.sweeps.search_space import (
    STARTUP_TRIALS,
    bayes_sampler,
    decode,
    encode,
    grid,
    random_point,
    search_space,
)
from mechanolab.sweeps.sweep_file import Sweep

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Trial:
    """One point of a sweep. Its run keeps the id however often it is started."""

    index: int
    number: int
    """Number in the study; a failed trial that is tried again gets a new one."""
    run_id: str
    values: dict[str, Any]


def sweep_folder(name: str) -> Path:
    """Where a sweep keeps what it knows."""
    return runs_root() / "sweeps" / name


def run_id(sweep: Sweep, index: int) -> str:
    """Run id of a sweep's trial: `circular-007`."""
    return f"{sweep.name}-{index:03d}"


@contextmanager
def only_driver(folder: Path, name: str) -> Iterator[None]:
    """Hold the sweep's lock.

    Raises:
        RequestError: another driver holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            raise RequestError(
                f"sweep '{name}' is being driven by {handle.read().strip() or 'another process'}: "
                "wait for it, or begin another with --name"
            ) from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
        yield


def check_definition(folder: Path, sweep: Sweep) -> None:
    """Write sweep.json, or see that the sweep is still the one that was begun.

    Raises:
        RequestError: the definition or its experiment changed; trials from before could not be compared.
    """
    path = folder / "sweep.json"
    changed = ""
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["fingerprint"] != sweep.fingerprint:
            before, now = known["base"], json.loads(json.dumps(sweep.comparable_base(), default=str))
            keys = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
            changed = f"{sweep.experiment} ({keys[0]})" if keys else sweep.path.name
            if known.get("tested_run") != sweep.tested_run:
                changed = f"the tested run ({known.get('tested_run')} -> {sweep.tested_run})"
    if changed:
        raise RequestError(
            f"{changed} changed since sweep '{sweep.name}' was begun, so its trials could not be compared: "
            f"undo the change, or begin another sweep with --name NEW ({folder} holds the old one)"
        )
    facts = {
        "name": sweep.name,
        "file": str(sweep.path),
        "fingerprint": sweep.fingerprint,
        "experiment": sweep.experiment_folder,
        "tested_run": sweep.tested_run,
        "metric": sweep.metric,
        "goal": sweep.goal,
        "planned": planned(sweep),
        "definition": sweep.definition,
        "base": sweep.comparable_base(),
    }
    write_json(path, facts)


def planned(sweep: Sweep) -> int:
    """Number of trials of a sweep.

    Raises:
        RequestError: a grid over a continuous range, or a random or Bayesian search without run_cap.
    """
    source = sweep.path.name
    if sweep.method == "grid":
        return min(len(grid(sweep.parameters, source=source)), sweep.run_cap or 10**9)
    if sweep.run_cap is None:
        raise RequestError(f"{source}: a {sweep.method} search never ends by itself: set run_cap, the number of trials")
    return sweep.run_cap


# -- the ledger -------------------------------------------------------------------------------------------------------


def record(folder: Path, event: str, **facts: Any) -> None:
    """Append one event to driver.jsonl and see it onto the disk."""
    line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, default=str)
    with (folder / "driver.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def events(folder: Path) -> list[dict[str, Any]]:
    """Every event of driver.jsonl; a line cut short by a kill is left out."""
    try:
        texts = (folder / "driver.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for text in texts:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def planned_runs(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """What a sweep's folder tells without its study: sweep.json, and every trial that was started.

    Returns:
        The definition and a list of {run_id, values, event: the last one, reason: of a failure}; None when there is no
        such sweep.
    """
    folder = sweep_folder(name)
    try:
        facts = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    trials: dict[str, dict[str, Any]] = {}
    for event in events(folder):
        if event["event"] == "started":
            trials.setdefault(event["run_id"], {"run_id": event["run_id"], "values": event["values"], "reason": ""})
        if event.get("run_id") in trials:
            trials[event["run_id"]].update(event=event["event"], reason=event.get("reason", ""))
    return facts, list(trials.values())


# -- the study --------------------------------------------------------------------------------------------------------


class Study:
    """The points of a sweep, drawn one by one and kept in Optuna's journal.

    A trial's `index` attribute is written last when a trial is drawn: a trial without it was cut short by a kill
    before anything was started, and is given up.
    """

    def __init__(self, sweep: Sweep, journal: Path | None) -> None:
        import optuna
        from optuna.storages import InMemoryStorage, JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage: Any = InMemoryStorage()
        if journal is not None:
            _mend(journal)
            storage = JournalStorage(JournalFileBackend(str(journal)))
        self.sweep = sweep
        self.space = search_space(sweep.parameters)
        self.points = grid(sweep.parameters, source=sweep.path.name) if sweep.method == "grid" else None
        self.planned = planned(sweep)
        self._states = optuna.trial.TrialState
        self._study = optuna.create_study(
            study_name=sweep.name, direction=sweep.goal, storage=storage, load_if_exists=True
        )
        for frozen in self._all():
            if frozen.state == self._states.RUNNING and not self._drawn(frozen):
                self._study.tell(frozen.number, state=self._states.FAIL)

    def _all(self) -> list[optuna.trial.FrozenTrial]:
        return list(self._study.get_trials(deepcopy=False))

    def _drawn(self, frozen: optuna.trial.FrozenTrial) -> bool:
        return "index" in frozen.user_attrs and set(frozen.params) == set(self.space)

    def _trial(self, frozen: Any) -> Trial:
        index = frozen.user_attrs["index"]
        return Trial(
            index, frozen.number, run_id(self.sweep, index), decode(self.sweep.parameters, dict(frozen.params))
        )

    def in_state(self, *names: str) -> list[Trial]:
        """Trials whose latest state is one of RUNNING, COMPLETE, PRUNED, FAIL, in the order of their index."""
        latest = {f.user_attrs["index"]: f for f in self._all() if self._drawn(f) or f.state == self._states.WAITING}
        return [self._trial(latest[i]) for i in sorted(latest) if latest[i].state.name in names]

    def best(self) -> tuple[float, str] | None:
        """Value and run id of the best finished trial."""
        done = [f for f in self._all() if f.state == self._states.COMPLETE]
        if not done:
            return None
        sign = 1 if self.sweep.goal == "minimize" else -1
        found = min(done, key=lambda f: (sign * f.value, f.number))
        return float(found.value), run_id(self.sweep, found.user_attrs["index"])

    def next_trial(self) -> Trial | None:
        """Draw the next point; None when all planned points are drawn."""
        trials = self._all()
        if not any(t.state == self._states.WAITING for t in trials):
            index = 1 + max((t.user_attrs["index"] for t in trials if self._drawn(t)), default=-1)
            if index >= self.planned:
                return None
            seed = self.sweep.base["seed"]
            if self.points is not None:
                self._enqueue(self.points[index], index)
            elif self.sweep.method == "random" or index < STARTUP_TRIALS:
                known = [self._trial(frozen).values for frozen in trials if self._drawn(frozen)]
                point = random_point(self.sweep.parameters, seed=seed, index=index, known=known)
                self._study.enqueue_trial(point, user_attrs={"index": index})
            else:
                self._study.sampler = bayes_sampler(seed=seed, index=index)
                drawn = self._study.ask(self.space)
                drawn.set_user_attr("index", index)
                return self._trial(drawn)
        return self._trial(self._study.ask(self.space))

    def _enqueue(self, values: Mapping[str, Any], index: int) -> None:
        self._study.enqueue_trial(encode(self.sweep.parameters, values), user_attrs={"index": index})

    def retry(self, trial: Trial) -> None:
        """Put a failed trial back in front of the queue, under its run id."""
        self._enqueue(trial.values, trial.index)

    def tell(self, trial: Trial, value: float) -> None:
        """The trial is done."""
        self._study.tell(trial.number, value)

    def give_up(self, trial: Trial, *, pruned: bool = False) -> None:
        """The trial failed, or was pruned."""
        self._study.tell(trial.number, state=self._states.PRUNED if pruned else self._states.FAIL)


def preview(sweep: Sweep) -> list[Trial]:
    """The trials that are known before any has run: all of a grid or random search, the start of a Bayesian one."""
    study = Study(sweep, None)
    count = min(study.planned, STARTUP_TRIALS) if sweep.method == "bayes" else study.planned
    return [trial for trial in (study.next_trial() for _ in range(count)) if trial is not None]


def _mend(journal: Path) -> None:
    """Clear what a killed driver may have left: a journal's lock, and a last line cut short.

    Only the holder of the sweep's own lock comes here, so nobody else is writing.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if journal.is_file():
        content = journal.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(journal, whole)
