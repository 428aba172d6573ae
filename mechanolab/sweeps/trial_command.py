"""One trial's command line, expanded from a sweep file's `command` word by word as W&B's agent expands it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ARGUMENT_MACROS = (
    "${args}", "${args_no_equals}", "${args_no_hyphens}", "${args_no_boolean_flags}", "${args_json}",
    "${args_json_file}", "${args_append_hydra}", "${args_override_hydra}",
)  # fmt: skip
MACROS = ("${env}", "${interpreter}", "${program}", *ARGUMENT_MACROS)
ENVIRONMENT_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def trial_command(
    command: Sequence[str], values: Mapping[str, Any], *, program: str = "", json_file: Path | None = None
) -> list[str]:
    """The command line of one trial.

    Args:
        command: the words of the sweep file's `command`.
        values: dotted path -> value, in the order in which they are to appear.
        program: the sweep file's `program`, for `${program}`.
        json_file: where the caller writes the values, for `${args_json_file}`.

    Returns:
        Words for `subprocess.Popen`. `${interpreter}` is this very interpreter; W&B's agent takes `python` from PATH.

    >>> trial_command(["fit", "circular", "${args_no_hyphens}"], {"seed": 3, "module.bias": None})
    ['fit', 'circular', 'seed=3', 'module.bias=None']
    """
    flags = [f"{path}={value}" for path, value in values.items()]
    substitutes = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [program],
        "${args}": [f"--{flag}" for flag in flags],
        "${args_no_equals}": [word for path, value in values.items() for word in (f"--{path}", str(value))],
        "${args_no_hyphens}": flags,
        "${args_no_boolean_flags}": [
            f"--{path}" if value is True else f"--{path}={value}"
            for path, value in values.items()
            if value is not False
        ],
        "${args_json}": [json.dumps(values, allow_nan=False)],
        "${args_json_file}": [str(json_file)],
        "${args_append_hydra}": [f"+{flag}" for flag in flags],
        "${args_override_hydra}": [f"++{flag}" for flag in flags],
    }
    words: list[str] = []
    for word in command:
        word = with_environment(word)
        words.extend(substitutes.get(word, [word]))
    return words


def with_environment(word: str) -> str:
    """A word with its `${envvar:NAME}` replaced; an unset variable leaves its own name, as in W&B's agent."""
    return ENVIRONMENT_VARIABLE.sub(lambda match: os.environ.get(match[1], match[1]), word)
