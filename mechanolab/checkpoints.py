"""Checkpoint files: found, read safely, loaded into a module, reduced to their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from mechanolab.config import RequestError, last_line

KEPT = ("state_dict", "hyper_parameters", "pytorch-lightning_version", "epoch", "global_step", "batches_seen")


def checkpoint_to_resume(folder: Path, resume: Path | None) -> Path | None:
    """The checkpoint from which a run goes on: its own last one, else the one asked for, else none.

    Raises:
        RequestError: the one asked for is missing, or holds weights only.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        return last
    if resume is None:
        return None
    candidate = resume / "checkpoints" / "last.ckpt" if resume.is_dir() else resume
    if not candidate.is_file():
        raise RequestError(f"--resume {resume}: there is no checkpoint {candidate}")
    if "loops" not in load(candidate):
        raise RequestError(f"--resume {candidate}: the run was finished, its checkpoint holds weights only")
    return candidate


def steps_in(checkpoint: Path | None) -> int:
    """Training batches that a checkpoint has seen."""
    return int(load(checkpoint).get("batches_seen", 0)) if checkpoint is not None else 0


def order_within_epoch(checkpoint: Path | None) -> dict[str, int]:
    """What batches a checkpoint from within an epoch has counted; empty for one from between two epochs."""
    return dict(load(checkpoint).get("order", {})) if checkpoint is not None else {}


def keep_weights_only(path: Path) -> None:
    """Drop the optimizer's and the loops' state: two thirds of the file, of no use once a run is finished."""
    checkpoint = load(path)
    partial = path.with_name(path.name + ".partial")
    torch.save({key: checkpoint[key] for key in KEPT if key in checkpoint}, partial)
    partial.replace(path)


def checkpoint_file(folder: Path, checkpoint: str) -> Path:
    """The file of a run's `best` or `last` checkpoint, or of a checkpoint named by its path.

    Raises:
        RequestError: no such run or file.
    """
    if not folder.is_dir():
        known = sorted(p.name for p in folder.parent.glob("*") if (p / "config.yaml").is_file())
        raise RequestError(
            f"there is no run {folder.name} of {folder.parent.name}; its runs are: {', '.join(known) or 'none'}"
        )
    named = checkpoint in ("best", "last")
    path = folder / "checkpoints" / f"{checkpoint}.ckpt" if named else Path(checkpoint).expanduser()
    if not path.is_file():
        raise RequestError(f"there is no checkpoint {path}; a run writes one at the end of its first epoch")
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        RequestError: damaged, or not a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RequestError(f"checkpoint {path} cannot be read: {last_line(error)}") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise RequestError(f"{path} is not a checkpoint of a run: it holds no state_dict")
    return checkpoint


def load_weights(module: LightningModule, path: Path) -> None:
    """Put a checkpoint's weights into a module.

    Raises:
        RequestError: damaged, or made by another module.
    """
    try:
        module.load_state_dict(load(path)["state_dict"])
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if len(str(error).splitlines()) > 1 else str(error)
        raise RequestError(f"checkpoint {path} does not fit the module: {first}") from None
