"""Batches of paper `insilico_tfm`, read from shards that the production writer wrote."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import torch

from datamodules.augmentation.force_images import ForceAugmentation, cell_patch, clipped_log, taper
from datamodules.batches import ForceImageBatch, Sample
from datamodules.converters.cell_boxes import cell_box
from datamodules.insilico_tfm import ForceImageData
from datamodules.shards.reader import ShardDataset
from datamodules.shards.writer import write_dataset
from datamodules.simulators.insilico_tfm import FIELDS, SPLITS

GROUPS, FRAMES, SIZE = 12, 3, 96
PLAIN = {
    **{"dataset": "cells", "split": "default", "batch_size": 4, "num_workers": 0, "memory_gib": 0.0, "seed": 7},
    **{"steps_per_epoch": None, "crop_px": 32, "margin_px": 12, "taper_fraction": 0.1, "mirror": True},
    **{"rotation_deg": 180.0, "salt_image_probability": 0.5, "salt_pixel_probability": 0.01},
    **{"salt_maximum_grey": 2000.0, "frames_at_once": 2, "frame_px": None, "validation_every": 1, "test_every": 1},
}
STORED = ("image", "traction_pa", "pixel_size_um", "time_s")


def samples(*, tiny: int = 0, dark: bool = False):
    """Bright discs on a dark ground; those of the first `tiny` groups are too small for a crop."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for group in range(GROUPS):
        for frame in range(FRAMES):
            radius = 4 if group < tiny else rng.uniform(14, 20)
            centre = rng.uniform(40, 56, 2)
            disc = np.hypot(rows - centre[0], columns - centre[1]) < radius
            image = rng.integers(20, 60, (SIZE, SIZE)) + (0 if dark else 800) * disc
            fields = {
                "image": image[None].astype(np.uint16),
                "traction_pa": (rng.lognormal(3, 0.5, (1, SIZE, SIZE)) * disc).astype(np.float32),
                "pixel_size_um": np.float64(0.2),
                "time_s": np.float64(30 * frame),
            }
            yield Sample(f"cell{group:02d}_{frame}", f"cell{group:02d}", fields)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")

    def write(name, stream, *, without=(), extra=None, **provenance):
        kept = {key: entry for key, entry in FIELDS.items() if key in STORED and key not in without} | (extra or {})
        stream = (
            s._replace(fields={key: value for key, value in s.fields.items() if key not in without}) for s in stream
        )
        options = {"fields": kept, "splits": SPLITS, "seed": 0, "provenance": provenance}
        write_dataset(root / "insilico_tfm" / name, stream, stem="insilico_tfm", **options)

    def boxed():
        for sample in samples():
            yield sample._replace(fields=sample.fields | {"box_px": np.array([30, 20, 40, 44], np.int32)})

    write("cells", samples(), irreducible_error={"metric": "mae_median_foreground_pa", "value": 13.0})
    write("images", samples(), without=("traction_pa", "time_s"))
    write("tiny", samples(tiny=4))
    write("dark", samples(dark=True))
    write("boxed", boxed(), extra={"box_px": {"axes": "b", "unit": "px"}})
    return str(root)


@pytest.fixture
def make(data_root):
    def build(**changed) -> ForceImageData:
        return ForceImageData(**{"data_root": data_root, **PLAIN, **changed})

    return build


def epoch_of(loader, epoch: int = 0) -> list[ForceImageBatch]:
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def same(one: list[ForceImageBatch], other: list[ForceImageBatch]) -> bool:
    return len(one) == len(other) and all(
        all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True)) and a[4:] == b[4:]
        for a, b in zip(one, other, strict=True)
    )


def by_id(batches: list[ForceImageBatch]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        name: (batch.image[row], batch.log_traction[row])
        for batch in batches
        for row, name in enumerate(batch.sample_id)
    }


# -- whole frames -----------------------------------------------------------------------------------------------------


def test_evaluation_sees_whole_frames_tapered_with_the_logarithm_last(make):
    data = make()
    data.setup("test")
    stored = ShardDataset(data.splits.folder, scheme="default", split="test")
    batches = epoch_of(data.test_dataloader())
    assert len(batches[0].sample_id) == 2
    found = by_id(batches)
    assert list(found) == stored.sample_ids.tolist()
    for sample in stored.__getitems__(range(len(stored))):
        image, log_traction = found[sample.sample_id]
        assert image.dtype == log_traction.dtype == torch.float32
        np.testing.assert_allclose(image[0], np.log(sample.fields["image"][0].astype(float)), rtol=1e-6)
        tapered = taper(sample.fields["traction_pa"][0])
        np.testing.assert_array_equal(log_traction[0], clipped_log(tapered))
        assert log_traction[0, 0].max() == 0
    times = [value for batch in batches for value in batch.time_s.tolist()]
    assert set(times) == {0, 30, 60}
    assert {value for batch in batches for value in batch.pixel_size_um.tolist()} == {np.float32(0.2)}


