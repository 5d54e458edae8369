#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How the program ends: closed pipes, full disks, signals."""

import json
import os
import shutil
import signal
import subprocess
import time
import unittest

from program import Case, TIMEOUT_S, main


class Process(Case):
    def start(self, *args, **more):
        process = subprocess.Popen(self.command(*args),
                                   stdin=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE,
                                   env=self.environment, **more)
        self.addCleanup(process.stderr.close)
        return process

    def test_a_reader_that_leaves_ends_the_run_quietly(self):
        read, write = os.pipe()
        process = self.start("run", "-m", self.model, "--prompt-ids", "1", "-n",
                             "400", "--ignore-eos", stdout=write)
        os.close(write)
        os.read(read, 4)
        os.close(read)
        self.assertEqual(process.wait(TIMEOUT_S), 1)
        self.assertEqual(process.stderr.read(), b"")

    def test_every_command_notices_that_nobody_reads(self):
        for args in (["--help"], ["--version"],
                     ["tokenize", "-m", self.model, "--text", "a"],
                     ["inspect", "-m", self.model],
                     ["run", "-m", self.model, "-p", "Once", "--json"]):
            read, write = os.pipe()
            os.close(read)
            process = self.start(*args, stdout=write)
            os.close(write)
            self.assertEqual(process.wait(TIMEOUT_S), 1, args)
            self.assertEqual(process.stderr.read(), b"", args)

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_a_full_disk_is_an_error_of_the_run(self):
        for args in (["run", "-m", self.model, "-p", "Once"],
                     ["run", "-m", self.model, "-p", "Once", "--json"],
                     ["plan", "-m", self.model], ["inspect", "-m", self.model],
                     ["tokenize", "-m", self.model, "--text", "a"],
                     ["score", "-m", self.model, "--text", "a b", "--json"]):
            with open("/dev/full", "wb") as full:
                process = self.start(*args, stdout=full)
                self.assertEqual(process.wait(TIMEOUT_S), 1, args)
            message = process.stderr.read().decode()
            self.assertTrue(message.startswith("mlx-flash: error: stdout"),
                            message)
            self.assertIn("No space left", message)

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_logits_that_do_not_fit_are_an_error_of_the_run(self):
        done = self.run_program("score", "-m", self.model, "--text",
                                "a b c d e f " * 20, "--logits", "/dev/full")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"/dev/full", done.stderr)

    def slow_model(self):
        """The small model with room for a long answer."""
        slow = self.folder / "slow"
        shutil.copytree(self.model, slow)
        config = json.loads((slow / "config.json").read_text())
        config["max_position_embeddings"] = 1 << 17
        (slow / "config.json").write_text(json.dumps(config))
        return slow

    def test_a_signal_stops_a_run_with_what_was_said(self):
        model = self.slow_model()
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = self.start("run", "-m", model, "--prompt-ids", "1", "-n",
                                 "100000", "--ignore-eos", "--ctx", "100000",
                                 stdout=subprocess.PIPE)
            first = process.stdout.read(16)
            process.send_signal(number)
            sent = time.monotonic()
            out, _ = process.communicate(timeout=TIMEOUT_S)
            self.assertEqual(process.returncode, code)
            self.assertLess(time.monotonic() - sent, 5)
            self.assertTrue((first + out).startswith(b"Once upon a time"))
            self.assertTrue((first + out).endswith(b"\n"))

    def test_an_interrupted_run_still_prints_its_figures(self):
        model = self.slow_model()
        process = self.start("run", "-m", model, "--prompt-ids", "1", "-n",
                             "100000", "--ignore-eos", "--ctx", "100000",
                             stdout=subprocess.PIPE)
        process.stdout.read(16)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        process.stdout.close()
        self.assertEqual(process.wait(TIMEOUT_S), 130)
        self.assertRegex(process.stderr.read().decode(),
                         r"^model: slow \| .* tok/s .*\n$")

    def test_an_interrupted_run_still_gives_its_json(self):
        model = self.slow_model()
        process = self.start("run", "-m", model, "--prompt-ids", "1", "-n",
                             "100000", "--ignore-eos", "--ctx", "100000",
                             "--json", stdout=subprocess.PIPE)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=TIMEOUT_S)
        self.assertEqual(process.returncode, 130)
        report = json.loads(out)
        self.assertEqual(report["finish_reason"], "interrupted")
        self.assertGreater(report["generated_tokens"], 0)

    def test_an_interrupted_score_leaves_no_half_file(self):
        model = self.slow_model()
        logits = self.folder / "logits.npy"
        text = self.file("long.txt", "Once upon a time there was. " * 2500)
        process = self.start("score", "-m", model, "--text-file", text,
                             "--logits", logits, stdout=subprocess.PIPE)
        deadline = time.monotonic() + TIMEOUT_S
        while not (logits.exists() and logits.stat().st_size > 4096):
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(process.poll(), "too quick to be interrupted")
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=TIMEOUT_S)
        self.assertEqual((process.returncode, out), (130, b""))
        self.assertFalse(logits.exists())


if __name__ == "__main__":
    main()
