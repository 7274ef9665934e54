"""`medsr upscale --max-memory`: the same result in every way, below the limit, or a line that says what would do."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_copies import interpolating_bundle

from medsr_monai import cli
from medsr_monai.networks import Bicubic
from medsr_monai.upscaling import cohort
from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.cases import find_cases
from medsr_monai.upscaling.memory import MARGIN, Memory, parse_size

ROOT = Path(__file__).parents[2]
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, 0.3) @ np.diag([-1, 1, 1]), (5, -3, 9))
NEW_EVERY_TIME = ("Memory", "Seconds", "SecondsBy", "Created", "Outputs")


@pytest.fixture
def medsr(capsys):
    def run(*arguments, code=0):
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        done = capsys.readouterr()
        assert end.value.code == code, done
        if code:
            assert done.err.startswith("medsr: error: ") and done.err.count("\n") == 1, done.err
        return done.err if code else done.out

    return run


@pytest.fixture
def in_slabs(monkeypatch):
    monkeypatch.setattr(Memory, "_ways", lambda self: [(self.most, True)])


def save(path, shape, edges=(1.0, 1.0, 1.2)):
    image = np.random.default_rng(0).random(shape, np.float32) * 100
    image *= np.prod(np.meshgrid(*(np.hanning(n + 2)[1:-1] for n in shape), indexing="ij"), axis=0)
    nib.save(nib.Nifti1Image(image.astype(np.int16), OBLIQUE @ np.diag([*edges, 1.0])), path)
    return path


def contents(folder):
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 2**32), ("500MiB", 500 * 2**20), ("2GB", 2 * 10**9), ("1.5TiB", 3 * 2**39)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["4", "4G", "4gib", "4 GiB", "-4GiB", "0GiB", "GiB", "4.GiB", "4KiB", "1e3MiB"])
def test_other_spellings_are_refused_before_any_work(medsr, tmp_path, text):
    volume = save(tmp_path / "v.nii", (20, 18, 5))
    before = contents(tmp_path)
    error = medsr("upscale", volume, tmp_path / "o.nii", f"--max-memory={text}", code=1)
    assert repr(text) in error and "such as 4GiB" in error
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("base", "shape", "edges", "options"),
    [
        ("rdst_e", (20, 18, 9), (1, 1, 1.2), ()),
        ("rdst_e", (20, 9, 18), (1, 1.2, 1), ()),
        ("rdst_e", (9, 20, 18), (1.2, 1, 1), ("--slice-batch", 3)),
        ("rdst_e", (40, 36, 5), (1, 1, 1.2), ("--tile", 32)),
        ("transmrsr", (20, 18, 9), (1, 1, 3.3), ()),
        ("transmrsr", (9, 18, 20), (4, 1, 1), ("--refine", "axial")),
        ("transmrsr", (9, 18, 20), (4, 1, 1), ("--refine", "coronal", "--target-spacing", 1.3)),
    ],
)
def test_slab_by_slab_it_is_the_same(medsr, tmp_path, in_slabs, base, shape, edges, options):
    volume, made = save(tmp_path / "v.nii.gz", shape, edges), {}
    folder = interpolating_bundle(tmp_path / "b", base)
    for way, limit in {"memory": (), "disk": ("--max-memory", "64GiB")}.items():
        (tmp_path / way).mkdir()
        out = medsr("upscale", volume, tmp_path / way / "o.nii.gz", "--bundle", folder, *options, *limit)
        assert re.search(r"about \d+ MiB of memory, \d slices at a time", out)
        assert ("slab by slab through a file" in out) == bool(limit)
        made[way] = contents(tmp_path / way)
    memory, disk = ({Path(k).name: v for k, v in files.items()} for files in made.values())
    if base == "rdst_e":
        assert memory["o.nii.gz"] == disk["o.nii.gz"] and memory["o.quality.png"] == disk["o.quality.png"]
    else:  # sums of the interpolation are in another order
        first, second = (nib.Nifti1Image.from_bytes(gzip.decompress(files["o.nii.gz"])) for files in (memory, disk))
        assert first.header == second.header
        np.testing.assert_allclose(first.get_fdata(), second.get_fdata(), rtol=0, atol=1e-6 * first.get_fdata().max())
    memory, disk = (json.loads(files["o.json"]) for files in (memory, disk))
    assert disk["Memory"]["Slabs"] and disk["Memory"]["LimitMiB"] == 64 * 2**10 and not memory["Memory"]["Slabs"]
    figures = [record["DataConsistency"].pop("residual") for record in (memory, disk)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-9 if base == "rdst_e" else 1e-4)
    changed = ("IntensityRange",) if base == "transmrsr" else ()
    for name in memory.keys() - set(NEW_EVERY_TIME) - set(changed):
        assert memory[name] == disk[name], name


def test_the_way_is_chosen_by_the_estimate(tmp_path, monkeypatch):
    """Whole, then with fewer slices, then slab by slab, each as soon as the one before does not fit."""
    runner = BundleRunner(str(interpolating_bundle(tmp_path / "b")), device="$torch.device('cpu')")
    volume = save(tmp_path / "v.nii", (400, 300, 64))
    case = find_cases(str(volume), str(tmp_path / "o.nii"), False)[0]
    memory = Memory(runner, 2**40)
    assert memory.before_reading(case)[1:] == (4, False)
    monkeypatch.setattr(memory, "_activations", lambda batch, rows, columns: batch * 2**28)
    monkeypatch.setattr(memory, "_resident", lambda: 2**30)
    memory.resident, needs = 2**30, {}
    plan = runner.plan(OBLIQUE, (400, 300, 64))
    assert memory._ways() == [(4, False), (2, False), (1, False), (4, True), (2, True), (1, True)]
    for way in memory._ways():
        needs[way] = memory.estimate(plan, *way, read=400 * 300 * 64 * 6)
    for way in ((4, False), (2, False), (1, False), (2, True), (1, True)):
        memory.limit = int(needs[way] * MARGIN) + 1
        assert memory.before_reading(case)[1:] == way
    memory.limit = int(needs[1, True] * 0.9)
    with pytest.raises(ValueError, match=r"even with one slice at a time: give \d+MiB") as refusal:
        memory.before_reading(case)
    memory.limit = int(re.search(r"give (\d+)MiB", str(refusal.value))[1]) * 2**20
    assert memory.before_reading(case).slabs


def test_too_little_for_anything(medsr, tmp_path):
    volume = save(tmp_path / "v.nii", (20, 18, 5))
    folder = interpolating_bundle(tmp_path / "b")
    before = contents(tmp_path)
    error = medsr("upscale", volume, tmp_path / "o.nii", "--bundle", folder, "--max-memory", "1MiB", code=1)
    assert re.search(r"v\.nii: does not fit into --max-memory 1 MiB even with one slice at a time: give \d+MiB$", error)
    enforced = ("--max-memory", "1MiB", "--enforce-consistency")
    error = medsr("upscale", volume, tmp_path / "o.nii", "--bundle", folder, *enforced, code=1)
    assert "needs the whole output, leaving it out takes less" in error
    compiled = ("--max-memory", "64GiB", "--compile")
    assert "a compiler takes" in medsr("upscale", volume, tmp_path / "o.nii", "--bundle", folder, *compiled, code=1)
    assert contents(tmp_path) == before


def test_a_failure_in_the_middle_leaves_nothing(medsr, tmp_path, in_slabs, monkeypatch):
    """Nor does a kill: meanwhile there is no file under any name."""
    volume, folder = save(tmp_path / "v.nii", (20, 18, 9)), interpolating_bundle(tmp_path / "b")
    before, seen, forward = contents(tmp_path), [], Bicubic.forward

    def fails(self, x):
        if x.device.type == "cpu":
            seen.append(contents(tmp_path))
        if len(seen) == 3:
            raise ValueError("the third batch")
        return forward(self, x)

    monkeypatch.setattr(Bicubic, "forward", fails)
    arguments = ("upscale", volume, tmp_path / "new" / "o.nii.gz", "--bundle", folder, "--max-memory", "64GiB")
    assert "the third batch" in medsr(*arguments, code=1)
    assert contents(tmp_path) == before and all(there == before for there in seen)


def test_voxels_that_are_not_finite_are_refused(medsr, tmp_path, in_slabs, monkeypatch):
    volume, folder = save(tmp_path / "v.nii", (20, 18, 9)), interpolating_bundle(tmp_path / "b")
    before, forward = contents(tmp_path), Bicubic.forward
    monkeypatch.setattr(Bicubic, "forward", lambda self, x: forward(self, x) * torch.inf)
    error = medsr("upscale", volume, tmp_path / "o.nii.gz", "--bundle", folder, "--max-memory", "64GiB", code=1)
    assert "voxels of the output are NaN or infinite" in error
    assert contents(tmp_path) == before


def test_processes_have_their_shares(medsr, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii", (20, 18, 5))
    plans = []
    shared = lambda job, jobs: plans.append((parse_size(job.options["max_memory"]), jobs)) or 0  # noqa: E731
    monkeypatch.setattr(cohort, "_in_processes", shared)
    medsr("upscale", tmp_path / "in", tmp_path / "out", "--max-memory", "4GiB", "--jobs", 2)
    assert plans == [(2 * 2**30, 2)]


def test_a_cohort_says_of_each_volume_what_it_wants(medsr, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.nii", (20, 18, 5))
    folder = interpolating_bundle(tmp_path / "b")
    with pytest.raises(SystemExit) as end:
        cli.main(["upscale", str(tmp_path / "in"), str(tmp_path / "out"), "--bundle", str(folder), "--max-memory=1MiB"])
    assert end.value.code == 2
    assert re.search(r"does not fit into --max-memory 1 MiB .* give \d+MiB", (tmp_path / "out/status.csv").read_text())
    medsr("upscale", tmp_path / "in", tmp_path / "out", "--bundle", folder, "--max-memory=64GiB")
    assert json.loads((tmp_path / "out/a_sr.json").read_text())["Memory"]["LimitMiB"] == 64 * 2**10


# in processes of their own

PEAK = """
import atexit, sys
from medsr_monai.cli import main
def peak():
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")), file=sys.stderr)
atexit.register(peak)
main(sys.argv[1:])
"""


# what the process takes beyond this from its first volume on, the system refuses it (private memory, touched or not)
LIMITED = (
    """
