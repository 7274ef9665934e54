"""README and the guides of the rooms: commands run as they are written, in order; links, options and paths exist."""

import configparser
import functools
import inspect
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from matplotlib.image import imread
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter
from typed_commands import assert_same_corners, refused

from medsr_monai.cli import COMMANDS as MEDSR

ROOT = Path(__file__).parents[1]
FRONT_PAGE = ROOT / "README.md"
TEXTS = sorted(path for room in ("bundles", "medsr_monai", "tests") for path in (ROOT / room).rglob("README.md"))
CARDS = [path for path in TEXTS if path.parent.name == "docs"]
GUIDES = [FRONT_PAGE, *(path for path in TEXTS if path not in CARDS)]
INSTALL = 'pip install -e ".[test]" && '
TESTS = "pytest -q -n 2 --dist loadfile"
SLOW = {
    # trainings of the shipped network for minutes; tests/upscaling/test_adaptation.py does them with a small one
    "medsr upscale thick_t2.nii.gz fitted.nii.gz --adapt": pytest.mark.slow,
    "medsr adapt thick_t2.nii.gz fit.pt --steps 50": pytest.mark.slow,
    "python -m monai.bundle run training --config_file \"['bundles/rdst_e_thick/configs/train.json',"
    "'bundles/rdst_e_thick/configs/adapt.json']\" --bundle_root bundles/rdst_e_thick --dataset_dir path/to/protocol "
    "--output_dir runs/adapted --steps 50 --minutes None": pytest.mark.slow,
    # what the front page has, to another file
    "medsr upscale demo_out/thick.nii.gz chosen.nii.gz": pytest.mark.slow,
    # 18 networks, each in a process of its own; tests/commands/test_benchmark.py counts those of the paper itself
    "medsr benchmark --networks all --size 40x32 --runs 0": pytest.mark.slow,
}
# options of other programs, and those that every command has
ELSEWHERE = {"dist", "bundle_root", "config_file", "nodes", "max_restarts", "verbose", "help"}


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.S | re.M)


def lines(path):
    return [line for block in blocks(path, "bash") for line in block.strip().splitlines()]


def code_spans(path):
    """What stands in `backticks` outside of blocks, on one line each, and the lines of the shell blocks."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)] + lines(path)


COMMANDS = [
    pytest.param(guide, line, id=f"{name_of(guide)}: {line}", marks=SLOW.get(line, ()))
    for guide in GUIDES
    for line in lines(guide)
]
SNIPPETS = [
    pytest.param(code, id=f"{name_of(guide)} {number}")
    for guide in GUIDES
    for number, code in enumerate(blocks(guide, "python"))
]


def write_study(folder):
    """Two CT series of five slices."""
    study, frame = generate_uid(), generate_uid()
    for series_number in (3, 4):
        (folder / f"series{series_number}").mkdir(parents=True)
        write_series(folder / f"series{series_number}", series_number, study, frame)


def write_series(folder, series_number, study, frame):
    series = generate_uid()
    rng = np.random.default_rng(series_number)
    for number in range(5):
        d = pydicom.Dataset()
        d.file_meta = pydicom.dataset.FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
        d.Modality, d.PatientName, d.PatientID, d.InstanceNumber = "CT", "Doe^Jane", "4711", number + 1
        d.SeriesNumber, d.SeriesDescription, d.ImageType = series_number, "thin", ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.ImagePositionPatient, d.ImageOrientationPatient = [0.0, 0.0, 5.0 * number], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness, d.Rows, d.Columns = [1.0, 1.0], 5.0, 24, 24
        d.SamplesPerPixel, d.PhotometricInterpretation, d.RescaleSlope, d.RescaleIntercept = 1, "MONOCHROME2", 1, -1024
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.PixelData = (2000 * gaussian_filter(rng.random((24, 24)), 1)).astype(np.uint16).tobytes()
        pydicom.dcmwrite(folder / f"IM{number}", d, enforce_file_format=True)


def write_volume(path, shape, spacing, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = gaussian_filter(np.random.default_rng(seed).random(shape), (2, 2, 0)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([*spacing, 1])), path)


def write_scan(path):
    """Blobs with edges, twelve slices of four means."""
    rng = np.random.default_rng(0)
    fine = gaussian_filter(rng.standard_normal((64, 64, 48)), 1.5)
    fine = 80.0 * (fine > 0.02) + 60.0 * (fine > 0.1) + 20 + rng.standard_normal(fine.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = fine.reshape(64, 64, 12, 4).mean(-1).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1, 4, 1])), path)


def write_bids(root):
    for subject in ("01", "02"):
        for suffix in ("T1w", "FLAIR"):
            write_volume(root / f"sub-{subject}" / "anat" / f"sub-{subject}_{suffix}.nii.gz", (16, 18, 3), (1, 1, 5), 0)
    (root / "dataset_description.json").write_text('{"Name": "made", "BIDSVersion": "1.10.0"}')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what a checkout has, and with small files of the names that the guides use for the reader's own."""
    here = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "bundles", here / "bundles")
    for number in range(4):
        write_volume(here / "path" / "to" / "volumes" / f"case{number}.nii.gz", (96, 96, 4), (1, 1, 5), number)
    for number in range(2):
        write_volume(here / "path" / "to" / "scans" / f"scan{number}.nii.gz", (32, 34, 3), (1, 1, 5), number)
    write_volume(here / "thick.nii.gz", (40, 40, 4), (1, 1, 4), 0)
    for path in ("thick_t2.nii.gz", "path/to/protocol/scan.nii.gz"):
        write_scan(here / path)
    write_volume(here / "scan.nii.gz", (32, 34, 4), (1, 1, 1.2), 0)
    write_bids(here / "path" / "to" / "bids")
    write_study(here / "study")
    picture = 255 * gaussian_filter(np.random.default_rng(0).random((40, 36)), 1)
    Image.fromarray(picture.astype(np.uint8)).save(here / "image.png")
    return here


