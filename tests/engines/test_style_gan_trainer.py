"""Steps of the GAN training by hand: what is updated when, by which gradient."""

import pytest
import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler
from torch import nn

from medsr_monai.engines import StyleGANTrainer
from medsr_monai.losses import (
    BalancedConsistencyLoss,
    NonSaturatingDiscriminatorLoss,
    NonSaturatingGeneratorLoss,
    R1Penalty,
)
from medsr_monai.transforms import AugmentImages

STEPS = 7


class Generator(nn.Module):
    """An image of 4 pixels, linear in the latent."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 4)

    def forward(self, z):
        return self.last(z).view(-1, 1, 2, 2)


def batches(count=STEPS):
    random = torch.Generator().manual_seed(4)
    return [{"image": 1 + torch.rand(5, 1, 2, 2, generator=random)} for _ in range(count)]


def trainer(handlers=(), lr=(0.5, 0.5), data=None, epochs=1, **options):
    """SGD, so that a step is the rate times the gradient."""
    torch.manual_seed(0)
    generator, critic = Generator(), nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    options = {"penalty": R1Penalty(2.0), "penalty_interval": 3, "clip_norm": None} | options
    return StyleGANTrainer(
        "cpu",
        epochs,
        batches() if data is None else data,
        generator,
        torch.optim.SGD(generator.parameters(), lr[0]),
        critic,
        torch.optim.SGD(critic.parameters(), lr[1]),
        g_loss_function=NonSaturatingGeneratorLoss(),
        d_loss_function=NonSaturatingDiscriminatorLoss(),
        style_dim=3,
        train_handlers=[*handlers],
        **options,
    )


class Record:
    """Weights before and after each step of an optimiser, and the gradient that it took."""

    def __init__(self, optimizer):
        self.steps = []
        step = optimizer.step

        def recorded(*args, **kwargs):
            parameters = optimizer.param_groups[0]["params"]
            before = torch.cat([p.detach().flatten().clone() for p in parameters])
            gradient = torch.cat([p.grad.flatten().clone() for p in parameters])
            result = step(*args, **kwargs)
            self.steps.append((before, gradient, torch.cat([p.detach().flatten().clone() for p in parameters])))
            return result

        optimizer.step = recorded


def outputs(engine):
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(dict(e.state.output)))
    engine.run()
    return seen


def test_the_penalty_comes_lazily_in_a_step_of_its_own():
    iterations = []
    engine = trainer(
        penalty=lambda network, real: iterations.append(engine.state.iteration) or R1Penalty(2.0)(network, real)
    )
    record = Record(engine.d_optimizer)
    outputs(engine)
    assert iterations == [1, 4, 7]
    assert len(record.steps) == STEPS + 3  # the ratio that the discriminator's rate makes up for


def test_the_penalty_step_is_not_clipped_and_the_other_is():
    engine = trainer(clip_norm=0.01, lr=(0.0, 0.5))
    record = Record(engine.d_optimizer)
    engine.run()
    for number in (0, 2, 3, 4, 6, 7, 8):  # 1, 5 and 9 are penalties
        _, gradient, _ = record.steps[number]
        assert gradient.norm().item() == pytest.approx(0.01, rel=1e-3)
    for number in (1, 5, 9):
        before, gradient, after = record.steps[number]
        weight = before[:4]
        # gamma / 2 * |w|^2 * interval has the gradient gamma * interval * w; the bias has none
        torch.testing.assert_close(gradient, torch.cat([2.0 * 3 * weight, torch.zeros(1)]))
        torch.testing.assert_close(after, before - 0.5 * gradient)


def test_both_steps_by_hand():
    engine = trainer(penalty=None)
    d_record, g_record = Record(engine.d_optimizer), Record(engine.g_optimizer)
    seen = outputs(engine)
    for number, batch in enumerate(batches()):
        # the discriminator: logits s = x.w + b; gradient of softplus(-s) is -sigmoid(-s), of softplus(s) sigmoid(s)
        before, gradient, after = d_record.steps[number]
        w, b = before[:4], before[4]
        g_before = g_record.steps[number][0]
        random = torch.Generator().manual_seed(number + 1)
        z = torch.randn(5, 3, generator=random)
        fake = z @ g_before[:12].view(4, 3).T + g_before[12:]
        real = batch["image"].flatten(1)
        up, down = torch.sigmoid(-(real @ w + b)), torch.sigmoid(fake @ w + b)
        by_hand = torch.cat([(down[:, None] * fake - up[:, None] * real).mean(0), (down - up).mean()[None]])
        torch.testing.assert_close(gradient, by_hand)
        torch.testing.assert_close(after, before - 0.5 * by_hand)
        # the generator sees the discriminator after its step, and new latents
        z = torch.randn(5, 3, generator=random)
        assert torch.equal(seen[number]["latents"], z)
        fake = z @ g_before[:12].view(4, 3).T + g_before[12:]
        w, b = after[:4], after[4]
        pull = -torch.sigmoid(-(fake @ w + b))[:, None] * w
        torch.testing.assert_close(g_record.steps[number][1], torch.cat([(pull.T @ z / 5).flatten(), pull.mean(0)]))
        torch.testing.assert_close(seen[number]["loss"], torch.nn.functional.softplus(-(fake @ w + b)).mean())


def test_the_consistency_is_that_of_real_and_generated_images():
    """D is linear and T adds up to 0.5: the difference of the logits is the sum of its weights times what was added."""
    transform = AugmentImages(flip=0, brightness=0.5, saturation=0, contrast=0, translation=0, cutout=0)
    engine = trainer(penalty=None, lr=(0.0, 0.0), consistency=BalancedConsistencyLoss(transform, 10.0))
    seen = outputs(engine)
    total = engine.d_network[1].weight.sum().item()
    for number, output in enumerate(seen):
        random = torch.Generator().manual_seed(number + 1)
        torch.randn(5, 3, generator=random)
        added = [torch.rand(5, 8, generator=random)[:, 1] - 0.5 for _ in ("fake", "real")]
        expected = 10 * total**2 * sum(a.square().mean().item() for a in added)
        assert output["consistency"].item() == pytest.approx(expected, rel=1e-4)


def test_the_consistency_reaches_the_discriminator_only():
    states = []
    for weight in (0.0, 100.0):
        engine = trainer(penalty=None, lr=(0.5, 0.0), consistency=BalancedConsistencyLoss(AugmentImages(), weight))
        record = Record(engine.d_optimizer)
        engine.run()
        states.append((engine.g_network.state_dict(), record.steps[0][1]))
    assert all(torch.equal(states[0][0][k], states[1][0][k]) for k in states[0][0])
    assert not torch.equal(states[0][1], states[1][1])


def test_random_numbers_follow_the_seed_and_the_iteration():
    def latents(seed, done=0):
        engine = trainer(seed=seed, epochs=2)
        torch.rand(seed + 1)  # the global random numbers do not matter
        if done:
            engine.load_state_dict({"iteration": done, "epoch_length": STEPS, "max_epochs": 2})
        return torch.stack([o["latents"] for o in outputs(engine)])

    first = latents(0)
    assert torch.equal(latents(0), first) and not torch.equal(latents(1), first)
    assert len(first.unique(dim=0)) == 2 * STEPS
    assert torch.equal(latents(0, done=STEPS), first[STEPS:])


def test_the_moving_average_is_that_of_the_generator():
    momentum = 1 - 0.5 ** (32 / 10000)
    torch.manual_seed(0)
    engine = trainer()
    ema = EMAHandler(engine.g_network, momentum=momentum)
    ema.attach(engine)
    record = Record(engine.g_optimizer)
    average = torch.cat([p.detach().flatten().clone() for p in engine.g_network.parameters()])
    engine.run()
    assert momentum == pytest.approx(1 - 0.99778, abs=1e-5)
    for _, _, after in record.steps:
        average = (1 - momentum) * average + momentum * after
    torch.testing.assert_close(torch.cat([p.flatten() for p in ema.ema_model.parameters()]), average)


def test_the_state_of_the_trainer_is_numbers(tmp_path):
    engine = trainer()
    engine.run()
    torch.save(dict(engine.state_dict()), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == {"iteration": STEPS, "epoch_length": STEPS, "max_epochs": 1}


def test_no_batch_is_refused():
    with pytest.raises(ValueError, match="fewer training images than one batch: lower batch_size"):
        trainer(data=[])
