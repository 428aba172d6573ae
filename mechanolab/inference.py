"""Validate, test and predict with a run's checkpoint, or with a module that needs none."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechanolab import runs
from mechanolab.callbacks.exact_resume import stop_on_request
from mechanolab.callbacks.predictions import PredictionWriter, predicted_inputs
from mechanolab.checkpoints import checkpoint_file, load_weights
from mechanolab.config import RequestError, RunFailedError, flatten, last_line, override
from mechanolab.launch import Parts, construct, make_trainer, set_up

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")
"""What a data class reads that does not say so itself, in `input_suffixes`."""


def evaluate(
    config: dict[str, Any], *, stage: str, experiment: str, run_id: str | None, checkpoint: str = "best"
) -> dict[str, float]:
    """Run `validate` or `test` on a run's checkpoint, or on a training-free module.

    Returns:
        The metrics; a run's figures of that stage are drawn anew, unless the configuration is not its own or the
        checkpoint not its best.

    Raises:
        RequestError: no such run or checkpoint, or wrong data.
        RunFailedError: a sample cannot be scored.
    """
    parts = construct(without_pretraining(config, run_id))
    set_up(parts.data, stage)
    weights = weights_file(parts, experiment, run_id, checkpoint, command=stage)
    if weights is not None:
        load_weights(parts.module, weights)
    folder = None if run_id is None else runs.run_folder(experiment, run_id)
    own = folder is not None and checkpoint == "best" and _made_with(folder, config)
    trainer, _ = make_trainer(parts, folder if own else None)
    try:
        with stop_on_request():
            results = getattr(trainer, stage)(parts.module, datamodule=parts.data, verbose=False)
    except ValueError as error:  # a sample, or what is predicted of it, for which a score does not exist
        raise RunFailedError(last_line(error)) from error
    return {name: float(value) for result in results for name, value in result.items()}


def predict(
    config: dict[str, Any],
    *,
    experiment: str,
    run_id: str | None,
    checkpoint: str = "best",
    split: str = "test",
    inputs: Sequence[Path] = (),
    pixel_size_um: float | None = None,
    own_dataset: str | None = None,
) -> Path:
    """Write predictions for a stored split or for the user's own files, of a run or of a training-free module.

    Returns:
        The folder that holds the predictions, in the run's folder or, where no run is named, the experiment's:
        `predictions/<split>`, `predictions/<dataset>-<split>` for a data set that is not `own_dataset`, which the run
        was made with, or `predictions/input-<name>`, with a number behind it where files of that name from another
        place were predicted before; `-<checkpoint>` behind all that for one that is not the best.

    Raises:
        RequestError: no such run, checkpoint, split or file.
    """
    parts = construct(without_pretraining(config, run_id))
    weights = weights_file(parts, experiment, run_id, checkpoint, command="predict")
    if weights is not None:
        load_weights(parts.module, weights)
    suffixes: tuple[str, ...] | None = getattr(type(parts.data), "input_suffixes", None)
    files = _input_files(inputs, suffixes) if inputs else None
    try:
        parts.data.predict_on(split=split, files=files, pixel_size_um=pixel_size_um)
    except (ValueError, OSError) as error:
        raise RequestError(last_line(error)) from None
    set_up(parts.data, "predict")
    dataset = config["data"].get("dataset")
    name = split if dataset == own_dataset else f"{dataset}-{split}"
    if inputs:
        first = inputs[0].resolve()
        name = f"input-{first.name if first.is_dir() else first.stem}"
    if weights is not None and checkpoint != "best":
        name = f"{name}-{Path(checkpoint).stem}"
    folder = runs.runs_root() / experiment if run_id is None else runs.run_folder(experiment, run_id)
    out = folder / runs.PREDICTIONS / name
    sources = [str(path.resolve()) for path in inputs]
    if inputs:
        out = _folder_of_inputs(out, sources)
    writer = PredictionWriter(out, config, sources)
    trainer, _ = make_trainer(parts, None, extra=[writer])
    try:
        with stop_on_request():
            trainer.predict(parts.module, datamodule=parts.data, return_predictions=False)
    except ValueError as error:  # of a sample, or of what is predicted of it
        where = f"{', '.join(writer.predicting)}: " if writer.predicting else ""
        raise RequestError(f"{where}{last_line(error)}") from error
    except OSError as error:
        raise RequestError(last_line(error)) from error
    return out


def weights_file(parts: Parts, experiment: str, run_id: str | None, checkpoint: str, *, command: str) -> Path | None:
    """The checkpoint that a command needs; None for a module that needs no training.

    A run that records a test has none of its own: it stands for the run that it tested.

    Raises:
        RequestError: there is none, or a trained run is needed and none is named.
    """
    if parts.module.training_free:
        return None
    if run_id is None:
        raise RequestError(
            f"{command} needs a trained run: name one with --run ID (mechanolab runs {experiment} lists them)"
        )
    folder = runs.run_folder(experiment, run_id)
    tested_run = runs.read_status(folder).get("tested_run")
    return checkpoint_file(folder if tested_run is None else runs.run_folder(experiment, tested_run), checkpoint)


def _folder_of_inputs(folder: Path, sources: list[str]) -> Path:
    """The first of `folder`, `folder-2`, ... that is free or holds predictions of the same files and folders."""
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    candidates = itertools.chain([folder], others)
    return next(path for path in candidates if not path.exists() or predicted_inputs(path) == sources)


def _made_with(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run was made with this configuration, wherever its data lay."""
    stored, asked = (
        {key: value for key, value in flatten(part).items() if key != "data.data_root"}
        for part in (override(runs.read_config(folder), []), config)
    )
    return stored == asked


def without_pretraining(config: dict[str, Any], run_id: str | None) -> dict[str, Any]:
    """A checkpoint replaces all weights, so the file that training started from need not be there any more."""
    if run_id is None or "pretrained_weights" not in config["module"]:
        return config
    return {**config, "module": {**config["module"], "pretrained_weights": None}}


def _input_files(inputs: Sequence[Path], suffixes: tuple[str, ...] | None) -> list[Path]:
    """The files that are named, and those in the folders that are named.

    Args:
        inputs: files and folders.
        suffixes: what the data class says it reads; None for images, where a file that is named may be of any kind.
    """
    wanted = IMAGE_SUFFIXES if suffixes is None else suffixes
    listed = ", ".join(wanted)
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = (p for p in path.rglob("*") if p.name.lower().endswith(wanted) and p.is_file())
            # hidden files are what some systems add to archives
            files += sorted(p for p in found if not p.name.startswith("."))
        elif path.is_file():
            if suffixes is not None and not path.name.lower().endswith(wanted):
                raise RequestError(f"--input {path} is of a kind that cannot be read; it must be one of {listed}")
            files.append(path)
        else:
            raise RequestError(f"--input {path} does not exist")
    if not files:
        raise RequestError(f"--input {inputs[0]} holds no {'image' if suffixes is None else 'file'} ({listed})")
    return files
