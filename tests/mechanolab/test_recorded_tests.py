"""Tests that are kept as runs of their own: by hand, as trials of a sweep, and beside trained runs in a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from mechanolab.cli import main
from mechanolab.compare.table import compare_runs
from mechanolab.config import RequestError
from mechanolab.runs import find_runs, read_config, read_metrics, read_run, read_status
from mechanolab.sweeps import local
from mechanolab.sweeps.study import check_definition, sweep_folder
from mechanolab.sweeps.sweep_file import Sweep, check_tested_run, load_sweep

pytestmark = pytest.mark.slow

COMMAND = ["${env}", "${interpreter}", "-m", "mechanolab", "test", "toy", "--config-json", "${args_json}"]
TRIAL = """\
import importlib.util, os, sys
import pytest
from pathlib import Path
spec = importlib.util.spec_from_file_location("toy_fields", {toy!r})
toy = sys.modules["toy_fields"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
given = {{name: os.environ[name] for name in ("MECHANOLAB_RUNS", "WANDB_RUN_ID", "WANDB_RUN_GROUP")}}
folder = Path({folder!r}) / given["WANDB_RUN_ID"]
folder.mkdir()
toy.install(folder, pytest.MonkeyPatch())
os.environ.update(given)
from mechanolab.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""What a trial's process runs: the command, with the toy experiments in place of the shipped ones."""


@pytest.fixture
def runs(toy: ModuleType, tmp_path: Path) -> Path:
    return tmp_path / "runs"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a wrong request ends with."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    return said[0]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_a_test_is_recorded_as_a_run_of_its_own(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", "toy", "--run-id", "fttc", "--config-json", '{"module.gain": 2.5}', "data.youngs_modulus_pa=20.0"]
    assert main(words) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    folder = runs / "toy" / "fttc"
    assert {p.name for p in folder.iterdir()} == {
        ".lock", "config.yaml", "metrics.jsonl", "status.json", "environment.json", "figures",
    }  # fmt: skip
    (line,) = read_metrics(folder / "metrics.jsonl")
    assert line["step"] == 0
    assert line["test/traction_error"] == pytest.approx(0.5, rel=1e-5)  # gain 2.5 instead of 3, by hand
    assert float(printed["test/traction_error"]) == pytest.approx(0.5, rel=1e-5)
    config, status = read_config(folder), read_status(folder)
    assert (config["module"]["gain"], config["data"]["youngs_modulus_pa"]) == (2.5, 20.0)
    assert (status["state"], status["tested_run"], status["group"]) == ("finished", None, "toy")
    assert (folder / "figures" / "test_field.png").is_file()
    (run,) = find_runs("toy")
    assert run.summary["best"] == line["test/traction_error"]
    assert main(["runs"]) == 0
    assert "test/traction_error" in capsys.readouterr().out


def test_without_an_id_nothing_is_recorded(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "toy"]) == 0
    assert "test/traction_error" in capsys.readouterr().out
    assert not runs.exists()


def test_a_finished_test_is_not_repeated_and_another_one_does_not_overwrite_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["test", "toy", "--run-id", "a"]
    assert main(words) == 0
    first, before = capsys.readouterr().out, snapshot(runs)
    assert main(words) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert "run toy/a is finished already; nothing to do" in again.err
    assert "was made with module.gain = 2.0, not 1.0" in refused([*words, "module.gain=1.0"], capsys)
    assert snapshot(runs) == before


