"""Reads a sweep file: W&B's own format, checked against the experiment before the first trial.

One file drives both engines: W&B's agents and the local study. It is read with `yaml.safe_load`, as W&B reads it, so
what is refused here is what W&B would have misread (`1e-5` is a text in YAML 1.1) or sent to the program in vain.
Format: https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mechanolab.config import INDIFFERENT, RequestError, checkout, compose, flatten, named_file, nearest, override
from mechanolab.runs import read_config, run_folder
from mechanolab.sweeps.parameters import Parameter, flatten_parameters, read_parameter
from mechanolab.sweeps.trial_command import ARGUMENT_MACROS, ENVIRONMENT_VARIABLE, MACROS, with_environment

TRIALS = ("fit", "test")
"""Commands that a trial may be."""
METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
TOP_LEVEL = (
    "program", "method", "metric", "parameters", "early_terminate", "command", "run_cap",
    "name", "description", "project", "entity",
)  # fmt: skip
LABELS = ("name", "description", "project", "entity", "run_cap")
"""Keys that may change between two starts of one sweep: none of them alters a trial."""


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: what to vary, on which experiment, and by which metric to rank."""

    name: str
    path: Path
    definition: dict[str, Any]
    """The file as W&B takes it: `parameters` flattened to dotted paths, `command` with the added arguments."""
    method: str
    metric: str
    goal: str
    parameters: tuple[Parameter, ...]
    run_cap: int | None
    program: str
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    """The words that were added to the file's command."""
    in_its_place: str | None
    """The experiment that was asked for in place of the file's."""
    trial: str
    """What a trial does: fit or test."""
    experiment: str
    tested_run: str | None
    """The run whose weights every trial tests; None where the trials train, or test what needs no training."""
    overrides: tuple[str, ...]
    base: dict[str, Any]
    """The experiment composed with the first value of every parameter."""

    @property
    def experiment_folder(self) -> str:
        """Name of the folder in runs/ that the trials' run folders lie in."""
        return Path(self.experiment).stem if self.experiment.endswith((".yaml", ".yml")) else self.experiment

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what makes two trials comparable: the definition without its labels, and the experiment."""
        kept = {k: v for k, v in self.definition.items() if k not in LABELS}
        kept["parameters"] = list(kept["parameters"].items())  # a grid's order is part of it
        tested = [] if self.tested_run is None else [self.tested_run]
        text = json.dumps([kept, self.comparable_base(), *tested], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def comparable_base(self) -> dict[str, Any]:
        """The experiment as dotted keys, without the swept ones and what may differ between machines."""
        apart = (*INDIFFERENT, *(p.path for p in self.parameters))
        return {k: v for k, v in sorted(flatten(self.base).items()) if k not in apart}


def load_sweep(
    name_or_path: str, *, name: str | None = None, arguments: Sequence[str] = (), experiment: str | None = None
) -> Sweep:
    """Read and check a sweep file.

    Args:
        name_or_path: a name in sweeps/ or the path of a YAML file.
        name: name of the sweep (its folder, its group, the stem of its run ids); the file's stem when left out, with
            `experiment` behind it where that is given.
        arguments: words added to every trial's command, for example `trainer.max_epochs=2`.
        experiment: in place of the one that the file's command names; a `--run` whose environment variable is not set
            falls away then: what needs no training has no run.

    Returns:
        The sweep, ready for either engine.

    Raises:
        RequestError: the file or one of its keys is wrong; the sentence names both and the mend.
    """
    path = sweep_path(name_or_path)
    definition = _read(path)
    source = path.name

    def refuse(sentence: str) -> RequestError:
        return RequestError(f"{source}: {sentence}")

    for key in definition:
        if key not in TOP_LEVEL:
            hint = nearest(str(key), TOP_LEVEL) or f" (accepted: {', '.join(TOP_LEVEL)})"
            raise refuse(f"unknown key '{key}'{hint}")
    method = definition.get("method")
    if method not in METHODS:
        raise refuse(f"method must be grid, random or bayes, got {method!r}{nearest(str(method), METHODS)}")
    name = default_name(path, experiment) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,58}", name):
        raise refuse(
            f"the sweep's name {name!r} must be 1 to 59 letters, digits, '_', '-' or '.': choose one with --name"
        )
    run_cap = definition.get("run_cap")
    if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
        raise refuse(f"run_cap must be a whole number of trials, at least 1, got {run_cap!r}")
    command, in_its_place = _command(definition, refuse), experiment
    command = (command if experiment is None else _on_another(command, experiment)) + tuple(arguments)
    position = next(i for i, word in enumerate(command) if word in TRIALS)
    trial, experiment = command[position], command[position + 1]
    overrides = tuple(w for w in command[position + 2 :] if "=" in w and not w.startswith(("-", "$")))
    tested_run = _tested_run(command[position + 2 :], refuse) if trial == "test" else None
    if trial == "test" and definition.get("early_terminate"):
        raise refuse("early_terminate stops a training early, and test trains nothing: remove it")
    composed = partial(_composed, experiment, tested_run, overrides)
    texts = _text_paths(composed)
    try:
        specifications = flatten_parameters(definition.get("parameters"))
        parameters = tuple(read_parameter(p, s, holds_text=p in texts) for p, s in specifications.items())
    except RequestError as error:
        raise refuse(str(error)) from None
    base = _compose_every_value(composed, parameters, source)
    metric, goal = _metric(definition.get("metric"), base["monitor"], trial, experiment, refuse)
    return Sweep(
        name=name,
        path=path,
        definition={**definition, "parameters": specifications, "command": list(command)},
        method=method,
        metric=metric,
        goal=goal,
        parameters=parameters,
        run_cap=run_cap,
        program=str(definition.get("program", "")),
        command=command,
        arguments=tuple(arguments),
        in_its_place=in_its_place,
        trial=trial,
        experiment=experiment,
        tested_run=tested_run,
        overrides=overrides,
        base=base,
    )


def default_name(path: Path, experiment: str | None) -> str:
    """Name of a sweep that was given none: the file's stem, and behind it that of the experiment in its place."""
    return path.stem if experiment is None else f"{path.stem}-{Path(experiment).stem}"


