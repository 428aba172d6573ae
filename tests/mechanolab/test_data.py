"""The data commands: what stands on disk afterwards, what is printed, and one sentence for every wrong request."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import Manifest
from datamodules.shards.writer import write_dataset
from mechanolab import data
from mechanolab.config import RequestError

STEM = "toy_paper"


@dataclass(frozen=True)
class Parameters:
    width_px: int = 6
    noise_grey: float = 1.0

    def __post_init__(self) -> None:
        if self.width_px < 1:
            raise ValueError(f"width_px must be positive, got {self.width_px}")


def group_sizes(count: int, parameters: Parameters) -> list[int]:
    return [2] * (count // 2) + [1] * (count % 2)


def simulate_group(seed: int, group: int, size: int, parameters: Parameters) -> list[Sample]:
    rng = np.random.default_rng([seed, group])
    shape = (1, parameters.width_px, parameters.width_px)
    return [
        Sample(f"cell{group}_{frame}", f"cell{group}", {"image": rng.integers(0, 255, shape, dtype=np.uint8)})
        for frame in range(size)
    ]


def convert(source: Path) -> Iterator[Sample]:
    names = sorted(path.stem for path in source.glob("*.txt"))
    if not names:
        raise ValueError(f"{source} holds no .txt files")
    for name in names:
        yield Sample(name, name, {"image": np.zeros((1, 2, 2), np.uint8)})


SHARED: dict[str, Any] = {
    "FIELDS": {"image": {"axes": "cyx", "unit": "grey level"}},
    "SPLITS": {"default": {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25}},
}
SIMULATOR: dict[str, Any] = SHARED | {
    "LICENCE": "CC0-1.0",
    "DEFAULT_COUNT": 9,
    "Parameters": Parameters,
    "group_sizes": group_sizes,
    "simulate_group": simulate_group,
    "irreducible_error": lambda parameters: {"metric": "angular_error_deg", "value": 11.5, "how": "by hand"},
}
CONVERTER: dict[str, Any] = SHARED | {
    "convert": convert,
    "provenance": lambda source: {"source": f"{source.resolve()}/v1", "licence": "CC-BY", "layout": "texts"},
}


def contact_sheet(samples: list[Sample]) -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.suptitle(str(len(samples)))
    return figure


@pytest.fixture(autouse=True)
def toy_paper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A paper that exists only here, and a data folder of its own."""
    places = {
        "datamodules.simulators": SIMULATOR,
        "datamodules.converters": CONVERTER,
        "lightning_modules.figures": {"contact_sheet": contact_sheet},
    }
    for package, contents in places.items():
        module = types.ModuleType(f"{package}.{STEM}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("MECHANOLAB_DATA", str(tmp_path / "data"))


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return tmp_path / "data" / STEM / "twin"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- simulate ---------------------------------------------------------------------------------------------------------


def test_simulate_writes_the_twin_with_its_provenance(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert data.simulate(STEM, seed=3) == 0
    manifest = Manifest.read(twin)
    assert (manifest.stem, manifest.dataset, manifest.counts["samples"]) == (STEM, "twin", 9)
    made_with = manifest.provenance.pop("made_with")
    assert made_with.startswith("mechanolab ")
    assert manifest.provenance == {
        "made_by": "simulator",
        "parameters": {"width_px": 6, "noise_grey": 1.0},
        "seed": 3,
        "count": 9,
        "irreducible_error": {"metric": "angular_error_deg", "value": 11.5, "how": "by hand"},
        "licence": "CC0-1.0",
    }
    assert np.array_equal(
        ShardDataset(twin)[2].fields["image"], simulate_group(3, 1, 2, Parameters())[0].fields["image"]
    )
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == [f"simulating {STEM}", str(twin)]


@pytest.mark.parametrize("known", [None, lambda parameters: None], ids=["no function", "no answer"])
def test_a_simulator_that_knows_no_best_possible_score_says_nothing_of_it(
    twin: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], known: Any
) -> None:
    monkeypatch.setattr(sys.modules[f"datamodules.simulators.{STEM}"], "irreducible_error", known)
    assert data.simulate(STEM, count=8) == 0
    assert Manifest.read(twin).provenance["irreducible_error"] is None
    assert data.inspect(twin) == 0
    assert "best possible" not in capfd.readouterr().out


def test_simulating_the_same_again_changes_nothing(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data.simulate(STEM, count=8, seed=1)
    before = contents(twin)
    capfd.readouterr()
    assert data.simulate(STEM, count=8, seed=1) == 0
    assert contents(twin) == before
    assert "is there already" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"count": 10}, "with count 8, not 10"),
        ({"seed": 2}, "with seed 1, not 2"),
        ({"parameters": {"width_px": 7}}, "with parameters.width_px 6, not 7"),
    ],
)
def test_another_data_set_in_the_folder_is_not_touched(twin: Path, changes: dict[str, Any], complaint: str) -> None:
    data.simulate(STEM, count=8, seed=1)
    before = contents(twin)
    with pytest.raises(RequestError, match=rf"{complaint}; choose another --out or remove"):
        data.simulate(STEM, **{"count": 8, "seed": 1, **changes})
    assert contents(twin) == before


