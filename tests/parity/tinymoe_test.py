#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A small trained mixture answers as mlx-lm, whatever is in memory.

    tinymoe_test.py --binary mlx-flash --model FOLDER --work FOLDER [--published FOLDER]

FOLDER holds the model, goldens.json (logits), greedy.json (200 tokens) and
greedy.txt (their text), all of mlx-lm in float32. `published`: the same model
in bf16 with a tensor for each expert; left out where it is not there.

Then the same bits at every budget from the smallest to everything, with look-ahead
and without, for chunks, threads and a tensor for each expert; the counters show
that the cache of experts hit, missed and evicted where it has to.
"""

import argparse
import json
import os
import random
import shutil
import struct
import sys
from pathlib import Path
from typing import Optional

import flash

CODED_LIMIT = 3e-4  # of the largest logit; weights are integer codes
FLOAT_LIMIT = 1e-5
PRECISE = ["--kernels", "fast", "--kv-type", "f32"]
CONTEXT = 128
SLABS = 6 * 32
STORY_TOKENS_SHORT = 60  # of the runs at many budgets


def floats(npy: bytes, row: int, width: int) -> list:
    begin = 10 + int.from_bytes(npy[8:10], "little") + row * width * 4
    return list(struct.unpack(f"<{width}f", npy[begin : begin + width * 4]))


def check_logits(binary: Path, model: Path, limit: float) -> str:
    golden = json.loads((model / "goldens.json").read_text())
    fed = golden["prompt_ids"] + golden["greedy"][:8]
    npy, _ = flash.score(binary, model, fed, *PRECISE)
    worst = 0.0
    for at, name in ((len(golden["prompt_ids"]), "logits_last"), (len(fed), "logits_step8")):
        want = golden[name]
        got = floats(npy, at - 1, len(want))
        error = max(abs(a - b) for a, b in zip(got, want)) / max(map(abs, want))
        if not error <= limit:
            raise flash.Difference(f"{name} differ by {error:.1e} of the largest")
        worst = max(worst, error)
    return f"logits within {worst:.1e} of mlx-lm's"


def generate(binary: Path, model: Path, ids: list, count: int, *flags: object) -> dict:
    return flash.call(
        binary,
        *("run", "--model", model, "--temp", 0, "--no-learn", *PRECISE),
        *("--prompt-ids", ",".join(map(str, ids))),
        *("--max-tokens", count, "--ignore-eos", *flags),
    )


def same_tokens(got: list, want: list) -> None:
    for i, (a, b) in enumerate(zip(got, want)):
        if a != b:
            raise flash.Difference(f"token {i} is {a} instead of {b}")
    if len(got) != len(want):
        raise flash.Failure(f"{len(got)} tokens of {len(want)}")


def check_prose(binary: Path, model: Path) -> str:
    golden = json.loads((model / "goldens.json").read_text())
    want = golden["greedy"]
    report = generate(binary, model, golden["prompt_ids"], len(want))
    same_tokens(report["tokens"], want)
    return f"{len(want)} greedy tokens are mlx-lm's"


def check_story(binary: Path, model: Path, *flags: object) -> str:
    story = json.loads((model / "greedy.json").read_text())
    want = story["greedy"]
    report = generate(binary, model, story["prompt_ids"], len(want), *flags)
    same_tokens(report["tokens"], want)
    text = story["prompt"] + report["text"]
    # Special tokens are no text for us.
    wanted = (model / "greedy.txt").read_text().replace("<|endoftext|>", "")
    if text.rstrip("\n") != wanted.rstrip("\n"):
        raise flash.Difference(f"the text is another one: {text[:200]!r}")
    return f"{len(want)} greedy tokens and their text are mlx-lm's"


def budgets(binary: Path, model: Path) -> list:
    """From the smallest that works to one that holds everything, as --ram takes
    them: a number without a unit would be gigabytes."""
    plan = flash.call(
        binary, "plan", "--model", model, "--ctx", CONTEXT, *PRECISE, "--ram", "1GB"
    )
    least, experts = plan["ram_min_bytes"], plan["expert_bytes"]
    some = [f"{least + experts * i // 16}B" for i in (0, 1, 2, 4, 8, 12)]
    return some + ["1GB"]


class Same:
    """Runs that have to give the same logits."""

    def __init__(self, binary: Path, model: Path):
        rng = random.Random(5)
        self.binary, self.model = binary, model
        self.ids = [rng.randrange(2048) for _ in range(60)]
        self.base, _ = self.run(model, "--chunks", "40,1")

    def run(self, model: Path, *flags: object) -> tuple:
        return flash.score(
            self.binary, model, self.ids, "--kernels", "fast", "--ctx", CONTEXT, *flags
        )

    def check(self, flags: tuple, model: Optional[Path] = None) -> str:
        logits, report = self.run(model or self.model, *flags)
        if logits != self.base:
            raise flash.Difference("other logits")
        experts = report["stats"]["experts"]
        return (
            f"the same logits, {experts['hits']} hits of {experts['used']}, "
            f"{experts['evictions']} evictions"
        )


def variations(rams: list) -> list:
    ways = [("--ram", ram, "--chunks", "40,1") for ram in rams]
    least, middle = ways[0], ways[len(ways) // 2]
    return ways + [
        (*least, "--no-look-ahead"),
        (*middle, "--no-look-ahead"),
        (*middle, "--threads", 1),
        (*middle, "--threads", 2),
        (*middle[:2], "--chunks", "1"),
        (*middle[:2], "--chunks", "7,1,30"),
        (*least[:2], "--chunks", "60"),
    ]


def check_counters(binary: Path, model: Path, rams: list) -> str:
    """Look-ahead is off: what it reads depends on the clock."""
    story = json.loads((model / "greedy.json").read_text())
    want = story["greedy"][:STORY_TOKENS_SHORT]
    shares, uses = [], set()
    for ram in rams:
        report = generate(
            binary, model, story["prompt_ids"], len(want),
            *("--ram", ram, "--ctx", CONTEXT, "--no-look-ahead"),
        )
        same_tokens(report["tokens"], want)
        experts = report["stats"]["experts"]
        uses.add((experts["used"], experts["used_bytes"]))
        shares.append((experts["cache_bytes"], experts["hits"] / experts["used"]))
        misses = experts["used"] - experts["hits"]
        held = misses - experts["evictions"]
        fits = ram == rams[-1]
        if misses == 0 or held < 0 or (experts["evictions"] > 0) == fits:
            raise flash.Failure(f"{ram}: {experts}")
        if fits and (misses > SLABS or experts["hits"] == 0):
            raise flash.Failure(f"with all in memory: {experts}")
    if len(uses) != 1:
        raise flash.Failure(f"the budget changes what is used: {uses}")
    # By what was in memory: what the program itself holds differs from run to run.
    shares = [share for _, share in sorted(shares)]
    if not (shares[0] < 0.35 and shares[-1] > 0.8):
        raise flash.Failure(f"hit rates {shares}")
    if any(b < a - 0.03 for a, b in zip(shares, shares[1:])):
        raise flash.Failure(f"more memory, fewer hits: {shares}")
    return "hit rates " + ", ".join(f"{share:.2f}" for share in shares)


def check_prompt(binary: Path, model: Path, ram: str) -> str:
    """Each expert that any row of a forward needs is read once for all of them."""
    ids = [(i * 37 + 11) % 2048 for i in range(240)]
    flags = ("--kernels", "fast", "--ctx", 256, "--ram", ram, "--no-learn")
    _, report = flash.score(
        binary, model, ids, *flags, "--no-look-ahead", "--chunks", len(ids)
    )
    stats = report["stats"]
    experts, passes = stats["experts"], stats["passes"]
    slab = experts["used_bytes"] / experts["used"]
    # Direct reads are of whole sectors: a fifth more of such small ones.
    most = 1.3 * (experts["used"] - experts["hits"]) * slab
    if experts["used"] > passes * SLABS or experts["bytes_read"] > most:
        raise flash.Failure(f"{passes} passes: {experts}")
    return f"{experts['used']} experts used, {experts['bytes_read']} bytes read"


def check_learnt(binary: Path, model: Path, ram: str, cache: Path) -> str:
    """What is learnt is kept for the next run, for this model alone."""
    folder = cache / "experts"
    shutil.rmtree(folder, ignore_errors=True)
    story = json.loads((model / "greedy.json").read_text())
    ids = ",".join(map(str, story["prompt_ids"]))
    flags = ("--ram", ram, "--ctx", CONTEXT)

    def run(*more: object) -> dict:
        report = flash.call(
            binary,
            *("run", "--model", model, "--temp", 0, "--prompt-ids", ids),
            *("--max-tokens", 40, "--ignore-eos", "--no-look-ahead", *flags, *more),
        )
        return report["stats"]["experts"]

    def predicted(of: Path, *more: object) -> float:
        plan = flash.call(binary, "plan", "--model", of, *flags, *more)
        return plan["expert_hit_rate"]

    def same(a: float, b: float) -> bool:
        """But for the little by which the program's own memory differs."""
        return abs(a - b) < 0.04

    first = run("--no-learn")
    usual = predicted(model)
    if folder.exists() and any(folder.iterdir()):
        raise flash.Failure("--no-learn keeps something")
    run()
    learnt = predicted(model)
    unlearnt = predicted(model, "--no-learn")
    if same(learnt, usual) or not same(unlearnt, usual):
        raise flash.Failure(f"predicts {learnt}, {unlearnt} without, before {usual}")
    again = run()
    # Of a cache whose size differs by some percent from run to run; that it
    # helps is shown where it does not (cached_experts_test).
    if again["hits"] < 0.93 * first["hits"]:
        raise flash.Failure(f"{again['hits']} hits, unlearnt {first['hits']}")
    other = cache / "other"
    shutil.rmtree(other, ignore_errors=True)
    shutil.copytree(model, other)
    config = json.loads((model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "version": 2}))
    if not same(predicted(other), usual):
        raise flash.Failure("what was learnt of another model is used")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    if not same(predicted(model), usual):
        raise flash.Failure("a torn file is used")
    return (
        f"{again['hits']} hits instead of {first['hits']}, "
        f"{learnt:.2f} predicted instead of {usual:.2f}"
    )