def sweep_names() -> list[str]:
    """Names that `load_sweep` accepts: every YAML file of sweeps/."""
    return sorted(p.stem for p in (checkout() / "sweeps").glob("*.yaml"))


def sweep_path(name_or_path: str) -> Path:
    """The YAML file of a sweep, given its name or a path.

    Raises:
        RequestError: there is no such sweep.
    """
    return named_file("sweep", checkout() / "sweeps", sweep_names(), name_or_path)


# -- the file ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        for key, line in _repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader)):
            raise RequestError(f"{path.name}: line {line} gives '{key}' a second time: keep one of the two")
        definition = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from None
    if not isinstance(definition, dict):
        raise RequestError(f"{path.name} must hold keys and values (method, metric, parameters, command)")
    return definition


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """YAML keeps the last of two equal keys in silence; yields each with its line number."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated_keys(value)


def _command(definition: Mapping[str, Any], refuse: Any) -> tuple[str, ...]:
    example = "[${env}, ${interpreter}, -m, mechanolab, fit, <experiment>, --config-json, '${args_json}']"
    words = definition.get("command")
    if not isinstance(words, list) or not words:
        raise refuse(f"command must be a list such as {example}")
    command = tuple(str(word) for word in words)
    for word in command:
        if re.fullmatch(r"\$\{.*\}", word) and word not in MACROS and not word.startswith("${envvar:"):
            raise refuse(f"command: W&B knows no {word}{nearest(word, MACROS)}")
    experiment = next((after for word, after in pairwise(command) if word in TRIALS), "-")
    if experiment.startswith(("-", "$")):
        raise refuse(f"command must name the experiment after the word fit or test, as in {example}")
    if any(word.split("=")[0] == "--run-id" for word in command):
        raise refuse("command gives every trial one --run-id: remove it, each trial is given its own")
    if not any(word in ARGUMENT_MACROS for word in command):
        raise refuse("command passes no values to the program: add --config-json, ${args_json}")
    if "${program}" in command and not definition.get("program"):
        raise refuse("command uses ${program}, but the key program is missing")
    return command


def _on_another(command: Sequence[str], experiment: str) -> tuple[str, ...]:
    """The command with another experiment in the place of its own."""
    place = next(i for i, word in enumerate(command) if word in TRIALS) + 1
    words = [*command[:place], experiment, *command[place + 1 :]]
    runs = [i for i, word in enumerate(words[:-1]) if word == "--run"]
    for i in reversed([i for i in runs if not set(ENVIRONMENT_VARIABLE.findall(words[i + 1])) <= os.environ.keys()]):
        del words[i : i + 2]
    return tuple(words)


# -- against the experiment -------------------------------------------------------------------------------------------


def check_tested_run(sweep: Sweep) -> None:
    """See that the run whose weights the trials test is there.

    Raises:
        RequestError: it is not.
    """
    if sweep.tested_run is None or (run_folder(sweep.experiment_folder, sweep.tested_run) / "config.yaml").is_file():
        return
    unset = [name for word in sweep.command for name in ENVIRONMENT_VARIABLE.findall(word) if name not in os.environ]
    if sweep.tested_run in unset:
        raise RequestError(f"{sweep.path.name}: set {sweep.tested_run} in the environment to the id of the run to test")
    raise RequestError(
        f"{sweep.path.name}: there is no run {sweep.tested_run} of {sweep.experiment} to test "
        f"(mechanolab runs {sweep.experiment_folder} lists them)"
    )


def _tested_run(words: Sequence[str], refuse: Any) -> str | None:
    """What stands behind --run in the words after the experiment, with the environment's values."""
    for word, after in pairwise([*words, ""]):
        if word == "--run" or word.startswith("--run="):
            found = with_environment(after if word == "--run" else word.partition("=")[2])
            if not found or found.startswith("-"):
                raise refuse("command: --run must be followed by the id of the run to test")
            return found
    return None


