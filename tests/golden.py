"""The golden run: what must stay the same when code is rewritten without changing what it does.

    python tests/golden.py record FILE    # run every task from scratch and note what came out
    python tests/golden.py compare FILE   # run again; exit status 1 where something differs

A task is the whole pipeline on one set of pictures: the demo, and two splits of the grocery
photos where they are there. Each runs in its own process and an empty folder. Compared are the
SHA-256 of the model, the metrics, the table of queries and the index, the metrics themselves,
and the hits of ten queries. The values depend on the processor and on the versions of the
libraries, so record and compare on one machine: the file is not committed.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROCERY = ROOT.parent / 'shared' / 'data' / 'grocery'
FILES = ['model/model.safetensors', 'metrics.json', 'per_query.csv', 'index/vectors.faiss']
SPLITS = {
    'grocery': {'pairs': 'pairs.csv', 'query_gt': 'query_gt.csv'},
    'unseen grocery': {'pairs': 'pairs_seen.csv', 'query_gt': 'query_gt_unseen.csv'},
}
HITS = '''
import json, sys
import pandas as pd
from two_tower_vs.query import load_searcher
out, images, truth = sys.argv[1:]
searcher = load_searcher(out)
queries = pd.read_csv(truth).query_path.drop_duplicates()[:10]
hits = {query: searcher.search(f'{images}/{query}', 5) for query in queries}
print(json.dumps({query: [[path, f'{score:.6f}']
                          for path, score in zip(table.cand_path, table.score)]
                  for query, table in hits.items()}))
'''


def run(*command):
    """The output of a command that has to succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(
            f'{" ".join(map(str, command[:4]))} ended with status '
            f'{done.returncode}:\n{done.stderr[-2000:]}'
        )
    return done.stdout


def prepare(task, folder):
    """Write a configuration. Returns its path, the folder of pictures, the table of answers."""
    if task == 'demo':
        demo = folder / 'demo'
        run(
            '-c',
            'import sys; from two_tower_vs.demo import demo_catalog; demo_catalog(sys.argv[1])',
            demo,
        )
        return demo / 'config.yaml', demo / 'images', demo / 'query_gt.csv'
    config = folder / 'config.yaml'
    tables = {name: str(GROCERY / file) for name, file in SPLITS[task].items()}
    data = {
        'images_root': str(GROCERY / 'images'),
        'candidates': str(GROCERY / 'candidates.csv'),
        **tables,
    }
    config.write_text(json.dumps({'data': data, 'out': 'out', 'seed': 42}))  # JSON is YAML
    return config, GROCERY / 'images', GROCERY / SPLITS[task]['query_gt']


def result(task):
    """What a task leaves behind, as values that can be compared."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config, images, truth = prepare(task, folder)
        start = time.time()
        run('-m', 'two_tower_vs', '--config', config, '--stage', 'all', '--k', 1, 5, 10)
        seconds = time.time() - start
        out = config.parent / 'out'
        found = {
            f'sha256 of {name}': hashlib.sha256((out / name).read_bytes()).hexdigest()
            for name in FILES
        }
        metrics = json.loads((out / 'metrics.json').read_text())
        hits = json.loads(run('-c', HITS, out, images, truth))
    print(
        f'{task}: {seconds:.0f} s, recall@1 {metrics["trained"]["recall@1"]["value"]:.4f}',
        flush=True,
    )
    return {**found, 'metrics': metrics, 'hits': hits}


def differences(old, new, where=''):
    """The places at which two values differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            yield from differences(old.get(key), new.get(key), f'{where} / {key}' if where else key)
    elif old != new:
        yield f'{where}: {old} -> {new}'


def main():
    """Record or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['record', 'compare'])
    parser.add_argument('file', type=Path)
    parser.add_argument('tasks', nargs='*', help='demo, grocery or "unseen grocery"; without: all')
    arguments = parser.parse_args()
    tasks = arguments.tasks or ['demo', *SPLITS]
    if not GROCERY.is_dir():
        print('The grocery photos are not there: only the demo runs.')
        tasks = [task for task in tasks if task == 'demo']
    results = {task: result(task) for task in tasks}
    if arguments.what == 'record':
        arguments.file.write_text(json.dumps(results, indent=1) + '\n')
        return
    recorded = json.loads(arguments.file.read_text())
    found = list(differences({task: recorded[task] for task in tasks}, results))
    print('\n'.join(found) or 'Everything is as it was recorded.')
    sys.exit(bool(found))


if __name__ == '__main__':
    main()
