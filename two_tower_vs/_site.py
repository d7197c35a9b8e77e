"""Steps of the docs build (`procs` in settings.ini), written by hand: no notebook is about them.

nbdev names a page after its notebook without the number: 05_index would replace the home page.
"""

import re
from pathlib import Path

from nbdev.process import Processor


def _links(text):
    return re.sub(r'(?<!\w)index\.html#', 'faiss_index.html#', text)


class IndexPage(Processor):
    "Gives 05_index the address faiss_index.html, and leads links to its functions there."

    def cell(self, cell):
        text = cell.get('source') or ''
        if cell.cell_type == 'raw' and Path(self.nb.path_).name == '05_index.ipynb':
            text = text.replace('output-file: index.html', 'output-file: faiss_index.html')
        cell.source = _links(text)
        for output in cell.get('outputs', []):  # show_doc's
            shown = output.get('data', {})
            if 'text/markdown' in shown:
                shown['text/markdown'] = _links(''.join(shown['text/markdown']))


class FoldedCode(Processor):
    "Folds the code of pages that are about results."

    def cell(self, cell):
        folder = Path(self.nb.path_).parent.name
        text = cell.get('source') or ''
        if cell.cell_type == 'raw' and folder in ('benchmarks', 'attacks'):
            cell.source = re.sub(r'^---\n', '---\ncode-fold: true\n', text)
