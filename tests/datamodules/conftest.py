"""A small data set in a folder, in fsspec's memory and behind a local HTTP server, for the tests of remote data."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from datamodules.batches import Sample
from datamodules.shards import remote
from datamodules.shards.writer import write_dataset

COUNT, ROWS = 12, 3
FIELDS = {"image": {"axes": "cyx", "unit": "grey level"}, "frame": {"axes": "", "unit": "1"}}
SPLITS = {"default": {"unit": "group", "train": 0.5, "val": 0.25, "test": 0.25}}


@pytest.fixture
def remote_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no waiting between attempts."""
    monkeypatch.setenv("MECHANOLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MECHANOLAB_CACHE_BYTES", raising=False)
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.0, 0.0))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def write_twin() -> Callable[..., Path]:
    """Write 12 samples in 4 shards; from sample `changed_from` on, the pictures are others."""

    def write(folder: Path, *, changed_from: int = COUNT) -> Path:
        def sample(n: int) -> Sample:
            rng = np.random.default_rng([n, n >= changed_from])
            image = rng.integers(0, 255, (1, 6, 5), dtype=np.uint8)
            return Sample(f"cell{n:02d}", f"track{n // 2}", {"image": image, "frame": np.int32(n)})

        arguments: dict[str, Any] = {"fields": FIELDS, "splits": SPLITS, "seed": 0, "provenance": {}}
        write_dataset(folder, map(sample, range(COUNT)), stem="circular", shard_bytes=ROWS * 34, **arguments)
        return folder

    return write


@pytest.fixture(scope="session")
def original(write_twin: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the remote ones are copies of."""
    return write_twin(tmp_path_factory.mktemp("original") / "twin")


@pytest.fixture
def put() -> Iterator[Callable[[Path, str], None]]:
    """Copy a folder to a memory:// URL, in place of what was there."""
    memory = fsspec.filesystem("memory")
    used: set[str] = set()

    def remove(url: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            memory.rm(url, recursive=True)

    def copy(folder: Path, url: str) -> None:
        remove(url)
        used.add(url)
        for path in folder.iterdir():
            memory.pipe_file(f"{url}/{path.name}", path.read_bytes())

    yield copy
    for url in used:
        remove(url)


@pytest.fixture
def memory_url(original: Path, put: Callable[[Path, str], None]) -> str:
    """URL of a copy in memory."""
    url = f"memory://{uuid.uuid4().hex}/twin"
    put(original, url)
    return url


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts what is asked for, and fails as it is told."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.failures: dict[str, list[int]] = {}
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/twin"


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept: what a fork must not share

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        name = Path(self.path).name
        self.server.asked[name] += 1
        failures = self.server.failures.get(name)
        if failures:
            self.send_error(failures.pop(0))
        else:
            super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, write_twin: Callable[..., Path]) -> Iterator[Server]:
    """A server of `tmp_path`/served with a data set `twin`."""
    write_twin(tmp_path / "served" / "twin")
    with Server(tmp_path / "served") as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
