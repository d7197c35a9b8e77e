"""Pictures as people have them, and as nobody should: broken, lying, huge, oddly named, linked,
changing while they are read.
"""

import base64
import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from posixpath import normpath
from unittest.mock import patch

import numpy as np
import pandas as pd
from attack import Case, cli, judged, project, shell
from PIL import Image, ImageCms

from two_tower_vs.errors import BadImage
from two_tower_vs.pictures import load_image, load_pixels

# ---- the pictures


def scene():
    "Four corners of different colours, so that any turn shows"
    im = Image.new('RGB', (64, 48), 'red')
    for c, at in (('lime', (32, 0)), ('blue', (0, 24)), ('white', (32, 24))):
        im.paste(c, (*at, at[0] + 32, at[1] + 24))
    return im


def enc(im, fmt, **kw):
    b = BytesIO()
    im.save(b, fmt, **kw)
    return b.getvalue()


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(*chunks, size=(64, 48), im=None):
    "A PNG with more chunks after its header, which says `size`"
    b = enc(im or scene(), 'PNG')
    head = chunk(b'IHDR', struct.pack('>II', *size) + b[24:29])
    return b[:8] + head + b''.join(chunks) + b[33:]


def exif(turn=None, **more):
    e = Image.Exif()
    if turn:
        e[0x0112] = turn
    for k, v in more.items():
        e[int(k[1:], 16)] = v
    return e.tobytes()


def exif_odd(turn):
    "EXIF that turns the picture and holds a value which can't be written again"
    return (
        b'Exif\0\0MM\0*\0\0\0\x08\0\x02'
        + struct.pack('>HHIHH', 0x0112, 3, 1, turn, 0)
        + struct.pack('>HHII', 0x8769, 13, 1, 10**9)
        + bytes(4)
    )


def tiff(entries, after=0, at=8):
    "A little-endian TIFF made of its directory alone: [(tag, type, count, value)]"
    return (
        b'II*\0'
        + struct.pack('<I', at)
        + struct.pack('<H', len(entries))
        + b''.join(struct.pack('<HHII', *e) for e in entries)
        + struct.pack('<I', after)
    )


def gray_tiff(w, h, more=()):
    return [
        (256, 4, 1, w),
        (257, 4, 1, h),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 200),
        (277, 3, 1, 1),
        (278, 4, 1, h),
        (279, 4, 1, w * h),
        *more,
    ]


# the scene, written by pillow-heif; no package in this environment writes HEIC
HEIC = base64.b64decode('''
AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAX5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERAAAEAAQAAAAABogABAAAAAAAA
AQYAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/mlwcnAAAADeaXBjbwAAAHdodmNDAQQIAAAAnjgAAAAAHvAA/P/4+AAADwNgAAEAF0AB
DAH//wQIAAADAJ44AAADAAAeugJAYQABACpCAQEECAAAAwCeOAAAAwAAHpAEECCy3VyU1zcBDQYEAAADAGQAAAMABCBiAAEACEQBwXMYMAiQAAAAE2NvbHJuY2x4AAEADQAGgAAAABRp
c3BlAAAAAAAAAEAAAABAAAAAKGNsYXAAAABAAAAAAQAAADAAAAABAAAAAAAAAAL////wAAAAAgAAABBwaXhpAAAAAAMICAgAAAAYaXBtYQAAAAAAAAABAAEFgQIDBYQAAAEObWRhdAAA
AQIoAa8E+O15dP1v/aH///1oj2X7c+hbcbS07HHgfeVSl+7y//+XvP1AxHFXmp/od0ZYxPaVRITeJ/sH7H2N2ecE9CAs/2nd//twL//c7nflSCtzP+1X2HwvF/7c6an5NtT+dCufecrg
Br92Uxz1TzW+zmEEfsyeTNqA/GfgUyzEUa0/C0LZFQsPnqVISTQx98IsvoS24QEgANyg/CX3Dp5HeGrSOLDJqlqUZOXlwlOx06b9ZOwznd9JX3wlTu9c2nV1azMo5ToYtQjOMKUSvX3I
0lXfO6+DMzqDAnJHieEM1TUKChXu0G8Bq7sHlGjE7Eq/vokyaDh1Qhvv4gAYT2E0UtA=
''')

TURNS = dict(
    zip(
        range(2, 9),
        (
            'FLIP_LEFT_RIGHT',
            'ROTATE_180',
            'FLIP_TOP_BOTTOM',
            'TRANSPOSE',
            'ROTATE_90',
            'TRANSVERSE',
            'ROTATE_270',
        ),
    )
)


def lying(turn):
    "The scene as a camera stores it with this EXIF orientation"
    return scene().transpose(Image.Transpose[TURNS[turn]]) if turn in TURNS else scene()


def scans(n):
    b = enc(Image.new('RGB', (2000, 2000)), 'JPEG', progressive=True)[:-2]
    return b + b[b.rindex(b'\xff\xda') :] * n + b'\xff\xd9'


def bmp(w, h, comp=0, bits=24, body=b''):
    return (
        b'BM'
        + struct.pack('<IHHI', 54 + 1024 + len(body), 0, 0, 54 + 1024 * (bits == 8))
        + struct.pack('<IiiHHIIiiII', 40, w, h, 1, bits, comp, len(body), 0, 0, 0, 0)
        + bytes(1024 * (bits == 8))
        + body
    )


def ico(body):
    return b'\0\0\1\0\1\0' + struct.pack('<BBBBHHII', 64, 48, 0, 0, 1, 32, len(body), 22) + body


def psd(w=64, h=48):
    "A Photoshop document without layers"
    planes = b''.join(c.tobytes() for c in scene().split())
    return (
        b'8BPS\0\1' + bytes(6) + struct.pack('>HIIHH', 3, h, w, 8, 3) + bytes(12) + b'\0\0' + planes
    )


