# SPDX-License-Identifier: MIT
"""Puts the engine under a model that mlx-lm has built but not read.

mlx-lm's loader leaves every parameter an array that has not been evaluated: a
tensor of a file, or an expression over such tensors where the model's
`sanitize` stacks, splits or casts. Nothing here evaluates them. The modules
that hold large ones get a class of the same name, derived from their own, in
which asking for a parameter gives a new array: the engine fills it when MLX
evaluates it, and it is gone when its last user has run. So the model's own
`__call__` runs, whatever the architecture.

`fast` goes further where it can: linear layers, embeddings and experts multiply
by the bytes as they arrive, in float32, without making arrays of them.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from . import _engine
from .headers import Place

_PARTS = ("weight", "scales", "biases")


@dataclass
class Patch:
    """What patch_model() found and did."""

    streamed: int = 0  # parameters
    streamed_bytes: int = 0
    resident_bytes: int = 0
    working_bytes: int = 0  # the most that arrays of one parameter take
    widths: list[int] = field(default_factory=list)  # outputs of linear layers
    kv_width: int = 0  # numbers that a token adds to plain KV caches, by names
    resident: list[mx.array] = field(default_factory=list)  # to be evaluated
    leaves: list[mx.array] = field(default_factory=list)  # their ids are in use


@dataclass
class Source:
    """Where raw tensors come from, and how small one may be to stay."""

    engine: _engine.Engine
    raw: dict[str, mx.array]
    places: dict[str, Place]
    resident_max: int
    fast: bool
    active: int = 0  # experts that a token uses; 0: not known

    def __post_init__(self) -> None:
        self.names = {id(array): name for name, array in self.raw.items()}
        self.matrices: dict[str, int] = {}
        self.rebuild: Rebuild | None = None
        self.names_by_leaf = list(self.raw)
        for array in self.raw.values():
            self.engine.know_leaf(array)

    def place_of(self, array: mx.array) -> Place | None:
        """The place of an array that is a tensor of a file, unchanged."""
        name = self.names.get(id(array))
        return None if name is None else self.places[name]

    def is_large(self, array: mx.array) -> bool:
        """Whether it is to be streamed: read from the files, and not small."""
        return array.nbytes > self.resident_max and bool(self.inputs(array))

    def inputs(self, array: mx.array) -> list[str]:
        """The tensors of files it is made of."""
        if id(array) in self.names:
            return [self.names[id(array)]]
        return [self.names_by_leaf[i] for i in self.engine.leaves_of(array)]

    def declare(self, array: mx.array, every_pass: bool) -> list[mx.array]:
        """Makes the tensors it is made of known to the engine."""
        made = []
        for name in self.inputs(array):
            if name in self.matrices:
                continue
            place = self.places[name]
            leaf = self.raw[name]
            self.matrices[name] = self.engine.add_tensor(
                leaf, name, place.file, place.offset, every_pass
            )
            made.append(leaf)
        return made

    def parts(self, arrays: list[mx.array]) -> list[tuple[int, int, int]]:
        """(file, offset, bytes of a row) of each; a row is one of axis -2."""
        found = []
        for array in arrays:
            place = self.place_of(array)
            assert place is not None
            found.append((place.file, place.offset, array.shape[-1] * array.itemsize))
        return found

    def add_table(self, name: str, arrays: list[mx.array]) -> int:
        """A table of which one entry of axis 0 is read at a time."""
        parts = []
        for array in arrays:
            place = self.place_of(array)
            assert place is not None
            parts.append((place.file, place.offset, array.nbytes // array.shape[0]))
        return self.engine.add_table(name, parts, arrays[0].shape[0])

    def entries(self, array: mx.array) -> list[tuple[int, int]]:
        """(file, offset) of each entry of axis 0, if each is a stretch of one
        file: stacked there, or by sanitize(). Else nothing."""
        found = []
        for leaf, offset in self.engine.entries_of(array):
            place = self.places[self.names_by_leaf[leaf]]
            found.append((place.file, place.offset + offset))
        return found

    def expert_parts(
        self, arrays: list[mx.array]
    ) -> list[list[tuple[int, int, int]]] | None:
        """(file, offset, bytes of a row) of each array, for each expert; None
        where an expert of one is no stretch of a file."""
        rows = arrays[0].shape[1]
        columns = []
        for array in arrays:
            entries = self.entries(array)
            if array.ndim != 3 or array.shape[1] != rows or not entries:
                return None
            row = array.shape[2] * array.itemsize
            columns.append([(file, offset, row) for file, offset in entries])
        return [list(parts) for parts in zip(*columns)]


# --- Threads ----------------------------------------------------------------


class Replayed:
    """A parameter that is an expression over tensors of files.

    Its operations belong to a stream of the thread that made them. In any other
    thread the expression is made again there: `rebuild` runs mlx-lm's loader,
    which reads headers only.
    """

    def __init__(self, path: str, weight: _engine.Weight, rebuild: Rebuild):
        self._path = path
        self._rebuild = rebuild
        self._weight = weight
        self._thread = threading.get_ident()

    def array(self) -> mx.array:
        if threading.get_ident() == self._thread:
            return self._weight.array()
        return self._rebuild.weights()[self._path].array()


class Rebuild:
    """All expressions of a model, once for each thread that asks for one."""

    def __init__(self, source: Source, load: Callable[[], tuple[nn.Module, dict[str, mx.array]]]):
        self._engine = source.engine
        self._matrices = source.matrices
        self._fast = source.fast
        self._load = load
        self._paths: dict[str, bool] = {}  # path of a parameter: may be cast
        self._local = threading.local()

    def add(self, path: str, cast: bool) -> None:
        self._paths[path] = cast

    def weights(self) -> dict[str, _engine.Weight]:
        if not hasattr(self._local, "weights"):
            model, raw = self._load()
            for name, number in self._matrices.items():
                self._engine.alias_leaf(raw[name], number)
            parameters = dict(tree_flatten(model.parameters()))
            self._local.leaves = raw  # their ids are in use
            self._local.weights = {
                path: self._engine.weight(parameters[path], self._fast and cast)
                for path, cast in self._paths.items()
            }
        return self._local.weights


# --- The tree ---------------------------------------------------------------


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules, parents first, in the order in which they were made."""
    yield path, module
    for key, value in module.items():
        yield from _walk_value(value, f"{path}.{key}" if path else key)


