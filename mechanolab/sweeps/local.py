"""The local engine: drives a sweep's trials as child processes, and can be stopped or killed and started again.

What a trial came to is read from its run folder (status.json and metrics.jsonl), never from its exit code alone: a
preempted run may exit with 0. A trial keeps its run id, so a second start continues it from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import math
import os
import shlex
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mechanolab.compare.report import report_runs
from mechanolab.compare.table import sweep_runs, trials_to_come
from mechanolab.config import RequestError, checkout, runs_root
from mechanolab.runs import read_run, read_status, run_folder
from mechanolab.sweeps.processes import Child, default_workers, slot_environments
from mechanolab.sweeps.progress import Progress, describe
from mechanolab.sweeps.study import (
    Study,
    Trial,
    check_definition,
    events,
    only_driver,
    planned,
    planned_runs,
    preview,
    record,
    sweep_folder,
)
from mechanolab.sweeps.sweep_file import Sweep, check_tested_run, default_name
from mechanolab.sweeps.trial_command import trial_command

FINISHED, FAILED, WRONG_REQUEST, PREEMPTED = 0, 1, 2, 75
ATTEMPTS = 2
"""How often a trial that fails is started before it is given up."""
SICK_AFTER = 3
"""Failures in a row, with no trial ever finished, after which the sweep stops: the fault is not in the parameters."""
PREEMPTIONS = 5
"""How often a trial may be preempted from outside within one start of the driver."""
STOP_PATIENCE_S = 120.0
"""How long a child may take to write its checkpoint."""
POLL_S = 0.1


def run_sweep(sweep: Sweep, *, workers: int | None = None, retry_failed: bool = False) -> int:
    """Run all trials of a sweep on this machine, or go on with a sweep that was stopped or killed.

    Args:
        sweep: what `load_sweep` returned.
        workers: trials at a time; by default one a GPU, else one a core up to four.
        retry_failed: start the trials that were given up once more.

    Returns:
        Exit code: 0 all trials finished, 1 some failed or the sweep stopped at its start, 75 stopped by a signal.

    Raises:
        RequestError: the sweep needs W&B's server, is being driven by another process, or changed since it was begun.
    """
    check_local(sweep)
    check_tested_run(sweep)
    workers = default_workers() if workers is None else workers
    if workers < 1:
        raise RequestError(f"--workers must be at least 1, got {workers}")
    folder = sweep_folder(sweep.name)
    with only_driver(folder, sweep.name):
        check_definition(folder, sweep)
        return _Driver(sweep, folder, workers).drive(retry_failed=retry_failed)


def check_local(sweep: Sweep) -> None:
    """Refuse what only W&B's server does.

    Raises:
        RequestError: early_terminate, metric.target, a grid over a range, a search without an end.
    """
    source = sweep.path.name
    if sweep.definition.get("early_terminate"):
        raise RequestError(f"{source}: early_terminate works with --wandb only: remove it, or add --wandb")
    if "target" in sweep.definition["metric"]:
        raise RequestError(f"{source}: metric.target works with --wandb only: remove it and set run_cap")
    planned(sweep)


def command_of(sweep: Sweep, trial: Trial, folder: Path) -> list[str]:
    """The words of a trial's command."""
    json_file = folder / "trials" / f"{trial.run_id}.json"
    return trial_command(sweep.command, trial.values, program=sweep.program, json_file=json_file)


def dry_run(sweep: Sweep) -> int:
    """Print the command lines of a sweep's trials, and how many there are; nothing is run or written.

    Returns:
        Exit code 0.

    Raises:
        RequestError: the sweep needs W&B's server, or has no end.
    """
    check_local(sweep)
    trials = preview(sweep)
    for trial in trials:
        names = f"WANDB_RUN_ID={trial.run_id} WANDB_RUN_GROUP={sweep.name}"
        print(names, shlex.join(command_of(sweep, trial, sweep_folder(sweep.name))))
    total = planned(sweep)
    later = f"; the other {total - len(trials)} depend on what these come to" if len(trials) < total else ""
    print(f"{total} trials of sweep '{sweep.name}' ({sweep.method}, {sweep.metric}, {sweep.goal}){later}")
    return FINISHED


