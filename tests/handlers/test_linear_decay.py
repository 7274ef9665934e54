"""A rate that falls linearly to 0."""

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from medsr_monai.handlers import LinearDecay


def rates(start, steps=10, done=0):
    optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr) for lr in (1.0, 4.0)]
    engine = Engine(lambda engine, batch: [o.param_groups[0]["lr"] for o in optimizers])
    seen = []
    LinearDecay(optimizers, steps, start).attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output))
    for optimizer in optimizers:  # as a resumed optimiser is: new groups, some rate
        state = optimizer.state_dict()
        state["param_groups"][0]["lr"] *= 0.1 if done else 1
        optimizer.load_state_dict(state)
    engine.load_state_dict({"iteration": done, "epoch_length": steps, "max_epochs": 1})
    engine.run(range(steps))
    return seen


def test_the_rate_falls_from_the_start_on():
    expected = [1.0] * 7 + [0.75, 0.5, 0.25]  # of step 0 to 9: (10 - step) / 4 from step 6 on
    assert rates(6) == [[pytest.approx(r), pytest.approx(4 * r)] for r in expected]


def test_no_start_changes_nothing():
    assert rates(None) == [[1.0, 4.0]] * 10


def test_a_resumed_training_has_the_rates_of_an_uninterrupted_one():
    assert rates(6, done=8) == rates(6)[8:]


@pytest.mark.parametrize("start", [-1, 10])
def test_a_start_outside_the_training_is_refused(start):
    with pytest.raises(ValueError, match=f"fall from step {start}: expected 0 to 9"):
        LinearDecay([], 10, start)
