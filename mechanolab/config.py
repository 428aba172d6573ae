"""Composes an experiment: defaults <- base <- experiment file <- sweep values <- command line, strict, resolved once.

The schema is the code: `module` and `data` accept what the constructors of their `class_path` accept, `trainer`
accepts what Lightning's Trainer accepts (less what the launcher owns). Anything else is refused before anything is
created, with the dotted path of the key and the nearest accepted name.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mechanolab.value_types import mismatch

SECTIONS = ("seed", "module", "data", "trainer", "monitor", "published")
MONITOR_KEYS = ("metric", "mode")
PUBLISHED_KEYS = ("table", "label", "match", "metric", "value", "sd")
LAUNCHER_ARGUMENTS = {"data": {"seed"}}
"""Constructor arguments that the launcher fills from the experiment's own keys."""
OWNED_BY_LAUNCHER = frozenset(
    {
        "self", "logger", "callbacks", "default_root_dir", "enable_checkpointing", "enable_progress_bar",
        "enable_model_summary", "fast_dev_run", "use_distributed_sampler", "barebones", "plugins", "profiler",
        "reload_dataloaders_every_n_epochs", "model_registry", "enable_autolog_hparams", "inference_mode",
    }
)  # fmt: skip
INDIFFERENT = ("data.data_root", "data.num_workers", "published")
"""Keys that may differ between two starts of one run or sweep: where the data lie, how they are read, and what the
paper printed."""
ENVIRONMENT_INTERPOLATION = re.compile(r"\$\{(?!oc\.env:)")


class RequestError(Exception):
    """The request or its input is wrong: one sentence that names the thing and the mend (exit code 2)."""


class RunFailedError(Exception):
    """The run itself went wrong, in one sentence (exit code 1)."""


def checkout() -> Path:
    """The folder that holds `experiments/` and `sweeps/`: the checkout that this package was installed from."""
    here = Path(__file__).resolve().parent.parent
    return here if (here / "experiments").is_dir() else Path.cwd()


def runs_root() -> Path:
    """Where run folders go: MECHANOLAB_RUNS, else `runs/` in the checkout."""
    return Path(os.environ.get("MECHANOLAB_RUNS") or checkout() / "runs").expanduser().absolute()


def data_root() -> Path | str:
    """Where data sets lie: MECHANOLAB_DATA, a folder (relative to the checkout) or a URL, else `data/` in it."""
    root = os.environ.get("MECHANOLAB_DATA") or "data"
    return root if "://" in root else checkout() / Path(root).expanduser()


def where_data_lie(made_with: str) -> str:
    """The data's root for a run that exists: MECHANOLAB_DATA, else what it was made with, else, if gone, `data/`."""
    lost = "://" not in made_with and not (checkout() / Path(made_with).expanduser()).is_dir()
    return str(data_root()) if lost or os.environ.get("MECHANOLAB_DATA") else made_with


def nearest(name: str, accepted: Iterable[str]) -> str:
    """The accepted name nearest to `name`, as a phrase to end an error with; empty when none is near."""
    found = difflib.get_close_matches(name, list(accepted), n=1, cutoff=0.6)
    return f" (did you mean '{found[0]}'?)" if found else ""


def last_line(error: BaseException) -> str:
    """The last line of an exception's text: a worker process puts its traceback in front."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to one mapping with dotted keys; lists stay values.

    >>> flatten({"module": {"learning_rate": 0.1, "widths": [1, 2]}})
    {'module.learning_rate': 0.1, 'module.widths': [1, 2]}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def experiment_names() -> list[str]:
    """Names that `fit` accepts: every YAML file of experiments/ that does not begin with an underscore."""
    return sorted(p.stem for p in (checkout() / "experiments").glob("*.yaml") if not p.name.startswith("_"))


def variants(name: str) -> list[str]:
    """The experiments of experiments/ whose `base` is this one."""
    paths = {other: experiment_path(other) for other in experiment_names()}
    return [other for other, path in paths.items() if Path(str(_load(path, keep_base=True).get("base"))).stem == name]


def experiment_path(name: str) -> Path:
    """The YAML file of an experiment, given its name or a path.

    Raises:
        RequestError: there is no such experiment.
    """
    return named_file("experiment", checkout() / "experiments", experiment_names(), name)


def named_file(kind: str, folder: Path, names: Sequence[str], name_or_path: str) -> Path:
    """The YAML file that one of `names` in `folder`, or a path, stands for.

    Raises:
        RequestError: there is no such file; the message says which `kind` of file, and the nearest name.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path).expanduser()
        if path.is_file():
            return path
        raise RequestError(f"{kind} file {name_or_path} does not exist")
    if name_or_path in names:
        return folder / f"{name_or_path}.yaml"
    hint = nearest(name_or_path, names) or f" ({folder.name}/ holds: {', '.join(names)})"
    raise RequestError(f"no {kind} is named '{name_or_path}'{hint}")


