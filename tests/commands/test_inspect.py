"""`medsr inspect`: its plan is what upscale writes, its memory what upscale takes, and what it finds is there."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from bundle_copies import interpolating_bundle
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from scipy.ndimage import gaussian_filter

from medsr_monai import cli

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data" / "test"
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-1, 1, 1]), (5, -3, 9))


def medsr(*arguments, capsys=None):
    """Exit code and what was printed, in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    done = capsys.readouterr()
    return end.value.code, done.out, done.err


def inspected(*arguments, capsys, code=0):
    got, out, err = medsr("inspect", *arguments, "--json", capsys=capsys)
    assert got == code, err
    assert "NaN" not in out and "Infinity" not in out
    return json.loads(out)["items"]


def save(path, shape, edges, affine=OBLIQUE):
    image = gaussian_filter(np.random.default_rng(0).random(shape), 0.5).astype(np.float32)
    nib.save(nib.Nifti1Image(image, affine @ np.diag([*edges, 1.0])), path)
    return path


def write_series(folder, shape=(40, 36, 8), edges=(1.0, 1.0, 4.0), **tags):
    """A DICOM series of axial slices; columns, rows, slices."""
    folder.mkdir(parents=True)
    series = generate_uid()
    voxels = np.random.default_rng(1).integers(0, 1000, shape)
    for n in range(shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = uid = generate_uid()
        d = pydicom.Dataset()
        d.file_meta = meta
        d.SOPClassUID, d.SOPInstanceUID, d.Modality = MRImageStorage, uid, "MR"
        d.StudyInstanceUID, d.SeriesInstanceUID, d.SeriesNumber = "1.2.3", series, 7
        d.SeriesDescription, d.ImageType, d.InstanceNumber = "t1", ["ORIGINAL", "PRIMARY"], n + 1
        d.PatientName, d.PatientID = "", ""
        d.Columns, d.Rows = shape[:2]
        d.PixelSpacing, d.SliceThickness = [edges[1], edges[0]], edges[2]
        d.ImageOrientationPatient, d.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, n * edges[2]]
        d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, "MONOCHROME2", 0
        d.BitsAllocated, d.BitsStored, d.HighBit = 16, 12, 11
        for name, value in tags.items():
            setattr(d, name, value)
        d.PixelData = voxels[:, :, n].T.astype(np.uint16).tobytes()
        d.save_as(folder / f"{n:03}.dcm", enforce_file_format=True)
    return folder


# the plan is what upscale does


@pytest.mark.parametrize(
    ("shape", "edges", "bundle"),
    [
        ((40, 33, 9), (1, 1, 1.2), "rdst_e_x2"),
        ((9, 30, 31), (1.3, 0.9, 0.9), "rdst_e_x2"),
        ((20, 12, 21), (1, 4, 4), "rdst_e_x2"),
        ((40, 36, 11), (0.9, 0.9, 3.3), "rdst_e_thick"),
        ((11, 40, 36), (5.0, 0.8, 1.0), "rdst_e_thick"),
    ],
)
def test_the_grid_is_what_upscale_writes(tmp_path, capsys, shape, edges, bundle):
    volume = save(tmp_path / "v.nii.gz", shape, edges)
    (item,) = inspected(volume, "--no-timing", capsys=capsys)
    assert item["plan"]["bundle"] == bundle and item["plan"]["weights"] is not None
    assert item["spacing_mm"] == pytest.approx(edges, abs=1e-5) and item["orientation"] == "LAS"
    assert item["oblique_degrees"] > 5
    folder = interpolating_bundle(tmp_path / "b", bundle)
    code, _, err = medsr("upscale", volume, tmp_path / "o.nii.gz", "--bundle", folder, capsys=capsys)
    assert code == 0, err
    written = nib.load(tmp_path / "o.nii.gz")
    assert list(written.shape) == item["plan"]["output_shape"]
    assert written.header.get_zooms() == pytest.approx(item["plan"]["output_spacing_mm"], rel=1e-5)


def test_the_command_is_one_that_upscale_understands(tmp_path, capsys, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36), np.uint8)).save(tmp_path / "us.png")
    (item,) = inspected(tmp_path / "us.png", "--no-timing", capsys=capsys)
    plan = item["plan"]
    assert (plan["bundle"], item["shape"], plan["output_shape"]) == ("lgsr", [36, 40], [144, 160])
    assert item["spacing_mm"] is None and item["orientation"] is None
    monkeypatch.chdir(tmp_path)
    words = plan["command"].split()
    assert words == ["medsr", "upscale", "us.png", "us_sr.png"] or words[2:] == [str(tmp_path / "us.png"), "us_sr.png"]
    code, out, _ = medsr(*words[1:], "--nopicture", capsys=capsys)
    assert code == 0 and f"bundle lgsr, since {plan['reason']}; {plan['measured']}; {plan['otherwise']}" in out
    assert Image.open("us_sr.png").size == (144, 160)


