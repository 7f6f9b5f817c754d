import torch

from diffratio.data.randomness import embedding, uniforms

GOLDEN_UNIFORMS = ["0.705485610229", "0.568922433119", "0.655968197124", "0.077597730439"]
GOLDEN_EMBEDDING = ["2.33401", "-0.41902", "-0.04930"]


def test_uniform_numbers_are_uniform_and_independent_of_company():
    items = torch.arange(4000)
    numbers = uniforms(3, items, 5)
    assert numbers.dtype == torch.float64 and numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.flatten().float(), bins=20, min=0, max=1)
    assert ((counts - 1000).abs() < 150).all()
    neighbours = torch.stack([*numbers.T, *uniforms(3, items + 1, 5).T, *uniforms(4, items, 5).T])
    assert torch.corrcoef(neighbours).fill_diagonal_(0).abs().max() < 0.07
    assert torch.equal(uniforms(3, torch.tensor([7]), 2)[0], numbers[7, :2])


def test_the_numbers_never_change():
    """Shipped models know these very embeddings."""
    values = uniforms(1, torch.tensor([0, 1]), 2)
    assert [f"{x:.12f}" for x in values.flatten().tolist()] == GOLDEN_UNIFORMS
    assert [f"{x:.5f}" for x in embedding("colour red", 3).tolist()] == GOLDEN_EMBEDDING


def test_embeddings_are_normal_and_differ_by_name():
    many = torch.stack([embedding(f"word {i}", 64) for i in range(100)])
    assert abs(many.mean()) < 0.05 and abs(many.std() - 1) < 0.05 and many.abs().max() < 6
    assert torch.corrcoef(many).fill_diagonal_(0).abs().max() < 0.6
