"""A volume on disk against a tensor in memory, and its file against the writer's."""

import gzip
import itertools
import os

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsr_monai.data import NiftiWriter, StoredVolume, write_stored
from medsr_monai.data import stored_volume as module

AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-0.7, 0.9, 3.0]), (5, -3, 9))


def volume(shape=(1, 7, 6, 5), seed=0):
    data = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return MetaTensor(data, affine=torch.from_numpy(AFFINE))


def stored(folder, source, axis, along=None):
    """All of a volume, written in uneven slabs along an axis."""
    along = axis if along is None else along
    made = StoredVolume(folder, source, axis)
    for start, stop in itertools.pairwise((0, 2, 3, source.shape[along + 1])):
        made[(slice(None),) * (along + 1) + (slice(start, stop),)] = source.narrow(along + 1, start, stop - start)
    return made


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("axis", "along"), [(0, 0), (1, 1), (2, 2), (0, 2), (1, 2)])
def test_every_part_is_the_tensors(tmp_path, axis, along, channels):
    source = volume((channels, 7, 6, 5))
    with stored(tmp_path, source, axis, along) as made:
        plain = source.as_tensor()
        assert (made.shape, made.ndim, made.numel()) == (plain.shape, 4, plain.numel())
        for ends in itertools.product([(0, 2), (0, 7), (2, 5)], [(0, 6), (1, 4)], [(0, 5), (4, 5)]):
            position = (slice(None), *(slice(*pair) for pair in ends))
            assert torch.equal(made[position], plain[position])
        for side in range(4):
            assert torch.equal(made.narrow(side, 0, 1), plain.narrow(side, 0, 1))
        assert torch.equal(made.least, plain.amin((1, 2, 3))) and torch.equal(made.greatest, plain.amax((1, 2, 3)))
        assert made.broken == 0 and torch.equal(made.affine, source.affine)


def test_voxels_that_are_not_finite_are_counted(tmp_path):
    source = volume()
    source[0, 1, 1, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    with stored(tmp_path, source, 1) as made:
        assert made.broken == 3


def test_a_part_that_does_not_fit_is_refused(tmp_path):
    with StoredVolume(tmp_path, volume(), 0) as made:
        with pytest.raises(ValueError, match="does not fit"):
            made[:, :2] = torch.zeros(1, 3, 6, 5)
        with pytest.raises(ValueError, match="only whole rows along array axis 1"):
            made[:, :, :2] = torch.zeros(1, 7, 2, 5)
        with pytest.raises(ValueError, match="without steps"):
            made[:, ::2]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="only Linux has files without names")
def test_the_file_has_no_name(tmp_path):
    with stored(tmp_path, volume(), 0):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(1, 7, 6, 5), (1, 7, 6, 4), (1, 33000, 4, 4)])
def test_the_nifti_file_is_the_writers_byte_by_byte(tmp_path, monkeypatch, axis, suffix, shape):
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * 4 * shape[1] * shape[2])
    source = volume(shape)
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(source, channel_dim=0)
    writer.set_metadata(source.meta, resample=False)
    writer.write(tmp_path / f"memory{suffix}")
    with stored(tmp_path, source, axis, 2 if axis == 0 else axis) as made:
        write_stored(made, tmp_path / f"disk{suffix}")
    memory, disk = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("memory", "disk"))
    if suffix == ".nii.gz":
        memory, disk = gzip.decompress(memory), gzip.decompress(disk)
    assert memory == disk
    assert {p.name for p in tmp_path.iterdir()} == {f"memory{suffix}", f"disk{suffix}"}
