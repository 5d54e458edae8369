#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records what Hugging Face's `tokenizers` makes of awkward texts.

    record_tokenizer_goldens.py miniatures GPT2_TOKENIZER_JSON OUT_DIR CORPUS
    record_tokenizer_goldens.py record DIR
    record_tokenizer_goldens.py compare TOKENIZER_JSON IDS_FILE TEXT_FILE

`miniatures` cuts GPT-2's vocabulary down to its first merges and puts it behind
the pipelines (normalizer, expressions, post-processor, decoder) of the families
in the field, and trains a small Unigram model on CORPUS. `record` writes
texts.json once and NAME.goldens.json beside every NAME.json in DIR. `compare`
encodes TEXT_FILE line by line and compares with IDS_FILE, which has the ids of
each line (`mlx-flash tokenize` can write it).

Needs the PyPI package `tokenizers` (0.23 was used).
"""

import json
import os
import random
import sys

from tokenizers import Tokenizer

MERGES = 1500

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = O200K.replace(CONTRACTIONS + "?", "").replace(r"{1,3}", "")
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^" "\r\n" r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[" "\r\n"
    r"]*|\s*[" "\r\n" r"]+|\s+(?!\S)|\s+",
]


def byte_level(use_regex=False, prefix=False):
    return {
        "type": "ByteLevel",
        "add_prefix_space": prefix,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def split(pattern, behavior="Isolated", invert=False):
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": behavior,
        "invert": invert,
    }


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def template(before, after=()):
    pieces = [{"SpecialToken": {"id": t, "type_id": 0}} for t, _ in before]
    pieces.append({"Sequence": {"id": "A", "type_id": 0}})
    pieces += [{"SpecialToken": {"id": t, "type_id": 0}} for t, _ in after]
    tokens = {
        t: {"id": t, "ids": [i], "tokens": [t]} for t, i in [*before, *after]
    }
    return {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": pieces,
        "special_tokens": tokens,
    }


def added(first_id, *tokens):
    out = []
    for i, token in enumerate(tokens):
        entry = {
            "id": first_id + i,
            "content": token[0],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for flag in token[1:]:
            name, _, value = flag.partition("=")
            entry[name] = value != "no"
        out.append(entry)
    return out


def miniatures(source, out_dir, corpus):
    full = json.load(open(source, encoding="utf8"))
    vocab = full["model"]["vocab"]
    merges = full["model"]["merges"][:MERGES]
    # GPT-2's ids: 256 bytes, then one for each merge.
    small = {t: i for t, i in vocab.items() if i < 256 + MERGES}
    n = len(small)

    def write(name, merge_form="text", ignore_merges=False, **parts):
        model = dict(
            full["model"],
            vocab=small,
            merges=[
                m if merge_form == "text" else m.split(" ") for m in merges
            ],
            ignore_merges=ignore_merges,
        )
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": parts.get("added", []),
            "normalizer": parts.get("normalizer"),
            "pre_tokenizer": parts.get("pre_tokenizer"),
            "post_processor": parts.get("post_processor"),
            "decoder": parts.get("decoder", byte_level()),
            "model": model,
        }
        with open(os.path.join(out_dir, name + ".json"), "w") as f:
            json.dump(document, f, ensure_ascii=False, indent=None)

    end = "<|endoftext|>"
    write(
        "gpt2",
        pre_tokenizer=byte_level(use_regex=True),
        post_processor=byte_level(use_regex=True),
        added=added(n, (end,)),
    )
    begin = "<|begin_of_text|>"
    write(
        "llama3",
        "pairs",
        True,
        pre_tokenizer=sequence(split(LLAMA3), byte_level()),
        post_processor={
            "type": "Sequence",
            "processors": [byte_level(), template([(begin, n)])],
        },
        added=added(n, (begin,), ("<|eot_id|>",)),
    )
    write(
        "qwen2",
        "pairs",
        normalizer={"type": "NFC"},
        pre_tokenizer=sequence(split(QWEN2), byte_level()),
        added=added(
            n,
            (end,),
            ("<|im_start|>",),
            ("<|im_end|>",),
            ("<tool_call>", "special=no"),
        ),
    )
    write(
        "o200k",
        "pairs",
        True,
        pre_tokenizer=sequence(split(O200K), byte_level()),
        added=added(n, (end,), ("<|return|>", "rstrip"), ("<|start|>",)),
    )
    write(
        "tekken",
        pre_tokenizer=sequence(split(TEKKEN), byte_level()),
        post_processor=template([("<s>", n)], [("</s>", n + 1)]),
        added=added(n, ("<s>", "lstrip"), ("</s>",), ("[INST]", "rstrip")),
    )
    write(
        "deepseek",
        normalizer={"type": "Sequence", "normalizers": []},
        pre_tokenizer=sequence(*map(split, DEEPSEEK), byte_level()),
        added=added(
            n,
            ("<｜begin▁of▁sentence｜>",),
            ("<｜User｜>", "special=no", "normalized"),
        ),
    )
    write(
        "smollm",
        pre_tokenizer=sequence(
            {"type": "Digits", "individual_digits": True},
            byte_level(use_regex=True),
        ),
        added=added(n, (end,), ("<|im_start|>",), ("<|im_end|>",)),
    )
    # Steps that no family above has, one file for all of them.
    write(
        "oddities",
        normalizer={
            "type": "Sequence",
            "normalizers": [
                {"type": "NFKC"},
                {"type": "Lowercase"},
                {"type": "Strip", "strip_left": True, "strip_right": False},
                {
                    "type": "Replace",
                    "pattern": {"Regex": r"\s{3,}"},
                    "content": "  ",
                },
            ],
        },
        pre_tokenizer=sequence(
            {"type": "Punctuation", "behavior": "MergedWithPrevious"},
            split(r"\d{2}+", "MergedWithNext"),
            split(r"[[a-f]&&[^c]]+|\h\w\b", "Contiguous"),
            byte_level(use_regex=True, prefix=True),
        ),
        post_processor={
            "type": "RobertaProcessing",
            "sep": ["</s>", n + 1],
            "cls": ["<s>", n],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        added=added(
            n,
            ("<s>",),
            ("</s>",),
            ("word", "single_word", "normalized"),
            ("é!", "normalized", "lstrip", "rstrip", "special=no"),
        ),
    )
    unigram(out_dir, corpus)


def unigram(out_dir, corpus):
    from tokenizers import decoders, models, pre_tokenizers, trainers

    t = Tokenizer(models.Unigram())
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
    )
    text = open(corpus, encoding="utf8").read(100000)
    t.train_from_iterator(text.split("\n"), trainer)
    document = json.loads(t.to_str())
    document["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Nmt"},
            {"type": "NFKC"},
            {
                "type": "Replace",
                "pattern": {"Regex": " {2,}"},
                "content": " ",
            },
        ],
    }
    eos = document["added_tokens"][1]["id"]
    document["post_processor"] = template([], [("</s>", eos)])
    with open(os.path.join(out_dir, "unigram.json"), "w") as f:
        json.dump(document, f, ensure_ascii=False)


TEXTS = [
    *["", " ", "  ", "   a", "a   ", "\n", "\n\n", "\r\n\r\n", " \n ", "\t\tx"],
    *["a\u00a0b", "\u180e\u2028x", "\u3000全角", "e\u0301cole", "\u00e9!", "ﬁ ﬂ ½"],
    *["👩‍👩‍👧‍👦 family", "👍🏽🏳️‍🌈", "नमस्ते दुनिया", "สวัสดีชาวโลก"],
    *["こんにちは世界、テスト", "안녕하세요", "مرحبا بالعالم", "שלום עולם"],
    *["Привет, мир!", "Ωμέγα", "1234567890" * 8, "3.14159 1,000,000 0x1F"],
    *["١٢٣٤", "Ⅷ ⅷ ²³ ½", "\x00\x01\x02", "\x7f\x80\x9f", "a\x00b"],
    *["don't I'LL WE'VE 'S ſ's 'ſ", "http://example.com/a?b=c&d=e#f"],
    *["def f(x):\n    return x**2  # ok\n\n\n", "<s>hi</s>", "<s> <s>"],
    *["<|endoftext|>x<|endoftext|>", "  <|im_start|>user\nhi<|im_end|>\n"],
    *["<|begin_of_text|><|eot_id|> x", "<0x0A><0xE4>", "▁▁x ▁y", "Ġhello Ċ"],
    *["<unk>", "[INST]  hi [/INST]", "<｜User｜>你好<｜Assistant｜>", "</s>   x"],
    *[" </s> ", "\ufeffBOM", "\u200b\u200c\u200dz", "\u0300\u0301\u0302" * 20],
    *["𝕳𝖊𝖑𝖑𝖔", "\U0010ffff\U000e0001", "ǅ ǈ ŉ ß ẞ İ ı", "A" * 100, " " * 80],
    *["ab" * 150, "a b" * 60, "\n" * 30, " \n" * 30, "—–“quoted”‘x’…"],
    *["x\u0085y\u000bz\u000cw", "____ -- == ++ //", "ＡＢＣ１２３", "각 각"],
    *["ÅÅ Å", "q̣̇ q̣̇", "Ǆ\u0345", "🇩🇪🇫🇷🇬", "ೠ ௧ ௨", "a" * 30 + "é" * 30],
    *["'s't're", "\n \n  \n   x", "x \t \t y", "日本語テキスト混在English混ざり123数字"],
    *["word Word swordfish Word.", "<tool_call>\n{}</tool_call>", "<|return|>  x"],
    *["The quick brown fox jumps over the lazy dog. 0123 abcdef 0xCAFE"],
    *["a\rb\r\nc\n\rd", "x\r\r\n\n y", "\u2028\u2029", "\u200e\u200fab\u202e"],
    *["mailto:a.b+c@d-e.org?x=%20", "ftp://[::1]:21/~u/", "C:\\dir\\*.txt"],
    *["#include <x>\n\tint main() { return 0; }", "<a href='#'>&amp;</a>"],
    *['{"k": [1, 2.5e-3, null, "\\u00e9"]}', "$x^2$ \\frac{1}{2}", "`a` ```b```"],
    *["ქართული", "Հայերեն", "አማርኛ", "ᏣᎳᎩ", "ភាសាខ្មែរ", "မြန်မာဘာသာ", "བོད་ཡིག"],
    *["ᠮᠣᠩᠭᠣᠯ", "ꦧꦱꦗꦮ", "𐌰𐌱𐌲", "𒀀𒀁", "𓀀𓀁", "ㄅㄆㄇ", "한글 ㄱㄴ", "漢\U000e0100字"],
    *["🧑‍🚀🧑🏿‍🤝‍🧑🏻", "1️⃣#️⃣", "☎︎☎️", "🏴\U000e0067\U000e0062\U000e007f"],
    *["1st 2nd 3.5% £4 €5 ¥6 ₿7", "12:34:56.789Z", "1_000 0b101 1e10 ½¼"],
    *["can't've he'll'd O'Neil 'tis rock'n'roll", "’s ’T ‘re", "it's'S"],
    *["<|im_end|><|im_end|> <|im_end|>", "<|im_end", "<|eot_id|>\n\n<|eot_id|>"],
    *["\x1b[31mred\x1b[0m", "\x00", "\ufffd\ufffe", "a\u00adb\u2060c"],
]


def random_texts(count, seed):
    rnd = random.Random(seed)

    def character():
        kind = rnd.random()
        if kind < 0.35:
            return chr(rnd.randrange(32, 127))
        if kind < 0.5:
            return rnd.choice(" \n\t\r")
        if kind < 0.7:
            return chr(rnd.randrange(0xA0, 0x600))
        if kind < 0.9:
            code = rnd.randrange(0x600, 0xF800)
            odd = 0xD800 <= code < 0xE000
            return chr(code if not odd else 0x4E00)
        return chr(rnd.randrange(0x1F300, 0x1F700))

    return [
        "".join(character() for _ in range(rnd.randrange(1, 50)))
        for _ in range(count)
    ]


def record(folder):
    texts = TEXTS + random_texts(300, seed=1)
    with open(os.path.join(folder, "texts.json"), "w") as f:
        json.dump(texts, f)
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".json") or "goldens" in name:
            continue
        if name == "texts.json":
            continue
        tokenizer = Tokenizer.from_file(os.path.join(folder, name))
        rows = []
        for text in texts:
            ids = tokenizer.encode(text).ids
            plain = tokenizer.encode(text, add_special_tokens=False).ids
            rows.append(
                {
                    "ids": plain,
                    "extra": len(ids) - len(plain),
                    "text": tokenizer.decode(ids, skip_special_tokens=True),
                }
            )
            assert sorted(set(plain) - set(ids)) == []
        first = tokenizer.encode("x").ids
        document = {"with_special_x": first, "rows": rows}
        path = os.path.join(folder, name.replace(".json", ".goldens.json"))
        with open(path, "w") as f:
            json.dump(document, f, separators=(",", ":"))


def compare(tokenizer_json, ids_file, text_file):
    tokenizer = Tokenizer.from_file(tokenizer_json)
    lines = open(text_file, encoding="utf8", newline="").read().split("\n")
    wrong = 0
    with open(ids_file, encoding="ascii") as f:
        got = [[int(i) for i in row.split()] for row in f.read().split("\n")]
    for number, line in enumerate(lines):
        want = tokenizer.encode(line, add_special_tokens=False).ids
        if number >= len(got) or got[number] != want:
            wrong += 1
            print(f"line {number + 1}: {line[:60]!r}")
    print(f"{len(lines) - wrong} of {len(lines)} lines agree")
    return wrong != 0


def main():
    commands = {"miniatures": miniatures, "record": record, "compare": compare}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    sys.exit(commands[sys.argv[1]](*sys.argv[2:]))


if __name__ == "__main__":
    main()
