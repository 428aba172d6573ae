"""Metrics by name: what travels with a checkpoint, what is reset, and what is logged."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_modules.metrics.epoch_means import log_mean, log_step, named_metrics, reset_training_metrics
from lightning_modules.metrics.mean_loss import MeanLoss


class Logging(nn.Module):
    """Stands for a LightningModule: keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.metrics = named_metrics({f"{stage}/loss": MeanLoss() for stage in ("train", "val", "test")})
        self.logged = {}

    def log(self, name, value, **options):
        self.logged[name] = SimpleNamespace(value=value, **options)


def test_the_mean_of_an_epoch_is_over_samples_and_logged_under_its_name():
    module = Logging()
    log_mean(module, "val/loss", torch.tensor(1.0), 3, batch_size=3)
    log_mean(module, "val/loss", torch.tensor(5.0), 1, batch_size=1)
    seen = module.logged["val/loss"]
    assert seen.value is module.metrics["val/loss"]
    assert seen.value.compute() == 2
    assert (seen.on_step, seen.on_epoch, seen.batch_size, seen.prog_bar) == (False, True, 1, True)
    log_mean(module, "test/loss", torch.tensor(1.0), 1, batch_size=1)
    assert not module.logged["test/loss"].prog_bar


def test_a_step_is_logged_at_once_without_its_graph_and_handed_on():
    module, loss = Logging(), torch.tensor(2.0, requires_grad=True) * 3
    assert log_step(module, loss, batch_size=4) is loss
    seen = module.logged["train/loss_step"]
    assert (seen.on_step, seen.on_epoch, seen.batch_size) == (True, False, 4)
    assert not seen.value.requires_grad


def test_means_of_the_training_epoch_travel_with_a_checkpoint_and_others_do_not():
    module = Logging()
    for stage in ("train", "val", "test"):
        log_mean(module, f"{stage}/loss", torch.tensor(4.0), 2, batch_size=2)
    state = module.state_dict()
    assert {name.rpartition(".")[0] for name in state} == {"metrics.train/loss"}
    restored = Logging()
    restored.load_state_dict(state)
    log_mean(restored, "train/loss", torch.tensor(1.0), 1, batch_size=1)
    assert restored.metrics["train/loss"].compute() == 3


def test_a_training_epoch_begins_anew_and_leaves_other_stages_alone():
    module = Logging()
    for stage in ("train", "val"):
        log_mean(module, f"{stage}/loss", torch.tensor(4.0), 2, batch_size=2)
    reset_training_metrics(module)
    log_mean(module, "train/loss", torch.tensor(1.0), 1, batch_size=1)
    assert module.metrics["train/loss"].compute() == 1
    assert module.metrics["val/loss"].compute() == 4


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(KeyError, match="val/accuracy"):
        log_mean(Logging(), "val/accuracy", torch.tensor(1.0), 1, batch_size=1)
