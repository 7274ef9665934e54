"""Tables of super-resolution results: definitions against scikit-image, MONAI and by hand."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from medsr_monai.data.public_datasets import PUBLIC_DATASETS
from medsr_monai.metrics import (
    DICE_REGIONS,
    SliceEvaluation,
    count_macs,
    count_macs_as_published,
    count_parameters,
    fid,
    image_figures,
    network_figures,
    psnr,
    ssim,
)
from medsr_monai.networks import RDST


def pair(shape=(1, 30, 34), seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.rand(shape, generator=generator)
    return label + 0.1 * torch.randn(shape, generator=generator), label


def test_two_definitions_against_scikit_image():
    pred, label = pair()
    pred[:, :2] += 1  # in the border that only the paper's leaves out
    row = image_figures(pred, label)
    p, t = (image[0].double().numpy() for image in (pred, label))
    assert row["psnr"] == psnr(pred, label) and row["ssim"] == ssim(pred, label)
    assert row["psnr_monai"] == pytest.approx(-10 * np.log10(((p - t) ** 2).mean()), abs=1e-5)
    gaussian = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
    assert row["ssim_monai"] == pytest.approx(structural_similarity(t, p, **gaussian), abs=2e-5)
    assert row["psnr"] > row["psnr_monai"] + 3 and row["ssim"] > row["ssim_monai"] + 0.003
    assert list(row) == ["psnr", "ssim", "psnr_monai", "ssim_monai"]


def test_degradations_have_rows_and_fids_of_their_own():
    evaluation = SliceEvaluation(inception=Moments())
    images = {}
    for name, strength in (("weak", 0.02), ("strong", 0.2)):
        for number in range(3):
            label = pair(seed=number)[1]
            images.setdefault(name, []).append(label + strength * (1 + number) * label.flip(-1))
            evaluation.add({"degradation": name} | keys("a", number), label, {"pred": images[name][-1]})
    assert evaluation.slices() == 3
    alone = {}
    for name in images:
        single = SliceEvaluation(inception=Moments())
        for number, one in enumerate(images[name]):
            single.add(keys("a", number), pair(seed=number)[1], {"pred": one})
        alone[name] = single.pooled()[0]
    assert evaluation.pooled() == [{"degradation": name} | row for name, row in alone.items()]
    assert alone["strong"]["fid"] > alone["weak"]["fid"] > 0
    assert [(row["degradation"], row["case"]) for row in evaluation.groups()] == [("weak", "a"), ("strong", "a")]


def test_where_the_method_is_below_interpolation(tmp_path):
    evaluation = SliceEvaluation(method="ours", interpolations=("bicubic", "spline"))
    # errors by slice: ours, bicubic, spline
    for case, number, errors in [("a", 0, (1, 3, 3)), ("a", 1, (2, 1, 2)), ("b", 0, (3, 2, 1)), ("b", 1, (1, 1, 1))]:
        label = pair(seed=number)[1]
        preds = {name: label + 0.1 * errors[i] for name, i in (("bicubic", 1), ("spline", 2), ("ours", 0))}
        evaluation.add(keys(case, number), label, preds)
    pooled = evaluation.pooled()
    assert [(row["method"], row.get("below_bicubic"), row.get("below_spline")) for row in pooled] == [
        ("bicubic", None, None), ("spline", None, None), ("ours", 2, 1),
    ]  # fmt: skip
    assert [row["below_bicubic"] for row in evaluation.groups() if row["method"] == "ours"] == [1, 1]
    sentences = [
        "the PSNR of ours is below that of bicubic on 2 of 4 slices, and in the mean of 1 of 2 volumes and planes "
        "(b, axial).",
        "the PSNR of ours is below that of spline on 1 of 4 slices, and in the mean of 1 of 2 volumes and planes "
        "(b, axial).",
    ]
    assert evaluation.where_below() == sentences
    evaluation.write(tmp_path, pooled)
    text = (tmp_path / "summary.md").read_text()
    assert text.endswith(f"\n\n- {sentences[0]}\n- {sentences[1]}\n") and "| below_bicubic | below_spline |" in text
    assert SliceEvaluation().where_below() == []


def test_small_slices_have_no_gaussian_window():
    pred, label = pair((1, 10, 15))
    row = image_figures(pred, label, border=1)
    assert row["ssim_monai"] is None and row["psnr_monai"] > 0 and 0 < row["ssim"] < 1


def test_modalities_by_hand():
    label = torch.zeros(4, 20, 20)
    pred = torch.tensor([0.1, 0.01, 1.0, 0.1]).reshape(4, 1, 1).expand(4, 20, 20)
    row = image_figures(pred, label)
    for name in ("psnr", "psnr_monai"):
        each = [row[f"{name}_modality_{number}"] for number in (1, 2, 3, 4)]
        assert each == pytest.approx([20, 40, 0, 20], abs=1e-4)
        assert row[name] == pytest.approx(-10 * math.log10((0.01 + 0.0001 + 1 + 0.01) / 4), abs=1e-4)
    # constants a and 0: c1 / (a^2 + c1)
    each = [0.0001 / (a * a + 0.0001) for a in (0.1, 0.01, 1, 0.1)]
    for name in ("ssim", "ssim_monai"):
        assert [row[f"{name}_modality_{number}"] for number in (1, 2, 3, 4)] == pytest.approx(each, abs=1e-4)
        assert row[name] == pytest.approx(np.mean(each), abs=1e-4)


class Thresholds(nn.Module):
    """Class 1 above 0.3, class 2 above 0.6, whatever the channels after the first."""

    def forward(self, x):
        x = x[:, :1]
        return torch.cat([torch.full_like(x, 0.5), (x > 0.3).float(), 2 * (x > 0.6).float()], dim=1)


class Moments(nn.Module):
    """Two features of an image."""

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], dim=1)


def image(ones, twos):
    """Class 1 in the first `ones` pixels of row 0, class 2 in the first `twos` of row 1."""
    x = torch.zeros(1, 16, 16)
    x[0, 0, :ones], x[0, 1, :twos] = 0.4, 0.8
    return x


def keys(case, number):
    return {"case": case, "plane": "axial", "slice": number}


def by_hand(evaluation, labels=True):
    """Three slices of two volumes."""
    for case, number, truth, pred in [("a", 0, (4, 2), (2, 2)), ("a", 1, (8, 0), (8, 0)), ("b", 0, (0, 4), (6, 1))]:
        label = image(*truth)
        segmentation = Thresholds()(label[None]).argmax(1)
        if labels and (case, number) == ("a", 0):
            segmentation[0, 0, :8] = 1  # the label map knows better than the network
        preds = {"pred": image(*pred), "zero": torch.zeros_like(label)}
        evaluation.add(keys(case, number), label, preds, segmentation if labels else None)


def test_dice_by_hand(tmp_path):
    evaluation = SliceEvaluation(unet=Thresholds().train())
    by_hand(evaluation)
    assert not evaluation.unet.training
    rows = {row["method"]: row for row in evaluation.pooled()}
    assert list(rows) == ["HR", "pred", "zero"] and {row["dice_against"] for row in rows.values()} == {"label map"}
    # slices: 2*4/12, 1, 1 (class 1 in neither); 1, 1, 1; 2*6/16 of both classes, 1, 1
    hr, pred, zero = (rows[m] for m in rows)
    assert hr["dice_1"] == pytest.approx((2 / 3 + 2) / 3) and hr["dice_2"] == 1
    assert hr["dice_1_std"] == pytest.approx(np.std([2 / 3, 1, 1])) and hr["slices"] == 3
    assert hr["dice_all"] == pytest.approx((12 / 16 + 2) / 3)
    assert hr["dice_1_pooled"] == pytest.approx(2 * 12 / (12 + 16)) and hr["dice_2_pooled"] == 1
    assert hr["dice_all_pooled"] == pytest.approx(2 * (12 + 6) / (12 + 6 + 16 + 6))
    assert hr["psnr"] is None
    # class 1: 2 of 8, 8 of 8, 6 against none; class 2: 2 of 2, none of none, 1 of 4
    assert pred["dice_1"] == pytest.approx((2 * 2 / 10 + 1 + 0) / 3)
    assert pred["dice_2"] == pytest.approx((1 + 1 + 2 / 5) / 3)
    assert pred["dice_1_pooled"] == pytest.approx(2 * 10 / (16 + 16))
    assert pred["dice_2_pooled"] == pytest.approx(2 * 3 / (3 + 6))
    assert pred["dice_all_pooled"] == pytest.approx(2 * 13 / (19 + 22))
    assert pred["dice_all"] == pytest.approx((2 * 4 / 14 + 1 + 2 / 11) / 3)
    assert (zero["dice_1_pooled"], zero["dice_all"], zero["dice_all_pooled"]) == (0, 0, 0)
    assert pred["psnr_std"] != pred["psnr_std"] and pred["psnr"] == math.inf  # one slice is equal

    evaluation.write(tmp_path / "new", evaluation.pooled({"pred": {"fps": 12.345, "macs": 7}}))
    content = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert content["slices"] == 3 and content["border"] == 4
    assert [row["method"] for row in content["pooled"]] == ["HR", "pred", "zero"]
    assert content["pooled"][1]["psnr"] is None and content["pooled"][1]["macs"] == 7
    assert "macs" not in content["pooled"][0]
    names = [(row["case"], row["plane"], row["method"], row["slices"]) for row in content["groups"]]
    assert names == [(c, "axial", m, n) for c, n in (("a", 2), ("b", 1)) for m in ("HR", "pred", "zero")]
    assert content["groups"][1]["dice_1_pooled"] == pytest.approx(2 * 10 / (10 + 16))
    with (tmp_path / "new" / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(row["case"], row["method"]) for row in table[:4]] == [*(("all", m) for m in rows), ("a", "HR")]
    assert float(table[1]["dice_2"]) == pred["dice_2"] and table[0]["psnr"] == "" and table[1]["fps"] == "12.345"
    with (tmp_path / "new" / "slices.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["method"] for row in table] == ["HR", "pred", "zero"] * 3
    assert float(table[1]["dice_1"]) == pytest.approx(0.4, abs=1e-6) and table[1]["both_1"] == "2"
    markdown = (tmp_path / "new" / "summary.md").read_text()
    assert markdown.startswith("Over all 3 slices: mean (standard deviation)\n\n| method | slices | psnr |")
    text, by_volume = markdown.split("By volume and plane: mean (standard deviation)\n\n")
    assert "| a | axial | HR | 2 |" in by_volume and "| label map |" in text and "| 12.35 |" in text
    assert f"| {hr['dice_1']:.4f} ({hr['dice_1_std']:.4f}) |" in text


def labelled(*labels):
    """A slice of 8x16 pixels, a quarter of it of each label, as intensities that Quarters reads, and as a label map."""
    values = torch.tensor(labels).repeat_interleave(4)
    return (values / 4).expand(1, 8, 16).clone(), values.expand(1, 8, 16).clone()


class Quarters(nn.Module):
    """Class 4 x of intensity x."""

    def forward(self, x):
        return nn.functional.one_hot((4 * x[:, 0]).round().long(), 4).permute(0, 3, 1, 2).float()


def test_dice_by_the_names_of_the_papers(tmp_path):
    """Unions of labels: a perfect tumour with wrong sub-labels. By hand, two slices of one patient, one of another."""
    evaluation = SliceEvaluation(0, unet=Quarters(), dice_regions="brats")
    slices = [("a1", "a", (0, 1, 2, 3), (0, 3, 1, 2)), ("a2", "a", (0, 0, 2, 0), (0, 2, 2, 0))]
    slices += [("b1", "b", (0, 0, 2, 2), (2, 2, 0, 0))]
    for number, (case, subject, truth, pred) in enumerate(slices):
        (label, segmentation), (image, _) = labelled(*truth), labelled(*pred)
        evaluation.add(keys(case, number) | {"subject": subject}, label, {"sr": image}, segmentation)
    first, second, third = [row for row in evaluation.rows if row["method"] == "sr"]
    assert (first["Dice-WT"], first["Dice-TC"], first["Dice-ET"]) == (1, 0.5, 0)
    assert first["dice_all"] == 0 and first["Dice-Avg"] == pytest.approx(0.5)
    assert second["Dice-WT"] == pytest.approx(2 / 3) and (second["Dice-TC"], second["Dice-ET"]) == (1, 1)
    assert third["Dice-WT"] == 0
    [hr, sr] = evaluation.pooled()
    assert hr["method"] == "HR" and hr["Dice-WT"] == hr["Dice-Avg"] == hr["Dice-WT_patients"] == 1
    assert sr["Dice-WT"] == pytest.approx((1 + 2 / 3 + 0) / 3) and sr["Dice-WT_std"] == pytest.approx(
        np.std([1, 2 / 3, 0])
    )
    # of patient a 4 of 4 + 5 quarters, of patient b none of 2 + 2; patient b has neither core nor enhancing tumour
    assert sr["Dice-WT_patients"] == pytest.approx(8 / 9 / 2) and sr["Dice-WT_patients_std"] == pytest.approx(8 / 9 / 2)
    assert sr["Dice-WT_pooled"] == pytest.approx(8 / 13)
    assert (sr["Dice-TC_patients"], sr["Dice-ET_patients"], sr["Dice-TC_patients_std"]) == (0.5, 0, 0)
    assert sr["Dice-Avg_patients"] == pytest.approx(((8 / 9 + 0.5 + 0) / 3 + 0) / 2)
    evaluation.write(tmp_path, evaluation.pooled())
    header = (tmp_path / "slices.csv").read_text().splitlines()[0].split(",")
    assert {"Dice-WT", "Dice-ET", "Dice-TC", "Dice-Avg", "both_Dice-WT", "subject"} <= set(header)
    assert "| Dice-WT | Dice-ET | Dice-TC | Dice-Avg |" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("oasis", ["Dice-T", "Dice-G", "Dice-W", "Dice-CSF"]),
        ("acdc", ["Dice-T", "Dice-LV", "Dice-RV", "Dice-MC"]),
        ("covid_ct", ["Dice-T", "Dice-LL", "Dice-RL", "Dice-Lesion"]),
    ],
)
def test_regions_are_those_of_the_recipes_of_data(name, columns):
    words = {"G": "GM", "W": "WM", "LV": "left ventricle", "RV": "right ventricle", "MC": "myocardium"}
    words |= {"CSF": "CSF", "LL": "left lung", "RL": "right lung", "Lesion": "infection"}
    assert list(DICE_REGIONS[name]) == columns
    for column in columns[1:]:
        [label] = DICE_REGIONS[name][column]
        assert PUBLIC_DATASETS[name].labels[label] == words[column.removeprefix("Dice-")]
    evaluation = SliceEvaluation(0, unet=Quarters(), dice_regions=name)
    (label, segmentation), (image, _) = labelled(0, 1, 2, 3), labelled(0, 1, 2, 2)
    evaluation.add(keys("a", 0), label, {"sr": image}, segmentation)
    row = evaluation.rows[1]
    by_label = {1: 1, 2: 2 / 3, 3: 0}
    for column in columns[1:]:
        assert row[column] == pytest.approx(by_label[DICE_REGIONS[name][column][0]])
    assert row["Dice-T"] == row["dice_all"] == pytest.approx(4 / 6)  # pixels of the classes pooled, 1 if a union
    assert row["Dice-Avg"] == pytest.approx((1 + 2 / 3) / 3)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("ixi", "regions are 'ixi', expected one of oasis, brats"),
        ({"Dice-WT": []}, "region 'Dice-WT' has the labels"),
        ({"Dice-WT": [0]}, "expected a list of labels above 0"),
        ({"Dice-Avg": [1]}, "under another name than Dice-Avg"),
    ],
)
def test_regions_that_are_none(named, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SliceEvaluation(unet=Quarters(), dice_regions=named)


def test_regions_want_a_network_with_their_labels():
    with pytest.raises(ValueError, match="there is no U-Net to segment them"):
        SliceEvaluation(dice_regions="brats")
    label, segmentation = labelled(0, 1, 2, 3)
    evaluation = SliceEvaluation(0, unet=Quarters(), dice_regions={"lesion": [1, 7]})
    with pytest.raises(ValueError, match="region 'lesion' has the label 7, the U-Net has 0 to 3"):
        evaluation.add(keys("a", 0), label, {"sr": label}, segmentation)


def test_dice_against_the_prediction_on_the_reference():
    evaluation = SliceEvaluation(unet=Thresholds())
    by_hand(evaluation, labels=False)
    hr, pred, _ = evaluation.pooled()
    assert hr["dice_against"] == "prediction on HR"
    assert all(hr[f"dice_{region}{kind}"] == 1 for region in ("1", "2", "all") for kind in ("", "_pooled"))
    assert pred["dice_1_pooled"] == pytest.approx(2 * 10 / (16 + 12))


def test_label_maps_that_do_not_fit():
    label = image(4, 2)
    evaluation = SliceEvaluation(unet=Thresholds())
    with pytest.raises(ValueError, match=r'a, axial slice 3: labels 3, 255, the U-Net has 0 to 2: give a.*"255": 1'):
        evaluation.add(keys("a", 3), label, {"p": label}, torch.tensor([0, 3, 255, 1]).repeat(64).reshape(1, 16, 16))
    with pytest.raises(ValueError, match=r"the label map is \(1, 16, 8\), expected \(1, 16, 16\)"):
        evaluation.add(keys("a", 0), label, {"p": label}, torch.zeros(1, 16, 8))
    evaluation.add(keys("a", 0), label, {"p": label}, torch.zeros(1, 16, 16))
    with pytest.raises(ValueError, match="label maps of some slices only"):
        evaluation.add(keys("a", 1), label, {"p": label})
    with pytest.raises(ValueError, match=r"p is \(1, 16, 12\), expected \(1, 16, 16\) as the reference"):
        evaluation.add(keys("a", 1), label, {"p": label[..., :12]})
    with pytest.raises(ValueError, match="has 1 class, expected 2 or more"):
        SliceEvaluation(unet=nn.Identity()).add(keys("a", 1), label, {"p": label})


def test_fid_over_all_slices_and_by_modality():
    evaluation = SliceEvaluation(inception=Moments())
    pairs = [pair((2, 16, 16), seed) for seed in range(4)]
    for number, (pred, label) in enumerate(pairs):
        evaluation.add(keys("ab"[number // 2], number), label, {"pred": pred / 2, "same": label})
    pred, same = evaluation.pooled()
    each = []
    for c in (0, 1):
        sets = [torch.stack([(p[k][c] / (2 - k)).clamp(0, 1) for p in pairs]) for k in (0, 1)]
        each.append([torch.stack([s.mean((1, 2)), s.amax((1, 2))], dim=1) for s in sets])
        assert pred[f"fid_modality_{c + 1}"] == pytest.approx(fid(*each[c]), abs=1e-6)
    assert pred["fid"] == pytest.approx(fid(*(torch.cat([e[k] for e in each]) for k in (0, 1))), abs=1e-6)
    assert pred["fid"] > 1e-3 and same["fid"] == pytest.approx(0, abs=1e-6)
    assert "fid" not in evaluation.groups()[0] and all(row["method"] != "HR" for row in evaluation.rows)


def test_fid_of_one_slice_is_refused():
    evaluation = SliceEvaluation(inception=Moments())
    pred, label = pair()
    evaluation.add(keys("a", 0), label, {"pred": pred})
    with pytest.raises(ValueError, match="FID needs at least 2 slices, 1 was evaluated"):
        evaluation.pooled()


def test_parts_of_several_processes_are_one_evaluation():
    parts = [SliceEvaluation(inception=Moments(), unet=Thresholds()) for _ in range(3)]
    for number in (0, 1, 2, 3, 4):
        pred, label = pair(seed=number)
        for part in (parts[0], parts[1 + number % 2]):
            part.add(keys("ab"[number > 2], number), label, {"bicubic": pred, "network": (pred + label) / 2})
    whole, *halves = parts
    merged = SliceEvaluation(inception=Moments(), unet=Thresholds())
    merged.load([half.state() for half in halves])
    assert merged.rows == whole.rows and merged.groups() == whole.groups() and merged.slices() == 5
    for ours, theirs in zip(merged.pooled(), whole.pooled(), strict=True):
        assert ours == pytest.approx(theirs)


def test_size_and_speed():
    network = RDST(1, 1, 2, embed_dim=12, growth_rate=6, num_heads=2, num_blocks=1, num_dense_blocks=1).train()
    row = network_figures(network, torch.rand(1, 1, 16, 24), runs=3)
    shape = (1, 1, 16, 24)
    assert row["input"] == "1x1x16x24" and row["parameters"] == count_parameters(network)
    assert (
        row["macs"] == count_macs(network, shape) > row["macs_as_published"] == count_macs_as_published(network, shape)
    )
    assert 0 < row["parameters_as_published"] < row["parameters"]
    assert 0 < row["fps"] < math.inf and network.training


def test_frames_per_second_are_the_median(monkeypatch):
    """A slow frame, as another program causes it, does not count; nor does warming up."""
    now, frames = 0.0, []

    class Clocked(nn.Module):
        def forward(self, x):
            nonlocal now
            frames.append(x)
            now += 9 if len(frames) in (1, 2, 3, 4, 7) else 0.02
            return x

    monkeypatch.setattr("medsr_monai.metrics.benchmark.time.perf_counter", lambda: now)
    # two calls count operations, two warm up
    row = network_figures(Clocked(), torch.rand(3, 1, 4, 4), runs=5)
    assert row["fps"] == pytest.approx(3 / 0.02) and len(frames) == 2 + 2 + 5
