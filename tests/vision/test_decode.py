from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from saccade.errors import InputError, PictureError
from saccade.vision import exif, jpeg
from saccade.vision.decode import Decoder

NOT_PICTURES = {
    "img_bad_crc.png": "checksum",
    "img_bomb_40000x40000_1bit.png": "1600000000.*--max-pixels",
    "img_bomb_8000x8000_rgb.png": "50000000 pixels.*64000000.*--max-pixels",
    "img_html_named.png": "HTML",
    "img_no_eoi_truncated.jpg": "JPEG",
    "img_sof_claims_65500x65500.jpg": "4290250000.*--max-pixels",
    "img_svg.svg": "SVG",
    "img_text_named.jpg": "text",
    "img_truncated_50pct.png": "ends at byte",
    "img_truncated_header.jpg": "header",
    "img_zero_byte.jpg": "empty",
}
ORIENTATION = 0x0112


@pytest.fixture
def pixels(rng):
    """(30, 40, 3) uint8, smooth, no symmetry."""
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(small, (40, 30), interpolation=cv2.INTER_CUBIC)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff_rgb16(picture: np.ndarray, orientation: int) -> bytes:
    h, w, _ = picture.shape
    body = picture.astype("<u2").tobytes()
    tags = [(256, 3, 1, w), (257, 3, 1, h), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 200), (274, 3, 1, orientation), (277, 3, 1, 3), (278, 3, 1, h)]
    tags += [(279, 4, 1, len(body))]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    head += b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return (head + struct.pack("<HHH", 16, 16, 16)).ljust(200, b"\0") + body


@pytest.mark.shared
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_every_real_picture_equals_pillow(shared, color):
    decoder = Decoder(color)
    files = [f for f in sorted((shared / "images").iterdir()) if f.suffix != ".json"]
    files += [
        shared / "odd" / name for name in ("img_jpeg_bytes_named.png", "img_png_bytes_named.jpg")
    ]
    assert len(files) > 25
    for file in files:
        got = decoder.read(file)
        assert decoder.source_wh == got.shape[1::-1]
        if "16" in file.name:
            continue
        with Image.open(file) as image:
            stored = np.asarray(image.convert("RGB"))
            want = exif.apply(stored, image.getexif().get(ORIENTATION, 1))
        if color == "gray":
            # Luma of a JPEG is stored; of others it is computed from rounded colours.
            want = cv2.cvtColor(want, cv2.COLOR_RGB2GRAY)
            assert np.abs(got.astype(int) - want).mean() < 2, file.name
        else:
            assert np.array_equal(got, want[:, :, ::-1] if color == "bgr" else want), file.name


@pytest.mark.shared
@pytest.mark.parametrize(("name", "words"), NOT_PICTURES.items())
def test_every_broken_file_is_refused_with_its_name_and_reason(shared, name, words):
    with pytest.raises(PictureError, match=f"(?s){name}.*{words}"):
        Decoder().read(shared / "odd" / name)


@pytest.mark.shared
def test_no_broken_file_is_forgotten(shared):
    fine = {"img_jpeg_bytes_named.png", "img_png_bytes_named.jpg"}
    assert {f.name for f in (shared / "odd").glob("img_*")} == fine | set(NOT_PICTURES)


@pytest.mark.shared
def test_cmyk_looks_like_its_original(shared):
    decoder = Decoder()
    with Image.open(shared / "images" / "people_group_1200x800.jpeg") as image:
        want = np.asarray(image.resize((800, 533), Image.Resampling.BILINEAR)).astype(int)
    got = decoder.read(shared / "images" / "made_people_cmyk.jpg")
    assert np.abs(got - want).mean() < 8
    red = decoder.read(shared / "images" / "adobe_cmyk_100.jpg").reshape(-1, 3).max(axis=0)
    assert red[0] > 200
    assert red[1] < 120


