"""Runs side by side: what differs between them, what they scored, and what the paper printed.

A run appears whatever became of it; its state is a column. Runs that differ only in `data.split` and in seeds are
also put together: mean and population standard deviation over the folds, as the papers print them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from mechanolab.config import RequestError, experiment_names, flatten, nearest, nest, runs_root, variants
from mechanolab.runs import Run, find_runs, ranking_metric, read_run
from mechanolab.sweeps.study import planned_runs
from mechanolab.sweeps.sweep_file import INDIFFERENT

FOLD_KEYS = ("data.split",)


@dataclass(frozen=True)
class Score:
    """A number, with its spread when it stands for several runs (population standard deviation)."""

    value: float
    sd: float | None = None

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "–"
        # As many decimals as leave four digits to the value; the spread has the same.
        decimals = max(0, 3 - math.floor(math.log10(abs(self.value)))) if self.value else 2
        form = f".{decimals}f" if decimals <= 6 else ".3g"
        return f"{self.value:{form}}" if self.sd is None else f"{self.value:{form}} ± {self.sd:{form}}"


@dataclass(frozen=True)
class Published:
    """A number that the paper printed for a row's configuration."""

    metric: str
    table: str
    label: str
    """What tells it from others of the same table, for example the cell line; may be empty."""
    score: Score

    @property
    def name(self) -> str:
        """Table, label and metric in one phrase."""
        return " ".join(word for word in (self.table, self.label, self.metric) if word)


@dataclass
class Row:
    """One line of a table: a run, or the runs that differ only in their fold."""

    name: str
    state: str
    parameters: dict[str, Any]
    scores: dict[str, Score] = field(default_factory=dict)
    """Under the metric's own name; `best` is the monitored one's best."""
    ratio: float = math.nan
    """Error of the model over the error of the best possible method."""
    published: tuple[Published, ...] = ()
    epochs: int | None = None
    steps: int | None = None
    seconds: float = math.nan
    reason: str = ""
    run: Run | None = None


