"""The command line: `mechanolab fit|validate|test|predict|data|sweep|compare|runs|doctor`.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
Exit codes: 0 finished; 1 failed, or `verify` found faults; 2 the request or its input is wrong; 75 preempted and
resumable.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing albumentations asks a server for its newest version

DESCRIPTION = "Train networks on cell-mechanics images: launch experiments, search, compare, look after data."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if not hasattr(options, "run"):
        parser.print_help()
        return 0
    from mechanolab.config import RequestError, RunFailedError

    try:
        options.overrides = _overrides(options, rest)
        return int(options.run(options))
    except RequestError as error:
        print(f"mechanolab: {error}", file=sys.stderr)
        return 2
    except RunFailedError as error:
        print(f"mechanolab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mechanolab: interrupted", file=sys.stderr)
        return 130
    except SystemExit as error:
        if type(error).__name__ != "Preempted":
            raise
        print("mechanolab: stopped on request; the same command starts again", file=sys.stderr)
        return 75
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "ShardError" not in type(error).__name__ and "ShardError" not in str(error):
            raise
        sentence = [line for line in str(error).splitlines() if line.strip()][-1]
        print(f"mechanolab: {sentence.split('ShardError: ')[-1]}", file=sys.stderr)
        return 2


def _overrides(options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """`key=value` words may stand anywhere among the options; anything else that is left over is a mistake."""
    from mechanolab.config import RequestError, nearest

    for word in rest:
        if word.startswith("-") and "=" not in word.lstrip("-").split(".")[0]:
            known = [flag for action in options.parser._actions for flag in action.option_strings]
            raise RequestError(f"unknown option {word}{nearest(word, known)}; see mechanolab {options.command} --help")
        if "=" not in word or not getattr(options, "takes_overrides", False):
            raise RequestError(f"'{word}' is not understood; see mechanolab {options.command} --help")
    return list(rest)


# -- commands ---------------------------------------------------------------------------------------------------------


def _fit(options: argparse.Namespace) -> int:
    from mechanolab.config import compose

    config = compose(options.experiment, values=_values(options), overrides=options.overrides)
    if options.print_config:
        return _print_config(config)
    name = Path(options.experiment).stem
    from mechanolab import launch

    if options.smoke:
        return launch.smoke(config, experiment=name)
    run_id, resume = options.run_id or os.environ.get("WANDB_RUN_ID"), options.resume
    if resume is not None and resume.is_dir() and run_id is None and (resume / "config.yaml").is_file():
        run_id = resume.name
    return launch.fit(config, experiment=name, run_id=run_id, resume=resume, keep_optimizer=options.keep_optimizer)


def _evaluate(options: argparse.Namespace) -> int:
    config = _run_config(options)
    from mechanolab import inference, recorded_tests
    from mechanolab.loggers import is_first_rank

    name, run_id, checkpoint = Path(options.experiment).stem, options.run_id, options.checkpoint
    new_run = getattr(options, "new_run", None) or (
        os.environ.get("WANDB_RUN_ID") if options.command == "test" else None
    )
    metrics: dict[str, float] | None
    if new_run is not None:
        metrics = recorded_tests.record(
            config, experiment=name, run_id=new_run, tested_run=run_id, checkpoint=checkpoint
        )
    else:
        metrics = inference.evaluate(
            config, stage=options.command, experiment=name, run_id=run_id, checkpoint=checkpoint
        )
    for metric, value in sorted((metrics or {}).items()) if is_first_rank() else ():
        print(f"{metric:<36} {value:.6g}")
    return 75 if metrics is None else 0


def _predict(options: argparse.Namespace) -> int:
    # --input takes every word up to the next option, also a key=value that stands behind the files
    settings = [word for word in options.input or () if "=" in word and not Path(word).exists()]
    inputs = [Path(word) for word in options.input or () if word not in settings]
    options.overrides += settings
    config = _run_config(options)
    from mechanolab import inference
    from mechanolab.loggers import is_first_rank

    out = inference.predict(
        config,
        experiment=Path(options.experiment).stem,
        run_id=options.run_id,
        checkpoint=options.checkpoint,
        split=options.split,
        inputs=inputs,
        pixel_size_um=options.pixel_size_um,
        own_dataset=_run_config(options, as_made=True)["data"].get("dataset"),
    )
    if is_first_rank():
        print(f"predictions: {out}")
    return 0


def _run_config(options: argparse.Namespace, *, as_made: bool = False) -> dict[str, Any]:
    """A run's own configuration, or the experiment's where no run is named; `as_made` without the words' changes."""
    from mechanolab.config import compose, override, where_data_lie
    from mechanolab.runs import read_config, run_folder

    values, overrides = (None, []) if as_made else (_values(options), options.overrides)
    if options.run_id is None:
        return compose(options.experiment, values=values, overrides=overrides)
    folder = run_folder(Path(options.experiment).stem, options.run_id)
    if not folder.is_dir():
        from mechanolab.checkpoints import checkpoint_file

        checkpoint_file(folder, "best")
    config = read_config(folder)
    config["data"]["data_root"] = where_data_lie(config["data"]["data_root"])
    return override(config, overrides, values=values)


