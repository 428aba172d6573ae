"""Composing an experiment: order of the layers, and every refusal with its dotted path and nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechanolab.config import (
    RequestError,
    checkout,
    compose,
    data_root,
    experiment_names,
    nearest,
    override,
    where_data_lie,
)


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def variant(tmp_path: Path) -> str:
    """An experiment of the user's own, outside the checkout, complete and legal."""
    import yaml

    full = compose("circular_twin")
    return write(tmp_path, yaml.safe_dump(full))


def test_later_layers_win_in_the_documented_order(variant: str) -> None:
    assert compose(variant)["trainer"]["max_epochs"] != 77
    config = compose(variant, values={"trainer.max_epochs": 77, "seed": 5}, overrides=["trainer.max_epochs=78"])
    assert config["trainer"]["max_epochs"] == 78
    assert config["seed"] == 5
    assert config["trainer"]["deterministic"] == "warn"


def test_the_data_of_a_run_are_looked_for_where_they_lie_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MECHANOLAB_DATA", raising=False)
    assert where_data_lie(str(tmp_path)) == str(tmp_path)
    assert where_data_lie("s3://bucket/data") == "s3://bucket/data"
    assert where_data_lie(str(tmp_path / "gone")) == str(checkout() / "data")
    monkeypatch.setenv("MECHANOLAB_DATA", "other")  # relative to the checkout, wherever one stands
    monkeypatch.chdir(tmp_path)
    assert where_data_lie(str(tmp_path)) == str(checkout() / "other") == str(data_root())


def test_nested_and_dotted_sweep_values_mean_the_same(variant: str) -> None:
    dotted = compose(variant, values={"module.learning_rate": 0.5, "data.batch_size": 3})
    nested = compose(variant, values={"module": {"learning_rate": 0.5}, "data": {"batch_size": 3}})
    assert dotted == nested


def test_a_base_is_merged_below_and_only_one_level_deep(tmp_path: Path, variant: str) -> None:
    child = write(tmp_path, "base: mine.yaml\nmodule: {learning_rate: 0.25}\n", "child.yaml")
    assert compose(child)["module"]["learning_rate"] == 0.25
    assert compose(child)["data"] == compose(variant)["data"]
    grandchild = write(tmp_path, "base: child.yaml\n", "grandchild.yaml")
    with pytest.raises(RequestError, match="only one level"):
        compose(grandchild)
    with pytest.raises(RequestError, match=r"absent\.yaml, which does not exist"):
        compose(write(tmp_path, "base: absent.yaml\n", "orphan.yaml"))


def test_another_class_takes_a_fresh_section(tmp_path: Path, variant: str) -> None:
    text = "base: mine.yaml\nmodule: {class_path: lightning_modules.circular.QuadrantClassifier}\n"
    with pytest.raises(RequestError, match=r"module\.\w+ is missing"):
        compose(write(tmp_path, text, "child.yaml"))


def test_the_environment_is_the_only_interpolation(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHANOLAB_DATA", "/elsewhere")
    text = "base: mine.yaml\ndata: {data_root: '${oc.env:MECHANOLAB_DATA,data}'}\n"
    assert compose(write(tmp_path, text, "child.yaml"))["data"]["data_root"] == "/elsewhere"
    with pytest.raises(RequestError, match=r"only \$\{oc\.env:NAME\}"):
        compose(write(tmp_path, "base: mine.yaml\nseed: '${trainer.max_epochs}'\n", "child2.yaml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["module.learning_rat=0.1"], r"unknown key 'module\.learning_rat' \(did you mean 'learning_rate'\?\)"),
        (["trainer.max_epoch=3"], r"unknown key 'trainer\.max_epoch' \(did you mean 'max_epochs'\?\)"),
        (["modul.learning_rate=0.1"], r"unknown key 'modul' \(did you mean 'module'\?\)"),
        (["data.batchsize=4"], r"unknown key 'data\.batchsize' \(did you mean 'batch_size'\?\)"),
        (["monitor.metrik=x"], r"unknown key 'monitor\.metrik'"),
        (["trainer.logger=false"], r"unknown key 'trainer\.logger'"),
        (["data.batch_size=3.5"], r"data\.batch_size must be a whole number, got 3\.5"),
        (["data.batch_size=true"], r"data\.batch_size must be a whole number, got True"),
        (["module.learning_rate=fast"], r"module\.learning_rate must be a number, got 'fast'"),
        (
            ["module.learning_rate='1e-5'"],
            r"module\.learning_rate must be a number, got '1e-5'; it is a text: write 1.0e-05",
        ),
        (["monitor.mode=mn"], r"monitor\.mode must be 'min' or 'max', got 'mn' \(did you mean 'min'\?\)"),
        (["module=3"], r"module is a section with keys of its own"),
        (["module.learning_rate"], r"is not key=value"),
        (["module.learning_rate=[1"], r"the value of module\.learning_rate cannot be read"),
        (["seed=-1"], r"seed must be a whole number from 0"),
        (["module.class_path=os.system"], r"module\.class_path must name a class as lightning_modules\."),
        (["module.class_path=lightning_modules.circlar.X"], r"has no module 'circlar' \(did you mean 'circular'\?\)"),
        (
            ["module.class_path=lightning_modules.circular.CircularRegresion"],
            r"has no class 'CircularRegresion' \(did you mean 'CircularRegression'\?\)",
        ),
    ],
)
def test_a_wrong_word_is_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        compose("circular_twin", overrides=overrides)


def test_scientific_notation_is_a_number_on_the_command_line() -> None:
    assert compose("circular_twin", overrides=["module.learning_rate=1e-5"])["module"]["learning_rate"] == 1e-5


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'circular_twin'"):
        compose("circular_twn")
    with pytest.raises(RequestError, match=r"nowhere\.yaml does not exist"):
        compose("nowhere.yaml")


@pytest.mark.parametrize("text", ["a: [1\n", "- 1\n- 2\n", "seed: 1\nseed: 2\n", "module:\n\t- 1\n"])
def test_a_file_that_is_no_experiment_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        compose(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_override_changes_a_resolved_configuration_and_checks_it() -> None:
    config = compose("circular_twin")
    assert override(config, ["data.batch_size=7"])["data"]["batch_size"] == 7
    assert config["data"]["batch_size"] != 7
    with pytest.raises(RequestError, match=r"unknown key 'data\.batch'"):
        override(config, ["data.batch=7"])


def test_names_are_offered_only_when_they_are_near() -> None:
    assert nearest("learning_rat", ["learning_rate", "seed"]) == " (did you mean 'learning_rate'?)"
    assert nearest("zzz", ["learning_rate", "seed"]) == ""


def test_every_shipped_experiment_composes() -> None:
    assert experiment_names()
    for name in experiment_names():
        config = compose(name)
        assert set(config) == {"seed", "module", "data", "trainer", "monitor", "published"}, name
