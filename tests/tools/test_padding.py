"""Padding of attention, from the tiles that are really taken."""

import pytest

from tools.tune.padding import KEEP, TEXT, padded_work, table

TOKENS = 1024
KEPT = {0.9: 922, 0.8: 820, 0.7: 717, 0.6: 615, 0.5: 512, 0.4: 410, 0.3: 308}


@pytest.mark.parametrize("architecture", [80, 90])
def test_at_most_a_fifth_of_the_work_is_padding(architecture):
    assert tuple(KEPT) == KEEP
    for count in KEPT.values():
        for keys in (count, *TEXT):
            assert padded_work(architecture, count, keys) <= 1.2, (count, keys)


def test_padding_is_that_of_the_tile():
    assert padded_work(90, 410, 410) == 448 * 448 / 410**2
    assert padded_work(90, 1024, 1024) == 1
    assert padded_work(90, 129, 300) == 192 * 320 / (129 * 300)


def test_the_table_has_a_row_for_each_ratio():
    rows = table(90).splitlines()
    assert len(rows) == 2 + len(KEEP)
    assert rows[-2] == "| 0.4 | 410 | 64 x 64 | 1.19 | 1.17 | 1.17 |"
