"""`evaluate` from Python."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.data import MetaTensor

from medsr_monai import evaluate
from medsr_monai.data import LoadVolumed
from medsr_monai.errors import MedsrError

AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A result and its reference, which is larger at its far end."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    ref = rng.random((22, 24, 5)).astype(np.float32)
    pred = ref[:20] + 0.1 * rng.random((20, 24, 5)).astype(np.float32)
    for name, voxels in {"pred": pred, "ref": ref}.items():
        nibabel.Nifti1Image(voxels, AFFINE).to_filename(folder / f"{name}.nii.gz")
    return folder / "pred.nii.gz", folder / "ref.nii.gz"


def test_every_kind_gives_what_the_command_prints(medsr, pair):
    code, out, err = medsr("evaluate", *pair, "--json", "--border", 2, "--plane", "axial")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    images = [nibabel.load(path) for path in pair]
    tensors = [LoadVolumed("image").load(path) for path in pair]
    arrays = [(image.get_fdata(dtype=np.float32), image.affine) for image in images]
    assert isinstance(tensors[0], MetaTensor)
    for pred, ref in (pair, map(str, pair), images, tensors, arrays, (pair[0], arrays[1])):
        result = evaluate(pred, ref, border=2, plane="axial")
        (row,) = result.volumes
        assert row | {"case": "ref"} == printed and row["case"] in ("ref", "the volume")
        assert len(result.slices) == printed["slices"] == 5
        assert result.pooled[0]["psnr"] == printed["psnr"] == pytest.approx(np.mean([r["psnr"] for r in result.slices]))
    assert not list(Path().iterdir()), "nothing is written"


def test_files_are_written_where_they_are_asked_for(medsr, pair):
    result = evaluate(*pair, csv="own/slices.csv", output="tables")
    assert medsr("evaluate", *pair, "--csv", "theirs.csv", "--output", "other")[0] == 0
    assert Path("own/slices.csv").read_text() == Path("theirs.csv").read_text()
    for name in ("slices.csv", "summary.csv", "summary.md", "summary.json"):
        assert Path("tables", name).read_text() == Path("other", name).read_text()
    assert json.loads(Path("tables/summary.json").read_text())["pooled"] == result.pooled
    with pytest.raises(MedsrError, match="exists"):
        evaluate(*pair, csv="own/slices.csv")
    evaluate(*pair, csv="own/slices.csv", overwrite=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"border": -1}, "border is -1"),
        ({"plane": "x"}, "pred.nii.gz: plane is 'x'"),
        ({"label_map": {"255": 1}}, "give --unet too"),
        ({"regions": "brats"}, "give --unet too"),
        ({"inception": "absent.pth"}, "absent.pth: no such file"),
        ({"device": "cuda:99"}, "not available here"),
        ({"frame": 1}, "ref.nii.gz: frame 1 asked for"),
    ],
)
def test_errors_are_of_one_class(pair, options, reason):
    with pytest.raises(MedsrError, match=reason) as error:
        evaluate(*pair, **options)
    assert "\n" not in str(error.value)


def test_a_folder_and_a_volume_in_memory_are_refused(pair):
    with pytest.raises(MedsrError, match="a folder without DICOM"):
        evaluate(pair[0].parent, nibabel.load(pair[1]))
