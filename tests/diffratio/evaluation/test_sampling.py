import pytest
import torch

from diffratio.data import load_dataset
from diffratio.evaluation.sampling import sample
from diffratio.models import load_pixart, small_pixart
from diffratio.models.small_pixart import PRETRAINED


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", split="held_out")


def test_chunks_change_nothing_but_the_size_of_a_forward(digits):
    model, sizes = load_pixart(PRETRAINED["digits"]), []
    tokens = digits.batch(range(5))["tokens"]
    options = {"seed": 1, "steps": 3, "progress": False}
    together = sample(model, tokens, digits.null_tokens, **options)
    hook = model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    parts = sample(model, tokens, digits.null_tokens, chunk=2, **options)
    hook.remove()
    assert sizes == [4, 4, 4] * 2 + [2] * 3
    torch.testing.assert_close(parts, together, atol=1e-4, rtol=0)


def test_the_model_sees_the_null_text_first_and_the_guided_mean_is_used(digits):
    class Echo(torch.nn.Module):
        """Predicts the first number of the text everywhere."""

        config = small_pixart(digits, 0, layers=1, heads=1).config
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, images, encoder_hidden_states, timestep):
            value = encoder_hidden_states[:, 0, 0].view(-1, 1, 1, 1)
            return type("Output", (), {"sample": value.expand_as(images)})

    tokens, null = torch.full((2, 4, 32), 0.3), torch.full((4, 32), 0.1)

    def with_(tokens, guidance):
        return sample(Echo(), tokens, null, seed=0, steps=2, guidance=guidance, progress=False)

    # 0.1 + 2 (0.3 - 0.1) = 0.5
    torch.testing.assert_close(with_(tokens, 2.0), with_(torch.full((2, 4, 32), 0.5), 1.0))
    torch.testing.assert_close(with_(tokens, 0.0), with_(torch.full((2, 4, 32), 0.1), 1.0))
