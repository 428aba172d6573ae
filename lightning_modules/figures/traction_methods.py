"""Runs of traction force microscopy put together as methods: their names, colours and errors under every condition.

A method is a class with its settings. Runs that differ in nothing but seeds, folds, what
they were tested on and the operator that they assumed are one method. A condition is a data set, a noise and what
`data.centre_element`, `data.reach` and `data.transfer_function` made of the displacement; where these are null it is as
the data set holds it, by the simulator's default with the published centre and reach.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

METRIC = "test/traction_nrmse"
AS_MADE = "as stored"
OPERATOR = {"centre_element": "published", "reach": "published", "transfer_function": None}
"""What makes the displacement, with what a null stands for beside others that are not null."""
FAMILIES = {
    "FourierTractionCytometry": ("#9ecae1", "#4292c6", "#2159a6", "#08264f", "#35a29f", "#13747d", "#7fc8b4"),
    "SparseTractionCytometry": ("#41ab5d", "#8bc34a", "#1b6e35"),
    "TractionRegression": ("#cb3e38", "#f08a7e", "#8c6bb1", "#8a1f1c", "#c9a5d8"),
    "PhysicsInformedRegression": ("#f0a500", "#8a5a00", "#ffd166", "#c77d0a", "#5f4b1c"),
}
"""Classes in the order in which they are shown, with their colours."""
OTHER_COLOURS = ("#5b5b5b", "#9a9a9a")
WITHOUT_TRAINING = ("FourierTractionCytometry", "SparseTractionCytometry")
NETWORKS = {"tracnet_faithful": "TracNet", "tracnet_symmetric": "TracNet, symmetric", "kratz_unet": "Kratz U-Net"}
NAMED = ("class_path", "regularization", "choice", "network", "steps")
"""Settings that a method's name tells already."""
TRAINING = (
    ("max_epochs", "max_steps"),
    (
        "batch_size",
        "train_noise_px",
        "noise_free_share",
        "correlated_px",
        "correlation_length_px",
        "drift_px",
        "tilt_px",
        "symmetries",
    ),
)
"""Settings of the trainer and of the data that make another network."""


class Condition(NamedTuple):
    """What a method was tested on."""

    dataset: str
    noise_px: float
    operator: str


class Score(NamedTuple):
    """Mean error and standard deviation over fields; where it is not stored that over runs, 0 for a single one."""

    mean: float
    sd: float
    matched: bool
    """Whether the method works with the operator that made the data."""


class Published(NamedTuple):
    """A number that was published for a method."""

    table: str
    value: float
    sd: float


class Method(NamedTuple):
    """A method with all its tests."""

    label: str
    colour: str
    cutoff: bool
    scores: dict[Condition, list[Score]]
    """Under each condition one score per operator that the method assumed, first where it is the data's."""
    published: dict[tuple[str, float], list[Published]]
    """By data set and noise."""


def methods_of(runs: Sequence[Mapping[str, Any]]) -> list[Method]:
    """The methods that were tested, in the order of figure 3: FTTC by its lambda, sparse, published networks, ours.

    Args:
        runs: mappings with `config` (nested) and `summary`; those without a test are left out.

    """
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        value = run["summary"].get(METRIC)
        if value is not None and math.isfinite(value):
            settings = _settings(run["config"]) | {"class_path": _kind(run["config"])}
            gathered.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    members = sorted(gathered.values(), key=lambda group: _order(group[0]["config"]))
    labels = _labels([group[0]["config"] for group in members])
    colours = _colours([_kind(group[0]["config"]) for group in members], labels)
    return [
        Method(label, colour, _has_cutoff(group[0]["config"]), _scores(group), _published(group))
        for label, colour, group in zip(labels, colours, members, strict=True)
    ]


def _kind(config: Mapping[str, Any]) -> str:
    return str(config["module"]["class_path"]).rpartition(".")[2]


