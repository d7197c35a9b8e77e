"Files as the server sends them: without metadata, and otherwise as they were."

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from two_tower_vs.errors import BadImage
from two_tower_vs.originals import for_browsers


def saved(image, form, **options):
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010F] = 'secret camera'
    return saved(Image.fromarray(pixels), 'JPEG', exif=exif, comment='secret note')


def test_an_animation_keeps_moving():
    frames = [Image.new('P', (9, 9), i) for i in range(3)]
    options = dict(save_all=True, append_images=frames[1:], loop=0, duration=50, optimize=False)
    moving = saved(frames[0], 'GIF', comment=b'secret', **options)
    clean, kind = for_browsers(moving)
    assert b'secret' in moving and b'secret' not in clean and b'NETSCAPE2.0' in clean
    image = Image.open(BytesIO(clean))
    assert [kind, image.n_frames, image.info['loop']] == ['image/gif', 3, 0]


def test_an_exact_file_is_sent_as_it_is(photo):
    assert b'secret' in photo and b'secret' not in for_browsers(photo)[0]
    assert for_browsers(photo, exact=True) == (photo, 'image/jpeg')


@pytest.mark.parametrize('data', [b'', b'no picture', b'GIF89a'])
def test_no_picture_is_refused(data):
    with pytest.raises(BadImage):
        for_browsers(data)
