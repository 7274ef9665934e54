"""Bad DICOM series, each case named: what processes of `medsr` say of them, leave and never do."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made_series import make_series, stated_corners
from processes import contents, corners, told
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import UID


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
def test_a_bad_series_is_refused(medsr_process, bundle, tmp_path, case):
    edit, reason = DICOM[case]
    make_series(tmp_path / "series", edit)
    before = contents(tmp_path)
    told(medsr_process("upscale", "series", "new/out.nii.gz", "--bundle", bundle), "error: series: ", reason)
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
def test_a_series_with_a_damaged_file_is_refused(medsr_process, bundle, tmp_path, case):
    FILES[case][0](make_series(tmp_path / "series"))
    before = contents(tmp_path)
    told(medsr_process("upscale", "series", "new/out.nii.gz", "--bundle", bundle), "error: series: ", FILES[case][1])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["damaged", "without images", "encrypted slice lost"])
def test_a_bad_zip_is_refused(medsr_process, bundle, tmp_path, kind):
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
    told(medsr_process("upscale", "study.zip", "new/out.nii.gz", "--bundle", bundle), r"error: study\.zip: ")
    assert contents(tmp_path) == before


def test_mixed_series_are_told_apart_or_refused_never_mixed(medsr_process, bundle, tmp_path):
    first, second = make_series(tmp_path / "a"), make_series(tmp_path / "b", setting("SeriesNumber", lambda n: 4), 5)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for folder in (first, second):
        for path in folder.iterdir():
            shutil.copy(path, mixed / f"{folder.name}{path.name}")
    before = contents(tmp_path)
    told(medsr_process("upscale", "mixed", "out.nii.gz", "--bundle", bundle, "--nopicture"), "mixed: .*2 DICOM series")
    assert contents(tmp_path) == before
    assert medsr_process("upscale", "mixed", "out", "--bundle", bundle, "--nopicture").code == 0
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
def test_a_series_that_is_only_unusual_is_read_in_its_place(medsr_process, bundle, tmp_path, case):
    folder = make_series(tmp_path / "series", RIGHT[case])
    (folder / "DICOMDIR.txt").write_text("passed over")
    shutil.copy(folder / "1.dcm", folder / "copy of 1")  # the same slice, sent twice
    result = medsr_process("upscale", "series", "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert (result.code, result.err) == (0, ""), result
    assert nib.load("out.nii.gz").shape == (36, 32, 4)
    np.testing.assert_allclose(corners("out.nii.gz"), stated_corners(folder), atol=1e-3)
