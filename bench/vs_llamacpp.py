#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Decoding beside llama.cpp's mmap, in one memory group and under one throttle.

    bench/vs_llamacpp.py --flash BIN --python PYTHON --memory 1500MB
        --read 800MB [--tokens 5] [--turns 1] [--out F.jsonl] MODEL.gguf

PYTHON is one that has the PyPI package llama-cpp-python (0.3.36 was used), in
an environment of its own. Every process runs by itself under bench/limited.sh
(as root), in the order ours, llama.cpp, llama.cpp, ours; printed are medians
of tokens/s, bytes read from the disk for each token, and the ratio. The page
cache is emptied before each: neither starts with what the other left.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

LIMITED = str(Path(__file__).with_name("limited.sh"))

THEIRS = """
import json, sys, time
from llama_cpp import Llama, llama_cpp

# Else it copies Q4_0 into memory of its own, in another order, and the group's
# limit ends it.
default_params = llama_cpp.llama_model_default_params

def mapped_params():
    params = default_params()
    params.use_extra_bufts = False
    return params

llama_cpp.llama_model_default_params = mapped_params

def read_bytes():
    fields = dict(line.split(":") for line in open("/proc/self/io"))
    return int(fields["read_bytes"])

model, tokens = sys.argv[1], int(sys.argv[2])
llama = Llama(model, n_ctx=512, n_threads=2, n_threads_batch=2,
              use_mmap=True, verbose=False)
llama.eval([1, 11, 21, 31])
start, read = time.perf_counter(), read_bytes()
for i in range(tokens):
    llama.eval([41 + i])
seconds = time.perf_counter() - start
print(json.dumps({"decode_tok_s": tokens / seconds,
                  "bytes_read_per_token": (read_bytes() - read) / tokens}))
"""


def empty_page_cache(path):
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(options, command):
    empty_page_cache(options.model)
    limits = ["--memory", options.memory, "--read", options.read]
    limits += ["--disk", options.model, "--"]
    done = subprocess.run(
        [LIMITED, *limits, *command], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flash", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--memory", required=True)
    parser.add_argument("--read", required=True)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", help="a line of JSON is added to it")
    parser.add_argument("model")
    options = parser.parse_args()
    # Of the first token after the prompt there is no time: one more.
    ours_command = [options.flash, "bench", "-m", options.model, "--json", "-q"]
    ours_command += ["--prompt-tokens", "4", "-n", str(options.tokens + 1)]
    theirs_command = [options.python, "-c", THEIRS, options.model]
    theirs_command += [str(options.tokens)]
    ours, theirs = [], []
    for _ in range(options.turns):
        ours.append(measure(options, ours_command))
        theirs.append(measure(options, theirs_command))
        theirs.append(measure(options, theirs_command))
        ours.append(measure(options, ours_command))
    rates, reads = [], []
    for who, rows in (("ours", ours), ("llama.cpp", theirs)):
        rates.append(statistics.median(r["decode_tok_s"] for r in rows))
        read = statistics.median(r["bytes_read_per_token"] for r in rows)
        reads.append(read)
        print(f"{who:10} {rates[-1]:.3f} tok/s, {read / 1e6:.0f} MB a token")
    print(f"ratio {rates[0] / rates[1]:.2f}")
    if options.out:
        row = {"memory": options.memory, "read": options.read,
               "model": Path(options.model).stem,
               "tok_s": rates[0], "llamacpp_tok_s": rates[1],
               "read_per_token_mb": reads[0] / 1e6,
               "llamacpp_read_per_token_mb": reads[1] / 1e6,
               "all": [[r["decode_tok_s"] for r in rows]
                       for rows in (ours, theirs)]}
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
