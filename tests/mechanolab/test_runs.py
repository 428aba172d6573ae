"""The run folder, written and read back."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from mechanolab import runs
from mechanolab.config import RequestError
from mechanolab.loggers import MetricsFile
from mechanolab.overview import list_runs
from mechanolab.runs import read_metrics, truncate_metrics

CONFIG = {"monitor": {"metric": "val/angular_error_deg", "mode": "min"}, "module": {"learning_rate": 0.1}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MECHANOLAB_RUNS", str(tmp_path))
    folder = runs.run_folder("circular_twin", "a-1")
    folder.mkdir(parents=True)
    runs.write_config(folder, CONFIG)
    return folder


def test_a_run_reads_back_as_it_was_written(folder: Path) -> None:
    step = 0
    log = MetricsFile(folder / "metrics.jsonl", lambda: step)
    for step, value in ((1, 50.0), (2, math.nan), (3, 40.0), (4, 45.0)):
        log.log_metrics({"val/angular_error_deg": value, "epoch": step})
    runs.write_status(folder, "finished", group="circular")
    run = runs.find_runs("circular")[0]
    assert run.config == CONFIG
    assert run.state == "finished"
    assert run.summary == {"val/angular_error_deg": 45.0, "best": 40.0}
    assert [line["step"] for line in run.history] == [1, 2, 3, 4]
    assert math.isnan(run.history[1]["val/angular_error_deg"])
    assert runs.find_runs("circular_twin") == [run] or runs.find_runs("circular_twin")[0].run_id == run.run_id
    assert runs.find_runs("other") == []


def test_runs_are_listed_whatever_their_messages_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write_status(folder, "failed", group="circular", message="cannot read [/data/x] in [train, val]")
    assert list_runs("circular") == 0
    assert "cannot read [/data/x] in [train, val]" in capsys.readouterr().out
    with pytest.raises(RequestError, match=r"no experiment or sweep named 'circlar' has runs .did you mean 'circular'"):
        list_runs("circlar")


def test_a_line_cut_short_by_a_kill_is_left_out(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 0, "time": 1.0, "train/loss": 2.0}\n{"step": 2, "epo')
    assert [line["step"] for line in read_metrics(path)] == [1]


def test_resuming_drops_what_comes_after_the_checkpoint(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    lines = [{"step": s, "epoch": 0, "time": 0.0, "train/loss": 1.0} for s in (10, 20, 30)]
    lines.append({"step": 20, "epoch": 0, "time": 0.0, "test/angular_error_deg": 3.0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    truncate_metrics(path, 20)
    assert read_metrics(path) == lines[:2]


def test_a_run_whose_process_is_gone_was_preempted(folder: Path) -> None:
    runs.write_status(folder, "running")
    assert runs.read_run(folder).state == "running"
    status = runs.read_status(folder) | {"pid": 2**22 + 1}
    runs.write_json(folder / "status.json", status)
    assert runs.read_run(folder).state == "preempted"


def test_two_processes_cannot_write_to_one_run(folder: Path) -> None:
    with runs.lock_run(folder), pytest.raises(RequestError, match="another process"), runs.lock_run(folder):
        pass
    with runs.lock_run(folder):
        pass


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", "-x", "a" * 65])
def test_a_run_id_must_be_a_folder_name(run_id: str) -> None:
    with pytest.raises(RequestError, match="run id"):
        runs.run_folder("circular", run_id)


def test_reserved_names_are_refused() -> None:
    with pytest.raises(RequestError, match="rename the file"):
        runs.run_folder("sweeps", "x")


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is not a run: it holds no config\.yaml"):
        runs.read_run(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(RequestError, match="not valid YAML"):
        runs.read_run(tmp_path)


def test_an_unknown_state_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="state must be one of"):
        runs.write_status(folder, "done")


def test_the_environment_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(
        json.dumps(
            {"shards": [{"name": "00000.h5", "sha256": "ab"}], "provenance": {"irreducible_error": {"value": 1}}}
        )
    )
    facts = runs.environment(tmp_path)
    assert facts["packages"]["torch"]
    assert facts["data"] == {"shards": {"00000.h5": "ab"}, "irreducible_error": {"value": 1}}
    assert facts["cpus"] == os.cpu_count()


def test_the_best_possible_score_counts_only_where_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "dl" / "a"
    folder.mkdir(parents=True)
    known = {"metric": "error", "value": 0.05, "match": {"data.noise_px": 0.02}}
    runs.write_json(folder / "environment.json", {"data": {"irreducible_error": known}})
    for noise_px, expected in ((0.02, known), (0.0, None)):
        config = {"monitor": {"metric": "val/error", "mode": "min"}, "data": {"noise_px": noise_px}}
        runs.write_config(folder, config)
        assert runs.read_run(folder).irreducible_error == expected
    known["match"] = {"data.frame_px": {"at_least": 384}}
    runs.write_json(folder / "environment.json", {"data": {"irreducible_error": known}})
    for frame_px, expected in ((1024, known), (384, known), (None, known), (128, None)):
        runs.write_config(folder, {"monitor": {"metric": "val/error", "mode": "min"}, "data": {"frame_px": frame_px}})
        assert runs.read_run(folder).irreducible_error == expected
