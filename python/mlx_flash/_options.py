# SPDX-License-Identifier: MIT
"""Flags of python -m mlx_flash: those of the C++ command, by name and meaning.

What cannot be had here is refused with the reason, never ignored.
"""

from __future__ import annotations

import argparse
import math
import re
from typing import Any, Callable, NoReturn

from .config import FlashConfig

COMMANDS = ("run", "chat", "plan", "bench", "score")

# Commands of mlx-flash that know no architecture, or not this one's.
ELSEWHERE = {
    "tokenize": "mlx-flash tokenize reads the tokenizer of any model folder",
    "template": "mlx-flash template reads the chat template of any model folder",
    "inspect": "mlx-flash inspect reads the headers of any model folder",
    "pull": "mlx-flash pull downloads any model; --model org/name does too",
    "models": "mlx-flash models lists the hub cache, which is the same one",
    "rm": "mlx-flash rm removes from the hub cache, which is the same one",
    "convert": "python -m mlx_lm convert writes other layouts",
    "serve": "mlx_flash.integration.lmstudio.apply_flash_patch() and then mlx_lm.server.main() "
    "in one program is mlx_lm's own server on this engine (docs/PYTHON.md)",
    "monitor": "FlashConfig.monitor prints a line each second while answering",
    "doctor": "mlx-flash doctor looks at disk, memory and kernels",
}

# Flags that mean nothing here, and why.
REFUSED = {
    "--file": "it names a GGUF file: mlx-lm loads folders of safetensors",
    "--kv-type": "keys and values have the type that the model computes in; "
    "--kv-quant makes them smaller",
    "--kv-ram": "--kv-dir puts all older keys and values on disk",
    "--kv-reuse": "what a conversation has in common with the last prompt is always kept",
    "--trace": "reads are not recorded here; --stats counts them",
    "--probe": "mlx-flash bench --disk measures the disk under any model",
    "--disk": "mlx-flash bench --disk measures the disk under any model",
    "--only": "mlx-flash bench --kernels measures the kernels, which are the same",
}
_REFUSED_WITHOUT_VALUE = ("--probe", "--disk")


def refuse(message: str) -> NoReturn:
    raise ValueError(message)


def parse_size(text: str, flag: str = "--ram") -> float:
    """GB (10^9 bytes) of "2", "1500MB", "1.5GiB"; ValueError for anything else."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        refuse(f"{flag}: {text!r} is no size (2, 1500MB, 1.5GiB)")
    number, unit, binary = float(match[1]), match[2].upper(), bool(match[3])
    if not unit:
        unit = "G" if not text.strip().upper().endswith("B") else ""
    power = " KMGT".index(unit) if unit else 0
    return number * (1024 if binary else 1000) ** power / 1e9


def parse_numbers(text: str, flag: str) -> list[int]:
    """"1,2,3"."""
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        refuse(f"{flag}: {text!r} is no list of numbers (1,2,3)")
    return numbers


def parser(command: str) -> argparse.ArgumentParser:
    """Of one command; every one takes what an engine needs."""
    parser = _Parser(
        prog=f"python -m mlx_flash {command}",
        description="Runs any model of mlx-lm in a budget. Commands: " + ", ".join(COMMANDS),
        allow_abbrev=False,
    )
    _add_model(parser)
    _add_advanced(parser)
    if command != "plan":
        parser.add_argument("--stats", action="store_true", help="figures on stderr")
    if command != "chat":
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    if command == "score":
        _add_score(parser)
    if command in ("run", "chat"):
        _add_answer(parser, command)
    if command == "run":
        _add_prompt(parser)
    if command == "bench":
        _add_bench(parser)
    for flag, reason in REFUSED.items():
        kind: dict[str, Any] = {"nargs": 0} if flag in _REFUSED_WITHOUT_VALUE else {}
        parser.add_argument(flag, action=_Refuse, reason=reason, help=argparse.SUPPRESS, **kind)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for all input that the user must change."""
        refuse(f"{message} ({self.prog} --help shows all flags)")


class _Refuse(argparse.Action):
    def __init__(self, *args: Any, reason: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._reason = reason

    def __call__(self, _parser: Any, _namespace: Any, _values: Any, flag: Any = None) -> NoReturn:
        refuse(f"{flag} is not for python -m mlx_flash: {self._reason}")


def _whole(least: int, most: int = 1 << 31) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]+", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {least} to {most}"
            )
        return int(text)

    return parse


def _real(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number from {least:g} to {most:g}"
            )
        return number

    return parse


