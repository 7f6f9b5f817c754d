"""What people put around a transformer, on whole tiny models of every family: it works as around the dense
model, or is refused by name."""

import copy

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import CacheMixin
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache, apply_group_offloading
from diffusers.models.attention_processor import (
    PAGCFGHunyuanAttnProcessor2_0,
    PAGHunyuanAttnProcessor2_0,
    PAGJointAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    cache_text,
    load_diffratio,
    save_diffratio,
    summary,
)
from diffratio.routing.find import routed_blocks

from .cases import MODELS
from .cases.case import WIDTH, D
from .test_models import made, run, without_scores

HALF = DiffRatioConfig(compression=0.5)
MAIN = ("flux", "z_image", "qwen_image", "wan", "flux2", "sd35", "chroma", "hunyuan_video", "ltx", "krea2")
MANY = (*MAIN, "cogvideox", "lumina2", "hunyuan_dit", "minimax_h3", "kandinsky5", "ltx2", "cosmos", "latte")
"""Families for what takes longer, or hardly depends on the family."""
pytestmark = pytest.mark.filterwarnings("ignore:the routers are untrained", "ignore:.*adapter:UserWarning")


def twins(name):
    """The dense model, the same one routed with everything kept, and inputs."""
    dense, inputs = made(name)
    kept = apply_diffratio(copy.deepcopy(dense), DiffRatioConfig(compression=0.0))
    without_scores(kept)
    return dense, kept, inputs


def routed(name):
    model, inputs = made(name)
    return apply_diffratio(model, HALF), inputs


def assert_twins(dense, kept, inputs):
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(run(kept, inputs), run(dense, inputs), atol=1e-5, rtol=5e-5)


def block_modules(model, kind=nn.Module) -> dict[str, nn.Module]:
    """Modules inside of the blocks that are or would be routed, by their names in the model."""
    blocks = tuple(layer.name for layer in summary(model))
    named = model.named_modules(remove_duplicate=False)
    inside = {name: m for name, m in named if name.startswith(tuple(f"{block}." for block in blocks))}
    return {name: m for name, m in inside.items() if isinstance(m, kind) and ".diffratio" not in name}


def reasons(model) -> set:
    return {layer.reason for layer in summary(model)}


def give_lora(model, names):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=list(names), init_lora_weights=False)
    if hasattr(model, "add_adapter"):
        model.add_adapter(config)
    else:
        inject_adapter_in_model(config, model)


@pytest.mark.parametrize("name", MAIN)
def test_lora_loaded_and_fused(name):
    dense, kept, inputs = twins(name)
    half, _ = routed(name)
    names = block_modules(kept, nn.Linear)
    with torch.no_grad():
        plain = run(half, inputs)
    for model in (dense, kept, half):
        give_lora(model, names)
    assert_twins(dense, kept, inputs)
    assert all("peft.tuners.lora.layer.Linear" in reason for reason in reasons(half))
    with torch.no_grad():
        loaded = run(half, inputs)
        assert not torch.allclose(loaded, plain, atol=1e-3)
        half.fuse_lora()
        torch.testing.assert_close(run(half, inputs), loaded, atol=1e-5, rtol=1e-4)
        half.unload_lora()
        assert reasons(half) == {None}
        torch.testing.assert_close(run(half, inputs), loaded, atol=1e-5, rtol=1e-4)


class Packed(nn.Linear):
    """As quantised ones are: its weight has neither the shape nor the values of what it computes."""

    def forward(self, x):
        return nn.functional.linear(x, self.codes * 0.05, self.bias)


def pack(module):
    module.codes = (module.weight.data / 0.05).round()
    module.weight = nn.Parameter(torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8), False)
    module.__class__ = Packed


@pytest.mark.parametrize("name", MANY)
def test_quantised_layers_are_called(name):
    dense, kept, inputs = twins(name)
    half, _ = routed(name)
    names = block_modules(kept, nn.Linear)
    for model in (dense, kept, half):
        for linear in {id(m): m for m in map(model.get_submodule, names)}.values():
            pack(linear)
    with torch.no_grad():
        torch.testing.assert_close(run(kept, inputs), run(dense, inputs), atol=1e-5, rtol=5e-5)
        again = apply_diffratio(copy.deepcopy(dense), HALF)
        for one, other in zip(routed_blocks(again), routed_blocks(half), strict=True):
            one.diffratio.load_state_dict(other.diffratio.state_dict())
        assert torch.equal(run(again, inputs), run(half, inputs))
    assert all("not a plain nn.Linear" in reason for reason in reasons(half))


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_is_loaded_with_the_same_bits(name, tmp_path):
    model, inputs = routed(name)
    for block in routed_blocks(model):
        nn.init.normal_(block.diffratio.router_weight)
    fresh, _ = made(name)
    save_diffratio(model, tmp_path)
    load_diffratio(fresh, tmp_path)
    with torch.no_grad():
        assert torch.equal(run(fresh, inputs), run(model, inputs))


