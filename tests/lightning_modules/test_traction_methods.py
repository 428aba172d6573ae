"""Which runs of traction force microscopy are one method."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_modules.figures.traction_methods import METRIC, Method, methods_of


def recorded(trained_on: str | None, error: float, dataset: str = "down") -> dict[str, Any]:
    """A recorded test on `dataset` of a network that was trained on another data set."""
    config = {
        "module": {"class_path": "lightning_modules.dl_tfm.PhysicsInformedRegression", "steps": 1},
        "data": {"dataset": dataset, "noise_px": 0.0188},
        "trainer": {"max_epochs": 6},
    }
    trained = None if trained_on is None else {**config, "data": {"dataset": trained_on, "noise_px": 0.0188}}
    return {"config": config, "summary": {METRIC: error}, "trained_config": trained}


def mean_of(method: Method) -> float:
    ((score,),) = method.scores.values()
    return score.mean


def test_networks_trained_on_other_families_are_other_methods() -> None:
    methods = methods_of([recorded("discs", 0.3), recorded("families", 0.06), recorded("families", 0.08)])
    errors = {method.label: mean_of(method) for method in methods}
    assert errors == {"ours, 1 step, trained on discs": 0.3, "ours, 1 step, trained on families": pytest.approx(0.07)}


def test_a_network_stays_one_method_on_whatever_it_is_tested() -> None:
    (method,) = methods_of([recorded("families", 0.06), recorded("families", 0.3, "discs")])
    assert (method.label, len(method.scores)) == ("ours, 1 step", 2)
    (unknown,) = methods_of([recorded(None, 0.06), recorded(None, 0.3, "discs")])
    assert (unknown.label, len(unknown.scores)) == ("ours, 1 step", 2)


def test_a_method_told_of_a_thin_gel_stays_one_and_works_with_another_operator() -> None:
    runs = [recorded("families", 0.06), recorded("families", 0.08), recorded("families", 0.3)]
    for run, thickness_um in zip(runs[1:], (None, 20.0), strict=True):
        run["config"]["module"]["gel_thickness_um"] = thickness_um
    (method,) = methods_of(runs)
    ((right, wrong),) = method.scores.values()
    assert (right.mean, right.matched, right.told) == (pytest.approx(0.07), True, "")
    assert (wrong.mean, wrong.matched, wrong.told) == (0.3, False, "gel of 20 µm")
    runs[1]["config"]["module"]["gel_thickness_um"] = math.inf
    assert methods_of(runs)[0].scores == method.scores, "no bound to the thickness is a half space"
