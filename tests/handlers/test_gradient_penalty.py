"""AdversarialTrainer with the handlers that make it train WGAN-GP on pairs."""

import pytest
import torch
from ignite.engine import Events
from monai.engines import AdversarialTrainer
from torch import nn

from medsr_monai.handlers import AdversarialPairs, GradientPenalty
from medsr_monai.losses import (
    GradientPenaltyLoss,
    SuperResolutionLoss,
    WassersteinDiscriminatorLoss,
    WassersteinGeneratorLoss,
)
from medsr_monai.networks import Bicubic, SRGANDiscriminator


class Generator(nn.Module):
    """Bicubic enlargement, then one convolution."""

    def __init__(self):
        super().__init__()
        self.enlarge = Bicubic(scale=2)
        self.last = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.last(self.enlarge(x))


def pairs():
    torch.manual_seed(5)
    return [{"image": torch.rand(3, 1, 8, 8), "label": torch.rand(3, 1, 16, 16)} for _ in range(4)]


def trainer(critic=None, weight=10.0, handlers=(), d_lr=1e-3, seed=0, epochs=1, penalised=True):
    torch.manual_seed(0)
    generator = Generator()
    critic = SRGANDiscriminator(1, 16, channels=4, hidden_channels=8) if critic is None else critic
    penalty = [GradientPenalty(GradientPenaltyLoss(weight), seed=seed)] if penalised else []
    return AdversarialTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=pairs(),
        g_network=generator,
        g_optimizer=torch.optim.Adam(generator.parameters(), 1e-3),
        g_loss_function=WassersteinGeneratorLoss(weight=0.1),
        recon_loss_function=SuperResolutionLoss(),
        d_network=critic,
        d_optimizer=torch.optim.Adam(critic.parameters(), d_lr, betas=(0.0, 0.9)),
        d_loss_function=WassersteinDiscriminatorLoss(),
        train_handlers=[AdversarialPairs(), *penalty, *handlers],
    )


class Record:
    """Outputs of every step and the weights after it."""

    def __init__(self):
        self.outputs, self.weights = [], []

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine):
        self.outputs.append({k: v.detach().clone() for k, v in engine.state.output.items()})
        self.weights.append([p.detach().clone() for n in (engine.state.g_network, engine.state.d_network)
                             for p in n.parameters()])  # fmt: skip


def test_both_networks_train_and_the_losses_are_those_of_the_pairs():
    record = Record()
    engine = trainer(handlers=[record])
    before = [p.detach().clone() for n in (engine.state.g_network, engine.state.d_network) for p in n.parameters()]
    engine.run()
    assert len(record.outputs) == 4
    for start, end in zip(before, record.weights[0], strict=True):
        # a critic's biases may stand still: they cancel in the difference of real and fake
        assert start.ndim == 1 or not torch.equal(start, end)
    for output, batch in zip(record.outputs, pairs(), strict=True):
        assert torch.equal(output["reals"], batch["label"])
        wasserstein = output["fake_logits"].mean() - output["real_logits"].mean()
        torch.testing.assert_close(output["discriminator_loss"], wasserstein + output["gradient_penalty"])
        torch.testing.assert_close(output["loss"], output["reconstruction_loss"] + output["generator_loss"])
        torch.testing.assert_close(output["reconstruction_loss"], (output["pred"] - batch["label"]).abs().mean())


def test_penalty_of_a_linear_critic_by_hand():
    """The critic of length 5 is pulled to length 1 by the penalty, and only by it."""

    def critic():
        network = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
        network[1].weight.data = torch.full((1, 256), 5 / 16)
        return network

    record = Record()
    trainer(critic(), handlers=[record], d_lr=0.0).run()
    assert [o["gradient_penalty"].item() for o in record.outputs] == pytest.approx([10 * 16] * 4, rel=1e-5)
    lengths = {}
    for penalised in (True, False):
        network = critic()
        trainer(network, d_lr=5e-3, epochs=25, penalised=penalised).run()
        lengths[penalised] = network[1].weight.norm().item()
    assert lengths[True] == pytest.approx(1, abs=0.25) and lengths[False] > 4


def test_the_mixes_follow_the_seed_and_the_iteration():
    def penalties(seed, epochs=1, iteration=0):
        record = Record()
        engine = trainer(handlers=[record], d_lr=0.0, seed=seed, epochs=epochs)
        engine.state.g_optimizer.param_groups[0]["lr"] = 0.0
        torch.rand(seed + 1)  # the global random numbers do not matter
        if iteration:
            engine.state_dict_user_keys.clear()
            engine.load_state_dict({"iteration": iteration, "epoch_length": 4, "max_epochs": epochs})
        engine.run()
        return [o["gradient_penalty"].item() for o in record.outputs]

    first = penalties(0, epochs=2)
    assert penalties(0, epochs=2) == first and penalties(1, epochs=2) != first
    assert first[:4] != first[4:]  # the same images
    assert penalties(0, epochs=2, iteration=4) == first[4:]


def test_the_state_of_the_trainer_is_numbers(tmp_path):
    engine = trainer()
    engine.run()
    torch.save(dict(engine.state_dict()), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == {"iteration": 4, "epoch_length": 4, "max_epochs": 1}


def test_several_processes_are_refused(monkeypatch):
    engine = trainer()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="runs in 1 process, not in 2"):
        AdversarialPairs().start(engine)
