"""The table of docs/inpainting.md."""

import json

from benchmarks import holes

FACTS = {"device": "EPYC", "threads": 1, "commit": "0123abc", "versions": {"torch": "2.13"}}
ROW = {"layers": 2, "width": 64, "batch": 1, "tokens": 1024, "text": 5, "dtype": "float32", "rounds": 3}


def row(name, flops, of_baseline, **more):
    return ROW | {"name": name, "flops": flops, "of_baseline": of_baseline, "kept": 1.0} | more


RUN = FACTS | {
    "rows": [
        row("diffusers dense", 200, 1.0),
        row("hole 25.0%", 50, 0.275, hole=0.25),
        row("hole 25.0%, routed", 30, 0.18, hole=0.25, kept=0.7),
        row("hole 51.7%, routed", 60, None, hole=0.517, kept=0.7, refused="over the budget"),
        row("encoder, once per edit", 300, 1.2),
    ]
}


def test_time_stands_over_flops(monkeypatch, tmp_path):
    document, results = tmp_path / "inpainting.md", tmp_path / "inpaint.json"
    text = holes.DOCUMENT.read_text()
    assert text.count(holes.START) == 1 and holes.END in text.split(holes.START)[1]
    document.write_text(f"before\n{holes.START}\nold\n{holes.END}\nbehind\n")
    results.write_text(json.dumps(RUN))
    for name, path in (("ROOT", tmp_path), ("DOCUMENT", document), ("RESULTS", results)):
        monkeypatch.setattr(holes, name, path)
    holes.main()
    written = document.read_text()
    assert "old" not in written and written.startswith("before\n") and written.endswith("\nbehind\n")
    assert "EPYC, 1 thread, torch 2.13, commit 0123abc" in written
    cells = [line[2:-2].split(" | ") for line in written.splitlines() if line.startswith("| ")]
    assert cells[2:] == [
        ["25.0% (256 tokens)", "100%", "0.275", "0.250", "1.10"],
        ["25.0% (256 tokens)", "70%", "0.180", "0.150", "1.20"],
        ["51.7% (529 tokens)", "70%", "refused: over the budget", "", ""],
        ["encoder, once per edit", "100%", "1.200", "1.500", "0.80"],
    ]
