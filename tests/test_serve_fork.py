"""A server that forks its workers after the app is made, as gunicorn does with --preload."""

import multiprocessing

import pytest
from starlette.testclient import TestClient

from two_tower_vs.serve import make_app

fork = pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(), reason='this system cannot fork'
)


def asked(app, picture, answers):
    "Ask the app in a child process"
    with TestClient(app, base_url='http://localhost') as client:
        answer = client.post(
            '/search?topk=3', content=picture, headers={'content-type': 'image/png'}
        )
    answers.put((answer.status_code, len(answer.json().get('hits', []))))


@fork
def test_workers_of_a_preloaded_app_answer(ran):
    app = make_app(ran / 'out', ran / 'images', ran / 'query_gt.csv')
    picture = next((ran / 'images' / 'line').glob('*.png')).read_bytes()
    context = multiprocessing.get_context('fork')
    answers = context.Queue()
    workers = [context.Process(target=asked, args=(app, picture, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert [answers.get(timeout=60) for _ in workers] == [(200, 3), (200, 3)]
    finally:
        for worker in workers:
            worker.join(timeout=10)
            worker.kill()
        app.state.site.close()