def test_both_main_commands_install_first():
    assert [c for c in lines(FRONT_PAGE) if c.startswith(INSTALL)] == [INSTALL + "medsr demo", INSTALL + TESTS]
    assert f'pip install -q -e ".[test]"\n{TESTS}\n' in (ROOT / ".ci" / "run").read_text()


def test_the_front_page_is_short_and_names_every_guide():
    text = FRONT_PAGE.read_text()
    assert len(text.splitlines()) <= 150
    for path in (*GUIDES[1:], *CARDS):
        assert f"]({name_of(path)})" in text, path


@pytest.fixture(scope="module")
def run(folder, warm_python):
    """Run a command in that folder, once, in a process that need not import all anew."""
    path = f"{warm_python.parent}{os.pathsep}{os.environ['PATH']}"
    options = {"shell": True, "cwd": folder, "capture_output": True, "text": True, "timeout": 600}
    return functools.cache(lambda line: subprocess.run(line, env=os.environ | {"PATH": path}, **options))


@pytest.mark.parametrize("guide, command", COMMANDS)
def test_command(guide, command, run):
    """Those of the front page are run as a user starts them in test_install.py."""
    command = command.removeprefix(INSTALL)
    if command == TESTS:
        pytest.skip("this is it")
    done = run(command)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_demo(run, folder):
    """The shipped weights are better than B-splines at both, by what README says; thick slices are the main thing."""
    done, place = run("medsr demo"), folder / "demo_out"
    assert (done.returncode, done.stderr) == (0, "")
    written = {p.name.removesuffix(".nii.gz") for p in place.iterdir()}
    cases = {case + ending for case in ("thick", "coarse") for ending in ("", "_spline", "_sr")}
    assert written == cases | {"reference", "demo.png"}
    psnr = {(case, method): float(value) for case, method, value in
            re.findall(r"^(\w+), (B-spline|medsr upscale) ?\S*: PSNR ([\d.]+) dB", done.stdout, re.M)}  # fmt: skip
    for case, gain in (("thick", 2.0), ("coarse", 0.2)):
        assert psnr[case, "medsr upscale"] > psnr[case, "B-spline"] + gain
        assert_same_corners(place / "reference.nii.gz", place / f"{case}_sr.nii.gz")
        assert_same_corners(place / "reference.nii.gz", place / f"{case}.nii.gz")
    assert nib.load(place / "thick.nii.gz").header.get_zooms() == (1, 4, 1)
    picture = imread(place / "demo.png")
    assert min(picture.shape[:2]) > 1000 and np.ptp(picture[..., :3]) > 0.9
    before = {p.name: p.stat().st_mtime_ns for p in place.iterdir()}
    again = run("medsr demo ")
    refused((again.returncode, again.stdout, again.stderr), "demo_out/.*: exists.*--overwrite")
    assert before == {p.name: p.stat().st_mtime_ns for p in place.iterdir()}


