"""The moving average of a training: where it starts, and that a short training is worth something."""

import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler

from medsr_monai.handlers import StartMovingAverage
from medsr_monai.handlers.moving_average import warm_momentum

BUNDLES = Path(__file__).parents[2] / "bundles"


def trained(steps, momentum=0.001, start=0.0, handler=StartMovingAverage):
    """One weight that a training moves by 1 a step, and its average."""
    network = torch.nn.Linear(1, 1, bias=False)
    ema = EMAHandler(network, momentum=momentum)
    torch.nn.init.constant_(network.weight, start)  # as weights are loaded, after the handler's copy

    def step(engine, batch):
        network.weight.data += 1

    engine = Engine(step)
    ema.attach(engine)
    handler(ema).attach(engine)
    engine.run(range(steps))
    return network.weight.item(), ema.ema_model.weight.item()


@pytest.mark.parametrize("steps", [1, 10, 100, 1000])
def test_a_short_training_moves_its_average(steps):
    """By an average over the last ninth or so; a constant 0.001 gives 0.005 after 10 steps and 368 after 1000."""
    weight, average = trained(steps, start=5.0)
    assert weight == 5 + steps
    assert 5 + 0.8 * steps <= average <= weight


def test_a_long_training_has_the_momentum_asked_for():
    assert [warm_momentum(0.001, step) for step in (1, 90, 8990, 100_000)] == [9 / 11, 0.09, 0.001, 0.001]
    assert warm_momentum(0.5, 100) == 0.5


def test_every_training_with_an_average_starts_it_so():
    for file in sorted(BUNDLES.glob("*/configs/train.json")):
        config = json.loads(file.read_text())
        targets = [handler["_target_"] for handler in config["train"]["handlers"]]
        assert ("ema" in config) == ("medsr_monai.handlers.StartMovingAverage" in targets), file
