"""Batches of paper `cfm_3d`, read from shards that the production writer wrote."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch

from datamodules.batches import BeadVolumeBatch, Sample
from datamodules.cfm_3d import BeadVolumeData, scaled_volume
from datamodules.shards.writer import write_dataset
from datamodules.simulators.cfm_3d import FIELDS, SPLITS

GROUPS, STATES = 12, 2
SHAPE = (10, 12, 12)
PLAIN = {
    **{"dataset": "beads", "split": "default", "batch_size": 3, "num_workers": 0, "memory_gib": 0.0, "seed": 7},
    **{"patch_zyx": None, "symmetries": False, "intensity_percentiles": [10.0, 99.9]},
}
MIXING = {"patch_zyx": [8, 9, 9], "symmetries": True}


def samples(*, without: tuple[str, ...] = ()):
    """Volumes whose vectors are tied to the grey levels: a symmetry that broke the tie would show."""
    rng = np.random.default_rng(3)
    for group in range(GROUPS):
        for state in range(STATES):
            reference = rng.integers(100, 400, (1, *SHAPE)).astype(np.uint16)
            vectors = rng.normal(size=(3, *SHAPE)).astype(np.float32)
            fields = {
                "reference": reference,
                "deformed": (2 * reference + 5).astype(np.uint16),
                "displacement_um": vectors,
                "body_force_n_per_m3": 3 * vectors,
                "cell_mask": (reference > 300).astype(np.uint8),
                "drift_um": np.zeros((3, SHAPE[0]), np.float32),
                "surface_traction_pa": np.zeros((3, *SHAPE[1:]), np.float32),
                "voxel_size_um": np.array([0.8, 0.3, 0.3]),
                **dict.fromkeys(("youngs_modulus_pa", "poisson_ratio"), np.array(0.4)),
                **dict.fromkeys(("peak_displacement_voxels", "force_spread_um"), np.array(1.0)),
            }
            kept = {name: value for name, value in fields.items() if name not in without}
            yield Sample(f"cell{group:02d}_{state}", f"cell{group:02d}", kept)


def write(folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    declared = {name: entry for name, entry in FIELDS.items() if name not in without}
    write_dataset(
        folder / "cfm_3d" / "beads", samples(without=without), stem="cfm_3d", fields=declared, splits=SPLITS, seed=0,
        provenance={"irreducible_error": {"metric": "m", "value": 0.1}},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"))


def data(root: Path, **changes) -> BeadVolumeData:
    return BeadVolumeData(data_root=str(root), **{**PLAIN, **changes})


def train(module: BeadVolumeData, epoch: int = 0) -> list[BeadVolumeBatch]:
    loader = module.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def same(one: BeadVolumeBatch, other: BeadVolumeBatch) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_a_batch_is_what_the_contract_says(root: Path) -> None:
    module = data(root)
    module.prepare_data()
    module.setup("fit")
    for batch in (train(module)[0], next(iter(module.val_dataloader()))):
        count = len(batch.sample_id)
        for name in ("reference", "deformed"):
            volume = getattr(batch, name)
            assert volume.shape == (count, 1, *SHAPE)
            assert volume.dtype == torch.float32
            assert (volume.min(), volume.max()) == (0, 1)
        assert batch.displacement_um.shape == batch.body_force_n_per_m3.shape == (count, 3, *SHAPE)
        assert batch.cell_mask.shape == (count, *SHAPE)
        assert batch.cell_mask.dtype == torch.bool
        assert batch.voxel_size_um.shape == (count, 3)
        assert batch.youngs_modulus_pa.shape == batch.poisson_ratio.shape == (count,)
        assert all(t.dtype == torch.float32 for t in batch[:4] + batch[5:8])
        torch.testing.assert_close(batch.body_force_n_per_m3, 3 * batch.displacement_um)
        torch.testing.assert_close(batch.reference, batch.deformed)  # offset and gain drop out
    assert module.has_split("test")
    assert module.irreducible_error == {"metric": "m", "value": 0.1}
    assert module.data_folder == root / "cfm_3d" / "beads"


def test_patches_and_symmetries_keep_vectors_on_their_voxels(root: Path) -> None:
    module = data(root, **MIXING)
    stored = {sample.sample_id: sample.fields for sample in samples()}
    kinds = set()
    for epoch in range(3):
        for batch in train(module, epoch):
            assert batch.reference.shape[1:] == (1, 8, 9, 9)
            # both volumes, the force and the mask moved like the displacement
            torch.testing.assert_close(batch.body_force_n_per_m3, 3 * batch.displacement_um)
            torch.testing.assert_close(batch.reference, batch.deformed)
            for slot, name in enumerate(batch.sample_id):
                fields = stored[name]
                grey = scaled_volume(fields["reference"][0], (10.0, 99.9))
                vector = batch.displacement_um[slot, :, 4, 4, 4].numpy()
                # a voxel is known again by the lengths of its components
                lengths = np.sort(np.abs(fields["displacement_um"]), axis=0)
                off = np.abs(lengths - np.sort(np.abs(vector))[:, None, None, None]).sum(axis=0)
                z, y, x = np.unravel_index(off.argmin(), off.shape)
                assert off.min() < 1e-6
                assert batch.reference[slot, 0, 4, 4, 4] == pytest.approx(grey[z, y, x])
                assert bool(batch.cell_mask[slot, 4, 4, 4]) == bool(fields["cell_mask"][0, z, y, x])
                ratio = vector / fields["displacement_um"][:, z, y, x]
                kinds.add((bool(abs(ratio[0]) != 1), *np.sign(ratio).tolist()))
    assert len(kinds) > 8


def test_training_repeats_for_a_seed_and_epoch_and_evaluation_always(root: Path) -> None:
    first, again, other = (train(data(root, **MIXING), epoch) for epoch in (1, 1, 2))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not any(same(a, b) for a, b in zip(first, other, strict=True))
    module = data(root, **MIXING)
    for name in ("val_dataloader", "test_dataloader"):
        one, two = (list(getattr(module, name)()) for _ in range(2))
        assert all(same(a, b) for a, b in zip(one, two, strict=True))
        assert one[0].reference.shape[2:] == SHAPE


def test_symmetries_that_would_stretch_a_voxel_or_change_a_shape_are_left_out(root: Path) -> None:
    for changes in ({"patch_zyx": [8, 9, 10]}, {}):
        module = data(root, symmetries=True, **changes)
        shapes = {tuple(batch.reference.shape[2:]) for batch in train(module)}
        assert shapes == {tuple(changes.get("patch_zyx", SHAPE))}


def test_what_is_unknown_is_nan_and_the_cell_may_be_anywhere(tmp_path: Path) -> None:
    module = data(write(tmp_path, without=("body_force_n_per_m3", "cell_mask", "displacement_um")))
    batch = next(iter(module.test_dataloader()))
    assert batch.body_force_n_per_m3.isnan().all()
    assert batch.displacement_um.shape == (len(batch.sample_id), 3, *SHAPE)
    assert batch.displacement_um.isnan().all()
    assert batch.cell_mask.all()
    with pytest.raises(ValueError, match="holds volumes without displacement: it cannot be trained on"):
        module.setup("fit")
    lacking = data(write(tmp_path / "b", without=("voxel_size_um",)))
    with pytest.raises(ValueError, match="must hold voxel_size_um"):
        lacking.setup("test")


def test_scaling_puts_the_percentiles_at_zero_and_one() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(50, 1000, (20, 20, 20))
    low, high = np.percentile(counts, (10, 99))
    expected = np.clip((counts - low) / (high - low), 0, 1)
    for dtype in ("uint16", "int32", "float32"):
        found = scaled_volume(counts.astype(dtype), (10.0, 99.0))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-3)
    sparse = np.zeros((20, 20, 20), np.uint8)
    sparse[3, 3, 3] = 200
    assert scaled_volume(sparse, (10.0, 99.9)).max() == 1
    assert not scaled_volume(np.full((8, 8, 8), 7, np.uint8), (10.0, 99.9)).any()


# -- own volumes -------------------------------------------------------------------------------------------------------


def own(folder: Path, sizes: dict[str, tuple[int, int, int]]) -> list[Path]:
    rng = np.random.default_rng(0)
    stated = {"voxel_size_um": [1.0, 0.5, 0.5], "youngs_modulus_pa": 500, "poisson_ratio": 0.45}
    (folder / "conditions.json").write_text(json.dumps(stated))
    files = []
    for name, size in sizes.items():
        for state in ("reference", "deformed"):
            files.append(folder / f"{name}_{state}.tif")
            tifffile.imwrite(files[-1], rng.integers(0, 250, size).astype(np.uint8))
    return files


def test_own_pairs_are_predicted_on_whole(tmp_path: Path) -> None:
    module = data(tmp_path, **MIXING)
    files = own(tmp_path, {"b": (9, 10, 11), "a": (9, 10, 11)})
    module.predict_on(files=files, pixel_size_um=0.25)
    module.prepare_data()
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert batch.sample_id == batch.group == ["b", "a"]
    assert batch.reference.shape == (2, 1, 9, 10, 11)
    assert batch.displacement_um.isnan().all()
    assert batch.cell_mask.all()
    assert batch.voxel_size_um.tolist() == [[1.0, 0.25, 0.25]] * 2
    np.testing.assert_allclose(
        batch.reference[0, 0].numpy(), scaled_volume(tifffile.imread(files[0]), (10.0, 99.9)), atol=0
    )
    assert module.data_folder is None
    assert module.irreducible_error is None
    module.predict_on(files=own(tmp_path, {"b": (9, 10, 11), "c": (10, 10, 11)}))
    assert [len(batch.sample_id) for batch in module.predict_dataloader()] == [1, 1]
    assert batch.voxel_size_um[0, 1] == 0.25


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "all"}, ValueError, "split must be 'train', 'val' or 'test'"),
        ({"pixel_size_um": 0.3}, ValueError, "pixel_size_um needs files"),
        ({"files": []}, ValueError, "files must name at least one pair"),
        ({"files": ["missing_reference.tif"]}, FileNotFoundError, "there is no file .*missing_reference.tif"),
        ({"files": ["picture.tif"]}, ValueError, "picture.tif is no volume of a pair: name the two"),
        ({"files": ["a_reference.tif"], "pixel_size_um": 0.0}, ValueError, "pixel_size_um must be positive"),
    ],
)
def test_a_wrong_request_for_predictions_is_refused(tmp_path: Path, arguments: dict, error: type, message: str) -> None:
    own(tmp_path, {"a": (9, 10, 11)})
    (tmp_path / "picture.tif").write_bytes(b"")
    if "files" in arguments:
        arguments = {**arguments, "files": [tmp_path / name for name in arguments["files"]]}
    with pytest.raises(error, match=message):
        data(tmp_path).predict_on(**arguments)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_workers": -1}, "num_workers must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"patch_zyx": [8, 8]}, "patch_zyx must be null or three sizes of at least 8"),
        ({"patch_zyx": [8, 8, 4]}, "patch_zyx must be null or three sizes of at least 8"),
        ({"intensity_percentiles": [50.0, 50.0]}, "intensity_percentiles must be two numbers"),
        ({"intensity_percentiles": [1.0, 101.0]}, "intensity_percentiles must be two numbers"),
        ({"memory_gib": -1.0}, "memory_gib must be at least 0"),
        ({"dataset": "../x"}, "dataset must be the name of one folder"),
    ],
)
def test_impossible_arguments_are_refused_by_name(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        data(tmp_path, **changes)


def test_a_patch_that_does_not_fit_and_a_missing_data_set_are_told_before_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^patch_zyx \[16, 8, 8\] must fit into the volumes of \[10, 12, 12\] voxels"):
        data(root, patch_zyx=[16, 8, 8]).setup("fit")
    with pytest.raises(FileNotFoundError, match="mechanolab data simulate cfm_3d"):
        data(tmp_path, dataset="twin").prepare_data()


def test_a_set_up_module_travels_to_workers_and_ranks(root: Path) -> None:
    module = data(root, **MIXING)
    module.setup("fit")
    dataset = pickle.loads(pickle.dumps(module.train_dataloader().dataset))
    assert dataset[(0, 1)].sample_id == module.train_dataloader().dataset[(0, 1)].sample_id
    halves = []
    for rank in (0, 1):
        shared = data(root)
        shared.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        halves.append({name for batch in shared.test_dataloader() for name in batch.sample_id})
    assert not halves[0] & halves[1]
