"""Kills, full disks, failing calls and damaged files in every stage. Afterwards each file is the
old one or the new one, and the same command finishes.

A server process imports everything once and forks a child for each attack. A child counts what
it does to files below `out` (opening for writing, flushing, renaming, removing, making folders)
and dies, fails or waits at the n-th of these, or is killed from outside at a random time.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Lock
from zipfile import ZipFile

# --- the server -----------------------------------------------------------------------------------
# ----------------


def watch(out, log, at, what):
    """Note changes to files below `out` in the file `log`; at change number `at` kill, wait, or
    raise the error `what`.
    """
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    n = 0
    busy = False

    def note(event, path):
        nonlocal n, busy
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ''
        if busy or not path.startswith(out):
            return
        busy = True
        try:
            n += 1
            os.write(fd, f'{event} {os.path.relpath(path, out)}\n'.encode())
            if n != at:
                return
            if what == 'kill':
                os.kill(os.getpid(), signal.SIGKILL)
            if what == 'wait':
                time.sleep(600)
            if what == 'memory':
                raise MemoryError
            raise OSError(int(what), os.strerror(int(what)), path)
        finally:
            busy = False

    def hook(event, args):
        if event == 'open' and args[2] & (os.O_WRONLY | os.O_RDWR):
            note('write', args[0])
        elif event == 'os.rename':
            note('rename', args[1])
        elif event == 'os.remove' and os.path.lexists(args[0]):
            note('remove', args[0])
        elif event == 'os.mkdir' and not os.path.lexists(args[0]):
            note('mkdir', args[0])

    sync = os.fsync

    def fsync(f):
        note('flush', os.readlink(f'/proc/self/fd/{f}'))
        sync(f)

    sys.addaudithook(hook)
    os.fsync = fsync


def child(job):  # what the forked process does; it never returns
    for fd, name in ((1, 'stdout'), (2, 'stderr')):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    if job.get('closed'):
        r, w = os.pipe()
        os.close(r)
        os.dup2(w, 1)
    sys.stdout, sys.stderr = (open(fd, 'w', closefd=False, buffering=1) for fd in (1, 2))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        import two_tower_vs.cli as cli
        import two_tower_vs.fit as fit

        fit.State.__init__.__defaults__ = (0.0,)  # the same changes in each run: no clock
        if job.get('tuned'):
            choose_tuned()
        if job.get('no_flock'):
            import errno
            import fcntl

            def flock(*args):
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

            fcntl.flock = flock
        if job.get('log'):
            watch(job['out'], job['log'], job.get('at'), job.get('what'))
        if job.get('demo'):
            from two_tower_vs.demo import demo_catalog

            demo_catalog(job['demo'], side=32, limit=12)
            status = 0
        elif job.get('first'):
            first_calls(job['first'])
            status = 0
        else:
            status = cli.main(job['args'])
    except SystemExit as e:
        status = e.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def first_calls(out):
    """Four threads at the same moment in the very first calls of a network that an earlier run has
    checked
    """
    from threading import Barrier, BrokenBarrierError, Thread

    import numpy as np

    from two_tower_vs.engine import Engine
    from two_tower_vs.networks import openvino_module
    from two_tower_vs.saving import load_model

    engine = Engine(load_model(f'{out}/model').query, folder=f'{out}/cache')
    together = Barrier(4)
    openvino = openvino_module()
    infer = openvino.InferRequest.infer

    def at_once(*args, **kw):
        try:
            together.wait(1)
        except BrokenBarrierError:
            together.reset()  # a call that is made alone
        return infer(*args, **kw)

    openvino.InferRequest.infer = at_once
    threads = [Thread(target=engine, args=[np.zeros((8, 3, 32, 32), np.uint8)]) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def choose_tuned():
    """Let fine-tuning be chosen: on a few small pictures it would not be, and its last phase would
    never run
    """
    import dataclasses

    import two_tower_vs.train as train

    choose = train.choose

    def chosen(job, *args):
        epochs = job.options['finetune_epochs']
        choice = choose(job, *args)
        return dataclasses.replace(choice, epochs=0, blend=1.0, finetune_epochs=epochs)

    train.choose = chosen


def serve():
    """Answer lines of JSON: jobs to fork, processes to wait for, shell commands to run in this
    process's own mounts
    """
    from two_tower_vs.model import TwoTower

    TwoTower('efficientnet_lite0')  # what timm imports later takes longer than most stages

    print('ready', flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if 'sh' in job:
            r = subprocess.run(job['sh'], shell=True, capture_output=True, text=True)
            answer = r.returncode, r.stderr
        elif 'wait' in job:
            pid, status = os.waitpid(job['wait'], os.WNOHANG)
            answer = None if not pid else os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                child(job)
        print(json.dumps(answer), flush=True)


class Server:
    "The server, in mounts of its own where this machine allows that"

    def __init__(self):
        own = next(
            (
                [*u]
                for u in (['unshare', '-m'], ['unshare', '-rm'])
                if shutil.which('unshare')
                and not subprocess.run(
                    [*u, 'mount', '-t', 'tmpfs', 'none', '/mnt'], capture_output=True
                ).returncode
            ),
            [],
        )
        self.mounts = bool(own)
        # Attacks run two at a time
        env = {**os.environ, 'TWO_TOWER_CRASHES': 'serve', 'OMP_NUM_THREADS': '1'}
        self.p = subprocess.Popen(
            [*own, sys.executable, __file__],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.p.stdout.readline()
        self.lock = Lock()

    def ask(self, **job):
        with self.lock:
            self.p.stdin.write(json.dumps(job) + '\n')
            self.p.stdin.flush()
            return json.loads(self.p.stdout.readline())

    def sh(self, command):
        code, err = self.ask(sh=command)
        assert not code, err

    def wait(self, pid, limit=240):
        "Its exit status; 124 if it hangs"
        end = time.time() + limit
        while (status := self.ask(wait=pid)) is None and time.time() < end:
            time.sleep(0.02)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            self.wait(pid)
        return 124 if status is None else status

    def close(self):
        self.p.stdin.close()
        self.p.wait()


# --- a shop to attack
# ---------------------------------------------------------------------------------------------

CONFIG = '''data:
  {{images_root: "{root}", pairs: "{base}/pairs.csv", candidates: "{base}/candidates.csv",
   query_gt: "{base}/query_gt.csv"}}
model: {{backbone: efficientnet_lite0, image_size: 32, embed_dim: 16, levels: 0}}
check: {{min_side: {side}}}
train: {{epochs: {epochs}, batch_size: 32, views: 0, promote: always, finetune_epochs: {tune}}}
finetune: {{batch_size: 16, chunk: 16}}
eval: {{k: [{k}]}}
index: {{kind: {kind}}}
query: {{runs: 2}}
out: {out}
seed: {seed}
'''
OLD = dict(seed=1, side=32, epochs=2, k='1', kind='hnsw', tune=0)
NEW = dict(seed=2, side=99, epochs=3, k='1, 5', kind='flat', tune=0)  # not hnsw: the clock tunes it
# To the byte
SAME = (
    'check.json',
    'check.csv',
    'model/model.safetensors',
    'model/model.json',
    'metrics.json',
    'per_query.csv',
    'index/vectors.faiss',
    'index/candidates.csv',
)
STAGES = 'check', 'train', 'eval', 'index', 'query'
NEW_SHOP = 'all in a new folder'


class Shop:
    """Runs a stage in copies of one folder; `before` and `after` hold `out` as an uninterrupted
    run finds and leaves it
    """

    def __init__(self, server, base, work, **settings):
        self.server = server
        self.base = base
        self.work = Path(work)
        self.new = {**NEW, **settings}
        self.count = count()
        self.image = next((base / 'images/line').iterdir())

    def config(self, folder, out='out', **settings):
        text = CONFIG.format(
            root=self.base / 'images', base=self.base, out=out, **{**self.new, **settings}
        )
        (folder / 'config.yaml').write_text(text)
        return folder

    def copy(self, state, **settings):
        "A new folder with the files of `state` (a folder called out, or None) and the new settings"
        d = self.work / f'{next(self.count)}'
        d.mkdir()
        if state:
            shutil.copytree(state, d / 'out')
        return self.config(d, **settings)

    def start(self, folder, stage, **job):
        files = {n: str(folder / n) for n in ('out', 'stdout', 'stderr', 'log')}
        stage = 'all' if stage == NEW_SHOP else stage
        args = [
            '--config',
            str(folder / 'config.yaml'),
            '--stage',
            stage,
            '--image',
            str(self.image),
        ]
        return self.server.ask(args=args, tuned=self.new['tune'], **files, **job)

    def run(self, folder, stage, **job):
        "(status, what was said on stderr)"
        return self.server.wait(self.start(folder, stage, **job)), (folder / 'stderr').read_text()

    def kill(self, folder, stage, changes, delay):
        "Kill it `delay` seconds after so many changes; was it still running?"
        pid = self.start(folder, stage)
        log = folder / 'log'
        while not log.exists() or len(log.read_text().splitlines()) < changes:
            time.sleep(0.005)
            if self.server.ask(wait=pid) is not None:
                return False
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        return bool(self.server.wait(pid))

    def prepare(self, stages=STAGES):
        "The old files, then those around each stage of an uninterrupted run with the new settings"
        d = self.config(self.copy(None), **OLD)
        self.before = {}
        self.after = {}
        self.events = {}

        def keep(name):
            return Path(shutil.copytree(d / 'out', self.work / name))

        self.must(d, 'all')
        self.config(d)
        for stage in stages:
            if stage == 'index':  # there is an older index of the same model
                self.must(self.config(d, kind=OLD['kind']), 'index')
                self.config(d)
            self.before[stage] = keep(f'before {stage}')
            self.must(d, stage)
            self.after[stage] = keep(f'after {stage}')
            self.events[stage] = (d / 'log').read_text().splitlines()
        (self.work / 'empty').mkdir()
        last = self.after[stages[-1]]
        self.before |= {'all': self.before[stages[0]], NEW_SHOP: self.work / 'empty'}
        self.after |= {'all': last, NEW_SHOP: last}
        self.events['all'] = sum((self.events[s] for s in stages), [])
        self.events[NEW_SHOP] = self.events['all'] * 2  # features and networks, too
        return self

    def at(self, stage, event, nth=0):
        "The number of a change"
        return [n for n, e in enumerate(self.events[stage], 1) if e == event][nth]

    def must(self, folder, stage):
        status, err = self.run(folder, stage)
        assert not status, err


def readable(f):
    "Does a file that isn't compared byte by byte parse?"
    import pandas as pd
    from PIL import Image
    from safetensors import safe_open

    try:
        if f.suffix == '.json':
            json.loads(f.read_text())
        elif f.suffix == '.png':
            Image.open(f).load()
        elif f.suffix == '.csv':
            pd.read_csv(f)
        elif f.suffix == '.safetensors':
            safe_open(f, 'np').keys()
        elif f.suffix == '.pt':
            import torch

            torch.load(f, weights_only=True)
        return True
    except Exception:
        return False


def torn(out, *states):
    "Files that are neither an old one nor a new one, and can't be read either"
    bad = []
    # OpenVINO writes its .blob itself, and makes those that were cut short anew
    for f in out.rglob('*'):
        name = f.relative_to(out)
        if not f.is_file() or f.name.startswith(('.tmp-', '.lock')) or f.suffix == '.blob':
            continue
        if any((s / name).is_file() and (s / name).read_bytes() == f.read_bytes() for s in states):
            continue
        if str(name) in SAME or not readable(f):
            bad.append(str(name))
    return bad


def differ(out, want, hits=True):
    "What isn't as in an uninterrupted run"

    def read(d, n):
        return (d / n).read_bytes() if (d / n).exists() else None

    bad = [n for n in SAME if (want / n).exists() and read(out, n) != read(want, n)]
    if (
        hits
        and json.loads(read(out, 'query.json') or '{}').get('hits')
        != json.loads(read(want, 'query.json'))['hits']
    ):
        bad.append('query.json')
    left = [*out.rglob('.tmp-*'), *out.rglob('state.pt')]
    return bad + [f'{f.relative_to(out)} is left' for f in left]


def attacked(shop, stage, folder):
    """(torn files, what is wrong after an attack on `stage` and after the same command once more:
    '' for nothing)
    """
    before = shop.before[stage]
    after = shop.after[stage]
    out = folder / 'out'
    bad = torn(out, before, after) if out.exists() else []
    if bad:
        return len(bad), f'torn: {bad}'
    # What worked before works now, or says truly why it can't
    if stage == 'index' or any(out.rglob('.tmp-*.done')):
        status, err = shop.run(folder, 'query')
        said = 'was made by another model' in err or stage == NEW_SHOP and 'damaged' not in err
        if status and (stage == 'index' or not said or 'Traceback' in err):
            return 0, f'a query afterwards: {status} {err[-300:]}'
    status, err = shop.run(folder, stage)
    if status:
        return 0, f'the same command again: {status} {err[-600:]}'
    bad = differ(out, after, stage in ('query', 'all', NEW_SHOP))
    return 0, bad and f'not as uninterrupted: {bad}' or ''


PHASES = {
    'dials': 'heads in closed form',
    'choose heads': 'heads on a part',
    'choose fine-tuning': 'fine-tuning on a part',
    'heads': 'heads on all pairs',
    'fine-tuning': 'fine-tuning on all pairs',
}


def phase(folder, tune):
    "What a run was at when it ended, from its last change and from what training has done"
    log = folder / 'log'
    state = folder / 'out/train/state.pt'
    paths = [line.split(' ', 1)[1] for line in log.read_text().splitlines()] if log.exists() else []
    # Files, no folders
    paths = [p for p in paths if '.' in os.path.basename(p)[:-1] and not p.endswith('.done')]
    parent, _, name = (paths or ['.lock'])[-1].rpartition('/')
    if name.startswith('.tmp-'):
        name = name.split('-', 3)[-1]
    if parent.startswith('cache'):
        return 'fingerprints' if 'fingerprints' in parent else 'features'
    if parent == 'train' and name != 'history.csv' and state.exists():
        import torch

        done = torch.load(state, weights_only=True)['done']
        return next(
            (v for k, v in PHASES.items() if k not in done and (tune or 'fine' not in k)),
            'writing the model',
        )
    return {'.lock': 'reading', 'state.pt': PHASES['dials']}.get(name, name)


def counted(hits):
    "hits as text: stage (where, how often)"
    stages = {}
    for stage, where in hits:
        stages.setdefault(stage, []).append(where)
    each = {s: Counter(w).most_common() for s, w in stages.items()}

    def some(c):
        return ', '.join(f'{w} {n}' if n > 1 else w for w, n in c)

    return '; '.join(f'{s} {sum(n for _, n in c)} ({some(c)})' for s, c in each.items())


def one(shop, stage, at, what=None, delay=None):
    """(what was hit, torn files, what is wrong) of an attack at change number `at`, or a kill some
    seconds after it
    """
    d = shop.copy(shop.before[stage])
    wrong = ''
    label = 'fine-tuning' if shop.new['tune'] else stage
    if delay is not None:
        while not shop.kill(d, stage, at, delay):  # it was done already
            shutil.rmtree(d)
            d = shop.copy(shop.before[stage])
            at = at * 2 // 3
            delay = delay / 2
        hit = phase(d, shop.new['tune'])
        name = f'{label}, killed at {hit}'
    else:
        status, err = shop.run(d, stage, at=at, what=what)
        event = shop.events[stage][at - 1]
        hit = event.split()[0]
        said = 'Traceback' not in err and (
            status == 0 or status == 2 and err.count('two_tower_vs: ') == 1
        )
        if not (status == -9 if what == 'kill' else said):
            wrong = f'{status} {err[-700:]}'
        name = f'{label}, {what} at change {at} ({event})'
    bad, more = attacked(shop, stage, d)
    wrong = wrong or more
    shutil.rmtree(d)
    return (label, hit), bad, wrong and f'{name}: {wrong}'


def attack_all(name, jobs, message):
    "A case of many attacks, two at a time"
    from attack import Case

    with ThreadPoolExecutor(2) as ex:
        hits, files, wrong = zip(*ex.map(lambda j: one(**j), jobs))
    bad = [w for w in wrong if w]
    n = len(jobs)
    message = message.format(n=n, torn=sum(files), same=n - len(bad), hits=counted(hits))
    return Case(name, not bad, 0, message, '\n'.join(bad), n)


def every(shop, stages, what, most, kinds=('write', 'flush', 'rename', 'remove')):
    "An attack at every change, or at some changes of these kinds"
    at = {
        s: [n for n, e in enumerate(shop.events[s], 1) if most is None or e.split()[0] in kinds]
        for s in stages
    }
    some = {
        s: ns if most is None else random.Random(s).sample(ns, min(most, len(ns)))
        for s, ns in at.items()
    }
    return [dict(shop=shop, stage=s, at=n, what=what) for s, ns in some.items() for n in ns]


def kills(shop, tuned, long):
    done = (
        '{torn} files torn; {same} then gave the same model, metrics and index as an '
        'uninterrupted run, to the byte'
    )
    yield attack_all(
        'kill -9 just before a change to a file, then the same command',
        every(shop, STAGES, 'kill', None if long else 1, ('write', 'rename')),
        '{n} killed; ' + done + '; before a change of these kinds: {hits}',
    )
    plan = (
        {'check': 6, 'train': 12, 'eval': 8, 'index': 6, 'all': 6, NEW_SHOP: 4}
        if long
        else dict(check=1, train=2, all=1)
    )
    jobs = moments(shop, plan) + (moments(tuned, dict(train=8)) if long else [])
    yield attack_all(
        'kill -9 at a random moment, then the same command',
        jobs,
        '{n} killed; ' + done + '; hit in {hits}',
    )


def moments(shop, plan):
    """Random moments: a while after a random change, since a clock would tell how busy the machine
    is
    """
    rng = random.Random(shop.new['tune'])

    def when(s):
        return dict(
            at=rng.randrange(len(shop.events[s])),
            delay=rng.choice((0, 0.01, 0.1, 1)) * rng.random(),
        )

    return [dict(shop=shop, stage=s, **when(s)) for s, n in plan.items() for _ in range(n)]


def failures(shop, long):
    import errno

    stages = STAGES if long else ('train', 'index')
    done = (
        'said in one line; {torn} files torn; {same} of {n} then finished as if uninterrupted; '
        '{hits}'
    )
    for n, what in ((errno.EIO, 'fails'), (errno.ENOSPC, 'finds the disk full'))[
        : 2 if long else 1
    ]:
        yield attack_all(
            f'a call on a file {what}, then the same command',
            every(shop, stages, n, 6 if long else 1, ('write', 'flush', 'rename')),
            '{n} calls failed, ' + done,
        )
    yield attack_all(
        'no memory, then the same command',
        every(shop, stages if long else ('index',), 'memory', 2 if long else 1, ('write',)),
        '{n} times, ' + done,
    )


def both(shop, name, stage, folder, status, err, want=2, says='', end=None):
    "A refusal or a success, then, once nothing is in the way, the same command"
    from attack import judged

    if status == 0 and want == (0, 2):
        says = ''
    c = judged(name, status, err, want=want, says=says)
    wrong = attacked(shop, stage, folder)[1] if c.passed else ''
    return (
        judged(name, status, err, want=want, says=says, also=not wrong, why=wrong) if wrong else c
    )


def locks(shop, long):
    "Two runs, and a scheduler's order to end"
    from attack import judged

    at = shop.at('train', 'rename train/state.pt', 2) + 1

    def waiting():  # a run in the middle of training
        d = shop.copy(shop.before['train'])
        pid = shop.start(d, 'train', at=at, what='wait')
        log = d / 'log'
        while not log.exists() or len(log.read_text().splitlines()) < at:
            time.sleep(0.05)
        return d, pid

    d, pid = waiting()
    other = shop.config(shop.copy(None), out=str(d / 'out'))
    yield judged(
        'a second run in the same folder',
        *shop.run(other, 'index'),
        says='is in use by another run',
    )
    os.kill(pid, signal.SIGKILL)
    shop.server.wait(pid)
    yield both(shop, 'the first one is killed: the lock goes with it', 'train', d, 0, '', want=0)
    d, pid = waiting()
    os.kill(pid, signal.SIGTERM)
    status = shop.server.wait(pid)
    yield both(
        shop,
        'SIGTERM, as from docker stop or a scheduler',
        'train',
        d,
        status,
        (d / 'stderr').read_text(),
        want=1,
        says='interrupted; the same command resumes',
    )
    d = shop.copy(shop.before['index'])

    def run(**kw):
        return shop.run(d, 'index', **kw)

    yield judged(
        'a lock file copied to a file system that cannot lock',
        *run(no_flock=True),
        says=f'remove {d}/out/.lock',
    )
    (d / 'out/.lock').unlink()
    run(no_flock=True, at=8, what='kill')
    yield both(
        shop, 'a kill where the file system cannot lock', 'index', d, *run(no_flock=True), want=0
    )
    d = shop.copy(shop.before['index'])
    yield both(shop, 'nobody reads what it prints (| head)', 'index', d, *run(closed=True), want=0)


def disks(shop, long):
    "Full and read-only folders, by mounts that only the server sees"
    from attack import Case

    if not shop.server.mounts:
        return [Case('full and read-only disks: not tried, this machine allows no mounts', True)]

    def case(name, stage, command, undo, want=2, says='', fill=True):
        d = shop.copy(None)
        out = d / 'out'
        out.mkdir()
        state = shop.before[stage]

        def sh(c):
            return shop.server.sh(c.format(out=f'"{out}"', images=f'"{shop.base}/images"'))

        if 'tmpfs' in command:
            sh(command)
        if fill:
            sh(f'cp -r "{state}"/. "{out}"')
        if 'tmpfs' not in command:
            sh(command)
        status, err = shop.run(d, stage)
        sh(undo)
        seen = Path(f'/proc/{shop.server.p.pid}/root{d}')  # through the server's mounts
        return both(shop, name, stage, seen, status, err, want=want, says=says)

    def full(room):
        return f'mount -t tmpfs -o size={int(room)} none {{out}}', 'mount -o remount,size=1G {out}'

    def read_only(what):
        return (
            f'mount --bind {what} {what} && mount -o remount,ro,bind {what}',
            f'mount -o remount,rw,bind {what}',
        )

    rooms = [
        ('train', 0.1),
        ('train', 0.03),
        ('train', 0.3),
        ('eval', 0.03),
        ('index', 0.01),
        ('all', 0.1),
        ('all', 0.3),
    ]
    for stage, room in rooms if long else rooms[:1]:
        used = sum(f.stat().st_size for f in shop.before[stage].rglob('*') if f.is_file())
        yield case(
            f'{stage}: the disk is full after {room} MB',
            stage,
            *full(used + room * 2**20 + 2**16),
            (0, 2),
            'No space left',
        )
    for room in (0.1, 1, 6, 14, 30) if long else ():
        yield case(
            f'all: {room} MB for everything',
            'all',
            *full(room * 2**20),
            (0, 2),
            'No space left',
            fill=False,
        )
    for stage in ('train', 'index', 'query') if long else ('train',):
        yield case(f'{stage}: out is read-only', stage, *read_only('{out}'), 2, 'cannot be written')
    yield case('query: the cache is read-only', 'query', *read_only('{out}/cache'), 0)
    if long:
        yield case('all: the pictures are read-only', 'all', *read_only('{images}'), 0)


def damages(shop, long):
    "Files that a bad disk, a copy cut short or a lost write left damaged"
    d = shop.copy(shop.before['train'])
    at = shop.at('train', 'rename train/state.pt', 2) + 1
    shop.run(d, 'train', at=at, what='kill')
    state = (d / 'out/train/state.pt').read_bytes()
    with ZipFile(d / 'out/train/state.pt') as z:
        big = max(z.infolist(), key=lambda i: i.file_size)
    middle = big.header_offset + big.file_size // 2  # not in the padding
    turned = state[:middle] + bytes([state[middle] ^ 64]) + state[middle + 1 :]
    for name, data in (('with a bit turned', turned), ('cut short', state[:-100]), ('empty', b''))[
        : 3 if long else 1
    ]:
        d = shop.copy(shop.before['train'])
        (d / 'out/train/state.pt').write_bytes(data)
        yield both(
            shop,
            f'state.pt {name}',
            'train',
            d,
            *shop.run(d, 'train'),
            want=0,
            says='training starts from the beginning',
        )
    cache = shop.before['query'] / 'cache'
    key = next(cache.glob('*.xml')).stem
    files = [
        ('index', 'features', f'{key}*/*.safetensors'),
        ('check', 'fingerprints', 'fingerprints/*.safetensors'),
        ('index', 'where features were seen', f'{key}*/seen/*.safetensors'),
        ('check', 'where fingerprints were seen', 'fingerprints/seen/*.safetensors'),
        ('index', 'the converted network', f'{key}.xml'),
        ('index', 'its weights', f'{key}.bin'),
        ('index', 'the compiled network', 'compiled/*'),
        ('index', 'how it is run', f'{key}.json'),
        ('query', 'which model was searched with', 'searcher.json'),
    ]
    for stage, what, pattern in files if long else files[:2]:
        for name, part in (('cut short', 0.5), ('empty', 0))[: 2 if long else 1]:
            d = shop.copy(shop.before[stage])
            f = max((d / 'out/cache').glob(pattern), key=lambda f: f.stat().st_size)
            data = f.read_bytes()
            data = data[: int(len(data) * part)]
            f.unlink()
            f.write_bytes(data)
            status, err = shop.run(d, stage)
            if pattern.endswith('.safetensors'):  # it may have been made under another name
                says = 'is damaged'
                if f.exists() and f.read_bytes() == data:
                    f.unlink()
            else:
                says = ''
            yield both(
                shop,
                f'{stage}, and a file of the cache is {name}: {what}',
                stage,
                d,
                status,
                err,
                0,
                says,
            )


def threads(shop, long):
    from attack import Case

    out = str(shop.after['index'])
    ends = []
    for _ in range(20 if long else 3):
        d = shop.copy(None)
        job = dict(first=out, stdout=str(d / 'stdout'), stderr=str(d / 'stderr'))
        ends.append(shop.server.wait(shop.server.ask(**job), 30))
        if ends[-1]:
            break
    return [
        Case(
            'four threads at once in the first calls of a network',
            not any(ends),
            ends[-1],
            '',
            'it hangs' if ends[-1] == 124 else (d / 'stderr').read_text()[-700:],
            len(ends),
        )
    ]


def demo(shop, long):
    from attack import judged

    d = shop.copy(None)
    at = [str(d / 'demo')]
    for n in (3, 20, 30):
        job = dict(
            demo=at[0],
            out=str(d),
            log=str(d / 'log'),
            stdout=str(d / 'stdout'),
            stderr=str(d / 'stderr'),
        )
        shop.server.wait(shop.server.ask(**job, at=n, what='kill'))
    status = shop.server.wait(shop.server.ask(**job))
    left = [f.name for f in d.iterdir() if f.name.startswith('.tmp')]
    yield judged(
        'demo: killed three times while it makes its pictures',
        status,
        (d / 'stderr').read_text(),
        want=0,
        also=(d / 'demo/ATTRIBUTION.txt').exists() and not left,
        why=f'left {left}',
        tries=3,
    )


def inits(shop, long):
    """`--stage init` while it makes edited copies: killed, failing, without room; then the same
    command
    """
    import errno

    from attack import Case, judged

    server = shop.server
    pictures = str(shop.base / 'images/color')

    def run(d, **job):
        args = [
            '--stage',
            'init',
            '--images',
            pictures,
            '--layout',
            'augment',
            '--config',
            str(d / 'new/config.yaml'),
        ]
        job |= dict(
            args=args, out=str(d / 'new'), **{n: str(d / n) for n in ('stdout', 'stderr', 'log')}
        )
        return server.wait(server.ask(**job)), (d / 'stderr').read_text()

    def made(d, at=None):  # all that is there, but for the name of this folder
        files = [f for f in (at or d / 'new').rglob('*') if f.is_file()]
        return {f.name: f.read_bytes().replace(f'{d.name}/new/'.encode(), b'') for f in files}

    def folder():
        d = shop.copy(None)
        (d / 'new').mkdir()
        (d / 'new/notes.txt').write_text('mine')
        return d

    d = folder()
    status, err = run(d)
    want = made(d)
    assert not status and len(want) > 100, err
    events = (d / 'log').read_text().splitlines()
    late = [n for n, e in enumerate(events, 1) if 'edited_copies' not in e]
    some = random.Random(0).sample(range(1, len(events) + 1), 12 if long else 2) + (
        late if long else late[-3:]
    )

    def attack(n, what):
        d = folder()
        status, err = run(d, at=n, what=what)
        here = made(d)
        one = what == 'kill' or err.count('two_tower_vs: ') == 1
        said = status == (-9 if what == 'kill' else 2) and 'Traceback' not in err and one
        left = {f: b for f, b in here.items() if not f.startswith('.tmp-')}
        if status == 0:
            # Not reached: two threads write, and not all that they do is counted
            said = here == want

        def wrong(when):
            return f'{what} at {n} ({events[n - 1]}){when}: {status} {err[-300:]}'

        if not said or any(want.get(f) != b for f, b in left.items()):
            return wrong('')
        # What was all written, and only not renamed, is finished and then refused as existing
        status, err = run(d)
        if (
            status not in (0, 2)
            or status
            and 'init overwrites nothing' not in err
            or made(d) != want
        ):
            return wrong(', then')

    for name, what in (
        ('killed', 'kill'),
        ('the disk is full', errno.ENOSPC),
        ('may not write', errno.EACCES),
    )[: None if long else 2]:
        bad = [w for n in some if (w := attack(n, what))]
        yield Case(
            f'init, {name} while it writes, then the same command',
            not bad,
            0,
            '',
            '\n'.join(bad),
            len(some),
        )
    if not server.mounts:
        return
    d = folder()
    new = f'"{d}/new"'
    seen = Path(f'/proc/{server.p.pid}/root{d}/new')
    server.sh(f'mount -t tmpfs -o size=100k none {new} && printf mine > {new}/notes.txt')
    status, err = run(d)
    left = [f for f, b in made(d, seen).items() if want.get(f) != b or f.endswith('.csv')]
    yield judged(
        'init: the disk is full',
        status,
        err,
        says='set --config to another disk',
        also=not left,
        why=f'{left} is left',
    )
    server.sh(f'mount -o remount,size=9m {new}')
    status, err = run(d)
    got = made(d, seen)
    yield judged(
        'and when there is room, the same command',
        status,
        err,
        0,
        also=got == want,
        why='not as uninterrupted',
    )
    d = folder()
    new = f'"{d}/new"'
    server.sh(f'mount --bind {new} {new} && mount -o remount,ro,bind {new}')
    yield judged('init: may not write', *run(d), says='Set --config to a folder')


if os.environ.get('TWO_TOWER_CRASHES') == 'serve' and __name__ == '__main__':
    serve()
