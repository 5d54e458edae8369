#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares mlx-flash with Hugging Face's `tokenizers` on real tokenizers.

    check_tokenizers.py [--flash BIN] [--texts FILE]... [--random N] FOLDER...
    check_tokenizers.py [--flash BIN] --steps
    check_tokenizers.py [--flash BIN] --pairs FILE.inp MODEL

`--steps` makes a tokenizer of each single normalizer and pre-tokenizer instead
and gives it every character: which Unicode version each follows shows there.

`--pairs` compares with the ids that llama.cpp keeps beside its vocabularies
(models/ggml-vocab-*.gguf.inp and .out).

FOLDER has a tokenizer.json (GPT-2's to Gemma's: too large for testdata/), or a
tokenizer.model, which is compared with the library sentencepiece instead. Each
text file is encoded whole and line by line; so are the awkward strings of
record_tokenizer_goldens.py, N random ones, and a few of every Unicode block.
Compared are ids with and without special tokens, and the text of the ids.
Prints a line for each folder and the first texts that differ; exit code 1 if
any does.

Needs the PyPI packages `tokenizers` (0.23 was used) and, for tokenizer.model,
`sentencepiece` (0.2.3).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import record_tokenizer_goldens as goldens
from tokenizers import Tokenizer, pre_tokenizers

SHOWN_MAX = 5


def every_character():
    """All assigned characters, 24 to a text, in three surroundings."""
    assigned = [
        chr(c)
        for c in range(0x110000)
        if unicodedata.category(chr(c)) not in ("Cs", "Cn", "Co")
    ]
    for i in range(0, len(assigned), 24):
        part = assigned[i : i + 24]
        yield "".join(part)
        yield "a" + "b".join(part) + " " + " ".join(part)
        yield "1" + "2\n".join(part) + "!" + "?".join(part)


def read_texts(arguments):
    texts = goldens.TEXTS + goldens.random_texts(arguments.random, seed=1)
    for path in arguments.texts or []:
        whole = Path(path).read_text(encoding="utf8", errors="strict")
        texts.append(whole)
        texts += whole.split("\n")
    if arguments.characters:
        texts += every_character()
    return texts


def run(flash, folder, inputs, *flags):
    lines = "".join(json.dumps(i) + "\n" for i in inputs)
    command = [flash, "tokenize", "--model", str(folder), "--jsonl", *flags]
    done = subprocess.run(
        command, input=lines.encode(), stdout=subprocess.PIPE, check=True
    )
    outputs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outputs) == len(inputs), (len(outputs), len(inputs))
    return outputs


def ask_tokenizers(path, texts):
    """Ids, ids with special tokens, and the texts of the former."""
    tokenizer = Tokenizer.from_file(str(path))
    ids = [
        e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)
    ]
    with_special = [e.ids for e in tokenizer.encode_batch(texts)]
    return ids, with_special, tokenizer.decode_batch(ids, False)


def ask_sentencepiece(model, texts):
    ids = model.encode(texts)
    with_special = [[model.bos_id()] + i for i in ids]
    # The library writes " \u2047 " for what is unknown; we and Hugging Face
    # write the token.
    unknown = model.id_to_piece(model.unk_id())
    texts = [model.decode(i).replace(" \u2047 ", unknown) for i in ids]
    return ids, with_special, texts


def without_special_pieces(model, texts):
    """The library takes "<s>" in a text for three letters; we and Hugging
    Face take it for the token."""
    special = [
        model.id_to_piece(i)
        for i in range(model.get_piece_size())
        if model.is_control(i) or model.is_unknown(i)
    ]
    return [t for t in texts if not any(s in t for s in special)]


