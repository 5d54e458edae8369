# SPDX-License-Identifier: MIT
"""How likely a model finds given tokens."""

from __future__ import annotations

import math
from typing import Any, Iterator

import mlx.core as mx


def score(model: Any, ids: list[int], chunks: list[int], top: int, logits: Any) -> dict[str, Any]:
    """The report of `score --json`. `logits`: a writable memmap [tokens, vocab],
    or None."""
    cache = model.new_cache()
    logprobs: list[float | None] = [None]
    best: list[Any] = [None]
    for begin, end in forwards(len(ids), chunks or [model._flash.prefill_chunk(len(ids), scored=True)]):
        rows = model(mx.array([ids[begin:end]]), cache=cache)[0].astype(mx.float32)
        chances = rows - mx.logsumexp(rows, axis=-1, keepdims=True)
        following = mx.array(ids[begin + 1 : end + 1] + [0] * (end == len(ids)))
        picked = mx.take_along_axis(chances, following[:, None], axis=1)[:, 0]
        order = mx.argsort(-rows, axis=-1)[:, :top] if top else None
        mx.eval(picked, *([] if order is None else [order]))
        logprobs += picked.tolist()
        if order is not None:
            values = mx.take_along_axis(chances, order, axis=1).tolist()
            best += [
                [{"id": i, "logprob": v} for i, v in zip(*row)]
                for row in zip(order.tolist(), values)
            ]
        if logits is not None:
            logits[begin:end] = rows
    logprobs = logprobs[: len(ids)]
    several = len(ids) > 1
    mean = -math.fsum(p for p in logprobs if p is not None) / (len(ids) - 1) if several else None
    report = {
        "tokens": ids,
        "logprobs": logprobs,
        "nll_mean": mean,
        "perplexity": math.exp(mean) if mean is not None else None,
    }
    if top:
        report |= {"top": best[:-1], "top_next": best[-1]}
    return report


def forwards(tokens: int, chunks: list[int]) -> Iterator[tuple[int, int]]:
    """Ranges of `tokens` of the given lengths; the last length repeats."""
    begin, number = 0, 0
    while begin < tokens:
        end = min(tokens, begin + max(1, chunks[min(number, len(chunks) - 1)]))
        yield begin, end
        begin, number = end, number + 1
