"""The worst slices: which are kept, and how they are drawn."""

import numpy as np
import pytest

from medsr_monai.metrics import Failure, WorstSlices, failure_grid


def failure(difference, name="t1w, axial slice 3", interpolation="bicubic", **more):
    return Failure(name, difference, interpolation, {}, **more)


def test_one_slice_a_group_and_the_worst_groups():
    worst = WorstSlices(2)
    given = [("a", 0.5), ("b", -0.1), ("a", 0.2), ("c", 0.1), ("b", 0.3), ("a", -0.3), ("c", -0.1), ("d", -0.1)]
    for number, (group, difference) in enumerate(given):
        assert worst.is_worse((group,), difference) == (number not in (4, 6, 7))
        worst.add((group,), failure(difference, f"{group}{number}"))
    assert [one.name for one in worst.worst()] == ["a5", "b1"]
    assert not WorstSlices(0).is_worse(("a",), -9)
    with pytest.raises(ValueError, match="-1 failures are to be shown, expected 0 or more"):
        WorstSlices(-1)


@pytest.mark.parametrize(("towards", "row", "column"), [
    ("RA", -1, -1), ("LP", 0, 0), ("RS", 0, -1), ("AS", -1, 0), ("IL", -1, 0), ("AR", -1, -1), ("SP", 0, 0), ("", 0, 0),
])  # fmt: skip
def test_upright(towards, row, column):
    """The marked corner of the array goes where the head, the patient's right or front are."""
    ends = {"S": 0, "I": -1, "A": 0, "P": -1, "R": 0, "L": -1}
    image = np.zeros((4, 6))
    image[-1, -1] = 1  # where rows and columns lead to
    one = Failure("", 0, "", {"reference": image}, spacing=(2.0, 1.0), towards=towards).upright()
    shown = one.images["reference"]
    if not towards:
        assert shown is image
        return
    turned = towards[0] in "RL" or (towards[0] in "AP" and towards[1] in "SI")
    vertical, horizontal = towards[::-1] if turned else towards
    assert shown.shape == ((6, 4) if turned else (4, 6)) and one.spacing == ((1.0, 2.0) if turned else (2.0, 1.0))
    assert shown[ends[vertical], ends[horizontal]] == 1


def test_the_picture_shows_where_the_network_is_worse():
    rng = np.random.default_rng(0)
    label = rng.random((40, 60))
    network = label.copy()
    network[30:36, 6:14] += 0.5  # wrong here only
    cubic = label + 0.05
    images = {"input": label[::4, ::4], "bicubic": cubic, "ours": network, "reference": label}
    figures = {"bicubic": "26.02 dB / 0.9", "ours": "20.00 dB / 0.8"}
    one = Failure("t1w_$1$, axial slice 3", -6.02, "bicubic", images, figures, (1.0, 1.0), "PL")
    images = {"spline" if name == "bicubic" else name: image for name, image in images.items()}
    figures = {"spline": "26.10 dB / 0.9", "ours": "20.10 dB / 0.8"}
    other = Failure("t1w, axial slice 5", -6.0, "spline", images, figures, (1.0, 1.0), "PL")
    figure = failure_grid([one, other], "Where ours is worst", "research use only")
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 2 * 6
    texts = [text.get_text() for text in figure.texts]
    assert {"reference, whole", "input", "interpolation", "ours", "t1w_$1$, axial slice 3", "-6.02 dB beside bicubic",
            "bicubic, 26.02 dB / 0.9", "20.00 dB / 0.8", "Where ours is worst"} <= set(texts)  # fmt: skip
    assert {"-6.00 dB beside spline", "spline, 26.10 dB / 0.9", "20.10 dB / 0.8"} <= set(texts)
    (left, right), (bottom, top) = panels[3].get_xlim(), panels[3].get_ylim()
    assert left <= 6 and right >= 14 and top <= 30 and bottom >= 36  # the crop holds what is wrong
    signed = panels[5].images[0].get_array()
    assert signed[32, 10] == pytest.approx(0.45) and signed[0, 0] == pytest.approx(-0.05)
