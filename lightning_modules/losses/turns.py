"""Two optimizers that take turns in every batch, under Lightning's manual optimization: what every such module does.

A module that uses this has `automatic_optimization = False`, `sides()` (the parameters of its generators and of its
discriminators) and in `hparams` learning_rate, discriminator_learning_rate, betas, decay_share and clip_gradient_norm.

Lightning counts every step of every optimizer; here one optimizer of a module is counted, so that the run's global step
is the number of batches, and max_steps, schedules and the axes of curves mean batches. It does so by withholding the
two private callbacks that Lightning arms before every batch; a test compares the counts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

PRECISIONS = ("32", "32-true", "bf16", "bf16-mixed", "auto")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")


def trainer_fault(options: Mapping[str, Any]) -> str | None:
    """Why these options of the trainer cannot be: `<option> <reason and mend>`; None where they can."""
    two = "two optimizers take turns in every batch"
    if options.get("gradient_clip_val") is not None:
        return f"gradient_clip_val must be null, because {two}: set module.clip_gradient_norm instead"
    if options.get("accumulate_grad_batches", 1) != 1:
        return f"accumulate_grad_batches must be 1, because {two}: raise data.batch_size instead"
    precision = str(options.get("precision") or "32-true")
    if precision not in PRECISIONS:
        scaled = precision in ("16", "16-mixed")
        why = f"{two} and would share one loss scaler" if scaled else "the losses are taken in single precision"
        return f"precision must be 32-true or bf16-mixed, because {why}"
    strategy = str(options.get("strategy", "auto"))
    if strategy not in STRATEGIES:
        why = "which neither sharded parameters allow nor processes that wait for every parameter's gradient"
        return f"strategy must be auto or ddp, not {strategy}, because {two}, {why}"
    return None


def check_turns(settings: Mapping[str, Any], weights: Sequence[str]) -> None:
    """Check what this file reads of `hparams`, and that these weights are not negative; ValueError names the fault."""
    for name in ("learning_rate", "discriminator_learning_rate", "clip_gradient_norm"):
        value = settings[name]
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")
    for name in weights:
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"{name} must not be negative, got {settings[name]}")
    if len(settings["betas"]) != 2 or not all(0 <= beta < 1 for beta in settings["betas"]):
        raise ValueError(f"betas must be two numbers in [0, 1), got {settings['betas']}")
    if not 0 <= settings["decay_share"] <= 1:
        raise ValueError(f"decay_share must lie in [0, 1], got {settings['decay_share']}")


def adam_for_both_sides(module: Any) -> Any:
    """Adam for each side, its step size constant and then falling linearly to 0 over the run's last `decay_share`."""
    numbers, (generators, discriminators) = module.hparams, module.sides()
    betas = tuple(numbers["betas"])
    optimizers = [
        torch.optim.Adam(generators, lr=numbers["learning_rate"], betas=betas),
        torch.optim.Adam(discriminators, lr=numbers["discriminator_learning_rate"], betas=betas),
    ]
    if not numbers["decay_share"] or math.isinf(module.trainer.estimated_stepping_batches):
        return optimizers  # a run that only time ends never comes to its last part
    steps = max(int(module.trainer.estimated_stepping_batches), 1)
    falling = max(numbers["decay_share"] * steps, 1)

    def factor(step: int) -> float:
        return min(1.0, max(0.0, (steps - step) / falling))

    learning = optimizers if numbers.get("adversarial_weight", 1) else optimizers[:1]
    return optimizers, [LambdaLR(optimizer, factor) for optimizer in learning]


@contextlib.contextmanager
def turn(module: Any, place: int, *, counted: bool) -> Iterator[Callable[[Tensor], Tensor]]:
    """One optimizer's turn; gives what descends along a loss () and returns it without its graph.

    Within it no other optimizer's parameters ask for gradients. What its loss needs of the other side must have been
    computed before, and of what is computed within only this side learns.

    Args:
        module: the LightningModule.
        place: of the optimizer in `configure_optimizers`.
        counted: whether its step is the batch's.

    """
    optimizer = module.optimizers()[place]
    if not counted:
        optimizer._on_before_step = optimizer._on_after_step = _nothing

    def descend(loss: Tensor) -> Tensor:
        optimizer.zero_grad()
        module.manual_backward(loss)
        if module.hparams["clip_gradient_norm"] is not None:
            largest = module.hparams["clip_gradient_norm"]
            module.clip_gradients(optimizer, gradient_clip_val=largest, gradient_clip_algorithm="norm")
        optimizer.step()
        return loss.detach()

    module.toggle_optimizer(optimizer)
    try:
        yield descend
    finally:
        module.untoggle_optimizer(optimizer)


def end_turns(module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
    """At the end of a batch let the step sizes fall, where they do; a module's `on_train_batch_end`."""
    schedules = module.lr_schedulers() or []
    for schedule in schedules if isinstance(schedules, list) else [schedules]:
        schedule.step()


def _nothing() -> None:
    """In the place of what counts a step."""
