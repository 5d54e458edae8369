# SPDX-License-Identifier: MIT
"""python -m mlx_flash: the command mlx-flash for what only mlx-lm knows.

Flags and their meanings are those of the C++ command; exit code 2 means input
that the user must change, 1 a failure while running.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from .config import FlashConfig

COMMANDS = ("run", "chat", "plan", "bench")


def main(arguments: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else None
    try:
        options = _parser(command).parse_args(arguments)
        options.command = command or _default_command(options)
        return _COMMANDS[options.command](options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


# --- Options ----------------------------------------------------------------


def parse_size(text: str) -> float:
    """GB (10^9 bytes) of "2", "1500MB", "1.5GiB"; ValueError for anything else."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"--ram: {text!r} is no size (2, 1500MB, 1.5GiB, auto)")
    number, unit, binary = float(match[1]), match[2].upper(), bool(match[3])
    if not unit:
        unit = "G" if not text.strip().upper().endswith("B") else ""
    power = " KMGT".index(unit) if unit else 0
    return number * (1024 if binary else 1000) ** power / 1e9


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlx_flash",
        description="Runs any model of mlx-lm in a budget. Commands: " + ", ".join(COMMANDS),
    )
    add = parser.add_argument
    add("text", nargs="?", help="the prompt")
    add("--model", required=True, metavar="M", help="folder, or hub id org/name")
    add("--ram", default="auto", metavar="SIZE", help="of the process, beyond Python itself")
    add("--kernels", choices=("auto", "fast", "stock"), default="auto")
    add("--threads", type=int, default=0, metavar="N")
    add("--kv-quant", type=int, choices=(0, 4, 8), default=0)
    add("--kv-dir", metavar="DIR", help="old keys and values go to a file there")
    add("--moe-top-k", type=int, metavar="N")
    add("--no-pipeline", action="store_true", help="read a tile when it is asked for")
    add("--prompt", metavar="TEXT")
    add("--prompt-file", metavar="F")
    add("--prompt-ids", metavar="1,2,3")
    add("--system", metavar="TEXT")
    add("--raw", action="store_true", help="no chat template")
    add("--max-tokens", type=int, default=256, metavar="N")
    add("--temp", type=float, default=0.0)
    add("--top-p", type=float, default=0.0)
    add("--top-k", type=int, default=0)
    add("--min-p", type=float, default=0.0)
    add("--repeat-penalty", type=float)
    add("--seed", type=int)
    add("--stop", action="append", default=[], metavar="S")
    add("--json", action="store_true")
    add("--stats", action="store_true")
    add("--quiet", "-q", action="store_true")
    add("--debug", action="store_true")
    add("--trust-remote-code", action="store_true", help="the model folder may bring code")
    if command is not None:
        parser.prog += f" {command}"
    return parser


def _default_command(options: argparse.Namespace) -> str:
    given = (options.text, options.prompt, options.prompt_file, options.prompt_ids)
    if any(value is not None for value in given) or not sys.stdin.isatty():
        return "run"
    return "chat"


def _config(options: argparse.Namespace) -> FlashConfig:
    auto = options.ram.strip().lower() == "auto"
    return FlashConfig(
        ram_budget_gb=None if auto else parse_size(options.ram),
        kernels=options.kernels,
        threads=options.threads,
        kv_cache_quantized=options.kv_quant != 0,
        kv_cache_bits=options.kv_quant or 8,
        disk_kv_enabled=options.kv_dir is not None,
        disk_kv_dir=options.kv_dir,
        moe_top_k_override=options.moe_top_k,
        pipelined_execution=not options.no_pipeline,
        debug=options.debug,
    )


def _prompt(options: argparse.Namespace, tokenizer: Any) -> str | list[int] | list[dict[str, str]]:
    if options.prompt_ids is not None:
        return [int(word) for word in options.prompt_ids.split(",")]
    text = options.prompt if options.prompt is not None else options.text
    if options.prompt_file not in (None, "-"):
        text = Path(options.prompt_file).read_text(encoding="utf-8")
    elif text in (None, "-"):
        text = sys.stdin.read()
    if not text:
        _refuse("the prompt is empty")
    if options.raw or getattr(tokenizer, "chat_template", None) is None:
        return text
    system = [{"role": "system", "content": options.system}] if options.system else []
    return [*system, {"role": "user", "content": text}]


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "max_tokens": options.max_tokens,
        "temp": options.temp,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "repetition_penalty": options.repeat_penalty,
        "seed": options.seed,
    }


