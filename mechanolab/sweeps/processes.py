"""Trials as child processes: how many at a time, on which device, and how they are stopped.

A child gets a process group of its own, so that Ctrl-C reaches the driver alone, which then asks each child to stop at
its next batch (SIGTERM; the run writes a checkpoint and exits with 75). When the driver itself is killed, Linux sends
the children the same SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLLOW_THE_DRIVER = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(75)  # the driver died before Linux was asked
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Runs in the child before it becomes the trial. Not a `preexec_fn`: that is unsafe once torch has started threads."""
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The devices that trials are dealt to, as CUDA_VISIBLE_DEVICES names them; empty without a GPU.

    CUDA_VISIBLE_DEVICES is honoured when it is set; MIG slices count as devices.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip() not in ("", "-1")]
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"UUID: (MIG-[^)\s]+)", listing) or re.findall(r"^GPU (\d+):", listing, flags=re.MULTILINE)


def default_workers() -> int:
    """Trials at a time: one a GPU, else one a core up to four."""
    return len(gpus()) or min(4, cores())


def slot_environments(workers: int) -> list[dict[str, str]]:
    """What each of `workers` slots adds to the environment: its device and its share of the cores."""
    devices = gpus()
    slots = []
    for i in range(workers):
        slot = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // workers))}
        if devices:
            slot["CUDA_VISIBLE_DEVICES"] = devices[i % len(devices)]
        slots.append(slot)
    return slots


class Child:
    """One started process whose output goes to a log file.

    Args:
        command: the words of the command.
        environment: what is added to this process's environment.
        log: the file that its output is appended to.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.started = time.time()
        with log.open("ab") as output:
            output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(command)}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                [*_prefix(), *command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.pid = self._process.pid

    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """SIGTERM to the process alone: its data workers must live until its checkpoint is written."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def last_line(self) -> str:
        """The last line it printed, without colours."""
        return last_line(self.log)


def last_line(log: Path) -> str:
    """The last line of a log that says something, at most 300 characters of it."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [ANSI.sub("", line).strip() for line in re.split(r"[\r\n]+", text)]
    spoken = [line for line in lines if line and not line.startswith("---")]
    return spoken[-1][:300] if spoken else ""


def _prefix() -> list[str]:
    if sys.platform != "linux":
        return []
    return [sys.executable, "-I", "-S", "-c", FOLLOW_THE_DRIVER, str(os.getpid())]
