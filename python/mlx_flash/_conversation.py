# SPDX-License-Identifier: MIT
"""A prompt cache with the tokens it holds, in memory and in a session file."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Iterator

import mlx.core as mx
from mlx_lm.models import cache as caches

from .cache import HybridQuantizedCache
from .model import Segment

_VERSION = "1"


class Conversation:
    """What a model has read so far. A prompt that begins the same is not read
    again as far as its cache can be cut back."""

    def __init__(self, model: Any):
        self._model = model
        self.tokens: list[int] = []
        self.cache: list[Any] = model.new_cache()
        self.reused = 0  # tokens of the last prompt

    def rest(self, ids: list[int]) -> list[int]:
        """The part of a prompt that the cache does not hold; at least its last
        token. The cache then holds the part before."""
        same = 0
        for ours, theirs in zip(self.tokens, ids[:-1]):
            if ours != theirs:
                break
            same += 1
        surplus = len(self.tokens) - same
        if surplus > 0:
            trimmed = caches.can_trim_prompt_cache(self.cache)
            if not trimmed or caches.trim_prompt_cache(self.cache, surplus) != surplus:
                same, self.cache = 0, self._model.new_cache()
        self.tokens = ids[:same]
        return ids[same:]

    def answer(self, ids: list[int], **options: Any) -> Iterator[Segment]:
        """What the model says to a prompt, of which what the cache holds is not
        read again. Where that does not fit in the budget, all of it in smaller
        pieces."""
        while True:
            rest = self.rest(ids)
            self.reused = len(ids) - len(rest)
            tried, answered = self._model._flash.chunk_max, False
            try:
                for segment in self._model.stream_generate(
                    rest, prompt_cache=self.cache, **options
                ):
                    answered = True
                    yield segment
                return
            except MemoryError:
                if answered or self._model._flash.chunk_max == tried:
                    raise
            self.tokens, self.cache = [], self._model.new_cache()

    def load(self, path: str) -> None:
        """Takes up a session file, if it is there. ValueError: not this model's,
        or none."""
        if not os.path.exists(path):
            return
        caches.HybridQuantizedCache = HybridQuantizedCache  # where mlx-lm looks it up
        try:
            found, notes = _load_cache(path)
            tokens = json.loads(notes["tokens"])
        except Exception as error:
            raise ValueError(f"--session: {path} is no session file: {error}") from None
        if notes.get("version") != _VERSION or notes.get("model") != fingerprint(self._model):
            raise ValueError(f"--session: {path} is of another model or version")
        if [type(c) for c in found] != [type(c) for c in self.cache]:
            raise ValueError(f"--session: {path} was kept with other settings of the KV cache")
        self.cache, self.tokens = found, tokens

    def save(self, path: str) -> None:
        """Whole or not at all."""
        notes = {
            "tokens": json.dumps(self.tokens),
            "model": fingerprint(self._model),
            "version": _VERSION,
        }
        new = f"{path}.new.safetensors"
        try:
            caches.save_prompt_cache(new, self.cache, notes)
            os.replace(new, path)
        except BaseException:
            Path(new).unlink(missing_ok=True)
            raise


def _load_cache(path: str) -> tuple[list[Any], dict[str, str]]:
    """mlx-lm wants to see the format in the file's name."""
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, "session.safetensors")
        os.symlink(os.path.abspath(path), link)
        found, notes = caches.load_prompt_cache(link, return_metadata=True)
        mx.eval([c.state for c in found])
    return found, notes


def fingerprint(model: Any) -> str:
    """Of the model: what it is, where its tensors lie, and how it computes."""
    loaded = model._flash
    return json.dumps(
        [
            loaded.plan()["kernels"],
            loaded.plan()["weights_bytes"],
            {k: v for k, v in sorted(loaded.config.items()) if not k.startswith("_")},
        ],
        default=str,
        sort_keys=True,
    )