def _values(options: argparse.Namespace) -> dict[str, Any] | None:
    """What --config-json gives, of a command that has it."""
    from mechanolab.config import RequestError

    text = getattr(options, "config_json", None)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"--config-json is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise RequestError("--config-json must be an object such as '{\"module.learning_rate\": 0.001}'")
    return values


def _print_config(config: dict[str, Any]) -> int:
    import yaml

    print(yaml.safe_dump(config, sort_keys=False), end="")
    return 0


def _help(options: argparse.Namespace) -> int:
    options.parser.print_help()
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from mechanolab import data
    from mechanolab.config import parse_override

    numbers = dict(parse_override(word) for word in options.overrides)
    return data.simulate(
        options.stem,
        out=options.out,
        count=options.count,
        seed=options.seed,
        workers=options.workers,
        parameters=numbers,
    )


def _convert(options: argparse.Namespace) -> int:
    from mechanolab import data

    return data.convert(options.stem, source=options.source, out=options.out)


def _inspect(options: argparse.Namespace) -> int:
    from mechanolab import data

    return data.inspect(options.folder)


def _verify(options: argparse.Namespace) -> int:
    from mechanolab import data

    return data.verify(options.folder)


def _merge(options: argparse.Namespace) -> int:
    from mechanolab import data_sets

    return data_sets.merge(options.folders, out=options.out, prefix=options.prefix)


def _split(options: argparse.Namespace) -> int:
    from mechanolab import data_sets

    given = {split: getattr(options, split) for split in ("train", "val", "test")}
    return data_sets.split(
        options.folder,
        name=options.name,
        shares={split: share for split, share in given.items() if share is not None},
        folds=options.folds,
        seed=options.seed,
        by_sample=options.by_sample_leaks,
    )


def _export(options: argparse.Namespace) -> int:
    from mechanolab import data_sets

    fields = None if options.fields is None else options.fields.split(",")
    return data_sets.export(
        options.folder, out=options.out, file_format=options.format, fields=fields, split=options.split
    )


def _sweep(options: argparse.Namespace) -> int:
    from mechanolab.sweeps import local, wandb_agent
    from mechanolab.sweeps.sweep_file import load_sweep

    more = {"arguments": options.overrides, "experiment": options.experiment}
    sweep = load_sweep(options.sweep, name=options.name, **more)
    if options.dry_run:
        return local.dry_run(sweep)
    if options.wandb:
        return wandb_agent.register_and_run(sweep, workers=options.workers)
    return local.run_sweep(sweep, workers=options.workers, retry_failed=options.retry_failed)


def _compare(options: argparse.Namespace) -> int:
    from mechanolab.compare.report import compare

    compare(options.names, out=options.out, exact=options.exact)
    return 0


def _runs(options: argparse.Namespace) -> int:
    from mechanolab import overview

    return overview.list_runs(options.name)


def _doctor(options: argparse.Namespace) -> int:
    from mechanolab import overview

    return overview.doctor()


# -- the parser -------------------------------------------------------------------------------------------------------


def _place(text: str) -> Path | str:
    """A folder, or a URL as it is: a path would lose one of its slashes."""
    return text if "://" in text else Path(text)


