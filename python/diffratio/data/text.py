"""Text without a text encoder: frozen random embeddings of words, for small models trained from nothing."""

import re

import torch
from torch import Tensor

from .randomness import embedding

WIDTH = 64
TOKENS = 16


class WordEmbeddings:
    """Turns captions into float32 ``[n, 16, 64]``: one token per word, the first 16 words of each.

    Place is part of a token, so that word order counts. It stands in for a text encoder: any other callable
    from a list of strings to ``[n, M, E]`` can take its place.
    """

    def __init__(self) -> None:
        self._places = torch.stack([embedding(f"place {i}", WIDTH) for i in range(TOKENS)])
        self._words: dict[str, Tensor] = {"": embedding("", WIDTH)}

    def __call__(self, captions: list[str]) -> Tensor:
        rows = []
        for caption in captions:
            words = re.findall(r"\w+", caption.lower())[:TOKENS]
            for word in words:
                if word not in self._words:
                    self._words[word] = embedding(word, WIDTH)
            words += [""] * (TOKENS - len(words))
            rows.append(torch.stack([self._words[word] for word in words]))
        return torch.stack(rows) + 0.5 * self._places
