"""Archives of displacement fields that are refused: one sentence that names the file, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.converters import dl_tfm
from datamodules.converters.field_pairs import check_pair
from physics.half_space import displacement_from_traction
from physics.traction_cytometry import traction_from_displacement

SIZE = 16
GEL = {"youngs_modulus_pa": 4000.0, "poisson_ratio": 0.45}
CONDITIONS = GEL | {"pixel_size_um": 1.5}
OUTLINE = {"brdx": np.array([3.0, 14.0, 14.0, 3.0]), "brdy": np.array([5.0, 5.0, 12.0, 12.0])}


def random_pair(seed: int, height: int = SIZE, width: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """(displacement in px, traction in Pa), (2, y, x), traction in the inner part only."""
    rng = np.random.default_rng(seed)
    traction = np.zeros((2, height, width))
    traction[:, 4:-4, 3:-3] = rng.normal(0.0, 500.0, (2, height - 8, width - 6))
    reach = "published" if height == width else "full"
    displacement = displacement_from_traction(
        torch.from_numpy(traction), pixel_size_um=1.0, centre_element="published", reach=reach, **GEL
    )
    return displacement.numpy(), traction


U, T = random_pair(0)
GOOD = {"dspl": U.transpose(2, 1, 0), "trac": T.transpose(2, 1, 0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conditions.json").write_text(json.dumps(CONDITIONS))
    return tmp_path


def converted(folder: Path) -> list:
    return list(dl_tfm.convert(folder))


def write(folder: Path, name: str = "cell1.npz", **changes: object) -> Path:
    arrays = {key: array for key, array in (GOOD | OUTLINE | changes).items() if array is not None}
    if name.endswith("npz"):
        np.savez(folder / name, **arrays)
    else:
        scipy.io.savemat(folder / name, arrays)
    return folder / name


def with_nan(array: np.ndarray) -> np.ndarray:
    spoilt = array.copy()
    spoilt[3, 4, 1] = np.nan
    return spoilt


def test_the_good_archive_is_read(folder):
    write(folder)
    assert len(converted(folder)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dspl": with_nan(GOOD["dspl"])}, r"dspl in .*cell1\.npz has 1 values that are NaN .* at \(3, 4, 1\)"),
        ({"trac": np.full((SIZE, SIZE, 2), np.inf)}, r"trac in .*cell1\.npz has 512 values that are NaN"),
        ({"dspl": U}, r"dspl in .*cell1\.npz is \(2, 16, 16\), it must be \(S, S, 2\)"),
        ({"dspl": GOOD["dspl"][:, :12]}, r"dspl in .* is \(16, 12, 2\)"),
        ({"dspl": GOOD["dspl"][..., 0]}, r"dspl in .* is \(16, 16\)"),
        ({"trac": GOOD["trac"][:12, :12]}, r"cell1\.npz: dspl is a field of 16 x 16 px but trac one of 12 x 12 px"),
        ({"dspl": GOOD["dspl"].astype(complex)}, "dspl in .* must hold real numbers, it is complex128"),
        ({"dspl": None}, r"cell1\.npz holds brdx, brdy, trac but no dspl"),
        ({"brdy": None}, r"cell1\.npz holds brdx alone: an outline needs brdx and brdy"),
        ({"brdy": OUTLINE["brdy"][:3]}, "brdx has 4 corners and brdy 3"),
        ({"brdx": OUTLINE["brdx"] * 7}, r"cell1\.npz: the outline runs from 5 to 98, outside the field of 16 pixels"),
        ({"brdx": OUTLINE["brdx"] - 3}, "the outline runs from 0 to 12, outside the field"),
        ({"brdx": np.full(4, 3.4), "brdy": np.full(4, 3.4)}, "the outline encloses no pixel"),
        ({"brdx": OUTLINE["brdx"] * np.nan}, r"brdx in .*cell1\.npz has 4 values that are NaN"),
        ({"trac": np.zeros_like(GOOD["trac"])}, "the traction is zero everywhere but the displacement is not"),
        ({"trac": GOOD["trac"] * 3}, "substrate of 1.2e.04 Pa, not 4000: correct the modulus"),
        ({"trac": GOOD["trac"] * 1.3}, "substrate of 5200 Pa, not 4000"),
    ],
)
def test_a_faulty_file_is_refused_by_name(folder, changes, message):
    write(folder, **changes)
    with pytest.raises(ValueError, match=message) as refusal:
        converted(folder)
    assert "cell1.npz" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"youngs_modulus_pa": 0}, "youngs_modulus_pa must be a positive number, got 0"),
        ({"youngs_modulus_pa": -5.0}, r"youngs_modulus_pa must be a positive number, got -5\.0"),
        ({"youngs_modulus_pa": "10 kPa"}, 'youngs_modulus_pa must be a positive number, got "10 kPa"'),
        ({"youngs_modulus_pa": True}, "youngs_modulus_pa must be a positive number, got true"),
        ({"poisson_ratio": 0}, "poisson_ratio must be a positive number"),
        ({"poisson_ratio": 0.51}, r"poisson_ratio must be in \(0, 0\.5\], got 0\.51"),
        ({"pixel_size_um": float("nan")}, "pixel_size_um must be a positive number, got NaN"),
        ({"files_per_cell": 1.5}, r"files_per_cell must be a whole number, got 1\.5"),
        ({"pixelsize": 1.0}, "unknown entry 'pixelsize': remove it; accepted are youngs_modulus_pa"),
    ],
)
def test_impossible_conditions_are_refused(folder, changes, message):
    write(folder)
    (folder / "conditions.json").write_text(json.dumps(CONDITIONS | changes))
    with pytest.raises(ValueError, match=rf"conditions\.json.*{message}"):
        converted(folder)


def test_missing_conditions_say_what_to_write(folder):
    write(folder)
    path = folder / "conditions.json"
    path.write_text(json.dumps(GEL))
    with pytest.raises(ValueError, match=r'lacks pixel_size_um: add it, for example {"pixel_size_um": 1\.925}'):
        converted(folder)
    for text in ("{", "[1]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"conditions\.json"):
            converted(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"conditions\.json: .*so write that file.*\"pixel_size_um\": 1\.925"):
        converted(folder)


def test_what_does_not_belong_together_is_refused(folder):
    write(folder)
    small = random_pair(0, 12, 12)
    write(folder, "cell2.npz", dspl=small[0].transpose(2, 1, 0), trac=small[1].transpose(2, 1, 0), brdx=None, brdy=None)
    with pytest.raises(ValueError, match=r"cell2\.npz is a field of 12 x 12 px, but .*cell1\.npz is one of 16 x 16 px"):
        converted(folder)
    write(folder, "cell2.npz", trac=None)
    with pytest.raises(ValueError, match=r"cell2\.npz has no traction, but .*cell1\.npz has"):
        converted(folder)
    write(folder, "cell2.mat")
    with pytest.raises(ValueError, match=r"cell2\.mat and cell2\.npz have the same name"):
        converted(folder)
    (folder / "cell2.mat").unlink()
    np.savez(folder / "cell2.npz", u=U[0], v=U[1])
    with pytest.raises(ValueError, match=r"holds both cell1\.npz with dspl and cell2\.npz with u"):
        converted(folder)


def test_a_missing_partner_is_named(folder):
    for name in ("dspl", "trac"):
        (folder / name).mkdir()
        for cell in ("cell1", "cell2"):
            scipy.io.savemat(folder / name / f"{cell}.mat", {name: GOOD[name], **OUTLINE})
    assert len(converted(folder)) == 2
    moved = {key: value + 0.5 for key, value in OUTLINE.items()}
    scipy.io.savemat(folder / "trac" / "cell2.mat", {"trac": GOOD["trac"], **moved})
    with pytest.raises(ValueError, match=r"dspl/cell2\.mat with .*trac/cell2\.mat: their outlines differ"):
        converted(folder)
    scipy.io.savemat(folder / "trac" / "cell2.mat", {"dspl": GOOD["dspl"]})
    with pytest.raises(ValueError, match=r"trac/cell2\.mat holds no trac"):
        converted(folder)
    (folder / "trac" / "cell2.mat").unlink()
    with pytest.raises(ValueError, match=r"dspl/cell2\.mat has no partner of that name in .*trac"):
        converted(folder)
    (folder / "dspl" / "cell2.mat").unlink()
    (folder / "tracRadial").mkdir()
    with pytest.raises(ValueError, match="tracRadial has no folder of displacements beside it"):
        converted(folder)


def test_components_without_partner_or_of_another_size_are_named(folder):
    conditions = CONDITIONS | {"image_pixel_size_um": 0.5}
    (folder / "conditions.json").write_text(json.dumps(conditions))
    np.save(folder / "01u.npy", U[0])
    with pytest.raises(ValueError, match=r"01u\.npy lacks its partner v"):
        converted(folder)
    np.save(folder / "01v.npy", U[1])
    np.save(folder / "01tx.npy", T[0])
    with pytest.raises(ValueError, match="lacks its partner ty"):
        converted(folder)
    np.save(folder / "01ty.npy", T[1][:-1])
    with pytest.raises(ValueError, match=r"ty in .*01ty\.npy is \(15, 16\), u is \(16, 16\)"):
        converted(folder)


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "link", "group"])
def test_damaged_files_are_refused_by_name(folder, damage):
    path = write(folder, "cell1.npz" if damage in ("cut", "pickle") else "cell1.mat")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "text":
        path.write_text("not a matrix")
    elif damage == "pickle":
        np.savez(path, dspl=np.array([{}], dtype=object))
    else:
        path.unlink()
        with h5py.File(folder / "other.h5", "w") as other:
            other["dspl"] = GOOD["dspl"].T
        with h5py.File(path, "w") as file:
            if damage == "link":
                file["dspl"] = h5py.ExternalLink("other.h5", "dspl")
            else:
                file.create_group("dspl")
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read, it is damaged or no {path.suffix} file"):
        converted(folder)


@pytest.mark.parametrize("version", ["5", "7"])
def test_a_matrix_cut_anywhere_is_refused_by_name(folder, version):
    path = folder / "cell1.mat"
    scipy.io.savemat(path, GOOD, do_compression=version == "7")
    whole = path.read_bytes()
    for size in range(1, len(whole) - 8, len(whole) // 23):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cell1\.mat"):
            converted(folder)


def test_unknown_folders_are_refused(folder):
    with pytest.raises(ValueError, match="has none of the layouts of paper dl_tfm: looked for"):
        converted(folder)
    with pytest.raises(FileNotFoundError, match="no source folder at"):
        converted(folder / "nowhere")
    (folder / "dspl").mkdir()
    with pytest.raises(ValueError, match="unpack the archive again"):
        converted(folder)


def test_an_outline_with_swapped_axes_is_refused(folder):
    low = T * (np.arange(SIZE) < 8)[:, None]
    u = displacement_from_traction(
        torch.from_numpy(low), pixel_size_um=1.0, centre_element="published", reach="published", **GEL
    ).numpy()
    low_half, high_half = np.array([2.0, 15.0, 15.0, 2.0]), np.array([2.0, 2.0, 8.5, 8.5])
    pair = {"dspl": u.transpose(2, 1, 0), "trac": low.transpose(2, 1, 0)}
    write(folder, **pair, brdx=low_half, brdy=high_half)
    assert len(converted(folder)) == 1
    write(folder, **pair, brdx=high_half, brdy=low_half)
    with pytest.raises(ValueError, match=r"\d+% of the traction lies outside the outline, but 0% when brdx and brdy"):
        converted(folder)


SWAPS = {
    "components of both": (lambda f: f[::-1], lambda f: f[::-1]),
    "axes of both": (lambda f: f.transpose(0, 2, 1), lambda f: f.transpose(0, 2, 1)),
    "components of the traction": (lambda f: f, lambda f: f[::-1]),
    "components of the displacement": (lambda f: f[::-1], lambda f: f),
    "axes of the traction": (lambda f: f, lambda f: f.transpose(0, 2, 1)),
    "all of the displacement": (lambda f: f[::-1].transpose(0, 2, 1), lambda f: f),
    "y up in both components": (lambda f: f * [[[1.0]], [[-1.0]]], lambda f: f * [[[1.0]], [[-1.0]]]),
    "y up in the traction": (lambda f: f, lambda f: f * [[[1.0]], [[-1.0]]]),
    "the gel's force on the cell": (lambda f: f, lambda f: -f),
}


@pytest.mark.parametrize("swap", SWAPS)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.0, 0.1]))
def test_a_pair_in_another_convention_is_refused_and_the_right_one_passes(swap, seed, noise):
    u, t = random_pair(seed)
    u = u + noise * u.std() * np.random.default_rng(seed).normal(size=u.shape)
    check_pair("cell1", u, t, modulus_pa=4000.0, poisson_ratio=0.45)
    of_displacement, of_traction = SWAPS[swap]
    with pytest.raises(ValueError, match="cell1: the traction does not explain the displacement"):
        check_pair("cell1", of_displacement(u), of_traction(t), modulus_pa=4000.0, poisson_ratio=0.45)


@pytest.mark.parametrize("scale", [0.55, 1.2, 1.925])
@pytest.mark.parametrize("operator", [("published", "published"), ("exact", "full")])
def test_a_displacement_in_another_unit_is_refused_whichever_operator_made_it(operator, scale):
    _, t = random_pair(3, 24, 24)
    kernel = dict(zip(("centre_element", "reach"), operator, strict=True))
    substrate = {"pixel_size_um": 1.0, "youngs_modulus_pa": 4000.0, "poisson_ratio": 0.45}
    u = displacement_from_traction(torch.from_numpy(np.ascontiguousarray(t)), **substrate, **kernel).numpy()
    check_pair("cell1", u, t, modulus_pa=4000.0, poisson_ratio=0.45)
    with pytest.raises(ValueError, match="cell1: the traction belongs to this displacement on a substrate of"):
        check_pair("cell1", scale * u, t, modulus_pa=4000.0, poisson_ratio=0.45)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.0, 0.05]))
def test_a_traction_by_fourier_cytometry_passes_wherever_it_is_stored(seed, noise):
    u, _ = random_pair(seed, 32, 32)
    u = u + noise * u.std() * np.random.default_rng(seed).normal(size=u.shape) + 0.3  # drifted
    found = traction_from_displacement(torch.from_numpy(u), pixel_size_um=1.0, regularization=5e-9, **GEL).numpy()
    check_pair("cell1", u, found, modulus_pa=4000.0, poisson_ratio=0.45)
    with pytest.raises(ValueError, match="cell1: the traction does not explain the displacement"):
        check_pair("cell1", u, found[::-1], modulus_pa=4000.0, poisson_ratio=0.45)
    with pytest.raises(ValueError, match=r"on a substrate of .* Pa, not 1\.2e\+04"):
        check_pair("cell1", u, found, modulus_pa=12000.0, poisson_ratio=0.45)


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 10_000))
def test_the_mirror_at_the_diagonal_and_a_field_that_is_not_square_pass(seed):
    u, t = random_pair(seed)
    mirrored = [field[::-1].transpose(0, 2, 1).copy() for field in (u, t)]
    check_pair("cell1", *mirrored, modulus_pa=4000.0, poisson_ratio=0.45)
    u, t = random_pair(seed, 15, 22)
    check_pair("cell1", u, t, modulus_pa=4000.0, poisson_ratio=0.45)
    with pytest.raises(ValueError, match="components swapped"):
        check_pair("cell1", u[::-1], t[::-1], modulus_pa=4000.0, poisson_ratio=0.45)
