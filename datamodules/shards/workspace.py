"""The temporary folder in which a data set grows, next to the place where it will stand.

A data set becomes visible by one rename, so a writer that dies leaves only `.<name>.writing-<pid>`, which no reader
opens and which the next writer of the same data set removes. While a writer lives it holds a lock in its folder, so
a second one is refused even when process numbers repeat, as they do in containers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from datamodules.shards.schema import MANIFEST_NAME, ShardError

_log = logging.getLogger(__name__)
_LOCK_NAME = ".lock"
_ours: set[Path] = set()


@contextlib.contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn the OSErrors of writing into ShardErrors that say what to do about `path`."""
    try:
        yield
    except OSError as error:
        text = str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "quota exceeded" in text:
            raise ShardError(f"the disk is full: cannot write {path}; free space or choose another folder") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ShardError(f"no permission to write {path}; choose another folder") from error
        raise ShardError(f"{path} cannot be written: {error.strerror or text}") from error


class Workspace:
    """Context manager: makes the temporary folder, and removes it unless it was published.

    Args:
        folder: Where the data set will stand; it must not exist yet, or be empty.

    Raises:
        ShardError: On entry, when something stands at `folder`, another process is writing it, or the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.parent / f".{folder.name}.writing-{os.getpid()}"
        self._lock: int | None = None

    def __enter__(self) -> Workspace:
        _refuse_existing(self.folder)
        with clear_disk_errors(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(self.folder)
            try:
                self.path.mkdir()
            except FileExistsError:
                raise ShardError(f"this process is already writing {self.folder}") from None
            _ours.add(self.path)
            try:
                self._lock = os.open(self.path / _LOCK_NAME, os.O_CREAT | os.O_RDWR, 0o644)
            except OSError:
                self._remove()
                raise
            # a file system without locks leaves the process number as the only sign of life
            with contextlib.suppress(OSError):
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self

    def publish(self) -> None:
        """Make the finished data set visible under its name; nothing is left at the temporary one.

        Raises:
            ShardError: Another writer was faster.
        """
        with clear_disk_errors(self.folder):
            (self.path / _LOCK_NAME).unlink()
            sync(self.path)
            try:
                self.path.rename(self.folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise ShardError(f"{self.folder} appeared meanwhile; it was left as it is") from error
                raise
            sync(self.folder.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        _ours.discard(self.path)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(path: Path) -> dict[str, Any]:
    """Wait until a file is on the disk; return its size and sha256 as {`bytes`, `sha256`}."""
    sync(path)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _refuse_existing(folder: Path) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if (folder / MANIFEST_NAME).exists():
        raise ShardError(f"{folder} already holds a data set; remove it or choose another folder")
    if not folder.is_dir() or folder.is_symlink() or any(folder.iterdir()):
        raise ShardError(f"{folder} exists and is not an empty folder; choose another one for the data set")


def _remove_stale(folder: Path) -> None:
    """Remove what dead writers left and refuse to work beside a living one."""
    pattern = re.compile(re.escape(f".{folder.name}.writing-") + r"(\d+)")
    for path in sorted(folder.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if match is None or path.is_symlink():
            continue
        if _is_alive(path, int(match.group(1))):
            raise ShardError(f"process {match.group(1)} is writing {folder} at this moment; wait for it or stop it")
        shutil.rmtree(path)
        _log.warning("removed %s, left by a writer that did not finish; starting anew", path)


def _is_alive(path: Path, pid: int) -> bool:
    if path in _ours:
        return True
    try:
        descriptor = os.open(path / _LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:
        return pid != os.getpid() and _exists(pid)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held = error.errno in (errno.EACCES, errno.EAGAIN)
        return held or (pid != os.getpid() and _exists(pid))
    finally:
        os.close(descriptor)
    return False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
