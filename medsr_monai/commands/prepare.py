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

    Of your own volumes all are listed, and 70 % of the subjects drawn for training, 15 % each for validation and test;
    of a public dataset, the list has its paper's slices, crops, labels and subject split.
    Train with it by --datalist and, as --dataset_dir, the same root. Images are read, none is copied or changed.

    Args:
        dataset: own, or oasis, brats, acdc, covid_ct or ixi.
        root: folder of your volumes (NIfTI, DICOM folders), or of the dataset in its official structure.
        output: JSON file to write, with paths relative to root.
        seed: of the split of subjects.
        contrast: of ixi, T1 or T2; default both. The split does not depend on it.
        all_subjects: use more subjects than the paper did, in its proportions.
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