def test_larger_frames_are_cut_to_the_middle_after_the_taper(make):
    whole, cut = by_id(epoch_of(make().test_dataloader())), by_id(epoch_of(make(frame_px=64).test_dataloader()))
    for name, pictures in whole.items():
        for full, part in zip(pictures, cut[name], strict=True):
            assert torch.equal(full[:, 16:80, 16:80], part)
    assert same(epoch_of(make(frame_px=1024).test_dataloader()), epoch_of(make().test_dataloader()))


def test_validation_and_test_can_take_every_third_frame(make):
    whole, thinned = make(split="paper"), make(split="paper", validation_every=3, test_every=3)
    for every, some in (
        (whole.val_dataloader(), thinned.val_dataloader()),
        (whole.test_dataloader(), thinned.test_dataloader()),
    ):
        names = list(by_id(epoch_of(every)))
        assert list(by_id(epoch_of(some))) == names[::3]
        assert len(names) >= 3


def test_frames_without_a_known_traction_are_predicted_on_but_not_trained_on(make):
    data = make(dataset="images")
    for batch in data.predict_dataloader():
        assert batch.log_traction.isnan().all()
        assert batch.time_s.isnan().all()
        assert batch.image.isfinite().all()
    with pytest.raises(ValueError, match="must hold traction_pa"):
        data.setup("fit")


def test_what_is_known_of_the_data_set(make, data_root):
    data = make()
    assert data.irreducible_error == {"metric": "mae_median_foreground_pa", "value": 13.0}
    assert make(dataset="tiny").irreducible_error is None
    assert str(data.data_folder) == f"{data_root}/insilico_tfm/cells"
    assert all(data.has_split(name) for name in ("train", "val", "test"))
    with pytest.raises(FileNotFoundError, match="mechanolab data convert insilico_tfm"):
        make(dataset="nowhere").prepare_data()


# -- crops ------------------------------------------------------------------------------------------------------------


def test_a_training_sample_is_the_papers_chain_of_steps(make):
    """Box with margin, taper of the patch, flips, rotation, crop, salt, logarithm: by the parts, in that order."""
    data = make(batch_size=1)
    train = ShardDataset(data.splits.folder, scheme="default", split="train")
    order = {name: index for index, name in enumerate(train.sample_ids.tolist())}
    chain = ForceAugmentation(crop_px=32)
    for name, (image, log_traction) in by_id(epoch_of(data.train_dataloader(), 5)).items():
        sample = train[order[name]]
        raw, force = sample.fields["image"][0], sample.fields["traction_pa"][0]
        patch = cell_patch(raw, force, cell_box(raw), margin_px=12)
        expected = chain.apply(*patch, seed=7, epoch=5, index=order[name])
        np.testing.assert_array_equal(image[0], expected[0])
        np.testing.assert_array_equal(log_traction[0], expected[1])


def test_an_epoch_without_draws_shows_every_frame_once(make):
    seen = [name for batch in epoch_of(make(batch_size=3).train_dataloader()) for name in batch.sample_id]
    assert len(seen) == len(set(seen)) == len(make().splits.open("train", ["image"]))


def test_frames_are_drawn_with_replacement_and_repeated_ones_are_moved_anew(make):
    data = make(steps_per_epoch=25)
    batches = epoch_of(data.train_dataloader())
    assert len(batches) == 25
    names = np.array([name for batch in batches for name in batch.sample_id])
    frames = len(data.splits.open("train", ["image"]))
    found, counts = np.unique(names, return_counts=True)
    assert len(found) == pytest.approx(frames * (1 - (1 - 1 / frames) ** 100), abs=2)
    crops = torch.cat([batch.log_traction for batch in batches])
    repeated = crops[torch.from_numpy(names == found[counts.argmax()])]
    assert len(repeated) >= 5
    assert all(not torch.equal(repeated[0], other) for other in repeated[1:])
    other = epoch_of(data.train_dataloader(), 1)
    assert [batch.sample_id for batch in batches] != [batch.sample_id for batch in other]


