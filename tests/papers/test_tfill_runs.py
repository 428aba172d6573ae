"""Paper `tfill` through the command: a run cut within an epoch, two processes, predictions, the comparison."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import pytest
import torch
from matplotlib.image import imread

from lightning_modules import tfill
from mechanolab import data, launch
from mechanolab.callbacks.exact_resume import ExactResume
from mechanolab.cli import main
from mechanolab.compare.report import as_mapping
from mechanolab.config import RequestError, compose
from mechanolab.runs import read_metrics, read_run, read_status

TILE_PX = 32
WORDS = {
    "tfill_small": [
        "module.width=2", "module.layers=1", f"module.image_size_px={TILE_PX}", "module.noise=true",
        "module.ema_decay=0.9", "module.r1_gamma=1.0", "module.r1_every=2", "module.clip_gradient_norm=1.0",
    ],
    "tfill_pix2pix": ["module.levels=5", "module.width=2"],
    "tfill_cyclegan": ["module.blocks=1", "module.width=2", "module.pool_size=3"],
}  # fmt: skip
CLASSES = {"tfill_small": "TFill", "tfill_pix2pix": "Pix2Pix", "tfill_cyclegan": "CycleGAN"}
SHARED = [
    f"data.load_px={TILE_PX + 4}", f"data.crop_px={TILE_PX}", "data.num_workers=0", "data.batch_size=2",
    "data.dataset=twin", "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu",
    "trainer.limit_train_batches=4",
]  # fmt: skip
BATCHES = 4
WATCHED = """
import sys
import torch
from lightning_modules.tfill import TFillTranslation
from mechanolab.cli import main

folder, seen, step = sys.argv[1], [], TFillTranslation.training_step

def training_step(self, batch, batch_idx):
    seen.append(batch.sample_id)
    return step(self, batch, batch_idx)

def on_train_end(self):
    names = {name for name, _ in self.named_parameters()}
    state = {name: value for name, value in self.state_dict().items() if name in names}
    torch.save({"first": seen[0], "state": state}, f"{folder}/rank{self.global_rank}.pt")

TFillTranslation.training_step, TFillTranslation.on_train_end = training_step, on_train_end
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runs folder of this file's tests, beside a data root that holds tfill/twin."""
    root = tmp_path_factory.mktemp("data")
    data.simulate("tfill", out=root / "tfill" / "twin", count=16, seed=1, workers=1, parameters={"tile_px": 64})
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MECHANOLAB_DATA", str(root))
        patch.setenv("MECHANOLAB_RUNS", str(runs))
        patch.setenv("WANDB_MODE", "disabled")
        patch.delenv("WANDB_RUN_ID", raising=False)
        patch.delenv("WANDB_RUN_GROUP", raising=False)
        yield runs


class PowerCut(BaseException):
    """What a kill looks like from inside."""


def fit(name: str, run_id: str) -> int:
    config = compose(name, overrides=[*SHARED, *WORDS[name]])
    return launch.fit(config, experiment=name, run_id=run_id)


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDS)
def test_a_run_cut_in_the_middle_of_an_epoch_ends_bit_for_bit_as_the_whole_run(
    name: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two optimizers, noise, dropout, mean weights, a lazy penalty, schedules and the pool of past images."""
    assert fit(name, "whole") == 0
    module = getattr(tfill, f"{CLASSES[name]}Translation")
    original, done = module.training_step, 0

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal done
        if done == BATCHES + 2:
            raise PowerCut
        done += 1
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ExactResume, "save_every_s", 0.0)
    monkeypatch.setattr(module, "training_step", step)
    with pytest.raises(PowerCut):
        fit(name, "cut")
    folder, whole = places / name / "cut", places / name / "whole"
    stopped = checkpoint(folder)
    assert stopped["batches_seen"] == stopped["global_step"] == BATCHES + 2
    monkeypatch.undo()
    assert fit(name, "cut") == 0
    one, other = checkpoint(whole)["state_dict"], checkpoint(folder)["state_dict"]
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
    lines = [
        [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(f / "metrics.jsonl")]
        for f in (whole, folder)
    ]
    assert lines[0] == lines[1]
    assert max(line["step"] for line in lines[0]) == 2 * BATCHES


@pytest.mark.slow
def test_two_processes_train_without_being_told_how_and_stay_alike(places: Path, tmp_path: Path) -> None:
    """Every process sees other images; equal weights at the end mean that both sides' gradients were averaged."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    words = [*SHARED, *WORDS["tfill_small"], "trainer.devices=2", "trainer.limit_train_batches=2"]
    command = [sys.executable, str(script), str(tmp_path), "fit", "tfill_small", *words, "--run-id", "two"]
    checkout = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": checkout}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_status(places / "tfill_small" / "two")["state"] == "finished"
    assert checkpoint(places / "tfill_small" / "two")["global_step"] == 4
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0]["first"] != ranks[1]["first"]
    for name, value in ranks[0]["state"].items():
        torch.testing.assert_close(value, ranks[1]["state"][name], rtol=0, atol=0)
    start = compose("tfill_small", overrides=[*SHARED, *WORDS["tfill_small"]])
    begun = launch.construct(start).module.state_dict()
    for side in ("generator.encoder.first.weight", "discriminator.blocks.0.weight"):
        assert not torch.equal(begun[side], ranks[0]["state"][side])
    assert read_run(places / "tfill_small" / "two").summary["test/area_share_real"] > 0


