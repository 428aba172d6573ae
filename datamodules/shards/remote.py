"""Data sets at a URL: a local mirror that is filled file by file, through fsspec.

Whatever fsspec knows (`s3://bucket/circular/twin`, `https://host/twin`) is read from `<cache>/<url>-<shards>/`, where
both parts are 16 hexadecimal digits of a sha256: of the URL, and of the data set's identity and its shards' checksums.
The cache is MECHANOLAB_CACHE, else `~/.cache/mechanolab/shards`. The manifest is fetched at every opening, index and
shards when they are first needed; a file gets its name only after its sha256 agrees with the manifest. A data set
whose shards changed has another mirror, so nothing stale is read, and who still reads the old one is told when a shard
is no longer to be had. Split schemes that were added bring a new index into the same mirror.

No connection outlives a call: sockets and event loops must not be shared with a process forked later, such as the
workers of a DataLoader.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from datamodules.shards.schema import MANIFEST_NAME, Manifest, ShardError, replace_file
from datamodules.shards.workspace import clear_disk_errors, settle

RETRY_SECONDS = (0.5, 2.0)
"""Pauses between the attempts at a transfer that failed for a reason that may pass."""
STALL_SECONDS = 60.0
"""How long an HTTP server may be silent. fsspec's own limit is five minutes a file, too short for a slow line."""
IN_USE_SECONDS = 10.0
"""Shards asked for so recently are not removed: the process that asked may not have opened them yet."""
ABANDONED_SECONDS = 3600.0
"""Unfinished files that did not grow for so long belong to a process that died."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_PASSING_STATUS = (408, 425, 429)
"""The HTTP answers of the 400s that ask to try again."""
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, ValueError)


def is_remote(folder: Path | str) -> bool:
    """Whether `folder` is a URL (`file://...` too) and not a local path."""
    return "://" in str(folder)


def folder_in(root: Path | str, *parts: str) -> Path | str:
    """Join folder names below a local root or a URL.

    >>> folder_in("s3://bucket/data/", "circular", "twin")
    's3://bucket/data/circular/twin'
    """
    return "/".join([str(root).removesuffix("/"), *parts]) if is_remote(root) else Path(root, *parts)


def open_mirror(url: str) -> Path:
    """Fetch the manifest of the data set at `url`, and its index where the mirror lacks it.

    Args:
        url: The data set's own folder, the one that holds `manifest.json`.

    Returns:
        The mirror, a local folder; `Manifest.read` and `read_index` work on it, `fetch_shard` brings the shards.

    Raises:
        FileNotFoundError: There is no data set at `url`.
        ShardError: A file cannot be fetched, is damaged, or cannot be stored.
    """
    content, manifest = _fetch_manifest(url)
    shards = "".join([manifest.identity, *(shard["sha256"] for shard in manifest.shards)])
    cache = Path(os.environ.get("MECHANOLAB_CACHE") or "~/.cache/mechanolab/shards").expanduser().absolute()
    mirror = cache / f"{_digits(url.rstrip('/').encode())}-{_digits(shards.encode())}"
    index = {**manifest.index, "name": manifest.index_name}
    known = mirror / MANIFEST_NAME
    with clear_disk_errors(mirror):
        if known.is_file() and known.read_bytes() == content:
            fetch_shard(url, mirror, index)
        else:
            # the manifest last: whoever reads it finds the index that belongs to it
            _bring(url, mirror, index, anew=True)
            replace_file(known, content)
    return mirror


def fetch_shard(url: str, mirror: Path, entry: dict[str, Any]) -> Path:
    """Return the local path of one shard, fetching it when it is not there; what is there costs one look.

    Args:
        url: The data set's own folder.
        mirror: Its mirror, from `open_mirror`.
        entry: Of the manifest's `shards`: name, bytes, sha256.

    Raises:
        ShardError: The shard is missing, cannot be fetched, differs from the manifest, or cannot be stored.
    """
    path = mirror / entry["name"]
    with clear_disk_errors(path):
        if not _is_here(path, entry["bytes"]):
            _bring(url, mirror, entry)
    return path


def _digits(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _fetch_manifest(url: str) -> tuple[bytes, Manifest]:
    """Fetch and check a manifest before there is a mirror of it; an error names the URL, not where it was read."""
    with tempfile.TemporaryDirectory(prefix="mechanolab-") as scratch:
        path = Path(scratch, MANIFEST_NAME)
        try:
            _download(f"{url.rstrip('/')}/{MANIFEST_NAME}", path)
            return path.read_bytes(), Manifest.read(scratch)
        except FileNotFoundError:
            raise FileNotFoundError(f"no data set at {url}: it holds no {MANIFEST_NAME}") from None
        except ShardError as error:
            raise ShardError(str(error).replace(scratch, url.rstrip("/"))) from error


# -- the mirror -------------------------------------------------------------------------------------------------------


def _bring(url: str, mirror: Path, entry: dict[str, Any], *, anew: bool = False) -> None:
    """Fetch a file that is not there, or one that may be another one, `anew`; once when several processes ask."""
    path = mirror / entry["name"]
    mirror.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        # another process may have brought it while this one waited for the lock
        if anew or not _is_here(path, entry["bytes"]):
            _make_room(mirror.parent, entry["bytes"])
            _fetch(f"{url.rstrip('/')}/{entry['name']}", path, entry)


def _is_here(path: Path, nbytes: int) -> bool:
    """Whether the file is complete; it then counts as used now. What has its name was hashed when it got it."""
    try:
        if path.stat().st_size != nbytes:
            return False
    except FileNotFoundError:
        return False
    # the file itself stays as it is, its readers watch it; and a mirror that somebody else keeps may be read-only
    with contextlib.suppress(OSError):
        os.utime(_lock_of(path))
    return True


def _lock_of(path: Path) -> Path:
    """An empty file beside `path`, locked while that is fetched; its time is when that was last asked for."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time fetch `path`; where the file system has no locks, the last rename wins."""
    lock = os.open(_lock_of(path), os.O_CREAT | os.O_RDWR, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.utime(lock)
        # closing alone would leave the lock to a process forked meanwhile
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _make_room(cache: Path, nbytes: int) -> None:
    """Remove least recently used shards of all mirrors until `nbytes` more fit into MECHANOLAB_CACHE_BYTES.

    A process that has a removed shard open goes on reading it.
    """
    limit = os.environ.get("MECHANOLAB_CACHE_BYTES")
    if not limit:
        return
    if not limit.isdecimal():
        raise ShardError(f"MECHANOLAB_CACHE_BYTES must be a whole number of bytes, got {limit!r}")
    shards: list[tuple[float, int, Path]] = []
    for path in cache.glob("[!.]*/[0-9]*.h5"):
        with contextlib.suppress(FileNotFoundError):
            shards.append((_lock_of(path).stat().st_mtime, path.stat().st_size, path))
    excess = sum(size for _, size, _ in shards) + nbytes - int(limit)
    for used, size, path in sorted(shards):
        if excess <= 0 or used > time.time() - IN_USE_SECONDS:
            return
        path.unlink(missing_ok=True)
        excess -= size


def _fetch(url: str, path: Path, entry: dict[str, Any]) -> None:
    """Bring one file under a temporary name, compare it with the manifest, and give it its own."""
    for abandoned in path.parent.glob(f".{path.name}.*.partial"):
        with contextlib.suppress(FileNotFoundError):
            if abandoned.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                abandoned.unlink()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.touch()
        _download(url, partial, {"bytes": entry["bytes"], "sha256": entry["sha256"]})
        partial.replace(path)
    except FileNotFoundError as error:
        raise ShardError(f"{url} is missing; copy the data set there again") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


# -- the network ------------------------------------------------------------------------------------------------------


def _download(url: str, local: Path, expected: dict[str, Any] | None = None) -> None:
    """Copy the file at `url` to `local`, again where the reason of a failure may pass.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The local disk is full.
        ShardError: It cannot be had for another reason, or its size and sha256 are not the `expected` ones.
    """
    for pause in (*RETRY_SECONDS, None):
        try:
            _transfer(url, local)
        except (ShardError, FileNotFoundError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise
            if pause is None or _is_final(error):
                raise ShardError(f"{url} cannot be fetched: {_reason(error)}") from error
        else:
            found = settle(local)
            if expected is None or found == expected:
                return
            if pause is None:
                sizes = f"{found['bytes']} bytes, not {expected['bytes']}"
                what = sizes if found["bytes"] != expected["bytes"] else "its sha256 differs"
                raise ShardError(
                    f"{url} is not what the manifest says ({what}): it is damaged or was replaced; open the data set "
                    "anew, or copy it there again"
                )
        time.sleep(pause)


def _transfer(url: str, local: Path) -> None:
    remote, place = _connect(url)
    try:
        remote.get_file(place, str(local))
    except Exception as error:
        # frames refer to the filesystem, and so would whoever keeps the error
        raise error.with_traceback(None) from None
    finally:
        # it closes its connections when nothing refers to it any more; an asynchronous one refers to itself
        if remote.async_impl:
            vars(remote).clear()
        del remote


def _connect(url: str) -> tuple[Any, str]:
    """A filesystem of fsspec that no other call shares, and the path of `url` in it."""
    if "::" in url:
        raise ShardError(f"{url}: URLs that contain :: are not supported; copy the data set to a plain folder")
    protocol = url.split("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            from fsspec.implementations.http import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
            configured = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
            options["client_kwargs"] = {"timeout": timeout, **configured}
        remote, place = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or error.name or "another package"
        mend = "'mechanolab[remote]'" if package == "s3fs" else package
        raise ShardError(f"{protocol}:// needs {package}: pip install {mend}") from error
    except ValueError as error:
        raise ShardError(f"{url} cannot be opened: {_sentence(error)}") from error
    return remote, str(place)


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    return isinstance(error, _FINAL) or (status in range(400, 500) and status not in _PASSING_STATUS)


def _reason(error: Exception) -> str:
    refused = isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403)
    mend = "the credentials in fsspec's configuration" if refused else "the address and the network, then try again"
    return f"{_sentence(error)}; check {mend}"


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
