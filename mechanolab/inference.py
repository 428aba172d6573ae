"""Validate, test and predict with a run's checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechanolab import runs
from mechanolab.callbacks.predictions import PredictionWriter
from mechanolab.checkpoints import checkpoint_file, load_weights
from mechanolab.config import RequestError, last_line
from mechanolab.launch import construct, make_trainer, set_up

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg")


def evaluate(
    config: dict[str, Any], *, stage: str, experiment: str, run_id: str | None, checkpoint: str = "best"
) -> dict[str, float]:
    """Run `validate` or `test` on a run's checkpoint, or on a training-free module.

    Returns:
        The metrics; a run's figures of that stage are drawn anew.

    Raises:
        RequestError: no such run or checkpoint, or wrong data.
    """
    parts = construct(_without_pretraining(config, run_id))
    set_up(parts.data, stage)
    folder = None
    if run_id is not None:
        folder = runs.run_folder(experiment, run_id)
        load_weights(parts.module, checkpoint_file(folder, checkpoint))
    elif not parts.module.training_free:
        raise RequestError(
            f"{stage} needs a trained run: name one with --run ID (mechanolab runs {experiment} lists them)"
        )
    trainer, _ = make_trainer(parts, folder)
    results = getattr(trainer, stage)(parts.module, datamodule=parts.data, verbose=False)
    return {name: float(value) for result in results for name, value in result.items()}


def predict(
    config: dict[str, Any],
    *,
    experiment: str,
    run_id: str,
    checkpoint: str = "best",
    split: str = "test",
    inputs: Sequence[Path] = (),
    pixel_size_um: float | None = None,
) -> Path:
    """Write a run's predictions for a stored split or for the user's own images.

    Returns:
        The folder that holds predictions.csv and the figures.

    Raises:
        RequestError: no such run, checkpoint, split or image.
    """
    parts = construct(_without_pretraining(config, run_id))
    folder = runs.run_folder(experiment, run_id)
    load_weights(parts.module, checkpoint_file(folder, checkpoint))
    files = _image_files(inputs) if inputs else None
    try:
        parts.data.predict_on(split=split, files=files, pixel_size_um=pixel_size_um)
    except (ValueError, OSError) as error:
        raise RequestError(last_line(error)) from None
    set_up(parts.data, "predict")
    name = f"input-{inputs[0].resolve().stem}" if inputs else split
    out = folder / "predictions" / name
    trainer, _ = make_trainer(parts, None, extra=[PredictionWriter(out)])
    try:
        trainer.predict(parts.module, datamodule=parts.data, return_predictions=False)
    except (ValueError, OSError) as error:
        raise RequestError(last_line(error)) from error
    return out


def _without_pretraining(config: dict[str, Any], run_id: str | None) -> dict[str, Any]:
    """A checkpoint replaces all weights, so the file that training started from need not be there any more."""
    if run_id is None or "pretrained_weights" not in config["module"]:
        return config
    return {**config, "module": {**config["module"], "pretrained_weights": None}}


def _image_files(inputs: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            files.append(path)
        else:
            raise RequestError(f"--input {path} does not exist")
    if not files:
        raise RequestError(f"--input {inputs[0]} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return files