# what is there


def test_text_of_a_volume(tmp_path, capsys):
    volume = save(tmp_path / "v.nii.gz", (160, 160, 4), (1, 1, 5), np.eye(4))
    code, out, _ = medsr("inspect", volume, capsys=capsys)
    lines = out.splitlines()
    assert code == 0 and lines[0] == str(volume)
    assert "160x160x4 voxels of 1x1x5 mm, RAS, axial slices" in lines[1]
    assert "inferior-superior, 5 mm" in lines[2]
    assert "left-right: 160 voxels of 1 mm, no interpolation detected" in lines[3]
    assert "bundle      rdst_e_thick, since slices of 5 mm are 5 times as thick" in out
    assert re.search(rf"command +medsr upscale {volume} v_sr.nii.gz$", out, re.M)
    assert re.search(r"MiB of memory, 4 slices at a time; network about .* on \d+ threads?$", lines[-1])


def test_enlarged_slices_and_zero_filling(tmp_path, capsys):
    """White noise of which the outer third of k-space was never acquired along one axis."""
    kept = np.fft.fft(np.random.default_rng(0).random((160, 120, 3)) + 2, axis=0)
    kept[np.abs(np.fft.fftfreq(160)) > 1 / 3] = 0
    image = np.abs(np.fft.ifft(kept, axis=0)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1.0, 1.2, 1.0])), tmp_path / "z.nii")
    (item,) = inspected(tmp_path / "z.nii", "--no-timing", capsys=capsys)
    first, second = item["axes"][:2]
    assert item["interpolated"] and first["interpolated"] and not second["interpolated"]
    assert first["acquired"] == pytest.approx(107, rel=0.05)
    assert first["resolution_mm"] == pytest.approx(1.5, rel=0.05)
    assert item["plan"]["bundle"] == "rdst_e_x2"
    assert "enlarges 160x120 to 320x240" in item["plan"]["what"]
    assert item["estimate"]["seconds"] is None and item["estimate"]["memory_bytes"] > 0


def test_a_study_and_its_series(tmp_path, capsys):
    study = tmp_path / "study"
    write_series(study / "a", AcquisitionMatrix=[0, 40, 30, 0], InPlanePhaseEncodingDirection="ROW")
    write_series(study / "b", SeriesNumber=8, ImageType=["DERIVED", "PRIMARY"], SeriesDescription="mip")
    write_series(study / "c", SeriesNumber=9, SeriesDescription="gap")
    (study / "c" / "003.dcm").unlink()
    items = {item["series"]["number"]: item for item in inspected(study, "--no-timing", capsys=capsys)}
    assert set(items) == {7, 8, 9}
    good = items[7]
    assert (good["shape"], good["thick_axis"], good["plan"]["bundle"]) == (
        [40, 36, 8],
        "inferior-superior",
        "rdst_e_thick",
    )
    assert good["acquisition_matrix"] == [30, 40]
    assert [axis["acquisition_matrix"] for axis in good["axes"]] == [30, 40]
    assert good["plan"]["command"].endswith(f"--series {good['series']['uid']}")
    assert "+2.8 dB over interpolation on brain MR T1 (nothing states which body part" in good["plan"]["measured"]
    assert items[8]["left_out"] == "derived" and items[8]["plan"] is None
    assert "unevenly spaced" in items[9]["problem"] and items[9]["plan"] is None
    assert len({tuple(item) for item in items.values()}) == 1  # the same keys for all
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in (study / "a").iterdir():
            archive.write(file, file.name)
    code, out, _ = medsr("inspect", tmp_path / "a.zip", "--no-timing", capsys=capsys)
    assert code == 0 and "(DICOM AcquisitionMatrix 30)" in out and "MR, 8 files" in out


def test_a_bundle_without_weights_is_planned_all_the_same(tmp_path, capsys, monkeypatch):
    examine = sys.modules["medsr_monai.upscaling.choice"].examine
    monkeypatch.setattr("medsr_monai.upscaling.choice.examine", lambda file: examine(file)._replace(state="missing"))
    volume = save(tmp_path / "v.nii.gz", (40, 36, 9), (1, 1, 4))
    (item,) = inspected(volume, "--no-timing", capsys=capsys)
    assert item["problem"] is None and item["plan"]["weights"] is False and item["estimate"]["memory_bytes"]
    assert "none of rdst_e_thick here" in medsr("inspect", volume, "--no-timing", capsys=capsys)[1]


def test_a_folder_of_volumes_goes_on_after_a_bad_one(tmp_path, capsys):
    save(tmp_path / "a.nii.gz", (20, 20, 20), (1, 1, 1))
    (tmp_path / "b.nii.gz").write_bytes(b"")
    good, bad = inspected(tmp_path, "--no-timing", capsys=capsys)
    assert good["plan"] and good["interpolated"] is None  # too few voxels in a row
    assert "the file is empty" in bad["problem"] and bad["plan"] is None


