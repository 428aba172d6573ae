"""Resident memory of this process as the kernel counts it.

Not getrusage: Linux hands the peak of the process that started this one down to its ru_maxrss.
"""

from __future__ import annotations

from pathlib import Path


def resident_mib() -> float:
    """What is resident now."""
    return _kernel_mib("VmRSS")


def peak_mib() -> float:
    """The most that ever was, or has been since `forget_peak`."""
    return _kernel_mib("VmHWM")


def forget_peak() -> None:
    """Begin `peak_mib` anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _kernel_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
