"""The files in deploy/ that start a search server in a container.

No image is built here: what can be told without Docker is tested.
"""

import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import served
import yaml
from starlette.testclient import TestClient

from two_tower_vs.access import Access
from two_tower_vs.cli import parser
from two_tower_vs.config import schema
from two_tower_vs.serve import make_app

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / 'deploy'


def instructions():
    "The Dockerfile as a list of (word, rest)"
    lines = (DEPLOY / 'Dockerfile').read_text().splitlines()
    text = '\n'.join(line for line in lines if not line.lstrip().startswith('#'))
    joined = re.sub(r'\\\n\s*', ' ', text)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def of(word):
    return [rest for found, rest in instructions() if found == word]


def copied():
    "(sources, target) of each COPY"
    for rest in of('COPY'):
        *sources, target = rest.split()
        yield sources, target


def is_ignored(path):
    "By Dockerfile.dockerignore: the last rule that fits decides"
    ignored = False
    for line in (DEPLOY / 'Dockerfile.dockerignore').read_text().splitlines():
        rule = line.lstrip('!')
        if not rule or rule.startswith('#'):
            continue
        parts = [path, *map(str, Path(path).parents)]
        patterns = [rule, rule.removeprefix('**/')]
        if any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in patterns):
            ignored = not line.startswith('!')
    return ignored


def command():
    entry = json.loads(of('ENTRYPOINT')[0])
    return entry, json.loads(of('CMD')[0])


def health_command():
    rest = of('HEALTHCHECK')[0]
    return json.loads(rest[rest.index('CMD') + 3 :])


def health_url():
    return re.search(r"http://[^']+", health_command()[-1])[0]


def test_what_is_copied_is_there_and_not_ignored():
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not is_ignored(source), source
    assert not is_ignored('two_tower_vs/cli.py')
    for path in ('demo/images/a.png', 'out/model/model.safetensors', '.git', '.env', 'nbs'):
        assert is_ignored(path), path


@pytest.mark.rest
def test_the_package_can_be_made_of_what_is_copied(tmp_path):
    "as the last RUN does, but without the packages it needs"
    for sources, target in copied():
        for source in sources:
            place = tmp_path / 'app' / target
            if (ROOT / source).is_dir():
                ignore = shutil.ignore_patterns('__pycache__')
                shutil.copytree(ROOT / source, place, ignore=ignore)
            else:
                place.mkdir(exist_ok=True, parents=True)
                shutil.copy(ROOT / source, place)
    assert 'pip install --constraint constraints.txt --no-build-isolation .' in of('RUN')[-1]
    build = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation']
    subprocess.run([*build, '-w', tmp_path, '.'], cwd=tmp_path / 'app', check=True)
    (wheel,) = tmp_path.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    for suffix in ('.py', '.html', '.css', '.js'):
        wanted = {
            f'two_tower_vs/{file.name}' for file in (ROOT / 'two_tower_vs').glob(f'*{suffix}')
        }
        assert wanted and wanted <= set(names)
    entry = next(name for name in names if name.endswith('entry_points.txt'))
    assert f'{command()[0][0]} = ' in zipfile.ZipFile(wheel).read(entry).decode()


def test_the_command_is_one_that_the_program_takes():
    (program,), arguments = command()
    assert program == 'two_tower_vs'
    flags = parser().parse_args(arguments)
    assert flags.stage == 'serve' and flags.host == '0.0.0.0'
    assert str(flags.port) == of('EXPOSE')[0] == str(urlsplit(health_url()).port)
    assert Path(flags.config).parts[:2] == ('/', 'data')


def test_the_user_is_not_root_when_the_server_runs():
    words = [word for word, _ in instructions()]
    user = of('USER')[-1].split(':')[0]
    assert user.isdigit() and int(user) > 0
    assert max(i for i, word in enumerate(words) if word == 'USER') < words.index('CMD')
    assert 'RUN' not in words[words.index('USER') :]  # which would need rights


def test_the_base_image_has_a_version_that_is_supported():
    version = re.fullmatch(r'python:(\d+)\.(\d+)-slim', of('FROM')[0])
    settings = (ROOT / 'setup.py').read_text()
    assert f'Python :: {version[1]}.{version[2]}' in settings


def test_health_is_a_route_that_needs_no_token(ran):
    app = make_app(ran / 'out', ran / 'images', access=Access(token='x' * 20))
    client = TestClient(app, base_url='http://127.0.0.1')
    with client:
        assert client.get(urlsplit(health_url()).path).status_code == 200
        assert client.get('/stats').status_code == 401


@pytest.mark.rest
def test_the_health_check_asks_a_server_that_runs(ran):
    port = f':{urlsplit(health_url()).port}/'
    program, flag, code = health_command()
    assert program == 'python'
    with served.server(ran / 'config.yaml', '--host', '0.0.0.0') as url:
        there = code.replace(port, f':{urlsplit(url).port}/')
        assert subprocess.run([sys.executable, flag, there]).returncode == 0
    quiet = dict(stderr=subprocess.DEVNULL)
    assert subprocess.run([sys.executable, flag, there], **quiet).returncode != 0


