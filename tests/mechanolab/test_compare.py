"""Comparisons of runs that the test writes: tables, the report, and what is said of runs that went wrong."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import statistics
import sys
import types
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from mechanolab.compare import report, table
from mechanolab.compare.report import compare
from mechanolab.compare.table import Score, compare_runs, find, mean_and_sd
from mechanolab.config import RequestError
from mechanolab.runs import write_json

SQUARE, LINEAR = {"module.loss": "square"}, {"module.loss": "linear"}
PUBLISHED = [
    {"table": 3, "label": "NIH3T3", "match": SQUARE, "metric": "test/error", "value": 30.51, "sd": 0.86},
    {"table": 3, "label": "U373", "match": SQUARE, "metric": "test/error", "value": 21.9, "sd": 1.05},
    {"table": 3, "label": "U373", "match": LINEAR, "metric": "test/error", "value": 87.05},
]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("MECHANOLAB_RUNS", str(tmp_path))

    def write_run(
        run_id: str,
        *,
        experiment: str = "toy",
        state: str = "finished",
        val: Sequence[float] = (50.0, 40.0, 45.0),
        test: float | None = None,
        possible: float | None = None,
        mode: str = "min",
        message: str | None = None,
        group: str | None = None,
        **settings: Any,
    ) -> Path:
        folder = tmp_path / experiment / run_id
        folder.mkdir(parents=True)
        config: dict[str, Any] = {
            "seed": settings.pop("seed", 0),
            "module": {"class_path": "lightning_modules.toy.Toy", "loss": settings.pop("loss", "square"), "rate": 0.1},
            "data": {"split": settings.pop("split", "default"), "data_root": f"/data/{run_id}"},
            "trainer": {"max_epochs": 3},
            "monitor": {"metric": "val/error", "mode": mode},
            "published": PUBLISHED,
        }
        config["module"].update(settings)
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        lines: list[dict[str, Any]] = []
        for epoch, value in enumerate(val):
            step = 10 * (epoch + 1)
            lines.append({"step": step - 5, "epoch": epoch, "time": 100.0 + step, "train/loss": 2.0 / (epoch + 1)})
            number = value if math.isfinite(value) else str(value)
            lines.append({"step": step, "epoch": epoch, "time": 100.0 + step, "val/error": number})
        if test is not None:
            lines.append(
                {"step": 10 * len(val), "epoch": len(val), "time": 160.0, "test/error": test, "test/loss": 0.5}
            )
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        status = {"state": state, "group": group or experiment, "started": 100.0, "updated": 160.0, "message": message}
        write_json(folder / "status.json", status)
        if possible is not None:
            facts = {"metric": "error", "value": possible, "how": "noise of the target"}
            write_json(folder / "environment.json", {"data": {"irreducible_error": facts}})
        return folder

    return write_run


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """Every address that a page would load or lead to, and the text of its cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


# -- the tables -------------------------------------------------------------------------------------------------------


def test_runs_are_ranked_by_the_best_epoch_of_the_monitored_metric(write: Callable[..., Path]) -> None:
    write("late", val=(60.0, 50.0, 30.0), rate=0.1)
    write("early", val=(60.0, 20.0, 70.0), rate=0.2)
    comparison = compare_runs(find(["toy"])[0], title="toy")
    assert [(row.name, row.scores["best"].value) for row in comparison.rows] == [("early", 20.0), ("late", 30.0)]


def test_a_metric_to_be_maximised_is_ranked_the_other_way_round(write: Callable[..., Path]) -> None:
    write("a", val=(1.0, 5.0), mode="max")
    write("b", val=(2.0, 3.0), mode="max")
    assert [row.name for row in compare_runs(find(["toy"])[0], title="toy").rows] == ["a", "b"]


def test_only_settings_that_differ_are_shown_and_where_the_data_lie_is_not(write: Callable[..., Path]) -> None:
    write("a", rate=0.1, split="fold0")
    write("b", rate=0.2, split="fold0", seed=3)
    assert compare_runs(find(["toy"])[0], title="toy").parameters == ["module.rate", "seed"]


