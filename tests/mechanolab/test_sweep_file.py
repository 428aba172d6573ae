"""Sweep files: what is read, what is refused and in which words, and what points come out of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mechanolab.config import RequestError, nearest
from mechanolab.sweeps import sweep_file
from mechanolab.sweeps.local import check_local
from mechanolab.sweeps.parameters import Parameter
from mechanolab.sweeps.search_space import decode, encode, grid, search_space
from mechanolab.sweeps.study import planned, preview
from mechanolab.sweeps.sweep_file import Sweep, load_sweep
from mechanolab.sweeps.trial_command import trial_command

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
COMMAND = ["${env}", "${interpreter}", "-m", "mechanolab", "fit", "toy", "--config-json", "${args_json}"]
KIND = {"values": ["a", "b"]}
EXPERIMENT: dict[str, Any] = {
    "seed": 0,
    "module": {"class_path": "lightning_modules.toy.Toy", "rate": 0.1, "layers": 2, "kind": "a", "widths": [1]},
    "data": {"class_path": "datamodules.toy.Data", "data_root": "data", "split": "fold0", "cell": "001"},
    "trainer": {"max_epochs": 3},
    "monitor": {"metric": "val/error", "mode": "min"},
    "published": [],
}


def compose_toy(
    experiment: str, *, values: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Stands for the real composition: the same refusals, without a module to import."""
    if experiment != "toy":
        raise RequestError(f"no experiment is named '{experiment}' (did you mean 'toy'?)")
    config = json.loads(json.dumps(EXPERIMENT))
    given = dict(values or {}) | {word.partition("=")[0]: json.loads(word.partition("=")[2]) for word in overrides}
    for path, value in given.items():
        section, _, key = path.rpartition(".")
        level = config[section] if section else config
        if key not in level:
            raise RequestError(f"unknown key '{path}'{nearest(key, level)}")
        if isinstance(level[key], int) and type(value) is not int:
            raise RequestError(f"{path} must be a whole number, got {value!r}")
        level[key] = value
    return config


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    monkeypatch.setattr(sweep_file, "compose", compose_toy)

    def write_and_load(text: str | None = None, **changes: Any) -> Sweep:
        definition = {
            "method": "grid",
            "metric": {"name": "val/error", "goal": "minimize"},
            "parameters": {
                "module.kind": {"values": ["a", "b"]},
                "data.split": {"values": ["fold0", "fold1", "fold2"]},
            },
            "command": COMMAND,
        }
        definition = {key: value for key, value in (definition | changes).items() if value is not None}
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump(definition, sort_keys=False) if text is None else text, encoding="utf-8")
        return load_sweep(str(path))

    return write_and_load


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_grid_walks_the_file_with_its_last_parameter_fastest(load: Callable[..., Sweep]) -> None:
    points = [trial.values for trial in preview(load())]
    assert points == [{"module.kind": kind, "data.split": f"fold{k}"} for kind in "ab" for k in range(3)]


def test_trials_are_named_after_the_sweep_and_their_place(load: Callable[..., Sweep]) -> None:
    assert [trial.run_id for trial in preview(load())] == [f"toy-00{i}" for i in range(6)]


def test_nested_parameters_become_dotted_paths(load: Callable[..., Sweep]) -> None:
    nested = {"module": {"parameters": {"kind": {"values": ["a", "b"]}, "rate": {"value": 0.5}}}}
    assert [p.path for p in load(parameters=nested).parameters] == ["module.kind", "module.rate"]


def test_words_after_the_experiment_are_overrides_of_its_base(load: Callable[..., Sweep]) -> None:
    sweep = load(command=[*COMMAND, "trainer.max_epochs=7"])
    assert sweep.overrides == ("trainer.max_epochs=7",)
    assert sweep.base["trainer"]["max_epochs"] == 7


