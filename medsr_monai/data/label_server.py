"""What MONAI Label's server hands a bundle: the parameters of a request, and the volumes of a training."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

from monai.transforms import Transform

from medsr_monai.data.datalists import split_subjects, volumes_by_subject

__all__ = ["CheckRequest", "server_volumes"]

logger = logging.getLogger(__name__)

SERVERS = frozenset(
    (
        *("model", "image", "image_path", "label", "description", "device", "logging", "client_id", "timeout"),
        *("session", "session_id", "save_label", "label_tag", "labels", "label_names", "label_info", "color_map"),
        *("result_extension", "result_dtype", "result_compress", "result_write_to_file", "restore_label_idx"),
        *("skip_writer", "cache_transforms", "cache_transforms_in_memory", "cache_transforms_ttl", "bundle_path"),
        *("images", "max_batch_size", "max_workers", "multi_gpu", "gpus", "location", "size", "latencies"),
        *("foreground", "background", "roi"),
    )
)
"""What MONAI Label 0.8.5 and its clients put into requests for themselves, and the clicks of its annotation tools."""
DEFAULT_MODEL = "model.pt"
"""What MONAI Label names where a request names no file; of a bundle with TorchScript only, it takes that."""


class CheckRequest(Transform):
    """Refuse parameters of a request to MONAI Label that it would pass over in silence.

    It hands all of them on as entries of the item. It sets those that the bundle's ``displayable_configs`` name, takes
    ``model.pt`` in place of weights that are not there, and ignores all others. Items that come from no request pass.

    Args:
        obeyed: names of the parameters that the bundle obeys.
        models: the bundle's folder of weights.

    Raises:
        ValueError: a parameter that is not obeyed, or a ``model_filename`` that is not there; names it.
    """

    def __init__(self, obeyed: Iterable[str], models: str | os.PathLike) -> None:
        self.obeyed = sorted(obeyed)
        self.models = Path(models)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        d = dict(data)
        if not {"model", "image_path"} <= d.keys():
            return d
        given = {str(name): value for name, value in d.items() if value is not None and not str(name).startswith("_")}
        if unknown := sorted(given.keys() - SERVERS - set(self.obeyed)):
            raise ValueError(
                f"{d['image_path']}: the request's {', '.join(unknown)} would not be obeyed, a request can set "
                f"{', '.join(self.obeyed)}: leave it out, or set it in the bundle's configs/inference.json"
            )
        name = given.get("model_filename", DEFAULT_MODEL)
        name = name[0] if isinstance(name, (list, tuple)) and name else name
        files = sorted(path.name for path in self.models.glob("*.*") if path.suffix in (".pt", ".ts"))
        if files and name not in files and not (name == DEFAULT_MODEL and all(one.endswith(".ts") for one in files)):
            raise ValueError(f"{d['image_path']}: no weights {name!r} (model_filename), choose {', '.join(files)}")
        return d


def server_volumes(part: str, others: Sequence = (), labelled: bool = False) -> list[dict]:
    """List volumes for a training to which MONAI Label hands none, as none has a final label: all of its studies.

    Args:
        part: training or validation, for which there is no volume.
        others: the volumes of the other one; all are taken only where there is none either.
        labelled: whether the training needs label maps, so that there is no other way.

    Raises:
        FileNotFoundError, ValueError: one line that says what was found and what is needed.
    """
    studies = os.environ.get("MONAI_LABEL_STUDIES", "")
    if others:
        raise ValueError(
            f"no volume for {part}, all {len(others)} are for the other: give one or more to each (in MONAI Label, "
            "submit labels of more images or set val_split)"
        )
    if not studies:
        raise ValueError(f"no volume for {part}: its data list is empty, one volume or more is needed")
    root = Path(studies)
    if not root.is_dir():
        raise ValueError(
            f"{studies}: no image with a final label for {part}, and no folder in which others are found: "
            "submit labels of two images or more, or start the server with a folder of volumes"
        )
    found = volumes_by_subject(root, left_out="labels")
    count = sum(map(len, found.values()))
    if labelled:
        raise ValueError(
            f"{studies}: no image with a final label for {part} ({count} images there): segmentation learns from label "
            "maps: submit those of two images or more"
        )
    logger.warning("%s: no image with a final label: all %d volumes train and validate, without labels", root, count)
    return split_subjects({name: [{"image": str(p)} for p in paths] for name, paths in found.items()}, studies)[part]
