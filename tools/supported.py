"""docs/supported-models.md, from the specs that are registered and the tests' cases.

python -m tests.diffratio.families.facts --write    # first, where blocks or their cases have changed
python -m tools.supported          # prints the page; `--write` puts it where it belongs
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys

from diffratio.families import registry
from diffratio.families.not_routed import NOT_ROUTED

from .pages import print_or_write
from .sources import ROOT

PAGE = ROOT / "docs" / "supported-models.md"
FACTS = ROOT / "tests" / "diffratio" / "families" / "facts.json"
"""What the tests' cases show of each block class, written by `python -m tests.diffratio.families.facts`."""
OF_PIXART = {"modules": [], "masks": ["text"]}
"""Of BasicTransformerBlock, whose tests are those of routing and of the kernels."""
TOP = """# Supported models
`apply_diffratio(pipe)` routes the transformer blocks below, and says so by name where it cannot. This page
is written by `python -m tools.supported`; a test compares it with the specs that are registered.

Every family is tested the same way (`tests/diffratio/families/test_blocks.py`,
`tests/diffratio/families/test_models.py`): with every token kept its blocks are the dense ones (fp32 to
2e-6 and 2e-5 relative; bf16 no worse than 1.25 times the block's own error); with fewer, and unequal
numbers of them, each sample is what the block makes of its kept tokens alone; other tokens come back
bit-equal; all gradients, two bins of a learned ratio, gradient checkpointing where the
model has it and it works there; removing gives the model back
bit-equal; no hook is passed over. All of that has run on the CPU, on tiny random models. **Nothing of it
has run on a GPU.**

Text and reference images are kept always. Queries and keys are normed and turned by one operator
([qk_norm_rope](how-it-works.md)) where their norms are plain; products run by raw weights where a Linear is
plain (no LoRA, no quantisation, no hook), else by the modules. While ratios are learned both bins are one
computation, which equals two passes to 1e-12 in fp64 (`tests/diffratio/families/test_two_bins.py`).

What the tests' cases show of plain blocks: *by modules* are the parts that a routed block calls as they are,
on the rows that it keeps, since no operator computes them; all others run by raw weights and our operators.
*Masks* are those of tokens of the text, of the image, or of the one sequence of both. All blocks are tested
with the gradients of all their parameters and of their tokens.

*Refused* is what the model, or a call of a block, may not have; all of it is tried
(`tests/diffratio/families/refusals.py`). A routed block computes attention itself: it takes the processors
that are named here and no other one (of IP-Adapter, of PAG, of yours), and no arguments for them. Masks of
floats leave no token out, because attention adds them to its scores: give bools, one for each token.
*Dense* are blocks that stay as they are, by their place in the model.

| model of diffusers | blocks | timesteps | by modules | masks | refused | dense | what they are |
|---|---|---|---|---|---|---|---|
"""
REFUSED = """
## With other tools
On whole tiny models (`tests/diffratio/families/test_compositions.py` and the files named here):
* LoRA (peft): its layers are called on the kept rows; fused, the weights are plain again.
* Quantised layers: are called, whatever their weights hold.
* `fuse_qkv_projections`: the joined product is called where the family's processor calls it; where the
  processor becomes another one (SD3 and others) it is refused by name.
* ControlNet: residuals reach every token; ControlNets of FLUX.1, Qwen-Image and SD3 are routed like
  transformers (`tests/diffratio/families/test_controlnet.py`).
* Gradient checkpointing: decisions of the forward pass are used again
  (`tests/diffratio/families/test_models.py`).
* Offloading: of models and of groups of blocks: the same bits. Leaf by leaf (diffusers, accelerate):
  the same, but refused by name where a norm has weights, which a routed block reads without calling the
  norm (Z-Image, Krea 2, Lumina 2, CogVideoX and others).
* First-Block-Cache: as on the dense model, for the models that it knows.
* `cache_text`: keys and values of cross-attention are projected once; where the text runs through the
  blocks it warns that there is nothing to keep.
* `cuda_graphs`: replays have the eager bits, with other latents, texts and masks too; operators are
  recorded on a CPU (`tests/diffratio/families/test_recorded.py`). What a model's forward makes of the host's
  numbers is copied to the GPU once; models that wait for the GPU are refused by name, see below.
* `torch.compile`: every block is one graph, where the dense block is one
  (`tests/diffratio/families/test_compiled_blocks.py`).
* Adapters: `load_diffratio` gives the bits that were saved.

## Refused, by name
What single families refuse stands in the table; every model refuses:
* Processors of users, IP-Adapter and PAG. `fuse_qkv_projections` is honoured where the family's processor is.
* Pyramid attention broadcast and FasterCache inside of blocks; context parallelism, also where it is switched
  on later.
* Hooks and replacements of modules that a routed block does not call (attention, norms).
* Attention backends of diffusers (`set_attention_backend`) are not used: attention is this package's.

## Not routed
| block of diffusers | why |
|---|---|
"""
LIMITS = """
## Known limits
* A model that is compiled as a whole cannot see which tokens are references (Kontext, FLUX.2, LongCat, FIBO
  edit): given some it stops with an error of its graph that names `img_ids` (on a GPU an assertion of the
  device). Without references it is one graph. Compile block by block (`compile_repeated_blocks`) with them,
  and Ideogram 4, MiniMax-H3 and Lumina 2, whose tokens the host has to read.
* Sequences of unequal lengths (Z-Image, JoyImage-Edit-Plus) in fp32 on a GPU: attention there is torch's, the
  host reads their lengths, and `cuda_graphs` refuses them.
* Masks of numbers whose values the host would have to wait for (PixArt, Allegro, and LTX where its model is
  not given a mask of bools, sampling on a GPU without `cache_text`), and masks that only weigh tokens, send
  attention to the text through diffusers' module: as exact, and no faster than that is.
* Frames that are given to a video model (timestep 0: Wan TI2V, LTX) are routed like the others.
"""


