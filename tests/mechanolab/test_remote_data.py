"""Data sets at a URL, through the commands: verify, inspect, fit, and one sentence where a URL cannot be used."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import yaml

from datamodules.shards import remote
from datamodules.shards.schema import Manifest
from mechanolab import data
from mechanolab.cli import main
from mechanolab.config import RequestError, data_root
from mechanolab.runs import read_run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MECHANOLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "RETRY_SECONDS", ())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def root_url(twin_root: Path) -> Iterator[str]:
    """URL of a copy of `twin_root` in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    url = f"memory://{uuid.uuid4().hex}"
    for path in twin_root.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"{url}/{path.relative_to(twin_root)}", path.read_bytes())
    yield url
    with contextlib.suppress(FileNotFoundError):
        memory.rm(url, recursive=True)


def test_verify_tells_a_sound_remote_data_set_from_a_damaged_one(
    root_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{root_url}/circular/twin"
    assert main(["data", "verify", url]) == 0
    assert capsys.readouterr().out == f"{url}: 80 samples in 1 shard, no fault\n"
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"{url}/00000.h5", memory.cat_file(f"{url}/00000.h5")[:-1])
    assert main(["data", "verify", url]) == 1
    fault, total = capsys.readouterr().out.splitlines()
    assert fault.startswith(f"{url}/00000.h5 is not what the manifest says")
    assert total == f"{url}: 80 samples in 1 shard, 1 fault"
    memory.pipe_file(f"{url}/manifest.json", b"{}")
    assert main(["data", "verify", url]) == 1
    assert f"{url}/manifest.json" in capsys.readouterr().out


def test_inspect_draws_into_the_working_directory(
    root_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{root_url}/circular/twin"
    assert main(["data", "inspect", url]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{url}: circular / twin")
    assert out.endswith("contact sheet: contact_sheet.png\n")
    assert (tmp_path / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    data.inspect(url, picture=tmp_path / "other.png")
    assert (tmp_path / "other.png").is_file()


@pytest.mark.parametrize("command", [data.verify, data.inspect])
def test_a_url_without_data_set_is_a_request_error(command, root_url: str) -> None:
    with pytest.raises(RequestError, match=rf"^no data set at {root_url}/x: it holds no manifest\.json$"):
        command(f"{root_url}/x")


@pytest.mark.parametrize(
    "words",
    [
        ["simulate", "circular", "--out", "s3://bucket/twin"],
        ["convert", "circular", "--source", "s3://bucket/twin"],
        ["split", "s3://bucket/twin", "--folds", "3"],
        ["merge", "a", "b", "--out", "s3://bucket/twin"],
        ["export", "a", "--out", "s3://bucket/twin"],
    ],
)
def test_what_is_written_must_be_local(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", *words])
    assert caught.value.code == 2
    assert "s3://bucket/twin is remote; use a local folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_data_root_may_be_a_url(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MECHANOLAB_DATA", "s3://bucket/data")
    assert data_root() == "s3://bucket/data"
    assert main(["data", "simulate", "circular"]) == 2
    assert "s3://bucket/data/circular/twin is remote; make the data set in a local --out" in capsys.readouterr().err


def test_a_run_reads_its_data_from_a_url(places: Path, root_url: str, cache: Path, twin_root: Path) -> None:
    words = [f"data.data_root={root_url}", "data.batch_size=8", "trainer.max_epochs=1", "data.num_workers=2"]
    assert main(["fit", "circular_twin", *words, "--run-id", "remote"]) == 0
    folder = places / "circular_twin" / "remote"
    assert read_run(folder).state == "finished"
    assert yaml.safe_load((folder / "config.yaml").read_text())["data"]["data_root"] == root_url
    recorded = json.loads((folder / "environment.json").read_text())["data"]["shards"]
    assert recorded == {"00000.h5": Manifest.read(twin_root / "circular" / "twin").shards[0]["sha256"]}
    assert len(list(cache.glob("*/00000.h5"))) == 1
    local = ["fit", "circular_twin", *words[1:], f"data.data_root={twin_root}", "--run-id", "local"]
    assert main(local) == 0
    assert read_run(folder).summary == read_run(places / "circular_twin" / "local").summary


def test_a_run_without_its_data_is_refused(places: Path, root_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for url, message in (
        (f"{root_url}/nowhere", f"no data set at {root_url}/nowhere/circular/twin: it holds no manifest.json"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1/circular/twin/manifest.json cannot be fetched"),
    ):
        assert main(["fit", "circular_twin", f"data.data_root={url}", "--run-id", "refused"]) == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mechanolab: ")]
        assert message in said
    assert not (places / "circular_twin" / "refused").exists()
