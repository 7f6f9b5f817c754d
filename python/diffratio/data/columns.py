"""Which rows of a data set are kept, by their columns: in the paper (section 4.1) by aesthetic score, by
language, and by how well text and image fit."""

import math
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {">=": operator.ge, "<=": operator.le, "=": operator.eq}


class Condition(NamedTuple):
    """What a column of a kept row holds: at least or at most a number, or exactly a text."""

    column: str
    comparison: str
    value: float | str

    def holds(self, row: dict[str, Any], where: str) -> bool:
        """Whether a row meets it; one without a value does not.

        Raises:
            ValueError: there is no such column, or it holds no number; `where` tells which row it is.
        """
        if self.column not in row:
            raise ValueError(f"keep_rows: {where} has no column {self.column!r}, only {', '.join(row)}")
        found = row[self.column]
        if found is None:
            return False
        if isinstance(self.value, str):
            return str(found) == self.value
        try:
            number = float(found)
        except (TypeError, ValueError):
            raise ValueError(f"keep_rows: {self.column} of {where} is {found!r}, not a number") from None
        return not math.isnan(number) and _COMPARISONS[self.comparison](number, self.value)


def conditions(text: str) -> list[Condition]:
    """Read "aesthetic >= 5.5, language = en"; all of them must hold.

    Raises:
        ValueError: one is not of this form.
    """
    found = []
    for one in text.split(","):
        match = re.fullmatch(r"\s*([^<>=!]+?)\s*(>=|<=|=)\s*([^<>=].*?)\s*", one)
        if match is None:
            raise ValueError(
                f"keep_rows={text!r}: {one.strip()!r} must be COLUMN >= NUMBER, <= NUMBER or = TEXT"
            )
        column, comparison, value = match.groups()
        if comparison != "=":
            try:
                value = float(value)
            except ValueError:
                raise ValueError(f"keep_rows={text!r}: {value!r} is not a number") from None
        found.append(Condition(column, comparison, value))
    return found


def kept_rows(rows: Sequence[dict[str, Any]], used: list[int], keep_rows: str, what: str) -> list[int]:
    """Return those of the rows `used` that meet all conditions; a warning says how many.

    Raises:
        ValueError: none does, or a condition is wrong for these rows; the text begins with keep_rows.
    """
    wanted, kept = conditions(keep_rows), []
    for place in used:
        row, where = rows[place], f"row {place} of {what}"
        if all(condition.holds(row, where) for condition in wanted):
            kept.append(place)
    text = f"keep_rows={keep_rows!r} keeps {len(kept)} of {len(used)} rows of {what}"
    if not kept:
        raise ValueError(text)
    warnings.warn(text, stacklevel=2)
    return kept
