"""Which attributes of a DICOM series still hold of a volume that was computed from it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from pydicom import DataElement, Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)
from pydicom.valuerep import DSfloat

__all__ = [
    "check_sources",
    "compression_history",
    "constant",
    "derived_class",
    "frame_header",
    "held_attributes",
    "is_frame",
]

CLASSES = {
    MRImageStorage: MRImageStorage,
    EnhancedMRImageStorage: MRImageStorage,
    LegacyConvertedEnhancedMRImageStorage: MRImageStorage,
    CTImageStorage: CTImageStorage,
    EnhancedCTImageStorage: CTImageStorage,
    LegacyConvertedEnhancedCTImageStorage: CTImageStorage,
}
"""The SOP class of a derived series, whose images are single frames, by the SOP class of its source."""

HELD_GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0032, 0x0038, 0x0040)
"""Groups that still hold: identification, patient, clinical trial, acquisition, request, visit and procedure step."""

LAST_PROCEDURE_ELEMENT = 0x00403000
"""From this tag on, group 0040 describes pixels and reports, which do not hold any more."""

HELD = (
    "StudyInstanceUID",
    "StudyID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Laterality",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "NumberOfTemporalPositions",
    "TemporalResolution",
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
    "LongitudinalTemporalInformationModified",
)
"""Attributes of the groups 0020 and 0028 that still hold; the others number, place and encode the source's images."""

NOT_HELD = (
    # the identity of the source's images, and when they and their series were made
    "SOPClassUID", "SOPInstanceUID", "InstanceCreatorUID", "InstanceCreationDate", "InstanceCreationTime",
    "SeriesDate", "SeriesTime", "ContentDate", "ContentTime", "OverlayDate", "OverlayTime", "CurveDate", "CurveTime",
    "ImageType", "SeriesDescription", "SeriesDescriptionCodeSequence", "NumberOfSeriesRelatedInstances",
    "QueryRetrieveLevel", "RetrieveAETitle", "InstanceAvailability", "FailedSOPInstanceUIDList",
    # what the source's images, not this series, refer to: localisers, their own sources, the step that lists them
    "ReferencedSeriesSequence", "ReferencedPerformedProcedureStepSequence", "ReferencedImageSequence",
    "ReferencedInstanceSequence", "ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "ReferencedFrameNumber",
    "ReferencedImageEvidenceSequence", "SourceImageEvidenceSequence", "RelatedSeriesSequence", "SourceImageSequence",
    "ReferencedRawDataSequence", "ReferencedWaveformSequence", "StudiesContainingOtherReferencedInstancesSequence",
    # told anew, after the source's
    "DerivationDescription", "DerivationCodeSequence", "ContributingEquipmentSequence",
    # the grid and its place; a tilt would be corrected a second time by readers
    "SliceThickness", "SpacingBetweenSlices", "GantryDetectorTilt", "SpatialResolution", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "PixelAspectRatio",
    # units of the stored pixels
    "RealWorldValueMappingSequence",
)  # fmt: skip
"""Attributes of HELD_GROUPS that do not hold any more."""

CONTACTS = (
    "InstitutionAddress", "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers", "PatientAddress",
    "PatientTelephoneNumbers", "PatientTelecomInformation", "PersonAddress", "PersonTelephoneNumbers",
    "PersonTelecomInformation", "OrderCallbackPhoneNumber", "OrderCallbackTelecomInformation", "AddressTrial",
    "TelephoneNumberTrial", "CountryOfResidence", "RegionOfResidence", "PatientInstitutionResidence",
)  # fmt: skip
"""Where persons can be reached: nobody needs that of a derived image. Within sequences they are dropped, too."""

EMPTY = {
    "": (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "ReferringPhysicianName", "AccessionNumber", "Manufacturer", "PositionReferenceIndicator", "PatientPosition",
    ),
    MRImageStorage: ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength"),
    CTImageStorage: ("KVP", "AcquisitionNumber"),
}  # fmt: skip
"""Attributes of type 2, which must be there and may be empty, by SOP class; those of '' belong to all classes."""

CONTACT_TAGS = {tag_for_keyword(name) for name in CONTACTS}

FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "NumberOfFrames")

