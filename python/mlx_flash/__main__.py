# SPDX-License-Identifier: MIT
"""python -m mlx_flash: the command mlx-flash for what only mlx-lm knows.

Flags (_options.py) and their meanings are those of the C++ command; exit code 2
means input that the user must change, 1 a failure while running.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from ._options import COMMANDS, ELSEWHERE, flash_config, parse_numbers, parser, refuse


def main(arguments: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments and arguments[0] in ELSEWHERE:
            command = arguments[0]
            refuse(f"python -m mlx_flash has no command {command}: {ELSEWHERE[command]}")
        if "--version" in arguments[:1]:
            from . import __version__

            print(__version__)
            return 0
        if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
            known = ", ".join(COMMANDS)
            refuse(
                f"unknown command {arguments[0]!r}: commands are {known}; "
                "a prompt goes after --prompt"
            )
        given = arguments.pop(0) if arguments and arguments[0] in COMMANDS else None
        command = given or _default_command(arguments)
        return _COMMANDS[command](parser(command).parse_args(arguments))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _default_command(arguments: list[str]) -> str:
    """`run` where there is a prompt, or stdin is no terminal."""
    if any(word in ("-h", "--help") for word in arguments) or not sys.stdin.isatty():
        return "run"
    known, _ = parser("run").parse_known_args(arguments)
    given = (known.text, known.prompt, known.prompt_file, known.prompt_ids)
    return "chat" if all(value is None for value in given) else "run"


class _Opened:
    """with _Opened(options) as opened: the model, its tokenizer, seconds."""

    def __init__(self, options: argparse.Namespace):
        config = flash_config(options)
        from .manager import FlashManager  # imports mlx: not for --help

        self._manager = FlashManager(config)
        begin = time.perf_counter()
        self.model, self.tokenizer = self._manager.load(
            options.model,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
        )
        self.load_s = time.perf_counter() - begin
        if config.max_kv_size is not None and hasattr(self.model, "make_cache"):
            self._manager.close()
            refuse("--kv-keep: this model makes its own caches, which nothing here cuts")
        self.name = options.model_name or Path(options.model).name
        if getattr(options, "ignore_eos", False) and self.tokenizer is not None:
            self.tokenizer.eos_token_ids = []

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def encode(self, prompt: Any) -> list[int]:
        """Ids of text, or of messages through the chat template."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            refuse("the model's folder has no tokenizer: give --prompt-ids")
        if isinstance(prompt, str):
            bos = tokenizer.bos_token
            special = bos is None or not prompt.startswith(bos)
            return list(tokenizer.encode(prompt, add_special_tokens=special))
        return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True))


def _text(given: str | None, file: str | None) -> str:
    if file not in (None, "-"):
        return Path(file).read_text(encoding="utf-8")
    if given not in (None, "-"):
        return given
    return sys.stdin.read().removesuffix("\n")


def _messages(system: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] if system else []


def _prompt(options: argparse.Namespace, opened: _Opened) -> list[int]:
    if options.prompt_ids is not None:
        return parse_numbers(options.prompt_ids, "--prompt-ids")
    text = _text(
        options.prompt if options.prompt is not None else options.text, options.prompt_file
    )
    if not text:
        refuse("the prompt is empty")
    if options.raw or getattr(opened.tokenizer, "chat_template", None) is None:
        return opened.encode(text)
    return opened.encode([*_messages(options.system), {"role": "user", "content": text}])


def _room(options: argparse.Namespace, prompt: int, wanted: int) -> int:
    """Tokens that an answer may have: --ctx bounds prompt and answer."""
    if options.ctx == 0 or options.kv_keep is not None:
        return wanted
    if prompt >= options.ctx:
        refuse(f"the prompt has {prompt} tokens, --ctx {options.ctx} holds no answer to it")
    return min(wanted, options.ctx - prompt)


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "temp": options.temp,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "repetition_penalty": options.repeat_penalty,
        "seed": options.seed,
    }


# --- An answer --------------------------------------------------------------


