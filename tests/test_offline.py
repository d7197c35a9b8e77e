"""Nothing of a run leaves the machine: no stage opens a socket to anything but loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs in every Python process of the run, before anything else
WATCH = '''
import os
import sys

def watch(event, args):
    if event == 'socket.getaddrinfo':
        host = args[0]
    elif event in ('socket.connect', 'socket.sendto'):
        host = args[1][0] if isinstance(args[1], tuple) else None
    else:
        return
    if host is None or str(host) in ('localhost', '::1', '') or str(host).startswith('127.'):
        return
    with open(os.environ['WATCHED'], 'a') as file:
        file.write(f'{event} {args[1:2] if event != "socket.getaddrinfo" else host}\\n')
    raise OSError(f'a test forbids {event} to {host}')

sys.addaudithook(watch)
'''


@pytest.fixture
def watched(tmp_path):
    "Environment of a process whose sockets are watched, and the file of what it tried"
    (tmp_path / 'sitecustomize.py').write_text(WATCH)
    seen = tmp_path / 'seen.txt'
    return {**os.environ, 'PYTHONPATH': str(tmp_path), 'WATCHED': str(seen)}, seen


def run(env, *arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, **options
    )


def test_the_watch_sees(watched):
    env, seen = watched
    code = 'import socket; socket.create_connection(("192.0.2.1", 80), 1)'
    r = run(env, '-c', code)
    assert r.returncode == 1 and 'a test forbids' in r.stderr
    assert '192.0.2.1' in seen.read_text()


@pytest.mark.rest
def test_no_stage_calls_home(fresh, watched):
    env, seen = watched
    config = fresh / 'config.yaml'
    picture = next((fresh / 'images/line').iterdir())
    for stage in ('all', 'embed', 'export'):
        arguments = ['-m', 'two_tower_vs', '--config', config, '--stage', stage]
        r = run(env, *arguments, '--image', picture)
        assert r.returncode == 0, r.stderr
    assert not seen.exists(), seen.read_text()
    assert Path(fresh / 'out/vectors').is_dir()
