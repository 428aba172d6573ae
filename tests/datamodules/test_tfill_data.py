"""Batches of paper `tfill`, read from shards that the production writer wrote."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules.batches import Sample, TranslationBatch
from datamodules.converters.tfill import FIELDS as CONVERTED
from datamodules.shards.writer import write_dataset
from datamodules.simulators.tfill import FIELDS
from datamodules.tfill import ActinNucleusData

SIDE, SLIDES, TILES = 48, 8, 3
PAPER = {
    "dataset": "coded",
    "split": "default",
    "batch_size": 4,
    "num_workers": 0,
    "seed": 7,
    "memory_gib": 0.0,
    "load_px": 48,
    "crop_px": 32,
    "symmetries": "all",
    "test_view": "whole",
    "contrast": "full_range",
    "nucleus_mask": "mean_sixth",
    "tile_um": 96.0,
}
SPLITS = {"default": {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25}}


def coded(slide: int, tile: int) -> dict[str, np.ndarray]:
    """Actin that tells column and row of its pixels, a nucleus with a rim, and masks of their own."""
    rows, columns = np.indices((SIDE, SIDE))
    actin = (1000 * rows + 20 * columns).astype(np.uint16)
    nucleus = np.zeros((SIDE, SIDE), np.uint16)
    nucleus[10:20, 12:30] = 9000
    nucleus[12:18, 14:28] = 50_000
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[10 + slide : 20, 12 + tile : 30] = 1
    return {
        "actin": actin[None],
        "nucleus": nucleus[None],
        "nucleus_mask": mask[None],
        "cell_mask": (columns < 40)[None].astype(np.uint8),
        "pixel_size_um": np.array(2.0, np.float32),
    }


def samples(names: list[str]):
    for slide in range(SLIDES):
        for tile in range(TILES):
            fields = coded(slide, tile)
            yield Sample(f"s{slide}_{tile}", f"s{slide}", {name: fields[name] for name in names})


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")
    known = {"matched_4um": 0.9}
    sets = {"coded": FIELDS, "measured": CONVERTED, "actin": {k: v for k, v in CONVERTED.items() if k != "nucleus"}}
    for name, fields in sets.items():
        write_dataset(
            root / "tfill" / name, samples(list(fields)), stem="tfill", fields=fields, splits=SPLITS, seed=0,
            provenance={"irreducible_error": known},
        )  # fmt: skip
    wide = (one._replace(fields={**one.fields, "actin": one.fields["actin"][..., :32]}) for one in samples(["actin"]))
    wide_fields = {"actin": FIELDS["actin"]}
    write_dataset(root / "tfill" / "bare", wide, stem="tfill", fields=wide_fields, splits=SPLITS, seed=0, provenance={})
    return str(root)


@pytest.fixture
def make(data_root):
    def build(**changed) -> ActinNucleusData:
        return ActinNucleusData(**{"data_root": data_root, **PAPER, **changed})

    return build


def epoch_of(loader, epoch: int = 0) -> list[TranslationBatch]:
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def same(one: list[TranslationBatch], other: list[TranslationBatch]) -> bool:
    return len(one) == len(other) and all(
        all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(x, y, strict=True))
        for x, y in zip(one, other, strict=True)
    )


def decoded(actin: torch.Tensor) -> np.ndarray:
    """(y, x, 2): row and column in the stored tile that each pixel of a batch's picture came from."""
    grey = np.rint((actin.double().numpy() + 1) / 2 * 65535).astype(int)
    return np.stack([grey // 1000, grey % 1000 / 20], axis=-1)


def test_a_batch_holds_what_its_fields_say(make):
    data = make()
    data.setup("fit")
    for batch in epoch_of(data.train_dataloader()):
        assert isinstance(batch, TranslationBatch)
        count = len(batch.sample_id)
        assert batch.actin.shape == batch.nucleus.shape == batch.nucleus_mask.shape == (count, 1, 32, 32)
        assert batch.cell_mask.shape == (count, 32, 32)
        assert batch.actin.dtype == batch.nucleus.dtype == batch.pixel_size_um.dtype == torch.float32
        assert batch.nucleus_mask.dtype == batch.cell_mask.dtype == torch.bool
        assert batch.nucleus.min() >= -1
        assert batch.nucleus.max() <= 1
        assert batch.pixel_size_um.tolist() == [2.0] * count
        assert [name.split("_")[0] for name in batch.sample_id] == batch.group


def test_all_that_a_crop_shows_comes_from_one_place_of_the_tile(make):
    places, symmetries = set(), set()
    for epoch in range(8):
        for batch in epoch_of(make(nucleus_mask="stored").train_dataloader(), epoch):
            for row, name in enumerate(batch.sample_id):
                place = decoded(batch.actin[row, 0])
                whole = coded(*map(int, name[1:].split("_")))
                there = tuple(place.reshape(-1, 2).astype(int).T)
                for shown, stored in (
                    (batch.nucleus_mask[row, 0], whole["nucleus_mask"][0]),
                    (batch.cell_mask[row], whole["cell_mask"][0]),
                    (batch.nucleus[row, 0] > 0, whole["nucleus"][0] > 40_000),
                ):
                    assert np.array_equal(shown.numpy().ravel(), stored[there].astype(bool))
                places.add(tuple(place.min(axis=(0, 1)).tolist()))
                symmetries.add((tuple(place[0, 1] - place[0, 0]), tuple(place[1, 0] - place[0, 0])))
    assert len(places) > 50  # not one crop a run
    assert len(symmetries) == 8
    assert {place[0] for place in places} >= {0, 16}


@pytest.mark.parametrize(("symmetries", "ways"), [("none", 1), ("left_right", 2)])
def test_the_authors_mirror_left_and_right_only(make, symmetries, ways):
    seen = set()
    for batch in epoch_of(make(symmetries=symmetries).train_dataloader()):
        for picture in batch.actin[:, 0]:
            place = decoded(picture)
            assert (np.diff(place[..., 0], axis=0) == 1).all()
            seen.add(float(place[0, 1, 1] - place[0, 0, 1]))
    assert len(seen) == ways


def test_batches_are_functions_of_seed_and_epoch(make):
    once, again = (epoch_of(make().train_dataloader(), 3) for _ in range(2))
    assert same(once, again)
    assert same(once, epoch_of(pickle.loads(pickle.dumps(make().train_dataloader())), 3))
    assert not same(once, epoch_of(make().train_dataloader(), 4))
    assert not same(once, epoch_of(make(seed=8).train_dataloader(), 3))
    assert same(epoch_of(make().val_dataloader(), 0), epoch_of(make(seed=8).val_dataloader(), 5))


@pytest.mark.slow
def test_workers_change_nothing(make):
    assert same(epoch_of(make().train_dataloader(), 1), epoch_of(make(num_workers=2).train_dataloader(), 1))


def test_the_size_of_a_pixel_follows_every_resize(make):
    """(view, load, crop) -> um per pixel and how wide the nucleus of 14 px of 2 um is shown."""
    for view, load, crop, pixel_um in (
        ("whole", 48, 32, 3.0),  # the authors' test scale differs from training by load / crop
        ("centre", 48, 32, 2.0),
        ("centre", 96, 80, 1.0),
        ("whole", 24, 24, 4.0),
    ):
        (batch, *_) = epoch_of(make(test_view=view, load_px=load, crop_px=crop).test_dataloader())
        assert batch.pixel_size_um.tolist() == pytest.approx([pixel_um] * len(batch.sample_id))
        width = (batch.nucleus[0, 0] > 0).any(dim=0).sum() * pixel_um
        assert width == pytest.approx(28, abs=pixel_um)
        trained = epoch_of(make(test_view=view, load_px=load, crop_px=crop).train_dataloader())[0]
        assert trained.pixel_size_um[0] == pytest.approx(2.0 * 48 / load)


def test_a_centre_is_the_middle_of_the_tile(make):
    batch = epoch_of(make(test_view="centre").test_dataloader())[0]
    place = decoded(batch.actin[0, 0])
    assert (place[0, 0].tolist(), place[-1, -1].tolist()) == ([8, 8], [39, 39])


@pytest.mark.parametrize(("rule", "pixels"), [("otsu", 6 * 14), ("mean_sixth", 6 * 14), ("stored", None)])
def test_the_mask_follows_the_rule_asked_for(make, rule, pixels):
    whole = {"load_px": 48, "crop_px": 48, "nucleus_mask": rule}
    for batch in epoch_of(make(**whole).test_dataloader()):
        for mask, name in zip(batch.nucleus_mask[:, 0], batch.sample_id, strict=True):
            slide, tile = map(int, name[1:].split("_"))
            assert int(mask.sum()) == (pixels or (10 - slide) * (18 - tile))


def test_a_converted_data_set_gets_its_masks_by_rule(make):
    batch = epoch_of(make(dataset="measured", load_px=48, crop_px=48).test_dataloader())[0]
    assert int(batch.nucleus_mask[0].sum()) == 6 * 14
    assert batch.cell_mask[0, 40, 20]
    assert not batch.cell_mask[0, :4].any()


def test_contrast_is_a_choice(make):
    whole = {"load_px": 48, "crop_px": 48}
    plain, stretched = (epoch_of(make(contrast=c, **whole).test_dataloader())[0] for c in ("full_range", "stretched"))
    assert plain.actin.max() == pytest.approx(2 * 47_940 / 65535 - 1)
    assert (stretched.actin.min(), stretched.actin.max()) == (-1, 1)


def test_actin_without_nuclei_is_tested_on_but_not_trained_on(make):
    data = make(dataset="actin")
    batch = epoch_of(data.predict_dataloader())[0]
    assert batch.nucleus.isnan().all()
    assert not batch.nucleus_mask.any()
    with pytest.raises(ValueError, match="actin without nuclei: it cannot be trained on"):
        data.setup("fit")


def test_what_a_data_set_lacks_is_told(make):
    with pytest.raises(ValueError, match="must hold nucleus_mask, it holds actin"):
        make(dataset="measured", nucleus_mask="stored").setup("test")
    with pytest.raises(ValueError, match="must hold pixel_size_um"):
        make(dataset="bare").setup("test")
    with pytest.raises(ValueError, match=r"tile_um is 159\.41, but the tiles of .* are 96 um wide"):
        make(tile_um=159.41).setup("test")
    with pytest.raises(FileNotFoundError, match="mechanolab data simulate tfill"):
        make(dataset="twin").prepare_data()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"crop_px": 0}, "crop_px must be at least 1"),
        ({"load_px": 31}, "load_px must be at least 32"),
        ({"symmetries": "some"}, "symmetries must be one of none, left_right, all"),
        ({"test_view": "corner"}, "test_view must be one of whole, centre"),
        ({"contrast": "auto"}, "contrast must be one of"),
        ({"nucleus_mask": "hsv"}, "nucleus_mask must be one of"),
        ({"tile_um": 0.0}, "tile_um must be positive"),
        ({"memory_gib": -1.0}, "memory_gib must be at least 0"),
        ({"split": ""}, "split must name"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(make, changed, message):
    with pytest.raises(ValueError, match=message):
        make(**changed)


# -- the user's own files ---------------------------------------------------------------------------------------------


def own(path: Path, picture: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), picture)
    return path


