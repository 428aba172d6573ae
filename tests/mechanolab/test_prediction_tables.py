"""Pictures, tables of any length and a summary over all samples, beside the numbers of a prediction."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from matplotlib.image import imread
from torch import Tensor

from mechanolab.cli import main


class Spots(NamedTuple):
    strength_pa: Tensor
    picture: list[Any]
    spots: list[Any]


def predicting(toy: ModuleType, monkeypatch: pytest.MonkeyPatch, table: Any, summary: Any = None) -> None:
    """Have the toy method predict a picture and a table whose length is the sample's number."""

    def predict_step(self: Any, batch: Any, batch_idx: int) -> Spots:
        numbers = [int(sample_id.split()[1].split("/")[0]) for sample_id in batch.sample_id]
        pictures = [np.full((4, 5, 3), 10 * number, dtype=np.uint8) for number in numbers]
        return Spots(batch.displacement_px.amax(dim=(1, 2, 3)), pictures, [table(number) for number in numbers])

    monkeypatch.setattr(toy.Method, "predict_step", predict_step)
    if summary is not None:
        monkeypatch.setattr(toy.Method, "prediction_summary", staticmethod(summary), raising=False)


def spots(number: int) -> dict[str, Any]:
    return {"kind": np.array(["bright"] * number), "x_um": np.arange(number) / 2}


def test_tables_are_one_file_and_pictures_one_each(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicting(toy, monkeypatch, spots, lambda rows: {"strongest_pa": max(row["strength_pa"] for row in rows)})
    assert main(["predict", "toy"]) == 0
    folder = tmp_path / "runs" / "toy" / "predictions" / "test"
    with (folder / "spots.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["sample_id", "group", "kind", "x_um"]
    expected = [(f"cell {number}/a", number_x / 2) for number in range(5) for number_x in range(number)]
    assert [(row["sample_id"], float(row["x_um"])) for row in rows] == expected
    for number in range(5):
        picture = imread(folder / f"cell%20{number}%2Fa_picture.png")
        assert picture.shape[:2] == (4, 5)
        assert picture[0, 0, 0] == pytest.approx(10 * number / 255)
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        numbers = list(csv.DictReader(file))
    assert list(numbers[0]) == ["sample_id", "group", "strength_pa"]
    strongest = max(float(row["strength_pa"]) for row in numbers)
    assert json.loads((folder / "summary.json").read_text()) == {"strongest_pa": pytest.approx(strongest)}
    assert not (folder / "predictions.h5").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda number: {"x_um": [0.0], "y_um": [0.0, 1.0]}, "prediction spots must have columns of one length"),
        (lambda number: {f"column{number}": [0.0]}, "prediction spots of sample 'cell 1/a' has other columns"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    toy: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table: Any,
    message: str,
) -> None:
    predicting(toy, monkeypatch, table)
    assert main(["predict", "toy"]) == 2
    assert message in capsys.readouterr().err
    assert list((tmp_path / "runs" / "toy" / "predictions").iterdir()) == []


def test_a_module_may_rule_out_options_of_the_trainer(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When composing, before anything is made."""

    def fault(options: Any) -> str | None:
        return "max_epochs must be 1: it learns at once" if options["max_epochs"] > 1 else None

    monkeypatch.setattr(toy.Method, "trainer_fault", staticmethod(fault), raising=False)
    assert main(["predict", "toy", "trainer.max_epochs=2"]) == 2
    assert capsys.readouterr().err.strip().endswith("trainer.max_epochs must be 1: it learns at once")
    assert main(["predict", "toy"]) == 0
