"""What every frame of a stage leaves for curves: its errors, its calibration, and one pixel's distribution.

Pielawski et al., ISBI 2020, arXiv 1910.07380: the time series of a pixel (figure 3) and errors over frames (figure 4).
Maps are drawn of a few frames; of these curves, and of the calibration curve (ours), a frame costs a few numbers, so
all are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_modules.metrics import lognormal
from lightning_modules.metrics.lognormal_scores import LEVELS, ForceDistribution, foreground

BAND_LEVELS = (0.025, 0.05, 0.16, 0.5, 0.84, 0.95, 0.975)
"""Ends of figure 3's three bands, and the median."""


class FrameSeries:
    """Of every frame that was added its errors, and what is predicted in one pixel of its movie.

    The pixel of a movie is where the mean force is largest in the first of its frames that was added. Every process
    keeps the frames that it has seen.
    """

    def __init__(self) -> None:
        self.groups: list[str] = []
        """Of every frame, its movie."""
        self._rows: list[dict[str, float]] = []
        self._pixels: dict[str, tuple[int, int]] = {}
        self._there: list[tuple[Tensor, Tensor] | None] = []
        self._below, self._inside = np.zeros(len(LEVELS)), 0

    def clear(self) -> None:
        """Forget all frames."""
        for kept in (self.groups, self._rows, self._pixels, self._there):
            kept.clear()  # type: ignore[attr-defined]
        self._below, self._inside = np.zeros(len(LEVELS)), 0

    def add(
        self,
        predicted: ForceDistribution,
        log_force: Tensor,
        errors: Mapping[str, Tensor],
        *,
        time_s: Tensor,
        groups: Sequence[str],
    ) -> None:
        """Add the frames of a batch.

        Args:
            predicted: of the frames.
            log_force: (frames, y, x), true ln F; NaN where it is unknown.
            errors: (frames,) each, by name.
            time_s: (frames,); NaN for a frame of no movie.
            groups: movie of every frame.

        """
        known = {"time_s": time_s, **errors}
        numbers = {name: part.detach().double().cpu().tolist() for name, part in known.items()}
        for row, group in enumerate(groups):
            frame = {name: part[row] for name, part in numbers.items()}
            there = None
            if predicted.sigma_squared is not None:
                pair = predicted.mu[:, row].detach(), predicted.sigma_squared[:, row].detach()
                if group not in self._pixels:
                    place = int(lognormal.mean(*pair).argmax())
                    self._pixels[group] = divmod(place, pair[0].shape[-1])
                y, x = self._pixels[group]
                there = pair[0][:, y, x].double().cpu(), pair[1][:, y, x].double().cpu()
                frame["true_pa"] = float(log_force[row, y, x].double().exp())
                inside = foreground(log_force[row])
                own = (part[:, inside] for part in pair)
                probability = lognormal.cdf(*own, log_force[row][inside].exp()).double().numpy(force=True)
                self._below += (probability <= np.array(LEVELS)[:, None]).sum(axis=1)
                self._inside += len(probability)
            self.groups.append(group)
            self._rows.append(frame)
            self._there.append(there)

    def numbers(self) -> dict[str, np.ndarray]:
        """`time_s` and the errors of all frames, (frames,) each, by name."""
        names = [name for name in self._rows[0] if name != "true_pa"] if self._rows else []
        return {name: np.array([row[name] for row in self._rows]) for name in names}

    def calibration(self) -> np.ndarray | None:
        """Calibration curve (2, levels) over the foreground of all frames: expected, observed; None without any."""
        return np.stack([np.array(LEVELS), self._below / self._inside]) if self._inside else None

    def pixel(self, group: str) -> dict[str, Any] | None:
        """What is known of the pixel of a movie; None of fewer than two frames of known time or without distribution.

        By name: `pixel`, row and column; in order of time `time_s`, `mean_pa`, `entropy_bits`, `true_pa` (frames,) and
        `bands_pa` (levels, frames) at `BAND_LEVELS`.
        """
        own = [i for i, name in enumerate(self.groups) if name == group and np.isfinite(self._rows[i]["time_s"])]
        own.sort(key=lambda i: self._rows[i]["time_s"])
        kept = [there for i in own if (there := self._there[i]) is not None]
        if len(kept) < 2:
            return None
        mu, sigma_squared = (torch.stack(parts, dim=1) for parts in zip(*kept, strict=True))  # (draws, frames)
        return {
            "pixel": self._pixels[group],
            "bands_pa": np.stack([lognormal.quantile(mu, sigma_squared, level).numpy() for level in BAND_LEVELS]),
            "mean_pa": lognormal.mean(mu, sigma_squared).numpy(),
            "entropy_bits": lognormal.entropy_bits(mu, sigma_squared).numpy(),
            **{name: np.array([self._rows[i][name] for i in own]) for name in ("time_s", "true_pa")},
        }
