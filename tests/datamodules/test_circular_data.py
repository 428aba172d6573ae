"""Batches of paper `circular`, read from shards that the production writer wrote."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer

from datamodules.batches import DirectionBatch, Sample
from datamodules.circular import CircularData
from datamodules.converters.circular import FIELDS, SPLITS
from datamodules.shards.reader import ShardDataset
from datamodules.shards.writer import write_dataset

GROUPS, FRAMES = 12, 4
PAPER = {
    "dataset": "arrows",
    "split": "default",
    "batch_size": 5,
    "num_workers": 0,
    "seed": 7,
    "augment": True,
    "copies": 1,
    "rotation_step_deg": None,
    "shift_fraction": 0.2,
    "zoom_fraction": 0.1,
    "mirror": True,
    "motion_probability": 1.0,
    "memory_gib": 0.0,
}
LABEL_TOLERANCE_RAD = math.radians(3)  # of a direction measured in an 8-bit picture after one interpolation


def arrow(angle_rad: float) -> np.ndarray:
    """(128, 128) uint8: a bright head and a dim tail 28 px behind it."""
    rows, columns = np.mgrid[:128, :128] - 63.5
    x, y = 14 * math.cos(angle_rad), -14 * math.sin(angle_rad)
    head, tail = (np.exp(-((columns - s * x) ** 2 + (rows - s * y) ** 2) / 32) for s in (1, -1))
    return np.rint(250 * head + 90 * tail).astype(np.uint8)


def seen_rad(image: torch.Tensor) -> float:
    """Direction of the arrow in a picture (1, 128, 128), from the pixels alone."""
    rows, columns = np.mgrid[:128, :128]
    grey = image[0].double().numpy()
    head, whole = np.clip(grey - 0.5, 0, None), grey
    x, y = ((head * axis).sum() / head.sum() - (whole * axis).sum() / whole.sum() for axis in (columns, rows))
    return math.atan2(-y, x)


def picture(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def apart(a: float, b: float) -> float:
    return abs((a - b + math.pi) % (2 * math.pi) - math.pi)


def samples(size: int = 128):
    rng = np.random.default_rng(5)
    for group in range(GROUPS):
        for frame in range(FRAMES):
            angle = rng.uniform(0, 2 * math.pi)
            fields = {
                "image": arrow(angle)[None, :size, :size],
                "angle_rad": np.float64(angle),
                "frame": np.int32(frame),
            }
            yield Sample(f"cell{group:02d}_t{frame}", f"cell{group:02d}", fields)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")
    error = {"metric": "angular_error_deg", "value": 11.6}
    common = {"fields": FIELDS, "splits": SPLITS, "seed": 0}
    provenance = {"licence": "none", "irreducible_error": error}
    write_dataset(root / "circular" / "arrows", samples(), stem="circular", provenance=provenance, **common)
    write_dataset(root / "circular" / "small", samples(64), stem="circular", provenance={}, **common)
    write_dataset(root / "circular" / "foreign", samples(), stem="tfill", provenance={}, **common)
    return str(root)


@pytest.fixture
def make(data_root):
    def build(**changed) -> CircularData:
        return CircularData(**{"data_root": data_root, **PAPER, **changed})

    return build


def epoch_of(loader, epoch: int = 0) -> list[DirectionBatch]:
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def ids_of(batches: list[DirectionBatch]) -> list[str]:
    return [name for batch in batches for name in batch.sample_id]


def same(one: list[DirectionBatch], other: list[DirectionBatch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.image, b.image) and torch.equal(a.angle_rad, b.angle_rad) and a[2:] == b[2:]
        for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_shows_every_picture_as_often_as_there_are_copies_each_time_moved_anew(make) -> None:
    once, thrice = epoch_of(make().train_dataloader()), epoch_of(make(copies=3).train_dataloader())
    assert sorted(ids_of(thrice)) == sorted(3 * ids_of(once))
    moved: dict[str, set[float]] = {}
    for batch in thrice:
        for name, angle_rad in zip(batch.sample_id, batch.angle_rad.tolist(), strict=True):
            moved.setdefault(name, set()).add(angle_rad)
    assert all(len(angles) == 3 for angles in moved.values())
    assert len(ids_of(epoch_of(make(copies=3).val_dataloader()))) == len(ids_of(epoch_of(make().val_dataloader())))


def test_a_batch_holds_what_its_fields_say(make):
    data = make()
    data.setup("fit")
    batches = epoch_of(data.train_dataloader())
    for batch in batches:
        assert isinstance(batch, DirectionBatch)
        assert batch.image.shape[1:] == (1, 128, 128)
        assert (batch.image.dtype, batch.angle_rad.dtype) == (torch.float32, torch.float32)
        assert 0 <= batch.image.min() < batch.image.max() <= 1
        assert ((batch.angle_rad >= 0) & (batch.angle_rad < 2 * math.pi)).all()
        assert len(batch.image) == len(batch.angle_rad) == len(batch.sample_id) == len(batch.group)
        assert [name.split("_")[0] for name in batch.sample_id] == batch.group
    ids = ids_of(batches)
    stored = ShardDataset(data.splits.folder, scheme="default", split="train")
    assert sorted(ids) == sorted(stored.sample_ids)
    assert max(len(batch.image) for batch in batches) == 5


def test_pixels_and_labels_of_augmented_batches_move_together(make):
    loader = make().train_dataloader()
    moved = 0
    for epoch in range(5):
        for batch in epoch_of(loader, epoch):
            for image, angle in zip(batch.image, batch.angle_rad, strict=True):
                assert apart(seen_rad(image), float(angle)) < LABEL_TOLERANCE_RAD
                moved += 1
    assert moved >= 50


def test_batches_depend_on_seed_and_epoch_but_not_on_the_number_of_workers(make):
    here, workers = make().train_dataloader(), make(num_workers=2).train_dataloader()
    for epoch in (0, 3):
        assert same(epoch_of(here, epoch), epoch_of(workers, epoch))
    assert not same(epoch_of(here, 0), epoch_of(here, 1))
    assert not same(epoch_of(here, 0), epoch_of(make(seed=8).train_dataloader(), 0))


def test_a_resumed_epoch_continues_with_the_batches_that_were_left(make):
    whole = epoch_of(make().train_dataloader(), 0)
    loader = make().train_dataloader()
    iterator = iter(loader)
    started = [next(iterator), next(iterator)]
    resumed = make().train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert same(started + list(resumed), whole)


def test_validation_test_and_prediction_are_neither_moved_nor_shuffled(make):
    data = make()
    for split, loader in [
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
        ("test", data.predict_dataloader()),
    ]:
        stored = ShardDataset(data.splits.folder, scheme="default", split=split)
        batches = epoch_of(loader, 1)
        assert ids_of(batches) == list(stored.sample_ids)
        expected = np.stack([stored[i].fields["image"] for i in range(len(stored))]) / np.float32(255)
        np.testing.assert_array_equal(torch.cat([batch.image for batch in batches]).numpy(), expected)
        angles = [stored[i].fields["angle_rad"] for i in range(len(stored))]
        np.testing.assert_allclose(torch.cat([batch.angle_rad for batch in batches]), angles, rtol=1e-6)


def test_no_cell_is_in_two_splits_of_a_grouped_scheme_and_patch_folds_leak(make):
    def groups(split_scheme):
        data = make(split=split_scheme, augment=False)
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        return [{name for batch in epoch_of(loader) for name in batch.group} for loader in loaders]

    for name in ("default", "fold0", "fold3"):
        train, val, test = groups(name)
        assert not train & val
        assert not train & test
        assert not val & test
    train, _, test = groups("patch_fold0")
    assert train & test


def test_the_quadrant_baselines_right_angles_keep_every_grey_level(make):
    still = epoch_of(make(augment=False).train_dataloader())
    plain = {name: image for batch in still for name, image in zip(batch.sample_id, batch.image, strict=True)}
    turned = make(rotation_step_deg=90.0, shift_fraction=0.0, zoom_fraction=0.0).train_dataloader()
    differing = 0
    for batch in epoch_of(turned):
        for name, image, angle in zip(batch.sample_id, batch.image, batch.angle_rad, strict=True):
            assert torch.equal(image.flatten().sort().values, plain[name].flatten().sort().values)
            assert apart(seen_rad(image), float(angle)) < LABEL_TOLERANCE_RAD
            differing += not torch.equal(image, plain[name])
    assert differing


def test_each_rank_reads_its_own_part(make):
    def batches(rank, loader_name):
        data = make()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        return epoch_of(getattr(data, loader_name)())

    train = [batches(rank, "train_dataloader") for rank in (0, 1)]
    assert len(train[0]) == len(train[1])
    assert not set(ids_of(train[0])) & set(ids_of(train[1]))
    test = [ids_of(batches(rank, "test_dataloader")) for rank in (0, 1)]
    assert sorted(test[0] + test[1]) == sorted(ids_of(epoch_of(make().test_dataloader())))


class Recorder(LightningModule):
    """Learns nothing; keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[tuple[int, list[str], torch.Tensor]] = []
        self.validated: list[str] = []

    def training_step(self, batch, batch_idx):
        self.trained.append((self.current_epoch, batch.sample_id, batch.angle_rad))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated += batch.sample_id

    def predict_step(self, batch, batch_idx):
        return batch.sample_id

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    settings = {"max_epochs": 2, "num_sanity_val_steps": 0, "accelerator": "cpu", "default_root_dir": tmp_path}
    return Trainer(**settings, **dict.fromkeys(quiet, False))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*")