NO_JOINING = ("kandinsky5", "ltx2", "ltx2_newer", "ltx2_guidance", "motif", "prx")
"""Whose `fuse_qkv_projections` is an error of diffusers."""


@pytest.mark.parametrize("name", MODELS)
def test_joined_projections_compute_the_same_or_are_refused(name):
    dense, kept, inputs = twins(name)
    if not hasattr(dense, "fuse_qkv_projections"):
        pytest.skip("diffusers' model has no fuse_qkv_projections")
    if name in NO_JOINING:  # a later diffusers may mend it: then this fails
        with pytest.raises((AttributeError, TypeError, ValueError, RuntimeError)), torch.no_grad():
            dense.fuse_qkv_projections()
            run(dense, inputs)
        return
    for model in (dense, kept):
        model.fuse_qkv_projections()
    try:
        with torch.no_grad():
            torch.testing.assert_close(run(kept, inputs), run(dense, inputs), atol=1e-5, rtol=5e-5)
    except ValueError as error:
        assert "its processor is Fused" in str(error)
        with pytest.raises(ValueError, match="its processor is Fused"):
            apply_diffratio(dense, HALF)


def leaf_level(model):
    apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")


OWN_WEIGHTS = (
    "helios", "bria_fibo2", "cogvideox", "consisid", "easyanimate", "ernie_image", "hunyuan_dit", "ideogram4",
    "joyimage", "joyimage_references", "joyimage_edit_plus", "krea2", "lumina2", "lumina_next", "minimax_h3",
    "z_image",
)  # fmt: skip
"""Families whose norms have weights, which a routed block reads without calling the norm."""


def leaf_by_leaf(model):
    cpu_offload(model, execution_device="cpu")


@pytest.mark.parametrize(
    ("name", "offload"),
    [(name, leaf_by_leaf) for name in sorted({*MANY, *OWN_WEIGHTS} - {"hunyuan_dit"})]
    + [(name, leaf_level) for name in MANY],
)
def test_weights_that_come_one_module_at_a_time(name, offload):
    """accelerate's, which diffusers' HunyuanDiT does not bear, and diffusers' own."""
    model, inputs = routed(name)
    with torch.no_grad():
        wanted = run(model, inputs)
        offload(model)
        if name in OWN_WEIGHTS:
            with pytest.raises(ValueError, match="offloading brings its weights for its own calls alone"):
                run(model, inputs)
        else:
            torch.testing.assert_close(run(model, inputs), wanted, atol=1e-5, rtol=1e-5)


def whole(model):
    cpu_offload_with_hook(model, execution_device="cpu")


def by_block(model):
    apply_group_offloading(
        model, onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


@pytest.mark.parametrize("offload", [whole, by_block])
@pytest.mark.parametrize("name", MANY)
def test_weights_that_come_with_the_model_or_with_a_block(name, offload):
    model, inputs = routed(name)
    with torch.no_grad():
        wanted = run(model, inputs)
        offload(model)
        assert torch.equal(run(model, inputs), wanted)


TEXT_STAYS = ("wan", "ltx", "allegro", "anyflow", "skyreels", "chronoedit", "wan_vace")
"""Families with cross-attention, whose text is the same in every block and step."""


@pytest.mark.parametrize("name", TEXT_STAYS)
def test_text_is_projected_once_and_has_the_same_bits(name, monkeypatch):
    model, inputs = routed(name)
    names = [name for name in block_modules(model, nn.Linear) if name.endswith(("attn2.to_k", "attn2.to_v"))]
    weights = [model.get_submodule(name).weight for name in names]
    linear, calls = nn.functional.linear, []

    def counting(x, weight, bias=None):
        calls.extend(known for known in weights if known is weight)
        return linear(x, weight, bias)

    with torch.no_grad():
        wanted = run(model, inputs)
        monkeypatch.setattr(nn.functional, "linear", counting)
        with cache_text(model):
            assert all(torch.equal(run(model, inputs), wanted) for _ in range(3))
    assert len(calls) == len(names) > 0


@pytest.mark.parametrize("name", ["flux", "z_image", "qwen_image", "flux2", "sd35", "chroma", "lumina2"])
def test_a_text_that_runs_through_the_blocks_is_said_not_to_be_cached(name):
    model, inputs = routed(name)
    with torch.no_grad():
        wanted = run(model, inputs)
        with pytest.warns(UserWarning, match="cache_text: blocks of .* project no text"), cache_text(model):
            assert torch.equal(run(model, inputs), wanted)


CACHED = (
    "cogvideox", "cogview4", "flux", "hunyuan_video", "hunyuan_image", "ltx", "mochi", "qwen_image",
    "qwen_image_edit", "wan", "wan_i2v", "wan_vace",
)  # fmt: skip
"""Models that diffusers' First-Block-Cache knows."""


def steps(model, inputs):
    """The second step is that of a cache, which has seen the first block change little."""
    outputs = []
    for _ in range(3):
        with CacheMixin.cache_context(model, "cond"):
            outputs.append(run(model, inputs))
    return torch.stack(outputs)


@pytest.mark.parametrize("name", CACHED)
def test_first_block_cache(name):
    dense, kept, inputs = twins(name)
    half, _ = routed(name)
    calls = []
    routed_blocks(half)[1].diffratio.register_forward_hook(lambda *_: calls.append(None))
    for model in (dense, kept, half):
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=0.2))
    with torch.no_grad():
        torch.testing.assert_close(steps(kept, inputs), steps(dense, inputs), atol=1e-5, rtol=5e-5)
        assert steps(half, inputs).isfinite().all()
    assert len(calls) == 1  # the second block ran in the first step alone


