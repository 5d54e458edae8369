#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Nothing about the answer depends on how it is computed.

    exactness_test.py --binary mlx-flash --work FOLDER

Through the command line, in `fast`: the logits of a prompt and of 32 decoded
tokens are the same bits with everything in memory, half of it and the least
that works, on one thread and on two, with the prompt in one piece and in
chunks of 1, 7 and 64. In `stock`: the same over budgets and threads, for the
same forward lengths. Counters prove that each variation took place, a flipped
byte that a difference would be seen.
"""

import argparse
import random
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import flash

PROMPT = 70
DECODED = 32
# Big enough for a ring of tiles to turn, small enough for a test.
CONFIG = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 6,
    "intermediate_size": 1472,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rms_norm_eps": 2e-3,
    "vocab_size": 3001,
    "max_position_embeddings": 512,
    "rope_theta": 7654.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
WINDOWS = {
    **CONFIG,
    "sliding_window": 40,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 2,
}


@dataclass
class Variation:
    name: str
    ram: str = "all"  # all, half or least
    threads: int = 1
    chunks: list = field(default_factory=lambda: [PROMPT, 1])
    kernels: str = "fast"

    def passes(self) -> int:
        """Forwards that the chunks make, if each is one pass."""
        left, count = PROMPT + DECODED, 0
        while left > 0:
            left -= self.chunks[min(count, len(self.chunks) - 1)]
            count += 1
        return count


def chunked(length: int) -> list:
    """The prompt in chunks of `length`, then token by token."""
    pieces = [length] * (PROMPT // length)
    return pieces + ([PROMPT % length] if PROMPT % length else []) + [1]


FAST = [
    Variation("two threads", threads=2),
    Variation("half the memory", ram="half"),
    Variation("least memory", ram="least"),
    Variation("chunks of 1", chunks=[1]),
    Variation("chunks of 7", chunks=chunked(7)),
    Variation("chunks of 64", chunks=chunked(64)),
    Variation("one chunk for all", chunks=[PROMPT + DECODED]),
    Variation("least, chunks of 1, two threads", "least", 2, [1]),
    Variation("least, chunks of 7", "least", 1, chunked(7)),
    Variation("half, chunks of 64, two threads", "half", 2, chunked(64)),
]
STOCK = [
    Variation("half the memory", ram="half", kernels="stock"),
    Variation("least memory, two threads", "least", 2, kernels="stock"),
]


class Suite:
    def __init__(self, binary: Path, folder: Path, ids: list, kernels: str):
        self.binary = binary
        self.folder = folder
        self.ids = ids
        self.kernels = kernels
        self.budgets = self.find_budgets()
        self.base, report = self.run(Variation("base", kernels=kernels))
        if report["stats"]["tiles_streamed"] or not report["stats"]["tiles_pinned"]:
            raise flash.Failure("with all memory tiles were streamed: no base")

    def find_budgets(self) -> dict:
        flags = ["--kernels", self.kernels, "--model", self.folder]
        plan = flash.call(self.binary, "plan", *flags, "--ram", "4GB")
        least = plan["ram_min_bytes"]
        if plan["pass_bytes"] < 8 << 20:
            raise flash.Failure("the model is too small to stream")
        half = least + plan["pass_bytes"] // 2
        return {"all": 4_000_000_000, "half": half, "least": least}

    def run(self, variation: Variation) -> tuple:
        return flash.score(
            self.binary,
            self.folder,
            self.ids,
            *("--kernels", variation.kernels),
            *("--ram", f"{self.budgets[variation.ram]}B"),
            *("--threads", variation.threads),
            *("--chunks", ",".join(map(str, variation.chunks))),
        )

    def check(self, variation: Variation) -> str:
        """Fails, or says what proves that the variation took place."""
        logits, report = self.run(variation)
        stats = report["stats"]
        if logits != self.base:
            raise flash.Failure(difference(self.base, logits, len(self.ids)))
        if variation.ram != "all":
            if stats["tiles_streamed"] == 0 or stats["ring_wraps"] == 0:
                raise flash.Failure(f"nothing was streamed: {stats}")
            if variation.ram == "least" and stats["tiles_pinned"] > 0:
                raise flash.Failure(f"tiles were pinned: {stats}")
            if variation.ram == "half" and stats["tiles_pinned"] == 0:
                raise flash.Failure(f"no tile was pinned: {stats}")
        elif stats["tiles_streamed"] > 0:
            raise flash.Failure(f"tiles were streamed: {stats}")
        # A budget may cut a chunk into several passes, never join two.
        if stats["passes"] < variation.passes():
            raise flash.Failure(f"chunks were joined: {stats}")
        if variation.ram == "all" and stats["passes"] != variation.passes():
            raise flash.Failure(f"not {variation.passes()} passes: {stats}")
        return (
            f"{stats['passes']} passes, {stats['tiles_pinned']} tiles pinned, "
            f"{stats['tiles_streamed']} streamed, {stats['ring_wraps']} ring wraps"
        )


def difference(want: bytes, got: bytes, rows: int) -> str:
    if len(want) != len(got):
        return f"{len(got)} bytes of logits, {len(want)} expected"
    width = 4 * CONFIG["vocab_size"]
    start = len(want) - rows * width
    differ = [
        row
        for row in range(rows)
        if want[start + row * width :][:width] != got[start + row * width :][:width]
    ]
    return f"{len(differ)} of {rows} rows differ, the first at position {differ[:1]}"


def flip_byte(folder: Path) -> Path:
    """A copy with one bit flipped, in the middle of a layer's matrix."""
    copy = folder.with_name(folder.name + "-flipped")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    path = copy / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    entry = flash.json.loads(data[8 : 8 + header])["model.layers.3.mlp.up_proj.weight"]
    begin, end = entry["data_offsets"]
    data[8 + header + (begin + end) // 2] ^= 0x40
    path.write_bytes(bytes(data))
    return copy


def check_model(binary: Path, folder: Path, kernels: str) -> list:
    rng = random.Random(folder.name)
    prompt = [rng.randrange(CONFIG["vocab_size"]) for _ in range(PROMPT)]
    run = ["run", "--model", folder, "--kernels", kernels, "--temp", 0]
    run += ["--prompt-ids", ",".join(map(str, prompt)), "--max-tokens", DECODED]
    answer = flash.call(binary, *run, "--ram", "4GB")["tokens"]
    if len(answer) != DECODED:
        raise flash.Failure(f"{len(answer)} tokens instead of {DECODED}")
    suite = Suite(binary, folder, prompt + answer, kernels)
    failures = []
    for variation in FAST if kernels == "fast" else STOCK:
        title = f"{folder.name}, {kernels}, {variation.name}"
        try:
            print(f"ok    {title}: {suite.check(variation)}", flush=True)
        except flash.Failure as failure:
            print(f"FAIL  {title}: {failure}", flush=True)
            failures.append(title)
    for ram in ("half", "least"):
        again = flash.call(binary, *run, "--ram", f"{suite.budgets[ram]}B")["tokens"]
        if again != answer:
            print(f"FAIL  {folder.name}, {kernels}: other tokens with {ram}")
            failures.append(ram)
    wrong = Suite.__new__(Suite)
    wrong.__dict__.update(suite.__dict__, folder=flip_byte(folder))
    try:
        wrong.check(Variation("flipped bit", ram="least", kernels=kernels))
    except flash.Failure as failure:
        print(f"ok    {folder.name}, {kernels}, a flipped bit is seen: {failure}")
    else:
        print(f"FAIL  {folder.name}, {kernels}: a flipped bit goes unseen")
        failures.append("flipped bit")
    shutil.rmtree(wrong.folder)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="for the models")
    args = parser.parse_args()
    models = {
        "bf16": dict(config=CONFIG, seed=1),
        "4bit": dict(config=CONFIG, seed=2, group=64),
        "4bit-windows": dict(config=WINDOWS, seed=3, group=64),
    }
    failures = []
    for name, recipe in models.items():
        folder = args.work / name
        shutil.rmtree(folder, ignore_errors=True)
        flash.write_model(folder, **recipe)
        kernels = ["fast", "stock"] if name == "4bit" else ["fast"]
        for mode in kernels:
            try:
                failures += check_model(args.binary.resolve(), folder, mode)
            except flash.Failure as failure:
                print(f"FAIL  {name}, {mode}: {failure}")
                failures.append(name)
    print(f"{len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
