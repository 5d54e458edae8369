#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What old blocks in fewer bits cost in perplexity.

  perplexity_test.py --binary mlx-flash [--model M] [--text F] [--tokens N]

The first 8,192 tokens of wikitext-2's test text in one sequence, the KV cache's
memory forced to its least, so that old blocks come back from the file. 8 bits
must be within 0.1 % of full precision; 4 bits is reported. Needs the default
model ($MLX_FLASH_CACHE) and the text ($MLX_FLASH_WIKITEXT, wiki.test.raw, or
../shared/testdata/corpora); without them the test says SKIP.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from passkey_test import ROOT, default_model

WIDEST = 0.001


def default_text():
    named = os.environ.get("MLX_FLASH_WIKITEXT")
    beside = (ROOT.parent / "shared" / "testdata" / "corpora" /
              "wikitext-2-raw.test.raw")
    path = Path(named) if named else beside
    if not path.is_file():
        print("SKIP: no text: set MLX_FLASH_WIKITEXT to wikitext-2's "
              "wiki.test.raw")
        sys.exit(77)
    return path


def call(*command, stdin=None):
    done = subprocess.run(list(map(str, command)), capture_output=True,
                          text=True, input=stdin, timeout=1500)
    if done.returncode != 0:
        sys.exit(f"failed: {done.stderr}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    args = parser.parse_args()
    model = args.model or default_model()
    text = (args.text or default_text()).read_text(encoding="utf-8")
    ids = call(args.binary, "tokenize", "--model", model, "--json", "--text",
               text[:args.tokens * 8])["ids"][:args.tokens]
    if len(ids) < args.tokens:
        sys.exit(f"the text has {len(ids)} tokens only")
    perplexity = {}
    for bits in (0, 8, 4):
        start = time.monotonic()
        score = call(args.binary, "score", "--model", model, "--ids",
                     ",".join(map(str, ids)), "--json", "--kernels", "fast",
                     "--kv-quant", bits, "--ctx", args.tokens, "--kv-ram",
                     "1MB")
        stats = score["stats"]
        if stats["kv_bytes_read"] == 0 or stats["kv_disk_bytes"] == 0:
            sys.exit(f"the old blocks were not read from disk: {stats}")
        perplexity[bits] = score["perplexity"]
        change = perplexity[bits] / perplexity[0] - 1
        print(f"{bits} bits: perplexity {perplexity[bits]:.6f} "
              f"({100 * change:+.4f} %), {time.monotonic() - start:.0f} s",
              flush=True)
    # Nothing but the bits of old blocks differs, and they do differ.
    if perplexity[8] == perplexity[0]:
        sys.exit("8 bits changed nothing: were quantised blocks seen?")
    if abs(perplexity[8] / perplexity[0] - 1) > WIDEST:
        sys.exit(f"8 bits is off by more than {100 * WIDEST} %")


if __name__ == "__main__":
    main()