def processors(model):
    return [m.processor for m in block_modules(model).values() if getattr(m, "processor", None) is not None]


@pytest.mark.parametrize("name", MANY)
def test_an_attention_backend_of_diffusers_is_said_not_to_be_used(name):
    model, inputs = routed(name)
    takes = [p for p in processors(model) if hasattr(p, "_attention_backend")]
    with torch.no_grad():
        wanted = run(model, inputs)
        model.set_attention_backend("_native_math")
        got = run(model, inputs)
    everywhere = [m for m in model.modules() if getattr(m, "processor", None) is not None]
    if len(everywhere) == len(processors(model)) and name not in ("cosmos", "ltx2"):
        assert torch.equal(got, wanted)
    else:  # blocks that stay dense (refiners) use it, and parts that are modules: of the text, of the audio
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    said = "diffusers' attention backend '_native_math' is not used, but ours"
    assert reasons(model) == ({said} if takes else {None})


@pytest.mark.parametrize("name", MANY)
def test_context_parallelism_is_refused_before_and_after(name):
    model, inputs = routed(name)
    takes = [p for p in processors(model) if hasattr(p, "_parallel_config")]
    if not takes:
        pytest.skip("no processor of diffusers' blocks knows context parallelism: there is nothing to refuse")
    with torch.no_grad():
        run(model, inputs)
        takes[0]._parallel_config = object()
        with pytest.raises(ValueError, match="context parallelism"):
            run(model, inputs)
    fresh, _ = made(name)
    for module in fresh.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = object()
    with pytest.raises(ValueError, match="context parallelism"):
        apply_diffratio(fresh, HALF)


class Own:
    """A user's processor."""

    def __call__(self, *args, **kwargs):
        raise AssertionError("it was called")


OWN = [(name, Own) for name in MANY if name != "latte"]  # whose processors are called
OTHERS = [
    ("flux", lambda: FluxIPAdapterAttnProcessor(D, D)),
    ("sd35", lambda: SD3IPAdapterJointAttnProcessor2_0(D, D, WIDTH)),
    ("sd35", PAGJointAttnProcessor2_0),
    ("hunyuan_dit", PAGHunyuanAttnProcessor2_0),
    ("hunyuan_dit", PAGCFGHunyuanAttnProcessor2_0),
]


@pytest.mark.parametrize(("name", "make"), OWN + OTHERS)
def test_other_processors_are_refused_by_name(name, make):
    model, inputs = routed(name)
    attentions = [m for m in block_modules(model).values() if getattr(m, "processor", None) is not None]
    if not attentions:
        pytest.skip("diffusers' blocks have no processor that a user could replace")
    attentions[0].processor = make()
    kind = type(attentions[0].processor).__name__
    with torch.no_grad(), pytest.raises(ValueError, match=f"its processor is {kind}, and a routed block"):
        run(model, inputs)
    fresh, _ = made(name)
    first = next(n for n, m in block_modules(model).items() if m is attentions[0])
    fresh.get_submodule(first).processor = make()
    with pytest.raises(ValueError, match=f"its processor is {kind}, and a routed block"):
        apply_diffratio(fresh, HALF)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("flux", "joint_attention_kwargs"),
        ("sd35", "joint_attention_kwargs"),
        ("qwen_image", "attention_kwargs"),
    ],
)
def test_what_an_ip_adapter_gives_attention_is_refused_by_name(name, argument):
    model, inputs = routed(name)
    with pytest.raises(ValueError, match=r"joint_attention_kwargs \(ip_hidden_states\) is not supported"):
        run(model, inputs | {argument: {"ip_hidden_states": torch.zeros(2, 4, D)}})