@pytest.mark.parametrize("steps", [None, 9])
def test_training_is_the_same_however_it_is_read(make, steps):
    whole = epoch_of(make(steps_per_epoch=steps).train_dataloader(), 2)
    assert same(whole, epoch_of(make(steps_per_epoch=steps, memory_gib=1.0).train_dataloader(), 2))
    assert not same(whole, epoch_of(make(steps_per_epoch=steps).train_dataloader(), 3))
    assert not same(whole, epoch_of(make(steps_per_epoch=steps, seed=8).train_dataloader(), 2))


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_workers(make):
    alone, helped = make(steps_per_epoch=6), make(steps_per_epoch=6, num_workers=2)
    assert same(epoch_of(alone.train_dataloader(), 2), epoch_of(helped.train_dataloader(), 2))
    assert same(epoch_of(alone.test_dataloader()), epoch_of(helped.test_dataloader()))


@pytest.mark.parametrize("steps", [None, 7])
def test_training_goes_on_in_the_middle_of_an_epoch(make, steps):
    whole = epoch_of(make(steps_per_epoch=steps).train_dataloader(), 1)
    stopped = make(steps_per_epoch=steps).train_dataloader()
    stopped.batch_sampler.set_epoch(1)
    begun = iter(stopped)
    first = [next(begun) for _ in range(2)]
    resumed = make(steps_per_epoch=steps).train_dataloader()
    resumed.load_state_dict(pickle.loads(pickle.dumps(stopped.state_dict())))
    assert same(whole, first + epoch_of(resumed, 1))


def test_ranks_share_the_draws_of_a_step(make):
    class Trainer:
        global_rank, world_size, is_global_zero = 0, 2, True

    def of(rank: int) -> list[ForceImageBatch]:
        data = make(steps_per_epoch=4)
        data.trainer = Trainer()
        data.trainer.global_rank = rank
        return epoch_of(data.train_dataloader())

    one, other = of(0), of(1)
    assert len(one) == len(other) == 4
    assert all(len(batch.sample_id) == 4 for batch in one + other)
    assert not any(torch.equal(a.image, b.image) for a, b in zip(one, other, strict=True))


def test_frames_too_small_for_a_crop_are_left_out_and_told_once(make, capsys):
    data = make(dataset="tiny", margin_px=10)
    data.setup("fit")
    names = {name for batch in epoch_of(data.train_dataloader()) for name in batch.sample_id}
    stored = data.splits.open("train", ["image"]).sample_ids.tolist()
    large = {name for name in stored if int(name[4:6]) >= 4}
    assert names == large
    assert 0 < len(large) < len(stored)
    said = capsys.readouterr().err
    assert said.startswith(f"{len(stored) - len(large)} of {len(stored)} training frames are left out")
    assert said.count("\n") == 1


def test_a_crop_larger_than_every_patch_is_refused(make):
    with pytest.raises(ValueError, match=r"crop_px must be at most [0-9]+, .* got 97"):
        make(crop_px=97).setup("fit")


def test_a_stored_box_goes_before_one_that_would_be_found(make):
    data = make(dataset="boxed", rotation_deg=0.0, mirror=False, salt_image_probability=0.0, crop_px=64, batch_size=1)
    train = ShardDataset(data.splits.folder, scheme="default", split="train")
    order = {name: index for index, name in enumerate(train.sample_ids.tolist())}
    for name, (image, _) in by_id(epoch_of(data.train_dataloader())).items():
        # 40 x 44 px from (30, 20) with a margin of 12 is 64 columns from 18, and 68 rows from 8 in which 64 have room
        raw = np.log(train[order[name]].fields["image"][0].astype(np.float32))
        assert any(np.allclose(image[0], raw[top : top + 64, 18:82], rtol=1e-6) for top in range(8, 13))


def test_a_frame_without_a_cell_is_refused_by_name(make):
    with pytest.raises(ValueError, match=r"sample cell.* must hold a cell: no 5 x 5 px brighter than 100"):
        make(dataset="dark").setup("fit")


# -- own images -------------------------------------------------------------------------------------------------------


def test_own_images_of_any_size_and_kind_are_predicted_on(make, tmp_path):
    pictures = {
        "eight.png": np.arange(48, dtype=np.uint8).reshape(6, 8),
        "sixteen.tif": np.full((10, 12), 40_000, np.uint16),
        "float.tif": np.full((5, 5), 123.5, np.float32),
        "black.tif": np.zeros((7, 5), np.float32),
    }
    for name, picture in pictures.items():
        assert cv2.imwrite(str(tmp_path / name), picture)
    data = make()
    data.predict_on(files=[tmp_path / name for name in pictures], pixel_size_um=0.3)
    data.setup("predict")
    batches = list(data.predict_dataloader())
    assert [batch.sample_id for batch in batches] == [[name] for name in pictures]
    assert data.data_folder is None
    assert data.irreducible_error is None
    for batch, picture in zip(batches, pictures.values(), strict=True):
        np.testing.assert_allclose(batch.image[0, 0], np.log(np.maximum(picture.astype(float), 1)), rtol=1e-6)
        assert batch.log_traction.isnan().all()
        assert batch.log_traction.shape == batch.image.shape
        assert batch.pixel_size_um.tolist() == [np.float32(0.3)]
        assert batch.time_s.isnan().all()
    data.predict_on(files=[tmp_path / "eight.png"])
    assert next(iter(data.predict_dataloader())).pixel_size_um.isnan().all()
    data.predict_on(split="val")
    assert same(epoch_of(data.predict_dataloader()), epoch_of(make().val_dataloader()))


