"""Packaging. Every fact is in settings.ini; a key NAME_requirements becomes the extra NAME."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

SUFFIX = '_requirements'
here = Path(__file__).parent
settings = ConfigParser(delimiters=['='])
settings.read(here / 'settings.ini', encoding='utf-8')
facts = settings['DEFAULT']
name = facts['lib_name']
extras = {key.removesuffix(SUFFIX): facts[key].split() for key in facts if key.endswith(SUFFIX)}

setup(
    name=name,
    version=facts['version'],
    description=facts['description'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=facts['author'],
    url=facts['git_url'],
    project_urls={
        'Documentation': f'{facts["doc_host"]}{facts["doc_baseurl"]}',
        'Source': facts['git_url'],
        'Issues': f'{facts["git_url"]}/issues',
        'Changelog': f'{facts["git_url"]}/blob/{facts["branch"]}/CHANGELOG.md',
    },
    license='Apache-2.0',
    keywords=facts['keywords'].split(),
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    python_requires='>=' + facts['min_python'],
    packages=find_packages(include=[name, f'{name}.*']),
    package_data={name: facts['package_data'].split()},
    install_requires=facts['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': facts['console_scripts'].split(),
        'nbdev': [f'{name}={name}._modidx:d'],  # the docs' links from names in backticks
    },
)