@pytest.mark.parametrize("suffix", [".tif", ".png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_own_pictures_are_cut_to_the_field_that_is_tested_on(make, tmp_path, suffix, dtype):
    top = np.iinfo(dtype).max
    picture = np.linspace(0, top, 60 * 100).reshape(60, 100).astype(dtype)
    data = make()  # fields of 96 um: 48 px of 2 um
    data.predict_on(files=[own(tmp_path / f"mine{suffix}", picture)], pixel_size_um=2.0)
    data.prepare_data()
    data.setup("predict")
    batches = list(data.predict_dataloader())
    names = [name for one in batches for name in one.sample_id]
    assert names == [f"mine{suffix}_y{y}_x{x}" for y in (0, 12) for x in (0, 26, 52)]  # 20 um overlap, spread evenly
    first = batches[0].owned[0]
    assert first[:20, :24].all()  # rows to 30 of 2 um, columns to 37, shown 32 for 48
    assert not first[20:].any()
    assert not first[:, 25:].any()
    assert {name for one in batches for name in one.group} == {f"mine{suffix}"}
    batch = batches[0]
    assert batch.actin.shape[1:] == (1, 32, 32)
    assert batch.nucleus.isnan().all()
    assert batch.pixel_size_um.tolist() == [3.0] * 4
    shown = cv2.resize((picture[:48, :48] / top).astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(batch.actin[0, 0].numpy(), 2 * shown - 1, atol=1e-5)
    assert data.data_folder is None
    assert data.irreducible_error is None


def test_without_a_pixel_size_a_picture_is_one_field(make, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    data = make()
    data.predict_on(files=[own(tmp_path / "a.png", picture)])
    (batch,) = data.predict_dataloader()
    assert batch.sample_id == ["a.png"]
    assert batch.owned.all()
    assert batch.pixel_size_um.tolist() == [3.0]
    with pytest.raises(ValueError, match=r"b\.png is 40 x 32 px, without a pixel size 32 x 32 px are needed"):
        data.predict_on(files=[own(tmp_path / "b.png", np.zeros((32, 40), np.uint8) + np.arange(40, dtype=np.uint8))])


def test_a_bad_file_of_ones_own_is_told_at_once(make, tmp_path):
    data, picture = make(), np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    good = own(tmp_path / "a.png", picture)
    (tmp_path / "other").mkdir()
    for files, pixel, message in (
        ([], None, "files must name at least one"),
        ([good, own(tmp_path / "other" / "a.png", picture)], None, "listed under one name"),
        ([good], -1.0, "pixel_size_um must be positive"),
        ([good], 0.5, r"too small for the field of 96 um, which is 192 x 192 px at 0\.5 um per pixel"),
        ([good], 7.0, r"a\.png: pixel_size_um 7 leaves the field of 96 um only 14 x 14 px, 16 are the least: correct"),
        ([own(tmp_path / "flat.png", np.full((32, 32), 7, np.uint8))], None, "shows nothing: all its pixels are 7"),
    ):
        with pytest.raises(ValueError, match=message):
            data.predict_on(files=files, pixel_size_um=pixel)
    with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png"):
        data.predict_on(files=[tmp_path / "gone.png"])
    with pytest.raises(ValueError, match="a data set knows its own pixel size"):
        data.predict_on(pixel_size_um=1.0)
    with pytest.raises(ValueError, match="split must be"):
        data.predict_on(split="all")
