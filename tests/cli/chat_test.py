#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`chat` through a pipe, and as a person sees it: through a terminal."""

import json
import os
import pty
import re
import select
import shutil
import signal
import time
import unittest

from program import Case, TIMEOUT_S, main

TEMPLATE = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")
CONTROLS = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]|\r")


def fed(figures):
    """Context used, of a figures line."""
    return int(re.search(r"context (\d+) of", figures).group(1))


class ChatModel(Case):
    def setUp(self):
        super().setUp()
        self.chat_model = self.folder / "chatty"
        shutil.copytree(self.model, self.chat_model)
        (self.chat_model / "chat_template.jinja").write_text(TEMPLATE)
        config = json.loads((self.chat_model / "config.json").read_text())
        config["max_position_embeddings"] = 1 << 16
        (self.chat_model / "config.json").write_text(json.dumps(config))


class Pipe(ChatModel):
    def chat(self, text, *more):
        return self.run_program("chat", "-m", self.chat_model, "--temp", "0",
                                "-n", "8", "--ctx", "1000", *more, stdin=text)

    def test_each_line_is_a_message(self):
        done = self.chat("Once\nthere was\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        figures = done.stderr.decode().splitlines()
        self.assertEqual(len(figures), 2, figures)
        for line in figures:
            self.assertRegex(line, r"^8 tokens \| [\d.]+ tok/s \| first after")
        self.assertGreater(fed(figures[1]), fed(figures[0]))

    def test_the_history_is_part_of_the_prompt_and_reset_forgets_it(self):
        plain = self.chat("Once\n").stdout
        after = self.chat("The dog\nOnce\n").stdout
        reset = self.chat("The dog\n/reset\nOnce\n").stdout
        self.assertFalse(after.endswith(plain))
        self.assertTrue(reset.endswith(plain))

    def test_turns_fed_one_by_one_answer_as_one_prompt_would(self):
        out = self.chat("Once\nThe dog\n", "-q", "--max-tokens", "8")
        self.assertEqual(out.stderr, b"")
        messages = [{"role": "user", "content": "Once"}]
        first = self.answer(messages)
        messages += [{"role": "assistant", "content": first},
                     {"role": "user", "content": "The dog"}]
        second = self.answer(messages)
        self.assertEqual(out.stdout.decode(),
                         self.line(first) + self.line(second))

    @staticmethod
    def line(text):
        return text if text.endswith("\n") else text + "\n"

    def answer(self, messages):
        path = self.file("messages.json", json.dumps(messages))
        prompt = self.succeed("template", "-m", self.chat_model, "--messages",
                              path)
        ids = self.succeed_json("tokenize", "-m", self.chat_model,
                                "--no-special", "--text", prompt)["ids"]
        return self.succeed_json("run", "-m", self.chat_model, "-n", "8",
                                 "--prompt-ids",
                                 ",".join(map(str, ids)))["text"]

    def test_many_lines_can_be_one_message(self):
        done = self.chat('"""\nOnce\nupon\n"""\na\\\nb\n')
        self.assertEqual(len(done.stderr.splitlines()), 2)

    def test_commands_answer_on_stderr(self):
        done = self.chat("/help\n/system be kind\n/system\n/ram 200MB\n/stats\n"
                         "/exit\nnot read\n")
        self.assertEqual((done.returncode, done.stdout), (0, b""))
        text = done.stderr.decode()
        for word in ("/reset", "System message: be kind", "Budget 200 MB",
                     "weights"):
            self.assertIn(word, text)

    def test_the_budget_can_change_between_answers(self):
        done = self.chat("Once\n/ram 300MB\n/reset\nOnce\n", "--ram", "200MB")
        self.assertEqual(done.returncode, 0, done.stderr)
        half = len(done.stdout) // 2
        self.assertEqual(done.stdout[:half], done.stdout[half:])

    def test_a_script_ends_at_its_first_error(self):
        done = self.chat("/nonsense\nOnce\n")
        self.assertEqual((done.returncode, done.stdout), (2, b""))
        self.assertIn(b"/nonsense", done.stderr)
        self.assertEqual(self.chat("/ram 1MB\n").returncode, 2)
        self.assertEqual(self.chat(b"a\xff\n").returncode, 2)

    def test_a_full_context_says_what_to_do(self):
        done = self.chat("word " * 1000 + "\n", "--ctx", "64")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"/reset", done.stderr)

    def test_what_was_computed_before_a_reset_is_not_computed_again(self):
        text = "Once upon a time\n/reset\nOnce upon a time\n/stats\n"
        plain = self.chat(text)
        self.assertNotIn(b"tokens reused", plain.stderr)
        for more in ([], ["--kv-ram", "1MB"], ["--kv-quant", "8"]):
            done = self.chat(text, "--kv-reuse", "50MB", *more)
            self.assertEqual(done.returncode, 0, done.stderr)
            reused = re.search(rb"tokens reused\s+(\d+)", done.stderr)
            self.assertGreater(int(reused.group(1)), 8)
            self.assertEqual(done.stdout, plain.stdout)

    def test_a_conversation_goes_on_past_a_full_context(self):
        text = "word " * 20 + "\nOnce\nThe dog\n"
        more = ["--ctx", "400", "-n", "200", "--ignore-eos"]
        full = self.chat(text, *more)
        self.assertEqual(full.returncode, 1, full.stderr)
        self.assertIn(b"the context is full", full.stderr)
        done = self.chat(text, *more, "--kv-keep", "64")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn(b"the context is full", done.stderr)
        self.assertEqual(done.stderr.count(b"200 tokens"), 3)
        self.assertTrue(done.stdout.startswith(full.stdout.rstrip(b"\n")[:200]))
        again = self.chat(text, *more, "--kv-keep", "64", "--threads", "1")
        self.assertEqual(again.stdout, done.stdout)

    def test_a_model_without_a_template_continues_the_text(self):
        out = self.succeed("chat", "-m", self.model, "-n", "8", "-q",
                           "--temp", "0", stdin="Once upon a\n")
        want = self.succeed("run", "-m", self.model, "-n", "8", "-q", "--prompt",
                            "Once upon a")
        self.assertEqual(out, want)
        self.fail_with(2, "chat", "-m", self.model, "--system", "x",
                       says="--system")