def _walk_value(value: Any, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield from walk(value, path)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _walk_value(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _walk_value(item, f"{path}.{i}")


# --- Classes ----------------------------------------------------------------


class Streamed:
    """A module of which some parameters are made anew each time."""

    _flash_weights: dict[str, _engine.Weight | Replayed]

    def __getitem__(self, key: str) -> Any:
        weight = self._flash_weights.get(key)
        return super().__getitem__(key) if weight is None else weight.array()

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = super().__call__(*args, **kwargs)
        if isinstance(out, mx.array):
            _engine.chain(out)
        return out


class _Asked(threading.local):
    """The module whose rows this thread is asking for, and these."""

    module: nn.Module | None = None
    rows: dict[str, mx.array] = {}


_asked = _Asked()


class StreamedRows(Streamed):
    """One that needs only some rows of its parameters: an embedding, experts."""

    # Arrays in which only rows `ids` are there, by the parameter's name.
    _flash_rows: Callable[[mx.array], dict[str, mx.array]]

    def __getitem__(self, key: str) -> Any:
        if _asked.module is self and key in _asked.rows:
            return _asked.rows[key]
        return super().__getitem__(key)

    def _with_rows(self, ids: mx.array, call: Callable[[], mx.array]) -> mx.array:
        before = _asked.module, _asked.rows
        _asked.module, _asked.rows = self, self._flash_rows(ids)
        try:
            return call()
        finally:
            _asked.module, _asked.rows = before


class StreamedEmbedding(StreamedRows):
    def __call__(self, ids: mx.array) -> mx.array:
        return self._with_rows(ids, lambda: super(StreamedEmbedding, self).__call__(ids))


class StreamedExperts(StreamedRows):
    def __call__(self, x: mx.array, indices: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        call = super().__call__
        return self._with_rows(indices, lambda: call(x, indices, *args, **kwargs))


class FastLinear(Streamed):
    _flash_linear: Callable[[mx.array, mx.array | None], mx.array]

    def __call__(self, x: mx.array) -> mx.array:
        bias = self["bias"] if "bias" in self else None
        return self._flash_linear(x, bias)


class FastEmbedding(Streamed):
    _flash_embed: Callable[[mx.array], mx.array]
    _flash_linear: Callable[[mx.array, mx.array | None], mx.array]

    def __call__(self, ids: mx.array) -> mx.array:
        return self._flash_embed(ids)

    def as_linear(self, x: mx.array) -> mx.array:
        return self._flash_linear(x, None)


class FastExperts(Streamed):
    _flash_experts: Callable[[mx.array, mx.array], mx.array]

    def __call__(self, x: mx.array, indices: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        y = self._flash_experts(x, indices)
        if "bias" in self:
            y = y + mx.expand_dims(self["bias"][indices], -2)
        return y


_classes: dict[tuple[type, type], type] = {}


def adopt(module: nn.Module, mixin: type, **attributes: Any) -> None:
    """Gives the module a class derived from `mixin` and its own."""
    own = type(module)
    if (mixin, own) not in _classes:
        names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
        _classes[mixin, own] = type(own.__name__, (mixin, own), names)
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
    module.__class__ = _classes[mixin, own]


# --- Formats of the kernels -------------------------------------------------


def _format(module: nn.Module, parts: dict[str, mx.array]) -> _engine.Format:
    """As the engine names it; ValueError for one that it has no kernels for."""
    if "scales" in parts:
        dtype = _dtype(parts["scales"]) if module.mode == "affine" else "float32"
        return _engine.Format(module.mode, module.bits, module.group_size, dtype)
    return _engine.Format("dense", 0, 0, _dtype(parts["weight"]))


def _dtype(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _kernel_format(
    module: nn.Module, parts: dict[str, mx.array], cols: int
) -> _engine.Format | None:
    """The format, if the kernels can multiply by it."""
    if module.get("global_scale") is not None:
        return None
    try:
        kind = _format(module, parts)
    except ValueError:
        return None
    return kind if kind.accepts(cols) else None


def _cols(module: nn.Module, parts: dict[str, mx.array]) -> int:
    width = parts["weight"].shape[-1]
    return width * 32 // module.bits if "scales" in parts else width


# --- Patching ---------------------------------------------------------------


def patch_model(model: nn.Module, source: Source) -> Patch:
    """Declares all parameters to the engine, in the order of the tree, and
    gives the modules that hold large ones their new classes."""
    patch = Patch()
    tied = _is_tied(model)
    for path, module in list(walk(model)):
        _patch_module(path, module, source, patch, tied)
    mx.eval(patch.resident)
    patch.resident.clear()
    return patch


def _is_tied(model: nn.Module) -> bool:
    """Whether the embedding is probably the head as well: no other module has
    as many outputs. Only the prediction of the order depends on it."""
    tables = [m for _, m in walk(model) if isinstance(m, (nn.Embedding, nn.QuantizedEmbedding))]
    if not tables:
        return False
    vocab = max(table.weight.shape[0] for table in tables)
    linears = (m for _, m in walk(model) if isinstance(m, (nn.Linear, nn.QuantizedLinear)))
    return all(m.weight.shape[0] != vocab for m in linears)


def _patch_module(
    path: str, module: nn.Module, source: Source, patch: Patch, tied: bool
) -> None:
    large: dict[str, mx.array] = {}
    weight = module.get("weight")
    matrix = isinstance(weight, mx.array) and source.is_large(weight)
    for key, value in list(module.items()):
        if not isinstance(value, mx.array):
            _keep_nested(value)
        elif source.is_large(value) or (matrix and key in _PARTS and source.inputs(value)):
            large[key] = value
        elif not key.startswith("_"):
            module[key] = _resident(value, source, patch)
    if not large:
        return
    if "weight" in large:
        patch.kv_width += _kv_width(path, large["weight"])
    embedding = isinstance(module, (nn.Embedding, nn.QuantizedEmbedding))
    experts = isinstance(module, (SwitchLinear, QuantizedSwitchLinear))
    every_pass = not experts and (tied or not embedding)
    parts = {key: large[key] for key in _PARTS if key in large}
    whole = all(module.get(key) is None or key in parts for key in _PARTS)
    if experts:
        whole = whole and source.expert_parts(list(parts.values())) is not None
    else:
        whole = whole and all(source.place_of(a) is not None for a in parts.values())
    if whole and source.fast and "weight" in parts:
        if _patch_fast(path, module, source, patch, large, parts, every_pass):
            return
    weights = _declare(path, large, source, patch, every_pass)
    if (embedding or experts) and whole and parts:
        mixin = StreamedExperts if experts else StreamedEmbedding
        rows = _rows_of(path, source, parts, experts)
        adopt(module, mixin, _flash_weights=weights, _flash_rows=rows)
        if embedding:
            _count_working(patch, large, source)
        return
    _count_working(patch, large, source)
    adopt(module, Streamed, _flash_weights=weights)


def _rows_of(
    path: str, source: Source, parts: dict[str, mx.array], experts: bool
) -> Callable[[mx.array], dict[str, mx.array]]:
    engine, arrays = source.engine, list(parts.values())
    if experts:
        table = _add_experts(path, source, arrays)
        rows = _engine.expert_rows
    else:
        table = source.add_table(path, arrays)
        rows = _engine.table_rows
    return lambda ids: dict(zip(parts, rows(engine, table, arrays, ids)))


_ACTIVE_USUAL = 8  # experts of a token, where the model does not say


def _add_experts(
    path: str,
    source: Source,
    arrays: list[mx.array],
    cols: int = 0,
    kind: _engine.Format | None = None,
) -> int:
    parts = source.expert_parts(arrays)
    assert parts is not None
    return source.engine.add_experts(
        name=path,
        group=path.rpartition(".")[0],
        parts=parts,
        active=source.active or _ACTIVE_USUAL,
        rows=arrays[0].shape[1],
        cols=cols,
        format=kind,
    )


def _kv_width(path: str, weight: mx.array) -> int:
    """Outputs of a key or value projection, by its name."""
    name = path.rpartition(".")[2]
    if name in ("k_proj", "v_proj", "wk", "wv", "key", "value"):
        return weight.shape[0]
    if "qkv" in name.lower() or name in ("query_key_value", "c_attn", "wqkv"):
        return weight.shape[0] * 2 // 3  # at most
    return 0


def _patch_fast(
    path: str,
    module: nn.Module,
    source: Source,
    patch: Patch,
    large: dict[str, mx.array],
    parts: dict[str, mx.array],
    every_pass: bool,
) -> bool:
    """Uses the kernels for the module if they know its kind and format."""
    cols = _cols(module, parts)
    kind = _kernel_format(module, parts, cols)
    if kind is None:
        return False
    engine = source.engine
    linear = type(module) in (nn.Linear, nn.QuantizedLinear)
    embedding = type(module) in (nn.Embedding, nn.QuantizedEmbedding)
    experts = type(module) in (SwitchLinear, QuantizedSwitchLinear)
    if not (linear or embedding or experts):
        return False
    weights = _declare(path, large, source, patch, False)
    attributes: dict[str, Any] = {"_flash_weights": weights}
    rows = parts["weight"].shape[-2]
    if linear or embedding:
        row_parts = source.parts(list(parts.values()))
        matrix = engine.add_matrix(path, row_parts, rows, cols, kind, every_pass)
        attributes["_flash_linear"] = lambda x, bias: _engine.linear(engine, matrix, x, bias)
        patch.widths.append(rows)
    if embedding:
        table = engine.add_embedding(path, row_parts, rows, cols, kind)
        attributes["_flash_embed"] = lambda ids: _engine.embed(engine, table, ids)
    if experts:
        stack = _add_experts(path, source, list(parts.values()), cols, kind)
        attributes["_flash_experts"] = lambda x, ids: _engine.experts(engine, stack, x, ids)
    if linear:
        adopt(module, FastLinear, **attributes)
    else:
        adopt(module, FastEmbedding if embedding else FastExperts, **attributes)
    return True


def _declare(
    path: str, large: dict[str, mx.array], source: Source, patch: Patch, every_pass: bool
) -> dict[str, _engine.Weight | Replayed]:
    weights: dict[str, _engine.Weight | Replayed] = {}
    for key, array in large.items():
        patch.leaves += source.declare(array, every_pass)
        cast = source.fast and not key.startswith("_")
        weight = source.engine.weight(array, cast)
        if source.place_of(array) is None and source.rebuild is not None:
            name = f"{path}.{key}" if path else key
            source.rebuild.add(name, cast)
            weight = Replayed(name, weight, source.rebuild)
        weights[key] = weight
        patch.streamed += 1
        patch.streamed_bytes += array.nbytes
    return weights


def _count_working(patch: Patch, large: dict[str, mx.array], source: Source) -> None:
    """Arrays of one parameter: itself, what it is made of, and a cast of it."""
    total = 0
    for array in large.values():
        plain = source.place_of(array) is not None
        total += array.nbytes if plain else 3 * array.nbytes
        if source.fast:
            total += array.size * 4
    if "weight" in large:
        patch.widths.append(large["weight"].shape[0])
    patch.working_bytes = max(patch.working_bytes, total)


def _resident(array: mx.array, source: Source, patch: Patch) -> mx.array:
    place = source.place_of(array)
    kept = array
    if place is not None:
        kept = source.engine.read_tensor(array, place.file, place.offset)
    if source.fast and mx.issubdtype(array.dtype, mx.floating):
        kept = kept.astype(mx.float32)
    patch.resident.append(kept)
    patch.resident_bytes += kept.nbytes
    return kept


def _keep_nested(value: Any) -> None:
    """Parameters inside plain lists and dicts: no module asks for them by name."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _keep_nested(item)
    elif isinstance(value, dict) and not isinstance(value, nn.Module):
        for item in value.values():
            _keep_nested(item)
    elif isinstance(value, mx.array):
        mx.eval(value)