def _composed(
    experiment: str, tested_run: str | None, overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a trial is made with: the experiment with its values, or the run that it tests with them.

    A run that is not there yet is stood for by its experiment, so that a sweep can be read before it is trained.
    """
    if tested_run is not None:
        folder = run_folder(Path(experiment).stem, tested_run)
        if (folder / "config.yaml").is_file():
            return override(read_config(folder), overrides, values=values)
    return compose(experiment, values=values, overrides=overrides)


def _text_paths(composed: Callable[..., dict[str, Any]]) -> set[str]:
    """Keys whose value in the experiment is a text: there a value such as '001' is meant as one."""
    try:
        config = composed()
    except RequestError:
        return set()  # incomplete without the sweep's values, or wrong: composed again below, with them
    return {path for path, value in flatten(config).items() if isinstance(value, str)}


def _compose_every_value(
    composed: Callable[..., dict[str, Any]], parameters: Sequence[Parameter], source: str
) -> dict[str, Any]:
    first = {p.path: p.endpoints[0] for p in parameters}
    try:
        base = composed(values=first)
        for parameter in parameters:
            for value in parameter.endpoints[1:]:
                composed(values={**first, parameter.path: value})
    except RequestError as error:
        raise RequestError(f"{source}: {error}") from None
    return base


def _metric(metric: Any, monitor: Mapping[str, Any], trial: str, experiment: str, refuse: Any) -> tuple[str, str]:
    """Name and goal of the sweep's metric.

    The monitored one, or for trials that test the same quantity of the test set, is known to be logged; of others only
    the stage can be judged before a trial has run.
    """
    quantity = monitor["metric"].split("/")[-1]
    monitored = f"test/{quantity}" if trial == "test" else monitor["metric"]
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        raise refuse(f"metric is missing: write metric: {{name: {monitored}, goal: minimize}}")
    for key in metric:
        if key not in ("name", "goal", "target"):
            raise refuse(f"unknown key 'metric.{key}'{nearest(str(key), ('name', 'goal', 'target'))}")
    name, goal = metric["name"], metric.get("goal", "minimize")
    if goal not in GOALS:
        raise refuse(f"metric.goal must be minimize or maximize, got {goal!r}{nearest(str(goal), GOALS)}")
    if name == monitored:
        if goal[:3] != monitor["mode"]:
            raise refuse(f"metric.goal is {goal}, but {experiment} monitors {name} with mode {monitor['mode']}")
    elif trial == "test":
        if not re.fullmatch(r"test/\w+", name):
            raise refuse(f"metric.name: a test of {experiment} logs no '{name}', only metrics such as {monitored}")
    elif name.startswith("test/"):
        raise refuse(f"metric.name {name}: a search must not choose by the test set, use {monitor['metric']}")
    elif not re.fullmatch(r"(train|val)/\w+", name):
        raise refuse(f"metric.name: {experiment} logs no '{name}'; it monitors {monitor['metric']}")
    return name, goal
