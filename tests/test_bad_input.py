"""Bad input, full disks, little memory, sudden ends: what processes of `medsr` say, leave and never do.

The list is that of a research team's daily trouble, each case named. A process that imports torch takes seconds to
start, so they are forked from one that has imported everything.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from bundle_copies import save_weights, tiny_network
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from warm_python import WarmPython

from medsr_monai.transforms import outer_corners

ROOT = Path(__file__).parent.parent
OUTPUTS = ("out.json", "out.nii.gz", "out.quality.png")

# processes

PROGRAM = r"""
import os, re, resource, signal, sys, time
import medsr_monai.cli, medsr_monai.command_line

begin = medsr_monai.command_line.quiet_libraries  # what `main` begins with

def begun(*arguments):
    parent = os.getpid()
    if kill and not os.fork():
        time.sleep(kill[1])
        if os.getppid() == parent:
            os.kill(parent, kill[0])
        os._exit(0)
    return begin(*arguments)

medsr_monai.command_line.quiet_libraries = begun
limits, before, kill = {settings!r}
for name, amount in limits.items():
    if name == "DATA":  # beyond what the imports have taken
        amount += 1024 * int(re.search(r"VmData:\s*(\d+) kB", open("/proc/self/status").read())[1])
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (amount, amount))
exec(before, {{}})
medsr_monai.cli.main(sys.argv[1:])
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Processes:
    """`medsr` in processes that may be limited and killed."""

    def __init__(self, warm: WarmPython, scratch: Path) -> None:
        self.warm, self.scratch = warm, scratch

    def run(
        self,
        *arguments: object,
        folder: Path,
        timeout: float = 300,
        limits: dict[str, int] | None = None,
        before: str = "",
        kill: tuple[signal.Signals, float] | None = None,
    ) -> Result:
        """One process; it must end by itself within ``timeout`` seconds.

        Args:
            limits: by the names of ulimits; DATA counts from what the process has at its start.
            before: Python that the process runs before `medsr`.
            kill: a signal and the seconds after the command's begin at which it is sent.
        """
        program = PROGRAM.format(settings=(limits or {}, before, kill and (int(kill[0]), float(kill[1]))))
        files = [self.scratch / "out", self.scratch / "err"]
        with open(os.devnull) as nothing, files[0].open("w") as out, files[1].open("w") as err:
            streams = (nothing.fileno(), out.fileno(), err.fileno())
            code = self.warm.run(["-c", program, *map(str, arguments)], folder, streams, timeout)
        return Result(code, *(path.read_text(errors="backslashreplace") for path in files))


@pytest.fixture(scope="module")
def processes(warm, tmp_path_factory):
    return Processes(warm, tmp_path_factory.mktemp("processes"))


@pytest.fixture
def medsr(processes, tmp_path, monkeypatch):
    """Run `medsr` in a process whose working folder, and the test's, is ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(processes.run, folder=tmp_path)


def contents(folder: Path) -> dict[str, bytes | None]:
    """All there is below a folder, hidden files too."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def told(result: Result, *patterns: str, code: int = 1) -> None:
    """One line, without a traceback, that fits all patterns."""
    assert result.code == code, result
    assert result.err.startswith("medsr: error: ") and result.err.count("\n") == 1, result.err
    for pattern in patterns:
        assert re.search(pattern, result.err), (pattern, result.err)


# ground


THICK = np.diag([1.0, 1.0, 4.0, 1.0])


def smooth(shape: tuple[int, ...]) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return (1000 * gaussian_filter(np.random.default_rng(0).random(shape), 2)).astype(np.float32)


GOOD = smooth((16, 14, 5))
EXTREME = np.linspace(-3.3e38, 3.3e38, GOOD.size, dtype=np.float32).reshape(GOOD.shape)


