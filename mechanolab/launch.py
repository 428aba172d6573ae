"""From a composed configuration to a seeded Trainer, module, data module, loggers and callbacks, and through a run.

Everything that can be refused is refused before the run folder is made: the configuration, then both constructors,
then the data.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar

from datamodules.shards.remote import is_remote
from mechanolab import runs
from mechanolab.callbacks.exact_resume import ExactResume, Preempted, batches_seen, derive_seed, stop_on_request
from mechanolab.callbacks.figures import FigureWriter
from mechanolab.callbacks.run_record import RunRecord
from mechanolab.checkpoints import checkpoint_to_resume, keep_weights_only, load_weights, order_within_epoch, steps_in
from mechanolab.config import INDIFFERENT, RequestError, check, checkout, flatten, import_class, last_line
from mechanolab.loggers import MetricsFile, finish_wandb, is_first_rank, start_wandb

PREEMPTED = 75
ORDER = {
    "batch_size": "data.batch_size",
    "world_size": "processes (trainer.devices times trainer.num_nodes):",
    "seed": "seed",
    "length": "training samples:",
}
"""What the numbers of an order of batches are to the user."""


class Parts(NamedTuple):
    """A constructed experiment."""

    config: dict[str, Any]
    module: LightningModule
    data: Any
    """A LightningDataModule with the project's own `stem`, `smoke`, `has_split` and `predict_on`."""


def construct(config: dict[str, Any]) -> Parts:
    """Construct module and data module of a composed configuration, seeded.

    Raises:
        RequestError: a constructor refuses an argument; the message begins with the key's dotted path.
    """
    _quieten()
    if config["trainer"].get("max_epochs") is None and config["trainer"].get("max_steps", -1) == -1:
        raise RequestError("trainer.max_epochs is missing: set it in the experiment file")
    torch.manual_seed(derive_seed(config["seed"], "weights"))
    module = _construct("module", config["module"], "lightning_modules", {})
    root = config["data"]["data_root"]
    if not is_remote(root):
        root = str(checkout() / Path(root).expanduser())  # an absolute path stays what it is
    extra = {"seed": config["seed"], "data_root": root}
    data = _construct("data", config["data"], "datamodules", extra)
    return Parts(config, module, data)


def fit(
    config: dict[str, Any],
    *,
    experiment: str,
    run_id: str | None = None,
    resume: Path | None = None,
    keep_optimizer: bool = False,
) -> int:
    """Create or continue a run, train, test the best checkpoint, and leave the run folder finished.

    Returns:
        0 finished, 75 preempted (the same call goes on where it stopped).

    Raises:
        RequestError: something of the request is wrong; nothing was made.
        RunFailedError: training failed in a known way; the run is marked failed.
    """
    parts = construct(config)
    if parts.module.training_free:
        raise RequestError(f"{config['module']['class_path']} needs no training; use: mechanolab test {experiment}")
    set_up(parts.data, "fit")
    run_id = run_id or runs.new_run_id()
    folder = runs.run_folder(experiment, run_id)
    if is_first_rank() and already_finished(folder, config):
        return 0
    checkpoint = checkpoint_to_resume(folder, resume)
    trainer, exact_resume = make_trainer(parts, folder)
    _check_position(parts, trainer, checkpoint)
    with contextlib.ExitStack() as held:
        # the other ranks are this command again, and must join the same run
        held.enter_context(environment_variables(WANDB_RUN_ID=run_id))
        if is_first_rank():
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            held.enter_context(runs.lock_run(folder))
            if already_finished(folder, config):  # by another process, in the meantime
                return 0
            _open_run(parts, folder, experiment=experiment, checkpoint=checkpoint)
        try:
            with stop_on_request():
                _train(parts, trainer, exact_resume, folder, run_id=run_id, checkpoint=checkpoint)
        except Preempted:
            mark_run(folder, "preempted", message="stopped on request; the same command goes on from here")
            print(f"run {experiment}/{run_id} stopped at a checkpoint; the same --run-id goes on", file=sys.stderr)
            return PREEMPTED
        except BaseException as error:
            mark_run(folder, "failed", message=last_line(error))
            raise
        mark_run(folder, "finished", message=None)  # first: nothing can go on from a checkpoint of weights only
        if is_first_rank() and not keep_optimizer:
            for path in (folder / "checkpoints").glob("*.ckpt"):
                keep_weights_only(path)
    return 0


