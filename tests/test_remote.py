"""Tables and pictures in an object store: fsspec's store in memory stands for s3:// and gs://."""

import json

import fsspec
import pytest
import yaml

from two_tower_vs.data import read_candidates, read_pairs
from two_tower_vs.embed import embed
from two_tower_vs.errors import InputError
from two_tower_vs.listing import list_images
from two_tower_vs.model import TwoTower
from two_tower_vs.remote import Url


@pytest.fixture
def shop(fresh):
    "A project whose pictures and tables lie in the store, and whose config and results on a disk"
    store = fsspec.filesystem('memory')
    settings = yaml.safe_load((fresh / 'config.yaml').read_text())
    store.put(str(fresh / 'images'), '/shop/images', recursive=True)
    for name in ('pairs.csv', 'candidates.csv', 'query_gt.csv'):
        store.put(str(fresh / name), f'/shop/{name}')
    data = settings['data']
    data['images_root'] = 'memory://shop/images'
    for name in ('pairs', 'candidates', 'query_gt'):
        data[name] = f'memory://shop/{name}.csv'
    (fresh / 'config.yaml').write_text(yaml.safe_dump(settings))
    yield fresh
    store.store.clear()
    store.pseudo_dirs[:] = ['']


def test_all_stages(shop, cli):
    "all stages on a store find what they find on a disk"
    config = ['--config', shop / 'config.yaml']
    status, _, said = cli(*config, '--stage', 'all')
    assert status == 0, said
    remote = json.loads((shop / 'out/metrics.json').read_text())
    local = yaml.safe_load((shop / 'config.yaml').read_text())
    local['data'] = {}
    local['data']['images_root'] = 'images'
    local['out'] = 'out2'
    (shop / 'local.yaml').write_text(yaml.safe_dump(local))
    assert cli('--config', shop / 'local.yaml', '--stage', 'all')[0] == 0
    other = json.loads((shop / 'out2/metrics.json').read_text())
    assert remote['trained'] == other['trained'] and remote['baseline'] == other['baseline']
    assert cli(*config, '--stage', 'embed')[0] == 0
    assert 'up to date' in cli(*config, '--stage', 'index')[1]


@pytest.mark.rest
def test_an_edited_table_is_noticed(shop, cli):
    config = ['--config', shop / 'config.yaml']
    for stage in ('train', 'index'):
        assert cli(*config, '--stage', stage)[0] == 0
    table = Url('memory://shop/candidates.csv')
    store = fsspec.filesystem('memory')
    lines = table.read_bytes().splitlines(keepends=True)
    store.pipe('/shop/candidates.csv', b''.join(lines[:-1]))
    picture = next((shop / 'images/line').iterdir())
    said = cli(*config, '--stage', 'query', '--image', picture)[2]
    assert 'candidates.csv was changed after the index was made' in said


def test_broken_and_missing_pictures(shop):
    "each has its reason, and the others are embedded"
    store = fsspec.filesystem('memory')
    root = 'memory://shop/images'
    paths = list(read_candidates('memory://shop/candidates.csv', root).cand_path)
    content = (Url(root) / paths[1]).read_bytes()
    store.pipe(f'/shop/images/{paths[1]}', content[:100])
    store.rm(f'/shop/images/{paths[2]}')
    model = TwoTower(image_size=64, embed_dim=16)
    found = embed(model.cand, paths, root, progress=False)
    assert found.bad.keys() == {paths[1], paths[2]}
    assert 'truncated' in found.bad[paths[1]] and found.bad[paths[2]] == 'no such file'
    disk = embed(model.cand, found.paths, shop / 'images', progress=False)
    assert (found.vectors * disk.vectors).sum(1).min() > 0.99999


def test_a_changed_picture_is_embedded_anew(shop, tmp_path):
    "the cache goes by content, since a store gives no stamps"
    store = fsspec.filesystem('memory')
    root = 'memory://shop/images'
    paths = list(read_candidates('memory://shop/candidates.csv', root).cand_path[:4])
    model = TwoTower(image_size=64, embed_dim=16)
    before = embed(model.cand, paths, root, tmp_path, engine='torch', progress=False)
    store.pipe(f'/shop/images/{paths[0]}', (Url(root) / paths[3]).read_bytes())
    after = embed(model.cand, paths, root, tmp_path, engine='torch', progress=False)
    assert (after.vectors[0] == before.vectors[3]).all()


def test_parquet_folders(shop):
    pd = pytest.importorskip('pandas')
    table = read_pairs('memory://shop/pairs.csv', 'memory://shop/images')
    for number, part in enumerate((table[:20], table[20:])):
        part.to_parquet(f'memory://shop/parts/{number}.parquet', index=False)
    again = read_pairs('memory://shop/parts', 'memory://shop/images')
    pd.testing.assert_frame_equal(
        again.reset_index(drop=True), table.reset_index(drop=True), check_dtype=False
    )


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(images_root='memory://none'), 'memory://none is not a folder'),
        (dict(pairs='memory://shop/none.csv'), 'memory://shop/none.csv: no such file'),
        (dict(images_root='nowhere://x'), 'nowhere://x cannot be read: Protocol not known'),
        (dict(images_root='memory://$NONE_SUCH'), 'the variable NONE_SUCH is not set'),
    ],
)
def test_one_line(shop, cli, change, words):
    settings = yaml.safe_load((shop / 'config.yaml').read_text())
    settings['data'] |= change
    (shop / 'config.yaml').write_text(yaml.safe_dump(settings))
    status, _, said = cli('--config', shop / 'config.yaml', '--stage', 'train')
    lines = [line for line in said.splitlines() if not line.startswith('warning')]
    assert (status, len(lines)) == (2, 1) and words in lines[0], said


def test_results_stay_on_a_disk(shop, cli):
    settings = yaml.safe_load((shop / 'config.yaml').read_text())
    (shop / 'config.yaml').write_text(yaml.safe_dump({**settings, 'out': 'memory://shop/out'}))
    status, _, said = cli('--config', shop / 'config.yaml', '--stage', 'train')
    assert status == 2 and 'a run writes to a disk' in said


def test_listing_is_for_disks():
    with pytest.raises(InputError, match='not a folder'):
        list_images('memory://shop/none')
