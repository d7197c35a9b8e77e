"Packaging. Every fact stands in settings.ini; a key NAME_requirements becomes the extra NAME."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_name']
setup(
    name=lib, version=cfg['version'], description=cfg['description'], author=cfg['author'], url=cfg['git_url'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    license='Apache-2.0', keywords=cfg['keywords'].split(), python_requires='>=' + cfg['min_python'],
    packages=find_packages(include=[lib, f'{lib}.*']), package_data={lib: cfg['package_data'].split()},
    install_requires=cfg['requirements'].split(),
    extras_require={k[:-len('_requirements')]: v.split() for k,v in cfg.items() if k.endswith('_requirements')},
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f'{lib}={lib}._modidx:d']},   # the docs' links from names in backticks
)
