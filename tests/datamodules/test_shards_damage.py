"""Everything that can be wrong on disk: verification names the file, and reading never returns a wrong number.

The forger's cases give the manifest the new size and sha256 of the file they changed, so that the first line of
defence is passed and the checks behind it are on their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from datamodules.batches import Sample
from datamodules.shards.reader import ShardDataset
from datamodules.shards.schema import Field, Manifest, ShardError
from datamodules.shards.verify import verify_dataset
from datamodules.shards.writer import write_dataset

COUNT, ROWS = 12, 4
FIELDS = {"image": {"axes": "cyx", "unit": "grey level"}, "frame": {"axes": "", "unit": "1"}}
SPLITS = {"default": {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25}}
LIBRARY = ("v110", "v110")


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (1, 6, 5), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 samples in 3 shards."""
    samples = (
        Sample(f"cell{n:02d}", f"track{n // 2}", {"image": image(n), "frame": np.float32(n)}) for n in range(COUNT)
    )
    folder = tmp_path / "data" / "twin"
    write_dataset(
        folder, samples, stem="circular", fields=FIELDS, splits=SPLITS, seed=0, provenance={}, shard_bytes=ROWS * 34
    )
    assert Manifest.read(folder).counts["shards"] == 3
    return folder


def reseal(folder: Path, **changes: Any) -> None:
    """Write a manifest that is right about sizes and checksums, as somebody with bad intentions would."""

    def fingerprint(name: str) -> dict[str, Any]:
        content = (folder / name).read_bytes()
        return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    manifest = Manifest.read(folder)
    shards = [shard | fingerprint(shard["name"]) for shard in manifest.shards]
    dataclasses.replace(manifest, shards=shards, index=fingerprint("index.h5"), **changes).write(folder)


def read_all(folder: Path) -> None:
    """Read every sample and check it against the truth; raises ShardError where the data set refuses."""
    for number, found in enumerate(ShardDataset(folder)):
        assert found.sample_id == f"cell{number:02d}"
        assert found.group == f"track{number // 2}"
        assert np.array_equal(found.fields["image"], image(number))
        assert found.fields["frame"] == number


def refusal(folder: Path) -> str | None:
    try:
        read_all(folder)
    except ShardError as error:
        return str(error)
    return None


def assert_refused(folder: Path, name: str, complaint: str) -> None:
    """Both verification and reading name the file and say what is wrong."""
    lines = verify_dataset(folder)
    assert any(name in line and complaint in line for line in lines), lines
    with pytest.raises(ShardError, match=complaint) as caught:
        read_all(folder)
    assert name in str(caught.value)


def chunk_place(path: Path, field: str, row: int) -> tuple[int, int]:
    with h5py.File(path) as file:
        info = file[field].id.get_chunk_info_by_coord((row, *(0,) * (file[field].ndim - 1)))
    return info.byte_offset, info.size


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_an_undamaged_data_set_has_no_fault(folder: Path) -> None:
    assert verify_dataset(folder) == []
    read_all(folder)


