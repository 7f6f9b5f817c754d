"""Bugs in what a CUDA graph holds besides operators: constants of the host, and waiting for the device."""

from .mutant import Mutant

GRAPHS, TESTS = "python/diffratio/routing/graphs.py", "tests/diffratio/routing/test_graph_constants.py"
HOST = f"{TESTS} -k host"

GRAPHS_OF_MODELS = [
    Mutant(
        "constants-that-a-run-may-write-to",
        "aliasing",
        GRAPHS,
        {"return self.noted[key].clone()": "return self.noted[key]"},
        f"{TESTS} -k handed_over",
    ),
    Mutant(
        "constants-by-their-shape-alone",
        "key",
        GRAPHS,
        {"x.shape, x.detach().reshape(-1).view(torch.uint8).numpy().tobytes()": "x.shape"},
        HOST,
    ),
    Mutant(
        "rows-of-a-mask-are-captured",
        "missing check",
        GRAPHS,
        {"waits = masks and (len(args) == 2 or args[2].numel() > 1)": "waits = False"},
        f"{TESTS} -k waits_for_the_device",
    ),
    Mutant(
        "copies-of-the-host-are-captured",
        "missing check",
        GRAPHS,
        {"len(there) > 1 if func": "False if func"},
        HOST,
    ),
    Mutant(
        "constants-are-made-in-the-capture",
        "missing step",
        GRAPHS,
        {"return self.record(settled, inputs), constants": "return self.record(run, inputs), constants"},
        "tests/diffratio/families/test_recorded.py -k qwen_image_edit",
    ),
]