def check(flash, folder, texts):
    if (folder / "tokenizer.json").exists():
        answers = ask_tokenizers(folder / "tokenizer.json", texts)
    else:
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor()
        model.load(str(folder / "tokenizer.model"))
        texts = without_special_pieces(model, texts)
        answers = ask_sentencepiece(model, texts)
    want, want_special, want_decoded = answers
    encoded = run(flash, folder, texts, "--no-special")
    with_special = run(flash, folder, texts)
    decoded = run(flash, folder, want, "--decode")
    wrong = []
    for i, text in enumerate(texts):
        for name, a, b in [
            ("ids", encoded[i], want[i]),
            ("ids with specials", with_special[i], want_special[i]),
            ("text", decoded[i], want_decoded[i]),
        ]:
            if a != b:
                wrong.append((name, text, a, b))
    print(f"{folder.name}: {len(texts)} texts, {len(wrong)} differences")
    for name, text, a, b in wrong[:SHOWN_MAX]:
        print(f"  {name}: {text[:200]!r}")
        at = next(
            (k for k in range(min(len(a), len(b))) if a[k] != b[k]),
            min(len(a), len(b)),
        )
        print(f"    at {at}: {a[at : at + 8]!r}, not {b[at : at + 8]!r}")
    return len(wrong)


def check_pairs(flash, model, path):
    texts = path.read_text(encoding="utf8").split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".out").read_text().split("\n")
    want = [[int(i) for i in line.split()] for line in lines[: len(texts)]]
    got = run(flash, model, texts, "--no-special")
    wrong = [i for i in range(len(texts)) if got[i] != want[i]]
    print(f"{path.name}: {len(texts)} texts, {len(wrong)} differences")
    for i in wrong[:SHOWN_MAX]:
        print(f"  {texts[i]!r}: {got[i]!r}, not {want[i]!r}")
    return len(wrong)


def step_tokenizers():
    """(name, normalizer, pre-tokenizer): ids show bytes and word limits."""
    for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"):
        yield form, {"type": form}, []
    both = {"type": "Strip", "strip_left": True, "strip_right": True}
    yield "Strip", both, []
    yield "Digits", None, [{"type": "Digits", "individual_digits": True}]
    yield "DigitRuns", None, [{"type": "Digits", "individual_digits": False}]
    yield (
        "Punctuation",
        None,
        [{"type": "Punctuation", "behavior": "Isolated"}],
    )
    for name in ("WhitespaceSplit", "Whitespace", "BertPreTokenizer"):
        yield name, None, [{"type": name}]
    yield "ByteLevel", None, [goldens.byte_level(use_regex=True)]
    classes = [r"\p{L}", r"\p{N}", r"\p{P}", r"\p{S}", r"\p{M}", r"\s"]
    classes += [r"\p{Lu}", r"\p{Ll}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}"]
    classes += [r"\p{Han}", r"\p{Hiragana}", r"\p{Katakana}", r"\w", r"\d"]
    classes += [r"\p{Z}", r"\p{C}", r"[[:punct:]]", r"\p{Cyrillic}"]
    for pattern in [*classes, r"(?i:k)", r"(?i:s)", r"(?i)ss", r"\R", r"\X"]:
        yield pattern, None, [goldens.split(pattern + "+")]


def check_steps(flash):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocab = {c: i for i, c in enumerate(sorted(alphabet))}
    wrong = 0
    texts = [
        text.format(chr(c))
        for c in range(0x110000)
        if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) != "Cn"
        for text in ("a{0}1", "{0}", "{0}\u0334\u0301{0}")
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, normalizer, steps in step_tokenizers():
            document = {
                "version": "1.0",
                "added_tokens": [],
                "normalizer": normalizer,
                "pre_tokenizer": goldens.sequence(
                    *steps, goldens.byte_level(prefix=True)
                ),
                "post_processor": None,
                "decoder": goldens.byte_level(),
                "model": {"type": "BPE", "vocab": vocab, "merges": []},
            }
            path = Path(folder) / name.replace("\\", "")
            path.mkdir()
            (path / "tokenizer.json").write_text(json.dumps(document))
            wrong += check(flash, path, texts)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flash", default="build/release/mlx-flash")
    parser.add_argument("--texts", action="append")
    parser.add_argument("--random", type=int, default=5000)
    parser.add_argument("--characters", action="store_true")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.steps:
        return check_steps(arguments.flash) != 0
    if arguments.pairs:
        (model,) = arguments.folders
        return check_pairs(arguments.flash, model, arguments.pairs) != 0
    texts = read_texts(arguments)
    return sum(
        [check(arguments.flash, f, texts) for f in arguments.folders]
    ) != 0


if __name__ == "__main__":
    sys.exit(main())
