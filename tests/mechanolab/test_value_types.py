"""Values of YAML files against annotations, and the simulators' parameters that the command line sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from datamodules.shards.schema import Manifest
from mechanolab.cli import main
from mechanolab.value_types import mismatch


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int), (1, float), (0.5, float), ("a", str), (True, bool), (None, float | None), ([1, 2.5], list[float]),
        ([], Sequence[int]), ("b", Literal["a", "b"]), ({"a": 1}, dict[str, int]), ("x/y", Path), ([3], Any),
        ([1, "a"], Sequence), ([1], list), ({"a": 1}, Mapping), ("32-true", timedelta), (3, str | timedelta),
        ([{"class_path": "a.B"}], list[timedelta] | None),
    ],
)  # fmt: skip
def test_what_fits_is_left_alone(value: Any, annotation: Any) -> None:
    assert mismatch(value, annotation) is None


@pytest.mark.parametrize(
    ("value", "annotation", "complaint"),
    [
        (1.0, int, "must be a whole number, got 1.0"),
        (True, float, "must be a number, got True"),
        ("1e-3", float, "write 0.001 without quotes and with a decimal point"),
        ("abc", float | None, "must be a number or null, got 'abc'"),
        (["a"], list[int], "must be a list of a whole number, got ['a']"),
        ("c", Literal["a", "b"], "must be 'a' or 'b', got 'c'"),
        (3, str, "must be a text, got 3"),
        ("a", Sequence, "must be a list, got 'a'"),
    ],
)
def test_what_does_not_fit_is_named(value: Any, annotation: Any, complaint: str) -> None:
    assert complaint in str(mismatch(value, annotation))


@pytest.mark.parametrize(
    ("value", "annotation", "hint"),
    [
        ("5", int, "write 5 without quotes"),
        ("5", float, "write 5 without quotes"),
        ("1e3", int, "write 1000 without quotes"),
        ("1e3", float | None, "write 1000.0 without quotes and with a decimal point"),
        ("1e-30", float, "write 1.0e-30 without quotes and with a decimal point"),
        ("2", Literal[1, 2], "write 2 without quotes"),
    ],
)
def test_the_hint_is_what_to_write(value: str, annotation: Any, hint: str) -> None:
    fault = mismatch(value, annotation)
    assert str(fault).endswith(f"; it is a text: {hint}")
    assert mismatch(yaml.safe_load(hint.split()[1]), annotation) is None


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("0.5", int),
        ("1", bool),
        ("1e3", list[float]),
        ("nan", float),
        ("1e400", float),
        ("inf", int),
        ("3", Literal[1]),
    ],
)
def test_no_hint_leads_to_another_mistake(value: str, annotation: Any) -> None:
    assert str(mismatch(value, annotation)).endswith(f"got {value!r}")


def test_the_command_line_sets_a_simulators_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "twin"
    words = ["data", "simulate", "circular", "--count", "4", "--out", str(folder)]
    assert main([*words, "noise_grey_low=0.5", "--workers", "1"]) == 0
    assert Manifest.read(folder).provenance["parameters"]["noise_grey_low"] == 0.5
    capsys.readouterr()
    for word, complaint in (
        ("noise_grey_lw=0.5", "no parameter 'noise_grey_lw' (did you mean 'noise_grey_low'?)"),
        ("frames_per_cell=2.5", "frames_per_cell must be a whole number, got 2.5"),
        ("noise_grey_low=0.7", "already holds a data set with parameters.noise_grey_low 0.5, not 0.7"),
    ):
        assert main([*words, word]) == 2
        assert complaint in capsys.readouterr().err