# ---- Compose and Caddy


@pytest.fixture
def compose():
    return yaml.safe_load((DEPLOY / 'search.yml').read_text())


def test_compose_builds_this_image(compose):
    build = compose['services']['search']['build']
    context = (DEPLOY / build['context']).resolve()
    assert context == ROOT and (context / build['dockerfile']) == DEPLOY / 'Dockerfile'
    assert set(build['args']) <= {rest.split('=')[0] for rest in of('ARG')}


def test_only_caddy_can_be_reached(compose):
    search = compose['services']['search']
    assert 'ports' not in search and search['networks'] == ['inside']
    assert compose['networks']['inside'] == {'internal': True}
    assert compose['services']['caddy']['ports'] == ['80:80', '443:443']
    assert set(compose['services']['caddy']['networks']) == set(compose['networks'])
    assert search['read_only'] and search['cap_drop'] == ['ALL']
    assert all(volume.endswith(':/data:ro') for volume in search['volumes'])


def test_compose_says_what_is_missing(compose):
    "no token, no start: the variables without a default are refused by Compose itself"
    text = (DEPLOY / 'search.yml').read_text()
    assert {'SEARCH_TOKEN', 'SEARCH_DATA'} == set(re.findall(r'\$\{(\w+):\?', text))
    assert compose['services']['search']['environment'].keys() == {'SEARCH_TOKEN'}
    assert 'token: "env:SEARCH_TOKEN", per_address: 0' in text
    assert {'token', 'per_address'} <= schema()['serve'].keys()


def test_compose_has_versions_and_volumes(compose):
    caddy = compose['services']['caddy']
    assert re.fullmatch(r'caddy:\d+\.\d+\.\d+', caddy['image'])
    for volume in caddy['volumes']:
        source = volume.split(':')[0]
        assert source in compose['volumes'] or (DEPLOY / source).is_file(), source
    assert caddy['depends_on'] == {'search': {'condition': 'service_healthy'}}
    assert of('HEALTHCHECK')  # what that condition waits for


def test_caddy_asks_the_service_at_its_port(compose):
    text = (DEPLOY / 'Caddyfile').read_text()
    backend = re.search(r'reverse_proxy \{\$SEARCH_BACKEND:(.+?)\}', text)[1]
    service, port = backend.split(':')
    assert service in compose['services'] and port == of('EXPOSE')[0]
    variables = set(re.findall(r'\{\$(\w+):', text))
    assert compose['services']['caddy']['environment'].keys() <= variables


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


@pytest.fixture
def caddy(tmp_path):
    "The environment of a Caddy, which writes to a folder of its own; skipped where there is none"
    if not shutil.which('caddy'):
        pytest.skip('there is no Caddy (apt-get install caddy)')
    folders = {name: str(tmp_path) for name in ('HOME', 'XDG_DATA_HOME', 'XDG_CONFIG_HOME')}
    return {**os.environ, **folders, 'CADDY_ADMIN': f'127.0.0.1:{free_port()}'}


CADDYFILE = '--config', str(DEPLOY / 'Caddyfile'), '--adapter', 'caddyfile'


def test_caddy_reads_its_file(caddy):
    done = subprocess.run(['caddy', 'validate', *CADDYFILE], env=caddy, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@contextmanager
def proxy(env, backend):  # its address
    url = f'http://127.0.0.1:{free_port()}'
    env = {**env, 'SEARCH_HOST': url, 'SEARCH_BACKEND': backend}
    process = subprocess.Popen(['caddy', 'run', *CADDYFILE], env=env, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urlopen(f'{url}/health').close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.rest
def test_a_search_through_caddy(caddy, ran):
    httpx = pytest.importorskip('httpx')
    drawing = sorted((ran / 'images/line').glob('*.png'))[0].read_bytes()
    with served.server(ran / 'config.yaml', '--host', '0.0.0.0') as url:
        with proxy(caddy, f'127.0.0.1:{urlsplit(url).port}') as outside:
            found = []
            for address in (url.rstrip('/'), outside):
                answer = httpx.post(f'{address}/search', files={'image': drawing}, timeout=60)
                found.append(answer.raise_for_status().json()['hits'])
            assert found[0] == found[1] and found[0]
            assert b'<html' in urlopen(f'{outside}/').read()
            for path in ('/metrics', '/stats'):
                with pytest.raises(HTTPError, match='403'):
                    urlopen(outside + path)
            files = {'image': bytes(21 * 2**20)}
            large = httpx.post(f'{outside}/search', files=files, timeout=60)
            assert large.status_code == 413 and large.json()['error']['reason']
