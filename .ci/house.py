"""How readable the code is, in figures that may get better and not worse.

    python .ci/house.py            # the table: each figure, its limit in house.json, and its aim
    python .ci/house.py --lower    # write the figures that got better to house.json

A figure fails where it is above its limit and above its aim. The places are then named, those in
files that changed last before the others. The file also limits how many findings `ruff check` may
have, rule by rule.
"""

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = Path(__file__).with_suffix('.json')
PACKAGE = 'two_tower_vs'
GENERATED = {'_modidx.py', '__init__.py', '__main__.py'}
SCRIPTS = ['tests', '.ci', 'benchmarks', 'nbs', 'run_pipeline.py']
LONG_LINE = 100
LONG_FUNCTION = 25
PLACES = 15
EXPORTED = re.compile(r'(?m)^#\|\s*exports?\b')
HIDDEN = re.compile(r'(?m)^#\|\s*hide\s*$')
LOOPS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
AIMS = {
    'semicolons per 1,000 lines': 0,
    'tuple assignments per 1,000 lines': 15,
    'comprehensions per 1,000 lines': 40,
    'mean characters a line': 52,
    'lines over 100 columns': 0,
    'one-letter names, %': 20,
    'functions over 25 lines': 0,
    'private names from another module': 0,
    'exported cell lines, median': 9,
    'exported cell lines, 90th percentile': 20,
    'exported cells right after another, %': 25,
    'code lines in hidden cells, %': 5,
    'semicolons in tests and scripts': 0,
    'lines over 100 columns in tests and scripts': 0,
    'functions over 25 lines in tests and scripts': 0,
}


class Figures:
    """Collects counts and the places where they were found."""

    def __init__(self):
        self.values = {}
        self.places = {}

    def add(self, name, places, per=None):
        """Add a figure: how many places, or how many per `per`."""
        places = list(places)
        count = len(places)
        self.values[name] = count if per is None else round(count * per, 1)
        self.places[name] = places


def module_paths(root):
    """The modules that notebooks export, and the few that are written by hand."""
    return [p for p in sorted((root / PACKAGE).rglob('*.py')) if p.name not in GENERATED]


def script_paths(root):
    """Tests, checks, attacks, benchmarks."""
    paths = []
    for name in SCRIPTS:
        path = root / name
        paths += sorted(path.rglob('*.py')) if path.is_dir() else [path]
    return [path for path in paths if path.exists()]


class Source:
    """One Python file: its text, its tree, and what is found in it."""

    def __init__(self, path, root):
        self.name = path.relative_to(root).as_posix()
        self.text = path.read_text(encoding='utf-8')
        self.tree = ast.parse(self.text)
        self.nodes = list(ast.walk(self.tree))

    def at(self, line, note=''):
        """A place, as an editor understands it."""
        return f'{self.name}:{line}' + (f' {note}' if note else '')

    def code_lines(self):
        """(number, line) of the lines that are neither blank nor a comment."""
        for number, line in enumerate(self.text.split('\n'), 1):
            if line.strip() and not line.strip().startswith('#'):
                yield number, line

    def semicolons(self):
        """Places where a semicolon joins two statements."""
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.OP and token.string == ';':
                yield self.at(token.start[0])

    def long_lines(self):
        """Places of lines over 100 columns, comments included."""
        for number, line in enumerate(self.text.split('\n'), 1):
            if len(line) > LONG_LINE:
                yield self.at(number, f'({len(line)} columns)')

    def tuple_assignments(self):
        """Places where several names are assigned at once."""
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Tuple):
                        yield self.at(node.lineno)

    def comprehensions(self):
        """Places of comprehensions and generator expressions."""
        return [self.at(node.lineno) for node in self.nodes if isinstance(node, LOOPS)]

    def names(self):
        """(name, place) of everything that is assigned or is a parameter."""
        for node in self.nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id, self.at(node.lineno, node.id)
            elif isinstance(node, ast.arg):
                yield node.arg, self.at(node.lineno, node.arg)

    def long_functions(self):
        """Places of functions over 25 lines, the longest first."""
        found = []
        for node in self.nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                if length > LONG_FUNCTION:
                    found.append((length, self.at(node.lineno, f'{node.name} ({length} lines)')))
        return [place for _, place in sorted(found, reverse=True)]

    def private_imports(self):
        """Places where a private name is taken from another module of the package."""
        for node in self.nodes:
            if not isinstance(node, ast.ImportFrom):
                continue
            ours = node.level or (node.module or '').split('.')[0] == PACKAGE
            for alias in node.names:
                if ours and alias.name.startswith('_') and not alias.name.startswith('__'):
                    yield self.at(node.lineno, alias.name)