# -- accidents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["image", "frame"])
def test_a_flipped_byte_in_a_field_is_noticed(folder: Path, field: str) -> None:
    path = folder / "00001.h5"
    start, size = chunk_place(path, field, 2)
    flip(path, start + size // 2)
    assert_refused(folder, "00001.h5", "checksum does not match")
    assert any("sha256 differs" in line for line in verify_dataset(folder))
    dataset = ShardDataset(folder)
    assert dataset[4].sample_id == "cell04"  # its neighbours stay readable
    with pytest.raises(ShardError):
        dataset.__getitems__(list(range(COUNT)))


@pytest.mark.slow
def test_no_flipped_byte_anywhere_gives_a_wrong_number(folder: Path) -> None:
    rng = np.random.default_rng(0)
    paths = sorted(folder.iterdir())
    originals = {path: path.read_bytes() for path in paths}
    for _ in range(100):
        path = paths[rng.integers(len(paths))]
        flip(path, int(rng.integers(len(originals[path]))), int(rng.integers(8)))
        lines = verify_dataset(folder)
        assert any(path.name in line for line in lines)
        message = refusal(folder)
        assert message is None or path.name in message
        path.write_bytes(originals[path])
    read_all(folder)


@pytest.mark.parametrize("name", ["00002.h5", "index.h5"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_noticed(folder: Path, name: str, keep: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep * len(content))])
    assert_refused(folder, name, "is truncated")


def test_a_truncated_manifest_is_noticed(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(folder, "manifest.json", "not valid JSON")


@pytest.mark.parametrize("name", ["00002.h5", "index.h5"])
def test_a_missing_file_is_noticed(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_refused(folder, name, "cannot be opened")


def test_swapped_shards_are_noticed_though_their_sizes_agree(folder: Path) -> None:
    first, second = folder / "00000.h5", folder / "00001.h5"
    assert first.stat().st_size == second.stat().st_size
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    assert_refused(folder, "00000.h5", "does not belong here: its attribute shard is 1")


def test_a_shard_of_another_data_set_is_noticed(folder: Path) -> None:
    other = folder.parent / "other" / "twin"
    samples = (Sample(f"c{n}", f"t{n}", {"image": image(n + 50), "frame": np.float32(n)}) for n in range(COUNT))
    write_dataset(
        other, samples, stem="circular", fields=FIELDS, splits={}, seed=0, provenance={}, shard_bytes=ROWS * 34
    )
    (folder / "00000.h5").write_bytes((other / "00000.h5").read_bytes())
    assert_refused(folder, "00000.h5", "does not belong here: its attribute identity")


def test_an_edited_manifest_is_noticed(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"grey level"', '"electrons"'))
    assert_refused(folder, "manifest.json", "edited or damaged")


def test_a_manifest_edited_with_its_checksum_still_contradicts_the_shards(folder: Path) -> None:
    manifest = Manifest.read(folder)
    fields = {**manifest.fields, "image": manifest.fields["image"]._replace(unit="electrons")}
    dataclasses.replace(manifest, fields=fields).write(folder)
    assert any("00000.h5: field 'image' has unit 'grey level'" in line for line in verify_dataset(folder))


def test_a_file_that_nobody_listed_is_reported(folder: Path) -> None:
    (folder / "00003.h5").write_bytes((folder / "00002.h5").read_bytes())
    (folder / "contact_sheet.png").touch()
    assert verify_dataset(folder) == [f"{folder / '00003.h5'} is not listed in the manifest"]


# -- forgeries --------------------------------------------------------------------------------------------------------


def replace_image(folder: Path, make: Callable[[h5py.File], None]) -> None:
    with h5py.File(folder / "00000.h5", "r+", libver=LIBRARY) as file:
        del file["image"]
        make(file)
    reseal(folder)


def like_image(**changes: Any) -> dict[str, Any]:
    data = np.stack([image(n) for n in range(ROWS)])
    return {"name": "image", "data": data, "chunks": (1, 1, 6, 5), "fletcher32": True} | changes


def test_an_external_link_is_refused(folder: Path) -> None:
    replace_image(folder, lambda file: file.__setitem__("image", h5py.ExternalLink("00001.h5", "/image")))
    assert_refused(folder, "00000.h5", "is an external link")


def test_a_soft_link_is_refused(folder: Path) -> None:
    replace_image(folder, lambda file: file.__setitem__("image", h5py.SoftLink("/frame")))
    assert_refused(folder, "00000.h5", "is a soft link")


@pytest.mark.parametrize("name", ["00000.h5", "index.h5"])
def test_a_symbolic_link_in_the_folder_is_refused(folder: Path, name: str) -> None:
    outside = folder.parent / "elsewhere.h5"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    assert_refused(folder, name, "links are refused")


def test_external_storage_is_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"TOPSECRET" * 100)

    def make(file: h5py.File) -> None:
        file.create_dataset("image", (ROWS, 1, 6, 5), "uint8", external=[(str(secret), 0, ROWS * 30)])

    replace_image(folder, make)
    assert_refused(folder, "00000.h5", "has external storage")


def test_a_virtual_dataset_is_refused(folder: Path) -> None:
    def make(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((ROWS, 1, 6, 5), "uint8")
        layout[:] = h5py.VirtualSource("00001.h5", "image", (ROWS, 1, 6, 5))
        file.create_virtual_dataset("image", layout)

    replace_image(folder, make)
    assert_refused(folder, "00000.h5", "is virtual")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"dtype": ">u2"}, "dtype"),
        ({"data": np.zeros((ROWS + 1, 1, 6, 5), np.uint8)}, "shape"),
        ({"data": np.zeros((ROWS, 1, 5, 6), np.uint8), "chunks": (1, 1, 5, 6)}, "shape"),
        ({"chunks": (2, 1, 6, 5)}, "has chunks"),
        ({"chunks": None, "fletcher32": None}, "has chunks"),
        ({"fletcher32": None}, "no fletcher32"),
        ({"compression": "gzip"}, "has the filter 1"),
        ({"shuffle": True}, "has the filter 2"),
        ({"data": None, "shape": (ROWS, 1, 6, 5), "dtype": "uint8"}, "0 of 4 chunks"),
    ],
)
def test_a_dataset_of_another_kind_is_refused(folder: Path, changes: dict[str, Any], complaint: str) -> None:
    replace_image(folder, lambda file: file.create_dataset(**like_image(**changes)))
    assert_refused(folder, "00000.h5", complaint)