def test_another_experiment_takes_the_place_of_the_files_own_and_an_unset_run_falls_away(
    load: Callable[..., Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compose_twin(experiment: str, **layers: Any) -> dict[str, Any]:
        return compose_toy("toy" if experiment == "twin" else experiment, **layers)

    monkeypatch.setattr(sweep_file, "compose", compose_twin)
    monkeypatch.setenv("MECHANOLAB_RUNS", str(tmp_path))
    words = ["test", "toy", "--run", "${envvar:TOY_RUN}", "--config-json", "${args_json}"]
    load(command=words, metric={"name": "test/error", "goal": "minimize"})
    untrained = load_sweep(str(tmp_path / "toy.yaml"), experiment="twin", arguments=["trainer.max_epochs=7"])
    assert untrained.command == ("test", "twin", "--config-json", "${args_json}", "trainer.max_epochs=7")
    assert (untrained.name, untrained.experiment, untrained.tested_run) == ("toy-twin", "twin", None)
    assert untrained.definition["command"] == list(untrained.command)
    monkeypatch.setenv("TOY_RUN", "reference")
    trained = load_sweep(str(tmp_path / "toy.yaml"), experiment="twin", name="mine")
    assert (trained.name, trained.tested_run) == ("mine", "reference")
    assert load_sweep(str(tmp_path / "toy.yaml")).experiment == "toy"
    with pytest.raises(RequestError, match="no experiment is named 'twim'"):
        load_sweep(str(tmp_path / "toy.yaml"), experiment="twim")


def test_labels_may_change_but_values_and_their_order_may_not(load: Callable[..., Sweep]) -> None:
    first = load().fingerprint
    assert load(description="said better", run_cap=4).fingerprint == first
    assert load(parameters={"module.kind": {"values": ["b", "a"]}}).fingerprint != first
    swapped = {"data.split": {"values": ["fold0", "fold1", "fold2"]}, "module.kind": {"values": ["a", "b"]}}
    assert load(parameters=swapped).fingerprint != first


OTHER_SCORES = {"cfm_3d_smoothing": "test/body_force_relative_l2"}
"""Of sweeps of tests that leave the monitored score as it is."""


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_fits_its_experiment(path: Path) -> None:
    sweep = load_sweep(path.stem)
    check_local(sweep)
    monitored = sweep.base["monitor"]["metric"]
    tested = OTHER_SCORES.get(path.stem, f"test/{monitored.split('/')[-1]}")
    assert sweep.metric == (tested if sweep.trial == "test" else monitored)
    assert len(preview(sweep)) > 0


@pytest.mark.slow
def test_the_shipped_tables_keep_the_order_and_the_number_of_rows_of_the_paper() -> None:
    assert planned(load_sweep("circular_table3")) == 36
    values = [trial.values["module.configuration"] for trial in preview(load_sweep("circular_table3"))][::4]
    assert values[0] == "angle-cyclic-linear"
    assert values[8] == "circle-sigmoid-distance_squared"


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methode": "grid"}, "unknown key 'methode' (did you mean 'method'?)"),
        ({"method": "baye"}, "method must be grid, random or bayes, got 'baye' (did you mean 'bayes'?)"),
        ({"run_cap": 0}, "run_cap must be a whole number of trials, at least 1, got 0"),
        ({"metric": None}, "metric is missing: write metric: {name: val/error, goal: minimize}"),
        ({"metric": {"name": "val/error", "goal": "maximize"}}, "toy monitors val/error with mode min"),
        ({"metric": {"name": "test/error"}}, "a search must not choose by the test set, use val/error"),
        ({"metric": {"name": "error"}}, "toy logs no 'error'; it monitors val/error"),
        ({"command": None}, "command must be a list such as [${env}"),
        ({"command": [*COMMAND[:-1]]}, "command passes no values to the program: add --config-json, ${args_json}"),
        ({"command": [*COMMAND[:-1], "${arg_json}"]}, "W&B knows no ${arg_json} (did you mean '${args_json}'?)"),
        ({"command": ["fit", "tox", "${args}"]}, "no experiment is named 'tox' (did you mean 'toy'?)"),
        ({"command": ["${program}", "fit", "toy", "${args}"]}, "uses ${program}, but the key program is missing"),
        ({"parameters": {}}, "parameters must name at least one key of the experiment"),
        ({"parameters": {"module.rote": KIND}}, "unknown key 'module.rote' (did you mean 'rate'?)"),
        (
            {"parameters": {"module.kind": {"value": "a", "values": ["a"]}}},
            "exactly one of: value, values, min",
        ),
        ({"parameters": {"module.kind": {"values": []}}}, "values must be a list with at least one value"),
        ({"parameters": {"module.kind": {"values": ["a", "a"]}}}, "holds 'a' twice"),
        ({"parameters": {"module.kind": {"vales": ["a"]}}}, "unknown key 'parameters.module.kind.vales' (did you mean"),
        ({"parameters": {"module.rate": {"min": 1.0}}}, "exactly one of: value, values, min"),
        ({"parameters": {"module.rate": {"min": 1.0, "max": 0.5}}}, "module.rate: min 1.0 must be below max 0.5"),
        ({"parameters": {"module.rate": {"values": ["1e-5"]}}}, "'1e-5' is a text to YAML, not a number: write 1.0e-5"),
        ({"parameters": {"module.rate": {"min": 0.1, "max": math.inf}}}, "max must be a finite number, got inf"),
        ({"parameters": {"module.layers": {"min": 1.5, "max": 4, "distribution": "int_uniform"}}}, "whole numbers"),
        ({"parameters": {"module.layers": {"min": 1.0, "max": 4.0}}}, "module.layers must be a whole number, got 1.0"),
        (
            {"parameters": {"module.rate": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}},
            "must be positive",
        ),
        ({"parameters": {"module.rate": {"min": 1, "max": 2, "distribution": "normal"}}}, "cannot be drawn here, use"),
        (
            {"parameters": {"module.rate": {"min": -5, "max": 0, "distribution": "log_uniform"}}},
            "log_uniform_values, with",
        ),
        ({"parameters": {"module.rate": {"min": 1, "max": 2, "distribution": "unifrom"}}}, "(did you mean 'uniform'?)"),
        ({"parameters": {"module.rate": {"min": 1, "max": 2, "q": 0.5}}}, "q has no effect on int_uniform"),
        (
            {"parameters": {"module.rate": {"min": 1, "max": 2, "q": 3, "distribution": "q_uniform"}}},
            "at most max - min",
        ),
        ({"parameters": {"module.rate": 3}}, "parameters.module.rate must be a mapping such as {value: 3}"),
    ],
)
def test_a_wrong_key_is_refused_with_its_name_and_the_mend(
    load: Callable[..., Sweep], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RequestError) as caught:
        load(**changes)
    assert str(caught.value).startswith("toy.yaml: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "random"}, "a random search never ends by itself: set run_cap"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate works with --wandb only"),
        ({"metric": {"name": "val/error", "target": 1}}, "metric.target works with --wandb only"),
        ({"parameters": {"module.rate": {"min": 0.1, "max": 0.5}}}, "continuous range, which a grid cannot walk"),
    ],
)
def test_what_only_the_server_does_is_refused_by_the_local_engine(
    load: Callable[..., Sweep], changes: dict[str, Any], sentence: str
) -> None:
    sweep = load(**changes)
    with pytest.raises(RequestError, match=sentence):
        check_local(sweep)