@pytest.mark.parametrize(("pixel_size_um", "said"), [(0.2, False), (0.205, False), (0.4, True), (None, False)])
def test_own_images_of_another_scale_than_was_trained_on_are_told_of(make, tmp_path, capsys, pixel_size_um, said):
    assert cv2.imwrite(str(tmp_path / "own.png"), np.full((8, 8), 120, np.uint8))
    make().predict_on(files=[tmp_path / "own.png"], pixel_size_um=pixel_size_um)
    assert ("trained on 0.2 um per pixel, these images have 0.4" in capsys.readouterr().err) is said
    make(dataset="nowhere").predict_on(files=[tmp_path / "own.png"], pixel_size_um=pixel_size_um)
    assert not capsys.readouterr().err


def test_own_images_that_cannot_be_read_are_refused_before_anything_is_predicted(make, tmp_path):
    data = make()
    (tmp_path / "broken.tif").write_bytes(b"II*")
    bad = np.full((4, 4), np.nan, np.float32)
    assert cv2.imwrite(str(tmp_path / "nan.tif"), bad)
    assert cv2.imwrite(str(tmp_path / "huge.tif"), np.full((4, 4), 1e39))
    assert cv2.imwrite(str(tmp_path / "mask.png"), np.eye(4, dtype=np.uint8))
    assert cv2.imwrite(str(tmp_path / "scaled.tif"), np.full((4, 4), 0.25, np.float32))
    assert cv2.imwrite(str(tmp_path / "colour.png"), np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for name, said in (
        ("broken.tif", "broken.tif cannot be read as an image"),
        ("nan.tif", "nan.tif has 16 pixels that are NaN, infinite"),
        ("huge.tif", "huge.tif has 16 pixels that are NaN, infinite or beyond single precision"),
        ("scaled.tif", "scaled.tif has no value above 0.25, as if scaled to 1 or a mask: save it with its grey levels"),
        ("mask.png", "mask.png has no value above 1, as if scaled to 1 or a mask"),
        ("colour.png", "colour.png is a colour or transparent image"),
    ):
        with pytest.raises(ValueError, match=said):
            data.predict_on(files=[tmp_path / name])
    with pytest.raises(FileNotFoundError, match="no image at"):
        data.predict_on(files=[tmp_path / "nowhere.png"])
    with pytest.raises(ValueError, match="pixel_size_um must be positive, got 0"):
        data.predict_on(files=[tmp_path / "nan.tif"], pixel_size_um=0)
    with pytest.raises(ValueError, match="pixel_size_um needs files"):
        data.predict_on(pixel_size_um=0.2)
    with pytest.raises(ValueError, match="split must be 'train', 'val' or 'test', got 'all'"):
        data.predict_on(split="all")


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"crop_px": 0}, "crop_px must be at least 1"),
        ({"margin_px": -1}, "margin_px must be at least 0"),
        ({"taper_fraction": 0.6}, r"taper_fraction must lie in \[0, 0.5\], got 0.6"),
        ({"rotation_deg": 200.0}, r"rotation_deg must lie in \[0, 180\]"),
        ({"salt_pixel_probability": 1.1}, "salt_pixel_probability must lie in"),
        ({"frames_at_once": 0}, "frames_at_once must be at least 1"),
        ({"frame_px": 0}, "frame_px must be at least 1"),
        ({"validation_every": 0}, "validation_every must be at least 1"),
        ({"test_every": 0}, "test_every must be at least 1"),
        ({"dataset": "a/b"}, "dataset must be the name of one folder"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, wrong, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make(**wrong)


def test_a_smoke_run_fits_the_fixture_and_its_crop_is_legal(make):
    assert set(ForceImageData.smoke) <= {*PLAIN, "data_root"}
    assert ForceImageData.smoke["crop_px"] % 64 == 0
    assert ".bmp" in ForceImageData.input_suffixes
