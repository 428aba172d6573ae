"""Which displacement fields a folder holds: files are named and grouped here, not read.

Three layouts are told apart: `arrays` (files or pairs of folders with `dspl` and `trac`), `components` (u, v, tx, ty)
and `tables`; what is in them, and what a group is, says `datamodules.converters.dl_tfm`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from datamodules.converters import displacement_tables
from datamodules.converters.stored_arrays import SUFFIXES, array_names

COMPONENT = re.compile(r"(?:(?P<frame>.*[\d_-]))?(?P<name>tx|ty|u|v|mask)", re.IGNORECASE)
MASK = "cell_mask"
BESIDE = {
    "dspl": ("dspl", "trac", "brdx", "brdy"),
    "u": ("u", "v", "tx", "ty", MASK),
    "displacement_px": ("displacement_px", "traction_pa", MASK),
    "displacement_um": ("displacement_um", "traction_pa", MASK),
}
"""A displacement, and the arrays that are read from a file beside it."""
_CELL = re.compile(r".*?\d+")


class Entry(NamedTuple):
    """One field of the archive, before it is read."""

    sample_id: str
    group: str
    files: dict[str, Path]
    """Array name to the file that holds it; for a table `table`."""

    @property
    def where(self) -> str:
        """Its files, for messages."""
        return " with ".join(dict.fromkeys(str(path) for path in self.files.values()))


def find_entries(source: Path) -> tuple[str, list[Entry]]:
    """Return the layout of the folder `source` (arrays, components or tables) and its fields, unordered.

    Raises FileNotFoundError or ValueError, naming the file, where the folder does not exist, has none of the layouts,
    mixes them, or a field lacks its partner.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no source folder at {source}")
    if any(_is_folder_of(path, "dspl") for path in source.iterdir()):
        return "arrays", _paired_folders(source)
    folders = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    arrays, components = _whole_files(source), [entry for folder in folders for entry in _components(folder)]
    if arrays and components:
        raise ValueError(
            f"{source} holds both {next(iter(arrays[0].files.values())).name} with dspl and "
            f"{next(iter(components[0].files.values())).name} with u: put each kind into a folder of its own"
        )
    if arrays or components:
        return ("arrays", arrays) if arrays else ("components", components)
    tables = [
        Entry(f"{folder.resolve().name}_{path.stem}", folder.resolve().name, table_files(path))
        for folder in folders
        for path in _files(folder)
        if path.suffix.lower() in displacement_tables.SUFFIXES
    ]
    if tables:
        return "tables", tables
    raise ValueError(
        f"{source} has none of the layouts of paper dl_tfm: looked for .mat or .npz files with dspl (and trac), here "
        "or in the folders dspl and trac, for <frame>u.npy and <frame>v.npy or .npz files with u and v, and for tables "
        "(.csv, .txt) with the columns x, y, u, v"
    )


def regrouped(entries: list[Entry], files_per_cell: int) -> list[Entry]:
    """Return the fields with cells of so many files in a row, within each folder, as their groups.

    Raises ValueError where the number of files is no multiple.
    """
    kinds: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: _natural(entry.sample_id)):
        kinds.setdefault(str(next(iter(entry.files.values())).parent), []).append(entry)
    regrouped = []
    for folder, members in kinds.items():
        if len(members) % files_per_cell:
            raise ValueError(
                f"{folder} holds {len(members)} fields, no multiple of files_per_cell {files_per_cell}: add the "
                "missing files or correct conditions.json"
            )
        for index, entry in enumerate(members):
            first = members[index - index % files_per_cell]
            regrouped.append(entry._replace(group=first.sample_id))
    return regrouped


def refuse_unread(path: Path, held: Collection[str], displacement: str) -> None:
    """Raise ValueError where a file holds a traction, outline or mask under a name that goes with another layout."""
    known = {name for names in BESIDE.values() for name in names}
    unread = sorted((known & set(held)) - {*BESIDE[displacement]})
    if unread:
        read = ", ".join(name for name in BESIDE[displacement] if name not in ("u", "v", displacement))
        raise ValueError(
            f"{path} holds {', '.join(unread)}, but beside {displacement} only {read} are read: save it under such a "
            "name and in that convention, or take it out"
        )


def in_order(entries: list[Entry]) -> list[Entry]:
    """Return the fields sorted: groups together, 10 after 9."""
    return sorted(entries, key=lambda entry: (_natural(entry.group), entry.group, _natural(entry.sample_id)))


