"""2D images as volumes of one slice: what is read, what is written, what is refused."""

import io
import json
import struct

import itk
import numpy as np
import pydicom
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, SecondaryCaptureImageStorage, generate_uid

from medsr_monai.data import (
    LoadLabeld,
    LoadVolumed,
    find_pictures,
    is_picture,
    list_volumes,
    load_picture,
    output_suffix,
    split_volumes,
    write_picture,
)
from medsr_monai.data.dicom import pixels as dicom_pixels
from medsr_monai.recipes import load_volume
from medsr_monai.transforms import MergeChromad, SplitLumad, outer_corners, plane_axis


def save(path, array, mode=None, **options):
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(path, **options)
    return path


def random(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def save_dicom(path, pixels, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.StudyInstanceUID, header.SeriesInstanceUID, header.Modality = generate_uid(), generate_uid(), "US"
    header.Rows, header.Columns = pixels.shape[:2]
    header.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    header.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    header.PlanarConfiguration, header.PixelRepresentation = 0, int(pixels.dtype.kind == "i")
    header.BitsAllocated = header.BitsStored = 8 * pixels.dtype.itemsize
    header.HighBit = header.BitsStored - 1
    header.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        setattr(header, tag, value)
    header.save_as(path, enforce_file_format=True)
    return path


def pixels_of(volume):
    """[rows, columns] or [rows, columns, 3]."""
    return volume.as_tensor()[..., 0].permute(2, 1, 0).squeeze(-1).numpy()


def test_a_picture_is_an_axial_slice_of_columns_and_rows(tmp_path):
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)  # 2 rows of 3
    volume = load_picture(save(tmp_path / "a.png", pixels))
    assert volume.shape == (1, 3, 2, 1) and volume.dtype == torch.float32
    np.testing.assert_array_equal(volume[0, :, :, 0], pixels.T)
    assert plane_axis(volume.affine, "axial") == 2
    # one pixel to the right is 1 mm to the patient's left, one down 1 mm to the back; the corner is the origin
    np.testing.assert_array_equal(volume.affine @ torch.tensor([1.0, 2, 0, 1]).double(), [-1.5, -2.5, 0, 1])
    np.testing.assert_array_equal(volume.affine @ torch.tensor([-0.5, -0.5, 0, 1]).double(), [0, 0, 0, 1])


PIXELS = {
    "grey": random(5, 7),
    "deep grey": random(5, 7, dtype=np.uint16),
    "colour": random(5, 7, 3),
    "deep colour": random(5, 7, 3, dtype=np.uint16),
}
KEPT = [(kind, suffix) for kind in PIXELS for suffix in (".png", ".tif")]


@pytest.mark.parametrize(("kind", "suffix"), KEPT, ids=[f"{k}{s}" for k, s in KEPT])
@pytest.mark.parametrize("dpi", [None, (254.0, 127.0)], ids=["no size", "0.1x0.2 mm"])
def test_what_is_written_is_read_bit_by_bit(tmp_path, kind, suffix, dpi):
    """And by other libraries too; a TIFF or PNG file without a resolution gets none."""
    pixels = PIXELS[kind]
    source, copy = tmp_path / "a.tiff", tmp_path / f"b{suffix}"
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    options = {} if dpi is None else {"resolution": dpi, "resolutionunit": "INCH"}
    tifffile.imwrite(source, pixels, photometric=photometric, **options)
    volume = load_picture(source)
    np.testing.assert_array_equal(pixels_of(volume), pixels)
    write_picture(volume, copy)
    again = load_picture(copy)
    np.testing.assert_array_equal(pixels_of(again), pixels)
    assert again.meta["picture"] == pixels.dtype.name
    assert again.meta["picture_spacing"] == ("none" if dpi is None else "file")
    expected = [-1, -1, 1, 1] if dpi is None else [-0.1, -0.2, 1, 1]
    np.testing.assert_allclose(again.affine.diagonal(), expected, rtol=1e-6)
    with Image.open(copy) as picture:
        assert picture.size == (7, 5)
        if dpi is not None:
            assert picture.info["dpi"] == pytest.approx(dpi, rel=1e-4)
        elif suffix == ".png":
            assert "dpi" not in picture.info
        if kind != "deep colour":  # which Pillow cuts to 8 bits
            np.testing.assert_array_equal(np.array(picture), pixels)
    if suffix == ".tif":
        np.testing.assert_array_equal(tifffile.imread(copy), pixels)


def test_compressed_tiff_of_16_bits_of_colour(tmp_path):
    pixels = PIXELS["deep colour"]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="zlib", predictor=True)
    np.testing.assert_array_equal(pixels_of(load_picture(tmp_path / "a.tif")), pixels)


