"""Fixtures for Debian's Chromium, driven by Playwright; axe-core comes from npm, once."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pages
import pytest
from attack import project

FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
]
NAMES = 'chromium', 'chromium-browser', 'google-chrome'


def pytest_addoption(parser):
    """Add --shots."""
    parser.addoption('--shots', metavar='DIR', help='leave screenshots of the pages there')


@pytest.fixture(scope='session')
def browser():
    """The browser, where there is one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip('there is no Chromium (apt-get install chromium)')
    sync_api = pytest.importorskip('playwright.sync_api')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope='session')
def axe():
    """The source of axe-core, or None where it cannot be fetched."""
    file = pages.axe_file()
    return file.read_text(encoding='utf-8') if file else None


@pytest.fixture(scope='session')
def shots(request):
    """A folder for screenshots, or None."""
    folder = request.config.getoption('--shots')
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


@dataclass
class Served:
    """A server of a small project, and what its pages should show."""

    folder: Path
    url: str
    truth: pages.Truth


@pytest.fixture(scope='session')
def small_project(browser, workshop):
    """A small project with queries of every kind."""
    return pages.small_project(workshop)


@pytest.fixture(scope='session')
def served(small_project):
    """The server that these tests share."""
    with pages.server(small_project / 'config.yaml') as url:
        yield Served(small_project, url, pages.Truth(small_project))


@pytest.fixture(scope='module')
def locked(small_project):
    """The address of a server with a token."""
    with pages.locked(small_project) as url:
        yield url


@pytest.fixture(scope='module')
def verifying(small_project):
    """The address of a server that compares hits detail by detail."""
    pytest.importorskip('cv2')
    with pages.verifying(small_project) as url:
        yield url


@pytest.fixture(scope='session')
def picture(served):
    """The bytes of the first query."""
    return pages.first_query(served.url)


@pytest.fixture
def visit(browser, served):
    """The search page, opened; at the end nothing may have gone wrong on it."""
    visit = pages.Visit(browser, served.url, served.truth, viewport=pages.DESKTOP)
    yield visit
    problems = visit.close()
    assert not problems


@pytest.fixture(scope='session')
def map_file(small_project):
    """The map of the small project."""
    pytest.importorskip('sklearn')
    return pages.make_map(small_project, small_project.parent / 'map.html')


@pytest.fixture(scope='session')
def finished(workshop):
    """A finished project as it is, for its report."""
    return project(workshop)
