# SPDX-License-Identifier: MIT
"""What a loaded model can do beyond what mlx-lm's class does."""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, Union

import mlx.core as mx
from mlx_lm.generate import stream_generate as mlx_lm_stream_generate
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from .cache import DiskStore, apply_settings

if TYPE_CHECKING:
    from .config import FlashConfig
    from .manager import Loaded

Message = dict[str, Any]
Prompt = Union[str, Sequence[int], Sequence[Message], mx.array]


class Segment(str):
    """A piece of the answer: the text, and how it came about."""

    token: int
    logprob: float
    finish_reason: str | None
    stats: dict[str, Any]

    def __new__(
        cls,
        text: str,
        token: int,
        logprob: float,
        finish_reason: str | None,
        stats: dict[str, Any],
    ) -> Segment:
        segment = super().__new__(cls, text)
        segment.token = token
        segment.logprob = logprob
        segment.finish_reason = finish_reason
        segment.stats = stats
        return segment


class Watch:
    """Says on stderr what happens, where the config asks for it."""

    def __init__(self, flash: FlashConfig, begin: float):
        self._monitor = flash.monitor
        self._profile = flash.enable_profiling
        self._said = begin
        self._stats: dict[str, Any] = {}

    def token(self, stats: dict[str, Any]) -> None:
        self._stats = stats
        now = time.perf_counter()
        if self._monitor and now - self._said >= 1:
            self._said = now
            read = stats["bytes_read"] / 1e6 / max(stats["seconds"], 1e-9)
            print(
                f"[mlx_flash] {stats['generated_tokens']} tokens, "
                f"{stats['decode_tok_s']:.2f} tok/s, {read:.0f} MB/s read, "
                f"{stats['pinned_bytes'] / 1e6:.0f} MB kept",
                file=sys.stderr,
            )

    def end(self) -> None:
        if not self._profile:
            return
        for name, value in self._stats.items():
            shown = f"{value:.3f}" if isinstance(value, float) else str(value)
            print(f"[mlx_flash] {name:>24} {shown}", file=sys.stderr)


class FlashModel:
    """Mixed into the model's own class (patch.adopt)."""

    _flash: Loaded

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        engine = self._flash.engine
        rows = _tokens(args, kwargs)
        self._flash.check_rows(rows)
        self._flash.note_stream()
        engine.begin_forward(rows)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            engine.end_forward()

    def stats(self) -> dict[str, Any]:
        return self._flash.stats()

    def plan(self) -> dict[str, Any]:
        return self._flash.plan()

    def stream_generate(
        self,
        prompt: Prompt,
        max_tokens: int = 256,
        temp: float = 0.0,
        top_p: float = 0.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        prompt_cache: list[Any] | None = None,
        sampler: Callable[[mx.array], mx.array] | None = None,
        **kwargs: Any,
    ) -> Iterator[Segment]:
        """Answers as it decodes.

        `prompt`: text, token ids, or messages for the chat template. Other
        arguments go to mlx_lm.stream_generate.
        """
        flash = self._flash
        if flash.tokenizer is None:
            raise ValueError("the model's folder has no tokenizer: use mlx_lm's generate_step")
        if seed is not None:
            mx.random.seed(seed)
        ids = encode(flash.tokenizer, prompt)
        options = kwargs | {
            "max_tokens": max_tokens,
            "sampler": sampler or make_sampler(temp=temp, top_p=top_p, min_p=min_p, top_k=top_k),
        }
        own_chunks, own_cache = "prefill_step_size" not in kwargs, not prompt_cache
        while True:
            chunk = flash.prefill_chunk(length(ids))
            if own_chunks:
                options["prefill_step_size"] = chunk
            processors = make_logits_processors(repetition_penalty=repetition_penalty)
            options["logits_processors"] = processors or None
            options["prompt_cache"] = prompt_cache or self.new_cache()
            answered = False
            try:
                for segment in self._segments(ids, options):
                    answered = True
                    yield segment
                return
            except MemoryError:
                flash.drain()
                smaller = not answered and own_chunks and flash.smaller_chunks(chunk)
                # A cache of the caller's is useless now, and the caller's.
                if not smaller or not own_cache:
                    raise
            # The frames of the failure are gone, and what they held.

    def _segments(
        self, prompt: mx.array | list[int] | str, options: dict[str, Any]
    ) -> Iterator[Segment]:
        flash = self._flash
        begin = time.perf_counter()
        watch = Watch(flash.flash, begin)
        for response in mlx_lm_stream_generate(self, flash.tokenizer, prompt, **options):
            stats = flash.stats() | {
                "seconds": time.perf_counter() - begin,
                "prompt_tokens": response.prompt_tokens,
                "prompt_tok_s": response.prompt_tps,
                "generated_tokens": response.generation_tokens,
                "decode_tok_s": response.generation_tps,
            }
            watch.token(stats)
            yield Segment(
                response.text,
                response.token,
                response.logprobs[response.token].item(),
                response.finish_reason,
                stats,
            )
        watch.end()

    def new_cache(self) -> list[Any]:
        """A prompt cache as the config wants it."""
        flash = self._flash.flash
        disk = None
        if flash.disk_kv_enabled:
            most = flash.disk_kv_max_gb
            disk = DiskStore(
                flash.disk_kv_dir,
                flash.disk_kv_max_tokens,
                None if most is None else int(most * 1e9),
            )
        return apply_settings(
            make_prompt_cache(self),
            own=hasattr(self, "make_cache"),
            quantized=flash.kv_cache_quantized,
            bits=flash.kv_cache_bits,
            window=flash.kv_cache_local_window_size,
            max_kv_size=flash.max_kv_size,
            keep=flash.kv_keep,
            disk=disk,
        )


def flash_class(own: type) -> type:
    """FlashModel over the model's class, its call under the own signature:
    mlx-lm looks at that."""

    @functools.wraps(own.__call__)
    def call(self: FlashModel, *args: Any, **kwargs: Any) -> Any:
        return FlashModel.__call__(self, *args, **kwargs)

    names = {
        "__call__": call,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
    }
    return type(own.__name__, (FlashModel, own), names)


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Tokens of a forward: the first array is the ids, [..., tokens]; with
    embeddings instead they are [batch, tokens, width]."""
    count = 1
    for value in (*args, *kwargs.values()):
        if isinstance(value, mx.array):
            floating = mx.issubdtype(value.dtype, mx.floating)
            count = max(count, value.size // value.shape[-1] if floating else value.size)
    return count


def length(prompt: mx.array | list[int] | str) -> int:
    """Tokens; of text about as many."""
    if isinstance(prompt, str):
        return len(prompt) // 3
    return prompt.size if isinstance(prompt, mx.array) else len(prompt)


def encode(tokenizer: Any, prompt: Prompt) -> mx.array | list[int] | str:
    """Token ids of a prompt; text is left to mlx_lm.stream_generate."""
    if isinstance(prompt, (str, mx.array)):
        return prompt
    items = list(prompt)
    if items and isinstance(items[0], dict):
        return tokenizer.apply_chat_template(items, add_generation_prompt=True)
    return [int(token) for token in items]
