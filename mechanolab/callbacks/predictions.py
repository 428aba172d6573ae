"""Writes predictions: one row of numbers per sample as predictions.csv, arrays as predictions.h5 and a TIFF file per
sample and field, the first samples as figures; where a module predicts them, pictures as a PNG file per sample, tables
of any length as one csv file each with all samples' rows, and what follows from all samples together as summary.json.
A folder holds all of it or is left as it was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from datamodules.shards.predicted_fields import FieldStage, PredictionFolder, StagedField, file_stem, write_fields
from datamodules.shards.workspace import clear_disk_errors
from mechanolab.callbacks.figures import ShownSamples, follows_group, write_figures
from mechanolab.runs import write_config, write_json

TABLE_NAME = "predictions.csv"
SUMMARY_NAME = "summary.json"
INPUTS_NAME = "inputs.json"


class _Row(NamedTuple):
    sample_id: str
    group: str
    numbers: dict[str, Any]
    fields: dict[str, StagedField]
    tables: dict[str, dict[str, list[Any]]]


class PredictionWriter(BasePredictionWriter):
    """Writes what `predict_step` returns, a NamedTuple whose fields have one entry per sample, or are None.

    Entries that are single numbers or texts are columns of predictions.csv, whose rows are sorted by sample id; arrays
    are streamed to disk. An array (y, x, 3) of 8-bit numbers is a picture, written as `<sample id>_<name>.png`. A
    mapping of names to columns of one length is a table, whose rows are added to `<name>.csv`. All ranks' samples end
    in the same files. A module's optional `prediction_summary(rows)`, which is given the numbers of every sample,
    returns what is written as summary.json.

    Args:
        folder: where the files go; an earlier prediction there is replaced once this one is complete.
        config: what was predicted with, kept beside the predictions as config.yaml.
        inputs: the user's files and folders that are predicted on, kept as inputs.json; none for a stored split.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], inputs: Sequence[str] = ()) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.config, self.inputs = folder, config, list(inputs)
        self._held = ExitStack()
        self._output: PredictionFolder | None = None
        self._stage: FieldStage | None = None
        self._rows: list[_Row] = []
        self._shown = ShownSamples()
        self.predicting: list[str] = []
        """Ids of the batch in work, between batches none: a fault of theirs names no file."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the temporary folder that all ranks write into."""
        self._rows, self._shown = [], ShownSamples(follow_group=follows_group(pl_module))
        path: Path | None = None
        if trainer.is_global_zero:
            self._output = self._held.enter_context(PredictionFolder(self.folder))
            path = self._output.path
        path = trainer.strategy.broadcast(path)
        assert path is not None
        self._stage = self._held.enter_context(FieldStage(path, trainer.global_rank))

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *where: Any) -> None:
        """Remember which samples are in work."""
        self.predicting = [str(sample_id) for sample_id in batch.sample_id]

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep the numbers of a batch and put its arrays on disk."""
        assert self._stage is not None
        columns = {name: entries for name, entries in prediction._asdict().items() if entries is not None}
        for name, entries in columns.items():
            if len(entries) != len(batch.sample_id):
                raise ValueError(f"prediction {name} has {len(entries)} entries for {len(batch.sample_id)} samples")
        per_sample = {name: _entries(entries) for name, entries in columns.items()}
        for i, (sample_id, group) in enumerate(zip(batch.sample_id, batch.group, strict=True)):
            row = _Row(str(sample_id), str(group), {}, {}, {})
            for name, entries in per_sample.items():
                entry = entries[i]
                if isinstance(entry, Mapping):
                    row.tables[name] = _columns(name, entry)
                elif isinstance(entry, np.ndarray) and _is_picture(entry):
                    _write_picture(self._stage.folder / f"{file_stem(row.sample_id)}_{name}.png", entry)
                elif isinstance(entry, np.ndarray):
                    row.fields[name] = self._stage.add(row.sample_id, name, entry)
                else:
                    row.numbers[name] = entry
            self._rows.append(row)
        self._shown.add(batch)
        self.predicting = []

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather, sort, write, and put the folder in its place."""
        assert self._stage is not None
        self._stage.close()
        rows = self._rows
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        with self._held:
            if self._output is not None and rows:
                rows = sorted(rows, key=lambda row: row.sample_id)
                self._write(self._output.path, rows, pl_module)
                self._output.publish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing of an unfinished prediction."""
        self._held.close()

    def _write(self, folder: Path, rows: Sequence[_Row], module: LightningModule) -> None:
        names = {part: list(dict.fromkeys(name for row in rows for name in getattr(row, part))) for part in _PARTS}
        for part, known in names.items():
            for row in rows:
                for name in known:
                    if name not in getattr(row, part):
                        raise ValueError(
                            f"prediction {name} of sample {row.sample_id!r} is missing, or of another kind"
                        )
        with (folder / TABLE_NAME).open("x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["sample_id", "group", *names["numbers"]])
            for row in rows:
                writer.writerow([row.sample_id, row.group, *(row.numbers[name] for name in names["numbers"])])
        for name in names["tables"]:
            _write_table(folder / f"{name}.csv", [(row, row.tables[name]) for row in rows])
        if names["fields"]:
            staged = {name: [row.fields[name] for row in rows] for name in names["fields"]}
            write_fields(folder, [row.sample_id for row in rows], [row.group for row in rows], staged)
        summarize = getattr(module, "prediction_summary", None)
        if summarize is not None:
            write_json(folder / SUMMARY_NAME, summarize([row.numbers for row in rows]))
        write_config(folder, self.config)
        if self.inputs:
            write_json(folder / INPUTS_NAME, {"inputs": self.inputs})
        if self._shown.batches:
            with torch.inference_mode():
                write_figures(folder, cast(Any, module).figures(self._shown.joined()))


def predicted_inputs(folder: Path) -> list[str] | None:
    """The files and folders that the predictions in a folder are of; None where that is not recorded."""
    try:
        return list(json.loads((folder / INPUTS_NAME).read_text(encoding="utf-8"))["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


_PARTS = ("numbers", "fields", "tables")


def _columns(name: str, table: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A sample's table as lists; ValueError names one whose columns differ in length."""
    columns = {column: np.asarray(values).tolist() for column, values in table.items()}
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"prediction {name} must have columns of one length")
    return columns


def _write_table(path: Path, tables: Sequence[tuple[_Row, Mapping[str, list[Any]]]]) -> None:
    """One csv file of all samples' rows, each beginning with its sample and group."""
    names = list(tables[0][1])
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sample_id", "group", *names])
        for row, columns in tables:
            if list(columns) != names:
                raise ValueError(f"prediction {path.stem} of sample {row.sample_id!r} has other columns")
            writer.writerows([row.sample_id, row.group, *values] for values in zip(*columns.values(), strict=True))


def _is_picture(values: np.ndarray) -> bool:
    return values.dtype == np.uint8 and values.ndim == 3 and values.shape[-1] == 3


def _write_picture(path: Path, picture: np.ndarray) -> None:
    from matplotlib.image import imsave

    with clear_disk_errors(path.parent):
        imsave(path, picture)


def _entries(entries: Any) -> Sequence[Any]:
    """One number, text or array per sample; halves become singles, which other programs read."""
    if not isinstance(entries, torch.Tensor):
        return [_entries(one[None])[0] if isinstance(one, torch.Tensor) else one for one in entries]
    entries = entries.detach().cpu()
    if entries.dtype in (torch.float16, torch.bfloat16):
        entries = entries.float()
    return entries.tolist() if entries.ndim == 1 else list(entries.numpy())