def gathered(sources, method):
    """The places that a method finds in all sources."""
    return [place for source in sources for place in getattr(source, method)()]


def measure_package(figures, sources):
    """The figures of the package's modules."""
    lines = [line for source in sources for _, line in source.code_lines()]
    names = [pair for source in sources for pair in source.names()]
    thousand = 1000 / max(len(lines), 1)
    for name, method in {
        'semicolons per 1,000 lines': 'semicolons',
        'tuple assignments per 1,000 lines': 'tuple_assignments',
        'comprehensions per 1,000 lines': 'comprehensions',
    }.items():
        figures.add(name, gathered(sources, method), per=thousand)
    figures.values['mean characters a line'] = round(sum(map(len, lines)) / max(len(lines), 1), 1)
    figures.add('lines over 100 columns', gathered(sources, 'long_lines'))
    short = [place for name, place in names if len(name) == 1]
    figures.add('one-letter names, %', short, per=100 / max(len(names), 1))
    figures.add('functions over 25 lines', gathered(sources, 'long_functions'))
    figures.add('private names from another module', gathered(sources, 'private_imports'))


def measure_scripts(figures, sources):
    """The figures of tests and scripts."""
    for name, method in {
        'semicolons in tests and scripts': 'semicolons',
        'lines over 100 columns in tests and scripts': 'long_lines',
        'functions over 25 lines in tests and scripts': 'long_functions',
    }.items():
        figures.add(name, gathered(sources, method))


class Cell:
    """A cell of a notebook: where it is, its code, whether it is exported or hidden."""

    def __init__(self, place, cell):
        self.place = place
        text = ''.join(cell['source'])
        is_code = cell['cell_type'] == 'code'
        self.exported = is_code and bool(EXPORTED.search(text))
        self.hidden = is_code and bool(HIDDEN.search(text))
        lines = text.split('\n') if is_code else []
        self.lines = [line for line in lines if line.strip() and not line.startswith('#|')]


def notebook_cells(root):
    """The cells of each notebook of the package."""
    for path in sorted((root / 'nbs').glob('[0-9]*.ipynb')):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        yield [Cell(f'nbs/{path.name}, cell {i}', cell) for i, cell in enumerate(cells)]


def percentile(values, share):
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))] if ordered else 0


def measure_notebooks(figures, notebooks):
    """The figures of the notebooks' cells."""
    cells = [cell for notebook in notebooks for cell in notebook]
    exported = sorted((c for c in cells if c.exported), key=lambda c: -len(c.lines))
    lengths = [len(cell.lines) for cell in exported]
    longest = [f'{cell.place} ({len(cell.lines)} lines)' for cell in exported]
    for name, share in [('median', 0.5), ('90th percentile', 0.9)]:
        key = f'exported cell lines, {name}'
        figures.values[key] = percentile(lengths, share)
        figures.places[key] = longest
    walls = []
    for notebook in notebooks:
        for before, cell in zip(notebook, notebook[1:]):
            if before.exported and cell.exported:
                walls.append(cell.place)
    figures.add('exported cells right after another, %', walls, per=100 / max(len(exported), 1))
    lines = sum(len(cell.lines) for cell in cells)
    hidden = [cell for cell in cells if cell.hidden]
    key = 'code lines in hidden cells, %'
    figures.values[key] = round(100 * sum(len(c.lines) for c in hidden) / max(lines, 1), 1)
    figures.places[key] = [f'{cell.place} ({len(cell.lines)} lines)' for cell in hidden]


def measure(root=ROOT):
    """All figures of STYLE's table."""
    figures = Figures()
    measure_package(figures, [Source(path, root) for path in module_paths(root)])
    measure_notebooks(figures, list(notebook_cells(root)))
    measure_scripts(figures, [Source(path, root) for path in script_paths(root)])
    return figures


