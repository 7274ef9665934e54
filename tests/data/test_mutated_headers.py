"""Mutated headers of volumes and series: refused in one line, or read where they place it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from made_series import make_series, stated_corners
from processes import OUTPUTS, Result, corners, in_order, number, smooth
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medsr_monai.transforms import outer_corners

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
