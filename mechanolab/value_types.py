"""Whether a value of a YAML file fits the annotation of the argument that it is meant for."""

from __future__ import annotations

import contextlib
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
    hint = ""
    if isinstance(value, str) and annotation is not str:
        with contextlib.suppress(ValueError):
            hint = f"; it is a text: write {float(value)!r} without quotes and with a decimal point"
    return f"must be {_describe(annotation)}, got {value!r}{hint}"


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
    if origin in (list, tuple, Sequence) or annotation in (list, tuple):
        inner = [a for a in arguments if a is not Ellipsis]
        return isinstance(value, list) and (not inner or all(any(_fits(v, a) for a in inner) for v in value))
    if origin in (dict, Mapping) or annotation is dict:
        return isinstance(value, dict)
    return False


def _describe(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(a) for a in arguments))
    if origin is Literal:
        return " or ".join(repr(a) for a in arguments)
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    if annotation in names:
        return names[annotation]
    if origin in (list, tuple, Sequence):
        return f"a list of {_describe(arguments[0])}" if arguments else "a list"
    return getattr(annotation, "__name__", str(annotation))
