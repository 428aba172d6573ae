"""Worker processes for making and checking data sets: one thread each, deaf to Ctrl-C, gone when their parent is."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextlib.contextmanager
def worker_pool(workers: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """Run a pool of processes that have imported `module`; unfinished work is dropped at the end.

    They come from a fork server, never from a fork of this process, which may run threads (a progress display).

    Args:
        workers: How many, at least 1.
        module: Full name of the module whose functions will be submitted.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    previous = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(module,))
    try:
        try:
            # the numeric libraries read these once, when the fork server loads them
            os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
            pool.submit(os.getpid).result()
        finally:
            for name, value in previous.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(module: str) -> None:
    # Ctrl-C reaches the whole process group: the parent alone decides what happens then
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    importlib.import_module(module)
    opencv = sys.modules.get("cv2")
    if opencv is not None:
        opencv.setNumThreads(0)


def _exit_with_parent() -> None:
    """Wait for the parent's end: idle workers keep each other's queue open and would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