class _Answer:
    """Text as it grows: shown, and cut where a stop text begins. What may be the
    beginning of one waits."""

    def __init__(self, stops: list[str], show: bool):
        self._stops = [stop for stop in stops if stop]
        self._show = show
        self._shown = 0
        self.text = ""

    def add(self, piece: str) -> bool:
        """False: the answer ends here."""
        self.text += piece
        found = [at for stop in self._stops if (at := self.text.find(stop)) >= 0]
        if found:
            self.text = self.text[: min(found)]
        self._print(0 if found else self._pending())
        return not found

    def end(self) -> None:
        self._print(0)
        if self._show:
            print()

    def _pending(self) -> int:
        """Characters at the end that a stop text may begin with."""
        return max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), len(self.text) + 1))
                if self.text.endswith(stop[:n])
            ),
            default=0,
        )

    def _print(self, held: int) -> None:
        end = len(self.text) - held
        if self._show and end > self._shown:
            print(self.text[self._shown : end], end="", flush=True)
        self._shown = max(self._shown, end)


def _answer(
    opened: _Opened,
    ids: list[int],
    conversation: Any,
    max_tokens: int,
    sampling: dict[str, Any],
    answer: _Answer,
) -> dict[str, Any]:
    """Streams an answer; what is reported of it."""
    tokens: list[int] = []
    stats: dict[str, Any] = {}
    first: dict[str, Any] = {}
    finish, begin = None, time.perf_counter()
    before = opened.model.stats()["bytes_read"]
    for segment in conversation.answer(ids, max_tokens=max_tokens, **sampling):
        stats, finish = segment.stats, segment.finish_reason
        first = first or stats | {"ttft_s": time.perf_counter() - begin}
        tokens.append(segment.token)
        if not answer.add(str(segment)):
            finish = "stop"
            break
    answer.end()
    # The newest token has been chosen, and may not have been fed.
    held = conversation.cache[0].offset if hasattr(conversation.cache[0], "offset") else None
    fed = ids + tokens[:-1] if held is None else (ids + tokens)[:held]
    conversation.tokens = [int(token) for token in fed]
    prefill_bytes = first.get("bytes_read", before) - before
    decode_bytes = stats.get("bytes_read", before) - before - prefill_bytes
    decode_s = stats.get("seconds", 0.0) - first.get("seconds", 0.0)
    plan = opened.model.plan()
    return {
        "model": opened.name,
        "weights_bytes": plan["weights_bytes"],
        "ram_bytes": plan["ram_bytes"],
        "pinned_bytes": stats.get("pinned_bytes", 0),
        "prompt_tokens": len(ids),
        "generated_tokens": len(tokens),
        "tokens": tokens,
        "text": answer.text,
        "finish_reason": finish,
        "load_s": opened.load_s,
        "ttft_s": first.get("ttft_s", 0.0),
        "prefill_tok_s": stats.get("prompt_tok_s", 0.0),
        "decode_tok_s": stats.get("decode_tok_s", 0.0),
        "pass_bytes": plan["pass_bytes"],
        "bytes_read": stats.get("bytes_read", 0),
        "bytes_read_per_token": decode_bytes / max(1, len(tokens) - 1),
        "prefill_bytes_read": prefill_bytes,
        "io_wait_s": stats.get("io_wait_s", 0.0),
        "compute_s": stats.get("compute_s", 0.0),
        "disk_bytes_per_s": decode_bytes / decode_s if decode_s > 0 else 0.0,
        "peak_rss_bytes": _peak(),
        "kernels": plan["kernels"],
        "threads": plan["threads"],
        "cached_tokens": conversation.reused,
    }


def _peak() -> int:
    from . import _engine

    return _engine.peak_resident_bytes()


def _report(options: argparse.Namespace, report: dict[str, Any]) -> None:
    if getattr(options, "json", False):
        print(json.dumps(report))
    if getattr(options, "stats", False) and not options.quiet:
        for name, value in report.items():
            if not isinstance(value, (list, str)) or name in ("model", "kernels"):
                shown = f"{value:.3f}" if isinstance(value, float) else str(value)
                print(f"{name:>24} {shown}", file=sys.stderr)


def _conversation(options: argparse.Namespace, opened: _Opened) -> Any:
    from ._conversation import Conversation

    conversation = Conversation(opened.model)
    if getattr(options, "session", None) is not None:
        conversation.load(options.session)
    return conversation