def save(path: Path, values: np.ndarray = GOOD, affine: np.ndarray | None = THICK, **header: object) -> Path:
    image = nib.Nifti1Image(values, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def corners(path: Path) -> np.ndarray:
    """Outer corners of a NIfTI file, sorted, so that flipped axes do not matter."""
    image = nib.load(path)
    return in_order(outer_corners(image.affine, image.shape))


def in_order(points: np.ndarray) -> np.ndarray:
    return np.array(sorted(np.round(points, 4).tolist()))


# volumes that are refused


def write_bytes(path: Path, offset: int, content: bytes, affine: np.ndarray | None = THICK) -> None:
    """A good file with other bytes in its header."""
    save(path, affine=affine)
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def number(value: float, kind: type = np.float32) -> bytes:
    return np.array(value, kind).tobytes()


def cut(path: Path) -> None:
    save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def misnamed(path: Path) -> None:
    save(path.with_name("plain.nii")).rename(path)


def one_voxel(value: float) -> np.ndarray:
    values = GOOD.copy()
    values[2, 3, 1] = value
    return values


def placed(path: Path, *columns: tuple[float, float, float], qform: np.ndarray | None = None) -> None:
    image = nib.Nifti1Image(GOOD, None)
    image.header["sform_code"] = 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = [*(column[row] for column in columns), 0]
    if qform is not None:
        image.header.set_qform(qform, code=1)
    nib.save(image, path)


COLOUR = np.zeros((8, 8, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
QFORM, SFORM, PIXDIM, UNITS, OFFSET_X, MAGIC, DIM = 252, 254, 80, 123, 292, 344, 40
VOLUMES = {
    "missing file": ("a.nii.gz", lambda p: None, "no such file"),
    "folder where a file is expected": ("a.nii.gz", lambda p: p.mkdir(), "no volume .* in this folder|a folder"),
    "pipe": ("a.nii.gz", os.mkfifo, "neither a file nor a folder.*save"),
    "empty": ("a.nii.gz", lambda p: p.touch(), "the file is empty"),
    "truncated": ("a.nii.gz", cut, "cannot be read to its end .*damaged file"),
    "truncated, not compressed": ("a.nii", cut, "cannot be read to its end .*damaged file"),
    "header only": ("a.nii", lambda p: (save(p), p.write_bytes(p.read_bytes()[:352])), "cannot be read to its end"),
    "promises a petabyte": ("a.nii", lambda p: write_bytes(p, DIM + 2, number([32767] * 3, "i2")), "its end .*bytes"),
    "uncompressed but named .gz": ("a.nii.gz", misnamed, "damaged or misnamed"),
    "text": ("a.nii", lambda p: p.write_text("voxels " * 100), "damaged or misnamed"),
    "another suffix": ("a.txt", lambda p: p.write_text("voxels"), "not a volume file, expected .nii"),
    "wrong magic": ("a.nii", lambda p: write_bytes(p, MAGIC, b"abcd"), "damaged or misnamed"),
    "2D": ("a.nii", lambda p: save(p, GOOD[..., 0]), "2 dimensions .16, 14., a 3D .*: give it a third axis"),
    "4D": ("a.nii.gz", lambda p: save(p, np.stack([GOOD] * 2, -1)), "2 frames .*choose one with --frame 0 to 1"),
    "5D": ("a.nii", lambda p: save(p, np.zeros((4, 4, 4, 2, 2), np.float32)), "5 dimensions .*save one"),
    "complex": ("a.nii.gz", lambda p: save(p, GOOD.astype(np.complex64)), "RGB and complex .*convert first"),
    "RGB": ("a.nii.gz", lambda p: save(p, COLOUR), "RGB and complex .*convert first"),
    "zero voxel size": ("a.nii", lambda p: write_bytes(p, PIXDIM, number(0)), r"voxel size \[0.*correct pixdim"),
    "negative voxel size": ("a.nii", lambda p: write_bytes(p, PIXDIM, number(-1)), r"voxel size \[-1.*correct pixdim"),
    "NaN voxel size": ("a.nii", lambda p: write_bytes(p, PIXDIM, number(np.nan)), r"voxel size \[nan.*correct pixdim"),
    "singular affine": ("a.nii", lambda p: placed(p, (1, 0, 0), (1, 0, 0), (0, 0, 1)), "singular .*correct qform and"),
    "sheared affine": ("a.nii", lambda p: placed(p, (1, 0, 0), (0.3, 1, 0), (0, 0, 4)), "not perpendicular.*resample"),
    "qform and sform disagree": (
        "a.nii",
        lambda p: placed(p, *np.eye(3), qform=np.diag([-1.0, -1, 1, 1])),
        "qform and sform place the volume up to .* mm apart: set the code of the wrong one to 0",
    ),
    "qform code that is none": ("a.nii", lambda p: write_bytes(p, QFORM, number(99, "i2")), "qform_code 99 .*correct"),
    "sform code that is none": ("a.nii", lambda p: write_bytes(p, SFORM, number(-1, "i2")), "sform_code -1.*correct"),
    "unit that is none": ("a.nii", lambda p: write_bytes(p, UNITS, b"\5"), "xyzt_units 5 .*expected 2 for millimetres"),
    "metres that are none": ("a.nii", lambda p: write_bytes(p, UNITS, b"\1"), "20 m long: correct voxel size, unit"),
    "far from the origin": ("a.nii", lambda p: write_bytes(p, OFFSET_X, number(1e9)), "mm away|mm apart"),
    "constant": ("a.nii.gz", lambda p: save(p, np.ones_like(GOOD)), "every voxel is 1: a constant volume"),
    "NaN": ("a.nii.gz", lambda p: save(p, one_voxel(np.nan)), "1 of 1120 voxels are NaN or infinite: replace"),
    "infinite": ("a.nii.gz", lambda p: save(p, one_voxel(np.inf)), "1 of 1120 voxels are NaN or infinite: replace"),
    "beyond 32 bits": ("a.nii.gz", lambda p: save(p, GOOD.astype(float) * 1e300), "NaN or infinite: replace them"),
    "range beyond 32 bits": ("a.nii.gz", lambda p: save(p, EXTREME), "too large"),
    "a single voxel": ("a.nii.gz", lambda p: save(p, GOOD[:1, :1, :1]), "a constant volume holds nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", VOLUMES)
def test_a_bad_volume_is_refused(medsr, bundle, tmp_path, case):
    name, make, reason = VOLUMES[case]
    make(tmp_path / name)
    before = contents(tmp_path)
    told(medsr("upscale", name, "new/out.nii.gz", "--bundle", bundle), f"error: {re.escape(name)}: ", reason)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["degrade", "evaluate"])
@pytest.mark.parametrize("case", ["missing file", "truncated", "2D", "NaN", "constant"])
def test_the_other_commands_refuse_it_too(medsr, tmp_path, command, case):
    name, make, _ = VOLUMES[case]
    make(tmp_path / name)
    save(tmp_path / "good.nii.gz")
    before = contents(tmp_path)
    arguments = (name, "out.nii.gz") if command == "degrade" else ("good.nii.gz", name)
    told(medsr(command, *arguments), re.escape(name))
    assert contents(tmp_path) == before


def test_a_folder_of_bad_volumes(medsr, bundle, tmp_path):
    """Each is told once, the good one is done, nothing else is left."""
    folder, made = tmp_path / "in", {}
    for case, (name, make, _) in VOLUMES.items():
        if case not in ("missing file", "folder where a file is expected", "another suffix", "pipe"):
            made[case] = folder / f"{case.replace(' ', '_').replace(',', '').replace('.', '')}{name[1:]}"
            folder.mkdir(exist_ok=True)
            make(made[case])
    save(folder / "good.nii.gz")
    os.mkfifo(folder / "passed over.nii.gz")
    before = contents(folder)
    result = medsr("upscale", folder, tmp_path / "out", "--bundle", bundle, "--device", "cpu")
    lines = [line for line in result.err.splitlines() if line.startswith("medsr: error: ")]
    assert result.code == 1 and "Traceback" not in result.err, result
    assert lines[-1] == f"medsr: error: {len(made)} of {len(made) + 1} volumes failed"
    (note,) = (line for line in result.err.splitlines() if line not in lines)
    assert note.endswith("1 left out, no regular file: passed over.nii.gz") and len(lines) == len(made) + 1
    for case, path in made.items():
        assert sum(f"/{path.name}: " in line for line in lines) == 1, (path.name, lines)
        assert sum(re.search(VOLUMES[case][2], line) is not None for line in lines), case
    assert contents(folder) == before
    written = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    tables = ["index.html", "status.csv", "status.json"]
    assert written == ["good_sr.json", "good_sr.nii.gz", "good_sr.quality.png", *tables], result.out
    assert not list(tmp_path.rglob(".partial*"))


def test_a_missing_file_as_a_user_starts_it(tmp_path):
    command = [sys.executable, "-m", "medsr_monai", "upscale", "none.nii.gz", "out.nii.gz"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    told(Result(done.returncode, done.stdout, done.stderr), r"none\.nii\.gz: no such file")
    assert not contents(tmp_path)


# volumes that are no reason to refuse


def upscaled(medsr, bundle: Path, name: str, *options: object) -> np.ndarray:
    out = Path(f"{name}_out.nii.gz")
    result = medsr("upscale", name, out, "--bundle", bundle, "--nopicture", *options)
    assert result.code == 0, result
    return nib.load(out).get_fdata()


def test_a_hot_voxel_does_not_move_the_scaling(medsr, bundle, tmp_path):
    """Slices that do not hold it come out as without it."""
    values = smooth((24, 24, 4))
    hot = values.copy()
    hot[3, 3, 1] = 1e6
    save(tmp_path / "good.nii.gz", values)
    save(tmp_path / "hot.nii.gz", hot)
    good, same = (upscaled(medsr, bundle, name) for name in ("good.nii.gz", "hot.nii.gz"))
    np.testing.assert_allclose(same[:, :, 3], good[:, :, 3], atol=0.01 * np.ptp(values))


def test_int16_with_slope_and_intercept_is_read_in_its_units(medsr, bundle, tmp_path):
    stored = nib.Nifti1Image(((GOOD + 20) / 0.5).round().astype(np.int16), THICK)
    stored.header.set_slope_inter(0.5, -20)
    nib.save(stored, tmp_path / "int.nii.gz")
    save(tmp_path / "float.nii.gz", nib.load(tmp_path / "int.nii.gz").get_fdata(dtype=np.float32))
    whole, real = (upscaled(medsr, bundle, name) for name in ("int.nii.gz", "float.nii.gz"))
    np.testing.assert_allclose(whole, real, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 5), (3, 2, 1), (1, 6, 5), (2, 2, 2), (7, 1, 1), (5, 4, 3)], ids=str)
def test_fewer_voxels_than_a_window_are_super_resolved_in_their_place(medsr, bundle, tmp_path, shape):
    save(tmp_path / "a.nii.gz", smooth((9, 9, 9))[: shape[0], : shape[1], : shape[2]])
    assert np.isfinite(upscaled(medsr, bundle, "a.nii.gz", "--plane", "axial")).all()
    assert nib.load("a.nii.gz_out.nii.gz").shape == (4 * shape[0], 4 * shape[1], shape[2])
    np.testing.assert_allclose(corners("a.nii.gz_out.nii.gz"), corners("a.nii.gz"), atol=1e-3)


@pytest.mark.parametrize(("unit", "factor"), [(1, 1000.0), (3, 0.001)], ids=["metres", "micrometres"])
def test_other_units_become_millimetres(medsr, bundle, tmp_path, unit, factor):
    oblique = nib.affines.from_matvec(np.diag([0.9, 1.1, 3]) @ [[0.8, -0.6, 0], [0, 0, 1], [0.6, 0.8, 0]], [9, -8, 7])
    oblique[:3, :3] = np.array([[0.8, -0.6, 0], [0, 0, 1], [0.6, 0.8, 0]]) @ np.diag([0.9, 1.1, 3])
    save(tmp_path / "mm.nii.gz", affine=oblique)
    save(tmp_path / "a.nii.gz", affine=np.diag([*[1 / factor] * 3, 1]) @ oblique, xyzt_units=unit)
    result = medsr("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert result.code == 0 and re.search(rf"a\.nii\.gz: .* units of {factor:g} mm", result.err), result
    np.testing.assert_allclose(corners("out.nii.gz"), corners("mm.nii.gz"), atol=2e-3)
    np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), upscaled(medsr, bundle, "mm.nii.gz"))


def test_a_volume_without_a_stated_orientation_is_said_to_be_a_guess(medsr, bundle, tmp_path):
    save(tmp_path / "a.nii.gz", affine=None, sform_code=0, qform_code=0)
    result = medsr("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert result.code == 0 and "left and right are a guess" in result.err


def test_names_in_another_encoding(medsr, bundle, tmp_path):
    name = os.fsdecode("M\xfcller.nii.gz".encode("latin-1"))
    save(tmp_path / "a.nii.gz").rename(tmp_path / name)
    result = medsr("upscale", name, "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert result.code == 0, result
    assert os.path.exists("out.nii.gz")


# DICOM


def make_series(
    folder: Path, edit: Callable[[int, FileDataset], object] = lambda number, header: None, count: int = 4
) -> Path:
    """A series of oblique slices, 4 mm apart, 1.5 mm between rows, 2 mm between columns."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = study, series, frame
        header.Modality, header.PatientID, header.PatientName = "MR", "phantom", "Phantom"
        header.SeriesDescription, header.SeriesNumber, header.InstanceNumber = "t1", 3, number + 1
        header.ImageOrientationPatient = [0.8, 0.6, 0, -0.6, 0.8, 0]
        header.ImagePositionPatient = [-10, -20, 30 + 4 * number]
        header.PixelSpacing, header.SliceThickness = [1.5, 2], 4
        header.Rows, header.Columns, header.SamplesPerPixel = 8, 9, 1
        header.PhotometricInterpretation, header.PixelRepresentation = "MONOCHROME2", 0
        header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
        header.PixelData = (np.arange(72, dtype="<u2") * 7 % 61 + 100 * number).tobytes()
        edit(number, header)
        header.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def stated_corners(folder: Path) -> np.ndarray:
    """Of a series by its tags, DICOM PS3.3 C.7.6.2.1.1, in RAS."""
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(folder.glob("*.dcm"))]
    places = np.array([h.ImagePositionPatient for h in headers], float)
    row, column = np.array(headers[0].ImageOrientationPatient, float).reshape(2, 3)
    across = np.cross(row, column)
    first, last = places[(places @ across).argmin()], places[(places @ across).argmax()]
    step = (last - first) / (len(places) - 1)
    height, width = map(float, headers[0].PixelSpacing)
    points = [
        first + i * width * row + j * height * column + k * step
        for i in (-0.5, headers[0].Columns - 0.5)
        for j in (-0.5, headers[0].Rows - 0.5)
        for k in (-0.5, len(places) - 0.5)
    ]
    return in_order(np.array(points) * [-1, -1, 1])


def setting(keyword: str, choose: Callable[[int], object]) -> Callable[[int, FileDataset], None]:
    return lambda number, header: setattr(header, keyword, choose(number))


def raw(keyword: str, value: bytes, vr: str = "DS") -> Callable[[int, FileDataset], None]:
    """What no library writes, in the second slice."""

    def edit(number: int, header: FileDataset) -> None:
        if number == 1:
            tag = Tag(tag_for_keyword(keyword))
            header[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)

    return edit


def compressed(syntax: str) -> Callable[[int, FileDataset], None]:
    def edit(number: int, header: FileDataset) -> None:
        header.file_meta.TransferSyntaxUID = UID(syntax)
        header.PixelData = encapsulate([b"\0\1\2\3" * 40])
        header["PixelData"].is_undefined_length = True

    return edit


MPEG2 = "1.2.840.10008.1.2.4.100"
DICOM = {
    "missing slice": (setting("ImagePositionPatient", lambda n: [0, 0, 4 * (n + (n > 1))]), "missing|uneven"),
    "uneven gaps": (setting("ImagePositionPatient", lambda n: [0, 0, 4 * n + (n == 2)]), "uneven"),
    "duplicate slice": (setting("ImagePositionPatient", lambda n: [0, 0, 4 * min(n, 2)]), "position"),
    "gantry tilt": (setting("ImagePositionPatient", lambda n: [0, 1.5 * n, 4 * n]), "tilt"),
    "multi-frame without positions": (setting("NumberOfFrames", lambda n: 2), "multi-frame .*dcm2niix"),
    "compressed without codec": (compressed(MPEG2), "MPEG2 .*no installed library.*(pip install|decompress)"),
    "compressed and damaged": (compressed("1.2.840.10008.1.2.5"), "damaged"),
    "slices of two sizes": (setting("Columns", lambda n: 9 if n else 8), "2 DICOM series"),
    "slices of two spacings": (setting("PixelSpacing", lambda n: [1.5, 2 if n else 2.1]), "2 DICOM series"),
    "slices of two orientations": (
        setting("ImageOrientationPatient", lambda n: [1, 0, 0, 0, 1, 0] if n else [0, 1, 0, 0, 0, 1]),
        "2 DICOM series",
    ),
    "colour": (setting("PhotometricInterpretation", lambda n: "PALETTE COLOR"), "colour"),
    "no position": (lambda n, header: n == 1 and delattr(header, "ImagePositionPatient"), "ImagePositionPatient"),
    "no spacing": (lambda n, header: n == 1 and delattr(header, "PixelSpacing"), "PixelSpacing"),
    "no columns": (lambda n, header: n == 1 and delattr(header, "Columns"), "1.dcm .*without an image: no .*Columns"),
    "no pixels": (lambda n, header: n == 1 and delattr(header, "PixelData"), "1.dcm .*without an image: no PixelData"),
    "no image": (lambda n, header: delattr(header, "Rows"), "without"),
    "negative spacing": (raw("PixelSpacing", rb"-1\1.5 "), "1.dcm: PixelSpacing .*correct"),
    "NaN spacing": (raw("PixelSpacing", rb"nan\1.5 "), "1.dcm: .*not a number: correct"),
    "text for spacing": (raw("PixelSpacing", rb"wide\1 "), "1.dcm has a damaged header"),
    "one spacing": (raw("PixelSpacing", rb"1.5 "), "1.dcm has a damaged header"),
    "spacing of atoms": (raw("PixelSpacing", rb"1e-20\1 "), "away from the origin"),
    "spacing of planets": (raw("PixelSpacing", rb"1e9\1 "), "m long"),
    "NaN position": (raw("ImagePositionPatient", rb"nan\0\0 "), "1.dcm: .*not a number: correct"),
    "no orientation at all": (raw("ImageOrientationPatient", rb"0\0\0\0\0\0 "), "ImageOrientationPatient .*correct"),
    "NaN slope": (raw("RescaleSlope", b"nan "), "not a number"),
    "infinite values": (raw("RescaleSlope", b"1e39"), "NaN or infinite"),
    "text for frames": (raw("NumberOfFrames", b"x ", "IS"), "1.dcm has a damaged header"),
    "half the rows": (setting("Rows", lambda n: 4), "pixels, its header states .*damaged"),
    "wrong rows": (setting("Rows", lambda n: 9), "cannot be read to its end"),
    "no rows": (setting("Rows", lambda n: 0), "rows .*correct"),
    "65535 rows": (setting("Rows", lambda n: 65535), "m long|cannot be read to its end"),
}


@pytest.mark.parametrize("case", DICOM)
def test_a_bad_series_is_refused(medsr, bundle, tmp_path, case):
    edit, reason = DICOM[case]
    make_series(tmp_path / "series", edit)
    before = contents(tmp_path)
    told(medsr("upscale", "series", "new/out.nii.gz", "--bundle", bundle), "error: series: ", reason)
    assert contents(tmp_path) == before


def truncate(folder: Path) -> None:
    path = folder / "2.dcm"
    path.write_bytes(path.read_bytes()[:-50])


FILES = {
    "a slice cut short": (truncate, "2.dcm: cannot be read to its end"),
    "a slice replaced by text": (lambda f: (f / "2.dcm").write_text("lost " * 99), "2.dcm .*replace|uneven|missing"),
    "a slice removed": (lambda f: (f / "2.dcm").unlink(), "uneven|missing"),
    "an empty slice": (lambda f: (f / "2.dcm").write_bytes(b""), "2.dcm .*replace|uneven|missing"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_series_with_a_damaged_file_is_refused(medsr, bundle, tmp_path, case):
    FILES[case][0](make_series(tmp_path / "series"))
    before = contents(tmp_path)
    told(medsr("upscale", "series", "new/out.nii.gz", "--bundle", bundle), "error: series: ", FILES[case][1])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["damaged", "without images", "encrypted slice lost"])
def test_a_bad_zip_is_refused(medsr, bundle, tmp_path, kind):
    make_series(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        if kind == "without images":
            archive.writestr("readme.txt", "nothing here")
        else:
            for path in sorted((tmp_path / "series").iterdir()):
                archive.write(path, path.name)
    content = bytearray((tmp_path / "study.zip").read_bytes())
    if kind != "without images":
        content[2000:2100] = bytes(100)
    (tmp_path / "study.zip").write_bytes(content if kind != "damaged" else content[: len(content) // 2])
    before = contents(tmp_path)
    told(medsr("upscale", "study.zip", "new/out.nii.gz", "--bundle", bundle), r"error: study\.zip: ")
    assert contents(tmp_path) == before


def test_mixed_series_are_told_apart_or_refused_never_mixed(medsr, bundle, tmp_path):
    first, second = make_series(tmp_path / "a"), make_series(tmp_path / "b", setting("SeriesNumber", lambda n: 4), 5)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for folder in (first, second):
        for path in folder.iterdir():
            shutil.copy(path, mixed / f"{folder.name}{path.name}")
    before = contents(tmp_path)
    told(medsr("upscale", "mixed", "out.nii.gz", "--bundle", bundle, "--nopicture"), "mixed: .*2 DICOM series")
    assert contents(tmp_path) == before
    assert medsr("upscale", "mixed", "out", "--bundle", bundle, "--nopicture").code == 0
    written = sorted(Path("out").rglob("*.nii.gz"), key=lambda path: path.name)  # each study has its own folder
    assert [path.name[:3] for path in written] == ["003", "004"]
    for path, folder in zip(written, (first, second), strict=True):
        np.testing.assert_allclose(corners(path), stated_corners(folder), atol=1e-3)


RIGHT = {
    "as it is": lambda n, header: None,
    "from head to feet": setting("ImagePositionPatient", lambda n: [-10, -20, 30 - 4 * n]),
    "an unknown character set": setting("SpecificCharacterSet", lambda n: "ISO_IR 999"),
    "no thickness": lambda n, header: delattr(header, "SliceThickness"),
    "no instance number": lambda n, header: delattr(header, "InstanceNumber"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_a_series_that_is_only_unusual_is_read_in_its_place(medsr, bundle, tmp_path, case):
    folder = make_series(tmp_path / "series", RIGHT[case])
    (folder / "DICOMDIR.txt").write_text("passed over")
    shutil.copy(folder / "1.dcm", folder / "copy of 1")  # the same slice, sent twice
    result = medsr("upscale", "series", "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert (result.code, result.err) == (0, ""), result
    assert nib.load("out.nii.gz").shape == (36, 32, 4)
    np.testing.assert_allclose(corners("out.nii.gz"), stated_corners(folder), atol=1e-3)


def test_control_characters_of_names_and_headers_never_reach_the_terminal(medsr, bundle, tmp_path):
    """A terminal would clear the screen, or show a line that is none of ours; and no formula reaches a table."""
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "=a\x1b[2J\u202e.nii.gz")
    escape = "\x1b[2J\nmedsr: all is well"
    (tmp_path / "in" / f"b{escape}.nii.gz").write_text("no volume")
    make_series(tmp_path / "study", lambda n, header: setattr(header, "SeriesDescription", "x\x1b[2J\u202e"))
    (tmp_path / "study" / "1.dcm").write_bytes(b"damaged")
    results = [
        medsr("upscale", "in", "out", "--bundle", bundle),
        medsr("inspect", "in", "--no-timing"),
        medsr("inspect", "study", "--no-timing"),
        medsr("upscale", "study", "series", "--bundle", bundle),
        medsr("upscale", "in", "again", "--bundle", bundle, "--verbose"),
        medsr("inspect", f"in/b{escape}.nii.gz", "--verbose"),
        # words that Fire repeats, also in quotes, with its usage and its help
        medsr("upscale", "in", "out", "x", f"y'{escape}", f"--z{escape}"),
        medsr(f"up{escape}", "--help"),
        medsr("upscale", "--help", f"a{escape}"),
    ]
    assert "Traceback" in results[4].err and "Traceback" in results[5].err
    assert [result.code for result in results[6:]] == [2, 2, 0], results[6:]
    terminal = re.compile("[\x00-\x09\x0b-\x1f\u202e]|^medsr: all is well", re.MULTILINE)
    for result in results:
        assert not terminal.search(result.out + result.err), result
    table = (tmp_path / "out" / "status.csv").read_text()
    assert "\x1b" not in table and "\n'=a\\x1b[2J" in table.replace('"', ""), table


# bounds


def many_pixels(path: Path) -> None:
    """A PNG file of some KB that claims 60,000 x 60,000 pixels of colour."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(bytes(10**7)), b"IEND": b""}
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks.items())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def many_voxels(path: Path) -> None:
    """A NIfTI file with a hole, which takes no room on the disk."""
    save(path)
    with path.open("rb+") as file:
        file.seek(40)
        file.write(struct.pack("<4h", 3, 1_200, 1_200, 300))
        file.truncate(352 + 4 * 1_200 * 1_200 * 300)


@pytest.mark.parametrize(
    ("make", "name", "options", "reason"),
    [
        (
            many_pixels,
            "a.png",
            [],
            r"a\.png: would take 40\.2 GiB or more .* 1\.0 GiB are allowed \(half of",
        ),
        (
            many_voxels,
            "a.nii",
            [],
            r"a\.nii: would take 1\.6 GiB or more .* 1\.0 GiB are allowed \(half of",
        ),
        (many_voxels, "a.nii", ["--max-memory", "1GiB"], "--max-memory"),
    ],
)
def test_what_would_take_too_much_memory_is_refused_by_its_header(medsr, bundle, tmp_path, make, name, options, reason):
    """The process is limited to less than it would take, and the machine taken for a small one."""
    make(tmp_path / name)
    small = "" if options else "import medsr_monai.data.dicom.slices as s; s.unpacked_limit = lambda: 2**30"
    limits, out = {"DATA": 2 * 2**30}, "out.png" if name == "a.png" else "out.nii.gz"
    told(medsr("upscale", name, out, "--bundle", bundle, *options, "--nopicture", limits=limits, before=small), reason)
    assert not Path(out).exists()


PIPES = ("b.nii.gz", "c", "d.dcm", "e.png", "f.mgz", "g.json", "h.zip", "a.json", "i.hdr", "i.img", "DICOMDIR")


@pytest.mark.parametrize("folder", ["volumes", "study"])
def test_pipes_and_devices_in_a_folder_are_never_opened(medsr, bundle, tmp_path, folder):
    """Whoever opens a pipe waits for ever."""
    (tmp_path / folder).mkdir()
    if folder == "volumes":
        save(tmp_path / "volumes" / "a.nii.gz")
    else:
        make_series(tmp_path / "study")
    for name in PIPES:
        os.mkfifo(tmp_path / folder / name)
    (tmp_path / folder / "zero.nii").symlink_to("/dev/zero")
    result = medsr("upscale", folder, "out", "--bundle", bundle, "--nopicture", timeout=60)
    assert result.code == 0 and list(Path("out").glob("*.nii.gz")), result
    assert medsr("inspect", folder, "--no-timing", timeout=60).code == 0


def test_a_table_that_is_a_pipe_is_refused(medsr, bundle, tmp_path):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "in" / "a.nii.gz")
    os.mkfifo(tmp_path / "out" / "status.csv")
    told(medsr("upscale", "in", "out", "--bundle", bundle, timeout=60), r"status\.csv: .*no regular file")


# weights


def flip(path: Path) -> None:
    """One bit of a number, which no other check sees."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    start = content.index(largest.filename.encode()) + largest.file_size // 2
    content[start + 300] ^= 1
    path.write_bytes(content)


def not_finite(path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.last.weight.view(-1)[3] = float("nan")
    save_weights(network, path)


def with_argument(name: str, value: object, path: Path) -> None:
    save_weights(tiny_network(), path)
    content = torch.load(path, weights_only=True)
    content["network"][name] = value
    torch.save(content, path)


def with_model(model: object, path: Path) -> None:
    save_weights(tiny_network(), path)
    torch.save(torch.load(path, weights_only=True) | {"model": model}, path)


WEIGHTS = {
    "missing": (lambda p: None, "no such weights file"),
    "text": (lambda p: p.write_text("no weights"), "not a PyTorch weights file, or a damaged one"),
    "empty": (lambda p: p.touch(), "not a PyTorch weights file, or a damaged one"),
    "cut short": (lambda p: (save_weights(tiny_network(), p), p.write_bytes(p.read_bytes()[:9000])), "damaged"),
    "one bit flipped": (lambda p: (save_weights(tiny_network(), p), flip(p)), "damaged"),
    "no dictionary": (lambda p: torch.save([1, 2], p), "medsr convert"),
    "of another scale": (lambda p: save_weights(tiny_network(scale=2), p), "scale is 2 in .* and 4"),
    "of two channels": (
        lambda p: save_weights(tiny_network(in_channels=2, out_channels=2), p),
        "in_channels is 2 in .* and 1",
    ),
    "of arguments that do not go together": (functools.partial(with_argument, "num_heads", 5), "num_heads is 5, which"),
    "of an unknown argument": (functools.partial(with_argument, "gates", 3), "unexpected keyword argument 'gates'"),
    "of an expression": (functools.partial(with_argument, "mlp_ratio", "$print(1)"), r"mlp_ratio is '\$print\(1\)'"),
    "not finite": (not_finite, "not finite"),
    "of layers without end": (functools.partial(with_argument, "num_blocks", 10**9), "num_blocks is 1000000000"),
    "of more layers than there are": (functools.partial(with_argument, "num_blocks", 10**6), "more than 20000 layers"),
    "of more numbers than it has": (functools.partial(with_argument, "embed_dim", 12 * 2**12), "its weights are"),
    "of no dictionary": (lambda p: torch.save({"model": {}, "network": [1]}, p), "no .*dictionary; official weights"),
    "of no tensors": (functools.partial(with_model, [1, 2]), "expected a dictionary of tensors"),
    "of text for tensors": (functools.partial(with_model, {"a": "b"}), r"w\.pt: "),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_damaged_or_do_not_fit_are_refused(medsr, bundle, tmp_path, case):
    make, reason = WEIGHTS[case]
    make(tmp_path / "w.pt")
    save(tmp_path / "a.nii.gz")
    before = contents(tmp_path)
    result = medsr("upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle, "--weights", "w.pt")
    told(result, r"w\.pt: ", reason)
    assert contents(tmp_path) == before


# outputs


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("out.img", r"out\.img: .*give a name that ends in \.nii\.gz"),
        ("a.nii.gz", r"a\.nii\.gz: is the input, which is never overwritten, choose another"),
        ("there.nii.gz", r"there\.nii\.gz: exists, choose another name or add --overwrite"),
        ("there.nii.gz/out.nii.gz", r"out\.nii\.gz: nothing can be written to .*choose another output"),
        ("/proc/medsr/out.nii.gz", r"out\.nii\.gz: .*(nothing can be written|No such file)"),
        (f"{'x' * 300}.nii.gz", "name too long"),
        pytest.param(
            "locked/out.nii.gz",
            "nothing can be written to .*choose another output",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere"),
        ),
    ],
    ids=["suffix", "the input", "exists", "below a file", "no place for files", "long name", "not writable"],
)  # fmt: skip
def test_an_output_that_cannot_be_is_refused(medsr, bundle, tmp_path, out, reason):
    save(tmp_path / "a.nii.gz")
    Path("there.nii.gz").write_text("mine")
    Path("locked").mkdir(mode=0o500)
    before = contents(tmp_path)
    told(medsr("upscale", "a.nii.gz", out, "--bundle", bundle), reason)
    assert contents(tmp_path) == before


def test_a_file_that_may_not_grow_is_told_and_nothing_is_lost(medsr, bundle, tmp_path):
    """Also the file that was there before stays."""
    save(tmp_path / "a.nii.gz", smooth((20, 20, 5)))
    Path("out.nii.gz").write_text("mine")
    before = contents(tmp_path)
    result = medsr("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--overwrite", limits={"FSIZE": 20000})
    told(result, r"out\.nii\.gz: no room for it \(File too large\): free disk space or choose another output")
    assert contents(tmp_path) == before


def test_a_full_disk_is_told_and_nothing_is_left(medsr, bundle, tmp_path):
    save(tmp_path / "a.nii.gz", smooth((20, 20, 5)))
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small disk")
    try:
        result = medsr("upscale", "a.nii.gz", "disk/new/out.nii.gz", "--bundle", bundle)
        told(result, r"out\.nii\.gz: no room for it \(No space left on device\): free disk space or choose another")
        assert not [name for name, content in contents(disk).items() if content is not None]
    finally:
        subprocess.run(["umount", disk], check=True)


# ends

AT_STEP = """
import os
left = {number}
def counted(name):
    call = getattr(os, name)
    def step(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), {signal:d})
        return call(*arguments)
    setattr(os, name, step)
