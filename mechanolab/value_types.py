"""Whether a value of a YAML file fits the annotation of the argument that it is meant for."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin


def mismatch(value: Any, annotation: Any) -> str | None:
    """What is wrong with a value, to stand behind its name; None when it fits.

    Only annotations of plain types are judged; classes of other libraries are left to them.

    >>> mismatch("1e-3", float)
    "must be a number, got '1e-3'; it is a text: write 0.001 without quotes and with a decimal point"
    """
    if _fits(value, annotation):
        return None
    return f"must be {_describe(annotation)}, got {value!r}{_hint(value, annotation)}"


def _hint(value: Any, annotation: Any) -> str:
    """How to write a text that was meant as a number, where that number would fit."""
    number = _number(value) if isinstance(value, str) else None
    if number is None:
        return ""
    if isinstance(number, float) and number.is_integer() and not _fits(number, annotation):
        number = int(number)
    if not _fits(number, annotation):
        return ""
    if isinstance(number, int):
        return f"; it is a text: write {number} without quotes"
    written = repr(number)
    if "." not in written:  # YAML takes 1e-30 for a text, 1.0e-30 for a number
        written = written.replace("e", ".0e")
    return f"; it is a text: write {written} without quotes and with a decimal point"


def _number(text: str) -> int | float | None:
    """The finite number that a text spells, an int where it is one."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    return None


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return type(value) is int
    if annotation in (str, bool):
        return isinstance(value, annotation)
    if annotation is Path:
        return isinstance(value, str)
    if origin in (list, tuple, Sequence) or annotation in (list, tuple, Sequence):
        inner = [a for a in arguments if a is not Ellipsis]
        return isinstance(value, list) and (not inner or all(any(_fits(v, a) for a in inner) for v in value))
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return isinstance(value, dict)
    return True


def _describe(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(a) for a in arguments))
    if origin is Literal:
        return " or ".join(repr(a) for a in arguments)
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    if annotation in names:
        return names[annotation]
    if origin in (list, tuple, Sequence) or annotation in (list, tuple, Sequence):
        return f"a list of {_describe(arguments[0])}" if arguments else "a list"
    return getattr(annotation, "__name__", str(annotation))
