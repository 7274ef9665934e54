"""Compressed volumes: what others read in them, and that the same voxels give the same bytes."""

import errno
import gzip
import shutil
import subprocess
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsr_monai.data import NiftiWriter
from medsr_monai.data.gzip_stream import write_gzip

SAMPLE = Path(__file__).parents[2] / "medsr_monai" / "data" / "sample" / "brain_t1w.nii.gz"
ANGLE = np.radians(20)
ROTATION = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
AFFINE = np.block([[ROTATION @ np.diag([0.9, -0.9, 2.5]), np.array([[-20], [13.5], [7]])], [0, 0, 0, 1]])


def write(path, dtype=np.float32, seed=0):
    """A volume of some blocks of a megabyte, smooth and noisy in parts, written as `medsr upscale` does."""
    rows = torch.linspace(0, 900, 128)
    image = rows[:, None, None] + rows[None, :96, None] + 0 * torch.zeros(1, 1, 60)
    image[..., 30:] += 20 * torch.rand((128, 96, 30), generator=torch.Generator().manual_seed(seed))
    writer = NiftiWriter(output_dtype=dtype)
    writer.set_data_array(MetaTensor(image[None], affine=AFFINE), channel_dim=0)
    writer.set_metadata({"affine": AFFINE}, resample=False)
    writer.write(path)
    return image.numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int16], ids=lambda d: d.__name__)
def test_holds_what_nibabel_would_write(tmp_path, dtype):
    write(tmp_path / "a.nii.gz", dtype)
    write(tmp_path / "a.nii", dtype)
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()) == (tmp_path / "a.nii").read_bytes()


def test_others_read_it(tmp_path):
    image = write(tmp_path / "a.nii.gz")
    theirs = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(theirs.get_fdata(dtype=np.float32), image)
    np.testing.assert_allclose(theirs.affine, AFFINE, atol=1e-6)
    sitk = pytest.importorskip("SimpleITK")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "a.nii.gz")).T, image)


@pytest.mark.skipif(shutil.which("gzip") is None, reason="no program gzip here")
def test_the_program_gzip_finds_it_whole(tmp_path):
    write(tmp_path / "a.nii.gz")
    subprocess.run(["gzip", "-t", tmp_path / "a.nii.gz"], check=True)
    damaged = bytearray((tmp_path / "a.nii.gz").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "b.nii.gz").write_bytes(damaged)
    assert subprocess.run(["gzip", "-t", tmp_path / "b.nii.gz"], capture_output=True).returncode


def test_same_bytes_whatever_the_number_of_threads_the_name_and_the_time(tmp_path, monkeypatch):
    written = set()
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        write(tmp_path / f"{threads}.nii.gz")
        written.add((tmp_path / f"{threads}.nii.gz").read_bytes())
    assert len(written) == 1
    (content,) = written
    assert content[3] == 0 and content[4:8] == bytes(4)  # no name, no time
    write(tmp_path / "other.nii.gz", seed=1)
    assert (tmp_path / "other.nii.gz").read_bytes() != content


def test_hardly_larger_than_nibabels(tmp_path):
    image = write(tmp_path / "ours.nii.gz")
    nib.save(nib.Nifti1Image(image, AFFINE), tmp_path / "theirs.nii.gz")
    ours, theirs = ((tmp_path / f"{name}.nii.gz").stat().st_size for name in ("ours", "theirs"))
    assert ours < 1.1 * theirs


@pytest.mark.parametrize("threads", [1, 3])
def test_a_full_disk_is_told(threads):
    """/dev/full takes nothing."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError) as caught, write_gzip("/dev/full", threads) as stream:
        for _ in range(8):
            stream.write(np.random.default_rng(0).bytes(2**20))
    assert caught.value.errno == errno.ENOSPC


def test_no_room_for_a_thread_is_memory_that_has_run_out(tmp_path, monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(MemoryError, match="can't start new thread"), write_gzip(tmp_path / "a.gz"):
        pass


def test_only_from_start_to_end(tmp_path):
    with write_gzip(tmp_path / "a.gz") as stream:
        stream.write(b"abc")
        assert stream.tell() == stream.seek(3) == 3
        with pytest.raises(OSError, match="from start to end"):
            stream.seek(0)
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"abc"


@pytest.mark.slow
def test_sooner_done_than_nibabel(tmp_path):
    """The sample volume enlarged to 1024x1024x150 voxels, float32; -s shows what upscaling/README.md names."""
    sample = torch.from_numpy(nib.load(SAMPLE).get_fdata(dtype=np.float32))
    image = torch.nn.functional.interpolate(sample[None, None], (1024, 1024, 150), mode="trilinear")[0]
    writer = NiftiWriter(output_dtype=np.float32)
    writer.set_data_array(MetaTensor(image, affine=AFFINE), channel_dim=0)
    writer.set_metadata({"affine": AFFINE}, resample=False)
    theirs = nib.Nifti1Image(image[0].numpy(), AFFINE)
    seconds, sizes = {}, {}
    for name, save in {"ours": writer.write, "nibabel": lambda path: nib.save(theirs, path)}.items():
        start = time.perf_counter()
        save(tmp_path / f"{name}.nii.gz")
        seconds[name] = time.perf_counter() - start
        sizes[name] = (tmp_path / f"{name}.nii.gz").stat().st_size / 1e6
    print(f"{torch.get_num_threads()} threads: {seconds} s, {sizes} MB")
    assert seconds["ours"] < 0.6 * seconds["nibabel"] and sizes["ours"] < 1.05 * sizes["nibabel"]