counted("fsync")
counted("replace")
counted("link")
"""
"""A signal before one of the steps that bring files to disk and give them their names."""


def steps(end: signal.Signals, run: Callable[..., Result], every: int = 1) -> Iterator[int]:
    """Runs that end before the first of these steps, the second and so on, until one gets through all of them."""
    told = {
        signal.SIGINT: (130, "", "medsr: interrupted\n"),
        signal.SIGTERM: (143, "", "medsr: terminated\n"),
        signal.SIGKILL: (-signal.SIGKILL, "", ""),
    }[end]
    for number in itertools.count(1, every):
        result = run(before=AT_STEP.format(number=number, signal=end))
        if result.code == 0:
            break
        assert result._replace(out="") == told, result
        yield number
    assert number > 6, "picture, sidecar and output: each is brought to disk and renamed"


@pytest.fixture(scope="module")
def slow_case(processes, bundle, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A folder with a volume that takes a moment to compute, and its result."""
    folder = tmp_path_factory.mktemp("slow")
    save(folder / "a.nii.gz", smooth((64, 64, 24)))
    result = processes.run("upscale", "a.nii.gz", "expected.nii.gz", "--bundle", bundle, folder=folder)
    assert result.code == 0, result
    return folder, nib.load(folder / "expected.nii.gz").get_fdata()