@pytest.mark.slow
def test_a_prediction_is_images_nuclei_overlays_and_a_summary_that_agree(places: Path) -> None:
    assert fit("tfill_small", "seen") == 0
    assert main(["predict", "tfill_small", "--run", "seen"]) == 0
    folder = places / "tfill_small" / "seen" / "predictions" / "test"
    images, nuclei = table(folder / "predictions.csv"), table(folder / "nuclei.csv")
    summary = json.loads((folder / "summary.json").read_text())
    for image in images:
        own = [row for row in nuclei if row["sample_id"] == image["sample_id"]]
        generated = [row for row in own if row["kind"] == "generated"]
        assert len(generated) == float(image["nuclei_generated"])
        assert len(own) - len(generated) == float(image["nuclei_real"])
        near = [row for row in generated if float(row["distance_um"] or "nan") < 4]
        assert len(near) == float(image["matched_4um"])
        assert (folder / f"{image['sample_id']}_nucleus.tif").is_file()
        assert imread(folder / f"{image['sample_id']}_overlay.png").shape[:2] == (TILE_PX, TILE_PX)
        assert imread(folder / f"{image['sample_id']}_side_by_side.png").shape[:2] == (TILE_PX, 3 * TILE_PX)
    assert summary["images"] == len(images)
    assert summary["sum_nuclei_real"] == sum(float(image["nuclei_real"]) for image in images)
    tested = read_run(places / "tfill_small" / "seen").summary
    assert summary["f1"] == pytest.approx(tested["test/f1"], abs=1e-6)
    with h5py.File(folder / "predictions.h5") as file:
        assert file["nucleus"].shape == (len(images), 1, TILE_PX, TILE_PX)
        assert 0 <= file["nucleus"][:].min() <= file["nucleus"][:].max() <= 1
    from lightning_modules.figures.tfill import comparison

    figures = comparison([as_mapping(read_run(places / "tfill_small" / "seen"))])
    assert {"figure_2e", "figure_2d"} <= set(figures)
    limits = [cell.get_text().get_text() for cell in figures["figure_2e"].axes[0].tables[0].get_celld().values()]
    assert "best possible" in limits
    module = launch.construct(compose("tfill_small", overrides=[*SHARED, *WORDS["tfill_small"]])).module
    sizes = [sum(parameter.numel() for parameter in side) for side in module.sides()]
    assert read_status(folder.parents[1])["parameters"] == dict(zip(("generator", "discriminator"), sizes, strict=True))
    assert f"{sizes[0] / 1e6:.2f} + {sizes[1] / 1e6:.2f}" in limits


def test_absent_weights_of_the_loss_are_told_by_the_settings_name(tmp_path: Path) -> None:
    words = ["module.perceptual_weight=10", f"module.pretrained_weights={tmp_path}/absent.pth", *WORDS["tfill_small"]]
    with pytest.raises(RequestError, match=r"^module\.pretrained_weights: there is no file .*absent\.pth; give"):
        launch.construct(compose("tfill_small", overrides=[*SHARED, *words]))


@pytest.mark.slow
def test_a_run_that_ends_before_its_first_validation_is_kept_and_tested(places: Path) -> None:
    words = [*SHARED, *WORDS["tfill_pix2pix"], "trainer.max_steps=2"]
    assert launch.fit(compose("tfill_pix2pix", overrides=words), experiment="tfill_pix2pix", run_id="short") == 0
    assert checkpoint(places / "tfill_pix2pix" / "short")["global_step"] == 2
    run = read_run(places / "tfill_pix2pix" / "short")
    assert run.status["state"] == "finished"
    assert "test/f1" in run.summary
    assert not any(name.startswith("val/") for name in run.summary)