def smoke(config: dict[str, Any], *, experiment: str) -> int:
    """Run one training and one validation batch on four simulated samples, and leave nothing behind.

    What needs no training is tested on one batch instead.
    """
    from mechanolab import data as data_commands
    from mechanolab import recorded_tests

    config = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    data_class = import_class(config["data"]["class_path"], package="datamodules", key="data.class_path")
    with tempfile.TemporaryDirectory(prefix="mechanolab-smoke-") as scratch:
        stem = data_class.stem  # type: ignore[attr-defined]
        data_commands.simulate(stem, out=Path(scratch) / "data" / stem / "twin", count=4, seed=0, workers=1)
        config["data"].update(data_class.smoke, data_root=f"{scratch}/data")  # type: ignore[attr-defined]
        module_class: Any = import_class(config["module"]["class_path"], package="lightning_modules", key="module")
        config["module"].update(getattr(module_class, "smoke", {}))
        config["trainer"].update(
            max_epochs=1, limit_train_batches=1, limit_val_batches=1, limit_test_batches=1, log_every_n_steps=1
        )
        check(config, "the smoke run")
        with environment_variables(MECHANOLAB_RUNS=f"{scratch}/runs", WANDB_MODE="disabled"):
            if module_class.training_free:
                metrics = recorded_tests.record(config, experiment=experiment, run_id="smoke", tested_run=None)
                code = PREEMPTED if metrics is None else 0
            else:
                code = fit(config, experiment=experiment, run_id="smoke")
            run = runs.read_run(Path(scratch) / "runs" / experiment / "smoke")
    print(f"smoke {experiment}: " + "  ".join(f"{k} {v:.4g}" for k, v in run.summary.items() if k != "best"))
    return code


# -- the run ----------------------------------------------------------------------------------------------------------


def _open_run(parts: Parts, folder: Path, *, experiment: str, checkpoint: Path | None) -> None:
    """Write what a run folder says before the first step, and drop what a checkpoint does not know of."""
    step = steps_in(checkpoint)
    runs.write_config(folder, parts.config)
    runs.truncate_metrics(folder / "metrics.jsonl", step)
    runs.write_json(folder / "environment.json", environment_of(parts))
    facts = {"experiment": experiment, "group": group_of(experiment), "parameters": _parameter_counts(parts.module)}
    runs.write_status(folder, "running", **facts, message=None)
    doing = "continues" if checkpoint else "starts"
    print(f"run {experiment}/{folder.name} {doing} at step {step}", file=sys.stderr)


def environment_of(parts: Parts) -> dict[str, Any]:
    """What a run stands on, the precision that this machine computes in among it."""
    return {**runs.environment(parts.data.data_folder), "precision": precision_of(parts.config["trainer"])}


def _parameter_counts(module: LightningModule) -> dict[str, int]:
    """Trainable parameters of every part of a module that has any."""
    parts = {name: [p.numel() for p in part.parameters() if p.requires_grad] for name, part in module.named_children()}
    return {name: sum(sizes) for name, sizes in parts.items() if sizes}