# --- Commands ---------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    with _Opened(options) as opened:
        ids = _prompt(options, opened)
        limit = _room(options, len(ids), options.max_tokens)
        conversation = _conversation(options, opened)
        answer = _Answer(options.stop, not options.json)
        report = _answer(opened, ids, conversation, limit, _sampling(options), answer)
        _report(options, report)
        if options.session is not None:
            conversation.save(options.session)
    return 0


def _chat(options: argparse.Namespace) -> int:
    with _Opened(options) as opened:
        messages = _messages(options.system)
        conversation = _conversation(options, opened)
        asks = "> " if sys.stdin.isatty() else ""
        while True:
            try:
                text = input(asks)
            except EOFError:
                break
            if text.strip() in ("/exit", "/quit"):
                break
            if not text.strip():
                continue
            messages.append({"role": "user", "content": text})
            ids = opened.encode(messages)
            limit = _room(options, len(ids), options.max_tokens)
            answer = _Answer(options.stop, True)
            report = _answer(opened, ids, conversation, limit, _sampling(options), answer)
            messages.append({"role": "assistant", "content": report["text"]})
            _report(options, report)
        if options.session is not None:
            conversation.save(options.session)
    return 0


def _plan(options: argparse.Namespace) -> int:
    with _Opened(options) as opened:
        # What nothing here predicts is null: the disk has not been measured.
        unknown = {"kv_bytes": None, "predicted_decode_tok_s": None, "disk_bytes_per_s": None}
        plan = opened.model.plan() | unknown | {"fits": True}
        if options.json:
            print(json.dumps(plan))
            return 0
        for name, value in plan.items():
            if value is not None:
                shown = f"{value / 1e6:.1f} MB" if name.endswith("_bytes") else str(value)
                print(f"{name:>24} {shown}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    with _Opened(options) as opened:
        ids = [i % 64 + 1 for i in range(options.prompt_tokens)]
        if opened.tokenizer is not None:
            opened.tokenizer.eos_token_ids = []
        limit = _room(options, len(ids), options.max_tokens)

        def measure() -> dict[str, Any]:
            fresh = _conversation(options, opened)
            return _answer(opened, ids, fresh, limit, {"seed": 0}, _Answer([], False))

        if options.warm_up:
            measure()
        reports = sorted(
            (measure() for _ in range(options.runs)), key=lambda report: report["decode_tok_s"]
        )
        options.stats = options.stats or not options.json
        _report(options, reports[len(reports) // 2])
    return 0


def _score(options: argparse.Namespace) -> int:
    from ._score import score

    chunks = [] if options.chunks is None else parse_numbers(options.chunks, "--chunks")
    text = None
    if options.ids is None:
        given = options.text if options.text is not None else options.words
        text = _text(given, options.text_file)
        if not text:
            refuse("the text is empty")
    with _Opened(options) as opened:
        ids = opened.encode(text) if text is not None else parse_numbers(options.ids, "--ids")
        begin = time.perf_counter()
        logits = None
        if options.logits is not None:
            logits = _logits_file(options.logits, len(ids), opened)
        report = score(opened.model, ids, chunks, options.top, logits)
        seconds = time.perf_counter() - begin
        report |= {"model": opened.name, "peak_rss_bytes": _peak()}
        report["stats"] = opened.model.stats() | {"seconds": seconds}
        if options.json:
            print(json.dumps(report))
        elif len(ids) < 2:
            print("1 token: nothing to predict")
        else:
            print(
                f"{len(ids)} tokens | nll {report['nll_mean']:.6f} | "
                f"perplexity {report['perplexity']:.6f}"
            )
        if options.stats and not options.quiet:
            for name, value in report["stats"].items():
                print(f"{name:>24} {value}", file=sys.stderr)
    return 0


def _logits_file(path: str, tokens: int, opened: _Opened) -> Any:
    import mlx.core as mx
    import numpy

    width = opened.model(mx.array([[0]])).shape[-1]  # not evaluated
    return numpy.lib.format.open_memmap(path, "w+", numpy.float32, (tokens, width))


_COMMANDS = {"run": _run, "chat": _chat, "plan": _plan, "bench": _bench, "score": _score}


if __name__ == "__main__":
    sys.exit(main())
