"""Verdicts on hits: who may give them, what is written down, and what training makes of them."""

import hashlib
import json
import shutil
import threading

import attack
import numpy as np
import pandas as pd
import pytest
import torch
from starlette.testclient import TestClient

from two_tower_vs.access import make_access
from two_tower_vs.errors import InputError
from two_tower_vs.feedback import FeedbackFile, read_feedback
from two_tower_vs.serve import make_app

TOKEN = 'a-token-for-this-test'


@pytest.fixture
def project(ran):
    yield ran
    shutil.rmtree(ran / 'out/feedback', ignore_errors=True)
    (ran / 'out/feedback.csv').unlink(missing_ok=True)


def client_of(project, **options):
    folder = project / 'out', project / 'images', project / 'query_gt.csv'
    return TestClient(make_app(*folder, feedback=True, **options))


def pictures(project, table, column='query_path'):
    names = pd.read_csv(project / table)[column].unique()
    return [(project / 'images' / name).read_bytes() for name in names]


def say(client, picture, hit, verdict, **more):
    address = '/feedback?' + '&'.join(
        f'{k}={v}' for k, v in dict(hit=hit, verdict=verdict, **more).items()
    )
    return client.post(address, content=picture, headers={'content-type': 'image/png'})


# ---- over HTTP


def test_a_click_is_written_with_its_picture(project):
    client = client_of(project)
    photo = pictures(project, 'pairs.csv')[0]
    answer = client.post('/search?topk=3', content=photo, headers={'content-type': 'image/png'})
    first, second, _ = answer.json()['hits']
    version = answer.json()['version']
    said = say(client, photo, first['id'], 'right', v=version)
    assert said.status_code == 200, said.text
    assert say(client, photo, second['id'], 'wrong').json()['counts'] == dict(
        right=1, wrong=1, queries=1
    )
    found = read_feedback(project / 'out')
    assert list(found.cand_path) == [first['cand_path'], second['cand_path']]
    assert set(found.query_sha256) == {hashlib.sha256(photo).hexdigest()}
    assert (project / 'out' / found.query_picture[0]).read_bytes() == photo
    model = json.loads((project / 'out/model/model.json').read_text())
    assert set(found.model_sha256) == {model['sha256']}


def test_hits_that_were_judged_say_so_and_a_verdict_can_be_taken_back(project):
    client = client_of(project)
    photo, other = pictures(project, 'pairs.csv')[:2]

    def verdicts(picture):
        found = client.post(
            '/search?topk=2', content=picture, headers={'content-type': 'image/png'}
        )
        return [hit.get('verdict') for hit in found.json()['hits']]

    hits = client.post(
        '/search?topk=2', content=photo, headers={'content-type': 'image/png'}
    ).json()
    say(client, photo, hits['hits'][0]['id'], 'wrong')
    assert verdicts(photo) == ['wrong', None]
    assert verdicts(other) == [None, None]
    say(client, photo, hits['hits'][0]['id'], 'right')
    assert verdicts(photo) == ['right', None]
    say(client, photo, hits['hits'][0]['id'], 'none')
    assert verdicts(photo) == [None, None]
    assert client.get('/feedback').json() == dict(right=0, wrong=0, queries=0)


def test_pictures_that_the_server_has_need_not_be_sent(project):
    client = client_of(project)
    assert client.post('/feedback?hit=1&verdict=right&query=0').status_code == 200
    assert client.post('/feedback?hit=1&verdict=right&id=3').status_code == 200
    asked = pd.read_csv(project / 'out/per_query.csv').query_path[0]
    found = read_feedback(project / 'out')
    kept = (project / 'out' / found.query_picture[0]).read_bytes()
    assert kept == (project / 'images' / asked).read_bytes()


@pytest.mark.parametrize(
    'more, status, says',
    [
        ('hit=1&verdict=good', 422, 'verdict'),
        ('verdict=right', 422, 'hit'),
        ('hit=-1&verdict=right', 422, 'hit'),
        ('hit=100000&verdict=right', 404, 'counted from 0'),
        ('hit=1&verdict=right&v=old', 410, 'Search again'),
        ('hit=1&verdict=right&box=2', 422, 'four numbers'),
        ('hit=1&verdict=right&id=1&query=1', 422, 'one of them'),
        ('hit=1&verdict=right&query=99999', 404, 'counted from 0'),
    ],
)
def test_what_is_refused_leaves_nothing(project, more, status, says):
    client = client_of(project)
    answer = client.post(f'/feedback?{more}', content=pictures(project, 'pairs.csv')[0])
    assert answer.status_code == status
    assert says in answer.json()['error']['detail']
    assert not (project / 'out/feedback.csv').exists()
    assert not list((project / 'out/feedback').iterdir())