@dataclass
class Comparison:
    """The tables, and what every line of them shares."""

    title: str
    metric: str
    mode: str
    runs: list[Run]
    rows: list[Row]
    folds: list[Row]
    """Rows over folds; empty when no two runs differ only in their fold."""
    parameters: list[str]
    tests: list[str]
    not_started: int = 0

    @property
    def best(self) -> Row | None:
        """The best finished run; the best of all when none has finished."""
        scored = [row for row in self.rows if "best" in row.scores]
        return next((row for row in scored if row.state == "finished"), scored[0] if scored else None)

    def states(self) -> dict[str, int]:
        """State -> number of runs, with `not started` for the trials of a sweep that are still to come."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.state] = counts.get(row.state, 0) + 1
        return {**counts, "not started": self.not_started} if self.not_started else counts


# -- which runs -------------------------------------------------------------------------------------------------------


def find(names: Sequence[str], *, exact: bool = False) -> tuple[list[Run], int]:
    """The runs that experiments, sweeps and run folders name, and how many trials of the sweeps are still to come.

    Args:
        names: an experiment stands for its variants as well, see `family`.
        exact: it does not.

    Raises:
        RequestError: a name that no run has.
    """
    runs: dict[Path, Run] = {}
    not_started = 0
    for name in names:
        folder = next((p for p in (Path(name), runs_root() / name) if (p / "config.yaml").is_file()), None)
        if folder is not None:
            found = [read_run(folder.absolute())]
        else:
            found = [*find_runs(name), *sweep_runs(name)]
            not_started += trials_to_come(name)
            based = [] if exact else family(name)
            found += [run for variant in based for run in find_runs(variant) if run.experiment == variant]
        if not found:
            known = sorted({name for run in find_runs() for name in (run.group, run.experiment)})
            hint = nearest(name, [*known, *experiment_names()])
            listing = f" (there are runs of: {', '.join(known)})" if known and not hint else ""
            raise RequestError(f"no run belongs to '{name}' in {runs_root()}{hint or listing}")
        for run in found:
            runs.setdefault(run.path, run)
    return list(runs.values()), not_started


def family(name: str) -> list[str]:
    """The variants of an experiment that have runs; none of a name that is no experiment's.

    Variants are the experiments of the checkout whose `base` it is, and those of the runs' folder that no file of the
    checkout describes and whose names begin with its name and an underscore: a user's own.
    """
    known = experiment_names()
    if name not in known:
        return []
    with_runs = {path.parent.parent.name for path in runs_root().glob("*/*/config.yaml")}
    based = variants(name)
    return sorted(e for e in with_runs if e in based or (e not in known and e.startswith(f"{name}_")))


def sweep_runs(name: str) -> list[Run]:
    """Every trial of a sweep that was started, in their order; one that failed before it made a run folder too."""
    known = planned_runs(name)
    if known is None:
        return []
    facts, trials = known
    runs = []
    for trial in trials:
        folder = runs_root() / facts["experiment"] / trial["run_id"]
        if (folder / "config.yaml").is_file():
            run = read_run(folder)
        else:
            config = nest({**facts["base"], **trial["values"]})
            state = "failed" if trial["event"] == "failed" else "starting"
            run = Run(folder, trial["run_id"], facts["experiment"], name, config, {"state": state, "group": name})
        if run.state == "failed" and not run.status.get("message"):
            run.status["message"] = trial["reason"]
        runs.append(run)
    return runs


def trials_to_come(name: str) -> int:
    """Trials of a sweep that were not started yet."""
    known = planned_runs(name)
    return 0 if known is None else max(0, known[0]["planned"] - len(known[1]))


# -- the tables -------------------------------------------------------------------------------------------------------


def compare_runs(
    runs: Sequence[Run], *, title: str, not_started: int = 0, monitor: Mapping[str, str] | None = None
) -> Comparison:
    """Put runs side by side, best first.

    Args:
        runs: at least one.
        title: heading of the comparison.
        not_started: trials of a sweep that are still to come.
        monitor: {metric, mode} to rank by; when left out what the first run monitors, and where recorded tests are
            among the runs the same quantity of the test set, which trained runs have as well.
    """
    known = (run.config["monitor"] for run in runs if run.config.get("monitor"))
    metric, mode = _ranking(runs, monitor or next(known, {"metric": "", "mode": "min"}))
    parameters = differing(runs)
    several = len({run.experiment for run in runs}) > 1
    rows = [_row(run, parameters, metric, mode, several) for run in runs]
    rows.sort(key=lambda row: _rank(row, mode))
    tests = sorted({key for row in rows for key in row.scores if key.startswith("test/")} - {metric})
    folds = sorted(_over_folds(rows), key=lambda row: _rank(row, mode))
    return Comparison(title, metric, mode, list(runs), rows, folds, parameters, tests, not_started)


def _ranking(runs: Sequence[Run], monitor: Mapping[str, str]) -> tuple[str, str]:
    """Metric and mode to rank by."""
    tests = next((run for run in runs if "tested_run" in run.status), None)
    return ranking_metric({"monitor": monitor}, tests.status if tests else {}), monitor["mode"]


def differing(runs: Sequence[Run]) -> list[str]:
    """Dotted paths of the settings that are not the same in all runs: the module's first, then the data's, then others.

    Where the data lie and how they are read is left out, and so is what the paper printed, and what only some
    experiments have and is the same in all their runs: their names tell it.
    """
    flats = [flatten(run.config) for run in runs]
    paths = list(dict.fromkeys(path for flat in flats for path in flat))
    absent = object()
    found = []
    for path in paths:
        if path in INDIFFERENT:
            continue
        values = [flat.get(path, absent) for flat in flats]
        own = {run.experiment: value for run, value in zip(runs, values, strict=True)}
        told = any(v is absent for v in values) and all(
            own[run.experiment] == value for run, value in zip(runs, values, strict=True)
        )
        if not told and any(value != values[0] for value in values[1:]):
            found.append(path)
    order = ("module", "data", "trainer")
    return sorted(
        found, key=lambda path: next((i for i, s in enumerate(order) if path.startswith(s + ".")), len(order))
    )


def is_fold_key(path: str) -> bool:
    """Whether a setting only chooses the fold or the seed."""
    return path in FOLD_KEYS or path.split(".")[-1] == "seed"


def _row(run: Run, parameters: Sequence[str], metric: str, mode: str, several: bool) -> Row:
    flat = flatten(run.config)
    values = {path: flat.get(path, "–") for path in parameters}
    if several:
        values = {"experiment": run.experiment, **values}
    scores = {k: Score(float(v)) for k, v in run.summary.items() if k.startswith("test/") and _finite(v)}
    logged = [float(line[metric]) for line in run.history if _finite(line.get(metric))]
    if logged:
        scores["best"] = Score(min(logged) if mode == "min" else max(logged))
    trained = [line for line in run.history if not any(key.startswith("test/") for key in line)]
    epochs = [line["epoch"] for line in trained if line.get("epoch", -1) >= 0]
    return Row(
        name=run.run_id,
        state=run.state,
        parameters=values,
        scores=scores,
        ratio=_ratio(run, scores, metric),
        published=_published(run, flat),
        epochs=max(epochs) + 1 if epochs else None,
        steps=max((line.get("step", 0) for line in run.history), default=None),
        seconds=_seconds(run),
        reason=str(run.status.get("message") or ""),
        run=run,
    )


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _seconds(run: Run) -> float:
    """Seconds from the first start to the last sign of life; pauses between two starts count."""
    started = run.status.get("started")
    signs = [run.status.get("ended"), run.status.get("updated"), *(line.get("time") for line in run.history[-1:])]
    known = [float(sign) for sign in signs if _finite(sign)]
    return max(known) - started if _finite(started) and known else math.nan


def _ratio(run: Run, scores: Mapping[str, Score], metric: str) -> float:
    """Model / best possible, on the test set when it was tested, else by the monitored metric."""
    possible = run.irreducible_error
    if not possible or not _finite(possible.get("value")) or possible["value"] <= 0:
        return math.nan
    quantity = str(possible["metric"]).split("/")[-1]
    score = scores.get(f"test/{quantity}") or (scores.get("best") if metric.split("/")[-1] == quantity else None)
    return score.value / possible["value"] if score else math.nan


def _published(run: Run, flat: Mapping[str, Any]) -> tuple[Published, ...]:
    """What the paper printed for this configuration."""
    return tuple(
        Published(
            metric=str(entry["metric"]),
            table=f"Table {entry['table']}" if str(entry["table"]).isdigit() else str(entry["table"]),
            label=str(entry.get("label") or ""),
            score=Score(float(entry["value"]), entry.get("sd")),
        )
        for entry in run.config.get("published") or []
        if all(_same(flat.get(path), value) for path, value in flatten(entry["match"]).items())
    )


def _same(a: Any, b: Any) -> bool:
    if _finite(a) and _finite(b) and type(a) is not bool and type(b) is not bool:
        return math.isclose(a, b, rel_tol=1e-9)
    return bool(a == b)


def _rank(row: Row, mode: str) -> tuple[bool, float, str, str]:
    score = row.scores.get("best")
    sign = 1 if mode == "min" else -1
    return (score is None, sign * score.value if score else 0.0, row.state, row.name)


def without_folds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The settings of every row without the fold and the seed, so that the folds of one setting have the same.

    Where several families of folds are compared (`fold0..3` and `patch_fold0..3`), the family stays a setting.
    """
    families = [
        {path: str(row.parameters[path]).rstrip("0123456789") for path in FOLD_KEYS if path in row.parameters}
        for row in rows
    ]
    several = any(family != families[0] for family in families)
    settings = [{path: value for path, value in row.parameters.items() if not is_fold_key(path)} for row in rows]
    return [{**fixed, **(family if several else {})} for fixed, family in zip(settings, families, strict=True)]