def test_out_is_the_data_sets_own_folder(tmp_path: Path) -> None:
    data.simulate(STEM, out=tmp_path / "small", count=6)
    assert Manifest.read(tmp_path / "small").dataset == "small"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"stem": "toy_papr"}, r"there are no simulators for 'toy_papr'; there are: .*circular"),
        ({"stem": "circulr"}, r"did you mean 'circular'\?"),
        ({"stem": "optics"}, "there are no simulators for 'optics'"),
        ({"stem": "../circular"}, "there are no simulators"),
        ({"stem": STEM, "count": 0}, "--count must be at least 1"),
        ({"stem": STEM, "seed": -1}, "--seed must be at least 0"),
        ({"stem": STEM, "workers": 0}, "--workers must be at least 1"),
        ({"stem": STEM, "parameters": {"width": 3}}, r"has no parameter 'width' \(did you mean 'width_px'\?\)"),
        ({"stem": STEM, "parameters": {"width_px": 0}}, "width_px must be positive"),
        ({"stem": STEM, "count": 3}, "split scheme 'default' names 3 splits but there are only 2 groups"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RequestError, match=complaint) as caught:
        data.simulate(**arguments)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_of_something_else_is_a_request_error(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RequestError, match="not an empty folder"):
        data.simulate(STEM, out=tmp_path)


def test_a_damaged_data_set_in_the_folder_is_a_request_error(twin: Path) -> None:
    data.simulate(STEM)
    (twin / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match=r"manifest\.json is not valid JSON"):
        data.simulate(STEM)


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    # a real simulator: worker processes import it by name
    for workers in (1, 2):
        folder = tmp_path / str(workers) / "twin"
        assert data.simulate("circular", out=folder, count=10, seed=4, workers=workers) == 0
    assert contents(tmp_path / "1" / "twin") == contents(tmp_path / "2" / "twin")


# -- convert ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "My Archive"
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        (folder / f"{name}.txt").touch()
    return folder


def test_convert_writes_beside_the_twin_and_names_no_place_on_this_machine(tmp_path: Path, archive: Path) -> None:
    assert data.convert(STEM, source=archive) == 0
    folder = tmp_path / "data" / STEM / "my_archive"
    manifest = Manifest.read(folder)
    assert manifest.counts["samples"] == 4
    assert manifest.provenance["made_by"] == "converter"
    assert manifest.provenance["source"] == "My Archive/v1"
    assert str(tmp_path) not in (folder / "manifest.json").read_text()


