"""Batches of paper `dl_tfm`, read from shards that the production writer wrote."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.batches import OPERATOR_CODES, Sample, TractionBatch
from datamodules.dl_tfm import TractionData
from datamodules.shards.reader import ShardDataset
from datamodules.shards.writer import write_dataset
from datamodules.simulators.dl_tfm import FIELDS, SPLITS
from physics.half_space import displacement_from_traction
from physics.vector_fields import flip, rotate

GROUPS, ROTATIONS, SIZE = 12, 3, 32
SUBSTRATE = {"youngs_modulus_pa": 10670.0, "poisson_ratio": 0.45, "pixel_size_um": 1.925}
STORED = {"centre_element": "published", "reach": "published"}
PLAIN = {
    **{"dataset": "cells", "split": "default", "batch_size": 4, "num_workers": 0, "memory_gib": 0.0, "seed": 7},
    "noise_px": 0.0,
    "train_noise_px": None,
    "noise_free_share": 0.0,
    "correlated_px": 0.0,
    "correlation_length_px": 4.0,
    "drift_px": 0.0,
    "tilt_px": 0.0,
    "symmetries": False,
    "centre_element": None,
    "reach": None,
    "poisson_ratio": None,
    "transfer_function": None,
}
EVERY_NOISE = {
    "train_noise_px": [0.01, 0.05],
    "noise_free_share": 0.2,
    "correlated_px": 0.02,
    "drift_px": 0.02,
    "tilt_px": 0.02,
    "symmetries": True,
}
FLOAT32 = 2e-6  # relative to the largest value
STATISTICAL = 0.03  # deviation of 20,000 draws


def displaced(traction_pa: torch.Tensor, **operator) -> torch.Tensor:
    return displacement_from_traction(traction_pa, **{**SUBSTRATE, **STORED, **operator})


def samples():
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for group in range(GROUPS):
        for rotation in range(ROTATIONS):
            mask = (rows - rng.uniform(12, 18)) ** 2 + (columns - rng.uniform(12, 18)) ** 2 < 64
            pulled = mask & (rng.random(mask.shape) < 0.1)
            traction = (rng.normal(0, 1000, (2, SIZE, SIZE)) * pulled).astype(np.float32)
            fields = {
                "displacement_um": displaced(torch.from_numpy(traction)).numpy(),
                "traction_pa": traction,
                "cell_mask": mask[None].astype(np.uint8),
                "outline_px": np.zeros((360, 2), np.float32),
                "outline_px_length": np.int32(0),
                "recipe": np.int8(0),
                **dict.fromkeys(OPERATOR_CODES, np.int8(1)),
                **{name: np.float64(value) for name, value in SUBSTRATE.items()},
            }
            yield Sample(f"cell{group:02d}_{rotation}", f"cell{group:02d}", fields)


def without(name: str):
    for sample in samples():
        yield sample._replace(fields={key: value for key, value in sample.fields.items() if key != name})


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("data")

    def write(name, stream, *, stem="dl_tfm", lacking="", **provenance):
        fields = {key: value for key, value in FIELDS.items() if key != lacking}
        options = {"fields": fields, "splits": SPLITS, "seed": 0, "provenance": provenance}
        write_dataset(root / "dl_tfm" / name, stream, stem=stem, **options)

    write("cells", samples(), irreducible_error={"metric": "traction_nrmse", "value": 0.03})
    write("measured", without("traction_pa"), lacking="traction_pa")
    write("masked", without("cell_mask"), lacking="cell_mask")
    write("foreign", samples(), stem="circular")
    return str(root)


@pytest.fixture
def make(data_root):
    return lambda **changed: TractionData(**{"data_root": data_root, **PLAIN, **changed})


def epoch_of(loader, epoch: int = 0) -> list[TractionBatch]:
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def by_id(batches: list[TractionBatch]) -> dict[str, SimpleNamespace]:
    """Each sample of the batches: its tensors without the batch dimension."""
    found = {}
    for batch in batches:
        for row, name in enumerate(batch.sample_id):
            found[name] = SimpleNamespace(**{key: part[row] for key, part in batch._asdict().items()})
    return found


def same(one: list[TractionBatch], other: list[TractionBatch]) -> bool:
    return len(one) == len(other) and all(
        all(torch.equal(x, y) for x, y in zip(a[:-2], b[:-2], strict=True)) and a[-2:] == b[-2:]
        for a, b in zip(one, other, strict=True)
    )


def noises(batches: list[TractionBatch], clean: list[TractionBatch]) -> dict[str, torch.Tensor]:
    """What was added to each sample, in px."""
    without_noise = by_id(clean)
    return {
        name: sample.displacement_px - without_noise[name].displacement_px for name, sample in by_id(batches).items()
    }


# -- what a batch is --------------------------------------------------------------------------------------------------


def test_a_batch_holds_what_its_fields_say(make):
    data = make()
    data.setup("test")
    stored = ShardDataset(data.splits.folder, scheme="default", split="test")
    seen = by_id(epoch_of(data.test_dataloader()))
    assert len(seen) == len(stored)
    for sample in stored.__getitems__(range(len(stored))):
        batch = seen[sample.sample_id]
        assert batch.group == sample.group
        assert (batch.displacement_px.dtype, batch.traction_pa.dtype) == (torch.float32, torch.float32)
        assert batch.cell_mask.dtype == torch.bool
        assert batch.cell_mask.shape == (SIZE, SIZE)
        assert np.array_equal(batch.cell_mask.numpy(), sample.fields["cell_mask"][0] > 0)
        assert np.array_equal(batch.traction_pa.numpy(), sample.fields["traction_pa"])
        np.testing.assert_allclose(batch.displacement_px.numpy() * 1.925, sample.fields["displacement_um"], rtol=1e-6)
        for name, value in SUBSTRATE.items():
            assert getattr(batch, name).item() == pytest.approx(value, rel=1e-6)


def test_what_is_known_of_the_data_set(make, data_root):
    data = make()
    assert data.irreducible_error == {"metric": "traction_nrmse", "value": 0.03}
    assert make(dataset="measured").irreducible_error is make(reach="full").irreducible_error is None
    assert str(data.data_folder) == f"{data_root}/dl_tfm/cells"
    assert all(data.has_split(name) for name in ("train", "val", "test"))


def test_fields_without_a_known_traction_are_tested_and_predicted_but_not_trained_on(make):
    data = make(dataset="measured", noise_px=0.01)
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        for batch in loader:
            assert batch.traction_pa.isnan().all()
            assert batch.traction_pa.shape == batch.displacement_px.shape
            assert batch.displacement_px.isfinite().all()
    with pytest.raises(ValueError, match="holds displacements without tractions: it cannot be trained on"):
        data.setup("fit")


# -- noise ------------------------------------------------------------------------------------------------------------


def test_measured_noise_has_the_magnitude_asked_for(make):
    """The root mean square length of the vectors is the magnitude; the components are independent."""
    clean = epoch_of(make().val_dataloader()) + epoch_of(make().test_dataloader())
    noisy = make(noise_px=0.05)
    added = torch.stack(
        list(noises(epoch_of(noisy.val_dataloader()) + epoch_of(noisy.test_dataloader()), clean).values())
    ).double()
    assert added.square().sum(dim=1).mean().sqrt().item() == pytest.approx(0.05, rel=STATISTICAL)
    for component in (0, 1):
        assert added[:, component].std().item() == pytest.approx(0.05 / math.sqrt(2), rel=STATISTICAL)
    assert abs(added.mean().item()) < STATISTICAL * 0.05
    assert abs((added[:, 0] * added[:, 1]).mean().item()) < STATISTICAL * 0.05**2 / 2


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_see_the_same_noise_every_time(make, split):
    def read(epoch=0, **changed):
        return by_id(epoch_of(getattr(make(noise_px=0.05, **changed), f"{split}_dataloader")(), epoch))

    first = read()
    for again in (read(), read(epoch=3), read(batch_size=1), read(**EVERY_NOISE)):
        assert again.keys() == first.keys()
        assert all(torch.equal(again[name].displacement_px, first[name].displacement_px) for name in first)
    other = read(seed=8)
    assert not any(torch.equal(other[name].displacement_px, first[name].displacement_px) for name in first)
    patterns = {sample.displacement_px[0, 0, 0].item() for sample in first.values()}
    assert len(patterns) == len(first)


def test_training_noise_is_new_in_every_epoch_and_a_function_of_seed_and_epoch(make):
    def read(epoch, **changed):
        data = make(**{**EVERY_NOISE, "noise_free_share": 0.0}, **changed)
        return {
            name: sample.displacement_px for name, sample in by_id(epoch_of(data.train_dataloader(), epoch)).items()
        }

    first, again = read(0), read(0)
    assert first.keys() == again.keys()
    assert all(torch.equal(again[name], field) for name, field in first.items())
    for changed in (read(1), read(0, seed=8)):
        shared = first.keys() & changed.keys()
        assert len(shared) > len(first) / 2  # the last batch is dropped
        assert not any(torch.equal(changed[name], first[name]) for name in shared)


def test_training_magnitudes_are_drawn_log_uniformly(make):
    clean = epoch_of(make(batch_size=1).train_dataloader())
    noisy = make(batch_size=1, train_noise_px=[0.001, 0.1])
    magnitudes = []
    for epoch in range(8):
        added = noises(epoch_of(noisy.train_dataloader(), epoch), clean)
        magnitudes += [noise.square().sum(dim=0).mean().sqrt().item() for noise in added.values()]
    share = np.log(np.array(magnitudes) / 0.001) / np.log(100)  # uniform in [0, 1]
    assert len(share) > 150
    assert -0.02 < share.min() < 0.05
    assert 0.95 < share.max() < 1.02
    assert np.quantile(share, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.12)


def test_a_share_of_the_training_samples_stays_clean(make):
    clean = epoch_of(make(batch_size=1).train_dataloader())

    def untouched(share: float) -> float:
        data = make(batch_size=1, **{**EVERY_NOISE, "noise_free_share": share, "symmetries": False})
        added = [noises(epoch_of(data.train_dataloader(), epoch), clean) for epoch in range(6)]
        return float(np.mean([noise.abs().max() == 0 for part in added for noise in part.values()]))

    assert untouched(0.0) == 0
    assert untouched(1.0) == 1
    assert untouched(0.5) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("drift_px", lambda noise: noise - noise[:, :1, :1]),
        ("tilt_px", lambda noise: torch.cat([noise.diff(n=2, dim=1).flatten(), noise.diff(n=2, dim=2).flatten()])),
    ],
)
def test_drift_is_constant_and_tilt_is_linear_over_the_field(make, kind, form):
    clean = epoch_of(make().train_dataloader())
    added = noises(epoch_of(make(**{kind: 1.0}).train_dataloader()), clean)
    assert all(noise.abs().max() > 1e-3 for noise in added.values())
    assert all(form(noise).abs().max() < 1e-5 for noise in added.values())


def test_correlated_noise_is_alike_in_neighbours_and_never_larger_than_asked_for(make):
    clean = epoch_of(make(batch_size=1).train_dataloader())
    added = noises(epoch_of(make(batch_size=1, correlated_px=0.1).train_dataloader()), clean)
    for noise in added.values():
        assert noise.diff(dim=1).square().mean() < 0.3 * noise.square().mean()
        assert noise.square().sum(dim=0).mean().sqrt() < 0.1 * 1.5  # a field holds few independent patches


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_batches_do_not_depend_on_the_number_of_workers(make):
    alone = make(**EVERY_NOISE, noise_px=0.02)
    helped = make(**EVERY_NOISE, noise_px=0.02, num_workers=2)
    assert same(epoch_of(alone.train_dataloader(), 2), epoch_of(helped.train_dataloader(), 2))
    assert same(epoch_of(alone.test_dataloader()), epoch_of(helped.test_dataloader()))


def test_training_goes_on_in_the_middle_of_an_epoch(make):
    whole = epoch_of(make(**EVERY_NOISE).train_dataloader(), 1)
    stopped = make(**EVERY_NOISE).train_dataloader()
    stopped.batch_sampler.set_epoch(1)
    begun = iter(stopped)
    first = [next(begun) for _ in range(2)]
    resumed = make(**EVERY_NOISE).train_dataloader()
    resumed.load_state_dict(pickle.loads(pickle.dumps(stopped.state_dict())))
    assert same(whole, first + epoch_of(resumed, 1))


# -- symmetries -------------------------------------------------------------------------------------------------------


def test_symmetries_move_vectors_pixels_and_mask_together(make):
    """A moved pair is still a pair of the elastic operator, and one of the eight that turns and mirrors make."""
    clean = by_id(epoch_of(make(batch_size=1).train_dataloader()))
    data = make(batch_size=1, symmetries=True)
    seen = set()
    for epoch in range(2):
        for name, moved in by_id(epoch_of(data.train_dataloader(), epoch)).items():
            explained = displaced(moved.traction_pa) / SUBSTRATE["pixel_size_um"]
            assert (explained - moved.displacement_px).abs().max() < FLOAT32 * explained.abs().max()
            assert moved.traction_pa[:, ~moved.cell_mask].abs().max() == 0
            assert moved.cell_mask.sum() == clean[name].cell_mask.sum()
            matches = [
                (turns, mirrored)
                for turns in range(4)
                for mirrored in (False, True)
                if torch.equal(moved.traction_pa, image_of(clean[name].traction_pa, turns, mirrored))
            ]
            assert len(matches) == 1
            seen |= set(matches)
    assert len(seen) == 8


def image_of(field: torch.Tensor, turns: int, mirrored: bool) -> torch.Tensor:
    turned = rotate(field, turns * math.pi / 2)
    return flip(turned, "x") if mirrored else turned


def test_what_is_measured_is_never_moved(make):
    plain, moving = make(), make(symmetries=True)
    assert same(epoch_of(plain.val_dataloader()), epoch_of(moving.val_dataloader()))
    assert same(epoch_of(plain.test_dataloader()), epoch_of(moving.test_dataloader()))


# -- another operator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "operator"),
    [
        ({"centre_element": "exact"}, {"centre_element": "exact"}),
        ({"reach": "full"}, {"reach": "full"}),
        ({"poisson_ratio": 0.3}, {"poisson_ratio": 0.3}),
        (
            {"centre_element": "exact", "reach": "full", "transfer_function": [0.25, 0.5, 0.25]},
            {"centre_element": "exact", "reach": "full", "transfer_function": torch.tensor([0.25, 0.5, 0.25])},
        ),
    ],
    ids=["centre", "reach", "nu", "all"],
)
def test_a_displacement_made_anew_is_that_of_the_physics(make, changed, operator):
    for split in ("train", "val", "test"):
        stored = by_id(epoch_of(getattr(make(), f"{split}_dataloader")()))
        for name, sample in by_id(epoch_of(getattr(make(**changed), f"{split}_dataloader")())).items():
            expected = displaced(stored[name].traction_pa, **operator) / SUBSTRATE["pixel_size_um"]
            assert (sample.displacement_px - expected).abs().max() < FLOAT32 * expected.abs().max()
            assert (sample.displacement_px - stored[name].displacement_px).abs().max() > 1e-3 * expected.abs().max()
            for known, codes in OPERATOR_CODES.items():
                assert codes[int(getattr(sample, known))] == operator.get(known, STORED[known])
            assert sample.poisson_ratio == pytest.approx(operator.get("poisson_ratio", SUBSTRATE["poisson_ratio"]))


def test_a_displacement_cannot_be_made_anew_without_a_traction(make):
    with pytest.raises(ValueError, match=r"reach cannot be changed in .*measured, which holds no traction_pa"):
        make(dataset="measured", reach="full").setup("test")


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"memory_gib": -0.5}, "memory_gib must be at least 0, got -0.5"),
        ({"dataset": "a/b"}, "dataset must be the name of one folder"),
        ({"split": ""}, "split must name a split scheme"),
        ({"noise_px": -0.1}, "noise_px must be finite and not negative, got -0.1"),
        ({"noise_px": math.nan}, "noise_px must be finite and not negative, got nan"),
        ({"train_noise_px": [0.1]}, "train_noise_px must be two positive numbers, the smaller one first"),
        ({"train_noise_px": [0.2, 0.1]}, "train_noise_px must be two positive numbers, the smaller one first"),
        ({"train_noise_px": [0.0, 0.1]}, "train_noise_px must be two positive numbers, the smaller one first"),
        ({"noise_free_share": 1.1}, r"noise_free_share must lie in \[0, 1\], got 1.1"),
        ({"correlated_px": -1.0}, "correlated_px must be finite and not negative, got -1.0"),
        ({"correlation_length_px": 0.0}, "correlation_length_px must be positive"),
        ({"drift_px": math.inf}, "drift_px must be finite and not negative, got inf"),
        ({"tilt_px": -1.0}, "tilt_px must be finite and not negative, got -1.0"),
        ({"centre_element": "middle"}, "centre_element must be null, exact or published, got 'middle'"),
        ({"reach": "far"}, "reach must be null, full or published, got 'far'"),
        ({"poisson_ratio": 0.6}, r"poisson_ratio must be null or lie in \(0, 0.5\], got 0.6"),
        ({"transfer_function": [0.5, 0.5]}, "transfer_function must be a real kernel"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, changed, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**changed)


def test_what_is_missing_is_named_with_the_mend(make):
    with pytest.raises(FileNotFoundError, match="mechanolab data simulate dl_tfm"):
        make(dataset="twin").prepare_data()
    with pytest.raises(ValueError, match=r"must hold cell_mask.*: simulate or convert it anew"):
        make(dataset="masked").setup("test")
    with pytest.raises(ValueError, match="is a data set of circular, not of dl_tfm"):
        make(dataset="foreign").setup("test")
    with pytest.raises(ValueError, match="fold9"):
        make(split="fold9").setup("test")