def test_a_trainer_sees_a_new_order_and_new_motions_every_epoch(make, trainer):
    module = Recorder()
    trainer.fit(module, datamodule=make())
    loader = make().train_dataloader()
    expected = [(epoch, batch.sample_id, batch.angle_rad) for epoch in (0, 1) for batch in epoch_of(loader, epoch)]
    assert [shown[:2] for shown in module.trained] == [wanted[:2] for wanted in expected]
    assert all(torch.equal(shown[2], wanted[2]) for shown, wanted in zip(module.trained, expected, strict=True))
    assert module.validated == 2 * ids_of(epoch_of(make().val_dataloader()))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_trainer_predicts_on_the_files_it_was_given(tmp_path, trainer):
    data = CircularData(**{**PAPER, "data_root": str(tmp_path / "nowhere"), "batch_size": 2})
    names = [f"{k}.png" for k in range(5)]
    data.predict_on(files=[picture(tmp_path / name, arrow(k)) for k, name in enumerate(names)])
    assert trainer.predict(Recorder(), datamodule=data) == [names[:2], names[2:4], names[4:]]


def test_a_label_just_below_a_whole_turn_stays_in_the_circle_in_float32(tmp_path):
    whole_turn = np.nextafter(2 * math.pi, 0)
    fields = {"image": arrow(0.0)[None], "angle_rad": np.float64(whole_turn), "frame": np.int32(0)}
    stream = [Sample(f"c{k}_0", f"c{k}", fields) for k in range(6)]
    write_dataset(
        tmp_path / "circular" / "edge", stream, stem="circular", fields=FIELDS, splits=SPLITS, seed=0, provenance={}
    )
    data = CircularData(**{**PAPER, "data_root": str(tmp_path), "dataset": "edge", "augment": False})
    assert all(float(batch.angle_rad.max()) < 2 * math.pi for batch in epoch_of(data.train_dataloader()))


