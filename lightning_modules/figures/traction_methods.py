"""Runs of traction force microscopy put together as methods: their names, colours and errors under every condition.

A method is a class with its settings; of a network those that it was trained with, the data set included, where the
tested run is known. Runs that differ in nothing but seeds, folds, what they were tested on and the operator that they
assumed are one method. A condition is a data set, a noise and what `data.centre_element`,
`data.reach`, `data.poisson_ratio` and `data.transfer_function` made of the displacement; where these are null it is as
the data set holds it, by the simulator's default with the published centre and reach and a Poisson's ratio of .45. The
same keys of the module say what the method is told in place of the truth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

METRIC = "test/traction_nrmse"
AS_MADE = "as stored"
OPERATOR = {
    **{"centre_element": "published", "reach": "published", "poisson_ratio": 0.45},
    **{"gel_thickness_um": None, "transfer_function": None},
}
"""What makes the displacement, with what a null of the data stands for; simulated data lie on half spaces."""
CONTINUOUS = ("poisson_ratio", "gel_thickness_um", "transfer_function")
"""Those of them that Fourier cytometry works with."""
TOLD_NOTHING = ("TractionRegression",)
"""Classes that no operator can be told; a plain U-Net of ours is another."""
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
TRAINED_ON = "trained on"


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
    told: str
    """What of its operator is another, in words."""


class Published(NamedTuple):
    """A number that was published for a method."""

    table: str
    value: float
    sd: float
    of: str
    """The method's name."""


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
        runs: mappings with `config` (nested) and `summary`; those without a test are left out. `trained_config`, where
            it is known, is the configuration of the run whose weights were tested.

    """
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for run in ({**run, "config": {**run["config"], "trained": run.get("trained_config")}} for run in runs):
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
        trained = config.get("trained")
        if trained:
            settings[TRAINED_ON] = trained["data"]["dataset"]
        for section, names in zip(("trainer", "data"), TRAINING, strict=True):
            part = (trained or config).get(section) or {}
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
    """What the data have in place of what is stored."""
    return _words({key: data[key] for key in OPERATOR if data.get(key) is not None}) or AS_MADE


def _words(operator: Mapping[str, Any]) -> str:
    parts = []
    for key, value in operator.items():
        if key == "poisson_ratio":
            parts.append(f"ν {_short(value)}")
        elif key == "gel_thickness_um":
            parts.append("half space" if value is None else f"gel of {_short(value)} µm")
        elif key == "transfer_function":
            parts.append("no blur" if value is None else f"blur {_short(value)}")
        else:
            parts.append(f"{value} {key.split('_')[0]}")
    return ", ".join(parts)


def _made(config: Mapping[str, Any]) -> dict[str, Any]:
    """The operator behind the displacement, as far as the method could make use of it."""
    data = config["data"]
    made = {key: usual if data.get(key) is None else data[key] for key, usual in OPERATOR.items()}
    # a periodic field has neither centre element nor reach
    return {key: made[key] for key in (CONTINUOUS if _kind(config) == "FourierTractionCytometry" else OPERATOR)}


def _assumed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The operator that the method works with: what it is told, else the true one; blur is not known by itself."""
    module, made = config["module"], _made(config)
    if _kind(config) in TOLD_NOTHING or (_kind(config) == "PhysicsInformedRegression" and module.get("steps") is None):
        return {key: OPERATOR[key] for key in made}  # that of the data which it was trained on
    truth = {**made, "transfer_function": None}
    assumed = {key: truth[key] if module.get(key) is None else module[key] for key in made}
    return {key: None if value == math.inf else value for key, value in assumed.items()}  # of a thickness: a half space


def _scores(runs: Sequence[Mapping[str, Any]]) -> dict[Condition, list[Score]]:
    tests: dict[tuple[Condition, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        assumed = json.dumps(_assumed(run["config"]))
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
    assumed, made = _assumed(runs[0]["config"]), _made(runs[0]["config"])
    other = {key: value for key, value in assumed.items() if value != made[key]}
    return Score(mean, math.sqrt(math.fsum(variances) / len(variances)), not other, _words(other))


def _published(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, float], list[Published]]:
    """What was published for the settings of these runs, at every noise; without cutoff unless the entry names it."""
    found: dict[tuple[str, float], list[Published]] = {}
    for run in runs:
        flat = dict(_flat(run["config"]))
        for noise_px, match, entry in _entries(run["config"]):
            if _fits(match, flat):
                known = found.setdefault((str(flat["data.dataset"]), noise_px), [])
                if entry not in known:
                    known.append(entry)
    return found


def published_of_others(runs: Sequence[Mapping[str, Any]]) -> dict[float, list[Published]]:
    """By noise, what was published for methods that none of the runs with a test is."""
    tested = [run for run in runs if math.isfinite(run["summary"].get(METRIC, math.nan))]
    flats = [dict(_flat(run["config"])) for run in tested]
    found: dict[float, list[Published]] = {}
    for run in tested:
        for noise_px, match, entry in _entries(run["config"]):
            if not any(_fits(match, flat) for flat in flats) and entry not in found.setdefault(noise_px, []):
                found[noise_px].append(entry)
    return {noise_px: entries for noise_px, entries in found.items() if entries}


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[float, dict[str, Any], Published]]:
    """The noise, the other settings and the number of each published error."""
    for entry in config.get("published") or ():
        if entry["metric"] == METRIC:
            match = {"module.cutoff_percentile": None, **dict(_flat(entry.get("match") or {}))}
            noise_px = float(match.pop("data.noise_px", config["data"]["noise_px"]))
            network = match.get("module.network")
            of = NETWORKS.get(str(network), str(network)) if network else ""
            numbers = float(entry["value"]), float(entry.get("sd") or 0.0)
            yield noise_px, match, Published(str(entry["table"]), *numbers, of)


def _fits(match: Mapping[str, Any], flat: Mapping[str, Any]) -> bool:
    return all(flat.get(key) == value for key, value in match.items())


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