def test_a_split_that_the_archive_itself_tells_is_stored_as_it_is(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules[f"datamodules.converters.{STEM}"]
    told = np.array([2, 0, 1, 2], np.int8)
    schemes = {**SHARED["SPLITS"], "parity": {"unit": "sample", "train": 0.5, "val": 0.25, "test": 0.25}}
    monkeypatch.setattr(module, "SPLITS", schemes)
    monkeypatch.setattr(module, "codes", lambda source: {"parity": told}, raising=False)
    assert data.convert(STEM, source=archive) == 0
    folder = tmp_path / "data" / STEM / "my_archive"
    stored = Manifest.read(folder).splits
    assert stored["parity"]["samples"] == {"train": 1, "val": 1, "test": 2, "unused": 0}
    assert ShardDataset(folder, scheme="parity", split="test").indices.tolist() == [0, 3]


def test_converting_the_same_again_changes_nothing(archive: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data.convert(STEM, source=archive)
    assert data.convert(STEM, source=archive) == 0
    assert "is there already" in capfd.readouterr().err


def test_an_unfit_source_is_a_request_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"source .*nowhere does not exist"):
        data.convert(STEM, source=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"holds no \.txt files"):
        data.convert(STEM, source=tmp_path / "empty")
    with pytest.raises(RequestError, match="there are no converters for 'nothing'"):
        data.convert("nothing", source=tmp_path)
    assert not (tmp_path / "data" / STEM / "empty").exists()


# -- verify and inspect -----------------------------------------------------------------------------------------------


def test_verify_tells_a_sound_data_set_from_a_damaged_one(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data.simulate(STEM)
    capfd.readouterr()
    assert data.verify(twin) == 0
    assert "9 samples in 1 shard, no fault" in capfd.readouterr().out
    shard = twin / "00000.h5"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert data.verify(twin) == 1
    lines = capfd.readouterr().out.splitlines()
    assert any("00000.h5 is truncated" in line for line in lines)
    assert lines[-1].endswith("2 faults")


def test_verify_reports_a_damaged_manifest_as_a_fault(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data.simulate(STEM)
    (twin / "manifest.json").write_text("{}")
    assert data.verify(twin) == 1
    assert "manifest.json" in capfd.readouterr().out


@pytest.mark.parametrize("command", [data.verify, data.inspect])
def test_a_folder_without_data_set_is_a_request_error(command: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no data set at"):
        command(tmp_path)


def test_inspect_prints_the_contents_and_draws_a_contact_sheet(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data.simulate(STEM, count=60)
    capfd.readouterr()
    assert data.inspect(twin) == 0
    out = capfd.readouterr().out
    for expected in ("60 samples, 30 groups", "1 x 6 x 6", "grey level", "default", "width_px", "11.5 (by hand)"):
        assert expected in out
    assert out.splitlines()[-1] == f"contact sheet: {twin / 'contact_sheet.png'}"
    assert (twin / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert data.verify(twin) == 0


def test_the_contact_sheet_shows_samples_spread_over_the_whole_data_set(
    twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def remember(samples: list[Sample]) -> Figure:
        shown.extend(one.sample_id for one in samples)
        return contact_sheet(samples)

    monkeypatch.setattr(sys.modules[f"lightning_modules.figures.{STEM}"], "contact_sheet", remember)
    data.simulate(STEM, count=60)
    data.inspect(twin)
    assert len(set(shown)) == 24
    assert (shown[0], shown[-1]) == ("cell0_0", "cell29_1")


def test_inspect_of_a_paper_without_figures_draws_its_fields(twin: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data.simulate(STEM, count=30)
    del sys.modules[f"lightning_modules.figures.{STEM}"]
    assert data.inspect(twin) == 0
    assert capfd.readouterr().out.splitlines()[-1] == f"contact sheet: {twin / 'contact_sheet.png'}"
    assert (twin / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")
    assert data.verify(twin) == 0


def test_inspect_of_a_data_set_that_lacks_a_field_of_the_papers_picture_draws_what_is_there(
    twin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs_angle(samples: list[Sample]) -> Figure:
        return contact_sheet([one for one in samples if one.fields["angle_rad"] is not None])

    data.simulate(STEM)
    monkeypatch.setattr(sys.modules[f"lightning_modules.figures.{STEM}"], "contact_sheet", needs_angle)
    assert data.inspect(twin) == 0
    assert (twin / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("provenance", "shown"),
    [
        ({"irreducible_error": "about ten degrees"}, "best possible: about ten degrees"),
        ({"irreducible_error": {"value": 11.5}}, "best possible: {'value': 11.5}"),
        ({"irreducible_error": {"metric": "m", "value": "small", "how": "by hand"}}, "'value': 'small'"),
        ({"made_by": "merge", "sources": "two archives"}, "two archives"),
        ({"made_by": "merge", "sources": ["an archive", {"dataset": "twin"}]}, "{'dataset': 'twin'}"),
    ],
)
def test_provenance_of_another_form_is_shown_as_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], provenance: dict[str, Any], shown: str
) -> None:
    samples = [Sample("a", "a", {"image": np.zeros((1, 2, 2), np.uint8)})]
    fields = SHARED["FIELDS"]
    write_dataset(tmp_path / "own", samples, stem=STEM, fields=fields, splits={}, seed=0, provenance=provenance)
    assert data.inspect(tmp_path / "own") == 0
    assert shown in capfd.readouterr().out


def test_a_picture_that_cannot_be_written_is_a_request_error(twin: Path, tmp_path: Path) -> None:
    data.simulate(STEM)
    with pytest.raises(RequestError, match="No such file or directory"):
        data.inspect(twin, picture=tmp_path / "nowhere" / "sheet.png")


def test_importing_the_commands_imports_nothing_heavy() -> None:
    code = "import sys, json, mechanolab.data; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"torch", "h5py", "matplotlib", "lightning", "numpy"} & set(modules)