def test_a_decoder_used_before_equals_a_fresh_one(rng, pixels):
    big = cv2.resize(pixels, (301, 207))
    decoder = Decoder()
    for picture, orientation in [(big, 6), (pixels, 1), (big, 1), (pixels, 5), (big, 3), (big, 6)]:
        tag = Image.Exif()
        tag[ORIENTATION] = orientation
        data = saved(Image.fromarray(picture), "JPEG", exif=tag)
        got = decoder.decode(data)
        assert np.array_equal(got, Decoder().decode(data))
        assert got.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF16", {}),
    ],
)
def test_orientation_is_applied_in_every_format(pixels, kind, options, orientation):
    if kind == "TIFF16":
        data = tiff_rgb16(pixels.astype(np.uint16) * 257, orientation)
    else:
        tag = Image.Exif()
        tag[ORIENTATION] = orientation
        extra = {"tiffinfo": {ORIENTATION: orientation}} if kind == "TIFF" else {"exif": tag}
        data = saved(Image.fromarray(pixels), kind, **extra, **options)
    decoder = Decoder()
    got = decoder.decode(data)
    want = exif.apply(pixels, orientation)
    assert decoder.source_wh == want.shape[1::-1]
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < (4 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        (kind, mode)
        for kind in ("PNG", "TIFF", "GIF", "BMP", "WEBP")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
        if (kind, mode) != ("BMP", "LA")  # does not exist
    ],
)
def test_every_mode_equals_pillow(pixels, kind, mode):
    image = Image.fromarray(pixels).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(pixels[:, :, 0]))
    data = saved(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as stored:
        want = np.asarray(stored.convert("RGB"))
    assert np.array_equal(Decoder().decode(data), want)
    assert np.array_equal(Decoder("bgr").decode(data), want[:, :, ::-1])
    gray = Decoder("gray").decode(data)
    assert np.abs(gray.astype(int) - cv2.cvtColor(want, cv2.COLOR_RGB2GRAY)).max() <= 1


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_16_bits_are_kept_or_rounded(rng, kind, color):
    deep = rng.integers(0, 65536, (9, 13, 3)).astype(np.uint16)
    deep[0, :8, 0] = [0, 127, 128, 129, 385, 386, 65406, 65407]
    if color == "gray":
        deep[:] = deep[:, :, :1]
    if kind == "tiff":
        data = tiff_rgb16(deep, 1)
    else:
        data = cv2.imencode(".png", deep[:, :, ::-1])[1].tobytes()
    want = {"rgb": deep, "bgr": deep[:, :, ::-1], "gray": deep[:, :, 0]}[color]
    got = Decoder(color, bits=16).decode(data)
    assert got.dtype == np.uint16
    assert np.array_equal(got, want)
    rounded = np.rint(want * (255 / 65535)).astype(np.uint8)
    assert np.array_equal(Decoder(color).decode(data), rounded)


def test_gray_16_bits_and_widened_8_bits(rng, pixels):
    deep = rng.integers(0, 65536, (9, 13)).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        data = saved(Image.fromarray(deep), kind)
        assert np.array_equal(Decoder("gray", bits=16).decode(data), deep)
        assert np.array_equal(Decoder("bgr", bits=16).decode(data)[:, :, 1], deep)
    for kind in ("PNG", "JPEG"):
        data = saved(Image.fromarray(pixels), kind)
        wide = Decoder(bits=16).decode(data)
        assert wide.dtype == np.uint16
        assert np.array_equal(wide, Decoder().decode(data).astype(np.uint16) * 257)


def test_32_bit_samples_are_refused():
    data = saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(PictureError, match="16 bits"):
        Decoder().decode(data)


def test_the_first_frame_of_an_animation_is_taken(pixels):
    frames = [Image.fromarray(p) for p in (pixels, 255 - pixels)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(Decoder().decode(data), pixels)
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(Decoder().decode(data).astype(int) - pixels).mean() < 20


def test_limits_hold_before_pixels_are_unpacked(pixels):
    limited = Decoder(max_pixels=30 * 40 - 1)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        data = saved(Image.fromarray(pixels), kind)
        with pytest.raises(
            PictureError, match=r"at most 1199 pixels.*40 x 30 = 1200.*--max-pixels"
        ):
            limited.decode(data)
        # The start says the size, except in a TIFF; a GIF of one frame needs that frame.
        if kind not in ("TIFF", "GIF"):
            with pytest.raises(PictureError, match="--max-pixels"):
                limited.decode(data[:700])
        assert Decoder(max_pixels=1200).decode(data).shape == (30, 40, 3)


def test_sizes_of_zero_are_refused(pixels):
    data = bytearray(saved(Image.fromarray(pixels), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = b"\0\0"
    with pytest.raises(PictureError, match=r"at least 1 x 1.*40 x 0"):
        Decoder().decode(data)
    head = struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    with pytest.raises(PictureError, match=r"at least 1 x 1.*0 x 5"):
        Decoder().decode(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + head + crc)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_every_truncation_is_refused(rng, kind):
    noise = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    data = saved(noise, kind, **({"lossless": True} if kind == "WEBP" else {}))
    for part in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        with pytest.raises(PictureError):
            Decoder().decode(data[: int(len(data) * part)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_random_damage_gives_a_picture_or_a_picture_error(rng, pixels, kind):
    data = saved(Image.fromarray(pixels), kind)
    decoder = Decoder(max_pixels=100_000)
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(0, 256)
        try:
            picture = decoder.decode(broken)
        except PictureError:
            continue
        assert picture.ndim == 3


def test_damage_inside_a_jpeg_is_refused(rng):
    data = bytearray(saved(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd3"
    with pytest.raises(PictureError, match="intact"):
        Decoder().decode(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_harmless_stray_bytes_lose_no_picture(pixels, progressive):
    data = saved(Image.fromarray(pixels), "JPEG", progressive=progressive)
    want = Decoder().decode(data).copy()
    for marker in (b"\xff\xdb", b"\xff\xc4", b"\xff\xda"):
        at = data.index(marker)
        for stray in (b"\0\1\2", b"\xff", b"\xff\xff\xff", b"\xff\0", b"\xff\0\5"):
            assert np.array_equal(Decoder().decode(data[:at] + stray + data[at:]), want)
    for padding in (b"\0" * 9, b"\x20" * 300, b"\1\2", b"\xff\xff"):
        assert np.array_equal(Decoder().decode(data[:-2] + padding + data[-2:]), want)
    assert np.array_equal(Decoder().decode(data + b"trailing words"), want)
    with pytest.raises(PictureError):
        Decoder().decode(data[:-2] + bytes(range(1, 120)) + data[-2:])


def test_an_unknown_jfif_version_loses_no_picture(pixels):
    data = bytearray(saved(Image.fromarray(pixels), "JPEG"))
    want = Decoder().decode(data).copy()
    data[data.index(b"JFIF\0") + 5] = 3
    assert np.array_equal(Decoder().decode(data), want)
    del data[data.index(b"JFIF\0") + 5 : 20]
    with pytest.raises(PictureError):
        Decoder().decode(data)


def test_jpeg_header_survives_hostile_lengths(rng, pixels):
    tag = Image.Exif()
    tag[ORIENTATION] = 8
    data = saved(Image.fromarray(pixels), "JPEG", exif=tag)
    header = jpeg.read_header(memoryview(bytearray(data)))
    assert header.wh == (40, 30)
    assert header.orientation == 8
    for at in range(2, 40):
        for value in (0, 1, 255):
            broken = bytearray(data)
            broken[at] = value
            try:
                jpeg.read_header(broken)
            except PictureError:
                continue


def test_all_kinds_of_buffers_are_taken(pixels):
    data = saved(Image.fromarray(pixels), "PNG")
    for kind in (bytes, bytearray, memoryview):
        assert np.array_equal(Decoder().decode(kind(data)), pixels)
    jpeg_bytes = simplejpeg.encode_jpeg(pixels)
    for kind in (bytearray, memoryview):
        assert np.array_equal(Decoder().decode(kind(jpeg_bytes)), Decoder().decode(jpeg_bytes))


@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_decoding_is_asked_for_and_tells_the_full_size(pixels, orientation):
    tag = Image.Exif()
    tag[ORIENTATION] = orientation
    big = Image.fromarray(cv2.resize(pixels, (800, 400)))
    data = saved(big, "JPEG", exif=tag)
    upright_wh = (400, 800) if orientation == 6 else (800, 400)
    decoder = Decoder(scaled_for_wh=(100, 100))
    w, h = decoder.decode(data).shape[1::-1]
    assert decoder.source_wh == upright_wh
    assert min(w, h) >= 100
    assert (w, h) == tuple(n // 4 for n in upright_wh)
    exact = Decoder()
    assert exact.decode(data).shape[1::-1] == exact.source_wh == upright_wh


def test_what_is_no_file_is_refused(tmp_path):
    decoder = Decoder()
    with pytest.raises(PictureError, match="folder"):
        decoder.read(tmp_path)
    with pytest.raises(PictureError, match=r"missing.jpg.*No such file"):
        decoder.read(tmp_path / "missing.jpg")
    with pytest.raises(PictureError, match="empty"):
        decoder.read("/dev/null")
    with pytest.raises(PictureError, match="null"):
        decoder.read("a\0b")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "empty"),
        (b"\xff", "starts with"),
        (b"\xff\xd8\xff", "header"),
        (b"\x89PNG\r\n\x1a\n", "header"),
        (b"RIFF\0\0\0\0WEBP", "WebP"),
        (b"BM", "BMP"),
        (b"GIF89a", "GIF"),
        (b"II*\0", "TIFF"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"%PDF-1.7", "PDF"),
        (b"\n <SVG>", "SVG"),
        (bytes(range(128, 200)), "starts with"),
    ],
)
def test_scraps_are_refused_with_a_reason(start, words):
    with pytest.raises(PictureError, match=words):
        Decoder().decode(start)


def test_a_decoder_without_sense_is_refused():
    with pytest.raises(InputError, match="color"):
        Decoder("rgba")
    with pytest.raises(InputError, match="bits"):
        Decoder(bits=12)
