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
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import flash

# Tokens of the prompt, tokens decoded after it.
LENGTHS = (70, 32)
SHORT = (12, 4)  # for MLX's own 4-bit operations, which take 0.2 s a token
SLACK_BYTES = 500_000
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
# Four times the bytes a value.
PLAIN = {
    **CONFIG,
    "hidden_size": 448,
    "num_hidden_layers": 4,
    "intermediate_size": 1152,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "vocab_size": 1201,
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
    chunk: Optional[int] = None  # of the prompt; None: in one piece
    whole: bool = False  # one chunk for the prompt and what is decoded

    def chunks(self, prompt: int, decoded: int) -> list:
        """Lengths of the forwards."""
        if self.whole:
            return [prompt + decoded]
        step = self.chunk or prompt
        pieces = [min(step, prompt - at) for at in range(0, prompt, step)]
        return pieces + [1] * decoded


FAST = [
    Variation("two threads", threads=2),
    Variation("half the memory", "half"),
    Variation("least memory", "least"),
    Variation("chunks of 1", chunk=1),
    Variation("chunks of 7", chunk=7),
    Variation("chunks of 64", chunk=64),
    Variation("one chunk for all", whole=True),
    Variation("least, chunks of 1, two threads", "least", 2, 1),
    Variation("least, chunks of 7", "least", chunk=7),
    Variation("half, chunks of 64, two threads", "half", 2, 64),
]
# MLX's operations may change bits with the chunk: these keep the lengths.
STOCK = [
    Variation("half the memory", "half"),
    Variation("least memory, two threads", "least", 2),
]


class Suite:
    def __init__(self, binary: Path, folder: Path, kernels: str, lengths: tuple):
        self.binary = binary
        self.folder = folder
        self.kernels = kernels
        self.lengths = lengths
        self.budgets = self.find_budgets()
        config = flash.json.loads((folder / "config.json").read_text())
        rng = random.Random(folder.name)
        self.prompt = [rng.randrange(config["vocab_size"]) for _ in range(lengths[0])]
        self.answer = self.generate("all")
        if len(self.answer) != lengths[1]:
            raise flash.Failure(f"{len(self.answer)} tokens, {lengths[1]} asked for")
        self.base, report = self.run(Variation("base"))
        if report["stats"]["tiles_streamed"] or not report["stats"]["tiles_pinned"]:
            raise flash.Failure("with all memory tiles were streamed: no base")

    def find_budgets(self) -> dict:
        flags = ["--kernels", self.kernels, "--model", self.folder]
        plan = flash.call(self.binary, "plan", *flags, "--ram", "4GB")
        # What the program itself takes differs a little from run to run.
        least = plan["ram_min_bytes"] + SLACK_BYTES
        if plan["pass_bytes"] < 8 << 20:
            raise flash.Failure("the model is too small to stream")
        half = least + plan["pass_bytes"] // 2
        return {"all": 4_000_000_000, "half": half, "least": least}

    def generate(self, ram: str) -> list:
        return flash.call(
            self.binary,
            *("run", "--model", self.folder, "--kernels", self.kernels, "--temp", 0),
            *("--prompt-ids", ",".join(map(str, self.prompt))),
            *("--max-tokens", self.lengths[1]),
            *("--ram", f"{self.budgets[ram]}B"),
        )["tokens"]

    def run(self, variation: Variation) -> tuple:
        return flash.score(
            self.binary,
            self.folder,
            self.prompt + self.answer,
            *("--kernels", self.kernels),
            *("--ram", f"{self.budgets[variation.ram]}B"),
            *("--threads", variation.threads),
            *("--chunks", ",".join(map(str, variation.chunks(*self.lengths)))),
        )

    def check(self, variation: Variation) -> str:
        """Fails, or says what proves that the variation took place."""
        logits, report = self.run(variation)
        stats = report["stats"]
        if logits != self.base:
            raise flash.Difference(self.difference(logits))
        if variation.ram != "all":
            if stats["tiles_streamed"] == 0 or stats["ring_wraps"] == 0:
                raise flash.Failure(f"nothing was streamed: {stats}")
            most_pinned = stats["tiles_streamed"] < 3 * stats["tiles_pinned"]
            if variation.ram == "least" and most_pinned:
                raise flash.Failure(f"much was pinned: {stats}")
            if variation.ram == "half" and stats["tiles_pinned"] == 0:
                raise flash.Failure(f"no tile was pinned: {stats}")
        elif stats["tiles_streamed"] > 0:
            raise flash.Failure(f"tiles were streamed: {stats}")
        # A budget may cut a chunk into several passes, never join two.
        passes = len(variation.chunks(*self.lengths))
        if stats["passes"] < passes:
            raise flash.Failure(f"chunks were joined: {stats}")
        if variation.ram == "all" and stats["passes"] != passes:
            raise flash.Failure(f"not {passes} passes: {stats}")
        return (
            f"{stats['passes']} passes, {stats['tiles_pinned']} tiles pinned, "
            f"{stats['tiles_streamed']} streamed, {stats['ring_wraps']} ring wraps"
        )

    def difference(self, logits: bytes) -> str:
        if len(logits) != len(self.base):
            return f"{len(logits)} bytes of logits, {len(self.base)} expected"
        rows = sum(self.lengths)
        begin = 10 + int.from_bytes(logits[8:10], "little")  # .npy's header
        width = (len(logits) - begin) // rows
        starts = range(begin, len(logits), width)
        differ = [
            row
            for row, at in enumerate(starts)
            if self.base[at : at + width] != logits[at : at + width]
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


def check_model(binary: Path, folder: Path, kernels: str, lengths: tuple) -> int:
    """The number of failures."""
    suite = Suite(binary, folder, kernels, lengths)
    failures = 0

    def tell(ok: bool, text: str) -> None:
        nonlocal failures
        failures += not ok
        verdict = "ok  " if ok else "FAIL"
        print(f"{verdict}  {folder.name}, {kernels}, {text}", flush=True)

    for variation in FAST if kernels == "fast" else STOCK:
        try:
            tell(True, f"{variation.name}: {suite.check(variation)}")
        except flash.Failure as failure:
            tell(False, f"{variation.name}: {failure}")
    for ram in ("half", "least"):
        try:
            same = suite.generate(ram) == suite.answer
            tell(same, f"{ram}: {'the same' if same else 'other'} tokens")
        except flash.Failure as failure:
            tell(False, f"{ram}: {failure}")
    suite.folder = flip_byte(folder)
    try:
        suite.check(Variation("flipped bit", "least"))
        tell(False, "a flipped bit goes unseen")
    except flash.Difference as difference:
        tell(True, f"a flipped bit is seen: {difference}")
    except flash.Failure as failure:
        tell(False, f"with a flipped bit: {failure}")
    shutil.rmtree(suite.folder)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="for the models")
    args = parser.parse_args()
    models = [
        ("bf16", dict(config=PLAIN, seed=1), {"fast": LENGTHS, "stock": LENGTHS}),
        ("4bit", dict(config=CONFIG, seed=2, group=64), {"fast": LENGTHS, "stock": SHORT}),
        ("4bit-windows", dict(config=WINDOWS, seed=3, group=64), {"fast": LENGTHS}),
    ]
    failures = 0
    for name, recipe, modes in models:
        folder = args.work / name
        shutil.rmtree(folder, ignore_errors=True)
        flash.write_model(folder, **recipe)
        for kernels, lengths in modes.items():
            try:
                failures += check_model(args.binary.resolve(), folder, kernels, lengths)
            except flash.Failure as failure:
                print(f"FAIL  {name}, {kernels}: {failure}")
                failures += 1
    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
