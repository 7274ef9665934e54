"""Too little memory: what processes of `medsr` say, leave and never do."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from processes import contents, save, smooth, told, upscaled

LIMITED = """
import torch
from medsr_monai.networks import RDST
whole = RDST.forward
def forward(self, x):
    if x.device.type != "meta" and x.shape[0] * x.shape[2] * x.shape[3] > {pixels}:
        raise {error}
    return whole(self, x)
RDST.forward = forward
"""


FULL = ["torch.OutOfMemoryError('CUDA out of memory')", 'RuntimeError("DefaultCPUAllocator: can\'t allocate memory")']


@pytest.mark.parametrize("error", FULL, ids=["accelerator", "processor"])
def test_out_of_memory_goes_on_with_fewer_slices_and_says_so(medsr_process, bundle, tmp_path, error):
    save(tmp_path / "a.nii.gz", smooth((20, 18, 7)))
    before = LIMITED.format(pixels=20 * 18, error=error)
    result = medsr_process("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--nopicture", before=before)
    assert result.code == 0
    lines = [f"medsr: out of memory: going on with {n} slices at a time" for n in (2, 1)]
    assert result.err.splitlines() == lines
    whole = upscaled(medsr_process, bundle, "a.nii.gz", "--slice_batch", 1)
    np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), whole)


@pytest.mark.parametrize("error", FULL, ids=["accelerator", "processor"])
def test_out_of_memory_in_the_end_says_what_to_do(medsr_process, bundle, tmp_path, error):
    save(tmp_path / "a.nii.gz")
    before = contents(tmp_path)
    limited = LIMITED.format(pixels=0, error=error)
    result = medsr_process("upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle, before=limited)
    *retries, last = result.err.splitlines(keepends=True)
    assert len(retries) == 3 and all(line.startswith("medsr: out of memory") for line in retries), retries
    told(result._replace(err=last), r"a\.nii\.gz: out of memory even with one tile .*--tile, another --device")
    assert contents(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's data")
def test_a_process_whose_memory_is_limited(medsr_process, bundle, tmp_path):
    """A real limit: too little for 64 slices at a time, then for one slice, then for reading the volume."""
    save(tmp_path / "a.nii.gz", smooth((64, 64, 64)))
    options = ("--bundle", bundle, "--overwrite", "--nopicture", "--slice_batch", 64)
    run = functools.partial(medsr_process, "upscale", "a.nii.gz", "out.nii", *options)
    expected = upscaled(medsr_process, bundle, "a.nii.gz")
    # how much is too little depends on torch; uncompressed, since the threads that compress need room, too
    least, most, result = 20, 300, None
    while result is None or not result.err or result.code:
        assert most - least > 2, result
        megabytes = (least + most) // 2
        result = run(limits={"DATA": megabytes << 20})
        least, most = (megabytes, most) if result.err else (least, megabytes)
    assert result.err.startswith("medsr: out of memory: going on with 32 slices at a time\n"), result
    np.testing.assert_allclose(nib.load("out.nii").get_fdata(), expected, atol=1e-3)
    Path("out.nii").unlink()
    before = contents(tmp_path)
    for megabytes in (20, 2):
        result = run(limits={"DATA": megabytes << 20})
        told(
            result._replace(err=result.err.splitlines(keepends=True)[-1]), "out of memory", "--tile|end other programs"
        )
        assert "Traceback" not in result.err
        assert contents(tmp_path) == before