def test_values_are_rounded_and_clipped(tmp_path):
    volume = load_picture(save(tmp_path / "a.png", np.zeros((1, 4), np.uint8)))
    volume[0, :, 0, 0] = torch.tensor([-3.0, 254.4, 254.6, 300.0])
    write_picture(volume, tmp_path / "b.png")
    assert pixels_of(load_picture(tmp_path / "b.png")).tolist() == [[0, 254, 255, 255]]
    volume.meta["picture"] = "uint16"
    volume[0, :, 0, 0] = torch.tensor([-3.0, 300.2, 65534.7, 1e6])
    write_picture(volume, tmp_path / "c.png")
    assert pixels_of(load_picture(tmp_path / "c.png")).tolist() == [[0, 300, 65535, 65535]]


def test_jpeg(tmp_path):
    smooth = np.add.outer(np.arange(0, 128, 2), np.arange(0, 96, 2)).astype(np.uint8)
    colour = np.stack([smooth, 255 - smooth, smooth // 2], axis=-1)
    for pixels in (smooth, colour):
        volume = load_picture(save(tmp_path / "a.jpg", pixels, quality=95, dpi=(100, 200)))
        assert np.abs(pixels_of(volume) - pixels.astype(float)).max() < 8
        np.testing.assert_allclose(volume.affine.diagonal()[:2], [-0.254, -0.127])
        write_picture(volume, tmp_path / "b.JPEG")
        again = load_picture(tmp_path / "b.JPEG")
        assert np.abs(pixels_of(again) - pixels_of(volume)).max() < 8
        np.testing.assert_allclose(again.affine, volume.affine)
    # a density that the file does not state is not made up
    assert load_picture(save(tmp_path / "c.jpg", smooth)).meta["picture_spacing"] == "none"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_turned_picture_is_read_as_viewers_show_it(tmp_path, suffix):
    pixels = np.zeros((16, 24), np.uint8)
    pixels[:8, 16:] = 255  # its right upper corner
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / f"a{suffix}", exif=exif, dpi=(254, 127))
    volume = load_picture(tmp_path / f"a{suffix}")
    shown = pixels_of(volume)
    assert shown.shape == (24, 16) and shown[16:, 8:].min() > 240 and shown[:16].max() < 15
    # columns lie apart as the stored rows did
    np.testing.assert_allclose(volume.affine.diagonal()[:2], [-0.2, -0.1], rtol=1e-6)


def test_palettes_and_alpha_channels(tmp_path):
    pixels = np.array([[0, 1, 2]], dtype=np.uint8)
    palette = Image.fromarray(pixels, mode="P")
    palette.putpalette([0, 0, 0, 200, 10, 20, 10, 200, 30])
    palette.save(tmp_path / "palette.png")
    shown = pixels_of(load_picture(tmp_path / "palette.png"))
    assert shown.tolist() == [[[0, 0, 0], [200, 10, 20], [10, 200, 30]]]
    load = LoadLabeld(pictures=True, classes=3)
    assert load({"label": tmp_path / "palette.png"})["label"][0, :, 0, 0].tolist() == [0, 1, 2]
    mask = save(tmp_path / "mask.png", np.array([[0, 255]], dtype=np.uint8), "1")
    assert load({"label": mask})["label"][0, :, 0, 0].tolist() == [0, 1]
    opaque = np.dstack([PIXELS["colour"], np.full((5, 7), 255, np.uint8)])
    volume = load_picture(save(tmp_path / "opaque.png", opaque))
    np.testing.assert_array_equal(pixels_of(volume), PIXELS["colour"])
    grey = np.dstack([PIXELS["grey"], np.full((5, 7), 255, np.uint8)])
    np.testing.assert_array_equal(pixels_of(load_picture(save(tmp_path / "la.png", grey))), PIXELS["grey"])


@pytest.mark.parametrize("turned", range(1, 9))
def test_all_orientations(tmp_path, turned):
    pixels = random(6, 9)
    exif = Image.Exif()
    exif[274] = turned
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        expected = np.array(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(pixels_of(load_picture(tmp_path / "a.png")), expected)


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jp2", ".webp"])
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_other_formats_that_are_read(tmp_path, suffix, kind):
    """Their pixels have no size that is worth anything; what is made of them is a PNG picture."""
    pixels = PIXELS[kind] // 16 * 16 if suffix == ".gif" else PIXELS[kind]
    options = {".webp": {"lossless": True, "quality": 100}, ".bmp": {"dpi": (96, 96)}}.get(suffix, {})
    path = save(tmp_path / f"a{suffix}", pixels, **options)
    assert is_picture(path) and find_pictures(tmp_path) == [str(path)] and output_suffix(path) == ".png"
    volume = load_picture(path)
    expected = np.stack([pixels] * 3, -1) if suffix == ".webp" and kind == "grey" else pixels  # WebP knows no grey
    np.testing.assert_array_equal(pixels_of(volume), expected)
    assert (volume.meta["picture"], volume.meta["picture_spacing"]) == ("uint8", "none")
    write_picture(volume, tmp_path / "b.png")
    np.testing.assert_array_equal(pixels_of(load_picture(tmp_path / "b.png")), expected)


def test_jpeg2000_of_16_bits_of_grey(tmp_path):
    path = save(tmp_path / "a.jp2", PIXELS["deep grey"])
    np.testing.assert_array_equal(pixels_of(load_picture(path)), PIXELS["deep grey"])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mpo"])
def test_the_first_of_several_images(tmp_path, suffix, caplog):
    frames = [Image.fromarray(np.full((8, 8), 200 * (n == 0) + 10 * n, np.uint8)) for n in range(3)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(pixels_of(load_picture(tmp_path / f"a{suffix}")) - 200).max() < 3
    assert f"a{suffix}: 3 images in one file, the first is read and the others are left out" in caplog.text


@pytest.mark.parametrize(
    ("kind", "density"), [(2, b"300\x02"), (2, b"inf\0"), (1, b"\0\1\2\3"), (4, bytes(4)), (5, b"\xff" * 4)]
)
def test_damaged_exif_leaves_the_size_of_pixels_unknown(tmp_path, kind, density):
    """A resolution that is text, infinite, four numbers, nothing, or lies behind the end; an unknown orientation."""
    count = 1 if kind in (4, 5) else 4
    entries = [(274, 3, 1, b"\x4d\0\0\0"), (282, kind, count, density), (283, kind, count, density)]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries) + 1)
    exif += b"".join(struct.pack("<HHI4s", *entry) for entry in [*entries, (296, 3, 1, b"\2\0\0\0")]) + bytes(4)
    picture = Image.fromarray(np.tile(np.arange(16, dtype=np.uint8), (16, 1)) * 4)
    picture.save(tmp_path / "a.png", exif=exif)
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    for name in ("a.png", "a.jpg"):
        volume = load_picture(tmp_path / name)
        assert volume.meta["picture_spacing"] == "none" and np.abs(pixels_of(volume) - np.array(picture)).max() < 9


@pytest.mark.parametrize("compression", ["zlib", None])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiles_and_planes_of_16_bits_of_colour(tmp_path, compression, planar, capfd):
    pixels = random(40, 50, 3, dtype=np.uint16)
    layout = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0)
    for tile in (None, (16, 32)):
        options = {"compression": compression, "planarconfig": planar, "tile": tile}
        tifffile.imwrite(tmp_path / "a.tif", layout, photometric="rgb", **options)
        volume = load_picture(tmp_path / "a.tif")
        np.testing.assert_array_equal(pixels_of(volume), pixels)
        assert volume.meta["picture"] == "uint16"
    assert "Data loss" not in capfd.readouterr().err


