#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Finds a number hidden in a long text, through old blocks read from disk.

  passkey_test.py --binary mlx-flash [--random N] [--model M] [--seed S]

The prompt is raw, about 1,088 tokens of SmolLM2; the KV cache's memory is
forced to its least, so that the key's tokens lie in blocks of the file. For
keys for which full precision finds all, 8 bits must find all; of random keys,
every one that full precision finds. 4 bits is reported. Needs the default
model ($MLX_FLASH_CACHE); without it the test says SKIP.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

HEAD = ("There is important info hidden inside a lot of irrelevant text. "
        "Find it and memorize it.\n")
FILLER = ("The grass is green. The sky is blue. The sun is yellow. Here we go. "
          "There and back again. ")
REPEATS = 43
DEPTHS = (0.1, 0.5, 0.9)
ROOT = Path(__file__).resolve().parent.parent.parent
FIXED_KEYS = (68213, 30457, 91526, 57904, 24871, 83160)


def prompt(key, depth, repeats=REPEATS):
    before = int(repeats * depth)
    return (HEAD + FILLER * before +
            f"The pass key is {key}. Remember it. {key} is the pass key. " +
            FILLER * (repeats - before) + "\nThe pass key is")


def default_model():
    found = subprocess.run([ROOT / "tools" / "run_default_model.sh", "--path"],
                           check=False, capture_output=True, text=True)
    if found.returncode:
        print(f"SKIP: {found.stderr.strip()}")
        sys.exit(77)
    return found.stdout.strip()


class Runner:
    def __init__(self, binary, model):
        self.binary, self.model = binary, model

    def answer(self, text, bits, on_disk):
        command = [self.binary, "run", "--model", self.model, "--raw",
                   "--prompt", text, "--temp", "0", "--max-tokens", "10",
                   "--json", "--kernels", "fast", "--kv-quant", str(bits),
                   "--ctx", "4096"]
        if on_disk:
            command += ["--kv-ram", "1MB"]
        done = subprocess.run(command, capture_output=True, text=True,
                              timeout=1500)
        if done.returncode != 0:
            sys.exit(f"failed: {done.stderr}")
        return json.loads(done.stdout)

    def find(self, key, depth, bits, repeats=REPEATS):
        result = self.answer(prompt(key, depth, repeats), bits, True)
        stats = result["stats"]
        # All blocks but the window are in the file and were read again for
        # each token: the key is 128 tokens or more from the end.
        if stats["kv_disk_bytes"] == 0 or (
                result["kv_bytes_read_per_token"] <
                0.9 * stats["kv_disk_bytes"]):
            sys.exit(f"the old blocks were not read from disk: {stats}")
        return str(key) in result["text"], result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model")
    parser.add_argument("--random", type=int, default=10)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    model = args.model or default_model()
    runner = Runner(args.binary, model)
    failures = []
    found = {0: 0, 8: 0, 4: 0}
    draw = random.Random(args.seed)
    keys = [(k, True) for k in FIXED_KEYS]
    keys += [(draw.randrange(10000, 100000), False)
             for _ in range(args.random)]
    for key, fixed in keys:
        for depth in DEPTHS:
            hit = {}
            for bits in found:
                hit[bits], result = runner.find(key, depth, bits)
                found[bits] += hit[bits]
            print(key, depth, hit, result["prompt_tokens"], flush=True)
            if fixed and not hit[0]:
                failures.append(f"{key} at {depth}: full precision fails")
            if hit[0] and not hit[8]:
                failures.append(f"{key} at {depth}: 8 bits does not find it")
    long = prompt(FIXED_KEYS[0], 0.5, 80)
    texts = [runner.answer(long, bits, True)["text"] for bits in (0, 8)]
    if texts[0] != texts[1]:
        failures.append(f"2,000 tokens: {texts[0]!r} and {texts[1]!r}")
    total = len(keys) * len(DEPTHS)
    print(f"found of {total}: full {found[0]}, 8 bits {found[8]}, "
          f"4 bits {found[4]}; seed {args.seed}")
    print("\n".join(failures))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
