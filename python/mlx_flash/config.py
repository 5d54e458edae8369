# SPDX-License-Identifier: MIT
"""What a user can set, and the check of it."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Mapping

Kernels = Literal["auto", "fast", "stock"]
Eviction = Literal["lfu", "lru"]
Io = Literal["auto", "uring", "threads"]


@dataclass
class FlashConfig:
    """How a model is run. docs/PYTHON.md says what each field does.

    A value that cannot be used is a ValueError that names its field.
    """

    enabled: bool = True
    kernels: Kernels = "auto"
    ram_budget_gb: float | None = None
    expert_cache_size: int = 0
    pipeline_depth: int = 0
    pipelined_execution: bool = True
    tiled_execution: bool = True
    tile_size: int = 0
    prefill_chunk_size: int = 0
    max_kv_size: int | None = None
    kv_keep: int = 4
    kv_cache_quantized: bool = False
    kv_cache_bits: int = 8
    kv_cache_local_window_size: int = 128
    disk_kv_enabled: bool = False
    disk_kv_dir: str | None = None
    disk_kv_max_tokens: int | None = None
    disk_kv_max_gb: float | None = None
    moe_top_k_override: int | None = None
    eviction_strategy: Eviction = "lfu"
    io: Io = "auto"
    disk_limit_gb_s: float = 0.0
    bandwidth_controller: bool = True
    threads: int = 0
    enable_profiling: bool = False
    monitor: bool = False
    debug: bool = False

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raises ValueError for the first field that cannot be used."""
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                _refuse(name, getattr(self, name), "True or False")
        for name, (least, most) in _INTEGERS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not _is_int(value) or not least <= value <= most:
                _refuse(name, value, f"an integer from {least} to {most}")
        if self.kernels not in ("auto", "fast", "stock"):
            _refuse("kernels", self.kernels, "'auto', 'fast' or 'stock'")
        if self.eviction_strategy not in ("lfu", "lru"):
            _refuse("eviction_strategy", self.eviction_strategy, "'lfu' or 'lru'")
        if self.io not in ("auto", "uring", "threads"):
            _refuse("io", self.io, "'auto', 'uring' or 'threads'")
        limit = self.disk_limit_gb_s
        if not _is_number(limit) or not 0 <= limit < 1e6:
            _refuse("disk_limit_gb_s", limit, "GB (10^9 bytes) per second; 0: no limit")
        if self.kv_cache_bits not in (4, 8):
            _refuse("kv_cache_bits", self.kv_cache_bits, "4 or 8")
        budget = self.ram_budget_gb
        if budget is not None and (not _is_number(budget) or not 0 < budget < 1e6):
            _refuse("ram_budget_gb", budget, "a positive number of GB (10^9 bytes)")
        self._validate_together()

    def _validate_together(self) -> None:
        if self.max_kv_size is not None and self.max_kv_size <= self.kv_keep:
            _refuse("max_kv_size", self.max_kv_size, f"more than kv_keep ({self.kv_keep})")
        if self.disk_kv_dir is not None and not isinstance(self.disk_kv_dir, (str, Path)):
            _refuse("disk_kv_dir", self.disk_kv_dir, "a folder")
        most = self.disk_kv_max_gb
        if most is not None and (not _is_number(most) or most < 0):
            _refuse("disk_kv_max_gb", most, "GB (10^9 bytes) of a file")
        if self.disk_kv_enabled and not self.kv_cache_quantized:
            _refuse("disk_kv_enabled", True, "used together with kv_cache_quantized")
        if self.kv_cache_quantized and self.max_kv_size is not None:
            _refuse("kv_cache_quantized", True, "used without max_kv_size (a rotating cache)")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FlashConfig:
        """The config these values describe; unknown keys are warned about."""
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                warnings.warn(f"FlashConfig: unknown key {key!r} is ignored", stacklevel=2)
        return cls(**{key: value for key, value in values.items() if key in known})

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


_FLAGS = (
    "enabled",
    "pipelined_execution",
    "tiled_execution",
    "bandwidth_controller",
    "kv_cache_quantized",
    "disk_kv_enabled",
    "enable_profiling",
    "monitor",
    "debug",
)
_INTEGERS = {  # smallest and largest value
    "expert_cache_size": (0, 1 << 20),
    "pipeline_depth": (0, 256),
    "tile_size": (0, 1 << 26),
    "prefill_chunk_size": (0, 1 << 20),
    "max_kv_size": (1, 1 << 30),
    "kv_keep": (0, 1 << 20),
    "kv_cache_bits": (1, 16),
    "kv_cache_local_window_size": (64, 1 << 20),
    "disk_kv_max_tokens": (1, 1 << 30),
    "moe_top_k_override": (1, 1 << 10),
    "threads": (0, 1024),
}
_OPTIONAL = ("max_kv_size", "disk_kv_max_tokens", "moe_top_k_override")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse(field: str, value: object, wanted: str) -> None:
    raise ValueError(f"FlashConfig.{field}: {value!r} (it must be {wanted})")
