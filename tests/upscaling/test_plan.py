"""What a plan costs: memory and time of a network on its slices."""

import copy

import numpy as np
import pytest
import torch

from medsr_monai.inferers import PlaneInferer, ThroughPlaneInferer
from medsr_monai.networks import RDST
from medsr_monai.upscaling.plan import _live_bytes, activation_bytes, peak_memory, resident_bytes, seconds_per_pixel


class Two(torch.nn.Module):
    """Holds its input, one copy and their sum at the same time, after a larger tensor that is gone by then."""

    def forward(self, x):
        y = torch.cat([x] * 3, dim=1).sum(1, keepdim=True)
        return x * 2 + y


def test_activations_are_counted_while_they_live():
    image = 4 * 8 * 8 * 2
    assert activation_bytes(Two(), (2, 1, 8, 8)) == pytest.approx(5 * image)  # input, three copies, their sum
    network = RDST(1, 1, 4, num_blocks=1, num_dense_blocks=1).eval()
    small, large, wide = (activation_bytes(network, (1, 1, *sides)) for sides in ((64, 64), (128, 128), (192, 256)))
    assert 3 * small < large <= 4 * small
    assert wide == pytest.approx(_live_bytes(copy.deepcopy(network).to("meta"), (1, 1, 192, 256)), rel=0.01)
    assert next(network.parameters()).device.type == "cpu"


def slices(plan):
    return [(one.count, one.rows, one.columns) for one in plan.passes]


def test_work_of_both_inferers():
    affine = np.diag([1.0, 1, 4, 1])
    plan = PlaneInferer("coronal").plan(affine, (30, 20, 10), (4, 2))
    assert (plan.new_shape, slices(plan)) == ((120, 20, 20), [(20, 30, 10)])
    assert plan.pixels() == 20 * 30 * 10 and plan.pixels(8) == 20 * 32 * 16
    plan = ThroughPlaneInferer().plan(affine, (30, 20, 10), (1, 1))
    assert (plan.new_shape, slices(plan)) == ((30, 20, 40), [(30, 20, 40), (20, 30, 40)])
    plan = ThroughPlaneInferer(scale=[1, 4], refine="sagittal").plan(affine, (30, 20, 10), (1, 4))
    assert (plan.new_shape, slices(plan)) == ((30, 20, 40), [(30, 20, 10)])


def test_memory_grows_with_output_and_activations():
    small = PlaneInferer().plan(np.eye(4), (256, 256, 256), (4, 4))
    large = PlaneInferer().plan(np.eye(4), (512, 512, 256), (4, 4))
    assert 3.9 < peak_memory(0, large, 0) / peak_memory(0, small, 0) < 4.1
    assert peak_memory(10, small, 0) - peak_memory(0, small, 0) == 10
    assert peak_memory(0, small, 2**33) - peak_memory(0, small, 2**32) == 2**32
    assert resident_bytes() is None or 2**26 < resident_bytes() < 2**36


def test_time_is_measured_on_a_slice(monkeypatch):
    """By the second run, the first one warms up."""
    now, shapes = 0.0, []

    class Clocked(torch.nn.Module):
        def forward(self, x):
            nonlocal now
            shapes.append(tuple(x.shape))
            now += (9.0, 0.25)[len(shapes) - 1]
            return x

    monkeypatch.setattr("medsr_monai.upscaling.plan.time.perf_counter", lambda: now)
    seconds = seconds_per_pixel(Clocked(), channels=2, batch=3)
    assert len(set(shapes)) == 1 and shapes[0][:2] == (3, 2)
    assert seconds == pytest.approx(0.25 / np.prod([3, *shapes[0][2:]]))