import resource
from medsr_monai.upscaling.memory import Memory
before_reading = Memory.before_reading
def limited(self, case):
    way = before_reading(self, case)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    resident, private = (int(status[name].split()[0]) * 2**10 for name in ("VmRSS", "VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (private + {limit} - resident,) * 2)
    return way
Memory.before_reading = limited
"""
    + PEAK
)


def process(python, *arguments, code=PEAK):
    """Exit code, what was printed, and the peak of resident memory in MiB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command_line = [python, "-c", code, *map(str, arguments)]
    done = subprocess.run(command_line, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, int(done.stderr.split("VmHWM:")[1].split()[0]) / 2**10


linux = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")


@linux
def test_an_output_that_does_not_fit_beside_the_libraries(warm_python, tmp_path):
    """The least limit that the refusal names is kept to, where the system gives no more, and is less than whole takes.

    The same limit of the system ends the run that makes the output in memory.
    """
    volume, folder = save(tmp_path / "v.nii", (256, 256, 72)), interpolating_bundle(tmp_path / "b")
    arguments = ("upscale", volume, tmp_path / "o.nii", "--bundle", folder, "--nopicture")
    code, text, libraries = process(warm_python, *arguments, "--max-memory", "1MiB")
    assert code == 1 and "give" in text, text
    least = int(re.search(r"give (\d+)MiB", text)[1])
    limited = LIMITED.format(limit=least * 2**20)
    code, text, _ = process(warm_python, *arguments, code=limited)
    assert code == 1 and "out of memory even with one tile" in text and not (tmp_path / "o.nii").exists(), text
    code, text, peak = process(warm_python, *arguments, "--max-memory", f"{least}MiB", code=limited)
    assert code == 0 and "slab by slab through a file" in text, text
    output = (tmp_path / "o.nii").stat().st_size / 2**20
    print(f"output {output:.0f} MiB, limit {least} MiB, peak {peak:.0f} MiB, libraries {libraries:.0f} MiB")
    assert peak < least and least - libraries < output


@pytest.mark.slow
@linux
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_four_gibibytes(tmp_path, suffix):
    volume, folder = save(tmp_path / "v.nii.gz", (640, 640, 180)), interpolating_bundle(tmp_path / "b")
    out = tmp_path / f"o{suffix}"
    code, text, peak = process(sys.executable, "upscale", volume, out, "--bundle", folder, "--max-memory", "4GiB")
    assert code == 0, text
    image = nib.load(out)
    output = np.prod(image.shape) * image.get_data_dtype().itemsize / 2**30
    print(f"output {output:.2f} GiB, {out.stat().st_size / 2**30:.2f} GiB on disk, peak {peak:.0f} MiB\n{text}")
    assert output > 4 and peak < 4096