def test_no_picture_and_too_many(project):
    client = client_of(project, feedback_mb=1)
    assert say(client, b'not a picture', 1, 'right').status_code == 422
    client.app.state.site.feedback.bytes = 2**20
    full = say(client, pictures(project, 'pairs.csv')[0], 1, 'right')
    assert full.status_code == 507
    assert 'serve.feedback_mb' in full.json()['error']['detail']


def test_it_is_off_by_default_and_strangers_need_the_token(project):
    folder = project / 'out', project / 'images'
    off = TestClient(make_app(*folder))
    assert off.get('/health').json()['feedback'] is False
    assert off.post('/feedback?hit=1&verdict=right&id=1').status_code == 403
    with pytest.raises(InputError, match='Set serve.token as well'):
        make_app(*folder, feedback=True, access=make_access('0.0.0.0'))
    with_token = make_app(*folder, feedback=True, access=make_access('0.0.0.0', token=TOKEN))
    client = TestClient(with_token, base_url='http://localhost')
    assert client.post('/feedback?hit=1&verdict=right&id=1').status_code == 401
    own = {'authorization': f'Bearer {TOKEN}'}
    assert client.post('/feedback?hit=1&verdict=right&id=1', headers=own).status_code == 200


def test_a_page_of_another_site_cannot_click(project):
    folder = project / 'out', project / 'images'
    app = make_app(*folder, feedback=True, access=make_access())
    client = TestClient(app, base_url='http://localhost')
    foreign = {'sec-fetch-site': 'cross-site', 'origin': 'http://evil.example'}
    assert client.post('/feedback?hit=1&verdict=right&id=1', headers=foreign).status_code == 403
    assert read_feedback(project / 'out').empty


# ---- the file


