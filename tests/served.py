"""A server in a process of its own, for tests that ask it over HTTP."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def server(config, *flags):  # its address
    "`--stage serve` on a free port of this machine, stopped at the end of the block"
    command = [sys.executable, '-m', 'two_tower_vs', '--config', str(config), '--stage', 'serve']
    process = subprocess.Popen(
        [*command, '--port', '0', *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    try:
        line = process.stdout.readline()
        found = re.search(r'http://\S+', line)
        if not found:
            raise RuntimeError(f'the server did not start: {line}')
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
