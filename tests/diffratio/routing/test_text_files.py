"""Files of text as editors and the web leave them: byte order marks, separators in strings, empty lines."""

import json

import pytest

from diffratio import load_diffratio, save_diffratio
from diffratio.cli.shapes import read_json
from diffratio.evaluation import results

MARKS = ["\u2028", "\u2029", "\x85"]
ENDS = ["", "\n", "\n\n", "\r\n", "\n  \n"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_an_adapters_config(tiny, tmp_path, encoding, end):
    model = tiny.dit()
    save_diffratio(tiny.route(model), tmp_path)
    path = tmp_path / "diffratio_config.json"
    path.write_bytes((path.read_text() + end).encode(encoding))
    load_diffratio(tiny.dit(), tmp_path)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_models_config_and_a_plan(tmp_path, encoding, end):
    path = tmp_path / "config.json"
    path.write_bytes((json.dumps({"name": "Käse"}, ensure_ascii=False) + end).encode(encoding))
    assert read_json(path, "--model") == {"name": "Käse"}


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_results_of_a_benchmark(tmp_path, encoding, end, mark):
    path, names = tmp_path / "results.jsonl", [f"a{mark}name", "Käse"]
    lines = [
        json.dumps({"device": name, "threads": 1, "suite": "s", "subject": "x", "dtype": "d",
                    "rows": [{"name": name}]}, ensure_ascii=False)
        for name in names
    ]  # fmt: skip
    path.write_bytes(("\n".join(lines) + end).encode(encoding))
    assert [row["name"] for row in results.read(path)] == names
