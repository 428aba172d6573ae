"""`mechanolab data merge|split|export` through the command line: exit codes, sentences, what stands afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import Manifest
from datamodules.shards.verify import verify_dataset
from datamodules.shards.writer import write_dataset
from mechanolab.cli import main

FIELDS = {"image": {"axes": "cyx", "unit": "grey level"}, "angle_rad": {"axes": "", "unit": "rad"}}
SPLITS = {"default": {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25}}


def write(folder: Path, label: str) -> Path:
    rng = np.random.default_rng(0)
    provenance = {"made_by": "test", "licence": "CC0"}
    samples = (
        Sample(
            f"{label}{n:02d}",
            f"{label}track{n // 3}",
            {"image": rng.integers(0, 255, (1, 4, 4), dtype=np.uint8), "angle_rad": np.float32(n / 10)},
        )
        for n in range(24)
    )
    write_dataset(folder, samples, stem="toy_paper", fields=FIELDS, splits=SPLITS, seed=0, provenance=provenance)
    return folder


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write(tmp_path / "twin", "x")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write(tmp_path / "other", "y")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(*words: object) -> int:
    return main(["data", *map(str, words)])


def refusal(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence with which a request is refused."""
    capfd.readouterr()
    assert run(*words) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mechanolab: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("mechanolab: ")


# -- split ------------------------------------------------------------------------------------------------------------