@cache
def pictures():
    """(name, bytes, what comes of it): 'scene' or 'grey', as a picture of the same size; 'read';
    or what the refusal says
    """
    s = scene()
    rgba = s.convert('RGBA')
    jpeg = enc(s, 'JPEG', quality=95, subsampling=0)
    p = enc(s, 'PNG')
    deep = Image.fromarray(np.asarray(s.convert('L'), np.uint16) * 257)
    clear = s.convert('P')
    clear.info['transparency'] = 255
    many = [s, Image.new('RGB', s.size)]
    bomb = zlib.compress(bytes(2 * 10**8), 9)
    out = [
        ('an empty file', b'', 'an empty file'),
        ('one byte', b'\xff', 'not an image'),
        ('zeros alone', bytes(5000), 'not an image'),
        ('text named .jpg', b'Dear customer,\nthe photo will follow.', 'not an image but a text'),
        (
            'an HTML page named .png',
            b'<!DOCTYPE html><html><h1>404</h1></html>',
            'not an image but an HTML page',
        ),
        ('random bytes', random.Random(1).randbytes(5000), 'not an image'),
        ('JPEG', jpeg, 'scene'),
        ('JPEG with junk after its end', jpeg + random.Random(2).randbytes(9999), 'scene'),
        ('JPEG with junk before its start', b'junk' + jpeg, 'not an image'),
        ('JPEG without its end mark', jpeg[:-2], 'truncated'),
        ('JPEG, two in one file', jpeg * 2, 'scene'),
        ('JPEG, progressive', enc(s, 'JPEG', progressive=True, quality=95), 'scene'),
        ('JPEG, grey', enc(s.convert('L'), 'JPEG', quality=95), 'grey'),
        (
            'JPEG, CMYK with inverted inks (Adobe)',
            enc(s.convert('CMYK'), 'JPEG', quality=95),
            'scene',
        ),
        (
            'JPEG that says its height later',
            jpeg[: (i := jpeg.index(b'\xff\xc0')) + 5] + b'\0\0' + jpeg[i + 7 :],
            'damaged JPEG',
        ),
        ('JPEG without tables', jpeg.replace(b'\xff\xdb', b'\xff\xfe'), ''),
        (
            'JPEG whose EXIF is 60 KB of nothing',
            enc(s, 'JPEG', exif=b'Exif\0\0' + bytes(60000), quality=95),
            'scene',
        ),
        (
            'JPEG whose EXIF is broken',
            enc(s, 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01', quality=95),
            'scene',
        ),
        ('PNG whose EXIF is garbage', enc(s, 'PNG', exif=b'Exif\0\0garbage!'), 'scene'),
        ('WebP whose EXIF is cut off', enc(s, 'WEBP', exif=b'Exif\0\0II', lossless=True), 'scene'),
        (
            'JPEG turned by an EXIF that is otherwise broken',
            enc(lying(6), 'JPEG', exif=exif_odd(6), quality=95),
            'scene',
        ),
        ('JPEG with EXIF orientation 99', enc(s, 'JPEG', exif=exif(99), quality=95), 'scene'),
        (
            'JPEG with a broken colour profile',
            enc(s, 'JPEG', icc_profile=b'no profile', quality=95),
            'scene',
        ),
        (
            'JPEG of 30000 x 30000 by its header',
            jpeg[: i + 5] + struct.pack('>HH', 30000, 30000) + jpeg[i + 9 :],
            '900 megapixels',
        ),
        (
            'JPEG of 60000 x 60000 by its header',
            jpeg[: i + 5] + struct.pack('>HH', 60000, 60000) + jpeg[i + 9 :],
            '3,600 megapixels',
        ),
        ('JPEG with 20,000 scans', scans(20000), 'scans'),
        ('PNG', p, 'scene'),
        ('PNG named .jpg', p, 'scene'),
        ('PNG, palette', enc(s.convert('P'), 'PNG'), 'scene'),
        ('PNG, palette with transparency', enc(clear, 'PNG'), 'scene'),
        ('PNG, RGBA', enc(rgba, 'PNG'), 'scene'),
        ('PNG, grey with transparency', enc(s.convert('LA'), 'PNG'), 'grey'),
        ('PNG, 16-bit', enc(deep, 'PNG'), 'grey'),
        ('PNG, 1-bit', enc(s.convert('1'), 'PNG'), 'read'),
        ('PNG, wholly transparent', enc(Image.new('RGBA', (9, 9)), 'PNG'), 'read'),
        ('PNG, animated', enc(s, 'PNG', save_all=True, append_images=many[1:]), 'scene'),
        ('PNG with a wrong checksum', p[:29] + b'\0\0\0\0' + p[33:], 'damaged PNG'),
        ('PNG without pixels', p[:33], 'damaged PNG'),
        ('PNG of 0 x 0', png(size=(0, 0)), 'damaged PNG'),
        ('PNG of 30000 x 30000 by its header', png(size=(30000, 30000)), '900 megapixels'),
        (
            'PNG of 12000 x 9000, packed to 13 KB',
            enc(Image.new('1', (12000, 9000)), 'PNG'),
            '108 megapixels',
        ),
        ('PNG of 2^31 x 2^31 by its header', png(size=(2**31 - 1,) * 2), 'megapixels'),
        ('PNG with a text that unpacks to 200 MB', png(chunk(b'zTXt', b'a\0\0' + bomb)), 'scene'),
        (
            'PNG with an international text that unpacks to 200 MB',
            png(chunk(b'iTXt', b'a\0\1\0\0\0' + bomb)),
            'scene',
        ),
        (
            'PNG with a profile that unpacks to 200 MB',
            png(chunk(b'iCCP', b'a\0\0' + bomb)),
            'scene',
        ),
        ('PNG whose pixels say that they are 4 GB', p[:33] + b'\xff\xff\xff\xff' + p[37:], 'scene'),
        ('PNG, its pixels twice as long', png(im=s.resize((64, 96))), 'read'),
        ('1 x 1', enc(Image.new('RGB', (1, 1)), 'PNG'), 'read'),
        ('1 x 20000', enc(Image.new('RGB', (1, 20000)), 'PNG'), 'read'),
        ('20000 x 1', enc(Image.new('RGB', (20000, 1)), 'JPEG'), 'read'),
        ('JPEG of 1 x 1', enc(Image.new('RGB', (1, 1)), 'JPEG'), 'read'),
        ('GIF', enc(s, 'GIF'), 'scene'),
        ('GIF, animated', enc(s, 'GIF', save_all=True, append_images=many[1:]), 'scene'),
        (
            'GIF of 65535 x 65535 by its header',
            b'GIF89a' + b'\xff' * 4 + enc(s, 'GIF')[10:],
            'megapixels',
        ),
        ('WebP', enc(s, 'WEBP', quality=95), 'scene'),
        (
            'WebP, animated',
            enc(s, 'WEBP', save_all=True, append_images=many[1:], lossless=True),
            'scene',
        ),
        ('WebP, transparent', enc(rgba, 'WEBP', lossless=True), 'scene'),
        ('AVIF', enc(s, 'AVIF', quality=95), 'scene'),
        ('JPEG 2000', enc(s, 'JPEG2000'), 'scene'),
        ('JPEG 2000, grey with transparency', enc(s.convert('LA'), 'JPEG2000'), 'grey'),
        ('TIFF', enc(s, 'TIFF'), 'scene'),
        ('TIFF, several pages', enc(s, 'TIFF', save_all=True, append_images=many[1:]), 'scene'),
        ('TIFF, compressed as JPEG', enc(s, 'TIFF', compression='jpeg', quality=95), 'scene'),
        ('TIFF, LZW', enc(s, 'TIFF', compression='tiff_lzw'), 'scene'),
        ('TIFF, float', enc(s.convert('F'), 'TIFF'), 'grey'),
        (
            'TIFF, float with NaN and infinity',
            enc(Image.fromarray(np.float32([[np.nan, np.inf], [-np.inf, 0.5]])), 'TIFF'),
            'read',
        ),
        (
            'TIFF, 16-bit big-endian',
            enc(Image.frombytes('I;16B', s.size, np.asarray(deep).astype('>u2').tobytes()), 'TIFF'),
            'grey',
        ),
        ('TIFF, CMYK', enc(s.convert('CMYK'), 'TIFF'), 'scene'),
        (
            'TIFF, LAB',
            enc(
                ImageCms.profileToProfile(
                    s,
                    ImageCms.createProfile('sRGB'),
                    ImageCms.createProfile('LAB'),
                    outputMode='LAB',
                ),
                'TIFF',
            ),
            'scene',
        ),
        ('TIFF, YCbCr', enc(s.convert('YCbCr'), 'TIFF'), 'scene'),
        ('TIFF, 1-bit fax', enc(s.convert('1'), 'TIFF', compression='group4'), 'read'),
        ('TIFF whose pages form a ring', tiff(gray_tiff(8, 8), after=8) + bytes(200), 'read'),
        (
            'TIFF whose sub-directory is itself',
            tiff(gray_tiff(8, 8, [(34665, 4, 1, 8)])) + bytes(300),
            'read',
        ),
        (
            'TIFF with a tag of 4 billion values',
            tiff([(256, 4, 2**32 - 1, 8), *gray_tiff(8, 8)[1:]]),
            'damaged TIFF',
        ),
        ('TIFF of 30000 x 30000 by its header', tiff(gray_tiff(30000, 30000)), '900 megapixels'),
        (
            'TIFF whose strips lie beyond its end',
            tiff([e if e[0] != 273 else (273, 4, 1, 10**9) for e in gray_tiff(8, 8)]),
            '',
        ),
        (
            'TIFF with nine channels',
            enc(s, 'TIFF').replace(
                struct.pack('<HHIH', 277, 3, 1, 3), struct.pack('<HHIH', 277, 3, 1, 9)
            ),
            '',
        ),
        ('BMP', enc(s, 'BMP'), 'scene'),
        ('BMP with a lying height', bmp(64, 10**6), ''),
        ('BMP of negative width', bmp(-64, 48), ''),
        ('BMP of 4 megapixels, packed to 5 KB', bmp(2000, 2000, 1, 8, b'\1\0\0\0' * 2000), 'read'),
        ('PPM', enc(s, 'PPM'), 'scene'),
        ('PPM as text', b'P3 2 1 255 255 0 0 0 0 255', 'read'),
        ('PPM of 90000 x 90000', b'P6 90000 90000 255 ', 'megapixels'),
        ('PPM with a number of a million digits', b'P6 ' + b'9' * 10**6, ''),
        ('ICO', enc(s.resize((48, 48)), 'ICO'), 'read'),
        ('ICO of 30000 x 30000 by the PNG in it', ico(png(size=(30000, 30000))), '900 megapixels'),
        ('PSD without anything', b'8BPS\0\1' + bytes(6) + b'\0\3' + bytes(99), 'which is not read'),
        ('PSD', psd(), 'scene'),
        ('PSD of 30000 x 30000 by its header', psd(30000, 30000), '900 megapixels'),
        ('PCX', enc(s, 'PCX'), 'scene'),
        ('DDS', enc(s, 'DDS'), 'scene'),
        (
            'DDS of 30000 x 30000 by its header',
            enc(s, 'DDS').replace(struct.pack('<II', 48, 64), struct.pack('<II', 30000, 30000), 1),
            '900 megapixels',
        ),
        (
            'SVG',
            b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
            'an SVG drawing, which is not read',
        ),
        ('PDF', enc(s, 'PDF'), 'a PDF document'),
        (
            'EPS, which Pillow would give to Ghostscript',
            enc(s, 'EPS'),
            'an EPS drawing, which is not read',
        ),
        ('HEIC', HEIC, 'scene'),
        ('HEIC cut off in the middle', HEIC[: len(HEIC) // 2], 'damaged HEIC'),
        ('HEIC, a header alone', b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(99), 'damaged HEIC'),
        ('a tar named .jpg', b'a.jpg' + bytes(95) + b'0000644\0' + bytes(900), 'not an image'),
        ('TGA', enc(s, 'TGA'), 'scene'),
        ('TGA, packed', enc(s, 'TGA', compression='tga_rle'), 'scene'),
        (
            'TGA of 60000 x 60000 by its header',
            enc(s, 'TGA')[:12] + b'\x60\xea' * 2 + enc(s, 'TGA')[16:],
            '3,600 megapixels',
        ),
    ]
    for f, kw in (
        ('JPEG', {}),
        ('PNG', {}),
        ('WEBP', {}),
        ('GIF', {}),
        ('TIFF', {}),
        ('AVIF', {}),
        ('BMP', {}),
        ('JPEG2000', {}),
    ):
        b = enc(Image.effect_noise((64, 48), 99).convert('RGB'), f, **kw)
        out += [
            (f'{f} cut off in the middle', b[: len(b) // 2], ''),
            (f'{f}, a header alone', b[:20], ''),
        ]
    for t in range(1, 9):
        out.append(
            (
                f'JPEG with EXIF orientation {t}',
                enc(lying(t), 'JPEG', exif=exif(t), quality=95, subsampling=0),
                'scene',
            )
        )
        out.append((f'PNG with EXIF orientation {t}', enc(lying(t), 'PNG', exif=exif(t)), 'scene'))
        out.append(
            (f'TIFF with orientation {t}', enc(lying(t), 'TIFF', tiffinfo={274: t}), 'scene')
        )
        out.append(
            (
                f'WebP with EXIF orientation {t}',
                enc(lying(t), 'WEBP', exif=exif(t), lossless=True),
                'scene',
            )
        )
    return out


def decoded(load, src, **kw):  # pixels, or the reason
    try:
        return np.array(load(src, **kw))
    except BadImage as e:
        return str(e)


def right(name, data, want) -> Case:
    "Is a picture read as it should be, by both functions and at two scales?"
    tries = [
        [decoded(f, data, side=side) for f in (load_image, load_pixels)] for side in (None, 16)
    ]
    got = tries[0][0]
    same = all(
        a == b if isinstance(a, str) or isinstance(b, str) else np.array_equal(a, b)
        for a, b in tries
    )
    same &= isinstance(tries[0][0], str) == isinstance(tries[1][0], str)
    why = (
        ''
        if same
        else f'load_image and load_pixels differ: {[[str(o)[:80] for o in t] for t in tries]}'
    )
    if not isinstance(got, str) and want in ('scene', 'grey'):
        ref = np.array(scene() if want == 'scene' else scene().convert('L').convert('RGB'))
        ys, xs = np.ix_((12, 36), (16, 48))  # the middle of each corner
        if got.shape != ref.shape or abs(got[ys, xs].astype(int) - ref[ys, xs]).max() > 40:
            why += 'another picture'
    elif isinstance(got, str) == (want == 'read') or isinstance(got, str) and want not in got:
        why += f'got {str(got)[:99]}, not {want}'
    return Case(
        name, not why, 2 if isinstance(got, str) else 0, got if isinstance(got, str) else '', why, 4
    )


# ---- names, links and other things that a folder holds

NAMES = [
    'a b.png',
    "it's.png",
    'say "hi".png',
    'two\nlines.png',
    'a\ttab.png',
    '-dash.png',
    '--config.png',
    '100%20.png',
    '%s%d.png',
    '🐘.png',
    'e\u0301 NFD.png',
    '\u00e9 NFC.png',
    'x,y;z|w.png',
    '=SUM(A1).png',
    '#1.png',
    '&lt;b&gt;.png',
    '$HOME `id` $(id).png',
    'back\\slash.png',
    'rtl \u202egnp.exe.png',
    'esc \x1b[31m red.png',
    'NaN',
    'null',
    '1e5',
    '007',
    '.hidden.png',
    'noending',
    'UPPER.PNG',
    'photo.jpeg.gif',
    'n' * 251 + '.png',
    '鞋' * 83 + '.png',
    'a/b/../c.png',
    './d.png',
    'deep/' * 60 + 'x.png',
    'CON.png',
    'end. .png',
]


def odd_files(root):
    """Make things that a folder may hold; {name: what reading says, or None where there is a
    picture}
    """
    root = Path(root)
    (root / 'inside').mkdir(parents=True)
    outside = root.parent / 'outside'
    outside.mkdir(exist_ok=True)
    p = enc(scene(), 'PNG')
    (root / 'inside/x.png').write_bytes(p)
    (outside / 'x.png').write_bytes(p)
    out = {'inside/x.png': None}

    def link(name, to, says=None):
        os.symlink(to, root / name)
        out[name] = says

    link('link.png', 'inside/x.png')
    link('link out.png', outside / 'x.png')
    link('folder link', outside)
    out['folder link/x.png'] = out.pop('folder link')
    link('dangling.png', 'nowhere.png', 'no such file')
    link('loop.png', 'loop.png', 'symbolic links')
    (root / 'folder.jpg').mkdir()
    out['folder.jpg'] = 'a folder'
    os.mkfifo(root / 'pipe.jpg')
    out['pipe.jpg'] = 'a pipe or a device'
    for n in ('zero', 'random', 'tty', 'full'):
        link(f'{n}.jpg', f'/dev/{n}', 'a pipe or a device')
    link('memory.jpg', '/proc/self/mem', '')
    link('environment.jpg', '/proc/self/environ', 'not an image')
    with open(root / 'film.jpg', 'wb') as f:
        f.truncate(20 * 10**9)
    out['film.jpg'] = '20.0 GB, over the limit'
    with open(root / 'zeros.jpg', 'wb') as f:
        f.truncate(3 * 10**8)
    out['zeros.jpg'] = 'not an image'
    (root / 'empty.png').touch()
    out['empty.png'] = 'an empty file'
    out['nothing.png'] = out['inside/x.png/y.png'] = 'no such file'
    out['n' * 300 + '.png'] = 'too long'
    return out | odd_tars(root, p)


def odd_tars(root, p):
    "Tars whose members would lead out"

    def add(t, name, kind=tarfile.REGTYPE, data=p, **kw):
        m = tarfile.TarInfo(name)
        m.type = kind
        m.size = len(data) if kind == tarfile.REGTYPE else 0
        for k, v in kw.items():
            setattr(m, k, v)
        t.addfile(m, BytesIO(data) if m.size else None)

    with tarfile.open(root / 't.tar', 'w') as t:
        add(t, 'good.png')
        add(t, '../outside/x.png')
        add(t, '/absolute.png')
        add(t, 'a/../../up.png')
        add(t, '', data=b'')
        add(t, 'soft.png', tarfile.SYMTYPE, linkname='../outside/x.png')
        add(t, 'hard.png', tarfile.LNKTYPE, linkname='good.png')
        add(t, 'passwd.png', tarfile.SYMTYPE, linkname='/etc/passwd')
        add(t, 'dev.png', tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(t, 'fifo.png', tarfile.FIFOTYPE)
        add(t, 'sparse.png', tarfile.GNUTYPE_SPARSE)
        add(t, 'broken.png', data=p[:60])
        add(
            t,
            'pax.png',
            data=b'1\n0\n9\n'.ljust(512, b'\0') + p,
            pax_headers={
                'GNU.sparse.major': '1',
                'GNU.sparse.minor': '0',
                'GNU.sparse.realsize': '99999999999',
            },
        )
        add(t, 'name in pax 鞋 ' * 20 + '.png')
    for name, b in (
        ('cut.tar', (root / 't.tar').read_bytes()[:600]),
        ('gz.tar', b'\x1f\x8b' + bytes(999)),
        ('not.tar', b'no' * 999),
        ('void.tar', b''),
    ):
        (root / name).write_bytes(b)
    long = tarfile.TarInfo('long')
    long.type = tarfile.GNUTYPE_LONGNAME
    long.size = 10**10
    (root / 'long.tar').write_bytes(long.tobuf(tarfile.GNU_FORMAT))
    os.truncate(root / 'long.tar', 2 * 10**10)
    none = 'no such file in t.tar'
    return {
        't.tar/good.png': None,
        't.tar/absolute.png': None,
        't.tar/' + 'name in pax 鞋 ' * 20 + '.png': None,
        't.tar/up.png': none,
        't.tar/outside/x.png': none,
        **{
            f't.tar/{n}.png': none
            for n in ('soft', 'hard', 'passwd', 'dev', 'fifo', 'sparse', 'pax', 'missing')
        },
        't.tar/soft.png/x.png': none,
        't.tar/broken.png': '',
        't.tar': 'not an image',
        'cut.tar/good.png': 'cut off inside it',
        'cut.tar/x.png': 'which is cut off',
        'gz.tar/x.png': 'gz.tar is not a plain tar',
        'not.tar/x.png': 'not a plain tar',
        'void.tar/x.png': 'not a plain tar',
        'long.tar/long': 'no',
    }


@contextlib.contextmanager
def within(seconds):
    "Whatever hangs ends in a TimeoutError"

    def late(*a):
        raise TimeoutError(f'still busy after {seconds} s')

    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def read_odd(work):
    "The odd files one by one"
    root = Path(work) / 'odd/images'
    for name, says in odd_files(root).items():
        try:
            with within(20):
                got = [decoded(f, root / name) for f in (load_image, load_pixels)]
        except Exception as e:
            yield Case(f'file {name[:40]}', False, 1, why=repr(e))
            continue
        a, b = got
        said = isinstance(a, str)
        good = (
            a == b and says is not None and says in a and ('cut off' in a) == ('cut off' in says)
            if said
            else says is None and np.array_equal(a, b)
        )
        yield Case(
            f'file {name[:40]}',
            good,
            2 * said,
            a if said else '',
            '' if good else f'got {a}, {b}, not {says}',
            2,
        )


# ---- through the command line


def noise(name):
    return Image.fromarray(
        np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (6, 6, 3), np.uint8)
    ).resize((64, 64))


def awkward_project(work):
    """A trained project with every awkward thing among its candidates, odd names also in query_gt;
    {path: what is said, or None}
    """
    p = project(work)
    root = p / 'images'
    want = odd_files(root)
    for i, (name, b, says) in enumerate(pictures()):
        f = f'kinds/{i:03} {re.sub("[^A-Za-z0-9]+", " ", name)}.jpg'
        (root / f).parent.mkdir(exist_ok=True)
        (root / f).write_bytes(b)
        want[f] = None if says in ('read', 'scene', 'grey') else says
    for n in NAMES:
        f = root / n
        for d in [*f.parents]:
            d.mkdir(parents=True, exist_ok=True)
        (root / 'a/b').mkdir(parents=True, exist_ok=True)
        noise(n).save(f, 'PNG')
        want[n] = None
    old = pd.read_csv(p / 'candidates.csv', dtype=str, keep_default_na=False)
    pd.concat([old, pd.DataFrame({'cand_path': list(want)})]).to_csv(
        p / 'candidates.csv', index=False
    )
    gt = pd.DataFrame({'query_path': NAMES, 'gt_cand_path': NAMES})
    pd.concat([pd.read_csv(p / 'query_gt.csv', dtype=str), gt]).to_csv(
        p / 'query_gt.csv', index=False
    )
    c = p / 'config.yaml'
    c.write_text(c.read_text().replace('data: {', 'data: {on_bad: skip, ') + 'query: {runs: 1}\n')
    return p, want


def table(f):
    return pd.read_csv(f, dtype=str, keep_default_na=False)


def skipped(p, want):
    "What is left out is named and counted; the others are found"
    bad = {k for k, v in want.items() if v is not None}
    # A name with a line break is one row
    rows = {v: str(i + 2) for i, v in enumerate(table(p / 'candidates.csv').cand_path)}
    with within(600):
        status, _, err = cli('--config', p / 'config.yaml', '--stage', 'index')
    t = (
        table(p / 'out/bad_images.csv')
        if status == 0
        else pd.DataFrame(columns=['file', 'row', 'path', 'reason'])
    )
    told = dict(zip(t.path, t.reason))
    wrong = {k for k in bad if k not in told or want[k] not in told[k]} | (set(told) - bad)
    yield judged(
        f'{len(want)} awkward candidates, on_bad: skip',
        status,
        err,
        0,
        f'{len(bad)} of ',
        len(want),
        not wrong,
        f'bad_images.csv is wrong about {sorted(wrong)[:5]}: '
        f'{[told.get(k) for k in sorted(wrong)[:5]]}',
    )
    yield judged(
        'bad_images.csv gives file, row, path and reason',
        status,
        err,
        0,
        '',
        len(t),
        [list(t), set(t.row) <= set(rows.values()), set(t.file)]
        == [['file', 'row', 'path', 'reason'], True, {str(p / 'candidates.csv')}]
        and all(rows[a] == r for a, r in zip(t.path, t.row)),
    )
    listed = table(p / 'out/index/candidates.csv').cand_path.tolist() if status == 0 else []
    # ./x is x, and guards a name that a spreadsheet would compute
    spelt = {normpath(name) for name in listed}
    good = {normpath(name) for name, reason in want.items() if reason is None}
    yield judged(
        'every readable candidate is in the index, under its own name',
        status,
        err,
        0,
        '',
        len(NAMES),
        spelt >= good and not spelt & {normpath(name) for name in bad},
    )
    with within(600):
        status, _, err = cli('--config', p / 'config.yaml', '--stage', 'eval')
    names = (
        {normpath(name) for name in table(p / 'out/per_query.csv').query_path}
        if status == 0
        else set()
    )
    lost = {normpath(name) for name in NAMES} - names
    yield judged('odd names in per_query.csv', status, err, 0, '', len(NAMES), not lost, f'{lost}')
    yield from queried(p, want)


def queried(p, want):
    "The same things as queries"
    root = p / 'images'

    def q(*paths):
        return cli(
            '--config', p / 'config.yaml', '--stage', 'query', '--topk', '1', '--image', *paths
        )

    with within(600):
        status, _, err = q(*(os.path.join(root, n) for n in NAMES))
    d = json.loads((p / 'out/query.json').read_text()) if status == 0 else dict(queries=[])
    hits = {Path(o['image']): o['hits'][0]['cand_path'] for o in d['queries']}
    lost = [n for n in NAMES if os.path.normpath(hits.get(root / n, '')) != os.path.normpath(n)]
    yield judged(
        'odd names as queries find themselves',
        status,
        err,
        0,
        '',
        len(NAMES),
        not lost,
        f'lost: {lost}',
    )
    bad = [
        k
        for k, v in want.items()
        if v is not None and os.path.lexists(root / k) and not (root / k).is_dir()
    ]
    with within(600):
        status, _, err = q(*(root / k for k in bad), root / NAMES[0])
    yield judged('queries of which one can be read', status, err, (0, 2), '', len(bad))
    with within(600):
        status, _, err = q(root / 'kinds')
    yield judged(
        'a folder of awkward pictures as queries', status, err, 0, 'it is left out', len(want)
    )


def trained(work):
    "The same as training queries and right answers: training uses those that can be read"
    p, want = awkward_project(work)
    bad = {k for k, v in want.items() if v is not None}
    old = table(p / 'pairs.csv')
    n = len(old)
    both = [(q, old.cand_path[i % n]) for i, q in enumerate(want)] + [
        (old.query_path[i % n], c) for i, c in enumerate(want)
    ]
    pd.concat([old, pd.DataFrame(both, columns=list(old))]).to_csv(p / 'pairs.csv', index=False)
    shutil.rmtree(p / 'out')
    with within(900):
        status, _, err = cli('--config', p / 'config.yaml', '--stage', 'all')
    t = table(p / 'out/bad_images.csv')
    told = set(t.path[t.file == str(p / 'pairs.csv')]) if status == 0 else set()
    yield judged(
        f'{len(want)} awkward queries and answers in pairs.csv, on_bad: skip, --stage all',
        status,
        err,
        0,
        '',
        2 * len(want),
        told == bad and (p / 'out/metrics.json').exists(),
        f'bad_images.csv is wrong about {sorted(told ^ bad)[:5]}',
    )


def refused(p, want, long):
    "on_bad: error names the first; the index and the file of bad pictures stay as they should"
    c = p / 'config.yaml'
    c.write_text(c.read_text().replace('on_bad: skip', 'on_bad: error'))
    cands = table(p / 'candidates.csv')
    bad = [k for k, v in want.items() if v is not None]
    few = [
        'dangling.png',
        'pipe.jpg',
        'film.jpg',
        'zero.jpg',
        next(k for k in bad if 'HEIC' in k),
        next(k for k in bad if 'scans' in k),
    ]
    before = {f: f.read_bytes() for f in (p / 'out/index').iterdir()}
    for k in bad if long else few:
        pd.concat([cands[:3], pd.DataFrame({'cand_path': [k]})]).to_csv(
            p / 'candidates.csv', index=False
        )
        with within(120):
            status, _, err = cli('--config', p / 'config.yaml', '--stage', 'index')
        t = table(p / 'out/bad_images.csv')
        same = before == {f: f.read_bytes() for f in (p / 'out/index').iterdir()}
        yield judged(
            f'on_bad: error, {k[:50]}',
            status,
            err,
            2,
            f'candidates.csv row 5: {k} is not a readable image (',
            1,
            same and t[['row', 'path']].values.tolist() == [['5', k]] and want[k] in t.reason[0],
        )


def single(p, want, long):
    "One awkward thing as the only query"
    root = p / 'images'
    some = (
        list(want)
        if long
        else [
            'dangling.png',
            'pipe.jpg',
            'film.jpg',
            'folder.jpg',
            't.tar/soft.png',
            'link out.png',
            'n' * 300 + '.png',
        ]
    )
    for k in some:
        with within(120):
            status, _, err = cli(
                '--config', p / 'config.yaml', '--stage', 'query', '--image', os.path.join(root, k)
            )
        yield judged(f'--image {k[:50]}', status, err, 2 if want[k] is not None else 0)
    names = [os.fsdecode(b'caf\xe9 %d.png' % i) for i in range(2)] + [
        '\ud83d\udc18 elephant.png'.encode('utf-16', 'surrogatepass').decode('utf-16')
    ]
    for n in names:
        noise(ascii(n)).save(root / n, 'PNG')
    for code in ('utf-8', 'ascii') if long else ('ascii',):
        status, _, err = shell(
            '--config',
            p / 'config.yaml',
            '--stage',
            'query',
            '--image',
            *(root / n for n in names),
            env={**os.environ, 'PYTHONIOENCODING': code},
        )
        yield judged(f'names that are not UTF-8, on a terminal that is {code}', status, err, 0)
    bad = root / 'esc \x1b[2J\nnext line.png'
    bad.write_text('no picture')
    status, _, err = cli('--config', p / 'config.yaml', '--stage', 'query', '--image', bad)
    yield judged(
        'a name with a line break and an escape sequence, unreadable',
        status,
        err,
        2,
        also='\x1b' not in err and err.count('\n') == 1,
        why='the name is printed raw',
    )


# ---- files that change while they are read


def changing(p):
    """A run ends with the old or the new picture's vector, and the next run with that of the
    picture which is there
    """
    from two_tower_vs import embed as E
    from two_tower_vs import reading as R
    from two_tower_vs.saving import load_model

    tower = load_model(p / 'out/model').cand
    cache = p / 'out/cache'
    real = R.read_stamped
    A = enc(scene(), 'PNG')
    B = enc(noise('b'), 'PNG')

    def vectors(paths):
        e = E.embed(tower, list(map(str, paths)), '', cache, progress=False)
        at = dict(zip(e.paths, e.vectors))
        return [e.bad.get(str(f)) or at[str(f)] for f in paths]

    def put(f, data):
        t = f.with_name('new')
        t.write_bytes(data)
        os.replace(t, f)

    def flip(d, to):
        t = d / 'l'
        os.symlink(to, t)
        os.replace(t, d / 'link.png')

    def swap(d):
        os.rename(d / 'd', d / 't')
        os.rename(d / 'e', d / 'd')
        os.rename(d / 't', d / 'e')

    def lay(d):
        for f, data in ((d / 'a.png', A), (d / 'b.png', B), (d / 'd/x.png', A), (d / 'e/x.png', B)):
            f.parent.mkdir(parents=True, exist_ok=True)
            f.write_bytes(data)
        flip(d, 'a.png')

    def nothing(d):
        return None

    def a(d):
        return d / 'a.png'

    def cut(d):
        return os.truncate(a(d), 99)

    # Which file, before it is read, after it, what the run finds, what the next one finds
    SCENES = (
        ('replaced before it is read', 'a.png', lambda d: put(a(d), B), nothing, 'B', 'B'),
        ('replaced after it is read', 'a.png', nothing, lambda d: put(a(d), B), 'A', 'B'),
        (
            'overwritten before it is read',
            'a.png',
            lambda d: a(d).write_bytes(B),
            nothing,
            'B',
            'B',
        ),
        ('cut off before it is read', 'a.png', cut, nothing, '-', '-'),
        ('cut off for a moment', 'a.png', cut, lambda d: a(d).write_bytes(A), '-', 'A'),
        ('removed before it is read', 'a.png', lambda d: a(d).unlink(), nothing, '-', '-'),
        (
            'replaced by a pipe',
            'a.png',
            lambda d: (a(d).unlink(), os.mkfifo(a(d))),
            nothing,
            '-',
            '-',
        ),
        (
            'replaced by a folder',
            'a.png',
            lambda d: (a(d).unlink(), a(d).mkdir()),
            nothing,
            '-',
            '-',
        ),
        (
            'reached by a link that points elsewhere for a moment',
            'link.png',
            lambda d: flip(d, 'b.png'),
            lambda d: flip(d, 'a.png'),
            'B',
            'A',
        ),
        ('in a folder that is swapped for a moment', 'd/x.png', swap, swap, 'B', 'A'),
    )
    dirs = [p / f'changing/{i}' for i in range(len(SCENES) + 1)]
    files = [d / o[1] for d, o in zip(dirs, SCENES)]
    first = []
    for d in dirs:
        lay(d)
    va, vb = vectors([a(dirs[-1]), dirs[-1] / 'b.png'])

    def known(v):
        return (
            '-' if isinstance(v, str) else 'A' if v @ va > 0.999 else 'B' if v @ vb > 0.999 else '?'
        )

    time.sleep(2.2)  # only what has rested for two seconds has a stamp
    for d, f, (_, _, before, after, _, _) in zip(dirs, files, SCENES):

        def read(path):
            before(d)
            try:
                return real(path)
            finally:
                after(d)

        with within(60), patch.object(R, 'read_stamped', read):
            first += vectors([f])
    time.sleep(2.2)
    with within(60):
        then = vectors(files)
        last = vectors(files)
    for (name, *_, one, two), v, w, x in zip(SCENES, first, then, last):
        got = known(v) + known(w) + known(x)
        yield Case(
            f'a file {name}',
            got == one + two + two and va @ vb < 0.99,
            message=v if isinstance(v, str) else '',
            tries=3,
            why=f'this run, the next, the one after find {got}, not {one + two + two}',
        )


# ---- fuzzing


def seeds():
    s = scene().resize((40, 30))
    n = Image.effect_noise((40, 30), 60).convert('RGB')
    n.paste(s.resize((20, 15)), (0, 0))
    kw = dict(
        JPEG=dict(exif=exif(6)),
        PNG=dict(exif=exif(6)),
        WEBP=dict(exif=exif(6)),
        TIFF=dict(tiffinfo={274: 6}),
    )
    out = {
        f: enc(n, f, **kw.get(f, {}))
        for f in (
            'JPEG',
            'PNG',
            'WEBP',
            'GIF',
            'TIFF',
            'BMP',
            'JPEG2000',
            'AVIF',
            'PPM',
            'TGA',
            'PCX',
            'DDS',
        )
    }
    return out | {
        'JPEG, progressive': enc(n, 'JPEG', progressive=True),
        'TIFF, LZW': enc(n, 'TIFF', compression='tiff_lzw'),
        'TIFF, JPEG': enc(n, 'TIFF', compression='jpeg'),
        'WebP, lossless': enc(n.convert('RGBA'), 'WEBP', lossless=True),
        'PNG, palette': enc(n.convert('P'), 'PNG'),
        'CMYK': enc(n.convert('CMYK'), 'JPEG'),
        'BMP, RLE': bmp(40, 30, 1, 8, b'\5\1\0\0\0\2\3\1\0\4abcd' * 20),
        'TIFF, fax': enc(n.convert('1'), 'TIFF', compression='group4'),
        'ICO': enc(n, 'ICO'),
        'PSD': psd(),
        'HEIC': HEIC,
        'wide gamut': enc(
            n, 'PNG', icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
        ),
    }


def mutated(data, others, r):
    b = bytearray(data)
    for _ in range(r.randint(1, 4)):
        at = r.randrange(min(len(b), r.choice((40, 400, len(b)))) or 1)
        match r.randrange(6):
            case 0:
                b[at : at + 1] = bytes([(b[at : at + 1] or b'\0')[0] ^ 1 << r.randrange(8)])
            case 1:
                n = r.choice((1, 2, 4))
                v = r.choice((0, 1, 256**n - 1, 256**n // 2, 256**n // 2 - 1, r.randrange(256**n)))
                b[at : at + n] = v.to_bytes(n, r.choice(('big', 'little')))
            case 2:
                del b[r.randrange(len(b) + 1) :]
            case 3:
                o = r.choice(others)
                i = r.randrange(len(o))
                b[at : at + r.randrange(40)] = o[i : i + r.randrange(40)]
            case 4:
                n = r.randrange(60)
                b[at:at] = b[at : at + n]
            case 5:
                del b[at : at + r.randrange(1, 20)]
        if not b:
            break
    return bytes(checked(b) if b[:8] == b'\x89PNG\r\n\x1a\n' and r.random() < 0.7 else b)


def checked(b):
    "A PNG with right checksums, so that the fuzz reaches what lies behind them"
    at = 8
    while at + 12 <= len(b):
        n = int.from_bytes(b[at : at + 4], 'big')
        b[at + 8 + n : at + 12 + n] = (
            zlib.crc32(b[at + 4 : at + 8 + n]).to_bytes(4, 'big')
            if at + 12 + n <= len(b)
            else b[at + 8 + n : at + 12 + n]
        )
        at += 12 + n
    return b


def fuzz_worker(start, stop):
    "A line for each mutated file: what came of it"
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)
    files = seeds()
    names = list(files)
    others = list(files.values())
    for i in range(start, stop):
        r = random.Random(i)
        data = mutated(files[names[i % len(names)]], others, r)
        side = r.choice((None, 16))
        try:
            got = [
                decoded(f, data, max_pixels=20_000_000, side=side)
                for f in (load_image, load_pixels)
            ]
            said = [g if isinstance(g, str) else 'read' for g in got]
            good = (
                said[0] == said[1]
                and (said[0] != 'read' or np.array_equal(*got) and got[0].shape[2] == 3)
                and 'memory' not in said[0]
            )
        except Exception as e:
            said = [repr(e)]
            good = False
        print(json.dumps([i, good, said]), flush=True)


def fuzzed(n, limit=20):
    "Crashes, hangs and wrong outcomes among `n` mutated files, each with its number"
    at = 0
    bad = []
    read = 0
    noise = ''
    names = list(seeds())
    while at < n:
        w = subprocess.Popen(
            [sys.executable, __file__, str(at), str(n)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.set_blocking(w.stderr.fileno(), False)
        while at < n:
            line = (
                w.stdout.readline()
                if select.select([w.stdout], [], [], limit if at else 60)[0]
                else ''
            )
            if not line:
                break
            at, good, said = json.loads(line)
            at += 1
            read += said[0] == 'read'
            if not good:
                bad.append(f'{names[(at - 1) % len(names)]}, number {at - 1}: {said}')
        if at < n:
            w.kill()
            bad.append(f'{names[at % len(names)]}, number {at}: {f"ended with {w.wait()}"}')
            at += 1
        w.wait()
        noise += w.stderr.read() or ''
    why = ' | '.join(bad[:9]) or noise[-500:]
    return Case(
        f'headers flipped, cut, spliced and lying, in {len(names)} kinds of file',
        not bad and not noise,
        0,
        f'{read:,} still read, {n - read:,} refused',
        why,
        n,
    )


# ---- memory

HUGE = dict(
    PNG='RGB',
    TIFF='RGB',
    BMP='RGB',
    WEBP='RGB',
    JPEG2000='RGB',
    AVIF='RGB',
    GIF='P',
    PPM='RGB',
    JPEG='RGB',
) | {
    'PNG, RGBA': 'RGBA',
    'PNG, 16-bit': 'I;16',
    'JPEG, CMYK': 'CMYK',
    'JPEG, progressive': 'RGB',
    'JPEG, turned': 'RGB',
    'TIFF, LAB': 'LAB',
    'TIFF, float': 'F',
    'TIFF, LZW': 'RGB',
}


def huge(name):
    "A picture of 100 megapixels"
    kw = (
        dict(progressive=True)
        if 'prog' in name
        else dict(exif=exif(6))
        if 'turned' in name
        else dict(compression='tiff_lzw')
        if 'LZW' in name
        else {}
    )
    im = (
        Image.linear_gradient('L').convert('RGB' if HUGE[name] == 'LAB' else HUGE[name])
        if HUGE[name] != 'I;16'
        else Image.new('I;16', (9, 9), 300)
    )
    if HUGE[name] == 'LAB':
        im = Image.merge('LAB', im.split())
    return enc(im.resize((10000, 10000)), name.split(',')[0], **kw)


def memory_worker(file, threads):
    """Prints the peak of memory, in MB, of decoding a file in several threads at once, over what
    was there before
    """
    from two_tower_vs.threads import in_threads

    # ru_maxrss begins with the parent's
    def peak():
        return int(re.search(r'VmHWM:\s*(\d+)', Path('/proc/self/status').read_text())[1])

    data = Path(file).read_bytes()
    load_image(enc(scene(), 'PNG'))
    before = peak()
    for _ in in_threads(lambda _: load_pixels(data).shape, range(2 * threads), threads):
        pass
    print((peak() - before) // 1024)


def memory(work):
    """Nothing takes more than 16 bytes a pixel for 200 megapixels, and 3 bytes a pixel for each
    thread's finished picture
    """
    for name in HUGE:
        f = Path(work) / 'huge'
        f.write_bytes(huge(name))
        peak = {}
        for n in (1, 4):
            r = subprocess.run(
                [sys.executable, __file__, 'memory', str(f), str(n)],
                capture_output=True,
                text=True,
                timeout=600,
            )
            peak[n] = int(r.stdout) if r.returncode == 0 else 10**6
        yield Case(
            f'memory for 100 megapixels: {name}',
            peak[1] <= 1900 and peak[4] <= 4800,
            0,
            f'{peak[1]:,} MB; {peak[4]:,} MB in 4 threads',
            str(peak) + r.stderr[-300:],
            2,
        )


def quiet():
    "No decoder speaks for itself: nothing on the process's stderr"
    r = subprocess.run(
        [sys.executable, '-W', 'default', __file__, 'quiet'], capture_output=True, text=True
    )
    return Case(
        'decoders say nothing of their own',
        r.returncode == 0 and not r.stderr,
        0,
        '',
        r.stderr[-1000:],
        len(pictures()),
    )


if __name__ == '__main__':
    if sys.argv[1] == 'memory':
        memory_worker(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == 'quiet':
        [decoded(f, b) for _, b, _ in pictures() for f in (load_image, load_pixels)]
    else:
        fuzz_worker(*map(int, sys.argv[1:]))