def _here(text: str) -> Path:
    """A folder that a command reads originals from, writes or changes; as a path, a URL would become a local folder."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is remote; use a local folder")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mechanolab", description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, run: Any, text: str, parent: Any = commands, **defaults: Any) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run, command=name, parser=added, **defaults)
        return added

    fit = command("fit", _fit, "train an experiment, then test its best checkpoint", takes_overrides=True)
    fit.usage = "mechanolab fit EXPERIMENT [key=value ...] [options]"
    fit.add_argument("experiment", help="a name in experiments/ or the path of a YAML file")
    fit.add_argument("--config-json", metavar="JSON", help="values of a sweep, with their types")
    fit.add_argument("--print-config", action="store_true", help="show the merged configuration and stop")
    fit.add_argument("--run-id", metavar="ID", help="create or continue runs/<experiment>/ID")
    fit.add_argument("--resume", type=Path, metavar="PATH", help="go on from a checkpoint or a run folder")
    fit.add_argument(
        "--keep-optimizer", action="store_true", help="keep the optimizer's state in the final checkpoints"
    )
    fit.add_argument("--smoke", action="store_true", help="one batch on a four-sample fixture; leaves nothing behind")

    for name, text in (("validate", "validation metrics of a run"), ("test", "test metrics of a run")):
        evaluate = command(name, _evaluate, text, takes_overrides=True)
        evaluate.usage = f"mechanolab {name} EXPERIMENT [--run ID] [key=value ...] [options]"
        evaluate.add_argument("experiment")
        evaluate.add_argument("--run", dest="run_id", metavar="ID", help="which run (mechanolab runs lists them)")
        evaluate.add_argument("--checkpoint", default="best", metavar="best|last|FILE")
        if name == "test":
            evaluate.add_argument("--run-id", dest="new_run", metavar="NEW", help="keep the result as a run of its own")
            evaluate.add_argument("--config-json", metavar="JSON", help="values of a sweep, with their types")

    predict = command("predict", _predict, "write predictions for a split or for your own images", takes_overrides=True)
    predict.usage = "mechanolab predict EXPERIMENT [--run ID] [key=value ...] [options]"
    predict.add_argument("experiment")
    predict.add_argument("--run", dest="run_id", metavar="ID", help="not needed where nothing is trained")
    predict.add_argument("--checkpoint", default="best", metavar="best|last|FILE")
    predict.add_argument("--split", default="test", choices=("train", "val", "test"))
    predict.add_argument("--input", nargs="+", metavar="FILE|FOLDER", help="your own images or fields")
    predict.add_argument("--pixel-size-um", type=float, metavar="UM", help="pixel size of your own images")

    data = commands.add_parser(
        "data", help="simulate, convert, verify, inspect, merge, split, export data sets", allow_abbrev=False
    )
    data.set_defaults(run=_help, command="data", parser=data)
    kinds = data.add_subparsers(title="commands", metavar="COMMAND")
    simulate = command("simulate", _simulate, "make a synthetic data set", kinds, takes_overrides=True)
    simulate.usage = "mechanolab data simulate STEM [key=value ...] [options]"
    simulate.add_argument("stem", help="the paper, for example circular")
    simulate.add_argument("--out", type=_here, metavar="DIR", help="default: data/<stem>/twin")
    simulate.add_argument("--count", type=int, metavar="N", help="number of samples")
    simulate.add_argument("--seed", type=int, default=0, metavar="S")
    simulate.add_argument("--workers", type=int, metavar="W", help="default: one per core")
    convert = command("convert", _convert, "turn original recordings into a data set", kinds)
    convert.add_argument("stem")
    convert.add_argument("--source", type=_here, required=True, metavar="DIR", help="the original archive")
    convert.add_argument("--out", type=_here, metavar="DIR", help="default: data/<stem>/<name of the source>")
    inspect = command("inspect", _inspect, "show fields, units, counts; write a contact sheet", kinds)
    inspect.add_argument("folder", type=_place, metavar="DIR|URL")
    verify = command("verify", _verify, "check every byte of a data set", kinds)
    verify.add_argument("folder", type=_place, metavar="DIR|URL")

    merge = command("merge", _merge, "make one data set of several, keeping the splits they share", kinds)
    merge.add_argument("folders", type=_place, nargs="+", metavar="DIR|URL")
    merge.add_argument("--out", type=_here, required=True, metavar="DIR", help="the new data set's own folder")
    merge.add_argument("--prefix", action="store_true", help="put each data set's name before its ids and groups")
    split = command("split", _split, "add a split scheme or folds; no shard is touched", kinds)
    split.add_argument("folder", type=_here, metavar="DIR")
    split.add_argument("--name", metavar="NAME", help="of the scheme; of folds the part before the number: fold")
    for part in ("train", "val", "test"):
        split.add_argument(f"--{part}", type=float, metavar="SHARE", help="share of the samples, by whole groups")
    split.add_argument("--folds", type=int, metavar="K", help="instead of shares: every group is tested in one fold")
    split.add_argument("--seed", type=int, default=0, metavar="S")
    split.add_argument("--by-sample-leaks", action="store_true", help="split samples: groups leak from train to test")
    export = command("export", _export, "write samples as NumPy or TIFF files and a table", kinds)
    export.add_argument("folder", type=_place, metavar="DIR|URL")
    export.add_argument("--out", type=_here, required=True, metavar="DIR", help="a new folder")
    export.add_argument("--format", default="npy", choices=("npy", "tiff"))
    export.add_argument("--fields", metavar="A,B", help="default: all")
    export.add_argument("--split", metavar="SCHEME:SPLIT", help="for example default:test; default: every sample")

    sweep = command("sweep", _sweep, "run a sweep file to its end, or go on with it", takes_overrides=True)
    sweep.usage = "mechanolab sweep SWEEP [key=value ...] [options]"
    sweep.add_argument("sweep", help="a name in sweeps/ or the path of a YAML file")
    sweep.add_argument("--workers", type=int, metavar="N", help="trials at a time; default: one per GPU, else per core")
    sweep.add_argument("--name", metavar="NAME", help="begin or continue under another name")
    sweep.add_argument("--experiment", metavar="NAME", help="in place of the one that the sweep file names")
    sweep.add_argument("--wandb", action="store_true", help="let W&B choose the trials (needs a key)")
    sweep.add_argument("--retry-failed", action="store_true", help="try failed trials once more")
    sweep.add_argument("--dry-run", action="store_true", help="print the trials' command lines")

    compare = command("compare", _compare, "table and HTML report of runs")
    compare.add_argument("names", nargs="+", metavar="NAME", help="experiments (with their variants), sweeps, runs")
    compare.add_argument("--exact", action="store_true", help="without the variants that are based on an experiment")
    compare.add_argument("--out", type=Path, metavar="DIR", help="default: runs/reports/<name>")

    listing = command("runs", _runs, "list runs")
    listing.add_argument("name", nargs="?", help="an experiment or sweep; default: all")
    command("doctor", _doctor, "say what is installed and what will be used")
    return parser