@pytest.mark.parametrize(
    ("end", "code", "line"),
    [(signal.SIGINT, 130, "medsr: interrupted\n"), (signal.SIGTERM, 143, "medsr: terminated\n")],
)
def test_an_interrupted_run_leaves_nothing(medsr, bundle, tmp_path, slow_case, end, code, line):
    shutil.copy(slow_case[0] / "a.nii.gz", tmp_path)
    command = ("upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle)
    result = medsr(*command, kill=(end, 0.05))
    assert (result.code, result.err) == (code, line), result
    assert not [name for name in contents(tmp_path) if "out" in name]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_of_writing_leaves_nothing(medsr, bundle, tmp_path, end):
    save(tmp_path / "a.nii.gz")
    run = functools.partial(medsr, "upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle)
    for _ in steps(end, run):
        assert not [name for name in contents(tmp_path) if "out" in name]


MEANWHILE = """
from pathlib import Path
from medsr_monai.upscaling.bundles import BundleRunner
read = BundleRunner.read
def other(self, source):
    Path("out.nii.gz").write_text("another run's")
    return read(self, source)
BundleRunner.read = other
"""


def test_of_two_runs_to_one_output_the_second_to_finish_loses(medsr, bundle, tmp_path):
    """Unless it may overwrite."""
    save(tmp_path / "a.nii.gz")
    command = ("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle)
    told(medsr(*command, before=MEANWHILE), r"out\.nii\.gz: was written by another program meanwhile and is kept")
    assert contents(tmp_path).keys() == {"a.nii.gz", "out.nii.gz"} and Path("out.nii.gz").read_text() == "another run's"
    assert medsr(*command, "--overwrite", before=MEANWHILE).code == 0
    assert nib.load("out.nii.gz").shape


def test_two_runs_at_once_to_one_output(bundle, tmp_path):
    """As users start them: one is done, the other refused, and what lies there belongs together."""
    save(tmp_path / "a.nii.gz", smooth((20, 20, 5)))
    command = [sys.executable, "-m", "medsr_monai", "upscale", "a.nii.gz", "out.nii.gz", "--bundle", str(bundle)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = sorted(process.communicate(timeout=300)[1] for process in running)
    assert sorted(process.returncode for process in running) == [0, 1], errors
    assert "out.nii.gz: " in errors[1] and errors[1].count("\n") == 1
    record = json.loads((tmp_path / "out.json").read_text())["Outputs"][0]
    assert hashlib.sha256((tmp_path / "out.nii.gz").read_bytes()).hexdigest() == record["SHA256"]
    assert not [name for name in contents(tmp_path) if name.startswith(".")]


def test_after_kill_9_a_package_is_made_by_the_same_command(medsr, tmp_path):
    run = functools.partial(medsr, "package", "rdst_e", "zoo", "--thin")
    for number in range(1, 9):
        if run(before=AT_STEP.format(number=number, signal=signal.SIGKILL)).code == 0:
            break
        assert run().code == 0
        shutil.rmtree("zoo")
    assert number > 6


def test_after_kill_9_the_same_command_goes_through(medsr, bundle, tmp_path):
    save(tmp_path / "a.nii.gz")
    run = functools.partial(medsr, "upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle)
    for _ in steps(signal.SIGKILL, run):
        assert not Path("new/out.nii.gz").exists()
        assert run().code == 0
        shutil.rmtree("new")


def test_kill_9_loses_no_old_output(medsr, bundle, tmp_path):
    """It is the old one to the end, and what is left over is hidden or the new one's sidecar and picture."""
    save(tmp_path / "a.nii.gz")
    save(tmp_path / "out.nii.gz")
    source, old = (Path(name).read_bytes() for name in ("a.nii.gz", "out.nii.gz"))
    run = functools.partial(medsr, "upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--overwrite")
    for _ in steps(signal.SIGKILL, run):
        assert (Path("a.nii.gz").read_bytes(), Path("out.nii.gz").read_bytes()) == (source, old)
        assert all(n.startswith((".", "a.nii.gz", "out.")) for n in os.listdir()), os.listdir()
    assert Path("out.nii.gz").read_bytes() != old


def test_kill_9_at_a_random_moment_loses_nothing(medsr, bundle, tmp_path, slow_case):
    """The output is the old one or, in the last moment, the whole new one; what is left over is hidden."""
    folder, expected = slow_case
    shutil.copy(folder / "a.nii.gz", tmp_path)
    source = Path("a.nii.gz").read_bytes()
    save(tmp_path / "out.nii.gz")
    old, killed = Path("out.nii.gz").read_bytes(), 0
    command = ("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--overwrite")
    for delay in np.random.default_rng(0).uniform(0, 0.8, 5):
        for partial in tmp_path.glob(".partial*"):
            partial.unlink()
        result = medsr(*command, kill=(signal.SIGKILL, delay))
        assert result.code in (0, -signal.SIGKILL), result
        killed += result.code != 0
        assert Path("a.nii.gz").read_bytes() == source
        assert all(n.startswith((".", "a.nii.gz", "out.")) for n in os.listdir()), os.listdir()
        content = Path("out.nii.gz").read_bytes()
        if content != old:
            np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), expected)
            Path("out.nii.gz").write_bytes(old)
    assert killed >= 2
    assert medsr(*command).code == 0
    np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), expected)


def test_a_killed_folder_is_finished_by_the_next_run(medsr, bundle, tmp_path):
    """Whenever it was: the same command goes on, and what is complete is kept."""
    Path("in").mkdir()
    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii.gz")
    run = functools.partial(medsr, "upscale", "in", "out", "--bundle", bundle)
    kept = set()
    for _ in steps(signal.SIGKILL, run, every=4):
        complete = list(Path("out").glob("[ab]_sr.nii.gz"))
        times = {path: path.stat().st_mtime_ns for path in complete}
        result = run()
        assert result.code == 0, result
        assert {path: path.stat().st_mtime_ns for path in complete} == times
        images = [nib.load(f"out/{name}_sr.nii.gz").get_fdata() for name in "ab"]
        np.testing.assert_array_equal(*images)
        kept.add(len(complete))
        shutil.rmtree("out")
    assert kept == {0, 1, 2}


# memory

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
def test_out_of_memory_goes_on_with_fewer_slices_and_says_so(medsr, bundle, tmp_path, error):
    save(tmp_path / "a.nii.gz", smooth((20, 18, 7)))
    before = LIMITED.format(pixels=20 * 18, error=error)
    result = medsr("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--nopicture", before=before)
    assert result.code == 0
    lines = [f"medsr: out of memory: going on with {n} slices at a time" for n in (2, 1)]
    assert result.err.splitlines() == lines
    whole = upscaled(medsr, bundle, "a.nii.gz", "--slice_batch", 1)
    np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), whole)


