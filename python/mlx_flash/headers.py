# SPDX-License-Identifier: MIT
"""Where the tensors of safetensors files lie. Headers only."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

_HEADER_MAX = 100 << 20  # bytes, as the format's own reference has it


@dataclass(frozen=True)
class Place:
    """Bytes [offset, offset + bytes) of one of the files."""

    file: int
    offset: int
    bytes: int


def read_places(path: Path, file: int) -> dict[str, Place]:
    """The tensors of one file; ValueError names it and what is wrong."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        prefix = f.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{path}: {size} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, _HEADER_MAX):
            raise ValueError(f"{path}: a header of {length} bytes in {size}")
        try:
            header = json.loads(f.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: the header is no JSON: {error}") from None
    begin = 8 + length
    places = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path}: {name}: no data_offsets") from None
        if not 0 <= first <= last <= size - begin:
            raise ValueError(f"{path}: {name}: reaches past the end of the file")
        places[name] = Place(file, begin + first, last - first)
    return places
