"""What is read of a recording: of samples with text, in the order of sampling, chunk after chunk."""

import pytest
import torch

from diffratio.evaluation.quality import Judge, SampleSettings
from diffratio.evaluation.target import load_target
from diffratio.plots.recorded import Recorded, kept_maps, record_samples
from diffratio.routing.state import Routing


def entry(layer, timestep, tokens):
    """A selection of 2 samples without text and 2 with, of 4 tokens each."""
    return Routing(layer, [timestep] * 4, torch.tensor(tokens), (4, 4), torch.zeros(4, 4))


def test_kept_maps_are_those_of_the_samples_with_text():
    log = [entry(0, 999.0, [0, 8, 13]), entry(1, 999.0, [12]), entry(0, 499.0, [15]), entry(1, 499.0, [4])]
    kept, timesteps = kept_maps(log)
    assert timesteps == [999, 499] and kept.shape == (2, 2, 2, 4)
    assert kept.nonzero().tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 3]]


def test_kept_maps_of_chunks_stand_one_after_the_other():
    log = [entry(0, 999.0, [8]), entry(0, 499.0, [13]), entry(0, 999.0, [9, 3]), entry(0, 499.0, [14])]
    kept, timesteps = kept_maps(log)
    assert timesteps == [999, 499] and kept.shape == (4, 2, 1, 4)
    assert kept.nonzero().tolist() == [[0, 0, 0, 0], [1, 1, 0, 1], [2, 0, 0, 1], [3, 1, 0, 2]]


def test_scores_go_with_what_is_kept_and_with_what_the_model_was_given(synthetic_runs):
    target = load_target(synthetic_runs / "lt")
    judge = Judge.of(target, SampleSettings(3, 0, 4, 2.0), progress=False)
    hooks = len(target.model._forward_pre_hooks)
    found = record_samples(judge, target, "")
    assert len(target.model._forward_pre_hooks) == hooks
    assert found.images.equal(judge.samples(target)) and found.timesteps == [999, 749, 499, 249]
    assert found.noisy.shape == (3, 4, 1, 8, 8) and found.scores.shape == found.kept.shape == (3, 4, 2, 64)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(found.noisy[:, 0], torch.randn(3, 1, 8, 8, generator=generator))
    # A router keeps what it scores highest.
    worst_kept = found.scores.masked_fill(~found.kept, 1).amin(-1)
    best_skipped = found.scores.masked_fill(found.kept, 0).amax(-1)
    assert (worst_kept >= best_skipped).all() and found.scores.std() > 0.05


def test_mean_scores_are_those_of_a_region():
    scores, nothing = torch.rand(2, 3, 4, 5), torch.empty(0)
    found = Recorded(nothing, nothing, nothing, scores, [999, 600, 100])
    means = found.mean_scores(4)
    assert means.shape == (4, 4)
    torch.testing.assert_close(means[1, 3], scores[:, 0, 1].mean())
    torch.testing.assert_close(means[:, 0], scores[:, 2].mean((0, 2)))
    assert means[:, 1].isnan().all()
    torch.testing.assert_close(found.mean_scores(1)[:, 0], scores.mean((0, 1, 3)))


def test_a_block_that_keeps_nothing_has_no_scores():
    nothing = Routing(0, [1.0], torch.empty(0, dtype=torch.int64), (1, 4))
    assert nothing.scores().isnan().all() and not nothing.kept().any()
    one = Routing(0, [1.0], torch.tensor([2]), (1, 4), torch.tensor([[0.0, -50.0, 50.0, 1.0]]))
    assert one.scores()[0].tolist() == pytest.approx([0.5, 0, 1, 0.7310586])
