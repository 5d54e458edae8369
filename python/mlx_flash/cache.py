# SPDX-License-Identifier: MIT
"""Keys and values of which the older part has fewer bits, in memory or on disk."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, RotatingKVCache, _BaseCache, create_attention_mask

_BLOCK = 64  # tokens that become old together

Quantized = tuple[mx.array, mx.array, mx.array]  # weights, scales, biases


class HybridQuantizedCache(_BaseCache):
    """A cache for mlx-lm's models: the newest tokens as they are, older ones in
    `old_bits` bits.

    At least `window` tokens keep full precision. Those before them are quantised
    in blocks of 64 after the forward that pushed them out, so a forward sees in
    full precision what it began with. Heads whose width no group fits stay as
    they are. The attribute is not called `bits`: mlx-lm would take that for its
    own quantised cache.
    """

    def __init__(self, old_bits: int = 8, window: int = 128, store: LayerStore | None = None):
        if old_bits not in (4, 8):
            raise ValueError(f"HybridQuantizedCache: {old_bits} bits (4 or 8)")
        self.old_bits = old_bits
        self.window = window
        self.offset = 0
        self.old: list[tuple[Quantized, Quantized] | int] = []  # int: a block on disk
        self.keys: mx.array | None = None
        self.values: mx.array | None = None
        self._store = store

    @property
    def _old_tokens(self) -> int:
        return len(self.old) * _BLOCK

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        self.offset = self._old_tokens + keys.shape[2]
        old = self._dequantized(keys.dtype, values.dtype)
        self._make_old()
        if old is None:
            return keys, values
        return mx.concatenate([old[0], keys], axis=2), mx.concatenate([old[1], values], axis=2)

    def _make_old(self) -> None:
        assert self.keys is not None and self.values is not None
        groups = _group_size(self.keys.shape[-1]), _group_size(self.values.shape[-1])
        if None in groups:
            return
        while self.keys.shape[2] - _BLOCK >= self.window:
            block = tuple(
                mx.quantize(part[..., :_BLOCK, :], group_size=group, bits=self.old_bits)
                for part, group in zip((self.keys, self.values), groups)
            )
            self.old.append(block if self._store is None else self._store.put(block))
            self.keys = self.keys[..., _BLOCK:, :]
            self.values = self.values[..., _BLOCK:, :]

    def _dequantized(self, key_dtype: Any, value_dtype: Any) -> tuple[mx.array, mx.array] | None:
        if not self.old:
            return None
        blocks = [self._store.get(b) if isinstance(b, int) else b for b in self.old]
        sides = []
        for side, dtype in enumerate((key_dtype, value_dtype)):
            parts = [mx.concatenate([b[side][i] for b in blocks], axis=2) for i in range(3)]
            width = parts[0].shape[-1] * 32 // self.old_bits
            full = mx.dequantize(*parts, group_size=_group_size(width), bits=self.old_bits)
            sides.append(full.astype(dtype))
        return sides[0], sides[1]

    def make_mask(self, *args: Any, **kwargs: Any) -> Any:
        return create_attention_mask(*args, offset=self.offset, **kwargs)

    @property
    def state(self) -> Any:
        """What mlx-lm evaluates and saves; blocks on disk are read for it."""
        blocks = [self._store.get(b) if isinstance(b, int) else b for b in self.old]
        return [self.keys, self.values, blocks, self.offset, self.old_bits, self.window]

    @state.setter
    def state(self, values: Any) -> None:
        keys, recent_values, blocks, offset, bits, window = values
        self.__init__(int(bits), int(window))
        self.keys, self.values, self.offset = keys, recent_values, int(offset)
        self.old = [(tuple(b[0]), tuple(b[1])) for b in blocks]

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        """Forgets the newest tokens. Old ones do not get their bits back: what is
        left of a block that is cut is kept dequantised."""
        n = min(self.offset, n)
        if n == 0 or self.keys is None:
            return n
        recent = self.keys.shape[2]
        while n > recent:
            self._newest_block_back()
            recent = self.keys.shape[2]
        self.keys = self.keys[..., : recent - n, :]
        self.values = self.values[..., : recent - n, :]
        self.offset -= n
        return n

    def _newest_block_back(self) -> None:
        assert self.keys is not None and self.values is not None
        block = self.old.pop()
        kept, self.old = self.old, [block]
        back = self._dequantized(self.keys.dtype, self.values.dtype)
        self.old = kept
        assert back is not None
        self.keys = mx.concatenate([back[0], self.keys], axis=2)
        self.values = mx.concatenate([back[1], self.values], axis=2)

    def size(self) -> int:
        return self.offset

    def empty(self) -> bool:
        return self.keys is None

    @property
    def nbytes(self) -> int:
        """In memory."""
        total = 0 if self.keys is None else self.keys.nbytes + self.values.nbytes
        for block in self.old:
            if not isinstance(block, int):
                total += sum(part.nbytes for side in block for part in side)
        return total


class DiskStore:
    """Old blocks of one conversation in a file that has no name.

    Holds `max_tokens` tokens of each layer, and `max_bytes`, at most; what comes
    later stays in memory. Reading a block back evaluates nothing else.
    """

    def __init__(
        self,
        folder: str | None,
        max_tokens: int | None = None,
        max_bytes: int | None = None,
    ):
        folder = folder or tempfile.gettempdir()
        try:
            os.makedirs(folder, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)
        except OSError as error:
            raise ValueError(f"FlashConfig.disk_kv_dir: {folder}: {error}") from None
        self.max_tokens = max_tokens
        self.max_bytes = max_bytes
        self._blocks: list[tuple[int, list[tuple[int, tuple[int, ...], Any]]]] = []
        self._end = 0
        self.bytes_written = 0
        self.bytes_read = 0

    def layer(self) -> LayerStore:
        return LayerStore(self)

    def has_room(self, size: int) -> bool:
        return self.max_bytes is None or self._end + size <= self.max_bytes

    def write(self, parts: list[mx.array]) -> int:
        mx.eval(parts)
        entries = []
        begin = self._end
        for part in parts:
            data = bytes(memoryview(mx.contiguous(part).view(mx.uint8)))
            os.pwrite(self._file.fileno(), data, self._end)
            entries.append((len(data), part.shape, part.dtype))
            self._end += len(data)
        self.bytes_written += self._end - begin
        self._blocks.append((begin, entries))
        return len(self._blocks) - 1

    def read(self, number: int) -> list[mx.array]:
        at, entries = self._blocks[number]
        parts = []
        for size, shape, dtype in entries:
            data = os.pread(self._file.fileno(), size, at)
            if len(data) != size:
                raise OSError(f"the KV file gave {len(data)} of {size} bytes at {at}")
            parts.append(mx.array(memoryview(data)).view(dtype).reshape(shape))
            at += size
            self.bytes_read += size
        return parts


class LayerStore:
    """The part of a DiskStore that one layer's cache uses."""

    def __init__(self, disk: DiskStore):
        self._disk = disk
        self._tokens = 0

    def put(self, block: Any) -> Any:
        most = self._disk.max_tokens
        if most is not None and self._tokens + _BLOCK > most:
            return block
        parts = [*block[0], *block[1]]
        if not self._disk.has_room(sum(part.nbytes for part in parts)):
            return block
        self._tokens += _BLOCK
        return self._disk.write(parts)

    def get(self, number: int) -> tuple[Quantized, Quantized]:
        parts = self._disk.read(number)
        return tuple(parts[:3]), tuple(parts[3:])


def _group_size(width: int) -> int | None:
    for group in (128, 64, 32):
        if width % group == 0:
            return group
    return None


def apply_settings(
    caches: list[Any],
    *,
    own: bool,
    quantized: bool,
    bits: int,
    window: int,
    max_kv_size: int | None,
    keep: int,
    disk: DiskStore | None,
) -> list[Any]:
    """Plain KV caches as the config wants them; rotating caches, those of state
    spaces and all others stay what the model made. `own`: the model makes its
    own caches, which max_kv_size leaves alone as mlx-lm does."""
    out = []
    for cache in caches:
        if type(cache) is not KVCache:
            out.append(cache)
        elif quantized:
            layer = None if disk is None else disk.layer()
            out.append(HybridQuantizedCache(bits, window, layer))
        elif max_kv_size is not None and not own:
            out.append(RotatingKVCache(max_size=max_kv_size, keep=keep))
        else:
            out.append(cache)
    return out