def test_what_an_experiments_name_tells_is_not_shown_unless_its_runs_differ_in_it(write: Callable[..., Path]) -> None:
    write("a", width=8, rate=0.1)
    write("b", width=8, rate=0.1, split="fold1")
    write("c", experiment="other", iterations=40, rate=0.3)
    runs = find(["toy", "other"])[0]
    assert compare_runs(runs, title="both").parameters == ["module.rate", "data.split"]
    write("d", width=16, rate=0.1)
    runs = find(["toy", "other"])[0]
    assert compare_runs(runs, title="both").parameters == ["module.rate", "module.width", "data.split"]


def test_failed_unfinished_and_silent_runs_stay_in_the_table_behind_the_others(write: Callable[..., Path]) -> None:
    write("fine", val=(3.0,), rate=1)
    write("nan", val=(math.nan,), rate=2)
    write("failed", state="failed", val=(), message="train/loss is nan", rate=3)
    write("halted", state="preempted", val=(5.0,), rate=4)
    comparison = compare_runs(find(["toy"])[0], title="toy")
    assert [row.name for row in comparison.rows] == ["fine", "halted", "failed", "nan"]
    assert comparison.states() == {"finished": 2, "preempted": 1, "failed": 1}
    assert comparison.best is not None
    assert comparison.best.name == "fine"


def test_an_unfinished_run_is_not_called_the_best_while_there_is_a_finished_one(write: Callable[..., Path]) -> None:
    write("lucky", state="preempted", val=(1.0,), rate=1)
    write("honest", val=(2.0,), rate=2)
    best = compare_runs(find(["toy"])[0], title="toy").best
    assert best is not None
    assert best.name == "honest"


def test_runs_that_differ_in_fold_or_seed_become_mean_and_population_deviation(write: Callable[..., Path]) -> None:
    tests = {"square": (20.0, 22.0, 27.0), "linear": (80.0, 90.0)}
    for loss, values in tests.items():
        for k, value in enumerate(values):
            write(f"{loss}{k}", loss=loss, split=f"fold{k}", seed=k, val=(value - 1,), test=value)
    write("square3", loss="square", split="fold3", seed=3, state="failed", val=(1.0,))
    write("square0again", loss="square", split="fold0", seed=0, val=(19.0,), test=20.0)  # is no other fold
    folds = compare_runs(find(["toy"])[0], title="toy").folds
    assert [(row.name, row.state) for row in folds] == [("square", "3 of 4"), ("linear", "2")]
    for row in folds:
        score = row.scores["test/error"]
        assert score.value == pytest.approx(statistics.mean(tests[row.name]))
        assert score.sd == pytest.approx(statistics.pstdev(tests[row.name]))


def test_folds_by_patch_are_not_averaged_with_folds_by_cell(write: Callable[..., Path]) -> None:
    for k, (cell, patch) in enumerate([(60.0, 20.0), (70.0, 30.0)]):
        write(f"cell{k}", split=f"fold{k}", test=cell)
        write(f"patch{k}", split=f"patch_fold{k}", test=patch)
    folds = compare_runs(find(["toy"])[0], title="toy").folds
    assert {row.name: row.scores["test/error"].value for row in folds} == {"fold": 65.0, "patch_fold": 25.0}


def test_what_the_paper_printed_stands_beside_the_runs_it_matches(write: Callable[..., Path]) -> None:
    write("a", loss="square", test=25.0)
    write("b", loss="linear", test=88.0)
    write("c", loss="other", test=50.0)
    rows = {row.name: row for row in compare_runs(find(["toy"])[0], title="toy").rows}
    assert [(entry.name, str(entry.score)) for entry in rows["a"].published] == [
        ("Table 3 NIH3T3 test/error", "30.51 ± 0.86"),
        ("Table 3 U373 test/error", "21.90 ± 1.05"),
    ]
    assert [str(entry.score) for entry in rows["b"].published] == ["87.05"]
    assert rows["c"].published == ()


def test_the_model_is_measured_against_the_best_possible_on_the_test_set(write: Callable[..., Path]) -> None:
    write("tested", rate=1, test=23.2, possible=11.6)
    write("untested", rate=2, val=(34.8,), possible=11.6)
    write("unknown", rate=3, test=20.0)
    ratios = {row.name: row.ratio for row in compare_runs(find(["toy"])[0], title="toy").rows}
    assert ratios["tested"] == pytest.approx(2.0)
    assert ratios["untested"] == pytest.approx(3.0)
    assert math.isnan(ratios["unknown"])


