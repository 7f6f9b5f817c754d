"""What is counted of blocks and models of all families: against torch's counter, and each sample alone."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffratio import DiffRatioConfig, apply_diffratio
from diffratio.evaluation.flops.counted import Counting, count_model, count_preset
from diffratio.evaluation.models import PRESETS, Draw, Preset, Size, model_inputs
from diffratio.routing import forward
from diffratio.routing.apply import route_blocks
from diffratio_kernels import kept_tokens, mod_block
from diffratio_kernels.testing.cases import ModBlockCase
from tests.diffratio.families.cases import BLOCKS, MODELS
from tests.diffratio.families.cases.case import BATCH
from tests.diffratio.families.test_blocks import KEPT, made, routed, timesteps

ON_ALL_TOKENS = {
    "cosmos_frames": [f"norm{n}.linear_{m}" for n in (1, 2, 3) for m in (1, 2)],
    "hunyuan_dit_skip": ["skip_linear"],
    "ideogram4_per_token": ["adaln_modulation"],
    "wan_vace": ["proj_out"],
}
"""Blocks with products that all tokens need: modulation of every token, a skip, a hint for another block."""
NOT_ALONE = {
    "helios": "history attends in the second attention too",
    "helios_amplified": "history attends in the second attention too",
    "joyimage_edit_plus": "the block alone computes padding of images",
    "lumina2_ragged": "the block alone computes padding",
    "minimax_h3": "the modulation is that of the batch, made once",
    "mochi": "the block takes padding of the text out",
    "mochi_last": "the block takes padding of the text out",
    "motif_again": "modulation of two texts is made for the batch",
    "motif_single_again": "modulation of two texts is made for the batch",
    "z_image_ragged": "the block alone computes padding",
}
"""Blocks of which a sample alone is another amount of work, and why."""


def torch_count(call) -> int:
    """By torch's counter, which does not know the CPU's fused attention: it runs as products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def counted(call) -> int:
    with torch.no_grad(), Counting() as counting:
        call()
    return counting.count.flops


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_counts_as_torch_counts_it_and_each_sample_alone_on_its_rows(name):
    case, kept, skipped = made(name), [], 0

    def dense():
        case.block(**case.inputs)

    assert counted(dense) == torch_count(dense) > 0
    tokens = [len(case.samples[b, case.image(b)]) for b in range(BATCH)]
    for b in range(BATCH):
        kept.append(kept_tokens(KEPT[b], tokens[b]))
        skipped += tokens[b] - kept[b]

    def alone():
        for b in range(BATCH):
            case.block(**case.alone(b, torch.arange(kept[b])))

    expected = torch_count(alone)
    model, timestep = routed(case), timesteps(case.block)

    def call():
        model(timestep, case.inputs, **case.told)

    with mock.patch.object(forward, "_select", wraps=forward._select) as select:
        found = counted(call)
    assert found == torch_count(call)
    stream = select.call_args.args[2].image.tokens
    router = 2 * case.block.diffratio.router_weight.numel() * stream.shape[1] * BATCH  # scores all of them
    products = (case.block.get_submodule(part) for part in ON_ALL_TOKENS.get(name, ()))
    expected += sum(2 * linear.weight.numel() * skipped for linear in products)
    assert (found == expected + router) == (name not in NOT_ALONE)


SOME = (
    "flux", "flux2", "z_image", "qwen_image_edit", "wan_ti2v", "wan_vace", "sd35", "hunyuan_video", "ltx2",
    "lumina2", "krea2", "minimax_h3", "motif", "chroma_masked", "latte", "hunyuan_dit", "hidream",
)  # fmt: skip
"""Models with blocks of several kinds, dense ones among them, ragged samples, blocks called out of order."""


