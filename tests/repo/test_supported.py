"""docs/supported-models.md is what the registered specs say."""

from diffratio.families import registry
from tests.diffratio.families import facts
from tools import supported


def test_the_page_is_the_one_that_is_written():
    assert supported.PAGE.read_text() == supported.page(), "python -m tools.supported --write"


def test_what_it_says_of_blocks_is_what_the_cases_show():
    assert facts.FILE.read_text() == facts.written(), "python -m tests.diffratio.families.facts --write"


def test_every_file_of_a_family_has_a_row():
    rows = supported.rows()
    assert len(rows) >= len(registry.FAMILIES) - 1  # a file may only help another one
    assert all(row.count("|") == 9 for row in rows)
