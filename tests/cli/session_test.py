#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`--session`: a conversation goes on after a restart, and a file that does
not hold is computed again."""

import json
import shutil
import subprocess
import time

from program import Case, main

TEMPLATE = ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")
WORDS = "Once upon a time there was a little dog. "


class LongModel(Case):
    """The small model with room for a long conversation."""

    def setUp(self):
        super().setUp()
        self.long = self.folder / "long"
        shutil.copytree(self.model, self.long)
        config = json.loads((self.long / "config.json").read_text())
        config["max_position_embeddings"] = 1 << 16
        (self.long / "config.json").write_text(json.dumps(config))
        self.session = self.folder / "talk"


class Run(LongModel):
    def answer(self, prompt, *more):
        return self.succeed_json("run", "-m", self.long, "--temp", "0", "-n",
                                 "12", "--ctx", "3000", "--prompt", prompt,
                                 *more)

    def test_a_longer_prompt_computes_only_what_is_new(self):
        for bits in ("0", "8"):
            more = ("--kv-quant", bits)
            plain = self.answer(WORDS * 60, *more)
            keep = ("--session", self.session, *more)
            first = self.answer(WORDS * 60, *keep)
            self.assertEqual(first["tokens"], plain["tokens"])
            self.assertEqual(first["cached_tokens"], 0)
            # The answer is shorter than what every cache goes back at once.
            again = self.answer(WORDS * 60, *keep)
            self.assertEqual(again["tokens"], plain["tokens"])
            self.assertEqual(again["prompt_tokens"], plain["prompt_tokens"])
            self.assertEqual(again["cached_tokens"],
                             plain["prompt_tokens"] - 1)
            after = self.answer(WORDS * 70, *keep)
            self.assertGreater(after["cached_tokens"],
                               plain["prompt_tokens"] - 5)
            self.assertEqual(after["tokens"],
                             self.answer(WORDS * 70, *more)["tokens"])
            self.session.unlink()

    def test_in_full_precision_any_prefix_is_kept(self):
        for more in ((), ("--kv-ram", "1KB", "--kv-dir", self.folder / "kv")):
            keep = ("--session", self.session, *more)
            whole = self.answer(WORDS * 90, *keep)
            short = WORDS * 30 + "The cat"
            after = self.answer(short, *keep)
            self.assertGreater(after["cached_tokens"],
                               whole["prompt_tokens"] // 4)
            self.assertEqual(after["tokens"], self.answer(short)["tokens"])
            self.session.unlink()

    def test_a_damaged_file_is_said_and_computed_again(self):
        prompt = WORDS * 40
        plain = self.answer(prompt)
        self.answer(prompt, "--session", self.session)
        data = bytearray(self.session.read_bytes())
        data[len(data) // 2] ^= 16
        self.session.write_bytes(data)
        done = self.run_program("run", "-m", self.long, "--temp", "0", "-n",
                                "12", "--ctx", "3000", "--prompt", prompt,
                                "--json", "--session", self.session)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn(b"damaged", done.stderr)
        report = json.loads(done.stdout)
        self.assertEqual(report["tokens"], plain["tokens"])
        self.assertEqual(report["cached_tokens"], 0)
        # And it is whole again.
        again = self.answer(prompt, "--session", self.session)
        self.assertGreater(again["cached_tokens"], 0)

    def test_somebodys_file_is_refused_and_stays(self):
        path = self.file("notes.md", "# My notes\n")
        self.fail_with(2, "run", "-m", self.long, "--prompt", "a", "--session",
                       path, says="not a session file")
        self.assertEqual(path.read_text(), "# My notes\n")
        self.fail_with(2, "run", "-m", self.long, "--prompt", "a", "--kernels",
                       "stock", "--session", self.session, says="fast")

    def cached(self, path, prompt):
        """Tokens of the prompt that a copy of the file has."""
        copy = self.folder / "copy"
        shutil.copyfile(path, copy)
        done = self.run_program("run", "-m", self.long, "-n", "1", "--ctx",
                                "3000", "--prompt", prompt, "--json",
                                "--session", copy)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn(b"damaged", done.stderr)
        return json.loads(done.stdout)["cached_tokens"]

    def test_killed_while_it_saves_the_file_is_whole(self):
        prompts = [WORDS * 120, "The " + WORDS * 120]
        self.answer(prompts[0], "--session", self.session)
        cut = 0
        for attempt in range(12):
            # Nearly all of it is new: there is much to write.
            command = self.command("run", "-m", self.long, "-n", "1", "-q",
                                   "--ctx", "3000", "--prompt",
                                   prompts[(attempt + 1) % 2], "--session",
                                   self.session)
            before = self.session.stat()
            with subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                  env=self.environment) as child:
                while (child.poll() is None and
                       self.session.stat().st_mtime_ns == before.st_mtime_ns):
                    pass
                time.sleep(attempt * 0.0003)
                child.kill()
                cut += child.wait() != 0
            # In place: one of the two conversations, and whole.
            self.assertEqual(self.session.stat().st_ino, before.st_ino)
            self.assertFalse((self.folder / "talk.new").exists())
            self.assertGreater(
                max(self.cached(self.session, text) for text in prompts), 1000)
        self.assertGreater(cut, 0, "it was never killed while it saved")


class Chat(LongModel):
    def chat(self, text, *more):
        return self.run_program("chat", "-m", self.long, "--temp", "0", "-n",
                                "8", "--ctx", "1000", *more, stdin=text)

    def setUp(self):
        super().setUp()
        (self.long / "chat_template.jinja").write_text(TEMPLATE)

    def test_two_starts_are_one_conversation(self):
        whole = self.chat("Once\nThe dog\nAnd then\n", "--system", "be kind")
        first = self.chat("Once\nThe dog\n", "--system", "be kind",
                          "--session", self.session)
        self.assertEqual(first.returncode, 0, first.stderr)
        second = self.chat("And then\n", "--session", self.session)
        self.assertEqual(second.returncode, 0, second.stderr)
        self.assertEqual(first.stdout + second.stdout, whole.stdout)
        self.assertIn(b"goes on: 4 messages", second.stderr)

    def test_killed_all_that_was_said_is_kept(self):
        with subprocess.Popen(
                self.command("chat", "-m", self.long, "--temp", "0", "-n", "8",
                             "--ctx", "1000", "--session", self.session),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, env=self.environment) as child:
            child.stdin.write(b"Once\nThe dog\n")
            child.stdin.flush()
            deadline = time.monotonic() + 60
            saved = 0
            while saved < 2 and time.monotonic() < deadline:
                saved = self.messages() // 2
                time.sleep(0.01)
            child.kill()
            said = child.stdout.read()
        second = self.chat("And then\n", "--session", self.session)
        self.assertIn(b"goes on: 4 messages", second.stderr)
        whole = self.chat("Once\nThe dog\nAnd then\n")
        self.assertEqual(said + second.stdout, whole.stdout)

    def messages(self):
        """How many the file's conversation has, as far as it shows."""
        data = self.session.read_bytes() if self.session.exists() else b""
        # One that nothing names any more may be left behind it.
        return max((part.split(b"\0")[0].count(b'"role"')
                    for part in data.split(b'"messages"')[1:]), default=0)

    def test_what_was_said_before_an_error_is_kept(self):
        failed = self.chat("Once\n/nonsense\n", "--session", self.session)
        self.assertEqual(failed.returncode, 2)
        second = self.chat("The dog\n", "--session", self.session)
        self.assertEqual(failed.stdout + second.stdout,
                         self.chat("Once\nThe dog\n").stdout)

    def test_reset_forgets_it(self):
        self.chat("Once\n/reset\n", "--session", self.session)
        second = self.chat("The dog\n", "--session", self.session)
        self.assertEqual(second.stdout, self.chat("The dog\n").stdout)


if __name__ == "__main__":
    main()
