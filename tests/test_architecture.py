"""The house rules: who may import whom, file names, file lengths, one stem per paper in every folder."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("physics", "lightning_modules", "datamodules", "mechanolab")
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "core", "base"}
MAXIMUM_LINES = 400

TORCH = {"torch", "numpy"}
NETWORKS = TORCH | {"torchmetrics", "torchvision", "timm", "ultralytics"}
DATA = TORCH | {"scipy", "skimage", "cv2", "albumentations", "tifffile", "fsspec"}
ALLOWED: dict[str, set[str]] = {
    # first match wins: a folder or file, and the packages it may import beside the standard library
    "physics": TORCH | {"physics"},
    "lightning_modules/networks": NETWORKS | {"physics", "lightning_modules.networks"},
    "lightning_modules/losses": TORCH | {"torchmetrics", "physics", "lightning_modules.losses"},
    "lightning_modules/metrics": TORCH
    | {"torchmetrics", "scipy", "skimage", "lpips", "physics", "lightning_modules.metrics"},
    "lightning_modules/figures": {"matplotlib", "numpy", "physics", "lightning_modules.figures"},
    "lightning_modules": NETWORKS
    | {"lightning", "physics", "lightning_modules.networks", "lightning_modules.losses"}
    | {"lightning_modules.metrics", "lightning_modules.figures", "datamodules.batches"},
    "datamodules/batches.py": TORCH,
    "datamodules/shards": DATA | {"h5py", "physics", "datamodules.shards", "datamodules.batches"},
    "datamodules/augmentation": DATA | {"physics", "datamodules.augmentation", "datamodules.batches"},
    "datamodules/simulators": DATA | {"physics", "datamodules.simulators", "datamodules.batches"},
    "datamodules/converters": DATA | {"h5py", "physics", "datamodules.converters", "datamodules.batches"},
    "datamodules": DATA
    | {"lightning", "physics", "datamodules.batches", "datamodules.shards", "datamodules.augmentation"}
    | {"datamodules.simulators", "datamodules.converters"},
    "mechanolab": TORCH
    | {"lightning", "omegaconf", "yaml", "wandb", "optuna", "rich", "jinja2", "plotly", "matplotlib", "submitit"}
    | {"psycopg", "wandb_workspaces", "mechanolab", "datamodules.shards", "datamodules.batches"},
}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            submodules = {
                f"{module}.{alias.name}"
                for alias in node.names
                if (ROOT / module.replace(".", "/") / alias.name).with_suffix(".py").is_file()
                or (ROOT / module.replace(".", "/") / alias.name).is_dir()
            }
            found |= submodules or {module}
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def rule_for(relative: str) -> set[str]:
    return next(allowed for place, allowed in ALLOWED.items() if relative == place or relative.startswith(f"{place}/"))


def stems() -> set[str]:
    return {p.stem for p in (ROOT / "lightning_modules").glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_what_its_floor_allows(path: Path) -> None:
    allowed = rule_for(str(path.relative_to(ROOT)))
    for name in imports(path):
        parts = name.split(".")
        prefixes = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
        assert prefixes & allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_the_rules_catch_a_forbidden_import(tmp_path: Path) -> None:
    source = tmp_path / "angles.py"
    source.write_text("import os\nimport lightning\nfrom datamodules.shards import reader\n")
    assert imports(source) == {"lightning", "datamodules.shards.reader"}
    assert not {"lightning", "datamodules"} & rule_for("physics/angles.py")


def test_stems_do_not_import_each_other() -> None:
    for stem in stems():
        for folder in ("lightning_modules", "datamodules", "datamodules/simulators", "datamodules/converters"):
            path = ROOT / folder / f"{stem}.py"
            if path.is_file():
                others = {f"{folder.replace('/', '.')}.{other}" for other in stems() - {stem}}
                assert not imports(path) & others, f"{path} imports another paper"


def test_the_command_knows_no_stem_by_name() -> None:
    for path in (ROOT / "mechanolab").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        literals = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert not literals & stems(), f"{path} names a paper"


def test_no_name_could_hold_anything() -> None:
    for package in (*PACKAGES, "tests"):
        for path in (ROOT / package).rglob("*"):
            assert path.stem not in FORBIDDEN_NAMES, path


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    for path in [*sources(), *(ROOT / "tests").rglob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAXIMUM_LINES, path


def test_init_files_hold_a_docstring_and_nothing_else() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1, path
            assert isinstance(body[0], ast.Expr), path


def test_every_class_of_a_paper_inherits_from_lightning_directly() -> None:
    for stem in stems():
        tree = ast.parse((ROOT / "lightning_modules" / f"{stem}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                names = {b.id if isinstance(b, ast.Name) else b.attr for b in node.bases if not isinstance(b, ast.Call)}
                assert names <= {"LightningModule", "NamedTuple"}, f"{stem}.{node.name} inherits from {names}"


@pytest.mark.parametrize("stem", sorted(stems()))
def test_a_paper_has_all_its_files(stem: str) -> None:
    needed = [
        f"datamodules/{stem}.py",
        f"datamodules/simulators/{stem}.py",
        f"datamodules/converters/{stem}.py",
        f"lightning_modules/figures/{stem}.py",
        f"experiments/{stem}.yaml",
        f"sweeps/{stem}.yaml",
        f"tests/papers/test_{stem}.py",
    ]
    missing = [name for name in needed if not (ROOT / name).is_file()]
    assert not missing, f"paper {stem} lacks {missing}"


def test_no_package_can_shadow_another() -> None:
    assert not (ROOT / "sweeps" / "__init__.py").exists()
    assert not (ROOT / "experiments" / "__init__.py").exists()