@contextlib.contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """Set environment variables for as long as the block runs."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def group_of(experiment: str) -> str:
    """What a run is listed under: the sweep that started it, else its experiment."""
    return os.environ.get("WANDB_RUN_GROUP") or experiment


def _train(
    parts: Parts, trainer: Trainer, resume: ExactResume, folder: Path, *, run_id: str, checkpoint: Path | None
) -> None:
    def steps() -> int:
        return batches_seen(trainer)

    group = group_of(folder.parent.name)
    wandb_run = start_wandb(folder, run_id=run_id, group=group, config=parts.config, batches_seen=steps)
    trainer.loggers = [MetricsFile(folder / "metrics.jsonl", steps), *([wandb_run] if wandb_run else [])]
    with finish_wandb(wandb_run, lambda: {"best_epoch": resume.best_epoch, "best_score": resume.best_score}):
        trainer.fit(parts.module, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
        best = folder / "checkpoints" / "best.ckpt"
        if best.is_file():
            load_weights(parts.module, best)
        if parts.data.has_split("test"):
            trainer.test(parts.module, datamodule=parts.data, verbose=False)


def make_trainer(parts: Parts, folder: Path | None, *, extra: Sequence[Callback] = ()) -> tuple[Trainer, ExactResume]:
    """A Trainer with the project's callbacks; those that write into a run folder only where there is one.

    Raises:
        RequestError: Lightning refuses a trainer option.
    """
    monitor = parts.config["monitor"]

    def missing_metric(logged: list[str]) -> None:
        raise RequestError(
            f"monitor.metric '{monitor['metric']}' is not logged by {parts.config['module']['class_path']}; "
            f"it logs: {', '.join(logged) or 'nothing'}"
        )

    resume = ExactResume(
        folder / "checkpoints" if folder is not None else None,
        seed=parts.config["seed"],
        metric=monitor["metric"],
        mode=monitor["mode"],
        missing_metric=missing_metric,
    )
    callbacks: list[Callback] = [resume, *extra]
    if folder is not None:
        callbacks += [RunRecord(folder, monitor["metric"]), FigureWriter(folder / "figures")]
    terminal = sys.stderr.isatty() and sys.stdout.isatty()
    if terminal:
        callbacks.append(RichProgressBar())
    options = dict(parts.config["trainer"])
    options["strategy"] = _strategy(options, parts.module)
    options["precision"] = precision_of(options)
    try:
        trainer = Trainer(
            **options,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=True,
            enable_progress_bar=terminal,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise RequestError(f"trainer: {last_line(error)}") from None
    return trainer, resume


def _strategy(options: Mapping[str, Any], module: LightningModule) -> Any:
    """The asked-for strategy; plain data parallelism learns from the module whether parameters may go unused."""
    strategy = options.get("strategy", "auto")
    devices = options.get("devices", "auto")
    if devices in ("auto", -1, "-1"):
        count = torch.cuda.device_count() if _on_cuda(options) else 1
    else:
        count = len(devices) if isinstance(devices, list) else int(devices)
    if module.needs_find_unused_parameters and (strategy == "ddp" or (strategy == "auto" and count > 1)):
        return "ddp_find_unused_parameters_true"
    return strategy


def precision_of(options: Mapping[str, Any]) -> Any:
    """The asked-for precision; `auto` is bfloat16 where the machine computes in it, single precision elsewhere.

    A processor without it emulates it, many times slower than single precision.
    """
    precision = options.get("precision")
    if precision != "auto":
        return precision
    if _on_cuda(options):
        computes = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities()
        computes = bool(known.get("amx_bf16") or known.get("avx512_bf16"))
    return "bf16-mixed" if computes else "32-true"


def _on_cuda(options: Mapping[str, Any]) -> bool:
    return options.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()


# -- continuing and finishing -----------------------------------------------------------------------------------------


def _check_position(parts: Parts, trainer: Trainer, checkpoint: Path | None) -> None:
    """A checkpoint from within an epoch counts batches of its own order: in another it would point elsewhere."""
    before = order_within_epoch(checkpoint)
    if not before:
        return
    now = {**parts.data.train_dataloader().batch_sampler.numbers, "world_size": trainer.world_size}
    for name, number in before.items():
        if now.get(name) != number:
            raise RequestError(
                f"checkpoint {checkpoint} stands within an epoch with {ORDER[name]} {number}, not {now.get(name)}: go "
                "on with the same, or begin another run"
            )


def already_finished(folder: Path, config: Mapping[str, Any], **facts: Any) -> bool:
    """Whether the run asked for stands finished in its folder.

    Args:
        folder: of the run.
        config: what it is to be made with.
        facts: what status.json must say besides; a recorded test has `tested_run` among them, a trained run has not.

    Raises:
        RequestError: another run stands there.
    """
    if not (folder / "config.yaml").is_file():
        return False
    name = f"run {folder.parent.name}/{folder.name}"
    stored, status = runs.read_config(folder), runs.read_status(folder)
    if ("tested_run" in status) != ("tested_run" in facts):
        kind = "records a test" if "tested_run" in status else "was trained"
        raise RequestError(f"{name} {kind}; choose another --run-id")
    made = {**flatten(stored), **{key: status.get(key) for key in facts}}
    asked = {**flatten(config), **facts}
    for key in sorted({*made, *asked} - {*INDIFFERENT}):
        if made.get(key) != asked.get(key):
            raise RequestError(
                f"{name} was made with {key} = {made.get(key)!r}, not {asked.get(key)!r}; choose another --run-id"
            )
    if status.get("state") == "finished":
        print(f"{name} is finished already; nothing to do", file=sys.stderr)
        return True
    return False


def mark_run(folder: Path, state: str, **facts: Any) -> None:
    """Set the state of a run, from the first rank only."""
    if is_first_rank():
        runs.write_status(folder, state, **facts)


# -- small things -----------------------------------------------------------------------------------------------------


def _construct(section: str, values: Mapping[str, Any], package: str, extra: Mapping[str, Any]) -> Any:
    cls = import_class(values["class_path"], package=package, key=f"{section}.class_path")
    arguments = {key: value for key, value in values.items() if key != "class_path"}
    try:
        return cls(**{**arguments, **extra})
    except (ValueError, FileNotFoundError) as error:
        raise RequestError(f"{section}.{last_line(error)}") from None


def set_up(data: LightningDataModule, stage: str) -> None:
    """Look for the data and open it.

    Raises:
        RequestError: it is missing or wrong; the message says how to make it.
    """
    try:
        data.prepare_data()
        data.setup(stage)
    except (ValueError, OSError) as error:
        raise RequestError(last_line(error)) from None


def _quieten() -> None:
    """Lightning's start-up lines and its advice to use more workers say nothing that the run folder does not."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*isn't supported on CPU.*")