def test_clicks_at_the_same_time_are_all_there(tmp_path):
    feedback = FeedbackFile(tmp_path)

    def clicks(who):
        for i in range(20):
            feedback.add(f'{who}'.encode(), f'{i}.png', 'right', 'm')

    threads = [threading.Thread(target=clicks, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_feedback(tmp_path)) == 160
    assert feedback.counts() == dict(right=160, wrong=0, queries=8)


def test_names_that_a_spreadsheet_would_compute_come_back_as_they_were(tmp_path):
    names = ['=1+1.png', '@x.png', 'a,b "c".png', "'q.png", '-1.png']
    feedback = FeedbackFile(tmp_path)
    for name in names:
        feedback.add(b'photo', name, 'right', 'm')
    assert sorted(read_feedback(tmp_path).cand_path) == sorted(names)
    assert not any(cell in feedback.file.read_text() for cell in (',=1+1', ',@x', ',-1'))


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    feedback = FeedbackFile(tmp_path)
    feedback.add(b'photo', 'a.png', 'right', 'm')
    before = feedback.file.read_bytes()

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('two_tower_vs.feedback.os.fsync', full)
    with pytest.raises(InputError, match='No space left'):
        feedback.add(b'photo', 'b.png', 'right', 'm')
    assert feedback.file.read_bytes() == before
    assert feedback.on(hashlib.sha256(b'photo').digest()[:16]) == {'a.png': 'right'}


# ---- what training makes of it


def with_training(project, **keys):
    config = project / 'taught.yaml'
    train = ', '.join(f'{name}: {value}' for name, value in keys.items())
    text = (project / 'config.yaml').read_text()
    lines = [line for line in text.splitlines() if not line.startswith('train:')]
    config.write_text('\n'.join([*lines, f'train: {{{train}}}']) + '\n')
    return config


def test_evaluation_queries_never_train(project, cli):
    feedback = FeedbackFile(project / 'out')
    truth = pd.read_csv(project / 'query_gt.csv')
    for row in truth.head(5).itertuples():
        data = (project / 'images' / row.query_path).read_bytes()
        feedback.add(data, row.gt_cand_path, 'right', 'm')
    status, out, err = cli('--config', with_training(project, feedback='true'), '--stage', 'train')
    assert status == 0, err
    assert '5 on a picture of the evaluation' in out
    assert 'No verdict can teach yet' in err


def test_a_folder_without_verdicts_says_so(project, cli):
    status, out, err = cli('--config', with_training(project, feedback='true'), '--stage', 'train')
    assert status == 0, err
    assert 'No verdict can teach yet, so train.feedback changes nothing.' in err


def test_a_damaged_file_is_one_line(project, cli):
    (project / 'out/feedback.csv').write_text('a,b\n1,2\n')
    model = (project / 'out/model/model.json').read_bytes()
    status, _, err = cli('--config', with_training(project, feedback='true'), '--stage', 'train')
    assert status == 2
    assert 'it holds no verdicts' in err
    assert (project / 'out/model/model.json').read_bytes() == model


def test_python_needs_the_verdicts_too(project):
    from two_tower_vs.model import TwoTower
    from two_tower_vs.train import train

    pairs = pd.read_csv(project / 'pairs.csv')
    with pytest.raises(InputError, match='Give taught as well'):
        train(TwoTower(image_size=64), pairs, project / 'images', feedback=True)


# ---- the loss


def loss_of_two_pairs(wrongs):
    "Of a and b with their answers, all at right angles, where W has the direction of a"
    from fastcore.basics import NS

    from two_tower_vs.featurebatches import FeatureBatches
    from two_tower_vs.features import PairFeatures
    from two_tower_vs.objective import Objective
    from two_tower_vs.pairtable import PairTable

    pairs = pd.DataFrame({'query_path': list('ab'), 'cand_path': list('AB')})
    table = PairTable(pairs, others=['W'], wrongs=wrongs)
    eye = torch.eye(4)
    features = PairFeatures(table, eye[None, [0, 1]], eye[None, [2, 3]], eye[[0]], 4)
    head = torch.nn.Linear(4, 4, bias=False)
    head.weight.data = torch.eye(4)
    model = NS(query=NS(head=torch.nn.Identity()), cand=NS(head=head))
    return FeatureBatches(model, features, 0)(np.arange(2), 1, Objective(table, temperature=1.0))


def test_what_people_called_wrong_is_pushed_away():
    wrongs = pd.DataFrame({'query_path': ['a'], 'cand_path': ['W']})
    without = np.log(2)  # both ways: two answers that are equally unlike
    first_row = np.log(2 + np.e)  # W is the query's own direction: cosine 1
    second_row = np.log(3)
    with_it = ((first_row + second_row) / 2 + without) / 2
    assert loss_of_two_pairs(None) == pytest.approx(without, abs=1e-5)
    assert loss_of_two_pairs(wrongs) == pytest.approx(with_it, abs=1e-5)


def test_fine_tuning_pushes_them_away_too():
    from fastcore.basics import NS

    from two_tower_vs.finetune import PictureBatches, finetune
    from two_tower_vs.pairtable import PairTable

    pairs = pd.DataFrame({'query_path': list('ab'), 'cand_path': list('AB')})
    wrongs = pd.DataFrame({'query_path': ['a'], 'cand_path': ['W']})
    table = PairTable(pairs, others=['V', 'W'], wrongs=wrongs)
    model = NS(cand=NS(head=torch.nn.Identity()))
    learner = PictureBatches(model, table, '', 0, None, finetune(), locked=torch.eye(4)[None])
    assert list(learner.hard(np.array([0]), 1)) == [3]
    assert list(learner.hard(np.array([1]), 1)) == []
    more, vectors = learner.from_features(np.arange(2), 1)
    assert list(more) == [3]
    assert torch.equal(vectors, torch.eye(4)[[0, 1, 3]])


def test_verdicts_are_not_asked_about_where_there_are_other_pairs():
    from two_tower_vs.pairtable import PairTable
    from two_tower_vs.validation import hold_out

    names = [str(i) for i in range(60)]
    pairs = pd.DataFrame({'query_path': names, 'cand_path': [f'c{n}' for n in names]})
    table = PairTable(pairs.assign(feedback=np.arange(60) >= 30))
    for seed in range(5):
        asked = hold_out(table, seed=seed).all_queries()
        assert len(asked) and not table.from_feedback[np.isin(table.qi, asked)].any()
    alone = PairTable(pairs.assign(feedback=True))
    assert hold_out(alone).queries


# ---- what it gained

WIDTH = 64


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def made_up(rights):
    """Features of 120 pairs, whose sides differ by a rotation, and of 120 verdicts: right ones, or
    ones that are right by chance alone
    """
    from two_tower_vs.features import PairFeatures
    from two_tower_vs.pairtable import PairTable

    chance = torch.Generator().manual_seed(0)
    cands = unit(torch.randn(240, WIDTH, generator=chance))
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=chance))[0]
    queries = unit(cands @ turn + 1.2 * unit(torch.randn(240, WIDTH, generator=chance)))
    answers = np.arange(240)
    if not rights:
        answers[120:] = np.random.default_rng(0).permutation(answers[120:])
    names = {'query_path': [f'q{i}' for i in range(240)], 'cand_path': [f'c{i}' for i in answers]}
    table = PairTable(pd.DataFrame(names).assign(feedback=np.arange(240) >= 120))
    own = cands[torch.from_numpy(answers)]
    return PairFeatures(table, queries[None], own[None], cands[:0], WIDTH)


