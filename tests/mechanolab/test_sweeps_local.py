"""The local engine, driven with a stand-in for `fit` that keeps the run folder's contract and needs no torch."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mechanolab.config import RequestError
from mechanolab.sweeps import local, processes, sweep_file
from mechanolab.sweeps.study import Study, events, only_driver, sweep_folder
from mechanolab.sweeps.sweep_file import Sweep, load_sweep

pytestmark = pytest.mark.slow

WAIT_S = 30.0
"""Longest wait for a child on a busy machine; what is waited for takes well under a second."""

FIT = '''
"""Trains nothing: one line of metrics an epoch, a checkpoint after each, and the states that `fit` writes."""
import fcntl, json, os, signal, socket, sys, time
from pathlib import Path

values = json.loads(sys.argv[sys.argv.index("--config-json") + 1])
run_id, kind = os.environ["WANDB_RUN_ID"], values["module.kind"]
folder = Path(os.environ["MECHANOLAB_RUNS"]) / "toy" / run_id
with open(os.environ["MECHANOLAB_RUNS"] + "/starts", "a") as starts:
    print(run_id, os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES"), file=starts)
if kind == "wrong":
    sys.exit(print("mechanolab: module.kind cannot be wrong") or 2)
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
lock = (folder / ".lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

def status(state, **facts):
    facts |= {"state": state, "group": os.environ["WANDB_RUN_GROUP"], "pid": os.getpid(), "host": socket.gethostname()}
    (folder / "status.tmp").write_text(json.dumps(facts | {"started": 1.0, "updated": 2.0}))
    (folder / "status.tmp").replace(folder / "status.json")

def stop(*_):
    status("preempted")
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
config = {"seed": 0, "module": {"class_path": "lightning_modules.toy.Toy", "kind": kind, "layers": 2},
          "data": {"split": "fold0"}, "trainer": {"max_epochs": 3}, "monitor": {"metric": "val/error", "mode": "min"}}
(folder / "config.yaml").write_text(json.dumps(config))
status("running")
last = folder / "checkpoints" / "last.ckpt"
done = int(last.read_text()) if last.is_file() else 0
for epoch in range(done, 3):
    if kind.startswith("slow") and done == 0 and epoch == 1:
        time.sleep(60)  # a first start never ends by itself, a second one is quick
    if kind == "fails" or (kind == "fails_once" and not (folder / "failed").exists()):
        (folder / "failed").touch()
        status("failed", message=None)
        print("Traceback ...\\nValueError: the loss is not finite")
        sys.exit(1)
    if kind == "vanishes":
        os.kill(os.getpid(), signal.SIGKILL)
    value = float("nan") if kind == "nan" else {"a": 3.0, "b": 2.0}.get(kind, 4.0) + abs(epoch - 1)
    with (folder / "metrics.jsonl").open("a") as metrics:
        line = {"step": 10 * (epoch + 1), "epoch": epoch, "time": 1.0, "val/error": value}
        metrics.write(json.dumps(line).replace("NaN", '"nan"') + "\\n")
    last.write_text(str(epoch + 1))
status("finished")
'''

DRIVER = """
import os, sys
from mechanolab.sweeps import local, sweep_file
{compose}
sweep_file.compose = compose_toy
sys.exit(local.run_sweep(sweep_file.load_sweep(sys.argv[1]), workers=2))
"""


def compose_toy(experiment, *, values=None, overrides=()):  # type: ignore[no-untyped-def]
    """Stands for the real composition, which would import torch; drivers in a process of their own get its source."""
    config = {
        "seed": 0,
        "module": {
            "class_path": "lightning_modules.toy.Toy",
            "kind": "a",
            "layers": int(os.environ.get("LAYERS", "2")),
        },
        "data": {"split": "fold0", "data_root": "data"},
        "trainer": {"max_epochs": 3},
        "monitor": {"metric": "val/error", "mode": "min"},
    }
    for path, value in (values or {}).items():
        section, _, key = path.rpartition(".")
        config[section][key] = value
    return config


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sweep_file, "compose", compose_toy)
    monkeypatch.setenv("MECHANOLAB_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "fit.py").write_text(FIT, encoding="utf-8")

    def write_sweep(kinds: Sequence[str], **changes: Any) -> Path:
        definition = {
            "program": str(tmp_path / "fit.py"),
            "method": "grid",
            "metric": {"name": "val/error", "goal": "minimize"},
            "parameters": {"module.kind": {"values": list(kinds)}},
            "command": ["${env}", "${interpreter}", "-S", "${program}", "fit", "toy", "--config-json", "${args_json}"],
        }
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(definition | changes, sort_keys=False), encoding="utf-8")
        return path

    return write_sweep


def starts(runs: Path) -> Counter[str]:
    """Run id -> how often it was started."""
    path = runs / "starts"
    return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.is_file() else Counter()


def epochs(runs: Path, run_id: str) -> list[int]:
    """The epochs that a run logged, in order."""
    return [json.loads(line)["epoch"] for line in (runs / "toy" / run_id / "metrics.jsonl").read_text().splitlines()]


def state(runs: Path, run_id: str) -> str | None:
    try:
        return str(json.loads((runs / "toy" / run_id / "status.json").read_text())["state"])
    except (OSError, ValueError):
        return None


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def start_driver(path: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", DRIVER.format(compose=inspect.getsource(compose_toy)), str(path)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def study_of(sweep: Sweep) -> Study:
    return Study(sweep, sweep_folder(sweep.name) / "study.journal")


# -- to the end -------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_to_its_end_and_ranks_its_trials(
    write: Callable[..., Path], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = load_sweep(str(write(["a", "b", "c"])))
    assert local.run_sweep(sweep, workers=2) == 0
    assert starts(runs) == Counter({f"toy-00{i}": 1 for i in range(3)})
    assert study_of(sweep).best() == (
        2.0,
        "toy-001",
    )  # the best epoch counts, not the last
    printed = capsys.readouterr()
    rows = [line.split()[0] for line in printed.out.splitlines() if line.startswith("toy-")]
    assert rows == ["toy-001", "toy-000", "toy-002"]
    assert "all 3 trials of sweep 'toy' are done" in printed.out
    assert "[0/3] toy-000 started: kind=a" in printed.err
    assert (runs / "reports" / "toy" / "report.html").is_file()
    told = Counter(event["event"] for event in events(sweep_folder("toy")))
    assert told == {"driver started": 1, "started": 3, "finished": 3, "driver ended": 1}


def test_a_finished_sweep_starts_nothing_and_shows_its_table_again(
    write: Callable[..., Path], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(["a", "b"])
    local.run_sweep(load_sweep(str(path)), workers=2)
    capsys.readouterr()
    assert local.run_sweep(load_sweep(str(path)), workers=2) == 0
    assert sum(starts(runs).values()) == 2
    assert "all 2 trials" in capsys.readouterr().out


def test_trials_share_the_cores_and_are_dealt_to_the_devices(
    write: Callable[..., Path], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(processes, "cores", lambda: 16)
    assert processes.default_workers() == 2
    assert local.run_sweep(load_sweep(str(write(["a", "b", "c"]))), workers=2) == 0
    lines = [line.split() for line in (runs / "starts").read_text().splitlines()]
    assert {words[1] for words in lines} == {"8"}
    assert {words[2] for words in lines} == {"3", "5"}


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_trial_is_tried_once_more_under_its_own_id(write: Callable[..., Path], runs: Path) -> None:
    assert local.run_sweep(load_sweep(str(write(["a", "fails_once"]))), workers=1) == 0
    assert starts(runs) == Counter({"toy-000": 1, "toy-001": 2})


def test_a_trial_that_keeps_failing_is_reported_and_the_others_go_on(
    write: Callable[..., Path], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = load_sweep(str(write(["a", "fails", "vanishes", "nan", "b"])))
    assert local.run_sweep(sweep, workers=1) == 1
    assert starts(runs) == Counter({"toy-000": 1, "toy-001": 2, "toy-002": 2, "toy-003": 1, "toy-004": 1})
    out = capsys.readouterr().out
    assert "toy-001 (kind=fails) failed: ValueError: the loss is not finite (exit code 1)" in out
    assert "toy-002 (kind=vanishes) failed: it printed nothing (killed by SIGKILL)" in out
    assert "toy-003 (kind=nan) failed: finished without a finite val/error" in out
    assert "3 of 5 trials failed" in out
    assert [trial.run_id for trial in study_of(sweep).in_state("FAIL")] == [
        "toy-001",
        "toy-002",
        "toy-003",
    ]


def test_a_wrong_request_is_not_tried_again_and_is_in_the_table_though_it_left_no_run_folder(
    write: Callable[..., Path], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert local.run_sweep(load_sweep(str(write(["a", "wrong"]))), workers=1) == 1
    assert starts(runs) == Counter({"toy-000": 1, "toy-001": 1})
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("toy-00")][:2] == [
        ["toy-000", "a", "finished"],
        ["toy-001", "wrong", "failed"],
    ]


def test_failed_trials_are_started_again_on_request(write: Callable[..., Path], runs: Path) -> None:
    path = write(["a", "fails"])
    assert local.run_sweep(load_sweep(str(path)), workers=1) == 1
    assert local.run_sweep(load_sweep(str(path)), workers=1) == 1
    assert starts(runs)["toy-001"] == 2
    fit = path.with_name("fit.py")
    fit.write_text(fit.read_text().replace('kind == "fails" or', "False or"))
    assert local.run_sweep(load_sweep(str(path)), workers=1, retry_failed=True) == 0
    assert starts(runs) == Counter({"toy-000": 1, "toy-001": 3})


def test_a_sweep_whose_first_three_starts_fail_stops_and_goes_on_once_that_is_mended(
    write: Callable[..., Path], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(["wrong", "wrong2", "wrong3", "wrong4", "wrong5"])
    fit = path.with_name("fit.py")
    healthy = fit.read_text()
    fit.write_text(healthy.replace('kind == "wrong"', '"wrong" in kind'))
    assert local.run_sweep(load_sweep(str(path)), workers=1) == 1
    assert sum(starts(runs).values()) == 3
    words = "first 3 starts failed, the last with: mechanolab: module.kind cannot be wrong (exit code 2)"
    assert words in capsys.readouterr().out
    fit.write_text(healthy.replace('kind == "wrong"', "False"))
    assert local.run_sweep(load_sweep(str(path)), workers=1) == 0
    assert sum(starts(runs).values()) == 3 + 5


# -- stopped and killed -----------------------------------------------------------------------------------------------


def test_a_killed_driver_takes_its_trials_along_and_a_second_start_continues_them(
    write: Callable[..., Path], runs: Path
) -> None:
    path = write(["slow", "slow2", "a", "b"])
    driver = start_driver(path)
    try:
        wait_until(lambda: all((runs / f"toy/toy-00{i}/metrics.jsonl").is_file() for i in (0, 1)))
    finally:
        driver.kill()
        driver.communicate()
    wait_until(lambda: state(runs, "toy-000") == state(runs, "toy-001") == "preempted")
    assert local.run_sweep(load_sweep(str(path)), workers=2) == 0
    assert starts(runs) == Counter({"toy-000": 2, "toy-001": 2, "toy-002": 1, "toy-003": 1})
    assert all(epochs(runs, f"toy-00{i}") == [0, 1, 2] for i in range(4))


def test_a_stopped_driver_stops_its_trials_and_exits_with_75(write: Callable[..., Path], runs: Path) -> None:
    path = write(["slow", "slow2", "a"])
    driver = start_driver(path)
    try:
        wait_until(lambda: (runs / "toy/toy-000/metrics.jsonl").is_file())
        driver.send_signal(signal.SIGINT)
        out, err = driver.communicate(timeout=WAIT_S)
    finally:
        driver.kill()
    assert driver.returncode == 75
    assert "continue with: mechanolab sweep" in out
    assert "each trial writes a checkpoint first" in err
    assert state(runs, "toy-000") == "preempted"
    assert local.run_sweep(load_sweep(str(path)), workers=2) == 0
    assert epochs(runs, "toy-000") == [0, 1, 2]


def test_a_trial_that_finished_while_its_driver_was_dead_is_not_run_again(
    write: Callable[..., Path], runs: Path
) -> None:
    path = write(["a", "b"])
    sweep = load_sweep(str(path))
    local.run_sweep(sweep, workers=1)
    journal = sweep_folder("toy") / "study.journal"
    lines = [(line, json.loads(line)) for line in journal.read_text().splitlines()]
    kept = [line for line, entry in lines if "values" not in entry or entry["values"] is None]  # none of the results
    journal.write_text("\n".join(kept) + '\n{"op_code": 6, "tria')  # and a line cut short by the kill
    assert [t.run_id for t in study_of(sweep).in_state("RUNNING")] == [
        "toy-000",
        "toy-001",
    ]
    assert local.run_sweep(sweep, workers=1) == 0
    assert sum(starts(runs).values()) == 2
    assert study_of(sweep).best() == (2.0, "toy-001")


def test_a_preempted_trial_is_continued_by_the_same_driver(write: Callable[..., Path], runs: Path) -> None:
    path = write(["a", "b"])
    fit = path.with_name("fit.py")
    preempt = (
        'if epoch == 1 and not (folder / "was").exists():\n'
        '        (folder / "was").touch()\n        stop()\n    if kind.startswith'
    )
    fit.write_text(FIT.replace("if kind.startswith", preempt))
    assert local.run_sweep(load_sweep(str(path)), workers=2) == 0
    assert starts(runs) == Counter({"toy-000": 2, "toy-001": 2})
    assert epochs(runs, "toy-000") == [0, 1, 2]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_a_second_driver_is_refused_while_the_first_is_at_work(write: Callable[..., Path]) -> None:
    sweep = load_sweep(str(write(["a"])))
    with (
        only_driver(sweep_folder("toy"), "toy"),
        pytest.raises(RequestError, match=f"sweep 'toy' is being driven by process {os.getpid()}"),
    ):
        local.run_sweep(sweep, workers=1)


def test_a_changed_file_is_refused_and_a_new_name_begins_another_sweep(write: Callable[..., Path], runs: Path) -> None:
    assert local.run_sweep(load_sweep(str(write(["a"]))), workers=1) == 0
    path = write(["a", "b"])
    with pytest.raises(RequestError, match=r"toy\.yaml changed since sweep 'toy' was begun.*--name NEW"):
        local.run_sweep(load_sweep(str(path)), workers=1)
    assert local.run_sweep(load_sweep(str(path), name="toy2"), workers=1) == 0
    assert sum(starts(runs).values()) == 3


def test_a_changed_experiment_is_refused_with_the_key_that_changed(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(["a"])
    local.run_sweep(load_sweep(str(path)), workers=1)
    monkeypatch.setenv("LAYERS", "4")
    with pytest.raises(RequestError, match=r"toy \(module\.layers\) changed since sweep 'toy' was begun"):
        local.run_sweep(load_sweep(str(path)), workers=1)


def test_a_longer_search_goes_on_from_the_shorter_one(write: Callable[..., Path], runs: Path) -> None:
    random = {"method": "random", "parameters": {"module.kind": {"values": ["a", "b"]}}}
    local.run_sweep(load_sweep(str(write([], run_cap=2, **random))), workers=1)
    assert local.run_sweep(load_sweep(str(write([], run_cap=4, **random))), workers=1) == 0
    assert starts(runs) == Counter({f"toy-00{i}": 1 for i in range(4)})


def test_runs_left_by_another_sweep_of_the_same_name_are_not_continued(write: Callable[..., Path], runs: Path) -> None:
    (runs / "toy" / "toy-000").mkdir(parents=True)
    (runs / "toy" / "toy-000" / "config.yaml").write_text("{}")
    with pytest.raises(RequestError, match="toy-000 is left from another sweep named 'toy'"):
        local.run_sweep(load_sweep(str(write(["a"]))), workers=1)
    assert not starts(runs)


def test_no_workers_are_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(RequestError, match="--workers must be at least 1, got 0"):
        local.run_sweep(load_sweep(str(write(["a"]))), workers=0)
