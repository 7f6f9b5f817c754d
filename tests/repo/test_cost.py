"""docs/cost.md is what is counted."""

import pytest

from diffratio.evaluation.models import PRESETS
from tools import cost


def test_the_page_has_every_preset():
    page = cost.PAGE.read_text()
    assert page.startswith(cost.TOP), "python -m tools.cost --write"
    named = [line.split("`")[1] for line in page.removeprefix(cost.TOP).splitlines()]
    assert named == list(PRESETS)


@pytest.mark.parametrize("name", ["wan-1.3b-480p", "sd3.5-medium-1024"])
def test_its_flops_are_what_is_counted(name):
    """Memory is not compared: the dense block's is that of the torch and diffusers that are installed."""
    rows = [row.rsplit("|", 3)[0] for row in cost.PAGE.read_text().splitlines()]
    assert cost.row(name).rsplit("|", 3)[0] in rows, "python -m tools.cost --write"
