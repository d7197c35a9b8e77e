"""Build an index of parts and search it, at several sizes; write scale.json.

    python benchmarks/scale.py --rows 100000 1000000      # a few minutes on two idle cores
    python benchmarks/scale.py --rows 10000000            # up to an hour, 30 GB of disk
    python benchmarks/scale.py --engines --rows 100000    # FAISS in one file and in several, Milvus

The parts are what --stage embed would leave of a catalogue of so many pictures. Their vectors are
made up: each lies between two candidates of the demo, as its trained model sees them. Queries are
the demo's own pictures. The command is that of a user, two_tower_vs --stage index, in a process of
its own.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from peers import RESULTS, ROOT, WORK, machine

CONFIG = """out: out
data: {{images_root: {demo}/images, candidates: candidates.csv, query_gt: {demo}/query_gt.csv}}
index: {index}
query: {{verify: never}}
"""


def trained_demo():
    "The folder of the demo with a trained model"
    from two_tower_vs.demo import demo_catalog

    demo = demo_catalog(ROOT / 'nbs/demo')
    if not (demo / 'out/model/model.json').exists():
        command = [sys.executable, '-m', 'two_tower_vs', '--config', demo / 'config.yaml']
        subprocess.run([*command, '--stage', 'train'], check=True)
    return demo


class MadeUp:
    "The demo's candidates, and any number of others whose vectors lie between theirs"

    def __init__(self, demo, model):
        import pandas as pd

        from two_tower_vs.embed import embed

        self.root = demo / 'images'
        self.paths = list(pd.read_csv(demo / 'candidates.csv').cand_path)
        self.real = embed(model.cand, self.paths, self.root, demo / 'out/cache').vectors

    def path(self, row):
        if row < len(self.paths):
            return self.paths[row]
        return f'made/{row // 1000:05d}/{row:09d}.jpg'

    def vectors(self, start, count):  # float32 (count, d), unit rows
        rng = np.random.default_rng(start)
        one, other = rng.integers(len(self.real), size=(2, count))
        share = rng.random((count, 1), np.float32)
        noise = rng.standard_normal((count, self.real.shape[1]), np.float32)
        mixed = share * self.real[one] + (1 - share) * self.real[other] + 0.03 * noise
        known = self.real[start : start + count]
        mixed[: len(known)] = known
        return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)

    def part(self, start, count):  # (Part, hash of its rows)
        from two_tower_vs.inparts import _rows_hash as rows_hash
        from two_tower_vs.inparts import part_table
        from two_tower_vs.parts import Part

        paths = [self.path(row) for row in range(start, start + count)]
        contents = np.random.default_rng(start).integers(0, 256, (count, 16), np.uint8)
        table = part_table('.', paths, self.root)
        part = Part(paths, self.vectors(start, count), {}, contents)
        return part, rows_hash(table, slice(0, count))


def make_project(project, demo, rows):
    "Model, table and parts, as a run would leave them"
    from two_tower_vs.embedder import make_plan, save_plan
    from two_tower_vs.parts import part_bytes, part_file, part_size, write_part
    from two_tower_vs.saving import load_model

    model = load_model(demo / 'out/model')
    made = MadeUp(demo, model)
    folder = project / 'out/vectors'
    folder.mkdir(parents=True)
    shutil.copytree(demo / 'out/model', project / 'out/model')
    plan = make_plan(model.cand, made.paths[:64], made.root, model.sha256, 'cand')
    save_plan(plan, folder / 'plan.safetensors')
    size = part_size(rows)
    with (project / 'candidates.csv').open('w') as table:
        table.write('cand_path\n')
        for number, start in enumerate(range(0, rows, size)):
            part, rows_sha256 = made.part(start, min(size, rows - start))
            table.write('\n'.join(part.paths) + '\n')
            content = part_bytes(part, {**plan.identity, 'rows_sha256': rows_sha256})
            write_part(part_file(folder, number), content)


class Memory(threading.Thread):
    "The most memory that a process takes, in MB: all of it, and what is no file's"

    def __init__(self, process):
        super().__init__(daemon=True)
        self.file = Path(f'/proc/{process.pid}/status')
        self.most = dict(RssAnon=0, VmRSS=0)

    def run(self):
        while True:
            try:
                lines = self.file.read_text().splitlines()
            except OSError:
                return
            now = dict(line.split(':', 1) for line in lines if ':' in line)
            for name in self.most:
                megabytes = int(now.get(name, '0 kB').split()[0]) / 1024
                self.most[name] = max(self.most[name], round(megabytes))
            time.sleep(0.2)


def run_index(project):
    "Seconds and memory of the stage, and what it printed"
    start = time.perf_counter()
    command = [sys.executable, '-m', 'two_tower_vs', '--config', project / 'config.yaml']
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen([*command, '--stage', 'index'], **pipes) as process:
        memory = Memory(process)
        memory.start()
        printed = process.stdout.read()
    if process.returncode:
        raise RuntimeError(printed)
    seconds = round(time.perf_counter() - start)
    most = memory.most
    return dict(seconds=seconds, anonymous_mb=most['RssAnon'], rss_mb=most['VmRSS']), printed


SEARCH = """
import json, sys, time
import numpy as np
from two_tower_vs.bundle import load_index
from two_tower_vs.milvusindex import in_milvus, load_remote
folder, queries, found = sys.argv[1:]
start = time.perf_counter()
index = load_remote(folder) if in_milvus(folder) else load_index(folder)
load = time.perf_counter() - start
queries = np.load(queries)
def seconds(some):
    start = time.perf_counter()
    index.search(some, 10)
    return time.perf_counter() - start