def _has_cutoff(config: Mapping[str, Any]) -> bool:
    return config["module"].get("cutoff_percentile") is not None


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a method, beside its class."""
    settings = {key: value for key, value in config["module"].items() if key not in OPERATOR and key != "seed"}
    if _kind(config) not in WITHOUT_TRAINING:
        for section, names in zip(("trainer", "data"), TRAINING, strict=True):
            part = config.get(section) or {}
            settings |= {name: part[name] for name in names if name in part}
    if settings.get("cutoff_percentile") is None:
        settings.pop("frame_border_px", None)  # of the cutoff
    return settings


def _name(config: Mapping[str, Any]) -> str:
    module, kind = config["module"], _kind(config)
    if kind == "FourierTractionCytometry":
        strength = module.get("regularization")
        return f"FTTC, λ by {module.get('choice')}" if strength is None else f"FTTC, λ = {strength:g}"
    if kind == "SparseTractionCytometry":
        return "sparse solver"
    if kind == "TractionRegression":
        return NETWORKS.get(module["network"], str(module["network"]))
    if kind == "PhysicsInformedRegression":
        steps = module.get("steps")
        return "ours, plain U-Net" if steps is None else f"ours, {steps} step{'s' if steps != 1 else ''}"
    return kind


def _order(config: Mapping[str, Any]) -> tuple[int, float, str, bool, str]:
    kinds, module = list(FAMILIES), config["module"]
    family = kinds.index(_kind(config)) if _kind(config) in kinds else len(kinds)
    strength = module.get("regularization")
    network = list(NETWORKS).index(module["network"]) if module.get("network") in NETWORKS else len(NETWORKS)
    within = float(network if "network" in module else math.inf if strength is None else strength)
    rest = json.dumps(_settings(config) | {"cutoff_percentile": None}, sort_keys=True, default=str)
    return family, within, _name(config), _has_cutoff(config), rest


def _labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names, followed by the settings that tell methods of one name apart."""
    settings = [_settings(config) for config in configs]
    names = [(_name(config), _has_cutoff(config)) for config in configs]
    labels = []
    for own, name in zip(settings, names, strict=True):
        twins = [other for other, its_name in zip(settings, names, strict=True) if its_name == name]
        apart = [key for key in own if key not in NAMED and any(own.get(key) != t.get(key) for t in twins)]
        labels.append(", ".join([name[0], *(f"{key} {_short(own[key])}" for key in apart)]))
    return labels


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_short(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _colours(kinds: Sequence[str], labels: Sequence[str]) -> list[str]:
    """A colour per label: the same with and without cutoff."""
    taken: dict[str, str] = {}
    used: dict[str, int] = {}
    for kind, label in zip(kinds, labels, strict=True):
        if label not in taken:
            shades = FAMILIES.get(kind, OTHER_COLOURS)
            taken[label] = shades[used.get(kind, 0) % len(shades)]
            used[kind] = used.get(kind, 0) + 1
    return [taken[label] for label in labels]


def _condition(config: Mapping[str, Any]) -> Condition:
    data = config["data"]
    return Condition(str(data["dataset"]), float(data["noise_px"]), _operator_name(data))


def _operator_name(data: Mapping[str, Any]) -> str:
    if all(data.get(key) is None for key in OPERATOR):
        return AS_MADE
    made = _operator(data)
    parts = [f"{made['centre_element']} centre", f"{made['reach']} reach"]
    parts = [part for part in parts if not part.startswith("published")]
    if made["transfer_function"] is not None:
        parts.append(f"blur {_short(made['transfer_function'])}")
    return ", ".join(parts) or "published kernel"


def _operator(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: usual if part.get(key) is None else part[key] for key, usual in OPERATOR.items()}


def _matched(config: Mapping[str, Any]) -> bool:
    """Whether the module works with the operator of the data; FTTC uses a continuous kernel and the blur alone."""
    return _used(config, "module") == _used(config, "data")


def _used(config: Mapping[str, Any], section: str) -> list[Any]:
    """The parts of a section's operator that the method makes use of."""
    keys = ("transfer_function",) if _kind(config) == "FourierTractionCytometry" else tuple(OPERATOR)
    operator = _operator(config[section])
    return [operator[key] for key in keys]


def _scores(runs: Sequence[Mapping[str, Any]]) -> dict[Condition, list[Score]]:
    tests: dict[tuple[Condition, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        assumed = json.dumps(_used(run["config"], "module"))
        tests.setdefault((_condition(run["config"]), assumed), []).append(run)
    scores: dict[Condition, list[Score]] = {}
    for (condition, _), members in tests.items():
        scores.setdefault(condition, []).append(_score(members))
    return {condition: sorted(found, key=lambda score: not score.matched) for condition, found in scores.items()}


def _score(runs: Sequence[Mapping[str, Any]]) -> Score:
    values = [float(run["summary"][METRIC]) for run in runs]
    mean = math.fsum(values) / len(values)
    spreads = [float(run["summary"][f"{METRIC}_sd"]) for run in runs if f"{METRIC}_sd" in run["summary"]]
    variances = [spread**2 for spread in spreads] or [(value - mean) ** 2 for value in values]
    return Score(mean, math.sqrt(math.fsum(variances) / len(variances)), _matched(runs[0]["config"]))


def _published(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float], list[Published]]:
    """What was published for the settings of these runs, at every noise; without cutoff unless the entry names it."""
    found: dict[tuple[str, float], list[Published]] = {}
    for run in runs:
        config, flat = run["config"], dict(_flat(run["config"]))
        for entry in config.get("published") or ():
            match = {"module.cutoff_percentile": None, **dict(_flat(entry.get("match") or {}))}
            noise_px = float(match.pop("data.noise_px", flat["data.noise_px"]))
            if entry["metric"] != METRIC or any(flat.get(key) != value for key, value in match.items()):
                continue
            one = Published(str(entry["table"]), float(entry["value"]), float(entry.get("sd") or 0.0))
            known = found.setdefault((str(config["data"]["dataset"]), noise_px), [])
            if one not in known:
                known.append(one)
    return found


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
