# SPDX-License-Identifier: MIT
"""mlx_lm.load and mlx_lm.stream_generate through the engine, in a process that
knows nothing of it (LM Studio's MLX back end, mlx_lm.server, scripts)."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, Iterator

import mlx_lm
import mlx_lm.generate  # noqa: F401 (the module, behind the function's name)
from mlx_lm import utils

from ..config import FlashConfig
from ..directives import parse_flash_directives
from ..manager import FlashManager
from ..model import FlashModel, length

__all__ = ["apply_flash_patch", "parse_flash_directives", "remove_flash_patch"]

_lock = threading.RLock()
_managers: list[FlashManager] = []  # one for each patch applied, newest last
_replaced: list[tuple[Any, str, Any]] = []  # (module, name, what it was)

_load = utils.load
_stream_generate = sys.modules["mlx_lm.generate"].stream_generate


def apply_flash_patch(config: FlashConfig | None = None) -> None:
    """From now on models are loaded with this config, until remove_flash_patch().
    May be nested: the newest config counts."""
    with _lock:
        _managers.append(FlashManager(config))
        if len(_managers) == 1:
            _replace(_load, _flash_load)
            _replace(_stream_generate, _flash_stream_generate)


def remove_flash_patch() -> None:
    """Takes the newest patch away and closes what was loaded under it; with the
    last one mlx_lm is as it was. Without a patch it does nothing."""
    with _lock:
        if not _managers:
            return
        _managers.pop().close()
        if _managers:
            return
        for module, name, original in reversed(_replaced):
            setattr(module, name, original)
        _replaced.clear()


def _replace(original: Any, ours: Any) -> None:
    """Everywhere in mlx_lm: its modules import the functions by name."""
    for module_name, module in list(sys.modules.items()):
        if module is None or module_name.split(".")[0] != "mlx_lm":
            continue
        for name, value in list(vars(module).items()):
            if value is original:
                _replaced.append((module, name, value))
                setattr(module, name, ours)


def _flash_load(
    path_or_hf_repo: str | os.PathLike[str],
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    adapter_path: str | None = None,
    lazy: bool = False,
    return_config: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, ...]:
    with _lock:
        manager = _managers[-1] if _managers else None
    if manager is None or not manager.config.enabled or adapter_path is not None:
        return _load(
            str(path_or_hf_repo),
            tokenizer_config=tokenizer_config,
            model_config=model_config,
            adapter_path=adapter_path,
            lazy=lazy,
            return_config=return_config,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    model, tokenizer = manager.load(
        path_or_hf_repo, tokenizer_config, model_config, revision, trust_remote_code
    )
    return (model, tokenizer, model._flash.config) if return_config else (model, tokenizer)


def _flash_stream_generate(model: Any, tokenizer: Any, prompt: Any, **kwargs: Any) -> Iterator[Any]:
    if isinstance(model, FlashModel):
        kwargs.setdefault("prefill_step_size", model._flash.prefill_chunk(length(prompt)))
        if kwargs.get("prompt_cache") is None and kwargs.get("draft_model") is None:
            kwargs["prompt_cache"] = model.new_cache()
    return _stream_generate(model, tokenizer, prompt, **kwargs)
