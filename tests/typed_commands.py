"""What tests of `medsr` as a user types it share: its processes and refusals, and small volumes."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

ROOT = Path(__file__).parents[1]

THICK = np.diag([1.0, 1.0, 4.0, 1.0])


def start(*args: object, python: Path | str = sys.executable, **options: object) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"} | {"PYTHONPATH": str(ROOT)}
    command = [python, "-m", "medsr_monai", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, text=True, **pipes, **options)


def process(*args: object, **options: object) -> tuple[int, str, str]:
    running = start(*args, **options)
    out, err = running.communicate(timeout=120)
    return running.returncode, out, err


def refused(result: tuple[int, str, str], reason: str) -> None:
    code, out, err = result
    assert code == 1, (out, err)
    assert err.count("\n") == 1 and err.startswith("medsr: error: "), err
    assert re.search(reason, err), err


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).random(shape)
    return (1000 * gaussian_filter(noise, 2)).astype(np.float32)


def make_volume(path: Path, shape: tuple[int, ...] = (20, 18, 5), affine: np.ndarray = THICK, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(smooth(shape, seed), affine), path)
    return path


def oblique_affine() -> np.ndarray:
    """Array axes run near posterior, left and superior in steps of 1.1, 0.9 and 5.2 mm."""
    turn = np.deg2rad(12)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[0, -1, 0], [-1, 0, 0], [0, 0, 1]]) @ np.diag([1.1, 0.9, 5.2])
    affine[:3, 3] = [-31, 17.5, 40]
    return affine


def corners(image: nib.Nifti1Image) -> np.ndarray:
    index = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in image.shape))))
    return index @ image.affine[:3, :3].T + image.affine[:3, 3]


def assert_same_corners(a: Path, b: Path) -> None:
    first, second = nib.load(a), nib.load(b)
    voxel = np.linalg.norm(second.affine[:3, :3], axis=0).min()
    np.testing.assert_allclose(corners(first), corners(second), atol=1e-3 * voxel)


def make_dicom(folder: Path, positions: tuple[float, ...] = (0, 5, 10, 15, 20, 25)) -> Path:
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    rng = np.random.default_rng(0)
    for number, position in enumerate(positions):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID = d.file_meta.MediaStorageSOPClassUID = MRImageStorage
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
        d.Modality, d.PatientName, d.PatientID, d.InstanceNumber = "MR", "Nobody", "0", number + 1
        d.ImagePositionPatient = [-8.0, -9.0, float(position)]
        d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness = [1.0, 1.0], 5.0
        d.Rows = d.Columns = 16
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.PixelData = rng.integers(0, 1000, (16, 16), dtype=np.uint16).tobytes()
        pydicom.dcmwrite(folder / f"{number}.dcm", d, enforce_file_format=True)
    return folder


GOOD = smooth((16, 14, 5))


def one_voxel(value: float) -> np.ndarray:
    values = GOOD.copy()
    values[2, 3, 1] = value
    return values


def official_checkpoint(path: Path) -> Path:
    with np.load(ROOT / "tests" / "golden" / "rdst_x4.npz") as golden:
        state = {key[3:]: torch.from_numpy(golden[key]) for key in golden.files if key.startswith("sd/")}
    torch.save(state, path)
    return path
