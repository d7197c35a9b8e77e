"""The lines that the serving tutorial shows for curl, HTTPX and fetch, run against a server.

What they find is what `Searcher.search` finds.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import served as servers

from two_tower_vs.query import load_searcher

TUTORIAL = Path(__file__).resolve().parent.parent / 'nbs/tutorials/06_serving.ipynb'
TOKEN = 'a-token-of-tests-0123456789'
QUESTIONS = {}, {'box': '0,0,0.6,1'}, {'where': 'price < 20'}


def examples(language):
    "The fenced blocks of one language, in the section of examples"
    cells = json.loads(TUTORIAL.read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    section = text.split('### From a program\n')[1].split('\n## ')[0]
    return re.findall(rf'```{language}\n(.*?)```', section, re.S)


@pytest.fixture(scope='module')
def asked(workshop):
    "A server with a token whose candidates have prices, and what the three questions find"
    import attack

    project = attack.project(workshop, run=True)
    candidates = pd.read_csv(project / 'candidates.csv')
    candidates['price'] = [7 * row % 50 for row in range(len(candidates))]
    candidates.to_csv(project / 'candidates.csv', index=False)
    config = project / 'config.yaml'
    config.write_text(config.read_text() + f'serve: {{token: {TOKEN}}}\n')
    status, _, err = attack.cli('--config', config, '--stage', 'index')
    assert status == 0, err
    folder = project / 'elephants'
    folder.mkdir()
    drawing = sorted((project / 'images/line').glob('*.png'))[3]
    shutil.copy(drawing, folder / 'elephant.png')
    searcher = load_searcher(project / 'out')
    wanted = [searcher.search(drawing, 5, **question) for question in QUESTIONS]
    assert wanted[2].price.max() < 20
    assert len({tuple(hits.cand_path) for hits in wanted}) == 3  # three different answers
    with servers.server(config) as url:
        env = {**os.environ, 'SEARCH_URL': url.rstrip('/'), 'SEARCH_TOKEN': TOKEN}
        yield SimpleNamespace(folder=folder, wanted=wanted, env=env, url=url)


def output(asked, *command):
    "What a command prints; a wrong token must make it fail"
    options = dict(cwd=asked.folder, text=True, capture_output=True, timeout=120)
    locked = subprocess.run(command, env={**asked.env, 'SEARCH_TOKEN': 'x' * 20}, **options)
    assert locked.returncode, 'a wrong token was taken'
    made = subprocess.run(command, env=asked.env, **options)
    assert made.returncode == 0, made.stderr
    return made.stdout


def assert_right(asked, found):
    "`found`: for each question a list of (rank, cand_path, score)"
    assert len(found) == len(asked.wanted)
    for hits, wanted in zip(found, asked.wanted):
        assert [rank for rank, _, _ in hits] == list(wanted['rank'])
        assert [path for _, path, _ in hits] == list(wanted.cand_path)
        assert [score for _, _, score in hits] == pytest.approx(list(wanted.score), abs=1e-4)


def printed(text):
    "Lines of rank, path and score, in three parts of five"
    lines = [line.split() for line in text.splitlines()]
    hits = [(int(rank), path, float(score)) for rank, path, score in lines]
    return [hits[start : start + 5] for start in range(0, len(hits), 5)]


@pytest.mark.rest
def test_curl(asked):
    version = shutil.which('curl') and subprocess.check_output(['curl', '--version'], text=True)
    if not version or tuple(map(int, re.findall(r'\d+', version)[:2])) < (7, 87):
        pytest.skip('there is no curl of 7.87 or later')
    (lines,) = examples('bash')
    text = output(asked, 'bash', '-euc', lines)
    decoder = json.JSONDecoder()
    answers = []
    while text.strip():
        answer, end = decoder.raw_decode(text.lstrip())
        answers.append(answer)
        text = text.lstrip()[end:]
    names = 'rank', 'cand_path', 'score'
    found = []
    for answer in answers:
        found.append([tuple(hit[name] for name in names) for hit in answer['hits']])
    assert_right(asked, found)
    assert all(hit['attributes']['price'] < 20 for hit in answers[2]['hits'])


@pytest.mark.rest
def test_httpx(asked):
    pytest.importorskip('httpx')
    (lines,) = examples('python')
    assert_right(asked, printed(output(asked, sys.executable, '-c', lines)))


@pytest.mark.rest
def test_fetch_in_node(asked, tmp_path):
    if not shutil.which('node'):
        pytest.skip('there is no Node.js; tests/browser runs the function in Chromium')
    function, use = examples('js')
    # imports are hoisted, so the function may stand before them
    (tmp_path / 'example.mjs').write_text(f'{function}\n{use}', encoding='utf-8')
    assert_right(asked, printed(output(asked, 'node', str(tmp_path / 'example.mjs'))))
