"""Pictures as people have them, each made from scratch: the right pixels or the right reason."""

import json
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import product
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from heic import HEIC
from PIL import Image, ImageCms, ImageDraw
from PIL.PngImagePlugin import PngInfo

from two_tower_vs import color, pictures
from two_tower_vs import fingerprints as fingerprinting
from two_tower_vs.engine import backbone_key
from two_tower_vs.errors import BadImage, InputError
from two_tower_vs.fingerprints import fingerprints
from two_tower_vs.kinds import file_kind
from two_tower_vs.listing import list_images
from two_tower_vs.model import TwoTower
from two_tower_vs.pictures import load_image, load_pixels
from two_tower_vs.saving import load_model, save_model
from two_tower_vs.sending import shown

y, x = np.mgrid[0:48, 0:64]
COLOURS = np.dstack([x * 4, y * 5, 255 - x * 4]).astype(np.uint8)
GREY = COLOURS[..., 0]
PICTURE = Image.fromarray(COLOURS)
INTERNALS = re.compile(
    'not processed|cannot identify|MAX_TEXT|decoder error|broken data stream|Traceback|<_io', re.I
)


def encoded(im, kind, **options):
    file = BytesIO()
    im.save(file, kind, **options)
    return file.getvalue()


def outcome(data, **options):
    "Pixels, or the reason; the same from both functions"
    got = []
    for load in (load_image, load_pixels):
        try:
            got.append(np.asarray(load(data, **options)))
        except BadImage as e:
            assert not INTERNALS.search(str(e)), str(e)
            got.append(str(e))
    assert type(got[0]) is type(got[1])
    assert np.array_equal(got[0], got[1])
    return got[0]


def is_close(got, want, by=2):
    return (
        not isinstance(got, str)
        and got.shape == want.shape
        and abs(got.astype(int) - want).max() <= by
    )


# ---- TIFF


