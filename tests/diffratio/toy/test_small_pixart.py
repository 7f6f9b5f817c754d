import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoModel
from safetensors.torch import load_file

import diffratio
from diffratio.data import load_dataset
from diffratio.diffusion import sampling_scheduler
from diffratio.evaluation.target import load_target
from diffratio.routing.adapter_file import RATIOS, WEIGHTS_NAME, read_weights
from diffratio.toy import DIGITS_LT30, PRETRAINED, load_pixart
from tools.toy_pretrain import small_pixart


def test_a_model_for_shapes_has_64_tokens_and_about_a_million_parameters():
    shapes = load_dataset("shapes")
    model = small_pixart(shapes, 0)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
    assert (model.config.sample_size // model.config.patch_size) ** 2 == 64
    batch = shapes.batch(range(2))
    with torch.no_grad():
        out = model(batch["pixel_values"], batch["tokens"], timestep=torch.tensor([1, 999])).sample
    assert out.shape == (2, 3, 32, 32) and not out.any()  # untrained, it predicts zero


def test_a_seed_gives_a_model_and_leaves_the_global_generator_alone():
    digits, state = load_dataset("digits"), torch.get_rng_state()
    first, second = small_pixart(digits, 0), small_pixart(digits, 0)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.pos_embed.proj.weight, small_pixart(digits, 1).pos_embed.proj.weight)


def test_the_shipped_sparse_model_has_learned_where_to_compress():
    ratios = read_weights(DIGITS_LT30 / WEIGHTS_NAME)[RATIOS]
    assert abs(ratios.mean().item() - 0.7) <= 0.01
    tenths = torch.tensor(load_target(DIGITS_LT30).kept_tenths)
    assert tenths.shape == ratios.shape == (5, 4)
    assert (tenths / 10 - ratios).abs().max() <= 0.05 + 1e-6
    assert (tenths != tenths[:1]).any() and (tenths != tenths[:, :1]).any()


@pytest.mark.parametrize("folder", [*PRETRAINED.values(), DIGITS_LT30], ids=lambda folder: folder.name)
def test_weights_are_stored_in_fp16_and_read_as_fp32(folder):
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for model in (load_pixart(folder), AutoModel.from_pretrained(str(folder))):
        assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
        assert all(torch.equal(tensor, stored[name].float()) for name, tensor in model.state_dict().items())
    for config in folder.glob("*.json"):
        assert not json.loads(config.read_text()).get("_name_or_path")


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="folder .* holds no model"):
        load_pixart(tmp_path)


def test_sampling_starts_from_pure_noise():
    scheduler = sampling_scheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert scheduler.alphas_cumprod[999] < 1e-4


def test_the_package_stays_small():
    package = Path(diffratio.__file__).parent
    assert sum(path.stat().st_size for path in package.rglob("*.safetensors")) < 9_700_000
