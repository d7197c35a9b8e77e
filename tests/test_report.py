"What report, model card and command line say of unpromoted runs, few queries, old files."

import json
import re
import warnings
from html import unescape
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from two_tower_vs.comparison import fewest_products
from two_tower_vs.evidence import column_names
from two_tower_vs.model_card import model_card
from two_tower_vs.outcome import held_out_words, interval_unit, kept_words
from two_tower_vs.report import report
from two_tower_vs.runfiles import RunFiles

pytestmark = pytest.mark.rest


def text_of(html):
    "The words of a page, without its style sheet and pictures"
    body = re.sub(r'<(style|script|defs).*?</\1>', ' ', html, flags=re.S)
    return ' '.join(unescape(re.sub('<[^>]+>', ' ', body)).split())


def headings(html, caption):
    "The columns of the table whose caption starts so"
    table = next(
        t
        for t in re.findall('<table.*?</table>', html, re.S)
        if re.search(f'<caption>(<span>)?{caption}', t)
    )
    return re.findall('<th scope="col"[^>]*>(.*?)</th>', table)


def change(file, **new):
    file.write_text(json.dumps(json.loads(file.read_text()) | new))


@pytest.fixture
def page():
    "A function: folder of a project -> (the page's HTML, its words); nothing may be called damaged"

    def made(project):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            file = report(
                project / 'out', project / 'images', project / 'query_gt.csv', project / 'pairs.csv'
            )
        assert not [str(w.message) for w in said if 'damaged' in str(w.message)]
        html = file.read_text(encoding='utf-8')
        return html, text_of(html)

    return made


def settings(project, **train):
    "Set options of training"
    file = project / 'config.yaml'
    config = yaml.safe_load(file.read_text())
    config['train'] |= train
    file.write_text(yaml.safe_dump(config))


def shuffled(project):
    "Give each query of the pairs a wrong answer, so that training cannot help"
    pairs = pd.read_csv(project / 'pairs.csv')
    pairs['cand_path'] = pairs.cand_path.to_numpy()[(pd.RangeIndex(len(pairs)) + 7) % len(pairs)]
    pairs.to_csv(project / 'pairs.csv', index=False)


@pytest.fixture(scope='module')
def unpromoted(tmp_path_factory):
    "A run whose training was not promoted: its pairs are wrong"
    import attack

    project = attack.project(tmp_path_factory.mktemp('unpromoted'), run=False)
    settings(project, promote='better', views=0, epochs=1, val_frac=0.4)
    shuffled(project)
    for stage in ('train', 'eval'):
        status, _, err = attack.cli('--config', project / 'config.yaml', '--stage', stage)
        assert status == 0, err
    return project


def test_unpromoted_run_says_what_happened(unpromoted, page):
    training = json.loads((unpromoted / 'out/model/model.json').read_text())['training']
    metrics = json.loads((unpromoted / 'out/metrics.json').read_text())
    assert training['promoted'] is False and training['validation']
    assert metrics['kept'] == training['kept'] in ('plain', 'centred')
    html, words = page(unpromoted)
    assert kept_words(training) in words and 'Training was not promoted' in words
    assert held_out_words(training) in words
    assert 'too few pairs' not in words and 'Nothing was held out' not in words
    columns = [f'kept ({metrics["kept"]})', 'untrained', 'centred', 'difference']
    assert headings(html, 'In percent')[1:] == columns == list(column_names(metrics))
    chart = re.search('aria-label="In percent. (.*?)"', html)[1]
    assert 'trained ' not in chart.replace('untrained', '')
    assert headings(html, 'Held-out pairs that chose nothing') == [
        'metric',
        'untrained',
        'centred',
        'trained',
    ]
    assert 'Training helped' not in words and 'Recall@1 on held-out pairs that choose' in words


def test_card_of_unpromoted_run(unpromoted):
    training = json.loads((unpromoted / 'out/model/model.json').read_text())['training']
    metrics = json.loads((unpromoted / 'out/metrics.json').read_text())
    tower = SimpleNamespace(prep=dict(size=64, interpolation='bicubic'))
    model = SimpleNamespace(
        query=tower,
        training_info=training,
        sha256='0' * 64,
        config=dict(backbone='efficientnet_lite0', weights=None, pretrained=True, embed_dim=32),
    )
    card = model_card(model, None, metrics)
    assert kept_words(training) in card and held_out_words(training) in card
    assert interval_unit(metrics) in card and 'bootstrap' not in card
    assert f'| kept ({metrics["kept"]}) |' in card and '| centred |' in card


@pytest.mark.parametrize(
    'reason, said',
    [
        ('equal', 'changed nothing'),
        ('worse', 'made held-out pairs worse'),
        ('too few', 'too few held-out products'),
        ('cannot tell', 'within chance'),
        ('recall worse', 'better in hit@5 but loses in Recall@1'),
    ],
)
def test_reasons_in_plain_words(ran, page, reason, said):
    "Each reason, as if the run had ended so"
    file = ran / 'out/model/model.json'
    training = json.loads(file.read_text())['training']
    training['validation']['gain'] |= dict(reason=reason, metric='hit@5')
    change(file, training=training | dict(promoted=False, kept='plain'))
    change(ran / 'out/metrics.json', kept='plain')
    html, words = page(ran)
    assert said in words and 'Kept is the untrained backbone.' in words
    tones = re.findall('class="verdict (.*?)"', html)
    assert tones == ['poor' if 'worse' in reason else 'unsure'] * 2


