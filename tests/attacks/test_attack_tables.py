"""Tables as people really have them, and properties of tables, metrics and indexes."""

import faiss
import properties
import pytest
import tables


def named(cases):
    """Cases as parameters whose ids are their names."""
    return [pytest.param(*case, id=case[0]) for case in cases]


@pytest.mark.parametrize('name, data, want, warning', named(tables.READ))
def test_read(work, check, name, data, want, warning):
    check(tables.table_read(work, name, data, want, warning))


@pytest.mark.parametrize('case', [pytest.param(case, id=case[0]) for case in tables.REFUSED])
def test_refused(work, check, case):
    check(tables.table_refused(work, *case))


@pytest.mark.parametrize('name, data, says', named(tables.GROUND_TRUTH))
def test_ground_truth_refused(work, check, name, data, says):
    check(tables.truth_refused(work, name, data, says))


def test_what_is_not_text(work, check_each):
    check_each(tables.things(work))


def test_memory_of_large_tables(work, check_each, long):
    check_each(tables.big(work, long))


def test_through_the_command_line(work, check_each, long):
    check_each(tables.through_cli(work, long))


@pytest.fixture
def one_thread():
    """These indexes are small."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.mark.parametrize('name, rule, few, many, values', named(properties.PROPERTIES))
def test_property(work, check, one_thread, long, name, rule, few, many, values):
    check(properties.tried(work, name, rule, values, many if long else few))
