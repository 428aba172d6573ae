"""The command from outside: every wrong request ends with one sentence, exit code 2 and nothing left behind."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mechanolab.cli import main
from mechanolab.config import checkout, compose, experiment_names, experiment_path, import_class
from mechanolab.runs import read_run


def files_in(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")} if folder.is_dir() else set()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str], *places: Path) -> None:
    """Exit code 2, one line on stderr that holds `message`, and no new file in `places`."""
    capsys.readouterr()
    before = [files_in(place) for place in places]
    assert main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mechanolab: ")]
    assert len(said) == 1, said
    assert message in said[0]
    assert [files_in(place) for place in places] == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "circlar"], "did you mean 'circular'?"),
        (["fit", "circular_twin", "module.learning_rat=0.1"], "did you mean 'learning_rate'?"),
        (["fit", "circular_twin", "module.learning_rate=-1.0"], "module.learning_rate must be positive, got -1.0"),
        (["fit", "circular_twin", "data.batch_size=0"], "data.batch_size must be at least 1, got 0"),
        (["fit", "circular_twin", "module.configuration=circle"], "module.configuration must be one of"),
        (["fit", "circular_twin", "trainer.precision=17"], "trainer.precision must be"),
        (["fit", "circular_twin", "trainer.strategy=telepathy"], "trainer: "),
        (["fit", "circular_twin", "trainer.max_epochs=null"], "trainer.max_epochs is missing"),
        (["fit", "circular_twin", "data.dataset=absent"], "mechanolab data convert circular"),
        (["fit", "circular_twin", "data.split=fold9"], "fold9"),
        (["fit", "circular_twin", "--run-id", "../x"], "run id '../x'"),
        (["fit", "circular_twin", "--resume", "nowhere.ckpt"], "--resume nowhere.ckpt"),
        (["fit", "circular_twin", "--config-json", "{"], "--config-json is not valid JSON"),
        (["fit", "circular_twin", "--config-json", "[1]"], "--config-json must be an object"),
        (["fit", "circular_twin", "--config-json", '{"module.learning_rate": "1e-5"}'], "it is a text: write 1.0e-05"),
        (["fit", "circular_twin", "--runid", "a"], "unknown option --runid (did you mean '--run-id'?)"),
        (["fit", "circular_twin", "fast"], "'fast' is not understood"),
        (["test", "circular_twin"], "name one with --run ID"),
        (["test", "circular_twin", "--run", "absent"], "there is no run absent of circular_twin"),
        (["predict", "circular_twin", "--run", "absent"], "there is no run absent of circular_twin"),
        (["data", "simulate", "circlar"], "did you mean 'circular'?"),
        (["data", "simulate", "circular", "--count", "0"], "--count must be at least 1"),
        (["data", "convert", "circular", "--source", "nowhere"], "nowhere does not exist"),
        (["data", "inspect", "nowhere"], "nowhere"),
        (["data", "verify", "nowhere"], "nowhere"),
        (["sweep", "circlar"], "did you mean 'circular'?"),
        (["compare", "circlar"], "circlar"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_is_one_sentence(
    words: list[str], message: str, places: Path, twin_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(words, message, capsys, places, twin_root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "00000.h5").write_bytes((p / "00000.h5").read_bytes()[:-100]), "00000.h5"),
        (lambda p: (p / "00000.h5").write_bytes(b"not HDF5"), "00000.h5"),
        (lambda p: (p / "00000.h5").unlink(), "00000.h5"),
        (lambda p: (p / "manifest.json").write_text("{"), "manifest.json"),
    ],
    ids=["truncated", "foreign", "missing", "manifest"],
)
def test_a_broken_data_set_is_named(
    damage, message: str, places: Path, twin_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(twin_root, tmp_path / "data")
    damage(tmp_path / "data" / "circular" / "twin")
    capsys.readouterr()
    assert main(["fit", "circular_twin", f"data.data_root={tmp_path / 'data'}", "--run-id", "broken"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mechanolab: ")]
    assert len(said) == 1
    assert message in said[0]


@pytest.mark.slow
def test_a_monitored_metric_that_is_not_logged_is_refused_with_those_that_are(
    places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "circular_twin", "monitor.metric=val/accuracy", "trainer.max_epochs=1"]) == 2
    said = capsys.readouterr().err
    assert "monitor.metric 'val/accuracy' is not logged by lightning_modules.circular.CircularRegression" in said
    assert "val/angular_error_deg" in said


def test_a_loss_that_is_not_finite_stops_the_run(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["module.learning_rate=1e30", "module.configuration=circle-identity-distance_squared", "data.batch_size=4"]
    assert main(["fit", "circular_twin", *words, "trainer.log_every_n_steps=1", "--run-id", "nan"]) == 1
    assert "train/loss is" in capsys.readouterr().err
    assert read_run(places / "circular_twin" / "nan").state == "failed"


def cheapest_first() -> list[Any]:
    """Of each paper one experiment is among the fast tests: the small one where there is one."""
    names = experiment_names()
    papers = {name for name in names if "\nbase:" not in experiment_path(name).read_text(encoding="utf-8")}
    fast = {f"{paper}_small" if f"{paper}_small" in names else paper for paper in papers}
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


@pytest.mark.parametrize("name", cheapest_first())
def test_every_experiment_smoke_trains(
    name: str, places: Path, twin_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_in(places), files_in(twin_root)
    assert main(["fit", name, "--smoke"]) == 0
    assert (files_in(places), files_in(twin_root)) == before
    said = capsys.readouterr().out
    config = compose(name)
    trained = not import_class(config["module"]["class_path"], package="lightning_modules", key="module").training_free
    monitored = config["monitor"]["metric"]
    for metric in [f"test/{monitored.split('/')[-1]}", *([monitored] if trained else [])]:
        (value,) = re.findall(rf"{metric} (\S+)", said)
        assert math.isfinite(float(value)), metric


@pytest.fixture(scope="module")
def run(places: Path) -> Path:
    words = ["data.batch_size=8", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"]
    assert main(["fit", "circular_twin", *words, "--run-id", "small"]) == 0
    return places / "circular_twin" / "small"


def test_a_run_folder_holds_what_the_design_says(run: Path) -> None:
    finished = read_run(run)
    assert finished.state == "finished"
    assert finished.summary["best"] == finished.summary["val/angular_error_deg"]
    assert finished.irreducible_error
    assert finished.irreducible_error["value"] == pytest.approx(11.586, abs=1e-3)
    assert {"train/loss_step", "train/loss", "val/loss", "test/angular_error_deg"} <= set(finished.summary)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["data"]["shards"]["00000.h5"]
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert {"train_learning_curves.png", "val_directions.png", "test_directions.png", "test_polar_error.png"} <= {
        p.name for p in (run / "figures").iterdir()
    }


def test_testing_again_gives_the_number_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "circular_twin", "--run", "small"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("test/"))
    summary = read_run(run).summary
    assert float(printed["test/angular_error_deg"]) == pytest.approx(summary["test/angular_error_deg"], rel=1e-4)
    assert main(["validate", "circular_twin", "--run", "small", "--checkpoint", "last"]) == 0
    assert "val/angular_error_deg" in capsys.readouterr().out


def test_predictions_of_a_split_carry_id_group_truth_and_a_figure(run: Path) -> None:
    assert main(["predict", "circular_twin", "--run", "small", "--split", "val"]) == 0
    folder = run / "predictions" / "val"
    rows = table(folder / "predictions.csv")
    assert rows == sorted(rows, key=lambda row: row["sample_id"])
    errors = [float(row["error_deg"]) for row in rows]
    assert np.mean(errors) == pytest.approx(read_run(run).summary["best"], abs=1e-3)
    assert all(row["group"] and 0 <= float(row["angle_rad"]) < 2 * np.pi for row in rows)
    assert (folder / "directions.png").is_file()


def test_own_images_are_predicted_by_file_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), generator.integers(0, 255, (128, 128), dtype=np.uint8))
    cv2.imwrite(str(tmp_path / "b.tif"), generator.integers(0, 255, (128, 128), dtype=np.uint8))
    assert main(["predict", "circular_twin", "--run", "small", "--input", str(tmp_path)]) == 0
    rows = table(run / "predictions" / f"input-{tmp_path.name}" / "predictions.csv")
    assert [row["sample_id"] for row in rows] == ["a.png", "b.tif"]
    assert rows[0]["target_rad"] == "nan"
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((200, 200), np.uint8))
    words = ["predict", "circular_twin", "--run", "small", "--input", str(tmp_path)]
    assert_refused(words, "c.png is 200 x 200 px", capsys, run)
    assert_refused([*words, "--pixel-size-um", "0.0001"], "too small", capsys, run)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_refused([*words[:-1], str(empty)], "holds no image", capsys, run)


def test_a_checkpoint_of_another_module_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", "circular_twin", "--run", "small", "module.configuration=angle-cyclic-linear"]
    assert_refused(words, "does not fit the module", capsys, run)
    torn = run.parent / "torn.ckpt"
    torn.write_bytes(b"PK\x03\x04 torn")
    assert_refused(["test", "circular_twin", "--run", "small", "--checkpoint", str(torn)], "cannot be read", capsys)


def test_runs_are_listed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "circular_twin"]) == 0
    assert "small" in capsys.readouterr().out


def test_doctor_names_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "lightning" in capsys.readouterr().out


def test_help_and_config_import_no_torch() -> None:
    code = (
        "import sys; from mechanolab.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_print_config_shows_the_merged_configuration(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    before = files_in(places)
    assert main(["fit", "circular_twin", "--print-config", "seed=7"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 7
    assert files_in(places) == before


def test_every_command_in_the_readme_exists() -> None:
    text = (checkout() / "README.md").read_text(encoding="utf-8")
    targets = {line.split()[1] for line in text.splitlines() if line.strip().startswith("make ")}
    makefile = (checkout() / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert f"\n{target}:" in makefile, target
