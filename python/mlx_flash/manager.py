# SPDX-License-Identifier: MIT
"""Loads a model under a budget and takes it down again."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import utils
from mlx_lm.models.cache import KVCache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from . import _engine
from .config import FlashConfig
from .headers import Place, read_places
from .model import flash_class
from .patch import Patch, Rebuild, Source, patch_model, walk

# Of the process, after loading: code and caches of MLX and Python that the
# first forward touches.
_RESERVE_BYTES = 44_000_000

# What an automatic prompt chunk may take of the budget: a quarter. Its tokens.
_CHUNK_SHARE = 4
_CHUNK_MAX = 2048
_CHUNK_TRIED_MIN = 4

_FAILURES_MAX = 64  # of operations, that a stream may still have to report

_SMALL_MAX = 64 << 10  # bytes of a tensor that stays in memory, at most
_SMALL_MIN = 256


@dataclass
class Hooks:
    """For tests: a share of the weights is kept, whatever the process holds."""

    pinned_share: float | None = None
    tile_bytes: int = 0


class FlashManager:
    """Loads models; each runs in the budget of the config.

    A context manager: leaving it closes what was loaded. Belongs to the thread
    that loads.
    """

    def __init__(self, config: FlashConfig | None = None, *, _hooks: Hooks | None = None):
        self.config = config or FlashConfig()
        self.config.validate()
        self._hooks = _hooks or Hooks()
        self._loaded: list[Loaded] = []

    def __enter__(self) -> FlashManager:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(
        self,
        path_or_repo: str | os.PathLike[str],
        tokenizer_config: Mapping[str, Any] | None = None,
        model_config: Mapping[str, Any] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> tuple[Any, TokenizerWrapper | None]:
        """The model as mlx-lm builds it, its weights streamed, and its tokenizer.

        The tokenizer is None for a folder that has none. Raises ValueError for
        what cannot be loaded and for a budget that is too small, naming the
        smallest that works.
        """
        path = _find(str(path_or_repo), revision)
        if not self.config.enabled:
            return utils.load(str(path), tokenizer_config=dict(tokenizer_config or {}))
        _engine.return_free_memory()  # nobody holds that
        held = _engine.resident_bytes()
        loader = _Loader(self.config, self._hooks, path, held)
        loaded = loader.load(dict(model_config or {}), trust_remote_code)
        tokenizer = _load_tokenizer(path, tokenizer_config, loaded.config)
        loaded.begin(tokenizer, held)
        self._loaded.append(loaded)
        return loaded.model, tokenizer

    def close(self) -> None:
        """Gives the memory of all loaded models back; they cannot run again."""
        while self._loaded:
            self._loaded.pop().close()

    def stats(self) -> dict[str, Any]:
        """Of the model loaded last."""
        return self._last().stats()

    def plan(self) -> dict[str, Any]:
        """How its budget is spent."""
        return self._last().plan()

    def _last(self) -> Loaded:
        if not self._loaded:
            raise ValueError("no model is loaded")
        return self._loaded[-1]


class Loaded:
    """One model with its engine."""

    def __init__(
        self,
        model: nn.Module,
        engine: _engine.Engine,
        patch: Patch,
        flash: FlashConfig,
        config: dict[str, Any],
        hooks: Hooks,
        fast: bool,
    ):
        self.model = model
        self.engine = engine
        self.patch = patch
        self.flash = flash
        self.config = config
        self.hooks = hooks
        self.fast = fast
        self.tokenizer: TokenizerWrapper | None = None
        self.chunk_max = _CHUNK_MAX  # tokens, where we choose
        self.streams: list[mx.Stream] = []  # that have had forwards
        self.closed = False

    def begin(self, tokenizer: TokenizerWrapper | None, held_before: int) -> None:
        """Plans and starts reading."""
        self.tokenizer = tokenizer
        _engine.keep_no_free_memory()
        _engine.return_free_memory()
        budget = self._budget(held_before)
        minimum = self.engine.minimum(budget)
        if self.hooks.pinned_share is not None:
            weights = self.engine.plan()["weights_bytes"]
            budget.ram = minimum + int(2 * weights * self.hooks.pinned_share)
        elif budget.ram < minimum:
            asked = self.flash.ram_budget_gb
            given = f"{asked} GB" if asked is not None else "what the machine has free"
            least = (minimum - held_before) / 1e9
            raise ValueError(
                f"FlashConfig.ram_budget_gb: {given} is too small for this model: the "
                f"smallest that works is {least:.3f} GB, besides the "
                f"{held_before / 1e9:.3f} GB the process held before"
            )
        self._plan = self.engine.start(budget) | {"ram_min_bytes": minimum}
        self.engine.watch_interrupts()
        if self.flash.debug:
            _say_plan(self.plan())
        own = type(self.model)
        object.__setattr__(self.model, "_flash", self)
        self.model.__class__ = flash_class(own)

    def _budget(self, held_before: int) -> _engine.Budget:
        budget = _engine.Budget()
        budget.experts = self.flash.expert_cache_size
        if self.hooks.pinned_share is not None:
            budget.fixed = True
            return budget
        asked = self.flash.ram_budget_gb
        if asked is None:
            budget.ram = _engine.available_ram()
        else:
            budget.ram = held_before + int(asked * 1e9)
        budget.runtime = _engine.resident_bytes() + _RESERVE_BYTES
        widths = self.patch.widths or [1]
        # Logits, their logarithms and what a sampler makes of them.
        budget.decode = self.patch.working_bytes + 24 * max(widths)
        # The first step of plain caches; what they grow to later is watched.
        budget.decode += KVCache.step * self.patch.kv_width * 4
        inner = sorted(widths)[:-1] or widths
        budget.per_row = 16 * max(inner)
        return budget

    def plan(self) -> dict[str, Any]:
        return dict(self._plan) | {
            "kernels": "fast" if self.fast else "stock",
            "resident_bytes": self.patch.resident_bytes,
            "streamed_parameters": self.patch.streamed,
            "threads": self.engine.threads() if self.fast else 1,
            "prefill_chunk_size": self.prefill_chunk(),
        }

    def stats(self) -> dict[str, Any]:
        return dict(self.engine.stats())

    def prefill_chunk(self, prompt: int = 0, scored: bool = False) -> int:
        """Tokens of a prompt of so many in one forward, in the model's
        stream_generate; `scored`: with logits for each. An estimate, but the same
        one for the same budget and prompt, because results depend on it in their
        last bits."""
        if self.flash.prefill_chunk_size > 0:
            return self.flash.prefill_chunk_size
        widths = sorted(self.patch.widths) or [1]
        room = self._plan["ram_bytes"] - self._plan["runtime_bytes"]
        room -= 4 * prompt * self.patch.kv_width
        # Scores of attention and their exponentials: of each head, for all before.
        row = 64 * max(widths[:-1] or [1]) + 8 * prompt * _heads(self.config)
        if scored:
            row += 24 * widths[-1]
        rows = max(room, 0) // _CHUNK_SHARE // row
        return max(1, min(self.chunk_max, 1 << max(0, int(rows).bit_length() - 1)))

    def smaller_chunks(self, tried: int) -> bool:
        """One of so many tokens did not fit: from now on at most half as many.
        False: the config says how many, or so few can hardly be the reason."""
        if self.flash.prefill_chunk_size > 0 or tried <= _CHUNK_TRIED_MIN:
            return False
        self.chunk_max = tried // 2
        return True

    def check_rows(self, rows: int) -> None:
        """MemoryError for a forward of more tokens than can possibly fit: two
        arrays as wide as the widest inner layer, two bytes a number, besides the
        smallest budget that works. What it takes beyond that only MLX knows: the
        engine watches, and gives the forward up where it is too much."""
        if rows <= 1 or self.hooks.pinned_share is not None:
            return
        inner = max(sorted(self.patch.widths)[:-1] or [1])
        spare = self._plan["ram_bytes"] - self._plan["ram_min_bytes"]
        most = 1 + spare // (4 * inner)
        if rows > most:
            raise MemoryError(
                f"a forward of {rows} tokens cannot fit in the budget: less than {most + 1} do. "
                f"FlashConfig.prefill_chunk_size (prefill_step_size in mlx-lm's functions) "
                f"splits a prompt; {self.prefill_chunk()} is a good one"
            )

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.engine.close()
        self.drain()

    def note_stream(self) -> None:
        """A forward is being built on this thread's stream."""
        stream = mx.default_stream(mx.cpu)
        if stream not in self.streams:
            self.streams.append(stream)

    def drain(self) -> None:
        """Waits for what was queued, and takes its failures with it. mlx-lm asks
        for the next token before it hands out the last one: nobody waits for that
        one, and its failure would be raised where another model is evaluated."""
        for stream in self.streams:
            for _ in range(_FAILURES_MAX):
                try:
                    mx.synchronize(stream)
                    break
                except (RuntimeError, MemoryError):
                    continue
                except KeyboardInterrupt as interrupt:
                    if "mlx_flash" not in str(interrupt):  # a new one
                        raise