@pytest.mark.parametrize("name", SOME)
def test_a_model_counts_as_torch_counts_it_dense_and_routed(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model.eval().requires_grad_(False)
    count = count_model(model, inputs, [3, 7])
    assert "_diffratio_model" not in vars(model)
    assert not any("diffratio" in key for key in model.state_dict())
    assert count.flops() == torch_count(lambda: model(**inputs))
    table = [[7] if number % 2 else [3] for number in range(len(count.blocks))]
    route_blocks(model, DiffRatioConfig(0.3, {n: 0.7 for n in range(0, len(table), 2)}))
    assert count.flops(table) == torch_count(lambda: model(**inputs))


def test_regions_count_equally_and_a_block_that_keeps_nothing_runs_its_text_alone():
    model, inputs = MODELS["flux"]()
    count = count_model(model, inputs, [0, 5])
    layers = len(count.blocks)
    assert count.flops([[0, 5]] * layers) == (count.flops(0) + count.flops(5)) / 2
    assert 0 < count.flops(0) < count.flops(5) < count.flops()
    assert count.layers == ("transformer_blocks.0", "transformer_blocks.1",
                            "single_transformer_blocks.0", "single_transformer_blocks.1")  # fmt: skip
    assert count.blocks[0] is count.blocks[1] is not count.blocks[2]
    assert count.tokens == 36 and count.weights == sum(4 * p.numel() for p in model.parameters())
    assert count.peak([[0]] * layers) < count.peak([[5]] * layers) < count.peak()


def test_on_the_meta_device_it_is_the_same():
    model, inputs = MODELS["sd35"]()
    found = count_model(model, inputs, [5])
    meta = {key: value.to("meta") for key, value in inputs.items()}
    assert count_model(model.to("meta"), meta, [5]).parts(5) == found.parts(5)


def test_a_routed_model_is_refused():
    model, inputs = MODELS["flux"]()
    apply_diffratio(model, DiffRatioConfig(0.0))
    with pytest.raises(ValueError, match=r"^model: FluxTransformer2DModel is routed"):
        count_model(model, inputs)


def test_a_model_is_as_before_where_its_forward_fails():
    model, inputs = MODELS["flux"]()
    with pytest.raises(TypeError):
        count_model(model, inputs | {"nonsense": 1})
    assert "_diffratio_model" not in vars(model) and "forward" not in vars(model.transformer_blocks[0])


def test_bytes_and_memory_are_those_of_what_runs():
    """[64, 64] @ [64, 32] in float32, on the meta device."""
    x, weight = torch.empty(64, 64, device="meta"), torch.empty(32, 64, device="meta")
    with torch.no_grad(), Counting() as counting:
        y = F.linear(x, weight)
        z = y.t().relu()  # a view costs nothing
        del y
        z.expand(5, 32, 64).sum(0)  # reads what there is
        x[torch.zeros(3, dtype=torch.long, device="meta")]  # reads three rows
    sizes = {work.operator: (work.flops, work.bytes) for work in counting.count.work}
    out = 4 * 64 * 32
    assert sizes == {
        "mm": (2 * 64 * 64 * 32, 4 * 64 * 64 + 2 * out), "relu": (0, 2 * out), "sum": (0, 2 * out),
        "zeros": (0, 24), "index": (0, 24 + 2 * 3 * 256),
    }  # fmt: skip
    assert counting.count.peak == 2 * out


def test_attention_is_one_operator_that_holds_no_pairs():
    q, k, v = (torch.empty(1, 2, n, 8, device="meta") for n in (5, 7, 7))
    with Counting() as counting:
        F.scaled_dot_product_attention(q, k, v)
    [(work, times)] = counting.count.work.items()
    assert (work.operator, work.flops, times) == ("attention", 4 * 2 * 5 * 7 * 8, 1)
    assert counting.count.peak == 4 * 2 * 5 * 8
    assert counting.count.parts() == {"attention": work.flops}


def test_our_operators_are_counted_with_their_parts():
    call = ModBlockCase(seed=0, keep=(13,)).arguments()
    with torch.no_grad(), Counting() as counting:
        mod_block(**call)
    assert counting.count.flops == torch_count(lambda: mod_block(**call))


PARAMETERS = {
    "flux.1-dev-1024": 11.9, "flux.2-dev-1024": 32.2, "z-image-1024": 6.2, "qwen-image-1328": 20.4,
    "wan-14b-480p": 14.3, "wan-1.3b-720p": 1.4, "sd3.5-large-1024": 8.1, "sd3.5-medium-1024": 2.2,
    "krea-2-1024": 12.8, "ltx-video-480p": 1.9, "hunyuan-video-720p": 12.8, "lumina-2-1024": 2.6,
    "minimax-h3-480p": 33.1,
}  # fmt: skip
"""Billions, as published; SD3.5 Medium's 2.5 are with its table of positions, which is no parameter."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_are_the_published_models(name):
    model = PRESETS[name].make()
    weights = list(model.parameters())
    assert round(sum(weight.numel() for weight in weights) / 1e9, 1) == PARAMETERS[name]
    assert all(weight.is_meta for weight in weights)


def test_a_block_of_wan_by_hand():
    """Q, k, v, out and cross-attention's q and out are D x D, the text's k and v too, the MLP is D x F."""
    n, m, d, f = 32760, 512, 5120, 13824
    count = count_preset(PRESETS["wan-14b-480p"], [5])
    tokens = 2 * (6 * d * d + 2 * d * f)
    of_text = 4 * m * d * d

    def block(k):
        return tokens * k + of_text + 4 * k * k * d + 4 * k * m * d

    assert (count.tokens, len(count.blocks)) == (n, 40)
    assert count.blocks[0].dense.flops == block(n)
    assert count.blocks[0].kept[5].flops == block(n // 2) + 2 * n * d


def test_a_batch_counts_as_often():
    preset = PRESETS["sd3.5-medium-1024"]
    one, two = (count_preset(preset.resized(batch=batch, height=32, width=32), [5]) for batch in (1, 2))
    assert two.flops() == 2 * one.flops() and two.flops(5) == 2 * one.flops(5)
    assert len({id(block) for block in one.blocks}) == 3  # with a second attention, without, the last one


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Size(0, 4, 5), "height: 0 must be a positive integer"),
        (lambda: Size(4, 4, 5, batch=True), "batch: True must be"),
        (lambda: Preset("SanaTransformer2DModel", Size(4, 4, 5)).make(), "model: 'SanaTransformer2DModel'"),
        (lambda: model_inputs(nn.Linear(2, 2), Size(4, 4, 5), Draw()), "model: Linear is not one of"),
        (lambda: count_preset(PRESETS["z-image-1024"].resized(width=15)), "width: 15 is not a multiple of"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