def compose(
    experiment: str, *, values: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Merge all layers of an experiment and check the result against the constructors.

    Args:
        experiment: a name in experiments/ or the path of a YAML file.
        values: sweep values, dotted keys (`module.learning_rate`) or nested mappings, with their types.
        overrides: `key=value` words of the command line; values are read as YAML.

    Returns:
        Plain nested dict with the keys seed, module, data, trainer, monitor, published.

    Raises:
        RequestError: unknown key, wrong type, missing key, unreadable file.
    """
    path = experiment_path(experiment)
    layers = [(p.name, _load(p)) for p in _chain(path)]
    if values:
        layers.append(("the sweep's values", nest(values)))
    if overrides:
        layers.append(("the command line", nest(dict(parse_override(word) for word in overrides))))
    merged: dict[str, Any] = {}
    for source, layer in layers:
        _merge(merged, layer, source, "")
    return _resolve(merged, path.name)


def override(
    config: Mapping[str, Any], overrides: Sequence[str], *, values: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A resolved configuration with some keys set anew, checked as `compose` checks it.

    Raises:
        RequestError: as `compose`.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(config))
    _merge(merged, nest(values or {}), "the sweep's values", "")
    _merge(merged, nest(dict(parse_override(word) for word in overrides)), "the command line", "")
    return _resolve(merged, "config.yaml")


def _resolve(merged: dict[str, Any], source: str) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(merged), resolve=True))
    except OmegaConfBaseException as error:
        raise RequestError(f"{source}: {str(error).splitlines()[0]}") from None
    check(config, source)
    return config


def import_class(class_path: Any, *, package: str, key: str) -> type:
    """The class that a `class_path` names; only classes of `package` are accepted.

    Raises:
        RequestError: outside the package, no such module or no such class.
    """
    match = re.fullmatch(rf"{package}\.(\w+)\.(\w+)", class_path if isinstance(class_path, str) else "")
    if not match:
        raise RequestError(f"{key} must name a class as {package}.<stem>.<Class>, got {class_path!r}")
    stem, name = match.groups()
    folder = Path(__file__).resolve().parent.parent / package
    stems = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    if stem not in stems:
        raise RequestError(f"{key}: {package} has no module '{stem}'{nearest(stem, stems)}")
    module = importlib.import_module(f"{package}.{stem}")
    names = [n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__]
    if name not in names:
        raise RequestError(f"{key}: {package}.{stem} has no class '{name}'{nearest(name, names)}")
    found: type = getattr(module, name)
    return found


# -- layers -----------------------------------------------------------------------------------------------------------


def _chain(path: Path) -> list[Path]:
    """Defaults, base, experiment: the files in the order in which they are merged."""
    defaults = checkout() / "experiments" / "_defaults.yaml"
    base = _load(path, keep_base=True).get("base")
    if base is None:
        return [defaults, path]
    base_path = path.parent / str(base)
    if not base_path.is_file():
        raise RequestError(f"{path.name}: base names {base}, which does not exist in {path.parent.name}/")
    if _load(base_path, keep_base=True).get("base") is not None:
        raise RequestError(f"{path.name}: its base {base} has a base itself; only one level is allowed")
    return [defaults, base_path, path]


def _load(path: Path, *, keep_base: bool = False) -> dict[str, Any]:
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise RequestError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(loaded, DictConfig):
        raise RequestError(f"{path.name} must hold keys and values, not a {type(loaded).__name__}")
    layer = typing.cast(dict[str, Any], OmegaConf.to_container(loaded, resolve=False))
    if not keep_base:
        layer.pop("base", None)
    return layer


def parse_override(word: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, separator, text = word.partition("=")
    if not separator or not key:
        raise RequestError(f"'{word}' is not key=value, for example trainer.max_epochs=5")
    try:
        value = OmegaConf.to_container(OmegaConf.create(f"value: {text}" if text else "value: ''"), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise RequestError(f"the value of {key} cannot be read: {str(error).splitlines()[0]}") from None
    return key, typing.cast(dict[str, Any], value)["value"]


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to nested mappings, inside nested mappings too; the way back from `flatten`.

    Raises:
        RequestError: a key is given a value and keys of its own.
    """
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise RequestError(f"{key} is set inside {parent}, which is given a value of its own")
        inner = nest(value) if isinstance(value, Mapping) else value
        if isinstance(level.get(last), dict) and isinstance(inner, dict):
            level[last].update(inner)
        else:
            level[last] = inner
    return nested


def _merge(target: dict[str, Any], layer: Mapping[str, Any], source: str, prefix: str) -> None:
    """Merge `layer` into `target` in place: mappings merge, lists and scalars replace.

    A layer that changes a section's class_path replaces the section: the arguments belong to the class.
    """
    for key, value in layer.items():
        path = f"{prefix}{key}"
        if not prefix and key not in SECTIONS:
            raise RequestError(f"{source}: unknown key '{path}'{nearest(str(key), SECTIONS)}")
        present = target.get(key)
        if isinstance(present, dict) and not isinstance(value, Mapping):
            raise RequestError(f"{source}: {path} is a section with keys of its own, it cannot be set to {value!r}")
        if isinstance(value, Mapping):
            other_class = isinstance(present, dict) and value.get("class_path", present.get("class_path")) != (
                present.get("class_path")
            )
            if not isinstance(present, dict) or (other_class and "class_path" in present):
                kept = {k: v for k, v in (present or {}).items() if k == "data_root"} if not prefix else {}
                target[key] = present = kept
            _merge(present, value, source, f"{path}.")
        else:
            if isinstance(value, str) and ENVIRONMENT_INTERPOLATION.search(value):
                raise RequestError(f"{source}: {path} = {value!r}: only ${{oc.env:NAME}} may be interpolated")
            target[key] = value


# -- the check --------------------------------------------------------------------------------------------------------


def check(config: dict[str, Any], source: str) -> None:
    """Refuse a resolved configuration that does not fit its classes or Lightning; `source` is what to call it."""
    for section in ("module", "data", "monitor", "trainer"):
        if not isinstance(config.get(section), dict):
            raise RequestError(f"{source}: the section '{section}' is missing")
    seed = config.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise RequestError(f"seed must be a whole number from 0 to 2^32 - 1, got {seed!r}")
    for section, package in (("module", "lightning_modules"), ("data", "datamodules")):
        cls: Any = import_class(config[section].get("class_path"), package=package, key=f"{section}.class_path")
        _check_section(section, config[section], cls.__init__, LAUNCHER_ARGUMENTS.get(section, set()))
    from lightning.pytorch import Trainer

    options = {**config["trainer"]}
    if options.get("precision") == "auto":  # the launcher's own word: it looks at the machine
        del options["precision"]
    _check_section("trainer", options, Trainer.__init__, OWNED_BY_LAUNCHER)
    module_class: Any = import_class(config["module"]["class_path"], package="lightning_modules", key="module")
    # optional: a module whose way of training rules out some options of the trainer says so here, not in its first step
    fault = getattr(module_class, "trainer_fault", lambda options: None)(config["trainer"])
    if fault is not None:
        raise RequestError(f"trainer.{fault}")
    # optional likewise: what of the data it cannot take
    fault = getattr(module_class, "data_fault", lambda module, data: None)(config["module"], config["data"])
    if fault is not None:
        raise RequestError(f"data.{fault}")
    _check_keys("monitor", config["monitor"], MONITOR_KEYS, required=MONITOR_KEYS)
    check_value("monitor.metric", config["monitor"]["metric"], str)
    check_value("monitor.mode", config["monitor"]["mode"], Literal["min", "max"])
    if not isinstance(config.setdefault("published", []), list):
        raise RequestError("published must be a list of {table, match, metric, value, sd}")
    for i, entry in enumerate(config["published"]):
        if not isinstance(entry, dict):
            raise RequestError(f"published.{i} must hold keys, got {entry!r}")
        _check_keys(f"published.{i}", entry, PUBLISHED_KEYS, required=("table", "match", "metric", "value"))


def _check_section(section: str, values: dict[str, Any], constructor: Any, launcher: Iterable[str]) -> None:
    hints = typing.get_type_hints(constructor)
    parameters = {
        name: p
        for name, p in inspect.signature(constructor).parameters.items()
        if name != "self" and name not in launcher and p.kind is not inspect.Parameter.VAR_KEYWORD
    }
    accepted = [*parameters, "class_path"] if section != "trainer" else [*parameters]
    required = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    _check_keys(section, values, accepted, required=required)
    for name, value in values.items():
        if name in hints:
            check_value(f"{section}.{name}", value, hints[name])


def _check_keys(section: str, values: Mapping[str, Any], accepted: Iterable[str], *, required: Iterable[str]) -> None:
    accepted = list(accepted)
    for key in values:
        if key not in accepted:
            hint = nearest(str(key), accepted) or f" (accepted: {', '.join(sorted(accepted))})"
            raise RequestError(f"unknown key '{section}.{key}'{hint}")
    for key in required:
        if key not in values:
            raise RequestError(f"{section}.{key} is missing: set it in the experiment file")


def check_value(path: str, value: Any, annotation: Any) -> None:
    """Raise RequestError, naming the key, when a value does not fit an annotation of plain types."""
    fault = mismatch(value, annotation)
    if fault is not None:
        choices = [str(a) for a in get_args(annotation)] if get_origin(annotation) is Literal else []
        raise RequestError(f"{path} {fault}{nearest(value, choices) if isinstance(value, str) else ''}")
