"""What a bundle's weights were trained on, for sidecars and log, and what an input is that they were not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsr_monai.upscaling.bundles import BundleRunner
from medsr_monai.upscaling.cases import Case

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from medsr_monai.data import DicomSeries
    from medsr_monai.records.figures import Seen

logger = logging.getLogger(__name__)


class TrainedOn:
    """Description of the data behind a bundle's weights, if there is one.

    Args:
        runner: the bundle with its weights.
        weights: their entry in a sidecar, with the sum; None for a network without.
    """

    def __init__(self, runner: BundleRunner, weights: Mapping[str, Any] | None) -> None:
        from medsr_monai.records.training_data import check_description, find_description, sentence

        self.name, self.inferer = Path(runner.folder).resolve().name, runner["inferer"]
        self.description = None
        if weights is not None:
            self.description = find_description(runner.folder, runner.weights, weights["SHA256"])
        recorded = runner.exported.get("training_data")
        if self.description is None and recorded is not None:
            self.description = check_description(recorded, runner.weights, "export the network again")
        self.sentence = f"{self.name}: {sentence(self.description)}"

    def record(self) -> dict[str, Any] | None:
        """For a sidecar: the description, without the figures of its intensities; None if nothing is known."""
        if self.description is None:
            return None
        groups = [
            {
                "Modality": group["modality"],
                "BodyParts": group["body_parts"],
                "Contrasts": group["contrasts"],
                "Volumes": group["volumes"],
                "Images": group["images"],
                "PixelMm": group["pixel_mm"],
                "Thickness": group["thickness"],
            }
            for group in self.description["groups"]
        ]
        return {"Description": self.sentence, "Data": groups}

    def warn(self, image: MetaTensor, case: Case) -> None:
        """Log a warning a line of how an input differs from the training data, see :meth:`differences`."""
        for line in self.differences(image, case):
            logger.warning("unlike what %s was trained on: %s", self.name, line)

    def differences(self, image: MetaTensor, case: Case) -> list[str]:
        """How an input differs from the training data, one line each; none where nothing is known of these.

        Args:
            image: preprocessed input.
            case: that it was read from.
        """
        if self.description is None:
            return []
        from medsr_monai.records.figures import Known, differences, is_hounsfield, known_of

        known = known_of(case.source, _series(case))
        if known.modality is None and is_hounsfield(*_ends(image)):
            known = Known("CT", None, known.body_part, "intensities like Hounsfield units")
        return differences(self.description, self.seen(image), known)

    def seen(self, image: MetaTensor) -> list[Seen]:
        """What the network gets of an input, in every plane."""
        from medsr_monai.records.figures import measured
        from medsr_monai.transforms import resample

        if not hasattr(self.inferer, "plan"):
            planes = ["axial"] if "picture" in image.meta else self.inferer.planes(image)
            return [measured(image, plane) for plane in planes]
        plan = self.inferer.plan(image.affine, image.shape[1:])
        resized = resample if self.inferer.factor == 1 else None
        return [
            measured(image, plane, axis=plan.array_axis, size=plan.new_size, resized=resized) for plane in plan.planes
        ]


def _ends(image: MetaTensor) -> tuple[float, float]:
    """Intensities that were mapped to 0 and 1, over all channels."""
    from medsr_monai.transforms.intensity import HIGH, LOW

    return float(image.meta[LOW].min()), float(image.meta[HIGH].max())


def _series(case: Case) -> DicomSeries | None:
    """The DICOM series of a case, also of a single file that is read as a picture."""
    from medsr_monai.data import find_series, is_dicom_file

    if case.series is None and Path(case.source).is_file() and is_dicom_file(case.source):
        return next(iter(find_series(case.source)), None)
    return case.series