def ruff_findings(root=ROOT):
    """How many findings `ruff check` has of each rule, and where."""
    command = [sys.executable, '-m', 'ruff', 'check', '--output-format', 'json', '--no-cache']
    done = subprocess.run(
        [*command, '--exit-zero', '.'], cwd=root, capture_output=True, text=True, check=True
    )
    figures = Figures()
    found = {}
    for finding in json.loads(done.stdout):
        path = Path(finding['filename']).relative_to(root).as_posix()
        cell = f', cell {finding["cell"]}' if finding.get('cell') else ''
        place = f'{path}{cell}:{finding["location"]["row"]} {finding["message"]}'
        found.setdefault(finding['code'] or 'syntax', []).append(place)
    for rule, places in sorted(found.items()):
        figures.add(rule, places)
    return figures


def changed_files(root=ROOT):
    """Files that are new or differ from the last commit but one; none without git."""
    names = set()
    for command in (
        ['git', 'diff', '--name-only', 'HEAD~1'],
        ['git', 'ls-files', '--others', '--exclude-standard'],
    ):
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        except OSError:
            return names
        names.update(done.stdout.split('\n') if done.returncode == 0 else [])
    return names - {''}


def shown(places, changed):
    """At most 15 places, those in changed files first."""
    first = [place for place in places if re.split('[:,]', place)[0] in changed]
    rest = [place for place in places if place not in set(first)]
    lines = [f'    {place}' for place in [*first, *rest][:PLACES]]
    if len(places) > PLACES:
        lines.append(f'    … and {len(places) - PLACES} more')
    return '\n'.join(lines)


def worse(figures, limits, aims, changed=()):
    """A message for each figure that is above its limit and above its aim."""
    for name, value in figures.values.items():
        limit = max(limits.get(name, 0), aims.get(name, 0))
        if value > limit:
            places = shown(figures.places.get(name, []), changed)
            yield f'{name}: {value:g}, more than {limit:g}\n{places}'.rstrip()


def lowered(figures, limits):
    """The limits, with the better figures in place of theirs; a first run sets all of them."""
    known = limits or figures.values
    values = {name: figures.values.get(name, 0) for name in known}
    new = {name: min(value, limits.get(name, value)) for name, value in values.items()}
    return {name: value for name, value in new.items() if value or name in AIMS}


def better(figures, limits, aims):
    """Names of figures below a limit that is still above the aim."""
    open_limits = {name: limit for name, limit in limits.items() if limit > aims.get(name, 0)}
    return [name for name, limit in open_limits.items() if figures.values.get(name, 0) < limit]


def read_limits():
    """The committed limits of the figures and of ruff's rules."""
    if not LIMITS.exists():
        return {'house': {}, 'ruff': {}}
    return json.loads(LIMITS.read_text(encoding='utf-8'))


def problems(figures, part, aims=()):
    """What got worse, in words; prints a hint where limits can be lowered."""
    limits = read_limits()[part]
    names = better(figures, limits, dict(aims))
    if names:
        print(f'better than house.json: {", ".join(names)} (python .ci/house.py --lower)')
    yield from worse(figures, limits, dict(aims), changed_files())


def table(figures, limits):
    """The figures beside their limits and aims."""
    lines = [f'{"":46} {"now":>8} {"limit":>8} {"aim":>8}']
    for name, value in figures.values.items():
        limit = limits.get(name, 0)
        lines.append(f'{name:46} {value:8g} {limit:8g} {AIMS.get(name, 0):8g}')
    return '\n'.join(lines)


def main():
    """Print the table, or lower the limits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--lower', action='store_true', help='write better figures to house.json')
    options = parser.parse_args()
    limits = read_limits()
    house = measure()
    ruff = ruff_findings()
    if options.lower:
        new = {
            'house': lowered(house, limits['house']),
            'ruff': lowered(ruff, limits['ruff']),
        }
        LIMITS.write_text(json.dumps(new, indent=1) + '\n', encoding='utf-8')
        return
    print(table(house, limits['house']), table(ruff, limits['ruff']), sep='\n\n')


if __name__ == '__main__':
    main()