@pytest.mark.parametrize("name", ["missing.nii.gz", "empty.nii.gz", "folder", "text.txt", "four.nii.gz"])
def test_nothing_to_inspect(tmp_path, capsys, name):
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9, 3), np.float32), np.eye(4)), tmp_path / "four.nii.gz")
    code, _, err = medsr("inspect", tmp_path / name, capsys=capsys)
    assert code == 1 and len(err.splitlines()) == 1 and name in err


@pytest.mark.skipif(not DATA.is_dir(), reason="the real series of ../shared/data are not here")
def test_a_real_series_beside_its_acquisition_matrix(capsys):
    (item,) = inspected(DATA / "brain_t1_thick_dicom" / "dicom_35slices.zip", "--no-timing", capsys=capsys)
    assert item["acquisition_matrix"] == [230, 256] and item["thick_axis"] == "left-right"
    assert item["axes"][0]["acquired"] == pytest.approx(230, rel=0.03)
    assert not item["axes"][1]["interpolated"]


# memory and time


@pytest.mark.parametrize(("voxels", "problem"), [("nan", "1 of 1440 voxels are NaN"), ("zero", "every voxel is 0")])
def test_what_upscale_refuses_is_not_planned(tmp_path, capsys, voxels, problem):
    image = np.zeros((16, 15, 6), np.float32)
    if voxels == "nan":
        image += np.random.default_rng(0).random(image.shape, np.float32)
        image[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "a.nii")
    code, out, err = medsr("inspect", tmp_path / "a.nii", "--json", "--no-timing", capsys=capsys)
    (item,) = json.loads(out)["items"]
    assert code == 1 and problem in err and problem in item["problem"] and item["plan"] is None
    assert item["shape"] == [16, 15, 6]


PEAK = """
import atexit, sys
from medsr_monai.cli import main
def peak():
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")), file=sys.stderr)
atexit.register(peak)
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("shape", "edges", "bundle", "limit"),
    [
        ((40, 40, 4), (1, 1, 1.2), "rdst_e", None),
        ((96, 88, 4), (1, 1, 1.2), "rdst_e", None),
        ((160, 128, 8), (1, 1, 1.2), "rdst_e", None),
        ((256, 256, 48), (1, 1, 1.2), "bicubic", None),
        ((384, 384, 24), (1, 1, 1.2), "bicubic", None),
        ((48, 48, 8), (1, 1, 4), "rdst_e_thick", None),
        ((64, 64, 8), (1, 1, 4), "rdst_e_thick", None),
        ((64, 64, 24), (1, 1, 4), "rdst_e_thick", None),
        ((96, 88, 16), (1, 1, 1.2), "rdst_e", "slabs"),
        ((256, 256, 48), (1, 1, 1.2), "bicubic", "slabs"),
        ((512, 512, 12), (1, 1, 1.2), "bicubic", "slabs"),
        ((64, 64, 24), (1, 1, 4), "rdst_e_thick", "slabs"),
    ],
)
def test_memory_is_what_upscale_takes(tmp_path, shape, edges, bundle, limit):
    """Estimates of inspect and upscale, and peak, in fresh processes; of a large output a network without cost is run.

    Slab by slab it is the estimate alone that is asked for: what the limit is good for is asked elsewhere.
    """
    volume = save(tmp_path / "v.nii", shape, edges, np.eye(4))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def run(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    estimates, code, before, extra = [], PEAK, "", ["--bundle", bundle]
    if bundle == "bicubic":
        folder = interpolating_bundle(tmp_path / "b", "rdst_e")
        code = (
            "import medsr_monai.upscaling.inspection as i; from medsr_monai.upscaling.choice import Choice\n"
            f"i.choose = lambda scan: Choice({str(folder)!r}, '', '', None, True)\n" + PEAK
        )
        extra = ["--bundle", folder]
    if limit is None:
        out, _ = run(code, "inspect", volume, "--json", "--no-timing")
        estimates.append(json.loads(out)["items"][0]["estimate"]["memory_bytes"] / 2**20)
    else:
        before = "import medsr_monai.upscaling.memory as m; m.Memory._ways = lambda self: [(4, True)]\n"
        extra += ["--max-memory", "16GiB"]
    out, err = run(before + PEAK, "upscale", volume, tmp_path / "o.nii", *extra)
    assert ("slab by slab" in out) == (limit is not None)
    estimates.append(float(re.search(r"about (\d+) MiB of memory", out)[1]))
    peak = int(err.split("VmHWM:")[1].split()[0]) / 2**10
    figures = ", ".join(f"estimate {estimate:.0f} MiB, {estimate / peak - 1:+.1%}" for estimate in estimates)
    print(f"{shape} {bundle} {limit}: peak {peak:.0f} MiB, {figures}")
    assert estimates == pytest.approx([peak] * len(estimates), rel=0.1)