def test_what_the_launcher_asks_for_is_there(make, data_root):
    data = make()
    assert data.data_folder == Path(data_root) / "circular" / "arrows"
    assert data.irreducible_error == {"metric": "angular_error_deg", "value": 11.6}
    assert make(dataset="small").irreducible_error is None
    assert CircularData.stem == "circular"
    make(**CircularData.smoke)


def test_the_data_set_a_worker_gets_can_be_pickled(make):
    loader = make().train_dataloader()
    again = pickle.loads(pickle.dumps(loader.dataset))
    first, second = loader.dataset[(2, 3)], again[(2, 3)]
    assert first.sample_id == second.sample_id
    np.testing.assert_array_equal(first.fields["image"], second.fields["image"])


@pytest.mark.parametrize(
    ("dataset", "command"),
    [
        ("twin", "mechanolab data simulate circular$"),
        ("u373", "mechanolab data convert circular --source ARCHIVE --out "),
    ],
)
def test_a_missing_data_set_says_how_to_make_it(tmp_path, dataset, command):
    data = CircularData(**{**PAPER, "data_root": str(tmp_path), "dataset": dataset})
    for ask in (data.prepare_data, lambda: data.setup("fit"), lambda: data.irreducible_error):
        with pytest.raises(FileNotFoundError, match=rf"no data set at .*circular.{dataset}; make it with: {command}"):
            ask()


def test_a_data_set_that_does_not_fit_is_refused(make):
    with pytest.raises(
        ValueError, match=r"must hold image \(1, 128, 128\) uint8 and angle_rad, its image is \(1, 64, 64\)"
    ):
        make(dataset="small").setup("fit")
    with pytest.raises(ValueError, match="is a data set of tfill, not of circular"):
        make(dataset="foreign").setup("test")
    with pytest.raises(ValueError, match="fold9"):
        make(split="fold9").setup("validate")


def test_a_split_is_there_when_it_holds_a_sample_whatever_share_it_was_to_have(make):
    splits = make().splits
    assert all(splits.has(split) for split in ("train", "val", "test"))
    assert not splits.has("unused")
    stored = splits.manifest.splits["default"]
    samples = stored["samples"] | {"val": 0, "unused": stored["samples"]["unused"] + stored["samples"]["val"]}
    splits.manifest = replace(splits.manifest, splits={"default": stored | {"samples": samples}})
    assert [splits.has(split) for split in ("train", "val", "test")] == [True, False, True]
    with pytest.raises(ValueError, match=r"^split scheme 'fold9' is not in .*arrows; it has default, "):
        make(split="fold9").has_split("val")


def test_a_split_is_opened_once_for_the_same_fields(make):
    splits = make().splits
    pictures = splits.open("val", ["image"])
    assert splits.open("val", ["image"]) is pictures
    assert list(splits.open("val", ["image", "frame"]).fields) == ["image", "frame"]
    assert list(pictures.fields) == ["image"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", ""),
        ("dataset", "a/b"),
        ("dataset", ".."),
        ("split", ""),
        ("batch_size", 0),
        ("num_workers", -1),
        ("seed", -1),
        ("rotation_step_deg", 50.0),
        ("shift_fraction", 2.0),
        ("zoom_fraction", 1.0),
    ],
)
def test_a_bad_argument_is_refused_by_its_name(make, name, value):
    with pytest.raises(ValueError, match=f"^{name} must"):
        make(**{name: value})


def test_prediction_can_run_on_another_split(make):
    data = make()
    data.predict_on(split="train")
    data.setup("predict")
    stored = ShardDataset(data.splits.folder, scheme="default", split="train")
    assert ids_of(epoch_of(data.predict_dataloader())) == list(stored.sample_ids)
