#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Decoding under memory limits and a read throttle, beside the law B / (M - R).

    bench/law.py --flash BIN [--limits 3500,2500,1500,600] [--reads 400,800]
        [--runs 3] [--tokens 5] [--out bench/results/law.jsonl] MODEL [-- FLAGS]

Sizes are in MB. Each case is one control group (bench/limited.sh, as root): a
`plan`, then RUNS processes of `bench`, each of which reports its median. A line
of JSON for each case goes to --out; a table to stdout. The token ids of all
cases must be the same: if they are not, the exit code is 1. FLAGS go to plan
and bench as they are.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

LIMITED = str(Path(__file__).with_name("limited.sh"))


def machine():
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    flags = set(re.search(r"flags\s*: (.*)", text).group(1).split())
    isa = "AVX-512 VNNI" if "avx512_vnni" in flags else (
        "AVX-512" if "avx512f" in flags else "AVX2")
    return f"{name.group(1) if name else 'unknown'}, {isa}, {os.cpu_count()} cores"


def limited(memory, read, model, command):
    """(JSON of the command, peak of its group). An ended one is an error."""
    done = subprocess.run(
        [LIMITED, "--memory", f"{memory}MB", "--read", f"{read}MB", "--disk",
         model, "--", *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n"
                         f"{done.stderr}")
    peak = re.search(r"limited.sh: peak (\d+)", done.stderr)
    return (json.loads(done.stdout.splitlines()[-1]),
            int(peak.group(1)) if peak else 0)


def measure(options, memory, read):
    model = ["-m", options.model, *options.flags]
    # As bench asks for: the prompt and the answer.
    context = ["--ctx", str(4 + options.tokens)]
    plan, _ = limited(memory, read, options.model,
                      [options.flash, "plan", *model, *context, "--json"])
    runs = [limited(memory, read, options.model,
                    [options.flash, "bench", *model, "--prompt-tokens", "4",
                     "-n", str(options.tokens), "--json", "-q"])
            for _ in range(options.runs)]
    report = sorted((r for r, _ in runs), key=lambda r: r["decode_tok_s"])[
        (len(runs) - 1) // 2]
    need = report["pass_bytes"] - report["pinned_bytes"]
    law = read * 1e6 / need
    details = report["plan"]
    rest = memory * 1e6 - details["runtime_bytes"] - details["kv_bytes"]
    rest -= details["ring_bytes"]
    peaks = [peak for _, peak in runs]
    return {
        "model": report["model"],
        "limit_mb": memory,
        "read_mb_s": read,
        "budget_mb": report["ram_bytes"] / 1e6,
        "pinned_mb": report["pinned_bytes"] / 1e6,
        "pinned_of_rest": report["pinned_bytes"] / rest,
        "pass_mb": report["pass_bytes"] / 1e6,
        "read_of_need": report["bytes_read_per_token"] / need,
        "tok_s": report["decode_tok_s"],
        "tok_s_runs": [r["decode_tok_s"] for r, _ in runs],
        "law_tok_s": law,
        "of_law": report["decode_tok_s"] / law,
        "disk_share": (report["decode_tok_s"] * report["bytes_read_per_token"]
                       / (read * 1e6)),
        "plan_tok_s": plan["predicted_decode_tok_s"],
        "plan_peak_mb": plan["predicted_peak_bytes"] / 1e6,
        "peak_mb": max(r["peak_rss_bytes"] for r, _ in runs) / 1e6,
        "group_peak_mb": max(peaks) / 1e6,
        "load_s": statistics.median(r["load_s"] for r, _ in runs),
        "ttft_s": report["ttft_s"],
        "storage_read_mb": report["process_read_bytes"] / 1e6,
        "tokens": report["tokens"],
        "same_tokens": len({tuple(r["tokens"]) for r, _ in runs}) == 1,
        "machine": machine(),
        "flags": options.flags,
    }


HEAD = ("| limit, MB | B, MB/s | R, MB | R / rest | read / (M - R) | tok/s "
        "| law | of the law | of the disk | plan says | peak, MB (plan) "
        "| group's peak | load, s |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|")


def line(row):
    return (f"| {row['limit_mb']} | {row['read_mb_s']} | {row['pinned_mb']:.0f} "
            f"| {row['pinned_of_rest']:.3f} | {row['read_of_need']:.3f} "
            f"| {row['tok_s']:.4g} | {row['law_tok_s']:.4g} "
            f"| {row['of_law']:.3f} | {row['disk_share']:.3f} "
            f"| {row['plan_tok_s']:.4g} "
            f"| {row['peak_mb']:.0f} ({row['plan_peak_mb']:.0f}) "
            f"| {row['group_peak_mb']:.0f} "
            f"| {row['load_s']:.2f} |")


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flash", required=True)
    parser.add_argument("--limits", type=numbers, default=[3500, 2500, 1500, 600])
    parser.add_argument("--reads", type=numbers, default=[400, 800])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--out")
    parser.add_argument("model")
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()
    rows = []
    print(HEAD)
    for read in options.reads:
        for memory in options.limits:
            rows.append(measure(options, memory, read))
            print(line(rows[-1]), flush=True)
            if options.out:
                with open(options.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    same = (all(row["same_tokens"] for row in rows)
            and len({tuple(row["tokens"]) for row in rows}) == 1)
    print("the same token ids in all runs" if same else "TOKEN IDS DIFFER")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