def test_promoted_run_shows_both_baselines(ran, page):
    metrics = json.loads((ran / 'out/metrics.json').read_text())
    change(ran / 'out/metrics.json', self_excluded=3, intervals=dict(unit='product', clusters=9))
    html, words = page(ran)
    assert headings(html, 'In percent')[1:] == ['trained', 'untrained', 'centred', 'difference']
    assert words.count('95 % for new products like these; 9 of them') == 2
    assert (
        f'3 of {metrics["queries"]} queries are candidates too; each is left out of its own hits'
        in words
    )
    difference = (
        'delta_centred'
        if metrics['centred']['mrr']['value'] > metrics['baseline']['mrr']['value']
        else 'delta'
    )
    assert f'{100 * metrics[difference]["recall@1"]["value"]:+.1f} points' in words


def test_fewer_than_six_products_cannot_tell(ran, page):
    unit = dict(unit='product', clusters=fewest_products - 1)
    metrics = json.loads((ran / 'out/metrics.json').read_text())
    for delta in ('delta', 'delta_centred'):
        metrics[delta]['recall@1'] = dict(value=0.2, ci95=[0.1, 0.3])
    (ran / 'out/metrics.json').write_text(json.dumps(metrics | dict(intervals=unit)))
    words = page(ran)[1]
    assert 'Too few to tell whether training helped: 5 products' in words


def test_files_of_older_versions(ran, page):
    "Without the second baseline, the unit, the reasons: as they were before"
    for name, keys in (
        ('metrics.json', ('centred', 'delta_centred', 'intervals', 'self_excluded')),
        ('model/model.json', ()),
    ):
        d = json.loads((ran / 'out' / name).read_text())
        old = {k: v for k, v in d.items() if k not in keys}
        if 'training' in old:
            del old['training']['kept'], old['training']['validation']['metrics']
            old['training']['validation']['gain'] = dict(value=0.1, ci95=[0.05, 0.15])
        (ran / 'out' / name).write_text(json.dumps(old))
    queries = pd.read_csv(ran / 'out/per_query.csv')
    queries.drop(columns='product').to_csv(ran / 'out/per_query.csv', index=False)
    html, words = page(ran)
    assert headings(html, 'In percent')[1:] == ['trained', 'untrained', 'difference']
    assert '+10.0 points, 95 % interval +5.0 to +15.0' in words
    change(ran / 'out/model/model.json', training=old['training'] | dict(promoted=False))
    html, words = page(ran)
    assert headings(html, 'In percent')[1:] == ['kept (plain)', 'untrained', 'difference']
    assert (
        'Training was not promoted, since training did not improve on it. '
        'Kept is the untrained backbone.' in words
    )


def test_one_pair_alone(fresh, cli, page):
    pairs = (fresh / 'pairs.csv').read_text().splitlines(True)
    (fresh / 'pairs.csv').write_text(''.join(pairs[:2]))
    settings(fresh, views=0, promote='better')
    status, _, err = cli('--config', fresh / 'config.yaml', '--stage', 'all')
    assert status == 0 and 'Too few products to hold any out' in err
    history = pd.read_csv(fresh / 'out/train/history.csv')
    assert {'phase', 'epoch', 'recall@1'} <= set(history.columns)
    assert RunFiles(fresh / 'out')['train/history.csv'] is not None
    words = page(fresh)[1]
    assert 'damaged' not in words and 'Nothing was held out' in words
    assert 'Kept is the untrained backbone.' in words


def few_queries(project, n, cli):
    "Evaluate on n queries that the run answered right: (metrics, what was said)"
    queries = pd.read_csv(project / 'out/per_query.csv')
    right = queries[queries['rank'] == 1].query_path.head(n)
    truth = pd.read_csv(project / 'query_gt.csv')
    truth[truth.query_path.isin(right)].to_csv(project / 'query_gt.csv', index=False)
    status, _, err = cli('--config', project / 'config.yaml', '--stage', 'eval')
    assert status == 0, err
    return json.loads((project / 'out/metrics.json').read_text()), err


def test_one_query_cannot_tell(ran, cli, page):
    metrics, said = few_queries(ran, 1, cli)
    assert metrics['queries'] == 1 and 'did NOT help' not in said
    assert 'too few to tell' in said or 'changed nothing' in said
    words = page(ran)[1]
    assert (
        'Training did not help' not in words
        and 'Training helped: +' not in words.split('How it learned')[0]
    )


def test_five_right_queries_are_not_certain(ran, cli, page):
    metrics, _ = few_queries(ran, 5, cli)
    low, high = metrics['trained']['recall@1']['ci95']
    assert metrics['trained']['recall@1']['value'] == 1 and 0.5 < low < 0.6 and high == 1
    assert '100.0 to 100.0' not in page(ran)[1].split('How it learned')[0]
