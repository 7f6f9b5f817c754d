import pytest
from diffusers.models.attention_dispatch import _AttentionBackendRegistry


@pytest.fixture(autouse=True)
def own_attention_backend(monkeypatch):
    """A model's `set_attention_backend` is that of all models which are made later."""
    backend = _AttentionBackendRegistry._active_backend
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", backend)
