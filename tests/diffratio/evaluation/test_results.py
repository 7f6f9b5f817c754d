"""Files of results: appended, read back flat, the newest of every subject."""

import json

import pytest

from diffratio.evaluation.results import append, file_of, read, select

FACTS = {"device": "NVIDIA H200", "threads": 8, "date": "2026-01-01"}
ROW = {
    "suite": "block", "subject": "PixArt block", "dtype": "bfloat16", "batch": 2, "tokens": 64, "kept": 1.0,
    "name": "dense", "mode": "graph", "cache": "cold", "flops": 100, "seconds": 2.0, "of_baseline": 1.0,
    "peak_bytes": 2**20,
}  # fmt: skip
HALF = {"name": "mod_block", "kept": 0.5, "flops": 50, "seconds": 1.25, "of_baseline": 0.625}


def test_a_machine_has_a_file_and_its_rows_come_back(tmp_path):
    path = file_of(tmp_path / "results", "NVIDIA H200 (SXM)")
    assert path.name == "nvidia-h200-sxm.jsonl"
    append(path, FACTS, [ROW, ROW | HALF])
    append(path, FACTS | {"date": "2026-01-02"}, [ROW | {"batch": 4}])
    rows = read(path)
    assert [row["batch"] for row in rows] == [2, 2, 4]
    assert rows[1] == FACTS | ROW | HALF and rows[2]["date"] == "2026-01-02"


def test_the_newest_of_a_subject_replaces_all_its_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    append(path, FACTS, [ROW, ROW | HALF])
    append(path, FACTS, [ROW | {"seconds": 3.0}])
    append(path, FACTS | {"threads": 4}, [ROW])
    assert [(row["threads"], row["seconds"]) for row in read(path)] == [(8, 3.0), (4, 2.0)]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"rows": []}',
        '{"rows": [{"name": "a"}]}',
        '{"rows": 3}',
        json.dumps({"device": "a", "rows": [ROW]}),
    ],
)
def test_what_is_no_result_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(FACTS | {"rows": [ROW]}) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not a result"):
        read(path)


def test_selected_rows_are_measured_ones():
    rows = [ROW, ROW | HALF, ROW | {"refused": "no"}]
    assert select(rows, suite="block") == rows[:2] and select(rows, kept=0.5) == rows[1:2]