def _heads(config: dict[str, Any]) -> int:
    """Of attention; 0: not known, or none."""
    own = config.get("text_config")
    for settings in (config, own if isinstance(own, dict) else {}):
        for name in ("num_attention_heads", "n_heads", "n_head", "num_heads"):
            if isinstance(settings.get(name), int):
                return settings[name]
    return 0


def _say_plan(plan: dict[str, Any]) -> None:
    for name, value in plan.items():
        shown = f"{value / 1e6:.1f} MB" if name.endswith("_bytes") else str(value)
        print(f"[mlx_flash] {name:>24} {shown}", file=sys.stderr)


# --- Building without reading -----------------------------------------------


class _Loader:
    def __init__(self, flash: FlashConfig, hooks: Hooks, path: Path, held: int):
        self.flash = flash
        self.hooks = hooks
        self.path = path
        self.fast = _wants_fast(flash)

    def load(self, model_config: dict[str, Any], trust_remote_code: bool) -> Loaded:
        files = sorted(self.path.glob("model*.safetensors"))
        by_file = {str(file): read_places(file, n) for n, file in enumerate(files)}

        def build() -> tuple[nn.Module, dict[str, Any], Recorded]:
            with _recorded_loads() as recorded:
                model, config = utils.load_model(
                    self.path,
                    lazy=True,
                    model_config=model_config,
                    trust_remote_code=trust_remote_code,
                )
            return model, config, recorded

        model, config, recorded = build()
        raw, origin = recorded.arrays, recorded.files
        engine = _engine.Engine(
            [str(file) for file in files],
            threads=self.flash.threads,
            queue_depth=self.flash.pipeline_depth,
            read_ahead=self.flash.pipelined_execution,
            tile_bytes=self._tile_bytes(),
            io=self.flash.io,
            bytes_per_s=self.flash.disk_limit_gb_s * 1e9,
            controller=self.flash.bandwidth_controller,
            eviction=self.flash.eviction_strategy,
        )
        try:
            places: dict[str, Place] = {}
            for name, array in raw.items():
                place = by_file.get(origin[name], {}).get(name)
                if place is None or place.bytes != array.nbytes:
                    raise ValueError(f"{self.path}: {name}: files changed while loading")
                places[name] = place
            total = sum(place.bytes for place in places.values())
            small = max(_SMALL_MIN, min(_SMALL_MAX, total // 1024))
            source = Source(engine, raw, places, small, self.fast)

            def again() -> tuple[nn.Module, dict[str, mx.array]]:
                model, _, recorded = build()
                return model, recorded.arrays

            source.rebuild = Rebuild(source, again)
            if self.flash.moe_top_k_override is not None:
                _override_top_k(model, self.flash.moe_top_k_override)
            source.active = max(_routers_top_k(model), default=0)
            patch = patch_model(model, source)
            engine.forget_undeclared()
        except BaseException:
            engine.close()
            raise
        return Loaded(model, engine, patch, self.flash, config, self.hooks, self.fast)

    def _tile_bytes(self) -> int:
        if self.hooks.tile_bytes:
            return self.hooks.tile_bytes
        if not self.flash.tiled_execution:
            return 1 << 30  # a matrix is one tile
        return self.flash.tile_size


@dataclass
class Recorded:
    """What mlx-lm's loader got from mx.load, and from which file."""

    arrays: dict[str, mx.array] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@contextmanager
def _recorded_loads() -> Iterator[Recorded]:
    """Notes what mx.load gives: nothing of it is read, but these arrays are how
    tensors are known again after sanitize()."""
    load = mx.load
    found = Recorded()

    def recorded(file: Any, *args: Any, **kwargs: Any) -> Any:
        arrays = load(file, *args, **kwargs)
        if isinstance(arrays, dict):
            found.arrays.update(arrays)
            found.files.update(dict.fromkeys(arrays, str(file)))
        return arrays

    mx.load = recorded
    try:
        yield found
    finally:
        mx.load = load


def _find(name: str, revision: str | None) -> Path:
    """The folder, downloaded where it is the name of a repository. ValueError for
    what is neither."""
    path = Path(name)
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{name!r}: no such folder: give a model's folder or a hub id org/name")
    path = Path(utils._download(name, revision=revision))
    settings = path / "config.json"
    try:
        json.loads(settings.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no model: it has no config.json") from None
    except NotADirectoryError:
        raise ValueError(f"{path}: no folder: mlx-lm loads folders of safetensors") from None
    except ValueError as error:
        raise ValueError(f"{settings}: {error}") from None
    return path


def _wants_fast(flash: FlashConfig) -> bool:
    if flash.kernels == "stock":
        return False
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if flash.kernels == "fast" and not on_cpu:
        raise ValueError("FlashConfig.kernels: 'fast' runs on the CPU; use mx.set_default_device")
    if flash.kernels == "fast" and not _engine.supported():
        raise ValueError("FlashConfig.kernels: 'fast' needs fused multiply-add (AVX2 on x86)")
    return on_cpu and _engine.supported()


def _load_tokenizer(
    path: Path, extra: Mapping[str, Any] | None, config: dict[str, Any]
) -> TokenizerWrapper | None:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tiktoken.model")
    if not any((Path(path) / name).exists() for name in names):
        return None
    return utils.load_tokenizer(
        path, dict(extra or {}), eos_token_ids=config.get("eos_token_id", None)
    )


_TOP_K = ("top_k", "num_experts_per_tok", "moe_k", "k")


def _routers(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules that hold the number of experts of a token, and under which name."""
    for _, module in walk(model):
        for name in _TOP_K:
            if isinstance(module.__dict__.get(name), int):
                yield module, name


def _routers_top_k(model: nn.Module) -> list[int]:
    return [module.__dict__[name] for module, name in _routers(model)]


def _override_top_k(model: nn.Module, top_k: int) -> None:
    """Sets the number of experts of a token on every router."""
    found = list(_routers(model))
    for module, name in found:
        object.__setattr__(module, name, top_k)
    if not found:
        raise ValueError("FlashConfig.moe_top_k_override: this model has no experts")