class _Driver:
    def __init__(self, sweep: Sweep, folder: Path, workers: int) -> None:
        self.sweep, self.folder = sweep, folder
        self.study = Study(sweep, folder / "study.journal")
        self.slots: deque[dict[str, str]] = deque(slot_environments(workers))
        self.queue: deque[Trial] = deque(self.study.in_state("RUNNING"))
        self.running: dict[str, tuple[Trial, Child, dict[str, str]]] = {}
        self.failures: Counter[str] = Counter()
        self.preemptions: Counter[str] = Counter()
        self.held: list[Trial] = []  # failed for good, but nothing has finished yet: not told to the study
        self.failed_in_a_row = 0
        self.signals = 0
        self.deadline: float | None = None  # by when children that were asked to stop are killed

    @property
    def done(self) -> int:
        return len(self.study.in_state("COMPLETE", "PRUNED", "FAIL"))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def drive(self, *, retry_failed: bool) -> int:
        if not self.study.in_state("RUNNING", "COMPLETE", "PRUNED", "FAIL"):
            self._refuse_leftovers()
        if retry_failed:
            for trial in self.study.in_state("FAIL"):
                self.study.retry(trial)
        sweep, total, done = self.sweep, self.study.planned, self.done
        self.progress = Progress(sweep.name, metric=sweep.metric, planned=total, done=done, workers=len(self.slots))
        if done < total:
            continued = f" ({len(self.queue)} to continue)" if self.queue else ""
            self.progress.say(
                f"sweep '{sweep.name}': {total - done} of {total} trials left{continued}, {len(self.slots)} at a time; "
                f"logs in {self.folder / 'trials'}"
            )
        record(self.folder, "driver started", pid=os.getpid(), workers=len(self.slots), done=done, planned=total)
        for trial in self.queue:
            self._wait_for_orphan(trial)
        with self._signals(), self.progress:
            while self._step():
                time.sleep(POLL_S)
        record(self.folder, "driver ended", done=self.done, signals=self.signals)
        return self._conclude()

    def _step(self) -> bool:
        """Collect what ended, start what may start; False when nothing is left at work."""
        for run_id, (_, child, _) in list(self.running.items()):
            code = child.returncode()
            if code is not None:
                self._ended(run_id, code)
        if self.signals or self._sick():
            self._halt()
        else:
            self.deadline = None
            while self.slots and (trial := self._next()):
                self._start(trial)
        self.progress.update()
        return bool(self.running)

    def _next(self) -> Trial | None:
        """Trials of an earlier start first, then new points, then those that failed once."""
        if self.queue and not self.failures[self.queue[0].run_id]:
            return self.queue.popleft()
        trial = self.study.next_trial()
        if trial is None and self.queue:
            trial = self.queue.popleft()
        return trial

    def _halt(self) -> None:
        """Ask the children to stop, once; kill them at a second signal or when their time is up."""
        children = [child for _, child, _ in self.running.values()]
        if self.deadline is None:
            self.deadline = time.monotonic() + STOP_PATIENCE_S
            if children:
                waits = (
                    "each trial writes a checkpoint first" if self.sweep.trial == "fit" else "waiting for the trials"
                )
                self.progress.say(f"stopping: {waits} (Ctrl-C again kills it)")
            for child in children:
                child.ask_to_stop()
        elif self.signals > 1 or time.monotonic() > self.deadline:
            for child in children:
                child.kill()

    def _sick(self) -> bool:
        return self.failed_in_a_row >= SICK_AFTER and not self.study.in_state("COMPLETE")

    def _start(self, trial: Trial) -> None:
        if self._had_finished(trial):
            return
        trials = self.folder / "trials"
        trials.mkdir(exist_ok=True)
        if "${args_json_file}" in self.sweep.command:
            text = trial_command(["${args_json}"], trial.values)[0]
            (trials / f"{trial.run_id}.json").write_text(text, encoding="utf-8")
        slot = self.slots.popleft()
        child = Child(
            command_of(self.sweep, trial, self.folder),
            environment={**slot, "WANDB_RUN_ID": trial.run_id, "WANDB_RUN_GROUP": self.sweep.name},
            log=trials / f"{trial.run_id}.log",
        )
        record(self.folder, "started", run_id=trial.run_id, values=trial.values, pid=child.pid, **slot)
        self.running[trial.run_id] = (trial, child, slot)
        self.progress.started(trial.run_id, trial.values, self._run_folder(trial))

    def _run_folder(self, trial: Trial) -> Path:
        return run_folder(self.sweep.experiment_folder, trial.run_id)

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def _had_finished(self, trial: Trial) -> bool:
        """Whether the trial finished after its driver was killed: then only the study has to be told."""
        if read_status(self._run_folder(trial)).get("state") != "finished":
            return False
        value = self._value(trial)
        if value is None:
            return False
        self._finished(trial, value)
        self.progress.count(self.done)
        self.progress.say(f"{trial.run_id} had finished, {self.sweep.metric} {value:.4g}")
        return True

    def _ended(self, run_id: str, code: int) -> None:
        trial, child, slot = self.running.pop(run_id)
        self.slots.appendleft(slot)
        status = read_status(self._run_folder(trial))
        state = status.get("state")
        if state == "finished":
            value = self._value(trial)
            if value is None:
                outcome = self._failed(trial, self._without_value(trial), again=False)
            else:
                self._finished(trial, value)
                outcome = f"finished, {self.sweep.metric} {value:.4g},"
        elif state == "pruned":
            self.study.give_up(trial, pruned=True)
            record(self.folder, "pruned", run_id=run_id)
            outcome = "pruned"
        elif self.deadline is not None:
            record(self.folder, "stopped", run_id=run_id, code=code)
            self.queue.appendleft(trial)
            outcome = "stopped"
        elif code == PREEMPTED and self.preemptions[run_id] < PREEMPTIONS:
            self.preemptions[run_id] += 1
            self.queue.appendleft(trial)
            record(self.folder, "preempted", run_id=run_id)
            outcome = "preempted (it will be continued)"
        else:
            ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            words = status.get("message") if state == "failed" else None
            reason = f"{words or child.last_line() or 'it printed nothing'} ({ending})"
            outcome = self._failed(trial, reason, again=code != WRONG_REQUEST)
        best = self.study.best()
        words = f"{best[0]:.4g} ({best[1]})" if best else ""
        self.progress.ended(run_id, outcome, done=self.done, best=words)

    def _value(self, trial: Trial) -> float | None:
        """The best finite value of the sweep's metric over the run; None when it logged none."""
        history = read_run(self._run_folder(trial)).history
        logged = [line[self.sweep.metric] for line in history if self.sweep.metric in line]
        finite = [float(value) for value in logged if isinstance(value, (int, float)) and math.isfinite(value)]
        if not finite:
            return None
        return min(finite) if self.sweep.goal == "minimize" else max(finite)

    def _without_value(self, trial: Trial) -> str:
        logged = sorted(read_run(self._run_folder(trial)).summary.keys() - {"best"})
        hint = "" if self.sweep.metric in logged else f"; it logged {', '.join(logged) or 'nothing'}"
        return f"finished without a finite {self.sweep.metric}{hint}"

    def _finished(self, trial: Trial, value: float) -> None:
        self.study.tell(trial, value)
        record(self.folder, "finished", run_id=trial.run_id, value=value)
        self.failed_in_a_row = 0
        while self.held:
            self.study.give_up(self.held.pop())

    def _failed(self, trial: Trial, reason: str, *, again: bool) -> str:
        """Count a failure; returns the outcome in words."""
        self.failures[trial.run_id] += 1
        self.failed_in_a_row += 1
        record(self.folder, "failed", run_id=trial.run_id, reason=reason)
        if again and self.failures[trial.run_id] < ATTEMPTS:
            self.queue.append(trial)
            return f"failed: {reason}; it will be tried once more;"
        if self.study.in_state("COMPLETE"):
            self.study.give_up(trial)
        else:
            self.held.append(trial)
        return f"failed: {reason};"

    # -- start and end ------------------------------------------------------------------------------------------------

    def _refuse_leftovers(self) -> None:
        """A new sweep must not continue the runs of another one whose folder was removed."""
        parent = runs_root() / self.sweep.experiment_folder
        left = sorted(p for p in parent.glob(f"{self.sweep.name}-[0-9][0-9][0-9]*") if (p / "config.yaml").is_file())
        if left:
            raise RequestError(
                f"{left[0]} is left from another sweep named '{self.sweep.name}': "
                "remove such runs, or begin this sweep with --name NEW"
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Count Ctrl-C, SIGTERM and a closed terminal instead of dying of them; the loop acts on the count."""

        def count(number: int, frame: FrameType | None) -> None:
            self.signals += 1

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # left alone under nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait_for_orphan(self, trial: Trial) -> None:
        """A killed driver's trial may still be writing its checkpoint: it holds its run's lock until it is through."""
        lock = self._run_folder(trial) / ".lock"
        deadline = time.monotonic() + STOP_PATIENCE_S
        while lock.is_file() and _is_held(lock):
            if time.monotonic() > deadline:
                pid = read_status(lock.parent).get("pid")
                raise RequestError(f"run {trial.run_id} is still at work (process {pid}): stop it, then start again")
            time.sleep(POLL_S)

    def _conclude(self) -> int:
        name, total = self.sweep.name, self.study.planned
        again = f"mechanolab sweep {asked_for(self.sweep)}"
        if self.signals:
            print(f"stopped with {self.done} of {total} trials done; continue with: {again}")
            return PREEMPTED
        monitor = {"metric": self.sweep.metric, "mode": self.sweep.goal[:3]}
        report_runs(
            sweep_runs(name), name=name, title=f"sweep {name}", not_started=trials_to_come(name), monitor=monitor
        )
        known = planned_runs(name)
        reasons = {trial["run_id"]: trial["reason"] for trial in known[1]} if known else {}
        if self._sick() or self.held:
            last = [event["reason"] for event in events(self.folder) if event["event"] == "failed"][-1]
            print(f"the sweep stopped because its first {self.failed_in_a_row} starts failed, the last with: {last}")
            print(f"mend that, then continue with: {again}")
            return FAILED
        failed = self.study.in_state("FAIL")
        for trial in failed:
            print(f"{trial.run_id} ({describe(trial.values)}) failed: {reasons.get(trial.run_id)}")
        if failed:
            print(f"{len(failed)} of {total} trials failed; try them again with: {again} --retry-failed")
            return FAILED
        print(f"all {total} trials of sweep '{name}' are done")
        return FINISHED


def asked_for(sweep: Sweep) -> str:
    """The words after `mechanolab sweep` that ask for this very sweep."""
    shipped = sweep.path == checkout() / "sweeps" / f"{sweep.path.stem}.yaml"
    other = sweep.in_its_place
    placed = [] if other is None else ["--experiment", other]
    named = [] if sweep.name == default_name(sweep.path, other) else ["--name", sweep.name]
    return shlex.join([sweep.path.stem if shipped else str(sweep.path), *placed, *named, *sweep.arguments])


def _is_held(lock: Path) -> bool:
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
