import json
from pathlib import Path

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from diffratio.adapter_file import RATIOS, WEIGHTS_NAME, read_weights
from diffratio.data.digits import make_class_tokens
from diffratio.demo.model import ASSETS, build_model, load_model, save_model
from diffratio.evaluation.target import load_target


def test_a_seed_gives_a_model_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second = build_model(0), build_model(0)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.pos_embed.proj.weight, build_model(1).pos_embed.proj.weight)


def test_the_untrained_model_predicts_zero():
    model = build_model(0)
    images, tokens = torch.randn(2, 1, 8, 8), make_class_tokens(0)[:2]
    assert not model(images, encoder_hidden_states=tokens, timestep=torch.tensor([1, 999])).sample.any()


def test_a_saved_model_comes_back_bit_for_bit(tmp_path: Path):
    model, tokens = build_model(3), make_class_tokens(3)
    save_model(model, tokens, tmp_path)
    loaded, loaded_tokens = load_model(tmp_path)
    assert type(loaded) is PixArtTransformer2DModel and not loaded.training
    assert torch.equal(tokens, loaded_tokens)
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[name], loaded_state[name]) for name in state)


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="folder .* holds no demo model"):
        load_model(tmp_path)


def test_everything_shipped_stays_within_8_megabytes():
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 8_000_000


def test_the_shipped_dense_model_is_diffusers_own_class():
    model, tokens = load_model(ASSETS / "dense")
    assert type(model) is PixArtTransformer2DModel
    assert tokens.shape == (11, 4, 32)


def test_the_shipped_sparse_model_has_learned_where_to_compress():
    ratios = read_weights(ASSETS / "lt30" / WEIGHTS_NAME)[RATIOS]
    assert abs(ratios.mean().item() - 0.7) <= 0.01
    tenths = torch.tensor(load_target(ASSETS / "lt30").kept_tenths)
    assert tenths.shape == ratios.shape == (5, 4)
    assert (tenths / 10 - ratios).abs().max() <= 0.05 + 1e-6
    assert (tenths != tenths[:1]).any() and (tenths != tenths[:, :1]).any()


def test_no_saved_config_tells_where_a_model_came_from(tmp_path: Path):
    save_model(build_model(0), make_class_tokens(0), tmp_path / "first")
    save_model(*load_model(tmp_path / "first"), tmp_path / "second")
    assert str(tmp_path) not in (tmp_path / "second" / "config.json").read_text()
    for config in ASSETS.glob("*/*.json"):
        assert not json.loads(config.read_text()).get("_name_or_path")
