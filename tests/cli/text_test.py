#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`tokenize` and `template`: they need tokenizer files only, and what they
print is exact."""

import json
import shutil
import subprocess
import unittest
from pathlib import Path

from program import Case, TIMEOUT_S, main

TEMPLATE = ("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
            "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}")
VOCABULARIES = Path(__file__).parents[2] / "testdata/tokenizers/ggml-vocab"
MESSAGES = [{"role": "user", "content": "Grüße\n"}]


class Tokenize(Case):
    def setUp(self):
        super().setUp()
        # No weights, no config.json.
        self.bare = self.folder / "tokenizer"
        self.bare.mkdir()
        for name in ("tokenizer.json", "tokenizer.model",
                     "tokenizer_config.json"):
            shutil.copy(Path(self.model) / name, self.bare)

    def tokenize(self, *args, **more):
        return self.succeed("tokenize", "-m", self.bare, *args, **more)

    def test_ids_are_a_list_that_can_be_given_back(self):
        for text in ("Once upon a time", " two  spaces ", "line\nline\n", "é😀",
                     "\t"):
            ids = json.loads(self.tokenize("--json", "--text", text))["ids"]
            listed = self.tokenize("--text", text)
            self.assertEqual(listed, ",".join(map(str, ids)) + "\n")
            back = self.tokenize("--decode", "--no-special", "--ids", listed)
            self.assertEqual(back, text)
            self.assertEqual(
                json.loads(self.tokenize("--decode", "--no-special", "--json",
                                         "--ids", listed)), {"text": text})
            self.assertEqual(
                self.tokenize("--decode", "--no-special", stdin=listed), text)

    def test_every_way_to_give_text_is_exact(self):
        text = "Once\n"
        path = self.file("t.txt", text)
        want = self.tokenize("--text", text)
        self.assertEqual(self.tokenize(stdin=text), want)
        self.assertEqual(self.tokenize("-", stdin=text), want)
        self.assertEqual(self.tokenize("--text-file", path), want)
        self.assertEqual(self.tokenize(text), want)
        self.assertNotEqual(self.tokenize("--text", "Once"), want)

    def test_no_special_leaves_out_bos(self):
        ids = json.loads(self.tokenize("--json", "--text", "Once"))["ids"]
        bare = json.loads(
            self.tokenize("--json", "--no-special", "--text", "Once"))["ids"]
        self.assertEqual(ids, [1] + bare)

    def test_llama_cpps_own_pairs_for_a_whole_gguf_vocabulary(self):
        vocabulary = VOCABULARIES / "ggml-vocab-gpt-2.gguf"
        texts = Path(f"{vocabulary}.inp").read_text(encoding="utf8").split(
            "\n__ggml_vocab_test__\n")
        lines = Path(f"{vocabulary}.out").read_text(encoding="utf8").split("\n")
        self.assertEqual(len(texts), 47)
        out = self.succeed("tokenize", "-m", vocabulary, "--jsonl",
                           "--no-special",
                           stdin="".join(json.dumps(t) + "\n" for t in texts))
        for text, line, got in zip(texts, lines, out.splitlines()):
            self.assertEqual(json.loads(got), [int(i) for i in line.split()],
                             text)

    def test_empty_text_is_text(self):
        bare = json.loads(self.tokenize("--json", "--no-special", "--text", ""))
        self.assertEqual(bare["ids"], [])

    def test_jsonl_answers_each_line_at_once(self):
        for decode in (False, True):
            command = self.command("tokenize", "-m", self.bare, "--jsonl",
                                   "--no-special",
                                   *(["--decode"] if decode else []))
            with subprocess.Popen(command, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE,
                                  env=self.environment) as process:
                for text in ("Once upon", "a\nb", "", "\u2028 é \""):
                    listed = self.tokenize("--no-special", "--text", text)
                    ids = json.loads(f"[{listed}]")
                    asked, want = (ids, text) if decode else (text, ids)
                    process.stdin.write(json.dumps(asked).encode() + b"\n")
                    process.stdin.flush()
                    self.assertEqual(json.loads(process.stdout.readline()), want)
                process.stdin.close()
                self.assertEqual(process.wait(TIMEOUT_S), 0)

    def test_bad_input_is_refused(self):
        base = ["tokenize", "-m", self.bare]
        self.fail_with(2, *base, "--text-file", self.file("b", b"a\xff"),
                       says="offset 1")
        self.fail_with(2, *base, "--decode", "--ids", "1,a", says="item 2")
        self.fail_with(2, *base, "--decode", "--ids", "100000", says="100000")
        self.fail_with(2, *base, "--ids", "1", says="--decode")
        self.fail_with(2, *base, "--decode", "--text", "a", says="--ids")
        self.fail_with(2, *base, "--text", "a", "--jsonl", says="--jsonl")
        self.fail_with(2, "tokenize", "-m", self.folder, "--text", "a")
        for line in (b"x\n", b"[1]\n", b'"\xff"\n', b'"\\ud800"\n'):
            self.fail_with(2, *base, "--jsonl", stdin=line, says="line 1")
        for line in (b'"a"\n', b"[1.5]\n", b"[-1]\n", b"[99999999999]\n"):
            self.fail_with(2, *base, "--jsonl", "--decode", stdin=line,
                           says="line 1")

    def test_lines_before_a_bad_one_are_answered(self):
        done = self.run_program("tokenize", "-m", self.bare, "--jsonl",
                                stdin=b'"Once"\nx\n')
        self.assertEqual(done.returncode, 2)
        self.assertEqual(done.stdout.count(b"\n"), 1)
        self.assertIn(b"line 2", done.stderr)


class Template(Case):
    def setUp(self):
        super().setUp()
        self.template = self.file("chat.jinja", TEMPLATE)
        self.messages = self.file("messages.json", json.dumps(MESSAGES))

    def render(self, *args, **more):
        return self.succeed("template", "--template", self.template,
                            "--messages", self.messages, *args, **more)

    def test_the_text_is_exact_and_needs_no_model(self):
        self.assertEqual(self.render(), "[user]Grüße\n[assistant]")
        self.assertEqual(self.render("--no-generation-prompt"),
                         "[user]Grüße\n")
        self.assertEqual(
            self.succeed("template", "--template", self.template, "--messages",
                         "-", stdin=json.dumps(MESSAGES)),
            "[user]Grüße\n[assistant]")

    def test_variables_are_text_or_json(self):
        self.template = self.file("v.jinja",
                                  "{{ a }}|{{ b is false }}|{{ c[1] }}")
        self.assertEqual(self.render("--set", "a=x=y:=z", "--set", "b:=false",
                                     "--set", "c:=[1, 2]"), "x=y:=z|True|2")
        self.assertEqual(self.render("--set", "a=[1,2]", "--set", "a=2",
                                     "--set", "c:=[0,0]"), "2|False|0")

    def test_the_clock_can_be_set(self):
        self.template = self.file("n.jinja", "{{ strftime_now('%d %b %Y') }}")
        self.assertEqual(self.render("--now", "2025-01-15T12:34:56"),
                         "15 Jan 2025")

    def test_tools_reach_the_template(self):
        self.template = self.file("t.jinja", "{{ tools[0].name }}")
        tools = self.file("tools.json", '[{"name": "search"}]')
        self.assertEqual(self.render("--tools", tools), "search")

    def test_a_model_gives_its_special_tokens(self):
        out = self.render("-m", self.model)
        self.assertTrue(out.startswith("<s>[user]"), out)

    def test_a_models_own_template_is_used(self):
        own = self.folder / "own"
        shutil.copytree(self.model, own)
        (own / "chat_template.jinja").write_text(TEMPLATE)
        out = self.succeed("template", "-m", own, "--messages", self.messages)
        self.assertEqual(out, "<s>[user]Grüße\n[assistant]")
        report = self.succeed_json("run", "-m", own, "-p", "Grüße\n", "-n", "2")
        ids = self.succeed_json("tokenize", "-m", own, "--no-special",
                                "--text", out)["ids"]
        self.assertEqual(report["prompt_tokens"], len(ids))

    def test_bad_input_is_refused(self):
        base = ["template", "--template", self.template]
        good = ["--messages", self.messages]
        self.fail_with(2, *base, says="--messages")
        self.fail_with(2, *base, "--messages", "/no/file", says="/no/file")
        self.fail_with(2, *base, "--messages", self.file("a", "{"), says="a")
        self.fail_with(2, *base, "--messages", self.file("a", "{}"),
                       says="list")
        self.fail_with(2, *base, *good, "--set", "x", says="--set")
        self.fail_with(2, *base, *good, "--set", "x:=nope", says="x")
        self.fail_with(2, *base, *good, "--set", "=1", says="--set")
        self.fail_with(2, *base, *good, "--now", "yesterday", says="yesterday")
        self.fail_with(2, "template", "--template",
                       self.file("bad.jinja", "{% if %}"), *good,
                       says="bad.jinja")
        self.fail_with(2, "template", "--template", "/no/t", *good,
                       says="/no/t")
        self.fail_with(2, "template", "-m", self.model, *good,
                       says="chat template")
        self.fail_with(2, "template", *good, says="--model")


if __name__ == "__main__":
    main()
