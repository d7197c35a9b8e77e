"""Vectors, and the contents they belong to."""

import hashlib

import numpy as np

from two_tower_vs.embed import embed
from two_tower_vs.model import TwoTower


def first_bytes(path):
    "The start of a file's SHA-256"
    return np.frombuffer(hashlib.sha256(path.read_bytes()).digest()[:16], np.uint8)


def test_contents_are_the_hashes_of_the_files(fresh, tmp_path):
    root = fresh / 'images'
    paths = sorted(p.relative_to(root).as_posix() for p in root.glob('color/*.png'))[:12]
    (root / 'broken.png').write_bytes(b'nothing')
    paths.insert(3, 'broken.png')
    tower = TwoTower(pretrained=False, image_size=32, embed_dim=8).cand
    for cache in (None, tmp_path / 'cache', tmp_path / 'cache'):
        embeddings = embed(tower, paths, root, cache)
        assert len(embeddings.paths) == 12
        assert list(embeddings.bad) == ['broken.png']
        want = np.stack([first_bytes(root / p) for p in embeddings.paths])
        assert np.array_equal(embeddings.contents, want)


def test_openvino_sends_nothing(tmp_path):
    "Its telemetry would fork this process and connect to a server at each conversion"
    import subprocess
    import sys

    script = (
        'import sys; from two_tower_vs.embed import embed; from two_tower_vs.model import TwoTower; '
        'from PIL import Image; Image.new("RGB", (40, 40), "red").save(sys.argv[1] + "/a.png"); '
        'tower = TwoTower(pretrained=False, image_size=32, embed_dim=8).cand; '
        'embed(tower, ["a.png"], sys.argv[1], engine="openvino"); '
        'print(sys.modules.get("openvino_telemetry"), "openvino" in sys.modules)'
    )
    ended = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script, tmp_path], capture_output=True, text=True
    )
    assert ended.stdout.strip() == 'None True', ended.stderr
