"""Saving and early stopping where not every epoch is validated."""

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from medsr_monai.handlers import EarlyStop, TrainingCheckpoints
from medsr_monai.networks import Bicubic


class Parameters(nn.Module):
    """What the trainer would train: a number."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


@pytest.fixture
def engines():
    """A trainer, and an evaluator that scores 5, 4, 3, ... as MONAI's validation runs it: up to the trainer's epoch."""
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name = "score"

    @evaluator.on(Events.COMPLETED)
    def score(engine):
        engine.state.metrics = {"score": 6.0 - engine.state.epoch}

    return Engine(lambda engine, batch: None), evaluator


def validate(trainer, evaluator, every):
    @trainer.on(Events.EPOCH_COMPLETED(every=every))
    def run(engine):
        evaluator.state.max_epochs, evaluator.state.epoch = engine.state.epoch, engine.state.epoch - 1
        evaluator.run([0], max_epochs=engine.state.epoch)


@pytest.mark.parametrize("interval, epochs, expected", [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (9, 4, [4])])
def test_the_last_epoch_is_saved_once(engines, tmp_path, interval, epochs, expected):
    trainer, evaluator = engines
    network = Bicubic(scale=2)
    saved = []
    handler = TrainingCheckpoints(str(tmp_path), network, {}, network, evaluator, interval=interval)
    handler.save = lambda engine: saved.append(engine.state.epoch)
    handler.attach(trainer)
    trainer.run([0], max_epochs=epochs)
    assert saved == expected


def test_patience_counts_validations_not_epochs(engines):
    trainer, evaluator = engines
    validate(trainer, evaluator, every=3)
    EarlyStop(2, evaluator).attach(trainer)
    trainer.run([0], max_epochs=50)
    # validated after epochs 3 (the best), 6 and 9
    assert trainer.state.epoch == 9
