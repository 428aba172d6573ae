"""One swept key of a sweep file: what it may say, and what it means.

Every refusal names the key by its place in the file (`parameters.module.learning_rate.min`) and says the mend; the
reader of the file adds the file's name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechanolab.config import RequestError, nearest

PARAMETER_KEYS = ("value", "values", "min", "max", "q", "distribution")
DISTRIBUTIONS = (
    "constant", "categorical", "int_uniform", "uniform", "log_uniform_values", "q_uniform", "q_log_uniform_values",
)  # fmt: skip
REFUSED_DISTRIBUTIONS = {
    "log_uniform": "log_uniform_values, with the limits themselves and not their logarithms",
    "inv_log_uniform": "log_uniform_values",
    "inv_log_uniform_values": "log_uniform_values",
    "q_log_uniform": "q_log_uniform_values",
    "normal": "uniform",
    "q_normal": "q_uniform",
    "log_normal": "log_uniform_values",
    "q_log_normal": "q_log_uniform_values",
    "beta": "uniform",
    "q_beta": "q_uniform",
    "categorical_w_probabilities": "categorical",
}
"""What W&B knows and the local engine cannot draw, and what to write instead."""


@dataclass(frozen=True)
class Parameter:
    """One swept key: its dotted path and either the values it takes or the range it is drawn from."""

    path: str
    distribution: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None

    @property
    def endpoints(self) -> tuple[Any, ...]:
        """The values that must be legal for every drawn value to be legal: all choices, or both ends of the range."""
        return self.values or (self.low, self.high)


def flatten_parameters(parameters: Any, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Nested `parameters:` become dotted paths; `inner: {parameters: {x: ...}}` is W&B's way to nest."""
    if not isinstance(parameters, Mapping) or not parameters:
        where = f"parameters.{prefix.rstrip('.')}" if prefix else "parameters"
        raise RequestError(f"{where} must name at least one key of the experiment, such as module.learning_rate")
    flat: dict[str, dict[str, Any]] = {}
    for key, specification in parameters.items():
        path = f"{prefix}{key}"
        if not isinstance(specification, Mapping):
            raise RequestError(f"parameters.{path} must be a mapping such as {{value: {specification!r}}}")
        if "parameters" in specification:
            inner = flatten_parameters(specification["parameters"], f"{path}.")
        else:
            inner = {path: dict(specification)}
        for found in inner:
            if found in flat:
                raise RequestError(f"parameters.{found} is given twice, nested and dotted: keep one of the two")
        flat.update(inner)
    return flat


def read_parameter(path: str, specification: Mapping[str, Any], *, holds_text: bool) -> Parameter:
    """Read one key's specification.

    Args:
        path: dotted path of the key in the experiment.
        specification: what the file says of it, W&B's keys.
        holds_text: whether the experiment's own value is a text, so that '001' is meant as one.

    Raises:
        RequestError: a key, a limit or a distribution that cannot be meant, or cannot be drawn.
    """
    where = f"parameters.{path}"
    for key in specification:
        if key not in PARAMETER_KEYS:
            hint = nearest(str(key), PARAMETER_KEYS) or f" (accepted: {', '.join(PARAMETER_KEYS)})"
            raise RequestError(f"unknown key '{where}.{key}'{hint}")
    given = [key for key in ("value", "values", "min") if key in specification]
    if len(given) != 1 or ("min" in specification) != ("max" in specification):
        raise RequestError(f"{where} must have exactly one of: value, values, min with max")
    distribution = specification.get("distribution", _inferred(specification))
    if distribution in REFUSED_DISTRIBUTIONS:
        raise RequestError(f"{where}: {distribution} cannot be drawn here, use {REFUSED_DISTRIBUTIONS[distribution]}")
    if distribution not in DISTRIBUTIONS:
        raise RequestError(f"{where}.distribution: unknown {distribution!r}{nearest(str(distribution), DISTRIBUTIONS)}")
    needed = {"constant": "value", "categorical": "values"}.get(distribution, "min")
    if needed != given[0]:
        what = "min and max" if needed == "min" else needed
        raise RequestError(f"{where}: {distribution} needs {what}, not {given[0]}")
    if "q" in specification and not distribution.startswith("q_"):
        raise RequestError(f"{where}.q has no effect on {distribution}: use distribution: q_uniform, or remove q")
    if needed != "min":
        values = [specification["value"]] if needed == "value" else specification["values"]
        return Parameter(path, distribution, values=_choices(where, values, holds_text))
    return _range(path, distribution, specification)


def _inferred(specification: Mapping[str, Any]) -> str:
    """The distribution that W&B takes when the file names none."""
    if "value" in specification:
        return "constant"
    if "values" in specification:
        return "categorical"
    return "int_uniform" if all(type(specification.get(k)) is int for k in ("min", "max")) else "uniform"


def _choices(where: str, values: Any, holds_text: bool) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise RequestError(f"{where}.values must be a list with at least one value, got {values!r}")
    for value in values:
        if not holds_text:
            _refuse_text_number(where, value)
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{where} must hold finite numbers, got {value!r}")
    written = [json.dumps(value, sort_keys=True, default=str) for value in values]
    for value, text in zip(values, written, strict=True):
        if written.count(text) > 1:
            raise RequestError(f"{where}.values holds {value!r} twice: remove one")
    return tuple(values)


def _range(path: str, distribution: str, specification: Mapping[str, Any]) -> Parameter:
    where = f"parameters.{path}"
    for key in ("min", "max", "q"):
        value = specification.get(key, 1)
        _refuse_text_number(f"{where}.{key}", value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RequestError(f"{where}.{key} must be a finite number, got {value!r}")
    low, high = specification["min"], specification["max"]
    step = specification.get("q", 1) if distribution.startswith("q_") else None
    if low >= high:
        raise RequestError(f"{where}: min {low!r} must be below max {high!r}")
    if step is not None and not 0 < step <= high - low:
        raise RequestError(f"{where}.q must be positive and at most max - min, got {step!r}")
    if distribution == "int_uniform" and not (type(low) is int and type(high) is int):
        raise RequestError(f"{where}: int_uniform needs whole numbers for min and max, got {low!r} and {high!r}")
    if "log" in distribution and low <= 0:
        raise RequestError(f"{where}.min must be positive for {distribution}, got {low!r}")
    return Parameter(path, distribution, low=low, high=high, step=step)


def _refuse_text_number(where: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return
        if not math.isfinite(number):
            return
        raise RequestError(f"{where}: {value!r} is a text to YAML, not a number: write {_as_yaml(number)}")


def _as_yaml(number: float) -> str:
    """A number as YAML 1.1 reads it: with a decimal point, and a sign in the exponent.

    >>> _as_yaml(float("1e-5")), _as_yaml(float("1e20")), _as_yaml(8.0)
    ('1.0e-5', '1.0e+20', '8')
    """
    mantissa, _, exponent = repr(number).partition("e")
    if not exponent:
        return str(int(number)) if number.is_integer() else mantissa
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}"
