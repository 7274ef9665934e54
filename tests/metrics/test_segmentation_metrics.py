"""Pooled Dice, by hand."""

import pytest
import torch
from monai.metrics import DiceMetric

from medsr_monai.metrics import PooledDice, count_pixels

PRED = torch.tensor([[[[0, 1, 1, 2]]], [[[0, 0, 2, 2]]]])
LABEL = torch.tensor([[[[0, 1, 2, 2]]], [[[0, 1, 1, 2]]]])


def test_pixels_by_hand():
    counts = count_pixels(PRED, LABEL, 3)
    # class 1 of the first slice: 1 in both, 2 in pred, 1 in label
    assert counts.tolist() == [[[1, 1, 1], [1, 2, 1], [1, 1, 2]], [[1, 2, 1], [0, 0, 2], [1, 2, 1]]]
    with pytest.raises(ValueError, match=r"pred is \(2, 1, 1, 4\) and label \(1, 1, 1, 4\)"):
        count_pixels(PRED, LABEL[:1], 3)


def test_pooled_over_classes_and_slices():
    metric = PooledDice(3)
    for i in (0, 1):
        metric(y_pred=PRED[i : i + 1], y=LABEL[i : i + 1])
    assert float(metric.aggregate()) == pytest.approx(2 * 3 / (5 + 6))
    metric.reset()
    empty = torch.zeros(1, 1, 2, 2)
    metric(y_pred=empty, y=empty)
    assert metric.aggregate().isnan()


def test_with_two_classes_and_one_slice_it_is_monais():
    generator = torch.Generator().manual_seed(0)
    pred, label = torch.randint(0, 2, (2, 1, 1, 9, 8), generator=generator)
    ours, monais = PooledDice(2), DiceMetric(include_background=False, num_classes=2)
    ours(y_pred=pred, y=label)
    monais(y_pred=pred, y=label)
    assert float(ours.aggregate()) == pytest.approx(float(monais.aggregate()))