def test_a_small_exponent_without_a_point_is_a_text_to_yaml_and_refused(load: Callable[..., Sweep]) -> None:
    text = (
        "method: random\nrun_cap: 2\nmetric: {name: val/error}\n"
        "parameters: {module.rate: {min: 1e-5, max: 1.0e-2}}\n"
        "command: [fit, toy, '${args}']\n"
    )
    with pytest.raises(RequestError, match=r"module\.rate\.min: '1e-5' is a text to YAML.*write 1\.0e-5"):
        load(text)


def test_a_number_in_quotes_is_welcome_where_the_experiment_holds_a_text(load: Callable[..., Sweep]) -> None:
    assert load(parameters={"data.cell": {"values": ["001", "002"]}}).parameters[0].values == ("001", "002")


def test_a_key_given_twice_is_refused_with_its_line(load: Callable[..., Sweep]) -> None:
    with pytest.raises(RequestError, match="line 2 gives 'method' a second time"):
        load("method: grid\nmethod: random\n")


@pytest.mark.parametrize("text", ["method: [", "- a list\n", ""])
def test_a_file_that_is_no_mapping_is_refused(load: Callable[..., Sweep], text: str) -> None:
    with pytest.raises(RequestError, match=r"toy\.yaml"):
        load(text)


def test_an_unknown_sweep_names_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'circular'"):
        load_sweep("circlar")


# -- points -----------------------------------------------------------------------------------------------------------


