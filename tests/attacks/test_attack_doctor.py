"""The data doctor: what is planted is found, and nothing else is called an error."""

import doctor
import pytest

TABLES = [
    (),
    ('pairs',),
    ('candidates',),
    ('query_gt',),
    ('pairs', 'query_gt'),
    ('candidates', 'query_gt'),
]


@pytest.mark.parametrize('name, plant, finding, status', doctor.PLANTS)
def test_planted(work, check, name, plant, finding, status):
    check(doctor.planted(work, name, plant, finding, status))


@pytest.mark.parametrize('kept', TABLES, ids=lambda kept: ' '.join(kept) or 'none')
def test_some_tables_alone(work, check, kept):
    check(doctor.alone(work, kept))


def test_messy_catalogue(work, check_each):
    check_each(doctor.messy(work))