def read_tensors(path: Path) -> dict:
    """name -> (dtype, shape, bytes) of a small safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + length + at for at in entry["data_offsets"])
        tensors[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return tensors


def write_unstacked(model: Path, folder: Path, swapped: tuple = ()) -> Path:
    """The same values as Hugging Face's files have them: a tensor for each
    expert, in two files. `swapped`: two experts of the first layer that change
    places."""
    files = [{}, {}]
    for name, (dtype, shape, data) in read_tensors(model / "model.safetensors").items():
        if ".switch_mlp." not in name:
            files[0][name] = (dtype, shape, data)
            continue
        size = len(data) // shape[0]
        order = list(range(shape[0]))
        if swapped and name.startswith("model.layers.0."):
            a, b = swapped
            order[a], order[b] = b, a
        for at, e in enumerate(order):
            own = name.replace(".switch_mlp.", f".experts.{e}.")
            part = data[at * size : (at + 1) * size]
            files[e % 2][own] = (dtype, shape[1:], part)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    places = {}
    for i, tensors in enumerate(files):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        flash.write_safetensors(folder / name, tensors)
        places.update({tensor: name for tensor in tensors})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, folder / name)
    return folder


def check_swap_is_found(same: Same, work: Path) -> str:
    """Proof that the comparison sees the wrong expert."""
    twin = write_unstacked(same.model, work / "swapped", swapped=(3, 4))
    try:
        same.check(("--chunks", "40,1"), twin)
    except flash.Difference:
        return "is found"
    raise flash.Failure("the logits are the same")


def published_checks(binary: Path, folder: Optional[Path]) -> list:
    if folder is None or not (folder / "model.safetensors").exists():
        print(f"SKIP  published: {folder} is not there", flush=True)
        return []
    least = budgets(binary, folder)[0]
    small = ("--ctx", 256, "--ram", f"{int(least[:-1]) + 2_000_000}B")
    return [
        ("published logits", lambda: check_logits(binary, folder, FLOAT_LIMIT)),
        ("published prose", lambda: check_prose(binary, folder)),
        ("published story", lambda: check_story(binary, folder)),
        ("published story, streamed", lambda: check_story(binary, folder, *small)),
    ]


def all_checks(args: argparse.Namespace) -> list:
    binary, model = args.binary.resolve(), args.model
    rams = budgets(binary, model)
    small = ("--ctx", 256, "--ram", f"{int(rams[0][:-1]) + 500_000}B")
    checks = [
        ("logits", lambda: check_logits(binary, model, CODED_LIMIT)),
        ("prose", lambda: check_prose(binary, model)),
        ("story", lambda: check_story(binary, model)),
        ("story, streamed", lambda: check_story(binary, model, *small)),
        ("counters", lambda: check_counters(binary, model, rams)),
        ("prompt", lambda: check_prompt(binary, model, rams[-1])),
        ("prompt, streamed", lambda: check_prompt(binary, model, rams[3])),
        ("learnt", lambda: check_learnt(binary, model, rams[4], args.work / "cache")),
    ]
    same = Same(binary, model)
    for flags in variations(rams):
        checks.append((" ".join(map(str, flags)), lambda f=flags: same.check(f)))
    twin = write_unstacked(model, args.work / "unstacked")
    for ram in (rams[0], rams[-1]):
        flags = ("--ram", ram, "--chunks", "40,1")
        checks.append((f"a tensor each, {ram}", lambda f=flags: same.check(f, twin)))
    checks.append(("two experts swapped", lambda: check_swap_is_found(same, args.work)))
    return checks + published_checks(binary, args.published)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--published", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    # What is learnt of the models here is nobody else's.
    os.environ["MLX_FLASH_CACHE"] = str(args.work / "cache")
    checks = all_checks(args)
    failures = 0
    for name, check in checks:
        try:
            print(f"ok    {name}: {check()}", flush=True)
        except flash.Failure as failure:
            print(f"FAIL  {name}: {failure}", flush=True)
            failures += 1
    print(f"{len(checks) - failures} of {len(checks)} checks")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except flash.Failure as failure:
        print(f"FAIL  {failure}")
        sys.exit(1)