def test_every_distribution_becomes_the_one_that_wandb_means(load: Callable[..., Sweep]) -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = search_space(
        [
            Parameter("constant", "constant", values=(3,)),
            Parameter("choice", "categorical", values=("a", None, 2.5)),
            Parameter("lists", "categorical", values=([1, 2], [3])),
            Parameter("alike", "categorical", values=(1, True)),
            Parameter("int", "int_uniform", low=1, high=4),
            Parameter("float", "uniform", low=0.0, high=1.0),
            Parameter("log", "log_uniform_values", low=1e-5, high=1e-1),
            Parameter("q_int", "q_uniform", low=2, high=9, step=3),
            Parameter("q_float", "q_uniform", low=0.1, high=0.75, step=0.2),
            Parameter("q_log", "q_log_uniform_values", low=1, high=100, step=1),
        ]
    )
    assert space == {
        "constant": CategoricalDistribution((3,)),
        "choice": CategoricalDistribution(("a", None, 2.5)),
        "lists": CategoricalDistribution(("[1, 2]", "[3]")),
        "alike": CategoricalDistribution(("1", "true")),
        "int": IntDistribution(1, 4),
        "float": FloatDistribution(0.0, 1.0),
        "log": FloatDistribution(1e-5, 1e-1, log=True),
        "q_int": IntDistribution(2, 8, step=3),
        "q_float": FloatDistribution(0.1, 0.7, step=0.2),
        "q_log": IntDistribution(1, 100, log=True),
    }


def test_values_survive_the_study_with_their_types() -> None:
    parameters = [
        Parameter("lists", "categorical", values=([1, 2], [3])),
        Parameter("alike", "categorical", values=(1, True, 1.0)),
        Parameter("none", "categorical", values=(None, "None")),
    ]
    for point in grid(parameters, source="toy.yaml"):
        back = decode(parameters, encode(parameters, point))
        assert json.dumps(back) == json.dumps(point)


def test_a_logarithmic_range_with_steps_is_rounded_to_multiples_within_its_limits() -> None:
    parameters = [Parameter("width", "q_log_uniform_values", low=8, high=100, step=16)]
    drawn = [decode(parameters, {"width": value})["width"] for value in (8.0, 23.0, 25.0, 99.0)]
    assert drawn == [16, 16, 32, 96]


def test_a_grid_of_steps_holds_both_ends_that_are_steps() -> None:
    points = grid([Parameter("rate", "q_uniform", low=0.1, high=0.5, step=0.2)], source="toy.yaml")
    assert points == [{"rate": 0.1}, {"rate": 0.3}, {"rate": 0.5}]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_draws_within_its_ranges_and_the_same_again(load: Callable[..., Sweep], method: str) -> None:
    parameters = {
        "module.rate": {"min": 1.0e-5, "max": 1.0e-1, "distribution": "log_uniform_values"},
        "module.layers": {"min": 1, "max": 6},
        "module.kind": {"values": ["a", "b"]},
    }
    sweep = load(method=method, run_cap=8, parameters=parameters)
    points = [trial.values for trial in preview(sweep)]
    assert points == [trial.values for trial in preview(sweep)]
    assert len({point["module.rate"] for point in points}) == 8
    assert all(1e-5 <= point["module.rate"] <= 1e-1 and type(point["module.layers"]) is int for point in points)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_search_draws_nothing_twice_before_everything_was_drawn(load: Callable[..., Sweep], method: str) -> None:
    parameters = {"module.layers": {"min": 1, "max": 3}, "module.kind": {"values": ["a", ["b"]]}}
    points = [trial.values for trial in preview(load(method=method, run_cap=8, parameters=parameters))]
    assert len(points) == 8
    assert len({json.dumps(point) for point in points[:6]}) == 6


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_macros_expand_as_in_wandbs_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expected words are those that wandb's own agent makes of the same command and values."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {"module.rate": 1e-05, "module.flag": False, "module.other": True, "module.none": None, "module.list": [1]}
    theirs = utils.create_sweep_command_args({"args": {path: {"value": value} for path, value in values.items()}})
    for macro in (
        "args", "args_no_equals", "args_no_hyphens", "args_no_boolean_flags", "args_json",
        "args_append_hydra", "args_override_hydra",
    ):  # fmt: skip
        assert trial_command([f"${{{macro}}}"], values) == theirs[macro], macro
    monkeypatch.setenv("SCRATCH", "here")
    words = ["--out=${envvar:SCRATCH}", "${envvar:NOT_SET_ANYWHERE}"]
    assert trial_command(words, values) == utils.create_sweep_command(list(words))