CLASSIC_NAMES = {
    "FrameType": "ImageType",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "EffectiveEchoTime": "EchoTime",
    "InversionTimes": "InversionTime",
    "TransmitterFrequency": "ImagingFrequency",
    "ResonantNucleus": "ImagedNucleus",
    "XRayTubeCurrentInmA": "XRayTubeCurrent",
    "ExposureTimeInms": "ExposureTime",
    "ExposureInmAs": "Exposure",
}
"""Attributes of enhanced images, and those of the same meaning in single-frame images."""


LOSSY = (
    ([uid for uid in JPEGTransferSyntaxes if "Lossless" not in uid.name], "ISO_10918_1"),
    ([uid for uid in JPEGLSTransferSyntaxes if "Lossless" not in uid.name], "ISO_14495_1"),
    ([uid for uid in JPEG2000TransferSyntaxes if "Lossless" not in uid.name], "ISO_15444_1"),
)
"""Transfer syntaxes that may compress with loss, and the names of their methods (PS3.3 C.7.6.1.1.5.1)."""


def derived_class(header: Dataset) -> str:
    """SOP class of single-frame images that are derived from an image.

    Raises:
        ValueError: neither MR nor CT.
    """
    uid = header.get("SOPClassUID")
    if uid not in CLASSES:
        kind = getattr(uid, "name", None) or "an unknown SOP class"
        raise ValueError(
            f"the source is {kind}, a derived DICOM series is made of MR and CT images: write NIfTI (leave out "
            "--output-format dicom)"
        )
    return CLASSES[uid]


def is_frame(header: Dataset) -> bool:
    """Whether a slice's header is that of a frame, see :func:`frame_header`."""
    return CLASSES.get(header.get("SOPClassUID"), header.get("SOPClassUID")) != header.get("SOPClassUID")


def frame_header(whole: Dataset, frame: int) -> Dataset:
    """Header of a frame, counted from 0, of a multi-frame file, as of a single-frame image.

    What the functional groups say of the frame (position, orientation, pixel spacing, thickness, slope and intercept,
    echo time and so on) stands in it by the names that single-frame images have for it, and the groups themselves do
    not. InstanceNumber is the frame's, from 1; SOPInstanceUID and SOPClassUID are the file's.
    """
    header, groups = Dataset(), Dataset()
    header.file_meta = getattr(whole, "file_meta", None)
    # copies, since assigning to an attribute changes its element for all frames
    header.update({e.tag: copy.copy(e) for e in whole if e.keyword not in FUNCTIONAL_GROUPS})
    shared = whole.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for group in (*shared[0], *whole.PerFrameFunctionalGroupsSequence[frame]):
        if group.VR == "SQ" and group.value:
            groups.update({e.tag: copy.copy(e) for e in group.value[0]})
    header.update(groups)
    for name, classic in CLASSIC_NAMES.items():
        if name in groups:
            setattr(header, classic, _classic_value(classic, groups[name].value))
    if CLASSES.get(whole.get("SOPClassUID")) == MRImageStorage:
        _name_sequence(header)
    header.InstanceNumber = frame + 1
    return header


def _is_enhanced(tag: BaseTag) -> bool:
    """Whether it is a term of enhanced images that single-frame ones do not have."""
    return tag.group in (0x0008, 0x0018) and tag.element >= 0x9000


def _classic_value(name: str, value: object) -> object:
    """Numbers are decimal strings there, or whole; of several inversion times the first is told."""
    if name in ("XRayTubeCurrent", "ExposureTime", "Exposure"):
        return round(float(value))
    if name == "InversionTime" and isinstance(value, MultiValue):
        value = value[0]
    return DSfloat(value, auto_format=True) if isinstance(value, float) else value


def _name_sequence(header: Dataset) -> None:
    """MR's type 1 attributes of a pulse sequence from the enhanced ones (PS3.3 C.8.3.1 and C.8.13.4)."""

    def value(name: str) -> str:
        return str(header.get(name) or "")

    echo = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["GR", "SE"]}.get(value("EchoPulseSequence"), ["RM"])
    flags = {"InversionRecovery": "IR", "EchoPlanarPulseSequence": "EP"}
    variants = {"SegmentedKSpaceTraversal": "PARTIAL", "MagnetizationTransfer": "ON_RESONANCE"}
    variant = [term for (name, on), term in zip(variants.items(), ("SK", "MTC"), strict=True) if value(name) == on]
    if value("SteadyStatePulseSequence") not in ("", "NONE"):
        variant.append("SS")
    if value("Spoiling") not in ("", "NONE"):
        variant.append("SP")
    if value("OversamplingPhase") not in ("", "NONE"):
        variant.append("OSP")
    if "ScanningSequence" not in header:
        header.ScanningSequence = echo + [term for name, term in flags.items() if value(name) == "YES"]
    if "SequenceVariant" not in header:
        header.SequenceVariant = variant or ["NONE"]
    if "InPlanePhaseEncodingDirection" in header:
        # COLUMN there, COL here
        header.InPlanePhaseEncodingDirection = value("InPlanePhaseEncodingDirection")[:3].replace("OTH", "OTHER")


