"""Whole slices in batches against MONAI's own sliding window, and where results are gathered."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from monai.inferers import SliceInferer
from torch import nn

from medsr_monai.inferers import slice_batches
from medsr_monai.inferers.slice_batches import enlarge_slices, result_device, to_device


class Enlarging(nn.Module):
    """Two zero-padded convolutions to another number of channels, and a pixel shuffle of rows and columns."""

    def __init__(self, channels, out_channels, factor):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, out_channels * factor**2, 3, padding=1)
        )
        self.factor = factor

    def forward(self, x):
        return F.pixel_shuffle(self.layers(x), self.factor)


@pytest.mark.parametrize("order", list(itertools.permutations((2, 3, 4))), ids=str)
@pytest.mark.parametrize(
    ("volumes", "channels", "out_channels", "factor"), [(1, 1, 1, 4), (2, 1, 1, 2), (1, 3, 2, 1)], ids=str
)
def test_bit_identical_to_monais_sliding_window(volumes, channels, out_channels, factor, order):
    network = Enlarging(channels, out_channels, factor)
    volume = torch.rand(volumes, channels, 9, 12, 7).permute(0, 1, *order)
    with torch.inference_mode():
        for batch in (1, 2, 4, 5, 64):
            ours = enlarge_slices(volume, network, batch)
            theirs = SliceInferer(0, (-1, -1), batch, 0.5)(volume, network)
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs), batch


def test_a_result_of_half_precision_becomes_the_volumes_type():
    volume = torch.rand(1, 1, 3, 4, 5)
    out = enlarge_slices(volume, lambda x: x.bfloat16(), 2)
    assert out.dtype == torch.float32 and torch.equal(out, volume.bfloat16().float())


def test_the_result_is_the_only_buffer(monkeypatch):
    """MONAI's sliding window makes a count map beside it."""
    made = []
    for name in ("empty", "zeros"):
        real = getattr(torch, name)

        def counting(*args, real=real, **kwargs):
            made.append(real(*args, **kwargs))
            return made[-1]

        monkeypatch.setattr(torch, name, counting)
    volume = torch.rand(1, 1, 8, 4, 4)
    enlarge_slices(volume, lambda x: x.repeat(1, 1, 2, 2), 4)
    assert [tensor.numel() for tensor in made] == [4 * volume.numel()]


def test_where_a_result_is_gathered(monkeypatch):
    """On a GPU if there is room for it and for what follows, else in main memory; memory of a GPU is simulated."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    assert result_device(300, gpu) == gpu
    assert result_device(310, gpu) == torch.device("cpu")
    assert result_device(10**15, torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(("wanted", "pinned"), [(None, True), ("cpu", True), ("cuda:0", False)])
def test_the_buffer_is_pinned_where_a_gpus_batches_come_to_main_memory(monkeypatch, wanted, pinned):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    asked = []
    monkeypatch.setattr(torch, "empty", lambda shape, **kwargs: asked.append((shape, kwargs)))
    slice_batches._empty((10, 1, 8, 8), torch.float32, torch.device("cuda", 0), wanted)
    ((shape, options),) = asked
    assert shape == (10, 1, 8, 8) and options["pin_memory"] is pinned
    assert options["device"].type == ("cpu" if pinned else "cuda")


def test_a_volume_goes_to_a_gpu_by_way_of_pinned_memory():
    class Recorded:
        device = torch.device("cpu")

        def __init__(self):
            self.calls = []

        def pin_memory(self):
            self.calls.append("pinned")
            return self

        def to(self, device, **kwargs):
            self.calls.append((device.type, kwargs))
            return self

    assert to_device(Recorded(), "cuda:0").calls == ["pinned", ("cuda", {"non_blocking": True})]
    assert to_device(Recorded(), "cpu").calls == [("cpu", {})]
