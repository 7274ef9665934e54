"""The augmentations of a batch, each by hand."""

import pytest
import torch

from medsr_monai.transforms import AugmentImages

OFF = dict(flip=0, brightness=0, saturation=0, contrast=0, translation=0, cutout=0)
FLIP, BRIGHT, GREY, CONTRAST, DOWN, RIGHT, ROW, COLUMN = range(8)


def augment(images, number=None, value=None, **more):
    numbers = torch.full((len(images), AugmentImages.count), 0.5)
    if number is not None:
        numbers[:, number] = torch.as_tensor(value)
    return AugmentImages(**OFF | more)(images, numbers)


@pytest.fixture
def images():
    return torch.rand(2, 1, 8, 6, generator=torch.Generator().manual_seed(0))


def test_numbers_in_the_middle_change_nothing(images):
    torch.testing.assert_close(AugmentImages(cutout=0)(images, torch.full((2, 8), 0.5)), images)
    assert torch.equal(augment(images), images)


def test_flip(images):
    flipped = augment(images, FLIP, [0.4, 0.6], flip=0.5)
    assert torch.equal(flipped[0], images[0]) and torch.equal(flipped[1], images[1].flip(-1))


def test_brightness(images):
    torch.testing.assert_close(augment(images, BRIGHT, [0.0, 1.0], brightness=0.1)[0], images[0] - 0.1)
    torch.testing.assert_close(augment(images, BRIGHT, [0.0, 1.0], brightness=0.1)[1], images[1] + 0.1)


def test_contrast(images):
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(augment(images, CONTRAST, 0.0, contrast=0.5), mean + 0.5 * (images - mean))


def test_saturation_is_of_colour_only(images):
    assert torch.equal(augment(images, GREY, 0.0, saturation=1), images)
    colour = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(
        augment(colour, GREY, 0.0, saturation=1), colour.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    )


def test_translation_by_whole_pixels(images):
    """A quarter of 8 rows is 2, of 6 columns 1.5, so 2."""
    moved = augment(images, DOWN, [0.0, 0.999], translation=0.25)
    assert torch.equal(moved[0, :, :-2], images[0, :, 2:]) and not moved[0, :, -2:].any()
    assert torch.equal(moved[1, :, 2:], images[1, :, :-2]) and not moved[1, :, :2].any()
    moved = augment(images, RIGHT, [0.0, 0.65], translation=0.25)
    assert torch.equal(moved[0, :, :, :-2], images[0, :, :, 2:]) and not moved[0, :, :, -2:].any()
    assert torch.equal(moved[1, :, :, 1:], images[1, :, :, :-1]) and not moved[1, :, :, :1].any()


def test_cutout(images):
    """4 rows and 3 columns around the pixel (4, 3); at a corner only what is inside."""
    cut = augment(images + 1, cutout=0.5)
    zeros = torch.zeros(8, 6, dtype=torch.bool)
    zeros[2:6, 2:5] = True
    assert torch.equal(cut[0, 0] == 0, zeros) and torch.equal(cut[:, :, ~zeros], (images + 1)[:, :, ~zeros])
    numbers = torch.full((2, 8), 0.5)
    numbers[:, [ROW, COLUMN]] = 0
    cut = AugmentImages(**OFF | {"cutout": 0.5})(images + 1, numbers)
    assert (cut == 0).sum() == 2 * 2 * 2 and not cut[:, :, :2, :2].any()


def test_images_have_their_own_numbers_and_stay_differentiable(images):
    x = images.clone().requires_grad_()
    numbers = torch.rand(2, 8, generator=torch.Generator().manual_seed(1))
    both = AugmentImages()(x, numbers)
    alone = AugmentImages()(x[1:], numbers[1:])
    torch.testing.assert_close(both[1:], alone)
    both.sum().backward()
    assert x.grad.abs().sum() > 0