def constant(headers: Sequence[Dataset], name: str) -> object | None:
    """Value of an attribute that all headers share, else None."""
    first = headers[0].get(name)
    return first if all(h.get(name) == first for h in headers[1:]) else None


def check_sources(sources: Sequence[Dataset]) -> None:
    """Refuse headers that no derived series can be made of.

    Raises:
        ValueError: none, several series, patients or studies, neither MR nor CT, or no geometry.
    """
    if not sources:
        raise ValueError("no DICOM headers of the source, which a derived series refers to")
    derived_class(sources[0])
    for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"):
        if len({str(s.get(name)) for s in sources}) > 1:
            raise ValueError(f"the source's files differ in {name}, a derived series has one source: write NIfTI")
    for header in sources:
        if not header.get("ImagePositionPatient") or not header.get("ImageOrientationPatient"):
            raise ValueError("the source does not state its place (ImagePositionPatient): write NIfTI")


def _drop_contact(inner: Dataset, element: DataElement) -> None:
    if element.tag in CONTACT_TAGS:
        del inner[element.tag]


def held_attributes(headers: Sequence[Dataset]) -> Dataset:
    """What headers of a series say of patient, study, equipment and acquisition, as far as it holds of a derived one.

    Held is what stands in the groups 0008, 0010, 0012, 0018, 0032, 0038 and 0040 and is equal in all headers, without
    private elements at any depth. Not held: NOT_HELD; of the groups 0020 and 0028 all but HELD; and all other groups,
    among them overlays, curves, icons, palettes and annotations, whose coordinates are the source's pixels. Acquired
    values such as AcquisitionMatrix, PixelBandwidth or the field of view stay: they tell of the acquisition, which
    is the same. Attributes of type 2 that the source lacks are there, empty.

    """
    held, of_frames = Dataset(), is_frame(headers[0])
    tags = {tag_for_keyword(name) for name in HELD}
    dropped = {tag_for_keyword(name) for name in NOT_HELD}
    for element in headers[0]:
        tag = element.tag
        holds = tag in tags or (tag.group in HELD_GROUPS and tag not in dropped and tag.element)
        holds = holds and not (of_frames and _is_enhanced(tag))
        if tag.group == 0x0040:
            holds = holds and tag < LAST_PROCEDURE_ELEMENT
        if holds and all(tag in h and h[tag] == element for h in headers[1:]):
            # assigning to an attribute changes its element, which is not to be the source's
            held[tag] = copy.deepcopy(element) if element.VR == "SQ" else copy.copy(element)
    held.remove_private_tags()
    held.walk(_drop_contact)
    for name in (*EMPTY[""], *EMPTY[derived_class(headers[0])]):
        if name not in held:
            setattr(held, name, None)
    return held


def compression_history(headers: Sequence[Dataset]) -> Dataset:
    """LossyImageCompression, its ratio and method: what was lost once stays lost, whatever was computed since."""
    history = Dataset()
    lossy = [h for h in headers if h.get("LossyImageCompression", "01" if _lossy_method(h) else None) == "01"]
    if lossy:
        history.LossyImageCompression = "01"
        ratios = [h.LossyImageCompressionRatio for h in lossy if h.get("LossyImageCompressionRatio")]
        methods = [h.get("LossyImageCompressionMethod") or _lossy_method(h) for h in lossy]
        if ratios:
            history.LossyImageCompressionRatio = ratios[0]
        if any(methods):
            history.LossyImageCompressionMethod = next(filter(None, methods))
    elif constant(headers, "LossyImageCompression") == "00":
        history.LossyImageCompression = "00"
    return history


def _lossy_method(header: Dataset) -> str | None:
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    return next((method for uids, method in LOSSY if syntax in uids), None)