class Terminal(ChatModel):
    """A person at a terminal."""

    def setUp(self):
        super().setUp()
        self.seen = ""
        self.start("-n", "60")

    def start(self, *more):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ.update(self.environment, TERM="xterm", LC_ALL="C.UTF-8")
            command = self.command("chat", "-m", self.chat_model, "--ctx",
                                   "20000", "--temp", "0", *more)
            os.execv(command[0], command)
        self.addCleanup(self.end)

    def end(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1

    def type(self, text):
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern):
        """Reads until the screen shows the pattern; what came before it."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            match = re.search(pattern, self.seen)
            if match:
                before = self.seen[:match.end()]
                self.seen = self.seen[match.end():]
                return before
            self.assertLess(time.monotonic(), deadline,
                            f"no {pattern!r} in {self.seen!r}")
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    data = os.read(self.terminal, 4096)
                except OSError:
                    self.fail(f"ended before {pattern!r}: {self.seen!r}")
                self.seen += CONTROLS.sub("", data.decode("utf-8", "replace"))

    def code(self):
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if select.select([self.terminal], [], [], 0.05)[0]:
                try:
                    os.read(self.terminal, 4096)
                except OSError:
                    pass
        self.fail("does not end")

    def test_a_conversation(self):
        self.wait_for(r"chatty \| .*context 20000 tokens")
        self.wait_for("> ")
        self.type("Once upon\r")
        self.wait_for(r"tokens \| .* tok/s .*context \d+ of 20000")
        self.type("/exit\r")
        self.assertEqual(self.code(), 0)

    def test_ctrl_d_leaves(self):
        self.wait_for("> ")
        self.type("\x04")
        self.assertEqual(self.code(), 0)

    def test_ctrl_c_stops_the_answer_and_keeps_the_session(self):
        self.end()
        self.seen = ""
        self.start("-n", "19000", "--ignore-eos")
        self.wait_for("> ")
        self.type("Once upon\r")
        self.wait_for("Once upon\n[^|]{20}")
        self.type("\x03")
        self.wait_for(r"\| stopped")
        self.wait_for("> ")
        self.type("/help\r")
        self.wait_for("/reset")
        self.type("\x04")
        self.assertEqual(self.code(), 0)

    def test_ctrl_c_at_the_prompt_drops_the_line(self):
        self.wait_for("> ")
        self.type("/exit")
        self.wait_for("/exit")
        self.type("\x03")
        self.wait_for("> ")
        self.type("\x03")
        self.wait_for("Ctrl-D")
        self.type("/system\r")
        self.wait_for("No system message")
        self.type("\x04")
        self.assertEqual(self.code(), 0)

    def test_a_paste_is_one_message(self):
        self.wait_for("> ")
        self.type("\x1b[200~/system one\rtwo\tthree\x1b[201~\r")
        self.wait_for("System message: one two three")
        self.type("\x04")
        self.assertEqual(self.code(), 0)

    def test_what_was_typed_comes_back_even_in_the_next_chat(self):
        self.wait_for("> ")
        self.type("/system größer\r")
        self.wait_for("System message: größer")
        self.type("\x04")
        self.assertEqual(self.code(), 0)
        self.end()
        self.seen = ""
        self.start()
        self.wait_for("> ")
        self.type("\x1b[A\r")
        self.wait_for("System message: größer")

    def test_what_is_typed_during_an_answer_waits_unseen(self):
        self.end()
        self.seen = ""
        self.start("-n", "400", "--ignore-eos")
        self.wait_for("> ")
        self.type("Once upon\r")
        self.wait_for("Once upon\n[^|]{20}")
        self.type("/system \x1b[200~one\rtwo\x1b[201~\r")
        answer = self.wait_for(r"tok/s")
        self.assertNotIn("/system", answer)
        self.wait_for("System message: one two")

    def test_lines_are_edited(self):
        self.wait_for("> ")
        self.type("system ab\x7f\x01/\r")  # backspace, Ctrl-A
        self.wait_for("System message: a")

    def test_a_termination_ends_it_at_once(self):
        self.wait_for("> ")
        os.kill(self.pid, signal.SIGTERM)
        self.assertEqual(self.code(), 143)


if __name__ == "__main__":
    main()
