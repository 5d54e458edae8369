#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records what mlx-lm answers greedily in float32.

    record_greedy.py smollm2 MODEL.gguf OUT.json
    record_greedy.py stories STORIES_HF_FOLDER TEXT OUT.json

smollm2: up to 48 tokens for each of PROMPTS (tools/gguf_to_hf.py turns the file into
the float32 folder mlx-lm runs). stories: 256 tokens after <s>, which must spell
the text of the file TEXT.

OUT.json holds for every prompt its ids, the tokens, and for every token the
runner-up and by how much its logit was smaller (the gap), so that near ties can
be told from errors. Needs mlx-lm 0.32.2 on the CPU.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np

mx.disable_compile()
mx.set_default_device(mx.cpu)

from jinja2.sandbox import ImmutableSandboxedEnvironment
from mlx_lm import utils as lm_utils
from mlx_lm.models.cache import make_prompt_cache
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).parent))
import tiny_gguf
from parity import Reference

TOKENS = 48
# An answer is recorded up to the first tie nearer than this: there, arithmetic
# as good as mlx-lm's (logits up to 30, errors below 1e-3 of that) may go on
# otherwise. Shorter answers than TOKENS_MIN are left out.
GAP_MIN = 0.03
TOKENS_MIN = 16
PROMPTS = [
    ("chat", "What is the capital of France?"),
    ("chat", "Write a short poem about the sea."),
    ("chat", "Explain in two sentences why the sky is blue."),
    ("chat", "Name the planets of the solar system."),
    ("chat", "Translate 'good morning' into French, Spanish and Italian."),
    ("chat", "What is 12 times 11?"),
    ("chat", "Wie heißt die Hauptstadt von Österreich? Ünïcödé 東京 🙂"),
    ("raw", "Once upon a time, in a small village by the river,"),
    ("raw", "def fibonacci(n):\n    "),
    ("raw", "The numbers 1, 2, 3, 5, 8, 13, 21,"),
    ("raw", "#include <stdio.h>\n\nint main("),
    ("raw", "We hold these truths to be self-evident, that all"),
    ("raw", "To be, or not to be, that is the question:"),
    ("raw", "a b c d e f g"),
]
STORY_TOKENS = 256


def smollm_tokenizer(fields: dict) -> Tokenizer:
    """SmolLM2's byte-level BPE, from the metadata of its GGUF file."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        t for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"]) if kind == 3
    ]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in control])
    return tokenizer


def chat_text(fields: dict, prompt: str) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(fields["tokenizer.chat_template"]).render(
        messages=[{"role": "user", "content": prompt}], add_generation_prompt=True
    )


def greedy(reference: Reference, ids: list, count: int, eos: set) -> dict:
    """Up to `count` tokens; one of `eos` ends it and is not listed. The prompt
    runs as generate_step has it: all but the last id, then one by one."""
    cache = make_prompt_cache(reference.model)
    if len(ids) > 1:
        mx.eval(reference.model(mx.array([ids[:-1]]), cache=cache))
    token, found = ids[-1], {"tokens": [], "gaps": [], "runners_up": []}
    while len(found["tokens"]) < count:
        logits = np.array(reference.model(mx.array([[token]]), cache=cache)[0, -1])
        token, second = (int(i) for i in np.argsort(-logits, kind="stable")[:2])
        if token in eos:
            break
        found["tokens"].append(token)
        found["runners_up"].append(second)
        found["gaps"].append(round(float(logits[token] - logits[second]), 5))
    found["stopped"] = len(found["tokens"]) < count
    return found


def without_near_ties(found: dict) -> dict:
    near = [i for i, gap in enumerate(found["gaps"]) if gap < GAP_MIN]
    if not near:
        return found
    lists = ("tokens", "gaps", "runners_up")
    return {**{k: found[k][: near[0]] for k in lists}, "stopped": False}


def record_smollm2(model: Path) -> dict:
    fields = tiny_gguf.read_metadata(model)
    tokenizer = smollm_tokenizer(fields)
    eos = {fields["tokenizer.ggml.eos_token_id"]}
    prompts = []
    with tempfile.TemporaryDirectory(prefix="greedy") as scratch:
        converter = Path(__file__).parent / "gguf_to_hf.py"
        subprocess.run([sys.executable, converter, model, scratch], check=True)
        reference = Reference(Path(scratch), "float32")
    for kind, text in PROMPTS:
        full = chat_text(fields, text) if kind == "chat" else text
        ids = tokenizer.encode(full, add_special_tokens=False).ids
        found = without_near_ties(greedy(reference, ids, TOKENS, eos))
        answer = tokenizer.decode(found["tokens"], skip_special_tokens=False)
        print(f"{text!r} -> {len(found['tokens'])} tokens: {answer!r}", flush=True)
        if found["stopped"] or len(found["tokens"]) >= TOKENS_MIN:
            recorded = {"kind": kind, "prompt": text, "ids": ids, "text": answer}
            prompts.append({**recorded, **found})
    return {
        "model_file": model.name,
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "prompts": prompts,
    }


def record_stories(folder: Path, text: Path) -> dict:
    reference = Reference(folder, "float32")
    # llama2.c starts from <s> alone, which it does not print.
    found = greedy(reference, [1], STORY_TOKENS, {1, 2})
    tokenizer = lm_utils.load_tokenizer(folder)
    answer = tokenizer.decode(found["tokens"])
    if answer.strip() != text.read_text().strip():
        raise SystemExit(f"mlx-lm's text is not that of {text}:\n{answer}")
    print(f"the text of {text.name}, smallest gap {min(found['gaps']):.4f}")
    prompts = [{"kind": "ids", "prompt": "", "ids": [1], "text": answer, **found}]
    return {"model_file": "stories260K", "prompts": prompts}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    smollm2 = commands.add_parser("smollm2")
    smollm2.add_argument("model", type=Path)
    stories = commands.add_parser("stories")
    stories.add_argument("model", type=Path)
    stories.add_argument("text", type=Path)
    for command in (smollm2, stories):
        command.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.what == "smollm2":
        record = record_smollm2(args.model)
    else:
        record = record_stories(args.model, args.text)
    made_by = f"tools/record_greedy.py with mlx-lm {version('mlx-lm')}, float32"
    record = {"made_by": made_by, **record}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
