"""Awkward pictures, files, names and damage: the right pixels, or a reason in words."""

import images
import pytest


@pytest.fixture(scope='module')
def awkward(work):
    """A trained project with every awkward thing among its candidates, and what is expected."""
    return images.awkward_project(work)


@pytest.mark.parametrize(
    'name, data, want', [pytest.param(*case, id=case[0]) for case in images.pictures()]
)
def test_picture(check, name, data, want):
    check(images.right(name, data, want))


def test_decoders_are_quiet(check):
    check(images.quiet())


def test_odd_files(work, check_each):
    check_each(images.read_odd(work))


def test_damaged_headers(check, long):
    check(images.fuzzed(20_000 if long else 500))


def test_candidates_and_queries_are_skipped(awkward, check_each):
    check_each(images.skipped(*awkward))


def test_single_queries(awkward, check_each, long):
    check_each(images.single(*awkward, long))


def test_the_first_bad_candidate_is_named(awkward, check_each, long):
    check_each(images.refused(*awkward, long))


def test_files_that_change_while_they_are_read(awkward, check_each):
    check_each(images.changing(awkward[0]))


def test_training_without_what_cannot_be_read(work, check_each):
    check_each(images.trained(work))


@pytest.mark.long
def test_memory_of_large_pictures(work, check_each):
    check_each(images.memory(work))