def test_split_adds_a_scheme_and_prints_its_counts(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("split", twin, "--name", "mine", "--train", ".5", "--val", "0.25", "--seed", "4") == 0
    out = capfd.readouterr().out
    for text in ("mine", "group", "12 (4 groups)", "6 (2 groups)", "0 (0 groups)", "data.split=mine"):
        assert text in out
    assert "default" not in out
    assert "leak" not in out
    entry = Manifest.read(twin).splits["mine"]
    assert (entry["unit"], entry["train"], entry["val"], entry["seed"]) == ("group", 0.5, 0.25, 4)
    assert verify_dataset(twin) == []


def test_split_into_folds_tests_every_sample_once(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("split", twin, "--folds", "4") == 0
    assert capfd.readouterr().out.count("6 (2 groups)") == 8
    tested = [one for fold in range(4) for one in ShardDataset(twin, scheme=f"fold{fold}", split="test").sample_ids]
    assert sorted(tested) == ShardDataset(twin).sample_ids.tolist()
    assert run("split", twin, "--folds", "3", "--name", "third_") == 0
    assert list(Manifest.read(twin).splits)[-3:] == ["third_0", "third_1", "third_2"]


def test_split_by_sample_says_that_it_leaks(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("split", twin, "--folds", "3", "--name", "patch", "--by-sample-leaks") == 0
    assert "leak by design" in capfd.readouterr().out
    assert Manifest.read(twin).splits["patch0"]["unit"] == "sample"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "say either the shares, such as --train 0.8 --val 0.1 --test 0.1, or --folds K"),
        (["--folds", "3", "--train", "0.5"], "say either the shares"),
        (["--train", "0.5", "--test", "0.5"], "a split scheme needs a --name"),
        (["--folds", "2"], "folds must be at least 3"),
        (["--folds", "-1"], "folds must be at least 3"),
        (["--folds", "9"], "9 folds need at least 9 groups and there are only 8; use fewer folds"),
        (["--folds", "3", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--name", "default", "--train", "1"], "has a split scheme 'default' already"),
        (["--name", "a b", "--train", "1"], "a scheme's name is letters, digits"),
        (["--name", "mine", "--train", "0.9", "--test", "0.2"], "'mine': the shares must sum to more than 0 and at"),
        (["--name", "mine", "--train", "nan"], "'mine': train must be a share between 0 and 1, got nan"),
    ],
)
def test_a_wrong_split_is_one_sentence_and_changes_nothing(
    twin: Path, capfd: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    before = contents(twin)
    assert complaint in refusal(capfd, "split", twin, *words)
    assert contents(twin) == before


@pytest.mark.parametrize(
    "words", [["split", "--folds", "3"], ["export", "--out", "new"], ["merge", "elsewhere", "--out", "new"]]
)
def test_a_folder_without_data_set_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no data set at nowhere" in refusal(capfd, words[0], "nowhere", *words[1:])
    assert not list(tmp_path.iterdir())


# -- merge ------------------------------------------------------------------------------------------------------------


def test_merge_keeps_the_splits_and_is_made_once(
    twin: Path, other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run("split", twin, "--folds", "3")
    capfd.readouterr()
    assert run("merge", twin, other, "--out", tmp_path / "both") == 0
    captured = capfd.readouterr()
    for text in (f"{tmp_path / 'both'}: 48 samples, 16 groups", "24 (8 groups)", "split scheme 'fold0' is not kept"):
        assert text in captured.out
    assert "merging 2 data sets: 48 samples" in captured.err
    assert verify_dataset(tmp_path / "both") == []
    manifest = Manifest.read(tmp_path / "both")
    assert manifest.provenance["licence"] == "CC0"
    assert manifest.provenance["made_with"].startswith("mechanolab ")
    for split in ("train", "val", "test"):
        ids = [ShardDataset(one, scheme="default", split=split).sample_ids.tolist() for one in (twin, other)]
        merged = ShardDataset(tmp_path / "both", scheme="default", split=split).sample_ids.tolist()
        assert merged == ids[0] + ids[1]
    before = contents(tmp_path / "both")
    assert run("merge", twin, other, "--out", tmp_path / "both") == 0
    assert "is there already: 48 samples" in capfd.readouterr().err
    assert contents(tmp_path / "both") == before
    assert run("inspect", tmp_path / "both") == 0
    assert f"twin, made by test, {Manifest.read(twin).identity}" in capfd.readouterr().out


def test_another_merge_in_the_folder_is_not_touched(
    twin: Path, other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run("merge", twin, other, "--out", tmp_path / "both")
    before = contents(tmp_path / "both")
    for words in ([other, twin], [twin, other, "--prefix"]):
        assert "already holds another data set" in refusal(capfd, "merge", *words, "--out", tmp_path / "both")
    assert "already holds another data set" in refusal(capfd, "merge", twin, other, "--out", twin)
    assert contents(tmp_path / "both") == before


def test_a_merge_repeated_after_its_sources_were_split_is_refused(
    twin: Path, other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("merge", twin, other, "--out", tmp_path / "both")
    assert run(*words) == 0
    assert run("split", tmp_path / "both", "--folds", "3", "--name", "own") == 0
    assert run(*words) == 0
    before = contents(tmp_path / "both")
    # the first of these names is taken in the merge by a scheme of its own
    for name in ("own0", "mine"):
        for folder in (twin, other):
            assert run("split", folder, "--name", name, "--train", "0.5", "--test", "0.5") == 0
        assert "holds this merge without the split scheme 'own0'" in refusal(capfd, *words)
    assert contents(tmp_path / "both") == before


def test_a_merge_repeated_without_a_shared_scheme_of_its_sources_is_refused(
    twin: Path, other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("merge", twin, other, "--out", tmp_path / "both")
    assert run(*words) == 0
    for folder in (twin, other):
        assert run("split", folder, "--folds", "3") == 0
    assert "without the split scheme 'fold0' that the merge would have today" in refusal(capfd, *words)


def test_merge_of_equal_names_tells_of_the_prefix(
    twin: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    same = write(tmp_path / "same", "x")
    assert "use --prefix" in refusal(capfd, "merge", twin, same, "--out", tmp_path / "both")
    assert not (tmp_path / "both").exists()
    assert run("merge", twin, same, "--out", tmp_path / "both", "--prefix") == 0
    assert ShardDataset(tmp_path / "both").sample_ids[24] == "same_x00"
    assert verify_dataset(tmp_path / "both") == []


def test_merge_needs_two_data_sets(twin: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "at least two data sets, got 1" in refusal(capfd, "merge", twin, "--out", tmp_path / "both")
    assert "merge each only once" in refusal(capfd, "merge", twin, twin, "--out", tmp_path / "both")
    with pytest.raises(SystemExit) as stopped:
        run("merge", twin, twin)
    assert stopped.value.code == 2


# -- export -----------------------------------------------------------------------------------------------------------


def test_export_writes_the_files_of_one_split(twin: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--format", "tiff", "--fields", "image", "--split", "default:test")
    assert run("export", twin, "--out", tmp_path / "out", *words) == 0
    captured = capfd.readouterr()
    assert captured.out == f"{tmp_path / 'out'}: 6 samples as tiff files, samples.csv and fields.json\n"
    assert f"exporting {twin}: 6 samples" in captured.err
    names = ShardDataset(twin, scheme="default", split="test").sample_ids
    expected = {f"{name}_image.tif" for name in names} | {"samples.csv", "fields.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert run("export", twin, "--out", tmp_path / "all") == 0
    assert len(list((tmp_path / "all").glob("*.npy"))) == 24


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--split", "default"], "--split must be a scheme and a split such as default:train, got 'default'"),
        (["--split", ":train"], "--split must be a scheme and a split"),
        (["--split", "fold9:train"], "split scheme 'fold9' is not in"),
        (["--split", "default:dev"], "split must be train, val or test, got 'dev'"),
        (["--fields", "image,picture"], "field 'picture' is not in"),
        (["--fields", ""], "field '' is not in"),
    ],
)
def test_a_wrong_export_is_one_sentence_and_leaves_nothing(
    twin: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert complaint in refusal(capfd, "export", twin, "--out", tmp_path / "out", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["twin"]


def test_export_does_not_touch_a_folder_that_holds_something(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = contents(twin)
    assert "already holds a data set" in refusal(capfd, "export", twin, "--out", twin)
    assert contents(twin) == before


def test_importing_the_commands_imports_nothing_heavy() -> None:
    code = "import sys, mechanolab.data_sets; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    assert not {"torch", "h5py", "tifffile", "lightning", "numpy"} & set(modules)
