"""Write datalists of public datasets and of one's own volumes."""

from __future__ import annotations

from pathlib import Path

from medsr_monai.atomic import check_output


def prepare(
    dataset: str,
    root: str,
    output: str = "datalist.json",
    seed: int = 0,
    contrast: str | None = None,
    all_subjects: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a MONAI datalist for your own volumes, or for your copy of a public dataset as its paper used it.

    Your own volumes are all listed. 70 % of the subjects are drawn for training, and 15 % each for validation and test.
    For a public dataset the list has the slices, crops, labels and subjects of the paper. Images are read, and none is
    copied or changed. To train with the list, give its file as --datalist and the same root as --dataset_dir.

    Args:
        dataset: own for your own volumes, or oasis, brats, acdc, covid_ct or ixi.
        root: the folder of your volumes (NIfTI files, DICOM folders), or of the dataset in its official structure.
        output: the JSON file to write, in which paths are relative to root.
        seed: the seed by which subjects are drawn.
        contrast: for ixi, T1 or T2; by default both. The split of subjects is the same with all.
        all_subjects: for public datasets, use all subjects that are there, in the proportions of the paper.
        overwrite: replace an existing output.
    """
    out = Path(output)
    check_output(out, overwrite)
    from medsr_monai.data import own_datalist, prepare_datalist, write_datalist

    if dataset == "own":
        if contrast or all_subjects:
            raise ValueError("--contrast and --all-subjects are of public datasets: leave them out")
        datalist = own_datalist(root, seed=seed)
    else:
        datalist = prepare_datalist(dataset, root, seed=seed, contrast=contrast, all_subjects=all_subjects)
    write_datalist(datalist, out)
    for part in ("training", "validation", "test", "prior"):
        if items := datalist.get(part):
            subjects = len({item["subject"] for item in items})
            slices = sum(len(s) for item in items for s in item.get("slices", {}).values())
            chosen = f"{slices} slices" if slices else "all planes"
            print(f"{part}: {subjects} subjects, {len(items)} images, {chosen}")
    print(f"{out}: {datalist['name']}, {datalist['description']}")