first = seconds(queries[:1])
alone = [seconds(queries[[row % len(queries)]]) for row in range(1000)]
rate = len(queries) / min(seconds(queries) for _ in range(3))
hits = index.search(queries, 10)[1]
paths = [[index.paths[row] for row in rows if row >= 0] for rows in hits]
open(found, 'w').write(json.dumps(paths))
rss = [line.split()[1] for line in open('/proc/self/status') if line.startswith('RssAnon')]
p50, p95 = 1000 * np.quantile(alone, [0.5, 0.95])
print(json.dumps(dict(load_s=round(load, 2), first_ms=round(1000 * first, 1),
    p50_ms=round(p50, 2), p95_ms=round(p95, 2), queries_per_s=round(rate),
    anonymous_mb=round(int(rss[0]) / 1024))))
"""


def search(project, queries):
    "Load and search in a process of its own; the paths that were found stay in found.json"
    file = project / 'queries.npy'
    np.save(file, queries)
    command = [sys.executable, '-c', SEARCH, project / 'out/index', file, project / 'found.json']
    return json.loads(subprocess.run(command, check=True, text=True, capture_output=True).stdout)


def real_queries(demo):
    import pandas as pd

    from two_tower_vs.embed import embed
    from two_tower_vs.saving import load_model

    model = load_model(demo / 'out/model')
    paths = pd.read_csv(demo / 'query_gt.csv').query_path.unique()
    return embed(model.query, paths, demo / 'images', demo / 'out/cache').vectors


def project_of(demo, rows, index):
    "The project of this size, made unless it is there"
    project = WORK / f'scale-{rows}'
    if not (project / 'made').exists():
        shutil.rmtree(project, ignore_errors=True)
        start = time.perf_counter()
        make_project(project, demo, rows)
        (project / 'made').touch()
        print(f'{rows:,} rows in parts after {time.perf_counter() - start:.0f} s', flush=True)
    shutil.rmtree(project / 'out/index', ignore_errors=True)
    config = CONFIG.format(demo=demo, index=json.dumps(index))
    (project / 'config.yaml').write_text(config)
    return project


ENGINES = {
    'exact': dict(kind='flat'),
    'FAISS, one file': dict(recall_target=0.95),
    'FAISS, several files': dict(recall_target=0.95, file_mb=2),
    'Milvus Lite': dict(kind='milvus', uri='milvus.db'),
}


def agreement(found, exact):
    "How much of the exact hits was found, 0 to 1"
    return np.mean([len(set(mine) & set(true)) / len(true) for mine, true in zip(found, exact)])


def measure_engines(demo, rows):
    "The same vectors and queries in every engine, one after the other"
    cells = []
    exact = None
    for name, index in ENGINES.items():
        cell = measure(demo, rows, {'normalize': 'none', **index})
        found = json.loads((WORK / f'scale-{rows}/found.json').read_text())
        exact = exact or found
        cell['agreement'] = round(float(agreement(found, exact)), 4)
        cells.append(dict(name=name, date=str(date.today()), machine=machine(), **cell))
        print(cells[-1], flush=True)
    return cells


def measure(demo, rows, index):
    "All figures of one size"
    project = project_of(demo, rows, index)
    build, printed = run_index(project)
    print(printed, build, flush=True)
    manifest = json.loads((project / 'out/index/manifest.json').read_text())
    names = 'kind', 'factory', 'search', 'recall_vs_exact', 'dim'
    sizes = {file.name: file.stat().st_size for file in (project / 'out/index').iterdir()}
    return dict(
        rows=rows,
        build=build,
        searched=search(project, real_queries(demo)),
        files=sum(name.startswith('vectors') for name in sizes),
        mb=round(sum(sizes.values()) / 2**20),
        **{name: manifest.get(name) for name in names},
    )


def read_options():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--rows', type=int, nargs='+', default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument('--index', type=json.loads, default={'recall_target': 0.95})
    parser.add_argument('--name', default='default', help='of these settings, in the table')
    parser.add_argument('--out', type=Path, default=RESULTS / 'scale.json')
    parser.add_argument('--engines', action='store_true', help='compare engines at one size')
    parser.add_argument('--keep', action='store_true', help='leave the projects in the work folder')
    return parser.parse_args()


def measure_sizes(demo, options, done):
    "Each size, kept in `done` and its file as soon as it is measured"
    for rows in options.rows:
        cell = measure(demo, rows, {'normalize': 'none', **options.index})
        about = dict(name=options.name, date=str(date.today()), machine=machine())
        mine = options.name, rows
        others = [each for each in done['cells'] if (each['name'], each['rows']) != mine]
        done.pop('note', None)  # of an earlier run
        done['cells'] = [*others, {**about, **cell}]
        options.out.write_text(json.dumps(done, indent=1) + '\n')
        print(cell, flush=True)
        if not options.keep:
            shutil.rmtree(WORK / f'scale-{rows}')


def main():
    options = read_options()
    WORK.mkdir(parents=True, exist_ok=True)
    demo = trained_demo()
    done = json.loads(options.out.read_text()) if options.out.exists() else dict(cells=[])
    if options.engines:
        done['engines'] = measure_engines(demo, options.rows[0])
        options.out.write_text(json.dumps(done, indent=1) + '\n')
    else:
        measure_sizes(demo, options, done)


if __name__ == '__main__':
    main()