# --- Commands ---------------------------------------------------------------


class _Opened:
    """with _Opened(options) as opened: the model, its tokenizer, seconds."""

    def __init__(self, options: argparse.Namespace):
        from .manager import FlashManager  # imports mlx: not for --help

        self._manager = FlashManager(_config(options))
        begin = time.perf_counter()
        self.model, self.tokenizer = self._manager.load(
            options.model, trust_remote_code=options.trust_remote_code
        )
        self.load_s = time.perf_counter() - begin

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()


def _answer(
    opened: _Opened, options: argparse.Namespace, prompt: Any, **more: Any
) -> dict[str, Any]:
    """Streams an answer to stdout, unless --json; what is reported of it."""
    text, tokens, stats, finish, first = "", [], {}, None, None
    begin = time.perf_counter()
    for segment in opened.model.stream_generate(prompt, **_sampling(options), **more):
        first = first or time.perf_counter() - begin
        shown = str(segment)
        stop = min((at for s in options.stop if (at := (text + shown).find(s)) >= 0), default=-1)
        if stop >= 0:
            shown = (text + shown)[len(text) : stop]
        text += shown
        tokens.append(segment.token)
        stats, finish = segment.stats, segment.finish_reason
        if not options.json:
            print(shown, end="", flush=True)
        if stop >= 0:
            finish = "stop"
            break
    if not options.json:
        print()
    generated = max(1, len(tokens))
    plan = opened.model.plan()
    return {
        "model": options.model,
        "weights_bytes": plan["weights_bytes"],
        "ram_bytes": plan["ram_bytes"],
        "pinned_bytes": stats.get("pinned_bytes", 0),
        "prompt_tokens": stats.get("prompt_tokens", 0),
        "generated_tokens": len(tokens),
        "tokens": tokens,
        "text": text,
        "finish_reason": finish,
        "load_s": opened.load_s,
        "ttft_s": first or 0.0,
        "prefill_tok_s": stats.get("prompt_tok_s", 0.0),
        "decode_tok_s": stats.get("decode_tok_s", 0.0),
        "pass_bytes": plan["pass_bytes"],
        "bytes_read": stats.get("bytes_read", 0),
        "bytes_read_per_token": stats.get("bytes_read", 0) / generated,
        "io_wait_s": stats.get("io_wait_s", 0.0),
        "compute_s": stats.get("compute_s", 0.0),
        "peak_rss_bytes": _peak(),
        "kernels": plan["kernels"],
        "threads": plan["threads"],
    }


def _peak() -> int:
    from . import _engine

    return _engine.peak_resident_bytes()


def _report(options: argparse.Namespace, report: dict[str, Any]) -> None:
    if options.json:
        print(json.dumps(report))
    if options.stats and not options.quiet:
        for name, value in report.items():
            if name not in ("tokens", "text"):
                shown = f"{value:.3f}" if isinstance(value, float) else str(value)
                print(f"{name:>24} {shown}", file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    with _Opened(options) as opened:
        report = _answer(opened, options, _prompt(options, opened.tokenizer))
        _report(options, report)
    return 0


def _chat(options: argparse.Namespace) -> int:
    with _Opened(options) as opened:
        system = [{"role": "system", "content": options.system}] if options.system else []
        messages: list[dict[str, str]] = system
        while True:
            try:
                text = input("> ")
            except EOFError:
                return 0
            if text.strip() in ("/exit", "/quit"):
                return 0
            if not text.strip():
                continue
            messages.append({"role": "user", "content": text})
            report = _answer(opened, options, messages)
            messages.append({"role": "assistant", "content": report["text"]})
            _report(options, report)


def _plan(options: argparse.Namespace) -> int:
    with _Opened(options) as opened:
        plan = opened.model.plan() | {"fits": True}
        if options.json:
            print(json.dumps(plan))
        else:
            for name, value in plan.items():
                shown = f"{value / 1e6:.1f} MB" if name.endswith("_bytes") else str(value)
                print(f"{name:>24} {shown}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    with _Opened(options) as opened:
        prompt = _prompt(options, opened.tokenizer) if options.prompt_ids else [1] * 64
        report = _answer(opened, options, prompt)
        options.stats = not options.json
        _report(options, report)
    return 0


_COMMANDS = {"run": _run, "chat": _chat, "plan": _plan, "bench": _bench}


if __name__ == "__main__":
    sys.exit(main())