def test_a_sample_that_cannot_be_scored_fails_the_test_in_one_sentence(
    runs: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def folded(self: Any, batch: Any, batch_idx: int) -> None:
        raise ValueError("F must have a positive determinant everywhere: a voxel is turned inside out")

    monkeypatch.setattr(toy.Method, "test_step", folded)
    for words in (["test", "toy"], ["test", "toy", "--run-id", "folded"]):
        assert main(words) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == "mechanolab: F must have a positive determinant everywhere: a voxel is turned inside out"
    assert read_status(runs / "toy" / "folded")["state"] == "failed"


@pytest.mark.parametrize(("interrupt", "state"), [("stop", "preempted"), ("fail", "failed")])
def test_an_interrupted_test_starts_again(
    runs: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch, interrupt: str, state: str
) -> None:
    words = ["test", "toy", "--run-id", "a"]
    monkeypatch.setattr(toy.Method, "interrupt", interrupt)
    if interrupt == "stop":
        assert main(words) == 75
    else:
        with pytest.raises(RuntimeError, match="the fields are gone"):
            main(words)
    assert read_run(runs / "toy" / "a").state == state
    (runs / "toy" / "a" / "metrics.jsonl").write_text('{"step": 0, "test/traction_error": 9.0}\n')
    monkeypatch.setattr(toy.Method, "interrupt", None)
    assert main(words) == 0
    (line,) = read_metrics(runs / "toy" / "a" / "metrics.jsonl")
    assert line["test/traction_error"] == pytest.approx(1.0, rel=1e-5)
    assert read_run(runs / "toy" / "a").state == "finished"


def test_a_trained_run_is_tested_under_other_conditions(
    runs: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = toy.write_trained_run(runs, "trained", factor=1.25, batches_seen=7)
    before = snapshot(trained)
    monkeypatch.setenv("WANDB_RUN_ID", "noisy")
    monkeypatch.setenv("WANDB_RUN_GROUP", "noise")
    assert main(["test", "toy_net", "--run", "trained", "data.youngs_modulus_pa=20.0"]) == 0
    monkeypatch.delenv("WANDB_RUN_ID")
    assert snapshot(trained) == before
    run = read_run(runs / "toy_net" / "noisy")
    assert run.history[0]["step"] == 7
    assert run.summary["test/traction_error"] == pytest.approx(0.5, rel=1e-5)
    assert (run.status["tested_run"], run.status["checkpoint"], run.group) == ("trained", "best", "noise")
    assert run.metric == "test/traction_error"  # trained runs are ranked by val/traction_error
    assert read_run(trained).metric == "val/traction_error"
    # what is predicted of the recorded test is predicted with the weights that it tested
    assert main(["predict", "toy_net", "--run", "noisy"]) == 0
    assert (runs / "toy_net" / "noisy" / "predictions" / "test" / "predictions.h5").is_file()


def test_what_is_not_recorded_leaves_the_runs_figures_unless_it_is_the_runs_own_test(
    runs: Path, toy: ModuleType
) -> None:
    trained = toy.write_trained_run(runs, "trained", factor=1.25, batches_seen=7)
    assert main(["test", "toy_net", "--run", "trained"]) == 0
    before = snapshot(trained / "figures")
    assert "test_field.png" in before
    assert main(["test", "toy_net", "--run", "trained", "data.youngs_modulus_pa=20.0"]) == 0
    assert snapshot(trained / "figures") == before
    assert main(["test", "toy_net", "--run", "trained"]) == 0
    assert snapshot(trained / "figures") != before  # written anew


def test_a_recorded_test_and_a_trained_run_cannot_take_each_others_place(
    runs: Path, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = toy.write_trained_run(runs, "trained", factor=1.0, batches_seen=7)
    toy.write_trained_run(runs, "other", factor=2.0, batches_seen=7)
    assert main(["test", "toy_net", "--run", "other", "--run-id", "kept"]) == 0
    before = snapshot(runs)
    test = ["test", "toy_net", "--run", "trained"]
    assert "trained is the run that is to be tested" in refused([*test, "--run-id", "trained"], capsys)
    assert "run toy_net/other was trained; choose another --run-id" in refused([*test, "--run-id", "other"], capsys)
    assert "made with tested_run = 'other', not 'trained'" in refused([*test, "--run-id", "kept"], capsys)
    assert "run toy_net/kept records a test" in refused(["fit", "toy_net", "--run-id", "kept"], capsys)
    assert "there is no run absent" in refused([*test[:-1], "absent", "--run-id", "new"], capsys)
    assert "test needs a trained run" in refused(["test", "toy_net", "--run-id", "new"], capsys)
    assert "run id '../x'" in refused(["test", "toy", "--run-id", "../x"], capsys)
    assert "--config-json is not valid JSON" in refused(["test", "toy", "--config-json", "{"], capsys)
    assert snapshot(runs) == before
    assert trained.is_dir()


def test_a_smoke_run_of_what_needs_no_training_tests_and_leaves_nothing(
    runs: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy.Fields, "stem", "circular")  # a simulator that is there
    assert main(["fit", "toy", "--smoke"]) == 0
    assert "smoke toy: " in capsys.readouterr().out
    assert not runs.exists()
    assert "use: mechanolab test toy" in refused(["fit", "toy"], capsys)


# -- as trials of a sweep ---------------------------------------------------------------------------------------------


def write_sweep(folder: Path, **changes: Any) -> Path:
    definition: dict[str, Any] = {
        "method": "grid",
        "metric": {"name": "test/traction_error", "goal": "minimize"},
        "parameters": {"module.gain": {"values": [2.0, 2.75]}},
        "command": COMMAND,
    }
    path = folder / "gains.yaml"
    path.write_text(yaml.safe_dump(definition | changes, sort_keys=False), encoding="utf-8")
    return path


def command_on(run: str) -> list[str]:
    return [*COMMAND[:5], "toy_net", "--run", run, *COMMAND[6:]]


def test_a_sweep_of_tests_runs_to_its_end_and_names_the_best(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "trial.py"
    script.write_text(TRIAL.format(toy=str(Path(__file__).with_name("_toy_fields.py")), folder=str(tmp_path)))
    command = ["${env}", "${interpreter}", "${program}", *COMMAND[4:]]
    path = write_sweep(tmp_path, program=str(script), command=command)
    assert main(["sweep", str(path), "--dry-run"]) == 0
    assert """test toy --config-json '{"module.gain": 2.0}'""" in capsys.readouterr().out
    assert main(["sweep", str(path), "--workers", "2"]) == 0
    out = capsys.readouterr().out
    assert "all 2 trials of sweep 'gains' are done" in out
    lines = [line.split() for line in out.splitlines() if line.startswith("gains-0")]
    assert [line[0] for line in lines] == ["gains-001", "gains-000"]  # errors 0.25 and 1, by hand
    header = next(line for line in out.splitlines() if line.startswith("run "))
    assert header.count("test/traction_error") == 1
    assert [run.status["tested_run"] for run in find_runs("gains")] == [None, None]
    page = (runs / "reports" / "gains" / "report.html").read_text()
    assert "best test/traction_error" in page
    assert "learning curves" not in page
    assert main(["sweep", str(path)]) == 0
    assert "all 2 trials" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metric": None}, "write metric: {name: test/traction_error, goal: minimize}"),
        (
            {"metric": {"name": "val/traction_error"}},
            "a test of toy logs no 'val/traction_error', only metrics such as",
        ),
        ({"metric": {"name": "test/traction_error", "goal": "maximize"}}, "toy monitors test/traction_error with mode"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate stops a training early, and test trains nothing"),
        ({"command": [*COMMAND, "--run-id", "one"]}, "command gives every trial one --run-id: remove it"),
        ({"command": [*COMMAND, "--run"]}, "--run must be followed by the id of the run to test"),
        ({"command": ["test", "${args}"]}, "command must name the experiment after the word fit or test"),
        ({"parameters": {"module.gian": {"values": [1.0]}}}, "did you mean 'gain'?"),
    ],
)
def test_a_wrong_sweep_of_tests_is_refused(runs: Path, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        load_sweep(str(write_sweep(tmp_path, **changes)))
    assert sentence in str(caught.value)


def test_a_metric_that_no_trial_logged_is_told_with_those_that_were(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "toy", "--run-id", "done"]) == 0
    copy = f'cp -r "{runs}/toy/done" "{runs}/toy/$WANDB_RUN_ID"'  # a trial that takes no time
    command = ["${env}", "sh", "-c", copy, "sh", "test", "toy", "${args_json}"]
    path = write_sweep(
        tmp_path, command=command, metric={"name": "test/nrmse"}, parameters={"module.gain": {"value": 2.0}}
    )
    assert main(["sweep", str(path), "--workers", "1"]) == 1
    reason = "finished without a finite test/nrmse; it logged test/loss, test/traction_error"
    assert reason in capsys.readouterr().out


def test_the_tested_run_comes_from_the_environment_and_belongs_to_the_sweep(
    runs: Path, tmp_path: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load() -> Sweep:
        parameters = {"data.youngs_modulus_pa": {"values": [10.0, 20.0]}}
        return load_sweep(str(write_sweep(tmp_path, command=command_on("${envvar:TRAINED}"), parameters=parameters)))

    monkeypatch.delenv("TRAINED", raising=False)
    with pytest.raises(RequestError, match=r"set TRAINED in the environment to the id of the run to test"):
        check_tested_run(load())
    monkeypatch.setenv("TRAINED", "absent")
    with pytest.raises(RequestError, match=r"there is no run absent of toy_net to test"):
        local.run_sweep(load(), workers=1)
    for run_id, gain in (("one", 2.0), ("two", 2.5)):
        folder = toy.write_trained_run(runs, run_id, factor=1.0, batches_seen=1)
        config = read_config(folder)
        config["module"]["gain"] = gain
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("TRAINED", "two")
    sweep = load()
    check_tested_run(sweep)
    assert sweep.base["module"]["gain"] == 2.5  # of the run, not of the experiment
    assert local.dry_run(sweep) == 0
    assert "test toy_net --run two --config-json" in capsys.readouterr().out
    sweep_folder(sweep.name).mkdir(parents=True)
    check_definition(sweep_folder(sweep.name), sweep)
    monkeypatch.setenv("TRAINED", "one")
    with pytest.raises(RequestError, match=r"the tested run \(two -> one\) changed since sweep 'gains' was begun"):
        check_definition(sweep_folder(sweep.name), load())


# -- side by side -----------------------------------------------------------------------------------------------------


def test_recorded_tests_are_ranked_with_trained_runs_by_the_test_set(
    runs: Path, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_trained_run(runs, "trained", factor=1.25, batches_seen=7)  # its own test: 0.6
    assert main(["test", "toy_net", "--run", "trained", "--run-id", "again"]) == 0
    assert main(["test", "toy", "--run-id", "plain"]) == 0
    comparison = compare_runs([*find_runs("toy_net"), *find_runs("toy")], title="all")
    assert (comparison.metric, comparison.mode) == ("test/traction_error", "min")
    scores = [(row.name, round(row.scores["best"].value, 4)) for row in comparison.rows]
    assert scores == [("again", 0.5), ("trained", 0.6), ("plain", 1.0)]
    assert main(["compare", "toy_net", "toy"]) == 0
    assert "report:" in capsys.readouterr().out


def test_a_best_possible_score_that_is_not_known_costs_nothing(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "toy", "--run-id", "plain"]) == 0
    path = runs / "toy" / "plain" / "environment.json"
    facts = json.loads(path.read_text())
    facts["data"] = {"shards": {}, "irreducible_error": None}
    path.write_text(json.dumps(facts))
    run = read_run(path.parent)
    assert run.irreducible_error is None
    (row,) = compare_runs([run], title="one").rows
    assert np.isnan(row.ratio)
    assert main(["compare", "toy"]) == 0
    assert "best possible" not in capsys.readouterr().out
    assert "best possible" not in (runs / "reports" / "toy" / "report.html").read_text()