@pytest.mark.parametrize("code", SNIPPETS)
def test_python(code, folder, monkeypatch):
    """With the reader's volume."""
    monkeypatch.chdir(folder)
    exec(compile(code, "snippet", "exec"), {"volume": "thick.nii.gz"})


def test_results_are_there(folder):
    """Runs after the commands above: pytest keeps the order of a file."""
    if not (folder / "runs" / "log").is_dir():
        pytest.skip("the commands did not run")
    assert (folder / "demo_out" / "demo.png").stat().st_size > 20_000
    assert (folder / "compare_out" / "compare.png").stat().st_size > 100_000
    assert nib.load(folder / "sr.nii.gz").shape == nib.load(folder / "demo_out" / "reference.nii.gz").shape
    assert nib.load(folder / "finer.nii.gz").shape == (64, 68, 4)
    assert nib.load(folder / "fine.nii.gz").shape == (128, 136, 4)
    assert nib.load(folder / "thin.nii.gz").shape == (40, 40, 8)
    assert Image.open(folder / "image_sr.png").size == (144, 160)
    assert len(list((folder / "derived").glob("*/*.dcm"))) == 50  # 1 mm of 5 mm, two series
    assert {p.name for p in (folder / "sr").glob("*.nii.gz")} == {"003_CT_sr.nii.gz", "004_CT_sr.nii.gz"}
    assert len(list((folder / "runs" / "sr").glob("*_sr.nii.gz"))) == 2
    assert {p.name for p in (folder / "runs" / "scans").iterdir()} >= {"index.html", "status.csv", "status.json"}
    for name in ("models", "models2"):
        assert {p.name for p in (folder / "runs" / name).iterdir()} >= {"last.pt", "model.pt"}
    assert "| axial |" in (folder / "runs" / "evaluation" / "summary.md").read_text()


def slug(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [*GUIDES, *CARDS], ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        file = path.parent / file if file else path
        assert file.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", file.read_text(), re.M)), target


@pytest.mark.parametrize("path", [*GUIDES, *CARDS], ids=name_of)
def test_commands_and_their_options_exist(path):
    """Also of those that are not run: what stands behind `medsr NAME` in one piece of code."""
    for span in code_spans(path):
        for name, rest in re.findall(r"\bmedsr ([a-z]+)\b([^|;]*)", span):
            assert name in MEDSR, span
            parameters = set(inspect.signature(MEDSR[name]).parameters)
            for option in re.findall(r"(?<=\s)--([\w-]+)", rest):
                option = option.replace("-", "_")
                assert {option, option.removeprefix("no")} & (parameters | {"verbose", "help"}), span


def ids(value):
    """All keys of a bundle's configuration, which are options of monai.bundle run."""
    if isinstance(value, dict):
        return set(value).union(*map(ids, value.values()))
    return set().union(*map(ids, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("path", GUIDES, ids=name_of)
def test_options_paths_and_extras_exist(path):
    """What is named alone: `--option`, `a/module.py`, `configs/overlay.json` and "medsr_monai[extra]"."""
    known = ELSEWHERE.union(*(inspect.signature(f).parameters for f in MEDSR.values()))
    configurations = sorted(ROOT.glob("bundles/*/configs/*.json"))
    known |= set().union(*(ids(json.loads(file.read_text())) for file in configurations))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for span in code_spans(path):
        if span.startswith("--"):
            for option in re.findall(r"(?:^|\s)--([\w-]+)", span):
                option = option.replace("-", "_")
                assert {option, option.removeprefix("no")} & known, span
        for file in re.findall(r"(?<![\w./<])((?:tests|medsr_monai|bundles)/[\w./-]+)", span):
            assert (ROOT / file).exists(), span
        if re.fullmatch(r"[\w/]+\.py", span):
            assert any((start / span).exists() for start in (ROOT, ROOT / "medsr_monai", path.parent)), span
        if re.match(r"configs/\w", span):
            assert any(file.match(f"*/{span}") for file in configurations), span
        for extra in re.findall(r"medsr_monai\[(\w+)\]", span):
            assert extra in setup["options.extras_require"], span