def _count(text: str) -> int:
    """A number, or "auto": 0."""
    return 0 if text == "auto" else _whole(0)(text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Model and memory").add_argument
    add("--model", "-m", required=True, metavar="M", help="folder, or hub id org/name")
    add("--revision", metavar="R", help="branch, tag or commit of a hub id")
    add("--model-name", metavar="NAME", help="what reports call the model")
    add("--ram", default="auto", metavar="SIZE", help="of the process, beyond Python itself")
    add("--ctx", type=_count, default=0, metavar="N|auto", help="tokens a session may hold")
    add("--threads", "-t", type=_count, default=0, metavar="N")
    add("--trust-remote-code", action="store_true", help="the model folder may bring code")
    add("--quiet", "-q", action="store_true")
    add("--debug", action="store_true")


def _add_advanced(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Advanced").add_argument
    add("--kernels", choices=("auto", "fast", "stock"), default="auto")
    add("--kv-quant", type=int, choices=(0, 4, 8), default=0)
    add("--kv-dir", metavar="DIR", help="old keys and values go to a file there")
    add("--kv-disk-limit", metavar="SIZE", help="largest such file")
    add("--kv-keep", type=_whole(0), metavar="N", help="goes on where --ctx is full, keeping N tokens")
    add("--moe-top-k", type=_whole(1), metavar="N")
    add("--io", choices=("auto", "uring", "threads"), default="auto")
    add("--prefill", type=_count, default=0, metavar="N", help="prompt tokens of one forward")
    add("--tile", default="auto", metavar="SIZE")
    add("--queue-depth", type=_count, default=0, metavar="N")
    add("--disk-limit", metavar="SIZE", help="bytes per second from the disk, at most")
    add("--no-pipeline", action="store_true", help="read a tile when it is asked for")
    add("--no-controller", action="store_true", help="never pace reads")
    add("--no-look-ahead", action="store_true", help="so it is always: nothing is guessed here")
    add("--no-learn", action="store_true", help="so it is always: nothing is kept of a run")


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Prompt").add_argument
    add("text", nargs="?", help="the prompt; -: stdin")
    add("--prompt", "-p", metavar="TEXT")
    add("--prompt-file", "-f", metavar="F")
    add("--prompt-ids", metavar="1,2,3")
    add("--raw", action="store_true", help="no chat template")


def _add_answer(parser: argparse.ArgumentParser, command: str) -> None:
    chat = command == "chat"
    add = parser.add_argument_group("Answer").add_argument
    add("--system", metavar="TEXT")
    add("--session", metavar="FILE", help="keeps the conversation's cache in this file")
    add("--max-tokens", "-n", type=_whole(1), default=1024 if chat else 256, metavar="N")
    add("--temp", type=_real(0, 100), default=0.3 if chat else 0.0)
    add("--top-p", type=_real(0, 1), default=0.9 if chat else 1.0)
    add("--top-k", type=_whole(0), default=0)
    add("--min-p", type=_real(0, 1), default=0.0)
    add("--repeat-penalty", type=_real(0.01, 100))
    add("--seed", type=_whole(0, (1 << 64) - 1), default=0)
    add("--stop", action="append", default=[], metavar="TEXT")
    add("--ignore-eos", action="store_true")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Measurement").add_argument
    add("--prompt-tokens", type=_whole(1), default=128, metavar="N")
    add("--max-tokens", "-n", type=_whole(1), default=32, metavar="N")
    add("--runs", type=_whole(1), default=1, metavar="N", help="the median is printed")
    add("--warm-up", action="store_true")


def _add_score(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("Text").add_argument
    add("words", nargs="?", metavar="TEXT", help="the text; -: stdin")
    add("--text", "--prompt", "-p", metavar="TEXT")
    add("--text-file", "--prompt-file", "-f", metavar="F")
    add("--ids", "--prompt-ids", metavar="1,2,3")
    add("--chunks", metavar="37,1,1", help="lengths of the forwards; the last repeats")
    add("--top", type=_whole(0), default=0, metavar="N", help="with --json: the N best at each place")
    add("--logits", metavar="F.npy")


def flash_config(options: argparse.Namespace) -> FlashConfig:
    """What the flags say; ValueError for what does not go together."""
    if options.kv_keep is not None and options.ctx == 0:
        refuse("--kv-keep: say with --ctx how many tokens are kept in all")
    if options.kv_disk_limit is not None and options.kv_dir is None:
        refuse("--kv-disk-limit: say with --kv-dir where the file is made")
    auto = options.ram.strip().lower() == "auto"
    tile = options.tile.strip().lower()
    limit, disk = options.kv_disk_limit, options.disk_limit
    rotating = options.kv_keep is not None
    return FlashConfig(
        ram_budget_gb=None if auto else parse_size(options.ram),
        kernels=options.kernels,
        threads=options.threads,
        prefill_chunk_size=options.prefill,
        tile_size=0 if tile == "auto" else int(parse_size(tile, "--tile") * 1e9),
        pipeline_depth=options.queue_depth,
        io=options.io,
        disk_limit_gb_s=0.0 if disk is None else parse_size(disk, "--disk-limit"),
        bandwidth_controller=not options.no_controller,
        kv_cache_quantized=options.kv_quant != 0 or options.kv_dir is not None,
        kv_cache_bits=options.kv_quant or 8,
        disk_kv_enabled=options.kv_dir is not None,
        disk_kv_dir=options.kv_dir,
        disk_kv_max_gb=None if limit is None else parse_size(limit, "--kv-disk-limit"),
        max_kv_size=options.ctx if rotating else None,
        kv_keep=options.kv_keep if rotating else 4,
        moe_top_k_override=options.moe_top_k,
        pipelined_execution=not options.no_pipeline,
        debug=options.debug,
    )
