"""Bad volumes, each case named: what processes of `medsr` say of them, leave and never do."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made_series import make_series
from processes import GOOD, THICK, Result, contents, corners, number, save, smooth, told, upscaled

ROOT = Path(__file__).parents[2]

EXTREME = np.linspace(-3.3e38, 3.3e38, GOOD.size, dtype=np.float32).reshape(GOOD.shape)


def write_bytes(path: Path, offset: int, content: bytes, affine: np.ndarray | None = THICK) -> None:
    """A good file with other bytes in its header."""
    save(path, affine=affine)
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


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
def test_a_bad_volume_is_refused(medsr_process, bundle, tmp_path, case):
    name, make, reason = VOLUMES[case]
    make(tmp_path / name)
    before = contents(tmp_path)
    told(medsr_process("upscale", name, "new/out.nii.gz", "--bundle", bundle), f"error: {re.escape(name)}: ", reason)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["degrade", "evaluate"])
@pytest.mark.parametrize("case", ["missing file", "truncated", "2D", "NaN", "constant"])
def test_the_other_commands_refuse_it_too(medsr_process, tmp_path, command, case):
    name, make, _ = VOLUMES[case]
    make(tmp_path / name)
    save(tmp_path / "good.nii.gz")
    before = contents(tmp_path)
    arguments = (name, "out.nii.gz") if command == "degrade" else ("good.nii.gz", name)
    told(medsr_process(command, *arguments), re.escape(name))
    assert contents(tmp_path) == before


def test_a_folder_of_bad_volumes(medsr_process, bundle, tmp_path):
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
    result = medsr_process("upscale", folder, tmp_path / "out", "--bundle", bundle, "--device", "cpu")
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


def test_a_hot_voxel_does_not_move_the_scaling(medsr_process, bundle, tmp_path):
    """Slices that do not hold it come out as without it."""
    values = smooth((24, 24, 4))
    hot = values.copy()
    hot[3, 3, 1] = 1e6
    save(tmp_path / "good.nii.gz", values)
    save(tmp_path / "hot.nii.gz", hot)
    good, same = (upscaled(medsr_process, bundle, name) for name in ("good.nii.gz", "hot.nii.gz"))
    np.testing.assert_allclose(same[:, :, 3], good[:, :, 3], atol=0.01 * np.ptp(values))


def test_int16_with_slope_and_intercept_is_read_in_its_units(medsr_process, bundle, tmp_path):
    stored = nib.Nifti1Image(((GOOD + 20) / 0.5).round().astype(np.int16), THICK)
    stored.header.set_slope_inter(0.5, -20)
    nib.save(stored, tmp_path / "int.nii.gz")
    save(tmp_path / "float.nii.gz", nib.load(tmp_path / "int.nii.gz").get_fdata(dtype=np.float32))
    whole, real = (upscaled(medsr_process, bundle, name) for name in ("int.nii.gz", "float.nii.gz"))
    np.testing.assert_allclose(whole, real, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 5), (3, 2, 1), (1, 6, 5), (2, 2, 2), (7, 1, 1), (5, 4, 3)], ids=str)
def test_fewer_voxels_than_a_window_are_super_resolved_in_their_place(medsr_process, bundle, tmp_path, shape):
    save(tmp_path / "a.nii.gz", smooth((9, 9, 9))[: shape[0], : shape[1], : shape[2]])
    assert np.isfinite(upscaled(medsr_process, bundle, "a.nii.gz", "--plane", "axial")).all()
    assert nib.load("a.nii.gz_out.nii.gz").shape == (4 * shape[0], 4 * shape[1], shape[2])
    np.testing.assert_allclose(corners("a.nii.gz_out.nii.gz"), corners("a.nii.gz"), atol=1e-3)


@pytest.mark.parametrize(("unit", "factor"), [(1, 1000.0), (3, 0.001)], ids=["metres", "micrometres"])
def test_other_units_become_millimetres(medsr_process, bundle, tmp_path, unit, factor):
    oblique = nib.affines.from_matvec(np.diag([0.9, 1.1, 3]) @ [[0.8, -0.6, 0], [0, 0, 1], [0.6, 0.8, 0]], [9, -8, 7])
    oblique[:3, :3] = np.array([[0.8, -0.6, 0], [0, 0, 1], [0.6, 0.8, 0]]) @ np.diag([0.9, 1.1, 3])
    save(tmp_path / "mm.nii.gz", affine=oblique)
    save(tmp_path / "a.nii.gz", affine=np.diag([*[1 / factor] * 3, 1]) @ oblique, xyzt_units=unit)
    result = medsr_process("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert result.code == 0 and re.search(rf"a\.nii\.gz: .* units of {factor:g} mm", result.err), result
    np.testing.assert_allclose(corners("out.nii.gz"), corners("mm.nii.gz"), atol=2e-3)
    np.testing.assert_array_equal(nib.load("out.nii.gz").get_fdata(), upscaled(medsr_process, bundle, "mm.nii.gz"))


def test_a_volume_without_a_stated_orientation_is_said_to_be_a_guess(medsr_process, bundle, tmp_path):
    save(tmp_path / "a.nii.gz", affine=None, sform_code=0, qform_code=0)
    result = medsr_process("upscale", "a.nii.gz", "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert result.code == 0 and "left and right are a guess" in result.err


def test_names_in_another_encoding(medsr_process, bundle, tmp_path):
    name = os.fsdecode("M\xfcller.nii.gz".encode("latin-1"))
    save(tmp_path / "a.nii.gz").rename(tmp_path / name)
    result = medsr_process("upscale", name, "out.nii.gz", "--bundle", bundle, "--nopicture")
    assert result.code == 0, result
    assert os.path.exists("out.nii.gz")


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
        file.write(struct.pack("<4h", 3, 600, 600, 150))
        file.truncate(352 + 4 * 600 * 600 * 150)


@pytest.mark.parametrize(
    ("make", "name", "options", "reason"),
    [
        (
            many_pixels,
            "a.png",
            [],
            r"a\.png: would take 40\.2 GiB or more .* 0\.1 GiB are allowed \(half of",
        ),
        (
            many_voxels,
            "a.nii",
            [],
            r"a\.nii: would take 0\.2 GiB or more .* 0\.1 GiB are allowed \(half of",
        ),
        (many_voxels, "a.nii", ["--max-memory", "1GiB"], "does not fit into --max-memory 1024 MiB"),
    ],
)
def test_what_would_take_too_much_memory_is_refused_by_its_header(
    medsr_process, bundle, tmp_path, make, name, options, reason
):
    """The process is limited to less than it would take, and the machine taken for a small one."""
    make(tmp_path / name)
    small = "" if options else "import medsr_monai.data.dicom.slices as s; s.unpacked_limit = lambda: 2**27"
    limits, out = {"DATA": 2**28}, "out.png" if name == "a.png" else "out.nii.gz"
    told(
        medsr_process("upscale", name, out, "--bundle", bundle, *options, "--nopicture", limits=limits, before=small),
        reason,
    )
    assert not Path(out).exists()


PIPES = ("b.nii.gz", "c", "d.dcm", "e.png", "f.mgz", "g.json", "h.zip", "a.json", "i.hdr", "i.img", "DICOMDIR")


@pytest.mark.parametrize("folder", ["volumes", "study"])
def test_pipes_and_devices_in_a_folder_are_never_opened(medsr_process, bundle, tmp_path, folder):
    """Whoever opens a pipe waits for ever."""
    (tmp_path / folder).mkdir()
    if folder == "volumes":
        save(tmp_path / "volumes" / "a.nii.gz")
    else:
        make_series(tmp_path / "study")
    for name in PIPES:
        os.mkfifo(tmp_path / folder / name)
    (tmp_path / folder / "zero.nii").symlink_to("/dev/zero")
    result = medsr_process("upscale", folder, "out", "--bundle", bundle, "--nopicture", timeout=60)
    assert result.code == 0 and list(Path("out").glob("*.nii.gz")), result
    assert medsr_process("inspect", folder, "--no-timing", timeout=60).code == 0


def test_a_table_that_is_a_pipe_is_refused(medsr_process, bundle, tmp_path):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "in" / "a.nii.gz")
    os.mkfifo(tmp_path / "out" / "status.csv")
    told(medsr_process("upscale", "in", "out", "--bundle", bundle, timeout=60), r"status\.csv: .*no regular file")
