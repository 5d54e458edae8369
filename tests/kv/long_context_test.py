#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""32,000 tokens of context in a model of 8B geometry, 256 MB of them in memory.

  long_context_test.py --binary mlx-flash --seed-session kv_seed_session
      [--model FILE] [--work FOLDER]

A session file of seeded blocks (8 bits) stands for a context that nobody has
to compute. In a control group of 1,500 MB with a disk of 1,000 MB/s: the
process stays within its budget and the cache within its own, each token reads
the cache from the disk, and a token takes at most 1.15 times the longer of
computing and reading. Without --model the model is written (4.5 GB). SKIP where
there is no room or no right to make control groups.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CONTEXT = 32768
CACHED = 32700
TOKENS = 12
RAM_MB, KV_MB, READ_MB = 1500, 256, 1000
SLOWER_MOST = 1.15


def skip(why):
    print(f"SKIP: {why}")
    sys.exit(77)


def call(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True,
                          text=True)
    if done.returncode == 125:
        skip(done.stderr.strip())
    if done.returncode != 0:
        sys.exit(f"failed: {done.stderr}")
    return done


def model_in(folder, given):
    if given:
        return given
    path = folder / "8b.gguf"
    call(sys.executable, ROOT / "tools" / "synth_gguf.py", path, "--geometry",
         "llama-8b", "--context", 2 * CONTEXT)
    return path


def check(report, peak):
    steps = report["generated_tokens"] - 1
    token = report["decode_s"] / steps
    compute = report["decode_compute_s"] / steps
    kv_read = report["kv_bytes_read_per_token"]
    disk = (report["bytes_read_per_token"] + kv_read) / (READ_MB * 1e6)
    slower = token / max(compute, disk)
    counters = report["stats"]
    print(f"{token:.3f} s/token; computing {compute:.3f}, reading {disk:.3f} "
          f"({kv_read / 1e6:.0f} MB of it KV): {slower:.2f} of the longer")
    print(f"peak {peak / 1e6:.1f} MB, KV in memory "
          f"{counters['kv_ram_bytes'] / 1e6:.1f} MB, on disk "
          f"{counters['kv_disk_bytes'] / 1e6:.1f} MB")
    wrong = []
    if report["cached_tokens"] < CACHED:
        wrong.append(f"only {report['cached_tokens']} tokens were taken up")
    if peak > RAM_MB * 1e6 or counters["kv_ram_bytes"] > KV_MB * 1e6:
        wrong.append("beyond the budget")
    if kv_read < 0.9 * counters["kv_disk_bytes"]:
        wrong.append("the cache was not read for each token")
    if slower > SLOWER_MOST:
        wrong.append(f"slower than {SLOWER_MOST} of the longer of the two")
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--seed-session", required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--work", type=Path, default=Path.cwd())
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    needed = (6 if args.model else 11) * 10**9
    if shutil.disk_usage(args.work).free < needed:
        skip(f"{needed} bytes of disk are needed")
    limited = [ROOT / "bench" / "limited.sh", "--memory", f"{RAM_MB}MB",
               "--read", f"{READ_MB}MB", "--disk", args.work, "--"]
    call(*limited, "true")  # whether it can be done at all
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        folder = Path(name)
        model = model_in(folder, args.model)
        session = folder / "session"
        call(args.seed_session, model, session, CACHED, 8)
        ids = ",".join(["1"] * CACHED + ["2"])
        done = call(*limited, args.binary, "run", "--model", model, "--ram",
                    f"{RAM_MB}MB", "--ctx", CONTEXT, "--kv-quant", 8,
                    "--kv-ram", f"{KV_MB}MB", "--kv-dir", folder / "kv",
                    "--session", session, "--prompt-ids", ids, "--temp", 0,
                    "--max-tokens", TOKENS, "--json")
    report = json.loads(done.stdout)
    peak = int(re.search(r"peak (\d+) bytes", done.stderr).group(1))
    wrong = check(report, peak)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