def test_numbers_keep_four_digits_and_deviations_as_many_decimals() -> None:
    assert [str(Score(v)) for v in (21.351, 0.012345, 1234.56, 0.0, math.nan)] == [
        "21.35",
        "0.01235",
        "1235",
        "0.00",
        "–",
    ]
    assert str(Score(97.81, 0.513)) == "97.81 ± 0.51"
    assert str(Score(3.2e-9)) == "3.2e-09"


def test_the_deviation_is_that_of_the_population() -> None:
    values = [97.3, 98.1, 97.9, 97.6]
    assert mean_and_sd(values) == pytest.approx((statistics.mean(values), statistics.pstdev(values)))


# -- which runs -------------------------------------------------------------------------------------------------------


def test_experiments_sweeps_and_run_folders_may_be_mixed_and_no_run_comes_twice(write: Callable[..., Path]) -> None:
    folder = write("a", group="search")
    write("b", rate=0.2)
    write("c", experiment="other", rate=0.3)
    runs, _ = find(["search", "toy", str(folder), "other/c"])
    assert sorted(run.run_id for run in runs) == ["a", "b", "c"]
    comparison = compare_runs(runs, title="all")
    assert comparison.rows[0].parameters["experiment"] == "toy"


@pytest.mark.slow
def test_an_experiment_brings_the_variants_based_on_it_and_a_users_own_and_none_of_a_sweep(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkout" / "experiments"
    folder.mkdir(parents=True)
    bases = {"toy": None, "toy_small": "toy.yaml", "fast": "toy.yaml", "toy_other": None, "toy_small_x": None}
    for name, base in bases.items():
        text = "seed: 0\n" if base is None else f"base: {base}\n"
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr("mechanolab.config.checkout", lambda: tmp_path / "checkout")
    write("a", group="search")
    for name in ("toy_small", "fast", "toy_other", "toy_mine", "toyish"):
        write(f"of_{name}", experiment=name, rate=len(name), test=1.0)

    def found(*names: str, **options: Any) -> list[str]:
        return sorted(run.run_id for run in find(names, **options)[0])

    assert found("toy") == ["a", "of_fast", "of_toy_mine", "of_toy_small"]
    assert found("toy", exact=True) == ["a"]
    assert found("toy_small") == ["of_toy_small"]
    assert found("search") == ["a"]
    assert found("toy", "toy_other") == ["a", "of_fast", "of_toy_mine", "of_toy_other", "of_toy_small"]
    compare(["toy"])
    assert "toy with its variants fast, toy_mine, toy_small" in capsys.readouterr().out
    (tmp_path / "toy" / "a" / "config.yaml").unlink()
    assert found("toy") == ["of_fast", "of_toy_mine", "of_toy_small"]
    with pytest.raises(RequestError, match="no run belongs to 'toy'"):
        found("toy", exact=True)


def test_an_unknown_name_is_refused_with_the_nearest(write: Callable[..., Path]) -> None:
    write("a", experiment="circulars")
    with pytest.raises(RequestError, match=r"no run belongs to 'circulrs' in .*did you mean 'circulars'"):
        find(["circulrs"])


# -- the files --------------------------------------------------------------------------------------------------------


def test_piped_tables_are_whole_lines_of_plain_text(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a-name-that-does-not-fit-into-eighty-columns-together-with-all-the-other-columns"
    write("a", loss=long, test=20.0, possible=10.0)
    write("b", loss="short", val=(60.0,), state="failed", message="out of memory")
    compare(["toy"])
    out = capsys.readouterr().out
    assert re.search(rf"^a +{long} +finished +40\.00 +20\.00 +2\.000 +3 +30 +1m00s$", out, flags=re.MULTILINE)
    assert "b failed: out of memory" in out
    assert "…" not in out
    assert "\x1b" not in out


def test_the_csv_has_full_names_and_full_precision(write: Callable[..., Path], tmp_path: Path) -> None:
    write("a", test=1 / 3, loss="square")
    write("b", val=(math.nan,), loss="linear")
    rows = read_csv(compare(["toy"]).csv)
    assert [row["run"] for row in rows] == ["a", "b"]
    assert float(rows[0]["test/error"]) == 1 / 3
    assert rows[0]["module.loss"] == "square"
    assert (rows[0]["published Table 3 U373 test/error"], rows[0]["published sd Table 3 U373 test/error"]) == (
        "21.9",
        "1.05",
    )
    assert (rows[1]["best val/error"], rows[1]["test/error"]) == ("", "")
    assert (rows[0]["epochs"], rows[0]["steps"], rows[0]["seconds"]) == ("3", "30", "60.0")


def test_the_markdown_table_is_rectangular_and_escapes_bars(write: Callable[..., Path]) -> None:
    write("a", loss="x|y")
    write("b", loss="z")
    text = compare(["toy"]).markdown.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert "x\\|y" in text


def test_the_report_loads_nothing_and_escapes_what_runs_say(write: Callable[..., Path]) -> None:
    folder = write("a", loss="<script>alert(1)</script>", test=20.0, possible=10.0)
    write("b", loss="linear", state="failed", val=(), message="<b>bad</b>")
    (folder / "figures").mkdir()
    Figure().savefig(folder / "figures" / "test_panel.png")
    page = Page(compare(["toy"]).html)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert page.tags.count("script") == 1
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    assert "<b>bad</b>" in page.texts[page.texts.index("What failed") :][2]
    assert "test_panel" in page.texts
    assert "model / best possible" in page.texts


def test_the_report_goes_where_it_is_asked_to(write: Callable[..., Path], tmp_path: Path) -> None:
    write("a")
    assert compare(["toy"], out=tmp_path / "here").html == tmp_path / "here" / "report.html"
    assert compare(["toy", "toy/a"]).html == tmp_path / "reports" / "toy-a" / "report.html"


def test_a_report_of_runs_without_any_metric_is_written(write: Callable[..., Path]) -> None:
    write("a", val=(), state="failed", message="no data set at data/toy/twin")
    page = Page(compare(["toy"]).html)
    assert "1 failed" in " ".join(page.texts)


def test_the_papers_own_figures_are_drawn_from_the_runs_that_logged_something(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def comparison(runs: Sequence[dict[str, Any]]) -> dict[str, Figure]:
        seen.extend(runs)
        return {"error_bars": Figure(figsize=(2, 1))}

    module = types.ModuleType("lightning_modules.figures.toy")
    module.comparison = comparison  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning_modules.figures.toy", module)
    write("a", rate=1, possible=11.6)
    write("b", rate=2, val=(), state="failed")
    page = Page(compare(["toy"]).html)
    assert "error_bars" in page.texts
    assert [run["run_id"] for run in seen] == ["a"]
    known = {"run_id", "folder", "config", "summary", "history", "irreducible_error", "parameters", "tested_run"}
    known |= {"trained_config"}
    assert set(seen[0]) == known
    assert seen[0]["trained_config"] == seen[0]["config"]
    assert seen[0]["irreducible_error"]["value"] == 11.6


def test_a_recorded_test_says_what_its_weights_were_trained_with(write: Callable[..., Path]) -> None:
    trained = write("trained", rate=1)
    test = write("test", rate=2)
    status = json.loads((test / "status.json").read_text(encoding="utf-8"))
    for tested_run, known in (("trained", True), ("gone", False), (None, False)):
        write_json(test / "status.json", {**status, "tested_run": tested_run})
        config = report.as_mapping(table.read_run(test))["trained_config"]
        assert config == (table.read_run(trained).config if known else None)


@pytest.mark.slow
def test_a_paper_figure_that_cannot_be_drawn_is_a_note_and_costs_no_table(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("lightning_modules.figures.toy")
    module.comparison = lambda runs: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning_modules.figures.toy", module)
    write("a")
    text = " ".join(Page(compare(["toy"]).html).texts)
    assert "could not draw these runs: ZeroDivisionError: division by zero" in text


def test_only_the_newest_images_of_the_best_run_are_shown(write: Callable[..., Path]) -> None:
    folder = write("a") / "figures"
    folder.mkdir()
    for i in range(report.IMAGES + 2):
        path = folder / f"val_{i:02d}.png"
        path.write_bytes(b"png")
        os.utime(path, (i, i))
    pictures = report.run_images(table.read_run(folder.parent))
    assert [picture.name for picture in pictures] == [f"val_{i:02d}" for i in range(2, report.IMAGES + 2)]
