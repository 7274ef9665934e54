"""2D images on disk, PNG, TIFF, JPEG and others or single DICOM files: read as volumes of one slice, and written."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from pathlib import Path

import itk
import numpy as np
import tifffile
import torch
from monai.data import MetaTensor
from PIL import Image

from medsr_monai.atomic import written_atomically
from medsr_monai.data.dicom.images import is_dicom_file, read_dicom_image
from medsr_monai.data.dicom.slices import TooLargeError, check_unpacked
from medsr_monai.suffixes import PICTURE_SUFFIXES, QUALITY_SUFFIX, READ_PICTURE_SUFFIXES
from medsr_monai.transforms.geometry import spacing

__all__ = [
    "PICTURE_SUFFIXES",
    "QUALITY_SUFFIX",
    "check_format",
    "is_picture",
    "load_picture",
    "output_suffix",
    "stored_values",
    "with_slices",
    "write_picture",
]

logger = logging.getLogger(__name__)

FIRST_ONLY = ("GIF", "WEBP", "MPO")
"""Pillow's names of formats of which the first image is read; the others are frames of a film, or previews."""
CODESTREAM = b"\xff\x4f\xff\x51"
"""The bytes with which the part of a JPEG 2000 file begins that states how many bits its pixels have."""
DEPTHS = {"uint8": 255, "uint16": 65535}
GREY_MODES = ("L", "I;16", "I;16B", "I;16L")
ALPHA_MODES = {"LA": "L", "RGBA": "RGB"}
LABEL_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
"""Pillow's pixel formats of label maps. Of a palette the numbers are the labels, not the colours."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns a picture upright, by its EXIF orientation."""
INCH = 25.4
FLOAT = 4
"""Bytes of a value as it is computed with."""
Image.MAX_IMAGE_PIXELS = None  # what may be unpacked is checked here, by the memory that there is
ORIENTATION_TAG, X_TAG, Y_TAG, UNIT_TAG, BITS_TAG, PHOTOMETRIC_TAG, FORMAT_TAG = 274, 282, 283, 296, 258, 262, 339
PLANAR_TAG, TILE_TAG = 284, 322
JPEG_DENSITY = 65535
"""The largest number of dots per inch that a JPEG file holds."""


def is_picture(path: str | os.PathLike) -> bool:
    """Say whether a path has the suffix of a picture, or is a DICOM file."""
    return Path(path).name.lower().endswith(READ_PICTURE_SUFFIXES) or is_dicom_file(path)


def output_suffix(path: str | os.PathLike) -> str:
    """Give the suffix, of a format without loss, of a picture that is made of the picture ``path``."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in (".png", ".tif", ".tiff") else ".png"


def with_slices(item: dict) -> dict:
    """Add the only slice to an item of a data list whose ``image`` is a picture, if the item names no slices."""
    image = item["image"]
    if is_picture(image[0] if isinstance(image, (list, tuple)) else image):
        return {"slices": {"axial": [0]}} | item
    return item


def load_picture(path: str | os.PathLike, label: bool = False) -> MetaTensor:
    """Read a picture as a float32 volume [C, W, H, 1]: columns, rows, one slice; C is 3 for colour, else 1.

    It counts as an axial slice as radiologists look at it, the patient's left on the right and posterior below, its
    left upper corner at the origin, so that a super-resolved picture lies where its input lay. Pixels are as large as
    the file says (DICOM PixelSpacing, TIFF resolution, PNG pHYs, JPEG density), else 1 mm, as where a file says what
    cannot be read and in BMP files, whose writers state that of a screen; the slice is 1 mm thick. A turned picture
    (EXIF orientation) is read as viewers show it; a palette's colours are read, and an alpha channel without
    transparency is dropped. Of a film (GIF, WebP) and of a photo with a preview (MPO) the first image is read. Values
    are the file's, 0 to 255 or 65535; of a DICOM file those stored, without its rescale slope, and with MONOCHROME1
    turned to bright on dark.

    The volume's metadata keep ``picture``, the type of its pixels, and ``picture_spacing``, "file" or "none", for
    :func:`write_picture`.

    Args:
        path: the file.
        label: read a label map: bilevel pictures and the numbers of a palette are labels, colour is refused.

    Raises:
        FileNotFoundError, ValueError: no such file, not a picture, several pages in one file, transparency, or other
            pixels than grey or colour of 8 or 16 bits.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.name.lower().endswith(READ_PICTURE_SUFFIXES):
        pixels, edges = _read(path, label)
    else:
        pixels, edges = read_dicom_image(path)
    channels = torch.from_numpy(pixels.astype(np.float32)).reshape(*pixels.shape[:2], -1).permute(2, 1, 0)
    width, height = edges or (1.0, 1.0)
    affine = torch.diag(torch.tensor([-width, -height, 1.0, 1.0], dtype=torch.float64))
    affine[:2, 3] = -torch.tensor([width, height], dtype=torch.float64) / 2
    meta = {"filename_or_obj": str(path), "spatial_shape": np.array((*channels.shape[1:], 1))}
    meta |= {"picture": pixels.dtype.name, "picture_spacing": "none" if edges is None else "file"}
    meta["original_affine"] = affine.numpy().copy()
    return MetaTensor(channels[..., None].contiguous(), affine=affine, meta=meta)


