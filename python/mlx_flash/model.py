# SPDX-License-Identifier: MIT
"""What a loaded model can do beyond what mlx-lm's class does."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence, Union

import mlx.core as mx
from mlx_lm.generate import stream_generate as mlx_lm_stream_generate
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

if TYPE_CHECKING:
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


class FlashModel:
    """Mixed into the model's own class (patch.adopt)."""

    _flash: Loaded

    def __call__(self, inputs: mx.array, *args: Any, **kwargs: Any) -> Any:
        engine = self._flash.engine
        engine.begin_forward(max(1, inputs.size))
        try:
            return super().__call__(inputs, *args, **kwargs)
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
        kwargs.setdefault("prefill_step_size", flash.prefill_chunk())
        processors = make_logits_processors(repetition_penalty=repetition_penalty)
        responses = mlx_lm_stream_generate(
            self,
            flash.tokenizer,
            encode(flash.tokenizer, prompt),
            max_tokens=max_tokens,
            sampler=sampler or make_sampler(temp=temp, top_p=top_p, min_p=min_p, top_k=top_k),
            logits_processors=processors or None,
            prompt_cache=prompt_cache or self.new_cache(),
            **kwargs,
        )
        begin = time.perf_counter()
        for response in responses:
            stats = flash.stats() | {
                "seconds": time.perf_counter() - begin,
                "prompt_tokens": response.prompt_tokens,
                "prompt_tok_s": response.prompt_tps,
                "generated_tokens": response.generation_tokens,
                "decode_tok_s": response.generation_tps,
            }
            yield Segment(
                response.text,
                response.token,
                response.logprobs[response.token].item(),
                response.finish_reason,
                stats,
            )

    def new_cache(self) -> list[Any]:
        """A prompt cache as the config wants it."""
        return make_prompt_cache(self, max_kv_size=self._flash.flash.max_kv_size)


def wrap_call(own: type) -> Callable[..., Any]:
    """FlashModel.__call__ under the signature of the model's own, which
    mlx-lm looks at."""
    return functools.wraps(own.__call__)(FlashModel.__call__)


def encode(tokenizer: Any, prompt: Prompt) -> mx.array | list[int] | str:
    """Token ids of a prompt; text is left to mlx_lm.stream_generate."""
    if isinstance(prompt, (str, mx.array)):
        return prompt
    items = list(prompt)
    if items and isinstance(items[0], dict):
        return tokenizer.apply_chat_template(items, add_generation_prompt=True)
    return [int(token) for token in items]
