"""A step of the docs build (`procs` in settings.ini), written by hand since no notebook is about it.
nbdev names a page after its notebook without the number: 05_index would replace the home page, index."""
import re
from pathlib import Path
from nbdev.process import Processor

def _links(s): return re.sub(r'(?<!\w)index\.html#', 'faiss_index.html#', s)

class IndexPage(Processor):
    "Gives 05_index the address faiss_index.html, and leads links to its functions there."
    def cell(self, cell):
        s = cell.get('source') or ''
        if cell.cell_type == 'raw' and Path(self.nb.path_).name == '05_index.ipynb': s = s.replace('output-file: index.html', 'output-file: faiss_index.html')
        cell.source = _links(s)
        for o in cell.get('outputs', []):   # show_doc's
            if md := o.get('data', {}).get('text/markdown'): o['data']['text/markdown'] = _links(''.join(md))