def test_tiles_that_no_library_reads(tmp_path, monkeypatch, capfd):
    """LZW, for which tifffile needs another package, while ITK would give 8 bits."""
    tifffile.imwrite(tmp_path / "a.tif", random(40, 50, 3, dtype=np.uint16), photometric="rgb", tile=(16, 16))

    def lacks_codec(path):
        raise ValueError("requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile, "imread", lacks_codec)
    with pytest.raises(ValueError, match=r"16 bits of colour in tiles .* save it uncompressed"):
        load_picture(tmp_path / "a.tif")
    assert "Data loss" not in capfd.readouterr().err


def deep_jpeg2000(path, pixels, bits):
    openjpeg = pytest.importorskip("openjpeg.utils", reason='needs pip install "medsr_monai[test]"')
    space = 1 if pixels.ndim == 3 else 2
    code = openjpeg.encode_array(pixels, bits_stored=bits, photometric_interpretation=space, codec_format=1)
    path.write_bytes(code)


def test_12_bits_of_jpeg2000(tmp_path):
    pixels = random(64, 64, dtype=np.uint16) // 16
    deep_jpeg2000(tmp_path / "a.jp2", pixels, 12)
    np.testing.assert_array_equal(pixels_of(load_picture(tmp_path / "a.jp2")), pixels)


def several_pages(path):
    tifffile.imwrite(path, random(3, 8, 8), photometric="minisblack")


def animation(path):
    frames = [Image.fromarray(random(8, 8, seed=s)) for s in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


REFUSED = {
    "cmyk.jpg": (lambda p: save(p, random(8, 8, 3), "CMYK"), r"format CMYK, expected grey or RGB of 8 or 16 bits"),
    "bilevel.png": (lambda p: save(p, random(8, 8), "1"), r"1 bit a pixel, which is a mask or a drawing"),
    "bilevel.tif": (lambda p: save(p, random(8, 8), "1", compression="group4"), r"1 bit a pixel"),
    "deep_colour.jp2": (lambda p: deep_jpeg2000(p, random(64, 64, 3, dtype=np.uint16), 16), r"16 bits in the format"),
    "clear.gif": (lambda p: save(p, random(8, 8, 4) // 128 * 128), r"has transparent pixels"),
    "rgba.png": (lambda p: save(p, random(8, 8, 4)), r"has transparent pixels: flatten it"),
    "key.png": (lambda p: save(p, random(8, 8), transparency=3), r"has transparent pixels: flatten it"),
    "deep_rgba.tif": (
        lambda p: tifffile.imwrite(p, random(8, 8, 4, dtype=np.uint16), photometric="rgb", extrasamples=[2]),
        r"16 bits in the format RGBA: save it as grey or RGB",
    ),
    "pages.tif": (several_pages, r"3 pages or frames in one file"),
    "animation.png": (animation, r"4 pages or frames in one file"),
    "float.tif": (lambda p: save(p, np.eye(8, dtype=np.float32)), r"signed, 32 bits or floating"),
    "int32.tif": (lambda p: save(p, np.eye(8, dtype=np.int32)), r"signed, 32 bits or floating"),
    "signed.tif": (
        lambda p: tifffile.imwrite(p, np.eye(8).astype(np.int16), photometric="minisblack"),
        r"signed, 32 bits or floating",
    ),
    "white.tif": (
        lambda p: tifffile.imwrite(p, random(8, 8, dtype=np.uint16), photometric="miniswhite"),
        r"white is zero",
    ),
    "turned.tif": (
        lambda p: tifffile.imwrite(p, random(8, 6), photometric="minisblack", extratags=[(274, 3, 1, 6, True)]),
        r"has an orientation tag",
    ),
    "text.png": (lambda p: p.write_text("no picture"), r"text.png: cannot be read as a picture: damaged"),
    "empty.tif": (lambda p: p.write_bytes(b""), r"cannot be read as a picture: damaged"),
    "cut.png": (
        lambda p: p.write_bytes(save(p, random(64, 64)).read_bytes()[:2000]),
        r"cut.png: cannot be read as a picture",
    ),
    "cine.dcm": (
        lambda p: save_dicom(p, random(2, 8, 8), Rows=8, Columns=8, SamplesPerPixel=1, NumberOfFrames=2,
                             PhotometricInterpretation="MONOCHROME2"),
        r"DICOM with 2 frames",
    ),
    "palette.dcm": (
        lambda p: save_dicom(p, random(8, 8), PhotometricInterpretation="PALETTE COLOR"),
        r"DICOM with a colour palette",
    ),
    "short.dcm": (lambda p: save_dicom(p, random(8, 8), Rows=99), r"cannot be read to its end"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    make, reason = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=reason) as error:
        load_picture(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_what_else_is_refused(tmp_path):
    pixels = random(8, 8)
    colour = save(tmp_path / "colour.png", pixels, "RGB")
    with pytest.raises(ValueError, match=r"pixels of the format RGB, of labels expected one of 1, L"):
        LoadLabeld(pictures=True)({"label": colour})
    with pytest.raises(FileNotFoundError, match=r"none.png: no such file"):
        load_picture(tmp_path / "none.png")
    # a picture holds no geometry, so whoever needs one must not get it unasked
    grey = save(tmp_path / "grey.png", pixels)
    with pytest.raises(ValueError, match=r"not a volume file"):
        LoadVolumed("image")({"image": grey})
    with pytest.raises(ValueError, match=r"frame 2 asked for, a picture has frame 0 only"):
        LoadVolumed("image", frame=2, pictures=True)({"image": grey})
    deep = load_picture(save(tmp_path / "deep.png", PIXELS["deep grey"]))
    with pytest.raises(ValueError, match=r"the input has 16 bits, JPEG holds 8: name the output .png or .tif"):
        write_picture(deep, tmp_path / "deep.jpg")
    with pytest.raises(ValueError, match=r"expected a name that ends in .png"):
        write_picture(deep, tmp_path / "deep.bmp")
    del deep.meta["picture"]
    with pytest.raises(ValueError, match=r"a volume cannot be written as a picture"):
        write_picture(deep, tmp_path / "deep.tif")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["colour.png", "deep.png", "grey.png"]


def test_single_dicom_images(tmp_path):
    deep = random(6, 8, dtype=np.uint16)
    volume = load_picture(save_dicom(tmp_path / "a", deep, PixelSpacing=[0.3, 0.2], RescaleSlope=2, RescaleIntercept=9))
    np.testing.assert_array_equal(pixels_of(volume), deep)  # as stored
    assert volume.meta["picture"] == "uint16"
    np.testing.assert_allclose(volume.affine.diagonal(), [-0.2, -0.3, 1, 1])
    colour = random(6, 8, 3)
    volume = load_picture(save_dicom(tmp_path / "b", colour))
    np.testing.assert_array_equal(pixels_of(volume), colour)
    assert (volume.meta["picture"], volume.meta["picture_spacing"]) == ("uint8", "none")
    # low values are bright
    inverse = load_picture(
        save_dicom(tmp_path / "c", deep // 16, PhotometricInterpretation="MONOCHROME1", BitsStored=12)
    )
    np.testing.assert_array_equal(pixels_of(inverse), 4095 - deep // 16)
    signed = load_picture(save_dicom(tmp_path / "d", np.array([[-1024, 7]], np.int16)))
    assert pixels_of(signed).tolist() == [[-1024, 7]]
    with pytest.raises(ValueError, match=r"negative values, which pictures do not hold: name an output .nii.gz"):
        write_picture(signed, tmp_path / "d.png")
    assert is_picture(tmp_path / "a") and not is_picture(tmp_path / "none.dcm")


def by_itk(path):
    """The picture, as where pydicom has no decoder for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom_pixels, "_pydicom_decodes", lambda syntax: False)
        return load_picture(path)


@pytest.mark.parametrize("compression", ["JPEG", "JPEG2000"])
@pytest.mark.parametrize("kind", ["grey", "deep grey", "colour"])
def test_compressed_dicom_images_without_pydicoms_decoders(tmp_path, kind, compression):
    """ITK decodes them, as it does for volumes."""
    pixels = np.tile(PIXELS[kind], (8, 8) if PIXELS[kind].ndim == 2 else (8, 8, 1))
    image_io = itk.GDCMImageIO.New()
    image_io.SetCompressionType(getattr(itk.GDCMImageIOEnums, f"Compression_{compression}"))
    image = itk.image_from_array(pixels, is_vector=pixels.ndim == 3)
    itk.imwrite(image, str(tmp_path / "a.dcm"), imageio=image_io, compression=True)
    assert pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(pixels_of(by_itk(tmp_path / "a.dcm")), pixels)


def test_jpeg_colours_of_dicom_images_without_pydicoms_decoders(tmp_path):
    smooth = np.add.outer(np.arange(0, 128, 2), np.arange(0, 96, 2)).astype(np.uint8)
    colour = np.stack([smooth, 255 - smooth, smooth // 2], axis=-1)
    code = io.BytesIO()
    Image.fromarray(colour).save(code, "JPEG", quality=95)
    path = save_dicom(tmp_path / "a.dcm", colour, PhotometricInterpretation="YBR_FULL_422")
    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    header.PixelData = encapsulate([code.getvalue()])
    header.save_as(path, enforce_file_format=True)
    for volume in (load_picture(path), by_itk(path)):
        assert np.abs(pixels_of(volume) - colour.astype(float)).max() < 8


def test_a_dicom_file_as_a_volume_of_one_slice(tmp_path):
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "SliceThickness": 5}
    pixels = random(6, 8, dtype=np.uint16)
    path = save_dicom(tmp_path / "a.dcm", pixels, PixelSpacing=[0.3, 0.2], RescaleSlope=2, RescaleIntercept=9, **place)
    volume = LoadVolumed("image").load(path)
    assert volume.shape == (1, 8, 6, 1)
    np.testing.assert_array_equal(volume[0, :, :, 0], 2.0 * pixels.T + 9)
    # DICOM counts towards left and posterior; columns run to the left, rows down
    np.testing.assert_allclose(volume.affine[:3, 3], [-1, -2, 3], atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, :2].T, [[-0.2, 0, 0], [0, 0, -0.3]], atol=1e-6)
    with pytest.raises(ValueError, match=r"b.dcm: DICOM without ImagePositionPatient"):
        LoadVolumed("image").load(save_dicom(tmp_path / "b.dcm", pixels))


def test_pictures_of_a_folder(tmp_path):
    for name in ("b.PNG", "a/x.jpg", ".hidden.png", "c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, random(4, 4))
    (tmp_path / "notes.txt").write_text("text")
    save_dicom(tmp_path / "us", random(4, 4))
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}
    (tmp_path / "series").mkdir()
    for number in range(2):  # slices of a volume are no pictures of their own
        save_dicom(tmp_path / "series" / f"{number}.dcm", random(4, 4), **place)
    expected = [str(tmp_path / name) for name in ("a/x.jpg", "b.PNG", "c.tif", "us")]
    assert find_pictures(tmp_path) == expected
    (tmp_path / "us").unlink()
    # beside a series, pictures are figures
    assert list_volumes(tmp_path) == [{"image": str(tmp_path)}]
    (tmp_path / "series").rename(tmp_path / ".series")
    assert [item["image"] for item in list_volumes(tmp_path)] == expected[:3]
    (tmp_path / ".series").rename(tmp_path / "series")
    # beside volumes, pictures are figures
    volume = tmp_path / "volume.nii.gz"
    volume.write_bytes(b"")
    assert list_volumes(tmp_path) == [{"image": str(volume)}]
    with pytest.raises(FileNotFoundError, match=r"no volume \(.nii.*\) and no picture \(.png"):
        list_volumes((tmp_path / "empty").mkdir() or tmp_path / "empty")
    (tmp_path / "empty" / "series.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="in this folder, give its zip file itself"):
        list_volumes(tmp_path / "empty")
    # DICOM images without a place in the patient
    (tmp_path / "us").mkdir()
    names = [str(save_dicom(tmp_path / "us" / name, random(4, 4))) for name in ("1", "2")]
    assert [item["image"] for item in list_volumes(tmp_path / "us")] == names
    assert list_volumes(tmp_path / "series") == [{"image": str(tmp_path / "series")}]
    assert [output_suffix(n) for n in ("a.jpg", "a.PNG", "a.tiff", "a", "a.dcm")] == [
        ".png",
        ".png",
        ".tiff",
        ".png",
        ".png",
    ]


def test_a_datalist_need_not_name_the_only_slice(tmp_path):
    training = [{"image": "a.png", "modality": "US"}, {"image": "b.nii.gz"}]
    content = {"training": training, "validation": [{"image": "c.jpg"}]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    split = split_volumes(tmp_path, tmp_path / "list.json")
    assert split["training"][0]["slices"] == split["validation"][0]["slices"] == {"axial": [0]}
    assert split["training"][0]["modality"] == "US" and "slices" not in split["training"][1]


def test_luma_and_chroma(tmp_path):
    colour = random(12, 8, 3)
    item = SplitLumad()({"image": load_picture(save(tmp_path / "colour.png", colour))})
    luma = colour @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(pixels_of(item["image"]), luma, atol=1e-4)
    assert item["image"].meta["picture"] == "uint8"
    merged = MergeChromad()(item | {"pred": item["image"]})["pred"]
    np.testing.assert_allclose(pixels_of(merged), colour, atol=1e-4)
    # enlarged chroma is cubic: with cubic luma, each channel is
    channels = torch.from_numpy(colour.transpose(2, 0, 1)[None].astype(np.float32))
    cubic = torch.nn.functional.interpolate(channels, scale_factor=4, mode="bicubic")[0]
    large = torch.nn.functional.interpolate(
        torch.from_numpy(luma[None, None].astype(np.float32)), scale_factor=4, mode="bicubic"
    )
    merged = MergeChromad()(item | {"pred": large[0].mT[..., None]})["pred"]
    np.testing.assert_allclose(merged[..., 0].mT, cubic, atol=1e-3)
    grey = load_picture(save(tmp_path / "grey.png", PIXELS["grey"]))
    assert SplitLumad()({"image": grey}).keys() == {"image"}
    # three MR contrasts are no colours
    contrasts = grey.repeat(3, 1, 1, 1)
    del contrasts.meta["picture"]
    assert SplitLumad()({"image": contrasts})["image"].shape[0] == 3


def test_image_and_label_of_an_item(tmp_path):
    image = save(tmp_path / "image.png", np.arange(20, 120, dtype=np.uint8).reshape(10, 10))
    label = save(tmp_path / "label.png", np.where(np.eye(10) > 0, 255, 0).astype(np.uint8))
    item = {"image": image, "label": label, "label_map": {"255": 1}}
    load = load_volume(intensity="minmax", label_key="label", classes=2)
    item = load(item)
    assert item["image"].min() == 0 and item["image"].max() == 1
    assert torch.equal(item["label"].as_tensor()[0, :, :, 0], torch.eye(10))
    with pytest.raises(RuntimeError) as error:
        load({"image": image, "label": label})
    assert "label.png: labels 255, expected 0 to 1" in str(error.value.__cause__)


def test_corners_of_a_picture_stay(tmp_path):
    """Pixels of a quarter of the size on four times as many of them: the outer size is the same."""
    volume = load_picture(save(tmp_path / "a.png", random(6, 8), dpi=(254, 127)))
    before = outer_corners(volume.affine, volume.shape[1:])
    np.testing.assert_allclose(np.ptp(before, axis=0), [0.8, 1.2, 1], rtol=1e-4)