def _read(path: Path, label: bool) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Pixels [rows, columns] or [rows, columns, 3] and their width and height in mm, if the file states them."""
    try:
        with Image.open(path) as picture:
            check_unpacked(picture.width * picture.height * len(picture.getbands()) * FLOAT)
            frames = getattr(picture, "n_frames", 1)
            deep = _is_deep_colour(picture)
            surplus = 16 - _jpeg2000_bits(picture) if (picture.format, picture.mode) == ("JPEG2000", "I;16") else 0
            mode, kind, info = picture.mode, picture.format, dict(picture.info)
            tags = dict(picture.tag_v2) if kind == "TIFF" else {}
            exif = _exif(picture)
            turned = exif.get(ORIENTATION_TAG) if exif.get(ORIENTATION_TAG) in TURNS else 1
            edges = _edges(picture, tags or exif)
            pixels = None
            if (frames == 1 or kind in FIRST_ONLY) and not deep:
                picture.load()
                pixels = picture.transpose(TURNS[turned]) if turned != 1 and kind != "TIFF" else picture.copy()
    except TooLargeError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{path}: cannot be read as a picture: damaged or misnamed?") from error
    if frames > 1 and kind in FIRST_ONLY:
        logger.warning("%s: %d images in one file, the first is read and the others are left out", path, frames)
    elif frames > 1:
        raise ValueError(f"{path}: {frames} pages or frames in one file: save each as a picture of its own")
    if turned != 1 and (deep or kind == "TIFF"):  # of TIFF files even Pillow's versions differ
        raise ValueError(f"{path}: has an orientation tag, which programs read differently: save it upright first")
    if label:
        if mode not in LABEL_MODES:
            raise ValueError(
                f"{path}: pixels of the format {mode}, of labels expected one of {', '.join(LABEL_MODES)}: convert it "
                "first"
            )
        return np.array(pixels), edges
    if mode == "1":
        raise ValueError(f"{path}: 1 bit a pixel, which is a mask or a drawing: convert it to grey if it is an image")
    if "transparency" in info and (kind != "GIF" or pixels.convert("RGBA").getchannel("A").getextrema()[0] < 255):
        raise ValueError(f"{path}: has transparent pixels: flatten it onto a background first")
    if {2, 3} & {*np.atleast_1d(tags.get(FORMAT_TAG, 1)).tolist()} or (mode == "I" and kind == "TIFF") or mode == "F":
        raise ValueError(f"{path}: pixels are signed, 32 bits or floating: expected 8 or 16 bits, or save it as NIfTI")
    if tags.get(PHOTOMETRIC_TAG) == 0 and mode != "L":
        raise ValueError(f"{path}: white is zero in this file of 16 bits: invert it first")
    if deep:
        if mode != "RGB" or kind == "JPEG2000":
            raise ValueError(
                f"{path}: 16 bits in the format {mode}: save it as grey or RGB TIFF, without an alpha channel"
            )
        pixels = _read_deep_tiff(path, tags) if kind == "TIFF" else _read_deep_colour(path)
    elif mode in ALPHA_MODES:
        if pixels.getchannel("A").getextrema()[0] < 255:
            raise ValueError(f"{path}: has transparent pixels: flatten it onto a background first")
        pixels = np.array(pixels.convert(ALPHA_MODES[mode]))
    elif mode == "P":
        pixels = np.array(pixels.convert("RGB"))
        if kind in ("BMP", "GIF") and (pixels == pixels[..., :1]).all():  # which have no other grey
            pixels = pixels[..., 0]
    elif mode in GREY_MODES or mode == "RGB":
        pixels = np.array(pixels) >> surplus
    elif mode == "I":  # a PNG file of 16 bits, to older versions of Pillow
        pixels = np.array(pixels).astype(np.uint16)
    else:
        raise ValueError(f"{path}: pixels of the format {mode}, expected grey or RGB of 8 or 16 bits: convert it first")
    return pixels.astype(pixels.dtype.newbyteorder("=")), (edges[1], edges[0]) if edges and turned >= 5 else edges


def _is_deep_colour(picture: Image.Image) -> bool:
    """Whether Pillow would cut several channels of 16 bits to 8; asked before the pixels are loaded."""
    if picture.format == "TIFF":
        return max(np.atleast_1d(picture.tag_v2.get(BITS_TAG, 1))) > 8 and len(picture.getbands()) > 1
    if picture.format == "JPEG2000":
        return len(picture.getbands()) > 1 and _jpeg2000_bits(picture) > 8
    return picture.format == "PNG" and len(picture.getbands()) > 1 and ";16" in str(picture.tile[0][3])


def _jpeg2000_bits(picture: Image.Image) -> int:
    """Bits of a pixel; Pillow cuts those of colours to 8, and makes of 9 to 15 bits of grey 16."""
    picture.fp.seek(0)
    stated = picture.fp.read().partition(CODESTREAM)[2]
    if stated[38] & 0x80:
        raise ValueError("signed pixels")
    return stated[38] + 1  # behind length, capabilities, eight sizes and the number of components


def _exif(picture: Image.Image) -> dict[int, object]:
    """Tags of a picture's EXIF, none where they are damaged: they say nothing of the pixels' values."""
    try:
        return dict(picture.getexif())
    except Exception:  # Pillow raises many kinds
        return {}


def _edges(picture: Image.Image, tags: dict) -> tuple[float, float] | None:
    """Width and height of a pixel in mm. Pillow's own "dpi" of a JPEG file may be a guess, of a BMP file a screen's."""
    if picture.format == "PNG":
        unit, density = 2, picture.info.get("dpi")
    elif picture.info.get("jfif_unit") in (1, 2):
        unit, density = picture.info["jfif_unit"] + 1, picture.info["jfif_density"]
    else:
        unit = tags.get(UNIT_TAG, 2)
        density = (tags[X_TAG], tags[Y_TAG]) if X_TAG in tags and Y_TAG in tags else None
    try:
        density = [float(d) for d in density]
    except (TypeError, ValueError, ZeroDivisionError):  # none, or damaged
        return None
    if unit not in (2, 3) or not all(np.isfinite(d) and d > 0 for d in density):
        return None
    length = INCH if unit == 2 else 10.0
    return length / density[0], length / density[1]


def _read_deep_tiff(path: Path, tags: dict) -> np.ndarray:
    """Read by tifffile, or by ITK where tifffile lacks the codec; ITK cuts tiles and planes of colours to 8 bits."""
    try:
        pixels = tifffile.imread(path)
    except Exception as error:  # tifffile and its codecs raise many kinds
        if TILE_TAG in tags or tags.get(PLANAR_TAG, 1) != 1:
            raise ValueError(
                f"{path}: 16 bits of colour in tiles or planes that cannot be read ({error}): save it uncompressed"
            ) from error
        return _read_deep_colour(path)
    pixels = np.moveaxis(pixels, 0, -1) if tags.get(PLANAR_TAG, 1) == 2 else pixels
    if pixels.dtype.kind != "u" or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"{path}: pixels are {pixels.dtype} {pixels.shape}, expected RGB of 16 bits: convert it first")
    return pixels


def _read_deep_colour(path: Path) -> np.ndarray:
    try:
        reader = itk.ImageFileReader[itk.VectorImage[itk.US, 2]].New(FileName=str(path))
        reader.Update()
        return itk.array_from_image(reader.GetOutput())
    except Exception as error:  # ITK raises many kinds
        raise ValueError(f"{path}: cannot be read as a picture: damaged or misnamed?") from error


def write_picture(volume: MetaTensor, path: str | os.PathLike) -> None:
    """Write a volume of one slice [C, W, H, 1] that was read by :func:`load_picture`, as the path's suffix says.

    Pixels are rounded and clipped to the type that the input's pixels had. Their size is written if the input stated
    its own. Of JPEG files the quality is 95, without subsampling of colours. Nothing else of the input's file, such as
    names or colour profiles, is handed on.

    Raises:
        ValueError: not from a picture; values that the format cannot hold; an unknown suffix.
    """
    path = Path(path)
    check_format(path, volume)
    kind = volume.meta["picture"]
    array = stored_values(volume).as_tensor()[..., 0].permute(2, 1, 0).cpu().numpy().astype(kind)
    array = np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array)
    dpi = None
    if volume.meta["picture_spacing"] == "file":
        dpi = tuple(float(INCH / edge) for edge in spacing(volume.affine)[:2])
    suffix = path.suffix.lower()
    with written_atomically(path) as partial:
        if suffix in (".tif", ".tiff"):
            photometric = "rgb" if array.ndim == 3 else "minisblack"
            resolution = {} if dpi is None else {"resolution": dpi, "resolutionunit": "INCH"}
            tifffile.imwrite(
                partial, array, photometric=photometric, compression="zlib", metadata=None, software=False, **resolution
            )
        elif suffix == ".png" and kind == "uint16" and array.ndim == 3:
            _write_deep_colour_png(array, partial, dpi)
        else:
            options = {} if dpi is None or (suffix != ".png" and max(dpi) > JPEG_DENSITY) else {"dpi": dpi}
            if suffix != ".png":
                options |= {"quality": 95, "subsampling": 0}
            Image.fromarray(array).save(partial, **options)


def stored_values(volume: MetaTensor) -> MetaTensor:
    """Round and clip a volume of one slice, read by :func:`load_picture`, to the values that a file of its kind holds.

    Values of pixels that may be negative, which only NIfTI holds, are left as they are.
    """
    depth = DEPTHS.get(volume.meta["picture"])
    return volume if depth is None else volume.round().clamp(0, depth)


def check_format(path: str | os.PathLike, volume: MetaTensor) -> None:
    """Refuse a picture that the format of ``path`` cannot hold, best before it is super-resolved.

    Raises:
        ValueError: see :func:`write_picture`.
    """
    path = Path(path)
    kind = volume.meta.get("picture")
    if kind is None:
        raise ValueError(f"{path}: a volume cannot be written as a picture, give a name that ends in .nii.gz")
    suffix = path.suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(PICTURE_SUFFIXES)}")
    if kind not in DEPTHS:
        raise ValueError(f"{path}: pixels have negative values, which pictures do not hold: name an output .nii.gz")
    if kind == "uint16" and suffix in (".jpg", ".jpeg"):
        raise ValueError(f"{path}: the input has 16 bits, JPEG holds 8: name the output .png or .tif")


def _write_deep_colour_png(array: np.ndarray, path: Path, dpi: tuple[float, float] | None) -> None:
    """Write by ITK, since Pillow writes 8 bits of colour; ITK leaves out the chunk with the pixels' size."""
    image = itk.image_from_array(array, is_vector=True)
    writer = itk.ImageFileWriter[type(image)].New(image, FileName=str(path), UseCompression=True)
    writer.Update()
    if dpi is not None:
        per_metre = [round(1000 * density / INCH) for density in dpi]
        chunk = b"pHYs" + struct.pack(">IIB", *per_metre, 1)
        chunk = struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = path.read_bytes()
        header = 8 + 25  # signature and IHDR, which comes first
        path.write_bytes(data[:header] + chunk + data[header:])