@pytest.mark.parametrize("error", FULL, ids=["accelerator", "processor"])
def test_out_of_memory_in_the_end_says_what_to_do(medsr, bundle, tmp_path, error):
    save(tmp_path / "a.nii.gz")
    before = contents(tmp_path)
    limited = LIMITED.format(pixels=0, error=error)
    result = medsr("upscale", "a.nii.gz", "new/out.nii.gz", "--bundle", bundle, before=limited)
    *retries, last = result.err.splitlines(keepends=True)
    assert len(retries) == 3 and all(line.startswith("medsr: out of memory") for line in retries), retries
    told(result._replace(err=last), r"a\.nii\.gz: out of memory even with one tile .*--tile, another --device")
    assert contents(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's data")
def test_a_process_whose_memory_is_limited(medsr, bundle, tmp_path):
    """A real limit: too little for 64 slices at a time, then for one slice, then for reading the volume."""
    save(tmp_path / "a.nii.gz", smooth((64, 64, 64)))
    options = ("--bundle", bundle, "--overwrite", "--nopicture", "--slice_batch", 64)
    run = functools.partial(medsr, "upscale", "a.nii.gz", "out.nii", *options)
    expected = upscaled(medsr, bundle, "a.nii.gz")
    # How much is too little depends on torch. 64 slices take some 100 MiB more than all else, so that a step of 40 is
    # not too large. Uncompressed, since the threads that compress need room, too.
    results = (run(limits={"DATA": megabytes << 20}) for megabytes in range(300, 20, -40))
    result = next(r for r in results if r.err)
    assert result.code == 0, result
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


# mutated headers

BUDGET = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}
"""The same examples in every run, and no time limit: a loaded machine is no flaw."""
NUMBERS = (
    *(0, 1, -1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 256, 352, 511, 512, 2048, 32767, -32768),
    *(0.5, -0.5, 1e-30, 1e30, -1e30, float("nan"), float("inf"), -float("inf")),
)
HEADER = nib.nifti1.header_dtype
FIELDS = (
    *("sizeof_hdr", "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "xyzt_units"),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "magic", "dim_info", "intent_code", "slice_code"),
)
CODES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def small_nifti() -> bytes:
    """5x4x3 voxels of 1.5x2x2.5 mm, oblique, qform and sform alike."""
    turn = nib.eulerangles.euler2mat(0.3, -0.2, 0.1)
    affine = nib.affines.from_matvec(turn @ np.diag([-1.5, 2, 2.5]), [40, -30, 7])
    image = nib.Nifti1Image((smooth((5, 4, 3))).astype(np.int16), affine)
    image.set_qform(affine, 1)
    image.header.set_slope_inter(0.5, -3)
    return image.to_bytes()


SMALL = small_nifti()


@st.composite
def mutated_nifti(draw: st.DrawFn) -> bytes:
    """A small file with some numbers of its header replaced, or bytes of it, or its end cut off."""
    content = bytearray(SMALL)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(FIELDS))
        kind, offset = HEADER.fields[name][:2]
        count = int(np.prod(kind.shape)) if kind.shape else 1
        place = offset + kind.base.itemsize * draw(st.integers(0, count - 1))
        if kind.base.kind == "f":
            value = draw(st.sampled_from(NUMBERS) | st.floats(width=32))
        elif kind.base.kind == "S":
            value = draw(st.binary(min_size=4, max_size=4))
        else:
            low, high = np.iinfo(kind.base).min, np.iinfo(kind.base).max
            whole = [n for n in NUMBERS if n == n // 1 and low <= n <= high]
            value = draw(st.sampled_from(whole) | st.integers(int(low), int(high)))
        content[place : place + kind.base.itemsize] = np.array(value, kind.base).tobytes()
    if draw(st.integers(0, 5)) == 0:
        place = draw(st.integers(0, len(content) - 1))
        content[place] = draw(st.integers(0, 255))
    if draw(st.integers(0, 9)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


def stated_grid(content: bytes) -> np.ndarray | None:
    """Outer corners [8, 3] in mm by the words of the NIfTI-1 standard, not nibabel; None without qform and sform."""
    order = "<" if 0 < np.frombuffer(content, "<i2", 1, 40)[0] < 8 else ">"
    header = np.frombuffer(content, HEADER.newbyteorder(order), 1)[0]
    unit = CODES[int(header["xyzt_units"]) & 7]
    shape = [int(n) for n in header["dim"][1:4]]
    affine = np.eye(4)
    if header["sform_code"] > 0:
        affine[:3] = [header["srow_x"], header["srow_y"], header["srow_z"]]
    elif header["qform_code"] > 0:
        b, c, d = (float(header[f"quatern_{name}"]) for name in "bcd")
        a = np.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        rotation = [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
        edges = header["pixdim"][1:4].astype(float) * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
        affine[:3, :3] = np.array(rotation) * edges
        affine[:3, 3] = [header[f"qoffset_{name}"] for name in "xyz"]
    else:
        return None
    points = np.array([[i, j, k, 1] for i in (-0.5, shape[0] - 0.5) for j in (-0.5, shape[1] - 0.5)
                       for k in (-0.5, shape[2] - 0.5)])  # fmt: skip
    return unit * (points @ affine.T)[:, :3]


def read(path: Path) -> tuple[np.ndarray, np.ndarray] | str:
    """Corners and voxels, as a bundle reads them, or why they are refused."""
    from medsr_monai.errors import naming
    from medsr_monai.recipes import load_volume

    try:
        with naming(path):
            volume = load_volume()({"image": str(path)})["image"]
    except (ValueError, OSError) as error:
        assert not isinstance(error.__cause__, RecursionError | NotImplementedError)  # bugs, not refusals
        return str(error)
    return outer_corners(volume.affine, volume.shape[1:]), volume.numpy()


def in_place(found: np.ndarray, stated: np.ndarray) -> None:
    """Within a thousandth of the shortest side, and what float32 can tell apart."""
    assert np.isfinite(found).all()
    side = min(np.linalg.norm(stated[i] - stated[0]) for i in (1, 2, 4))
    np.testing.assert_allclose(found, stated, rtol=0, atol=1e-3 * side + 3e-7 * np.abs(stated).max())


@given(mutated_nifti())
@settings(max_examples=300, **BUDGET)
def test_a_mutated_nifti_file_is_refused_in_one_line_or_read_where_its_header_places_it(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "mutated.nii"
    path.write_bytes(content)
    result = read(path)
    if isinstance(result, str):
        assert str(path) in result and "\n" not in result and len(result) > len(str(path)) + 10
        return
    found, voxels = result
    assert np.isfinite(voxels).all()
    if (stated := stated_grid(content)) is not None:
        in_place(found, stated)
    np.testing.assert_allclose(found, scaled_by_nibabel(path), rtol=1e-6, atol=1e-6)


def scaled_by_nibabel(path: Path) -> np.ndarray:
    image = nib.load(path)
    return CODES[int(image.header["xyzt_units"]) & 7] * outer_corners(image.affine, image.shape[:3])


@given(mutated_nifti())
@settings(max_examples=20, **BUDGET)
def test_a_process_never_fails_at_a_mutated_nifti_file(processes, bundle, tmp_path_factory, content):
    folder = emptied(tmp_path_factory.getbasetemp() / "process")
    (folder / "a.nii").write_bytes(content)
    result = processes.run("upscale", "a.nii", "out.nii.gz", "--bundle", bundle, folder=folder)
    told_or_done(result, folder, "a.nii")
    if result.code == 0 and (stated := stated_grid(content)) is not None:
        image = nib.load(folder / "out.nii.gz")
        in_place(outer_corners(image.affine, image.shape), stated)


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def told_or_done(result: Result, folder: Path, source: str) -> None:
    """One error line and nothing written, or a whole output."""
    errors = [line for line in result.err.splitlines() if line.startswith("medsr: error: ")]
    assert "Traceback" not in result.err and len(errors) == result.code, result
    left = {p.name for p in folder.iterdir()} - {source}
    assert left == (set(OUTPUTS) if result.code == 0 else set()), left
    if result.code == 0:
        assert np.isfinite(nib.load(folder / "out.nii.gz").get_fdata()).all()


TAGS = {
    "ImagePositionPatient": "DS",
    "ImageOrientationPatient": "DS",
    "PixelSpacing": "DS",
    "SliceThickness": "DS",
    "SpacingBetweenSlices": "DS",
    "RescaleSlope": "DS",
    "RescaleIntercept": "DS",
    "NumberOfFrames": "IS",
    "InstanceNumber": "IS",
    "SeriesNumber": "IS",
    "EchoNumbers": "IS",
    "EchoTime": "DS",
    "AcquisitionTime": "TM",
    "Rows": "US",
    "Columns": "US",
    "SamplesPerPixel": "US",
    "BitsAllocated": "US",
    "BitsStored": "US",
    "HighBit": "US",
    "PixelRepresentation": "US",
    "PhotometricInterpretation": "CS",
    "ImageType": "CS",
    "Modality": "CS",
    "SpecificCharacterSet": "CS",
    "PatientName": "PN",
    "SeriesDescription": "LO",
    "SeriesInstanceUID": "UI",
    "SOPInstanceUID": "UI",
    "SOPClassUID": "UI",
    "PixelData": "OW",
}
WORDS = ("", " ", "nan", "inf", "-inf", "0", "-0", "1", "-1", "1.5", "17", "1e9", "1e-9", "1e300", "abc", "1,5", "ü")


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, bytes | None, int]]:
    """Of a series: keyword, its bytes or None for none, and the slice, or -1 for all."""
    found = []
    for _ in range(draw(st.integers(1, 2))):
        keyword = draw(st.sampled_from(sorted(TAGS)))
        if draw(st.integers(0, 4)) == 0:
            value = None
        elif TAGS[keyword] == "US":
            value = number(draw(st.sampled_from([0, 1, 2, 3, 8, 9, 12, 16, 32, 64, 4000, 65535])), "u2")
            value = value * draw(st.sampled_from([1, 1, 1, 2]))
        elif TAGS[keyword] == "OW":
            value = bytes(draw(st.sampled_from([0, 2, 142, 146, 288])))
        else:
            counts = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
            count = counts.get(keyword, 1) if draw(st.integers(0, 3)) else draw(st.integers(1, 7))
            words = draw(st.lists(st.sampled_from(WORDS), min_size=count, max_size=count))
            value = "\\".join(words).encode("latin-1")
            value += b" " * (len(value) % 2)
        found.append((keyword, value, draw(st.sampled_from([-1, -1, 0, 1, 2]))))
    return found


@pytest.fixture(scope="module")
def good_series(tmp_path_factory) -> list[bytes]:
    folder = make_series(tmp_path_factory.mktemp("good"), count=3)
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def mutate(folder: Path, series: list[bytes], changes: list[tuple[str, bytes | None, int]]) -> None:
    """A series with other tags."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for place, content in enumerate(series):
        header = pydicom.dcmread(io.BytesIO(content))
        for keyword, value, only in changes:
            if only not in (-1, place):
                continue
            header.pop(keyword, None)
            if value is not None:
                tag = Tag(tag_for_keyword(keyword))
                header[tag] = RawDataElement(tag, TAGS[keyword], len(value), value, 0, False, True)
        try:
            header.save_as(folder / f"{place}.dcm")
        except (ValueError, TypeError, OverflowError):
            reject()  # pydicom does not write everything


def test_what_is_mutated_is_read_before(good_series, tmp_path):
    """Refusing everything would keep the promises below."""
    (tmp_path / "a.nii").write_bytes(SMALL)
    mutate(tmp_path / "series", good_series, [])
    for path, stated in ((tmp_path / "a.nii", stated_grid(SMALL)), (tmp_path / "series", None)):
        result = read(path)
        assert not isinstance(result, str), result
        expected = stated_corners(path) if stated is None else in_order(stated)
        np.testing.assert_allclose(in_order(result[0]), expected, atol=2e-3)


@given(mutations())
@settings(max_examples=80, **BUDGET)
def test_a_mutated_series_is_refused_in_one_line_or_read_where_its_tags_place_it(
    good_series, tmp_path_factory, changes
):
    folder = tmp_path_factory.getbasetemp() / "series"
    mutate(folder, good_series, changes)
    result = read(folder)
    if isinstance(result, str):
        assert str(folder) in result and "\n" not in result and len(result) > len(str(folder)) + 10
        return
    found, voxels = result
    assert np.isfinite(found).all() and np.isfinite(voxels).all()
    np.testing.assert_allclose(in_order(found), stated_corners(folder), atol=2e-3)


@given(mutations())
@settings(max_examples=15, **BUDGET)
def test_a_process_never_fails_at_a_mutated_series(processes, bundle, good_series, tmp_path_factory, changes):
    folder = emptied(tmp_path_factory.getbasetemp() / "process")
    mutate(folder / "series", good_series, changes)
    result = processes.run("upscale", "series", "out.nii.gz", "--bundle", bundle, folder=folder)
    told_or_done(result, folder, "series")
    if result.code == 0:
        np.testing.assert_allclose(corners(folder / "out.nii.gz"), stated_corners(folder / "series"), atol=2e-3)