def job_of(features):
    from fastcore.basics import NS

    from two_tower_vs.state import State
    from two_tower_vs.steps import make_job

    towers = [NS(head=torch.nn.Linear(WIDTH, 32), backbone=torch.nn.Identity()) for _ in 'qc']
    options = dict(
        seed=42, val_frac=0.15, epochs=0, batch_size=64, weight_decay=0.0, lr=1e-3, progress=False
    )
    options |= dict(loss='info_nce', temperature=0.07, logq=False, matryoshka=None)
    options |= dict(finetune_epochs=0)
    return make_job(NS(query=towers[0], cand=towers[1]), features, '', State(None, ''), options)


@pytest.mark.parametrize('rights, decision', [(True, 'better'), (False, 'worse')])
def test_held_out_pairs_tell_what_verdicts_gained(rights, decision):
    from two_tower_vs.steps import held_out
    from two_tower_vs.taught import feedback_gain

    job = job_of(made_up(rights))
    found = feedback_gain(job, held_out(job, 0))
    assert found['decision'] == decision
    assert json.loads(json.dumps(found)) == found


@pytest.fixture
def trained(tmp_path):
    "A function: options of train -> a model of a small project, and what training did"
    from two_tower_vs.model import TwoTower
    from two_tower_vs.train import train

    folder = attack.project(tmp_path, run=False)
    pairs = pd.read_csv(folder / 'pairs.csv')
    pairs.index += 2

    def of(**options):
        model = TwoTower(image_size=64)
        where = folder / 'images', tmp_path / 'cache'
        options |= dict(epochs=0, views=0, promote='always', progress=False)
        return model, train(model, pairs, *where, **options)

    asked = pd.read_csv(folder / 'query_gt.csv').query_path[:5]
    of.wrong_pairs = pd.DataFrame({'query_path': asked, 'cand_path': pairs.cand_path[:5].values})
    return of


@pytest.mark.rest
def test_verdicts_that_do_harm_are_left_out(trained, monkeypatch):
    from two_tower_vs.teaching import Teaching, nothing

    given = dict(feedback=True, taught=Teaching(trained.wrong_pairs, nothing))
    gain = dict(metric='mrr', value=-0.1, ci95=[-0.2, -0.05], decision='worse', unit='product')
    gain |= {'with': 0.5, 'without': 0.6, 'clusters': 30, 'queries': 30}
    plain, _ = trained()
    monkeypatch.setattr('two_tower_vs.train.feedback_gain', lambda *args: gain)
    with pytest.warns(UserWarning, match='The verdicts of people are not used. They make held-out'):
        model, training = trained(**given)
    assert torch.equal(model.query.head.weight, plain.query.head.weight)
    assert training.feedback['used'] is False
    assert model.training_info['feedback']['right'] == 5
    monkeypatch.setattr('two_tower_vs.train.feedback_gain', lambda *args: None)
    taught, training = trained(**given)
    assert not torch.equal(taught.query.head.weight, plain.query.head.weight)
    assert training.feedback['used'] is True