def component_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Return frame -> component (u, v, tx, ty, cell_mask) -> .npy file of a folder."""
    frames: dict[str, dict[str, Path]] = {}
    for path in _files(folder):
        match = COMPONENT.fullmatch(path.stem)
        if path.suffix.lower() == ".npy" and match:
            name = match["name"].lower()
            frames.setdefault((match["frame"] or "").strip("_-"), {})[MASK if name == "mask" else name] = path
    return frames


def require_partners(components: dict[str, Path]) -> None:
    """Raise ValueError where one of u and v is missing, or one of tx and ty."""
    missing = [name for name in ("u", "v") if name not in components]
    missing += [name for name in ("tx", "ty") if name not in components and {"tx", "ty"} & components.keys()]
    if missing:
        first = next(iter(components.values()))
        raise ValueError(f"{first} lacks its partner {missing[0]}: add it or take the file out")


def table_files(table: Path) -> dict[str, Path]:
    """A table of vectors and, where there is one, the mask of its cell, `<table>_mask.npy`."""
    mask = table.with_name(f"{table.stem}_mask.npy")
    return {"table": table} | ({MASK: mask} if mask.is_file() else {})


def table_of_mask(mask: Path) -> Path | None:
    """The table that a mask belongs to; None where it belongs to none."""
    stem = mask.stem.removesuffix("_mask")
    tables = [mask.with_name(stem + suffix) for suffix in displacement_tables.SUFFIXES] if stem != mask.stem else []
    return next((table for table in tables if table.is_file()), None)


def _files(folder: Path) -> list[Path]:
    """All but hidden files, which some systems add to archives."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _is_folder_of(path: Path, name: str) -> bool:
    return path.is_dir() and path.name.lower().startswith(name)


def _paired_folders(source: Path) -> list[Entry]:
    entries = []
    partners = {path.name.lower(): path for path in source.iterdir() if _is_folder_of(path, "trac")}
    for folder in sorted(path for path in source.iterdir() if _is_folder_of(path, "dspl")):
        kind = folder.name.lower().removeprefix("dspl").strip("_-")
        partner = partners.pop("trac" + folder.name.lower().removeprefix("dspl"), None)
        displacements, tractions = _array_files(folder), _array_files(partner) if partner else {}
        lone = displacements.keys() ^ tractions.keys() if partner else set()
        if lone:
            stem = min(lone)
            present, absent = (displacements, partner) if stem in displacements else (tractions, folder)
            raise ValueError(f"{present[stem]} has no partner of that name in {absent}: add it or take the file out")
        for stem, path in displacements.items():
            name = f"{kind}_{stem}" if kind else stem
            files = {"dspl": path} | ({"trac": tractions[stem]} if partner else {})
            entries.append(Entry(name, _cell_of(name), files))
    if partners:
        raise ValueError(f"{next(iter(partners.values()))} has no folder of displacements beside it: add it")
    if not entries:
        raise ValueError(f"{source} has a folder dspl without a .mat or .npz file: unpack the archive again")
    return entries


def _whole_files(source: Path) -> list[Entry]:
    entries = []
    for stem, path in _array_files(source).items():
        names = array_names(path)
        if path.suffix.lower() == ".npz" and {"u", "v"} <= names and "dspl" not in names:
            continue
        if "dspl" not in names:
            raise ValueError(f"{path} holds {', '.join(sorted(names)) or 'nothing'} but no dspl: take it out or add it")
        refuse_unread(path, names, "dspl")
        entries.append(Entry(stem, _cell_of(stem), dict.fromkeys([n for n in ("dspl", "trac") if n in names], path)))
    return entries


def _array_files(folder: Path) -> dict[str, Path]:
    """Stem to path of the .mat and .npz files."""
    found: dict[str, Path] = {}
    for path in _files(folder):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise ValueError(f"{found[path.stem]} and {path.name} have the same name: keep one of them")
            found[path.stem] = path
    return found


def _components(folder: Path) -> list[Entry]:
    found = component_files(folder)
    frames = {frame: files for frame, files in found.items() if not _is_mask_of_table(files)}
    for path in _files(folder):
        if path.suffix.lower() == ".npz" and {"u", "v"} <= (names := array_names(path)):
            refuse_unread(path, names, "u")
            frames[path.stem] = dict.fromkeys([name for name in BESIDE["u"] if name in names], path)
    for files in frames.values():
        require_partners(files)
    name = folder.resolve().name
    return [Entry(f"{name}_{frame}" if frame else name, name, files) for frame, files in frames.items()]


def _is_mask_of_table(files: dict[str, Path]) -> bool:
    return set(files) == {MASK} and table_of_mask(files[MASK]) is not None


def _cell_of(name: str) -> str:
    match = _CELL.match(name)
    return match[0] if match else name


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key in which 10 comes after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text) if part]