def test_a_missing_field_and_a_group_in_its_place_are_refused(folder: Path) -> None:
    replace_image(folder, lambda file: None)
    assert_refused(folder, "00000.h5", "'image' is missing")
    with h5py.File(folder / "00000.h5", "r+", libver=LIBRARY) as file:
        file.create_group("image")
    reseal(folder)
    assert_refused(folder, "00000.h5", "is a group")


def test_text_of_variable_length_is_not_even_read(folder: Path) -> None:
    with h5py.File(folder / "00000.h5", "r+", libver=LIBRARY) as file:
        file.attrs["stem"] = "circular"
    reseal(folder)
    assert_refused(folder, "00000.h5", "attribute stem is None")


def test_a_foreign_object_beside_the_fields_is_reported(folder: Path) -> None:
    with h5py.File(folder / "00001.h5", "r+", libver=LIBRARY) as file:
        file["more"] = h5py.ExternalLink("/etc/passwd", "/")
    reseal(folder)
    assert verify_dataset(folder) == [f"{folder / '00001.h5'} holds 'more', which the manifest does not name"]


def test_a_tiny_file_that_claims_terabytes_is_refused_before_memory_is_asked_for(folder: Path) -> None:
    shape = (1, 60000, 60000)
    for number in range(3):
        with h5py.File(folder / f"{number:05d}.h5", "r+", libver=LIBRARY) as file:
            del file["image"]
            file.create_dataset(
                "image", (ROWS, *shape), "uint8", chunks=(1, *shape), fletcher32=True, compression="lzf"
            )
    fields = {**Manifest.read(folder).fields, "image": Field(shape, "uint8", "grey level", "cyx")}
    reseal(folder, fields=fields)
    assert_refused(folder, "00000.h5", "0 of 4 chunks")
    for number in range(3):
        with h5py.File(folder / f"{number:05d}.h5", "r+", libver=LIBRARY) as file:
            for row in range(ROWS):
                file["image"].id.write_direct_chunk((row, 0, 0, 0), b"\0" * 64)
    reseal(folder)
    assert_refused(folder, "00000.h5", "decompression bomb")


@pytest.mark.parametrize("compression", [None, "lzf"])
@pytest.mark.parametrize("field", ["image", "frame"])
def test_a_chunk_that_leaves_its_checksum_out_is_refused(folder: Path, field: str, compression: str | None) -> None:
    with h5py.File(folder / "00000.h5", "r+", libver=LIBRARY) as file:
        values, chunks, attributes = file[field][:], file[field].chunks, dict(file[field].attrs)
        del file[field]
        dataset = file.create_dataset(field, data=values, chunks=chunks, fletcher32=True, compression=compression)
        dataset.attrs.update(attributes)
        place = (1, *(0,) * (values.ndim - 1))
        # four bytes more, so that the size alone does not give it away
        dataset.id.write_direct_chunk(place, values[1].tobytes() + b"\0" * 4, filter_mask=0b11 if compression else 0b1)
    reseal(folder)
    assert_refused(folder, "00000.h5", "stored without its checksum")


def test_an_index_that_leaves_a_checksum_out_is_refused(folder: Path) -> None:
    with h5py.File(folder / "index.h5", "r+", libver=LIBRARY) as file:
        values = file["row"][:]
        del file["row"]
        dataset = file.create_dataset("row", data=values, chunks=values.shape, fletcher32=True)
        dataset.id.write_direct_chunk((0,), values.tobytes() + b"\0" * 4, filter_mask=1)
    reseal(folder)
    assert_refused(folder, "index.h5", "stored without its checksum")


def test_a_chunk_that_lzf_leaves_as_it_is_stays_readable(folder: Path) -> None:
    replace_image(folder, lambda file: file.create_dataset(**like_image(compression="lzf")))
    with h5py.File(folder / "00000.h5") as file:
        assert file["image"].id.get_chunk_info(0).filter_mask == 1  # noise does not get smaller
    read_all(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_reported_with_its_row(folder: Path, value: float) -> None:
    with h5py.File(folder / "00001.h5", "r+", libver=LIBRARY) as file:
        file["frame"][2] = value
    reseal(folder)
    assert verify_dataset(folder) == [f"{folder / '00001.h5'}: field 'frame' of row 2 has NaN or infinite values"]


@pytest.mark.parametrize(
    ("dataset", "value", "complaint"),
    [
        ("group", 99, "names a group that does not exist"),
        ("shard", 7, "names a shard that does not exist"),
        ("row", ROWS, "names a row beyond the end"),
        ("row", -1, "names a row beyond the end"),
    ],
)
def test_an_index_that_points_nowhere_is_refused(folder: Path, dataset: str, value: int, complaint: str) -> None:
    with h5py.File(folder / "index.h5", "r+", libver=LIBRARY) as file:
        file[dataset][5] = value
    reseal(folder)
    assert_refused(folder, "index.h5", complaint)