def scaled(array, dtype):
    dtype = np.dtype(dtype)
    if dtype.kind == 'f':
        return (array / 255).astype(dtype)
    return (array.astype(np.int64) * (np.iinfo(dtype).max // 255)).astype(dtype)


def layouts():
    opaque = np.full_like(GREY, 255)
    yield 'grey', GREY, dict(photometric='minisblack')
    yield 'white is 0', 255 - GREY, dict(photometric='miniswhite')
    for name in ('unassalpha', 'assocalpha'):
        yield (
            f'grey, {name}',
            np.dstack([GREY, opaque]),
            dict(photometric='minisblack', extrasamples=[name]),
        )
        yield (
            f'RGB, {name}',
            np.dstack([COLOURS, opaque]),
            dict(photometric='rgb', extrasamples=[name]),
        )
    yield 'RGB', COLOURS, dict(photometric='rgb')
    yield 'CMYK', np.dstack([255 - COLOURS, np.zeros_like(GREY)]), dict(photometric='separated')


def tiffs():
    "(what it is, file, right pixels)"
    types = 'u1 u2 u4 i2 f2 f4 f8'.split()
    storages = [
        dict(),
        dict(compression='deflate'),
        dict(compression='lzw'),
        dict(compression='lerc'),
        dict(bigtiff=True),
        dict(tile=(16, 32)),
        dict(compression='deflate', predictor=True),
    ]
    for dtype, order, planar, storage in product(types, '<>', (False, True), storages):
        for name, array, options in layouts():
            if planar and array.ndim == 2:
                continue
            values = scaled(array, dtype)
            if planar:
                values = np.ascontiguousarray(np.moveaxis(values, 2, 0))
            if array.ndim == 3:
                options = dict(options, planarconfig='separate' if planar else 'contig')
            file = BytesIO()
            try:
                tifffile.imwrite(file, values, byteorder=order, **options, **storage)
            except Exception:  # tifffile writes no such file
                continue
            want = COLOURS if array.ndim == 3 and array.shape[2] > 2 else np.dstack([GREY] * 3)
            yield (dtype, order, planar, storage, name), file.getvalue(), want


def test_tiff_of_any_layout_has_the_right_pixels():
    count = 0
    for what, data, want in tiffs():
        count += 1
        got = np.asarray(load_image(data))
        assert is_close(got, want), what
    assert count > 800


def test_tiff_without_the_extra_is_right_or_named(monkeypatch):
    for name in ('tifffile', 'imagecodecs'):
        monkeypatch.setitem(sys.modules, name, None)
    right = 0
    for what, data, want in list(tiffs())[::3]:
        try:
            got = np.asarray(load_image(data))
        except BadImage as e:
            assert "TIFF" in str(e) and "pip install 'two_tower_vs[tiff]'" in str(e), (what, str(e))
        else:
            right += 1
            assert is_close(got, want), what
    assert right > 60


@pytest.mark.parametrize(
    'values, white',
    [
        (GREY.astype(np.uint32), None),
        (GREY.astype(np.uint32) * 257, 65535),
        (GREY.astype(np.uint32) * 16843009, 2**32 - 1),
        (GREY.astype(np.float32), 255),
        (GREY / np.float32(255), 1),
    ],
)
def test_white_level_follows_the_type(values, white):
    file = BytesIO()
    tifffile.imwrite(file, values, photometric='minisblack')
    got = outcome(file.getvalue())
    want = GREY if white else np.round(GREY * (255 / 65535))
    assert is_close(got, np.dstack([want] * 3).astype(np.uint8))


def test_tiff_with_transparency_and_sixteen_bits():
    alpha = np.where(x < 32, 65535, 0).astype(np.uint16)
    for array, want in (
        (np.dstack([COLOURS.astype(np.uint16) * 257, alpha]), COLOURS),
        (np.dstack([GREY.astype(np.uint16) * 257, alpha]), np.dstack([GREY] * 3)),
    ):
        file = BytesIO()
        tifffile.imwrite(
            file,
            array,
            photometric='rgb' if array.shape[2] == 4 else 'minisblack',
            extrasamples=['unassalpha'],
        )
        got = outcome(file.getvalue(), background='white')
        assert is_close(got[:, :32], want[:, :32])
        assert (got[:, 32:] == 255).all()


def test_rare_tiff_is_bounded_by_its_header():
    file = BytesIO()
    tifffile.imwrite(file, np.zeros((64, 64), np.float64), photometric='minisblack')
    data = file.getvalue()
    assert 'over the limit max_pixels=1,000' in outcome(data, max_pixels=1000)
    cut = outcome(data[: len(data) // 2])
    assert cut == 'a 64-bit floating-point grey TIFF that cannot be decoded'


# ---- kinds that are read


def test_heic():
    corners = {
        (12, 16): (255, 0, 0),
        (12, 48): (0, 255, 0),
        (36, 16): (0, 0, 255),
        (36, 48): (255, 255, 255),
    }
    for name in ('plain', 'turned', 'deep', 'second'):
        got = outcome(HEIC[name])
        assert got.shape == (48, 64, 3), name
        for at, colour in corners.items():
            assert abs(got[at].astype(int) - colour).max() < 12, (name, at)
    assert abs(outcome(HEIC['alpha'])[12, 16].astype(int) - 255).max() < 3  # transparent, on white
    assert pictures.picture_header(HEIC['turned']) == (64, 48, 1)
    assert (
        outcome(HEIC['plain'], max_pixels=100)
        == '64 x 48 is 0 megapixels, over the limit max_pixels=100'
    )
    assert outcome(HEIC['plain'][:300]) == 'a damaged HEIC file'


def flipped(data, number):
    "A damaged file, always the same for a number"
    chance = random.Random(number)
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            size = chance.choice((1, 2, 4))
            data[at : at + size] = chance.choice(
                (b'\xff' * size, bytes(size), chance.randbytes(size))
            )
        elif kind == 2:
            del data[at : at + chance.randrange(1, 9)]
        else:
            data[at:at] = data[at : at + chance.randrange(40)]
    return bytes(data)


def test_damaged_heic_does_not_end_the_process():
    # 790 did
    code = (
        'from test_pictures import HEIC, flipped, outcome\n'
        'for i in range(600, 820): outcome(flipped(list(HEIC.values())[i % len(HEIC)], i))'
    )
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=Path(__file__).parent,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-500:]


def test_heic_in_threads():
    want = outcome(HEIC['plain'])
    with ThreadPoolExecutor(8) as threads:
        for got in threads.map(lambda _: load_pixels(HEIC['plain']), range(64)):
            assert np.array_equal(got, want)


def test_jpeg_xl(monkeypatch):
    for array in (COLOURS, GREY, np.dstack([COLOURS, np.full_like(GREY, 255)])):
        data = imagecodecs.jpegxl_encode(array, lossless=True)
        want = COLOURS if array.ndim == 3 else np.dstack([GREY] * 3)
        assert np.array_equal(outcome(data), want)
    film = imagecodecs.jpegxl_encode(
        np.stack([COLOURS, COLOURS // 2]), lossless=True, photometric='rgb'
    )
    assert np.array_equal(outcome(film), COLOURS)
    assert 'over the limit' in outcome(data, max_pixels=1000)
    assert outcome(data[:100]) == 'a damaged JPEG XL file'
    monkeypatch.setitem(sys.modules, 'imagecodecs', None)
    assert (
        outcome(data) == "a JPEG XL picture, which needs an extra: pip install 'two_tower_vs[jxl]'"
    )


def test_other_kinds_of_pillow():
    for kind, options in (
        ('TGA', {}),
        ('TGA', dict(compression='tga_rle')),
        ('PCX', {}),
        ('DDS', {}),
        ('PPM', {}),
        ('BMP', {}),
        ('JPEG2000', {}),
    ):
        assert np.array_equal(outcome(encoded(PICTURE, kind, **options)), COLOURS), kind
    old_tga = encoded(PICTURE, 'TGA')[:-26]  # version 1 has no mark at its end
    assert np.array_equal(outcome(old_tga), COLOURS)
    icon = outcome(encoded(PICTURE.resize((48, 48)), 'ICO', sizes=[(16, 16), (48, 48)]))
    assert np.array_equal(icon, np.asarray(PICTURE.resize((48, 48))))


def photoshop(channels=COLOURS, *, bits=8, merged=None, layers=0):
    "A Photoshop document: header, resources, layers, merged picture"
    planes = np.moveaxis(channels, 2, 0).astype('>u2' if bits == 16 else 'u1')
    resources = (
        b''
        if merged is None
        else b'8BIM\x04\x21\0\0' + struct.pack('>I', 6) + b'\0\0\0\1' + bytes([merged, 0])
    )
    layer = b'' if not layers else struct.pack('>Ih', 2, layers)
    return (
        b'8BPS\0\1'
        + bytes(6)
        + struct.pack('>HIIHH', len(planes), 48, 64, bits, 3)
        + bytes(4)
        + struct.pack('>I', len(resources))
        + resources
        + struct.pack('>I', len(layer))
        + layer
        + b'\0\0'
        + planes.tobytes()
    )


def test_photoshop_documents():
    assert np.array_equal(outcome(photoshop()), COLOURS)
    assert np.array_equal(outcome(photoshop(merged=1)), COLOURS)
    assert outcome(photoshop(merged=0)).startswith('a Photoshop document without a merged picture')
    assert outcome(photoshop(bits=16)).startswith('a Photoshop document of 16 bits a channel')
    selection = np.dstack([COLOURS, np.zeros_like(GREY)])
    assert np.array_equal(outcome(photoshop(selection)), COLOURS)  # a saved selection hides nothing
    assert (outcome(photoshop(selection, layers=-1)) == 255).all()  # transparency does
    assert 'over the limit' in outcome(photoshop(), max_pixels=1000)


def test_bombs_are_known_by_their_headers():
    png = encoded(PICTURE, 'PNG')
    large = png[:16] + struct.pack('>II', 30000, 30000) + png[24:]
    icon = b'\0\0\1\0\1\0' + struct.pack('<BBBBHHII', 64, 48, 0, 0, 1, 32, len(large), 22) + large
    bitmap = (
        b'\0\0\1\0\1\0'
        + struct.pack('<BBBBHHII', 64, 48, 0, 0, 1, 32, 40, 22)
        + struct.pack('<IiiHH', 40, 30000, 60000, 1, 32)
        + bytes(24)
    )
    tga = encoded(PICTURE, 'TGA')
    pcx = encoded(PICTURE, 'PCX')
    dds = encoded(PICTURE, 'DDS')
    psd = photoshop()
    bombs = dict(
        ico=icon,
        ico_bitmap=bitmap,
        tga=tga[:12] + struct.pack('<HH', 30000, 30000) + tga[16:],
        pcx=pcx[:4] + struct.pack('<HHHH', 0, 0, 29999, 29999) + pcx[12:],
        dds=dds[:12] + struct.pack('<II', 30000, 30000) + dds[20:],
        psd=psd[:14] + struct.pack('>II', 30000, 30000) + psd[22:],
    )
    for name, data in bombs.items():
        assert '900 megapixels' in outcome(data), name


def test_large_and_damaged_notes_of_png():
    plain = encoded(PICTURE, 'PNG')
    note = PngInfo()
    note.add_itxt('XML:com.adobe.xmp', '<x/>' + ' ' * 2_000_000, zip=True)
    packed = PngInfo()
    packed.add_text('notes', 'n' * 2_000_000, zip=True)
    wrong = plain[:33] + struct.pack('>I', 4) + b'tEXt' + b'a\0bc' + bytes(4) + plain[33:]
    late = plain[:-12] + struct.pack('>I', 4) + b'tEXt' + b'a\0bc' + bytes(4) + plain[-12:]
    turned = Image.Exif()
    turned[0x0112] = 3
    kept = encoded(PICTURE.rotate(180), 'PNG', icc_profile=bytes(2_000_000), exif=turned)
    files = dict(
        icc=encoded(PICTURE, 'PNG', icc_profile=bytes(2_000_000)),
        itxt=encoded(PICTURE, 'PNG', pnginfo=note),
        ztxt=encoded(PICTURE, 'PNG', pnginfo=packed),
        crc=wrong,
        crc_at_the_end=late,
        kept=kept,
    )
    for name, data in files.items():
        assert np.array_equal(outcome(data), COLOURS), name
    assert pictures.picture_header(kept) == (64, 48, 3)
    # Of a necessary chunk
    assert outcome(plain[:29] + bytes(4) + plain[33:]) == 'a damaged PNG file'
    assert 'truncated' in outcome(plain[: len(plain) // 2])


def test_transparency_and_profile_survive_large_notes():
    wide = primaries_profile(
        [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)], 2.2, padding=1_500_000
    )
    want = outcome(encoded(PICTURE, 'TIFF', icc_profile=wide))
    assert not is_close(want, COLOURS, 10)
    assert np.array_equal(outcome(encoded(PICTURE, 'PNG', icc_profile=wide)), want)
    palette = PICTURE.quantize(16)
    half = encoded(palette, 'PNG', transparency=bytes(16), icc_profile=bytes(2_000_000))
    assert (outcome(half) == 255).all()


# ---- reasons


def test_what_is_no_picture_is_named():
    made = {
        'an HTML page': b'<!DOCTYPE html><html>',
        'a Git LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n',
        'JSON': b'{"error": 404}',
        'a PDF document': encoded(PICTURE, 'PDF'),
        'an MP4 or QuickTime video': b'\0\0\0\x20ftypisom' + bytes(50),
        'a gzip file': zlib.compressobj(wbits=31).compress(b'') + zlib.compress(b'x' * 99),
        'a ZIP archive': b'PK\3\4' + bytes(50),
        'a text': b'Dear customer,\nthe photo will follow.',
        'zeros alone': bytes(5000),
        'an XML file': b'<?xml version="1.0"?><a/>',
    }
    for name, data in made.items():
        assert outcome(data).startswith(f'not an image but {name}'), name
    assert outcome(b'') == 'an empty file'
    assert outcome(random.Random(1).randbytes(5000)) == 'not an image, or of an unknown format'


def test_intact_files_of_unread_kinds_are_not_damaged():
    deep = COLOURS.astype(np.uint16) * 16
    made = {
        'a 12-bit JPEG, ': imagecodecs.jpeg8_encode(deep, bitspersample=12, level=90),
        'a lossless JPEG, ': imagecodecs.ljpeg_encode(
            GREY.astype(np.uint16) * 257, bitspersample=16
        ),
        'a JPEG-LS picture, ': imagecodecs.jpegls_encode(COLOURS),
        'an EPS drawing, ': encoded(PICTURE, 'EPS'),
        'an SVG drawing, ': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        'a large Photoshop document (PSB), ': b'8BPS\0\2' + bytes(99),
        'a QOI picture, ': imagecodecs.qoi_encode(COLOURS),
        'a JPEG XR picture, ': imagecodecs.jpegxr_encode(COLOURS),
        'an OpenEXR picture, ': b'\x76\x2f\x31\x01' + bytes(99),
    }
    for start, data in made.items():
        assert outcome(data).startswith(start + 'which is not read; save it as'), (
            start,
            outcome(data),
        )


WRITTEN = 'JPEG PNG WEBP AVIF GIF BMP TIFF JPEG2000 PPM TGA ICO PCX DDS'.split()


def test_kinds_are_those_that_pillow_writes():
    for kind in WRITTEN:
        assert file_kind(encoded(PICTURE, kind)).name == kind
    noise = random.Random(0)
    mistaken = [file_kind(noise.randbytes(99)).name for _ in range(20_000)]
    assert sum(name in pictures.formats for name in mistaken) < 3


def test_no_reason_holds_a_decoders_words():
    for kind in WRITTEN:
        data = encoded(PICTURE, kind)
        for cut in (20, len(data) // 2, len(data) - 20):
            outcome(data[:cut])  # asserts


# ---- orientation and draft

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def test_orientation_in_xmp_turns_nothing(tmp_path):
    flat = Image.new('RGB', (60, 30), 'red')
    files = dict(
        jpg=encoded(flat, 'JPEG', xmp=XMP),
        webp=encoded(flat, 'WEBP', xmp=XMP),
        tif=encoded(flat, 'TIFF', tiffinfo={700: XMP}),
    )
    note = PngInfo()
    note.add_itxt('XML:com.adobe.xmp', XMP.decode())
    files['png'] = encoded(flat, 'PNG', pnginfo=note)
    for name, data in files.items():
        assert outcome(data).shape == (30, 60, 3), name
        (tmp_path / f'a.{name}').write_bytes(data)
    prints, bad = fingerprints([f'a.{name}' for name in files], tmp_path)
    assert list(prints.turn) == [1] * 4 and not bad
    assert list(prints.width) == [60] * 4


def test_exif_still_turns(tmp_path):
    turn = Image.Exif()
    turn[0x0112] = 6
    (tmp_path / 'a.jpg').write_bytes(
        encoded(Image.new('RGB', (60, 30)), 'JPEG', exif=turn, xmp=XMP)
    )
    prints, _ = fingerprints(['a.jpg'], tmp_path)
    assert list(prints.turn) == [6]
    assert load_image(tmp_path / 'a.jpg').size == (30, 60)


def test_a_failing_draft_is_tried_again(monkeypatch):
    from PIL.JpegImagePlugin import JpegImageFile

    data = encoded(PICTURE, 'JPEG')
    real = JpegImageFile.load

    def load(self):
        if self.size != (64, 48):
            raise OSError('image file is truncated (0 bytes not processed)')
        return real(self)

    monkeypatch.setattr(JpegImageFile, 'load', load)
    assert load_image(data, side=16).size == (64, 48)


# ---- colour


def lab(*rgb):
    "Lab of an sRGB colour, as lut8 profiles hold it"
    im = ImageCms.profileToProfile(
        Image.new('RGB', (1, 1), rgb),
        ImageCms.createProfile('sRGB'),
        ImageCms.createProfile('LAB'),
        outputMode='LAB',
    )
    lightness, a, b = (np.frombuffer(im.tobytes(), np.uint8)).astype(int)
    return bytes([lightness, (a + 128) % 256, (b + 128) % 256])


def profile_of(space, pcs, kind, tags, padding=0):
    table = b''
    body = b''
    at = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack('>II', at + len(body), len(data))
        body += data
    body += bytes(padding)
    d50 = struct.pack('>iii', 63190, 65536, 54061)
    head = b'\2\x20\0\0' + kind + space + pcs + bytes(12) + b'acsp' + bytes(28) + d50 + bytes(48)
    return (
        struct.pack('>I', 132 + len(table) + len(body))
        + bytes(4)
        + head
        + struct.pack('>I', len(tags))
        + table
        + body
    )


def primaries_profile(primaries, gamma, padding=0):
    "A display profile with white D65"

    def xyz(x, y):
        return np.array([x / y, 1, (1 - x - y) / y])

    matrix = np.stack([xyz(*p) for p in primaries], 1)
    white = xyz(0.3127, 0.3290)
    matrix = matrix * np.linalg.solve(matrix, white)
    cone = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    d50 = np.array([0.9642, 1, 0.8249])
    matrix = np.linalg.inv(cone) @ np.diag((cone @ d50) / (cone @ white)) @ cone @ matrix
    tags = {
        b'desc': b'desc\0\0\0\0\0\0\0\5test\0' + bytes(78),
        b'wtpt': b'XYZ \0\0\0\0' + struct.pack('>iii', 63190, 65536, 54061),
    }
    for i, name in enumerate((b'r', b'g', b'b')):
        tags[name + b'XYZ'] = b'XYZ \0\0\0\0' + struct.pack(
            '>iii', *(round(v * 65536) for v in matrix[:, i])
        )
        tags[name + b'TRC'] = b'curv\0\0\0\0' + struct.pack('>IH', 1, round(gamma * 256))
    return profile_of(b'RGB ', b'XYZ ', b'mntr', tags, padding)


def cmyk_profile(inks):
    "A printer's profile from the colours of its 16 overprints"
    linear = bytes(range(256))
    clut = b''.join(lab(*inks[combination]) for combination in product((0, 1), repeat=4))
    identity = struct.pack('>9i', 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b'mft1\0\0\0\0\4\3\2\0' + identity + linear * 4 + clut + linear * 3
    return profile_of(
        b'CMYK',
        b'Lab ',
        b'prtr',
        {b'desc': b'desc\0\0\0\0\0\0\0\5test\0' + bytes(78), b'A2B0': table, b'A2B1': table},
    )


INKS = {
    key: tuple(
        int(v * (1 - 0.9 * key[3]))
        for v in (
            255 - 255 * key[0] * 0.9,
            255 - 200 * key[1] - 80 * key[0] * (1 - key[1]),
            240 - 200 * key[2] - 60 * key[1] * (1 - key[2]),
        )
    )
    for key in product((0, 1), repeat=4)
}


@pytest.mark.parametrize(
    'primaries, gamma',
    [
        ([(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)], 2.2),
        ([(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)], 2.4),
        ([(0.640, 0.330), (0.210, 0.710), (0.150, 0.060)], 2.2),
    ],
)
def test_wide_gamuts_become_srgb(primaries, gamma):
    profile = primaries_profile(primaries, gamma)
    soft = Image.fromarray((60 + 0.5 * COLOURS).astype(np.uint8))
    there = ImageCms.profileToProfile(
        soft, ImageCms.createProfile('sRGB'), ImageCms.getOpenProfile(BytesIO(profile))
    )
    assert not is_close(np.asarray(there), np.asarray(soft), 10)
    for kind, options in (
        ('PNG', {}),
        ('TIFF', {}),
        ('WEBP', dict(lossless=True)),
        ('JPEG', dict(quality=100, subsampling=0)),
    ):
        got = outcome(encoded(there, kind, icc_profile=profile, **options))
        assert is_close(got, np.asarray(soft), 16 if kind == 'JPEG' else 6), kind
    clear = there.convert('RGBA')
    clear.putalpha(Image.fromarray(np.where(x < 32, 255, 0).astype(np.uint8)))
    got = outcome(encoded(clear, 'PNG', icc_profile=profile), background='white')
    assert is_close(got[:, :32], np.asarray(soft)[:, :32], 6) and (got[:, 32:] == 255).all()


def test_cmyk_by_its_profile():
    profile = cmyk_profile(INKS)
    for ink in (0, 1, 2, 3):
        pixel = tuple(255 * (i == ink) for i in range(4))
        im = Image.new('CMYK', (16, 16), pixel)
        want = np.full((16, 16, 3), INKS[tuple(int(i == ink) for i in range(4))])
        for data in (
            encoded(im, 'TIFF', icc_profile=profile),
            encoded(im, 'JPEG', quality=100, icc_profile=profile),
        ):
            got = outcome(data)
            assert is_close(got, want, 25), (ink, got[0, 0], want[0, 0])
        # Without it, pure colours
        assert not is_close(outcome(encoded(im, 'TIFF')), want, 25) or ink == 3


def test_grey_by_its_profile():
    curve = b'curv\0\0\0\0' + struct.pack('>IH', 1, 256)  # linear light
    profile = profile_of(
        b'GRAY',
        b'XYZ ',
        b'mntr',
        {
            b'desc': b'desc\0\0\0\0\0\0\0\5test\0' + bytes(78),
            b'wtpt': b'XYZ \0\0\0\0' + struct.pack('>iii', 63190, 65536, 54061),
            b'kTRC': curve,
        },
    )
    grey = Image.new('L', (9, 9), 55)
    # SRGB of 0.216
    assert abs(int(outcome(encoded(grey, 'PNG', icc_profile=profile))[0, 0, 0]) - 128) < 4
    clear = grey.convert('LA')
    assert abs(int(outcome(encoded(clear, 'PNG', icc_profile=profile))[0, 0, 0]) - 128) < 4


def test_srgb_profiles_change_nothing_and_take_the_fast_path():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    # Of other primaries and curve by name only
    another = primaries_profile([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)], 2.2)
    data = encoded(PICTURE, 'JPEG', icc_profile=srgb)
    assert pictures._plain_jpeg(data, 10**6, None) is not None
    assert np.array_equal(outcome(data), outcome(encoded(PICTURE, 'JPEG')))
    assert color.profile_transform(srgb, 'RGB') is None
    assert color.profile_transform(another, 'CMYK') is None


def test_broken_profiles_never_refuse():
    chance = random.Random(3)
    good = [
        primaries_profile([(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)], 2.2),
        cmyk_profile(INKS),
    ]
    for i in range(120):
        profile = bytearray(good[i % 2])
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(profile) if chance.random() < 0.5 else 300)
            profile[at : at + 4] = chance.choice(
                (b'\xff\xff\xff\xff', bytes(4), chance.randbytes(4), b'')
            )
        im = Image.new('CMYK' if i % 2 else 'RGB', (8, 8), 'white')
        assert not isinstance(outcome(encoded(im, 'TIFF', icc_profile=bytes(profile))), str)
    assert len(color._transforms) <= 64


# ---- transparency


def drawing(colour, ground=None):
    im = Image.new('RGBA', (64, 64))
    ImageDraw.Draw(im).ellipse((8, 8, 56, 56), outline=colour, width=5)
    return im


def test_ground_on_which_a_picture_shows():
    for colour, ground in (
        ('black', 255),
        ('white', 0),
        ('#dddddd', 0),
        ('yellow', 0),
        ('red', 255),
        ('grey', 255),
    ):
        for kind, options in (('PNG', {}), ('WEBP', dict(lossless=True)), ('TIFF', {})):
            got = outcome(encoded(drawing(colour), kind, **options))
            assert (got[0, 0] == ground).all(), (colour, kind)
            assert got.astype(int).std() > 20, colour
    photo = PICTURE.convert('RGBA')
    photo.putalpha(Image.fromarray(np.where(x < 50, 255, 0).astype(np.uint8)))
    assert (outcome(encoded(photo, 'PNG'))[0, 60] == 255).all()
    assert (outcome(encoded(Image.new('RGBA', (9, 9)), 'PNG')) == 255).all()  # nothing visible
    for background, want in (('white', (255,) * 3), ('black', (0,) * 3), ('#102030', (16, 32, 48))):
        assert tuple(outcome(encoded(drawing('white'), 'PNG'), background=background)[0, 0]) == want


def test_a_white_drawing_is_not_blank(tmp_path):
    drawing('white').save(tmp_path / 'white.png')
    prints, _ = fingerprints(['white.png'], tmp_path)
    assert prints.spread.iloc[0] > 20


def test_background_is_part_of_the_model(tmp_path):
    options = dict(pretrained=False, image_size=32, embed_dim=8)
    auto = TwoTower(**options)
    white = TwoTower(**options, background='white')
    assert backbone_key(auto.query) != backbone_key(white.query)
    save_model(white, tmp_path)
    assert json.loads((tmp_path / 'model.json').read_text())['background'] == 'white'
    assert load_model(tmp_path).query.prep['background'] == 'white'
    with pytest.raises(InputError, match='Write auto, white, black'):
        TwoTower(**options, background='green')


def test_cached_features_depend_on_the_decoding(monkeypatch, tmp_path):
    tower = TwoTower(pretrained=False, image_size=32, embed_dim=8).query
    before = backbone_key(tower)
    PICTURE.save(tmp_path / 'a.png')
    fingerprints(['a.png'], tmp_path, tmp_path / 'cache')
    made = []
    real = fingerprinting._fingerprint
    monkeypatch.setattr(fingerprinting, '_fingerprint', lambda *args: made.append(1) or real(*args))
    fingerprints(['a.png'], tmp_path, tmp_path / 'cache')
    assert not made
    for module in (sys.modules[backbone_key.__module__], fingerprinting):
        monkeypatch.setattr(module, 'decoding_version', 99)
    assert backbone_key(tower) != before
    fingerprints(['a.png'], tmp_path, tmp_path / 'cache')
    assert made


def test_models_of_before_load(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    from two_tower_vs.saving import file_sha256

    options = dict(pretrained=False, image_size=32, embed_dim=8, grid=1)
    save_model(TwoTower(**options), tmp_path)
    file = tmp_path / 'model.safetensors'
    with safe_open(file, 'pt') as f:
        tensors = {key: f.get_tensor(key) for key in f.keys()}
        config = json.loads(f.metadata()['config'])
    del config['background'], config['grid'], config['query_backbone'], config['cand']
    config |= {'format': 1, **config.pop('query')}
    del config['prep']['background']
    save_file(tensors, file, metadata={'config': json.dumps(config)})
    (tmp_path / 'model.json').write_text(json.dumps(dict(config, sha256=file_sha256(file))))
    model = load_model(tmp_path)
    assert model.config['background'] == 'auto'


def test_background_of_the_settings(fresh, cli):
    config = fresh / 'config.yaml'
    text = config.read_text()
    for written, want in (('green', "data.background is 'green'"), ("'#12'", 'data.background is')):
        config.write_text(text.replace('data: {', f'data: {{background: {written}, ', 1))
        status, _, err = cli('--config', config, '--stage', 'check')
        assert status == 2 and want in err, err
    config.write_text(text)


# ---- around


def test_endings_and_serving(tmp_path):
    names = [
        'a.apng',
        'b.mpo',
        'c.j2k',
        'd.jpf',
        'e.pbm',
        'f.pnm',
        'g.pfm',
        'h.avifs',
        'i.heic',
        'j.heif',
        'k.hif',
        'l.jxl',
        'm.tga',
        'N.HEIC',
    ]
    for name in names:
        (tmp_path / name).write_bytes(b'x')
    assert sorted(list_images(tmp_path).cand_path) == sorted(names)
    for data in (HEIC['plain'], encoded(PICTURE, 'TIFF')):
        body, kind = shown(data)
        assert kind == 'image/jpeg' and Image.open(BytesIO(body)).size == (64, 48)
    png = encoded(PICTURE, 'PNG')
    assert shown(png) == (png, 'image/png')
