#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Greedy answers equal those mlx-lm gave in float32.

    greedy_test.py --binary mlx-flash --goldens testdata/goldens/X.json
                   [--model FOLDER_OR_FILE] [--text FILE]

The recordings come from tools/record_greedy.py. Without --model the default
model is looked up in the cache that `make run` fills; if it is not there the
test is skipped. --text: what the first answer has to read.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Optional

import flash

VARIATIONS = [
    ["--kernels", "fast"],
    ["--kernels", "fast", "--kv-type", "f32"],
]


def default_model(record: dict) -> Path:
    """The recorded file in the cache; skips the test where it is not."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    cache = Path(os.environ.get("MLX_FLASH_CACHE") or Path(home) / "mlx-flash")
    found = sorted(cache.rglob(record["model_file"])) if cache.is_dir() else []
    if not found:
        flash.skip(f"{record['model_file']} is not in {cache} (`make run` gets it)")
    digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if digest != record["model_sha256"]:
        raise flash.Failure(f"{found[0]} is another file than the recorded one")
    return found[0]


def mismatch(got: list, prompt: dict) -> Optional[str]:
    want = prompt["tokens"]
    for i, (a, b) in enumerate(zip(got, want)):
        if a != b:
            runner_up = "the runner-up" if a == prompt["runners_up"][i] else "neither"
            return (
                f"token {i} is {a} ({runner_up}) instead of {b}, "
                f"recorded gap {prompt['gaps'][i]}"
            )
    if len(got) != len(want):
        return f"{len(got)} tokens instead of {len(want)}"
    return None


def check(binary: Path, model: Path, prompt: dict, flags: list) -> Optional[str]:
    report = flash.call(
        binary,
        *("run", "--model", model, "--temp", 0),
        *("--prompt-ids", ",".join(map(str, prompt["ids"]))),
        *("--max-tokens", len(prompt["tokens"]) + (1 if prompt["stopped"] else 0)),
        *flags,
    )
    tokens = report["tokens"]
    reason = "stop" if prompt["stopped"] else "length"
    if prompt["stopped"] and len(tokens) == len(prompt["tokens"]) + 1:
        tokens = tokens[:-1]  # the end-of-text token, if it is listed
    failure = mismatch(tokens, prompt)
    if failure is None and report["finish_reason"] != reason:
        failure = f"finish_reason {report['finish_reason']} instead of {reason}"
    if failure is None and report["text"].strip() != prompt["text"].strip():
        failure = f"text {report['text']!r} instead of {prompt['text']!r}"
    return failure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--goldens", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    args = parser.parse_args()
    record = json.loads(args.goldens.read_text())
    model = args.model or default_model(record)
    if args.text and record["prompts"][0]["text"].strip() != args.text.read_text().strip():
        raise flash.Failure(f"{args.goldens} does not hold the text of {args.text}")
    failures = 0
    for flags in VARIATIONS:
        for prompt in record["prompts"]:
            title = f"{' '.join(flags)} {prompt['prompt']!r}"
            try:
                failure = check(args.binary.resolve(), model, prompt, flags)
            except flash.Failure as error:
                failure = str(error)
            print(f"FAIL  {title}: {failure}" if failure else f"ok    {title}", flush=True)
            failures += failure is not None
    runs = len(VARIATIONS) * len(record["prompts"])
    print(f"{runs - failures} of {runs} answers equal mlx-lm's")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except flash.Failure as failure:
        print(f"FAIL  {failure}")
        sys.exit(1)