def _over_folds(rows: Sequence[Row]) -> list[Row]:
    """One row per setting with several folds or seeds; one that was run twice counts once."""
    groups: dict[str, dict[str, Row]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for row, fixed in zip(rows, without_folds(rows), strict=True):
        key = json.dumps(fixed, sort_keys=True, default=str)
        fold = json.dumps([row.parameters[path] for path in row.parameters if is_fold_key(path)], default=str)
        known = groups.setdefault(key, {}).get(fold)
        if known is None or known.state != "finished":
            groups[key][fold] = row
        settings[key] = fixed
    if all(len(members) == 1 for members in groups.values()):
        return []
    return [_fold_row(list(members.values()), settings[key]) for key, members in groups.items()]


def _fold_row(members: Sequence[Row], fixed: dict[str, Any]) -> Row:
    """Mean and population standard deviation over the finished members."""
    first = members[0]
    finished = [row for row in members if row.state == "finished"]
    scores = {}
    for key in dict.fromkeys(key for row in finished for key in row.scores):
        values = [row.scores[key].value for row in finished if key in row.scores]
        scores[key] = Score(*mean_and_sd(values)) if len(values) > 1 else Score(values[0])
    ratios = [row.ratio for row in finished if math.isfinite(row.ratio)]
    return Row(
        name=" ".join(str(value) for value in fixed.values()) or first.name,
        state=f"{len(finished)} of {len(members)}" if len(finished) < len(members) else str(len(members)),
        parameters=fixed,
        scores=scores,
        ratio=sum(ratios) / len(ratios) if ratios else math.nan,
        published=max((row.published for row in members), key=len),
        seconds=sum(row.seconds for row in finished if math.isfinite(row.seconds)),
    )


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation (ddof 0).

    >>> mean_and_sd([1.0, 3.0])
    (2.0, 1.0)
    """
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
