"""The pairs of bead volumes of a user, to predict displacement and force on.

How they are named is told by `volume_pairs`, what may lie beside them by `measured_volumes`; `conditions.json` gives
gel and voxel (`volume_conditions`). Pairs may differ in size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.batches import Sample
from datamodules.converters.measured_volumes import pair_values
from datamodules.converters.own_files import check_request
from datamodules.converters.volume_conditions import read_volume_conditions
from datamodules.converters.volume_pairs import VolumePair, pairs_of, read_pair, role_of


def read_own_pairs(files: Sequence[Path], *, pixel_size_um: float | None = None) -> list[Sample]:
    """Read the user's own pairs.

    Args:
        files: Volumes, folders of slices or single slices; of a pair one volume is enough.
        pixel_size_um: Edge of a voxel along y and x, in place of what conditions.json or the file gives.

    Returns:
        Samples in the order of the files, by pair, with reference and deformed (1, z, y, x), voxel_size_um (3,),
        youngs_modulus_pa, poisson_ratio and drift_um, and displacement_um and cell_mask where beads and cell lie beside
        the volumes (`measured_volumes`); their id and group are the name of the pair.

    Raises:
        FileNotFoundError: There is no such file, or no conditions.json beside it; the message says what to write.
        ValueError: A file is damaged, is no volume of a pair, or two pairs have one name; it is named.
    """
    check_request(files, what="pair of volumes", pixel_size_um=pixel_size_um)
    for path in files:
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}")
        if role_of(path) is None:
            raise ValueError(
                f"{path} is no volume of a pair: name the two NAME_reference and NAME_deformed, or save both as arrays "
                "reference and deformed in NAME.npz"
            )
    pairs = pairs_of(files)
    if not pairs:
        raise ValueError(f"{files[0]} belongs to no pair: add NAME_reference and NAME_deformed")
    seen: dict[str, Path] = {}
    for pair in pairs:
        if pair.name in seen:
            raise ValueError(
                f"{seen[pair.name]} and {pair.folder} both hold a pair {pair.name}, which would be listed under one "
                "name: rename one of them"
            )
        seen[pair.name] = pair.folder
    return [_sample(pair, pixel_size_um) for pair in pairs]


def _sample(pair: VolumePair, pixel_size_um: float | None) -> Sample:
    conditions = read_volume_conditions(pair.folder)
    volumes = read_pair(pair, conditions)
    if pixel_size_um is not None:
        volumes = volumes._replace(voxel_size_um=(volumes.voxel_size_um[0], pixel_size_um, pixel_size_um))
    return Sample(pair.name, pair.name, pair_values(pair, volumes, conditions))
