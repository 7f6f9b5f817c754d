"""Pipelines with two transformers, and attention backends of diffusers."""

from types import SimpleNamespace

import pytest
import torch

from diffratio import (
    DiffRatioConfig,
    apply_diffratio,
    disable_diffratio,
    enable_diffratio,
    remove_diffratio,
    save_diffratio,
    summary,
)

from .test_models import made, run


def test_both_transformers_of_a_pipeline_are_routed():
    models = [made("wan") for _ in range(2)]
    pipe = SimpleNamespace(transformer=models[0][0], transformer_2=models[1][0])
    with torch.no_grad():
        wanted = [run(model, inputs) for model, inputs in models]
        apply_diffratio(pipe, DiffRatioConfig(compression=0.5))
        for (model, inputs), dense in zip(models, wanted, strict=True):
            assert not torch.allclose(run(model, inputs), dense, atol=1e-4)
        disable_diffratio(pipe)
        for (model, inputs), dense in zip(models, wanted, strict=True):
            assert torch.equal(run(model, inputs), dense)
        enable_diffratio(pipe)
        assert not torch.equal(run(*models[1]), wanted[1])
        remove_diffratio(pipe)
        for (model, inputs), dense in zip(models, wanted, strict=True):
            assert torch.equal(run(model, inputs), dense)


def test_what_is_for_one_transformer_asks_which(tmp_path):
    pipe = SimpleNamespace(transformer=made("wan")[0], transformer_2=made("wan")[0])
    apply_diffratio(pipe, DiffRatioConfig(compression=0.5))
    for call in (lambda: summary(pipe), lambda: save_diffratio(pipe, tmp_path)):
        with pytest.raises(ValueError, match="has two transformers; give pipe.transformer"):
            call()
    pipe.transformer_2 = None
    assert len(summary(pipe)) == 2


def test_an_attention_backend_of_diffusers_is_said_not_to_be_used():
    model, inputs = made("flux")
    with torch.no_grad():
        wanted = run(model, inputs)
        model.set_attention_backend("_native_math")
        apply_diffratio(model, DiffRatioConfig(compression=0.0, rescale="none"))
        assert "attention backend '_native_math' is not used" in summary(model)[0].reason
        torch.testing.assert_close(run(model, inputs), wanted, atol=5e-6, rtol=5e-5)
