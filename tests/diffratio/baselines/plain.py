"""Both baselines once more, written from their papers in loops over tokens: what the tests compare with.

tomesd itself cannot be installed where the tests run. `merging` is its published algorithm, token by token.
"""

import torch


def merging(x, size, count, choice):
    """Of one image x [N, D] the destination of every token that merges: {source: destination}, for the
    `count` sources with the largest cosine."""
    height, width = size
    goals = []
    for row in range(height // 2):
        for column in range(width // 2):
            down, right = divmod(int(choice[row, column]), 2)
            goals.append((2 * row + down) * width + 2 * column + right)
    x = x.double()
    unit = x / x.norm(dim=1, keepdim=True)
    found = []
    for source in sorted(set(range(height * width)) - set(goals)):
        cosines = [float(unit[source] @ unit[goal]) for goal in goals]
        best = max(cosines)
        found.append((best, source, goals[cosines.index(best)]))
    found.sort(key=lambda one: -one[0])
    return {source: goal for _, source, goal in found[:count]}


def on_merged(x, into, part):
    """part [n, D] -> [n, D] on the tokens of x [N, D] that are left, and every token's row of it."""
    left = [n for n in range(len(x)) if n not in into]
    means = [torch.stack([x[n], *(x[s] for s, g in into.items() if g == n)]).mean(0) for n in left]
    out = part(torch.stack(means))
    return torch.stack([out[left.index(into.get(n, n))] for n in range(len(x))])


def norms(block):
    """The two layer norms of a PixArt or DiT block."""
    return (block.norm1, block.norm2) if block.attn2 is not None else (block.norm1.norm, block.norm3)


def tome_block(block, x, text, mask, modulation, into, parts):
    """A PixArt block of one image x [1, N, D] with `parts` (attn, cross, mlp) on merged tokens."""
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation

    def run(name, rows, module):
        if name in parts:
            return on_merged(rows[0], into, lambda some: module(some[None])[0])[None]
        return module(rows)

    norm1, norm2 = norms(block)
    x = x + gate1 * run("attn", norm1(x) * (1 + scale1) + shift1, block.attn1)
    if block.attn2 is not None:
        x = x + run("cross", x, lambda r: block.attn2(r, encoder_hidden_states=text, attention_mask=mask))
    return x + gate2 * run("mlp", norm2(x) * (1 + scale2) + shift2, block.ff)


def atedm_block(block, x, text, mask, modulation, keep, iterations, refill):
    """A PixArt block of one image x [1, N, D] that keeps so many tokens behind self-attention; which those
    are, and where each other row comes from."""
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    norm1, norm2 = norms(block)
    normed, attn, tokens = norm1(x) * (1 + scale1) + shift1, block.attn1, x.shape[1]
    query, key = (f(normed)[0].unflatten(1, (attn.heads, -1)) for f in (attn.to_q, attn.to_k))
    score, mean = torch.zeros(tokens), torch.zeros(tokens, tokens)
    for head in range(attn.heads):
        logits = query[:, head] @ key[:, head].T / query.shape[2] ** 0.5
        weights = logits.exp() / logits.exp().sum(1, keepdim=True)
        rank = torch.full((tokens,), 1 / tokens)
        for _ in range(iterations):
            rank = torch.stack([(weights[:, j] * rank).sum() for j in range(tokens)])
        score, mean = score + rank**2, mean + weights / attn.heads
    kept = sorted(sorted(range(tokens), key=lambda n: -float(score[n]))[:keep])
    x = x + gate1 * attn(normed)
    some = x[:, kept]
    if block.attn2 is not None:
        some = some + block.attn2(some, encoder_hidden_states=text, attention_mask=mask)
    some = some + gate2 * block.ff(norm2(some) * (1 + scale2) + shift2)
    out, source = x.clone(), list(range(tokens))
    out[:, kept] = some
    if refill == "copy":
        for n in set(range(tokens)) - set(kept):
            source[n] = max(kept, key=lambda j: float(mean[n, j]))
        out = out[:, source]
    return out, kept, source
