# SPDX-License-Identifier: MIT
"""FLASH lines of a Modelfile."""

from __future__ import annotations

import json
from typing import Any

from .config import FlashConfig


def parse_flash_directives(text: str) -> dict[str, Any]:
    """The settings of `FLASH name value` lines (also `FLASH name=value`), for
    FlashConfig.from_dict. Other lines are not ours. ValueError names the line.

    >>> parse_flash_directives("FROM x\\nFLASH ram_budget_gb 2.5")
    {'ram_budget_gb': 2.5}
    """
    found: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip().split(None, 1)
        if not words or words[0].upper() != "FLASH":
            continue
        rest = words[1].strip() if len(words) > 1 else ""
        name, separator, value = rest.partition("=")
        if not separator or " " in name.strip():
            name, _, value = rest.partition(" ")
        name, value = name.strip().lower(), value.strip()
        if not name or not value:
            raise ValueError(f"line {number}: FLASH wants a name and a value: {line.strip()!r}")
        found[name] = _value(value)
    FlashConfig(**{k: v for k, v in found.items() if k in FlashConfig.__dataclass_fields__})
    return found


_WORDS = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
