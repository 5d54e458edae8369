#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Our tokenizers beside Hugging Face's `tokenizers`, in one run.

    bench/tokenizers.py TEXT_BENCH TEXT_FILE MODEL... [--turns N]

TEXT_BENCH is the program of that name, built with the benchmarks. MODEL is a
folder with a tokenizer.json, or a .gguf file (ours alone). Each turn starts a
process of ours, two of theirs and one of ours again; printed are medians, one
thread each: load time, resident memory above the process's own (peak while
loading, kept after), speed of encoding and its ratio.

Needs the PyPI package `tokenizers`; Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

THEIRS = """
import json, sys, time
from tokenizers import Tokenizer

def memory():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return [int(fields[k].split()[0]) * 1024 for k in ("VmRSS", "VmHWM")]

before = memory()[0]
start = time.perf_counter()
tokenizer = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
load = time.perf_counter() - start
kept, peak = memory()
data = open(sys.argv[2], "rb").read()
text = data.decode()
seconds = []
for _ in range(5):
    start = time.perf_counter()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    seconds.append(time.perf_counter() - start)
print(json.dumps({
    "load_ms": load * 1e3, "peak_mb": (peak - before) / 1e6,
    "kept_mb": (kept - before) / 1e6, "tokens": len(ids),
    "encode_mb_s": len(data) / 1e6 / sorted(seconds)[2]}))
"""
COLUMNS = ("load_ms", "peak_mb", "kept_mb", "encode_mb_s")


def measure(command):
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    environment["RAYON_NUM_THREADS"] = "1"
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def medians(rows):
    return {c: statistics.median(r[c] for r in rows) for c in COLUMNS}


def line(name, who, figures):
    values = "  ".join(f"{figures[c]:11.1f}" for c in COLUMNS)
    print(f"{name:16}  {who:6}  {values}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program")
    parser.add_argument("text")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    print(f"{'':24}  " + "  ".join(f"{c:>11}" for c in COLUMNS))
    for model in options.models:
        name = Path(model).name[:16]
        ours_command = [options.program, model, options.text]
        theirs_command = [sys.executable, "-c", THEIRS, model, options.text]
        ours, theirs = [], []
        for _ in range(options.turns):
            ours.append(measure(ours_command))
            if (Path(model) / "tokenizer.json").exists():
                theirs += [measure(theirs_command) for _ in range(2)]
            ours.append(measure(ours_command))
        line(name, "ours", medians(ours))
        if theirs:
            line(name, "theirs", medians(theirs))
            assert ours[0]["tokens"] == theirs[0]["tokens"]
            ratio = {c: medians(theirs)[c] / medians(ours)[c] for c in COLUMNS}
            ratio["encode_mb_s"] = 1 / ratio["encode_mb_s"]
            line("", "ratio", ratio)
    return 0


if __name__ == "__main__":
    sys.exit(main())