def rows() -> list[str]:
    """A row of the table for each file of diffusers whose blocks are routed."""
    found = []
    for file, families in registry.FAMILIES.items():
        for family in families:
            module = importlib.import_module(f"diffratio.families.{family}")
            home = _module(file)
            blocks = {
                cls: spec
                for cls, (spec, _) in registry._specs.items()
                if cls.__module__ == home.__name__ and type(spec).__module__.startswith("diffratio.")
                and family in _owners(spec, module)
            }  # fmt: skip
            if not blocks:
                continue
            units = sorted({spec.timestep_units for spec in blocks.values()})
            about = " ".join(inspect.getdoc(module).split("\n\n")[0].split())
            names = ", ".join(f"`{cls.__name__}`" for cls in blocks)
            shown = *_shown(blocks), _refused(blocks), _dense(blocks)
            cells = [_models(home, file, family), names, ", ".join(units), *shown, about]
            found.append(f"| {' | '.join(cells)} |")
    return sorted(found)


def _shown(blocks) -> list[str]:
    """What the tests show of blocks: parts that are modules, masks."""
    facts = json.loads(FACTS.read_text())["blocks"] | {"BasicTransformerBlock": OF_PIXART}
    own = [facts[cls.__name__] for cls in blocks]
    of_each = {key: sorted({value for one in own for value in one[key]}) for key in OF_PIXART}
    columns = of_each["modules"], of_each["masks"]
    return [", ".join(column) or "-" for column in columns]


def _refused(blocks) -> str:
    """What the tests show that blocks refuse, and the processors that they take."""
    refused = json.loads(FACTS.read_text())["refused"]
    errors = {error for cls in blocks for error in refused.get(cls.__name__, ())}
    taken = {cls.__name__ for spec in blocks.values() for cls in getattr(spec, "processors", ())}
    others = [f"processors besides {', '.join(f'`{name}`' for name in sorted(taken))}"] if taken else []
    return "; ".join([*sorted(errors, key=lambda error: (error[0] != "`", error)), *others]) or "-"


def _dense(blocks) -> str:
    """Blocks that are left dense, and why."""
    left = {name: why for spec in blocks.values() for name, why in getattr(spec, "dense", {}).items()}
    by_reason = {why: [f"`{name}`" for name in left if left[name] == why] for why in left.values()}
    return "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items()) or "-"


def _without(what: str, name: str) -> str:
    """Cases of models that have no checkpointing, or no graphs; one line a reason."""
    reasons = json.loads(FACTS.read_text())[f"without {what}"]
    cases = {why: [f"`{case}`" for case in reasons if reasons[case] == why] for why in reasons.values()}
    return "".join(f"* {name}, {', '.join(own)}: {why}.\n" for why, own in cases.items())


def _module(file: str):
    for package in ("diffusers.models.transformers", "diffusers.models"):
        if importlib.util.find_spec(f"{package}.{file}"):
            return importlib.import_module(f"{package}.{file}")
    raise ImportError(f"diffusers has no file {file}")


def _owners(spec, module) -> set[str]:
    """The files that registered a spec: those that hold its class, or an instance of it."""
    return {module.__name__.rpartition(".")[2]} if hasattr(module, type(spec).__name__) else set()


_OF_ATTENTION = {
    "basic_transformer": "`PixArtTransformer2DModel`, `DiTTransformer2DModel`, `LatteTransformer3DModel`",
    "sd3": "`SD3Transformer2DModel`",
}
"""Our file -> the models of blocks that diffusers keeps beside its attention."""


def _models(home, file: str, family: str) -> str:
    if file == "attention":
        return _OF_ATTENTION[family]
    names = [name for name, cls in vars(home).items() if _is_model(name, cls, home)]
    return ", ".join(f"`{name}`" for name in sorted(names)) or f"`{file}`"


def _is_model(name: str, cls, home) -> bool:
    return (
        inspect.isclass(cls) and cls.__module__ == home.__name__ and "Model" in name and "Output" not in name
    )


def page() -> str:
    """The whole page."""
    refused = [f"| `{name}` | {why} |" for name, why in sorted(NOT_ROUTED.items())]
    units = "; ".join(
        f"{name}, from {low:g} to {high:g}" for name, (low, high) in registry.TIMESTEP_UNITS.items()
    )
    table = "\n".join(rows()) + f"\n\nTimesteps, the finished picture first: {units}.\n"
    lacking = _without("checkpointing", "Gradient checkpointing") + _without("graphs", "No CUDA graph")
    return TOP + table + REFUSED + "\n".join(refused) + "\n" + LIMITS + lacking


if __name__ == "__main__":
    sys.exit(print_or_write(__doc__, PAGE, page))