def test_metrics_without_their_weights_are_left_out_with_one_warning_each(tmp_path: Path) -> None:
    absent = [f"module.lpips_weights={tmp_path}/absent.pth", f"module.fid_weights={tmp_path}/absent.pth"]
    module = launch.construct(compose("tfill_pix2pix", overrides=[*SHARED, *WORDS["tfill_pix2pix"], *absent])).module
    assert (module.pretrained["lpips"], module.pretrained["fid"]) == (None, None)
    module.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), is_global_zero=True)  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="is left out") as caught:
        module.on_fit_start()
    assert sorted(str(warning.message).partition(" there is no")[0] for warning in caught) == [
        "test/fid is left out: module.fid_weights: the package torch-fidelity is not installed (extra fid), or give "
        "null",
        "test/lpips is left out: module.lpips_weights:",
    ]
    module.on_test_start()  # silent: warnings are errors


class Distance(torch.nn.Module):
    """In the place of a pretrained network: mean absolute difference, and how many images of each kind it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.real_features_num_samples = self.generated = 0

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        assert min(one.min(), other.min()) >= -1
        assert max(one.max(), other.max()) <= 1
        return (one - other).abs().mean(dim=(1, 2, 3))

    def update(self, images: torch.Tensor, *, real: bool) -> None:
        assert images.shape[1] == 3
        assert 0 <= images.min() <= images.max() <= 1
        self.real_features_num_samples += len(images) if real else 0
        self.generated += 0 if real else len(images)

    def compute(self) -> torch.Tensor:
        return torch.tensor(100.0 * self.real_features_num_samples + self.generated)

    def reset(self) -> None:
        self.real_features_num_samples = self.generated = 0


def test_pretrained_distances_are_part_of_the_loss_and_of_the_test(places: Path) -> None:
    words = [*SHARED, *WORDS["tfill_small"], "module.perceptual_weight=10", "trainer.max_epochs=1"]
    parts = launch.construct(compose("tfill_small", overrides=words))
    parts.module.pretrained.update(loss=Distance(), lpips=Distance(), fid=Distance())
    launch.set_up(parts.data, "fit")
    trainer, _ = launch.make_trainer(parts, None)
    trainer.fit(parts.module, datamodule=parts.data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["train/perceptual"] > 0
    rest = 10 * logged["train/reconstruction"] + logged["train/adversarial"]
    assert logged["train/loss"] == pytest.approx(rest + 10 * logged["train/perceptual"], rel=1e-4)
    tested = trainer.test(parts.module, datamodule=parts.data, verbose=False)[0]
    images = len(parts.data.test_dataloader().dataset)
    assert tested["test/fid"] == 101 * images
    assert tested["test/lpips"] == pytest.approx(2 * tested["test/l1"], rel=1e-5)  # in [-1, 1] and in [0, 1]


def test_a_fit_says_that_its_loss_goes_without_lpips() -> None:
    words = [*SHARED, *WORDS["tfill_small"], "module.perceptual_weight=10"]
    module = launch.construct(compose("tfill_small", overrides=words)).module
    module.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), is_global_zero=True)  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=r"LPIPS is left out of the loss, though module\.perceptual_weight is 10: mod"):
        module.on_fit_start()
    module.trainer.state.fn = "test"
    module.on_test_start()


def test_colours_that_lpips_cannot_take_are_refused(tmp_path: Path) -> None:
    words = [*SHARED, *WORDS["tfill_small"], "module.perceptual_weight=10", f"module.pretrained_weights={tmp_path}"]
    with pytest.raises(RequestError, match=r"^module\.image_channels must be 1 or 3 with LPIPS in the loss, got 2"):
        launch.construct(compose("tfill_small", overrides=[*words, "module.image_channels=2"]))


@pytest.mark.slow
def test_the_step_size_falls_without_a_discriminator_too(places: Path) -> None:
    words = [*SHARED, *WORDS["tfill_small"], "module.adversarial_weight=0", "module.decay_share=1.0"]
    assert launch.fit(compose("tfill_small", overrides=words), experiment="tfill_small", run_id="alone") == 0
    assert read_status(places / "tfill_small" / "alone")["state"] == "finished"


def test_step_sizes_stay_in_a_run_that_only_time_ends() -> None:
    words = [*SHARED, *WORDS["tfill_pix2pix"], "trainer.max_epochs=-1", "trainer.max_time=00:00:30:00"]
    parts = launch.construct(compose("tfill_pix2pix", overrides=words))
    parts.module.trainer = SimpleNamespace(estimated_stepping_batches=math.inf)  # type: ignore[assignment]
    optimizers: Any = parts.module.configure_optimizers()
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [2e-4, 2e-4]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
