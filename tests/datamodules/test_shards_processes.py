"""Worker processes: one thread each, deaf to Ctrl-C, and none that outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from datamodules.shards.processes import worker_pool

pytestmark = pytest.mark.slow

LIGHT = "datamodules.shards.schema"
PATIENCE_S = 20.0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_have_one_thread_and_the_parents_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with worker_pool(1, LIGHT) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        assert os.environ["OMP_NUM_THREADS"] == "7"
        assert "MKL_NUM_THREADS" not in os.environ
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def test_unfinished_work_is_dropped_when_the_block_fails() -> None:
    def work() -> None:
        with worker_pool(1, LIGHT) as pool:
            for _ in range(1000):
                pool.submit(time.sleep, 0.2)
            raise ValueError("writing failed")

    start = time.monotonic()
    with pytest.raises(ValueError, match="writing failed"):
        work()
    assert time.monotonic() - start < PATIENCE_S


def test_workers_of_a_killed_parent_end() -> None:
    code = (
        "import os, time\n"
        "from datamodules.shards.processes import worker_pool\n"
        f"with worker_pool(2, {LIGHT!r}) as pool:\n"
        "    held = [pool.submit(time.sleep, 0.5) for _ in range(2)]\n"
        "    [future.result() for future in held]\n"
        "    print(*pool._processes, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(alive, workers))
        parent.kill()
    deadline = time.monotonic() + PATIENCE_S
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
