# SPDX-License-Identifier: MIT
"""Runs a model by mlx-lm and by us, and compares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm import utils
from mlx_lm.models.cache import make_prompt_cache

from mlx_flash import FlashConfig, FlashManager
from mlx_flash.manager import Hooks

import tiny_models

# Shares of the weights that are kept: the smallest budget, 40 %, everything.
SHARES = (0.0, 0.4, 1.0)
PROMPT = [(i * 7 + 3) % tiny_models.VOCAB for i in range(21)]
STEPS = [(i * 11 + 5) % tiny_models.VOCAB for i in range(16)]

# Small enough for tiny models to have several in a matrix.
HOOK_TILE_BYTES = 4096


def logits(
    model: nn.Module,
    prompt: list[int] = PROMPT,
    steps: list[int] = STEPS,
    routing: Routing | None = None,
) -> mx.array:
    """[1, positions, vocab] of a prefill and cached steps, as the model gives them."""
    cache = make_prompt_cache(model)
    out = []
    for tokens in (prompt, *([token] for token in steps)):
        if routing is not None:
            routing.begin(len(tokens))
        out.append(model(mx.array([tokens]), cache=cache))
        mx.eval(out[-1])
    together = mx.concatenate(out, axis=1)
    mx.eval(together)
    return together


def reference(folder: Path) -> mx.array:
    model, _ = utils.load_model(folder)
    return logits(model)


class Routing:
    """with Routing() as routing: of each position that logits() computes, the
    smallest gap between the last choice that was taken (of experts, of their
    groups, of keys) and the first that was not. Absolute, as scores are."""

    def __init__(self) -> None:
        self._gaps: list[float] = []
        self._rows = 0

    def __enter__(self) -> "Routing":
        self._choose = mx.argpartition
        mx.argpartition = self._watched
        return self

    def __exit__(self, *_: object) -> None:
        mx.argpartition = self._choose

    def begin(self, rows: int) -> None:
        self._rows = rows
        self._gaps += [float("inf")] * rows

    def first_below(self, gap: float) -> int | None:
        """The first position with a smaller one."""
        return next((i for i, least in enumerate(self._gaps) if least < gap), None)

    def _watched(self, a: mx.array, kth: int, axis: int = -1, **kwargs: Any) -> mx.array:
        count = a.shape[axis]
        # Of -scores the first are taken, of scores the last.
        pair = [kth, kth + 1] if kth >= 0 else [count + kth - 1, count + kth]
        if self._rows > 0 and 0 <= pair[0] and pair[1] < count:
            ordered = mx.moveaxis(mx.sort(a.astype(mx.float32), axis=axis), axis, -1)
            gaps = ordered[..., pair[1]] - ordered[..., pair[0]]
            gaps = mx.where(mx.isnan(gaps), float("inf"), gaps)  # both masked
            self._note(gaps)
        return self._choose(a, kth=kth, axis=axis, **kwargs)

    def _note(self, gaps: mx.array) -> None:
        """Keeps the least for each position: one axis is theirs."""
        if self._rows == 1:
            least = [gaps.min().item()]
        else:
            axis = gaps.shape.index(self._rows)
            least = mx.moveaxis(gaps, axis, 0).reshape(self._rows, -1).min(axis=1).tolist()
        for i, value in enumerate(least, start=len(self._gaps) - self._rows):
            self._gaps[i] = min(self._gaps[i], value)


def reference_float32(folder: Path, routing: Routing | None = None) -> mx.array:
    """mlx-lm with every parameter in float32."""
    model, _ = utils.load_model(folder, lazy=True)
    model.load_weights(
        [
            (name, value.astype(mx.float32) if is_float(value) else value)
            for name, value in tree_flatten(model.parameters())
        ]
    )
    return logits(model, routing=routing)


def is_float(value: mx.array) -> bool:
    return mx.issubdtype(value.dtype, mx.floating)


@dataclass
class Run:
    logits: mx.array
    stats: dict[str, Any]


def run(folder: Path, share: float, **config: Any) -> Run:
    """By us, with that share of the weights kept."""
    hooks = Hooks(pinned_share=share, tile_bytes=HOOK_TILE_BYTES)
    with FlashManager(FlashConfig(**config), _hooks=hooks) as manager:
        model, _ = manager.load(folder)
        out = logits(model)
        mx.eval(out)
        return Run(out, model.stats())


def same_bits(a: mx.array, b: mx.array) -> bool:
    """NaN equals itself; -0 differs from 0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[a.itemsize]
    return mx.array_equal(a.view(integer), b.view(integer)).item()


def relative_error(a: mx.array, b: mx.array) -> float:
    """The largest difference over the largest of b."""
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return (mx.abs(a - b).max() / mx.abs(b).max()).item()
