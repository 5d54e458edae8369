#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A small trained mixture answers as mlx-lm, whatever is in memory.

    tinymoe_test.py --binary mlx-flash --model FOLDER

FOLDER holds the model, goldens.json (logits) and greedy.json (200 tokens), both
of mlx-lm in float32. Without the folder the test is skipped.

Then the same bits at every budget from the smallest to everything, with look-ahead
and without, for chunks and threads; the counters show that the cache of experts
hit, missed and evicted.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import flash

LOGITS_LIMIT = 3e-4  # of the largest; weights are integer codes
PRECISE = ["--kernels", "fast", "--kv-type", "f32"]


def floats(npy: bytes, row: int, width: int) -> list:
    begin = 10 + int.from_bytes(npy[8:10], "little") + row * width * 4
    return list(flash.struct.unpack(f"<{width}f", npy[begin : begin + width * 4]))


def check_logits(binary: Path, model: Path) -> str:
    golden = json.loads((model / "goldens.json").read_text())
    ids, want = golden["prompt_ids"], golden["logits_last"]
    npy, _ = flash.score(binary, model, ids, *PRECISE)
    got = floats(npy, len(ids) - 1, len(want))
    error = max(abs(a - b) for a, b in zip(got, want)) / max(map(abs, want))
    if not error <= LOGITS_LIMIT:
        raise flash.Difference(f"logits differ by {error:.1e} of the largest")
    return f"logits within {error:.1e} of mlx-lm's"


def check_greedy(binary: Path, model: Path, ids: list, want: list) -> str:
    report = flash.call(
        binary,
        *("run", "--model", model, "--temp", 0, *PRECISE),
        *("--prompt-ids", ",".join(map(str, ids))),
        *("--max-tokens", len(want), "--ignore-eos"),
    )
    for i, (a, b) in enumerate(zip(report["tokens"], want)):
        if a != b:
            raise flash.Difference(f"token {i} is {a} instead of {b}")
    if len(report["tokens"]) != len(want):
        raise flash.Failure(f"{len(report['tokens'])} tokens of {len(want)}")
    return f"{len(want)} greedy tokens are mlx-lm's"


def budgets(binary: Path, model: Path) -> list:
    """From the smallest that works to one that holds everything."""
    plan = flash.call(binary, "plan", "--model", model, "--ctx", 128, "--ram", "1GB")
    least = plan["ram_min_bytes"]
    most = least + plan["weights_bytes"]
    step = (most - least) // 5
    return [least + i * step for i in range(6)] + [1_000_000_000]


class Same:
    """Runs that have to give the same logits."""

    def __init__(self, binary: Path, model: Path):
        rng = random.Random(5)
        self.binary, self.model = binary, model
        self.ids = [rng.randrange(2048) for _ in range(60)]
        self.base, self.plain = self.run("--chunks", "40,1")

    def run(self, *flags: object) -> tuple:
        return flash.score(
            self.binary, self.model, self.ids, "--kernels", "fast", "--ctx", 128, *flags
        )

    def check(self, *flags: object) -> dict:
        logits, report = self.run(*flags)
        if logits != self.base:
            raise flash.Difference("other logits")
        return report


def variations(binary: Path, model: Path) -> list:
    rams = [("--ram", ram, "--chunks", "40,1") for ram in budgets(binary, model)]
    least, middle = rams[0], rams[2]
    return rams + [
        (*least, "--no-look-ahead"),
        (*middle, "--no-look-ahead"),
        (*middle, "--threads", 1),
        (*middle, "--threads", 2),
        (*middle[:2], "--chunks", "1"),
        (*middle[:2], "--chunks", "7,1,30"),
        (*least[:2], "--chunks", "60"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()
    binary, model = args.binary.resolve(), args.model
    if not (model / "model.safetensors").exists():
        flash.skip(f"{model} is not there")
    golden = json.loads((model / "goldens.json").read_text())
    story = json.loads((model / "greedy.json").read_text())
    checks = [
        ("logits", lambda: check_logits(binary, model)),
        (
            "prose",
            lambda: check_greedy(binary, model, golden["prompt_ids"], golden["greedy"]),
        ),
        (
            "story",
            lambda: check_greedy(binary, model, story["prompt_ids"], story["greedy"]),
        ),
    ]
    same = Same(binary, model)
    for flags in variations(binary, model):
        checks.append((" ".join(map(str, flags)), lambda f=flags: check_same(same, f)))
    failures = 0
    for name, check in checks:
        try:
            print(f"ok    {name}: {check()}", flush=True)
        except flash.Failure as failure:
            print(f"FAIL  {name}: {failure}", flush=True)
            failures += 1
    print(f"{len(checks) - failures} of {len(checks)} checks")
    return 1 if failures else 0


def check_same(same: Same, flags: tuple) -> str:
    report = same.check(*flags)
    moe = report.get("experts")
    return "the same logits" + (f", {moe}" if moe else "")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except flash.Failure as failure:
        print(f"FAIL  {failure}")
        sys.exit(1)
