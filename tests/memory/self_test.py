#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Shows that memory_test.py can fail.

Stand-ins play mlx-flash: an honest one that reads its model directly, and ones
that break one promise each. The honest one passes, every other is caught.
"""

import contextlib
import io
import os
import sys
import tempfile
import unittest
from pathlib import Path

import memory_test

MODEL_BYTES = 96 * 10**6
RAM = 48 * 10**6

STAND_IN = r'''#!%(python)s
import json, mmap, os, sys
cheat = "%(cheat)s"
o = dict(zip(sys.argv[2::2], sys.argv[3::2]))
o.update({"--prompt": sys.argv[-1]})
n = int(o["--max-tokens"])
ram = int(o["--ram"][:-2]) * 10**6
size = os.path.getsize(o["--model"])
pinned = 16 << 20 if ram < size else size
step, streamed = 1 << 20, (size - pinned) // (1 << 20) << 20
buffer = mmap.mmap(-1, step)
direct = os.open(o["--model"], os.O_RDONLY | os.O_DIRECT)
cached = os.open(o["--model"], os.O_RDONLY)
hoard = []
for token in range(n):
    if cheat == "keeps" and token > 0 and ram < size:
        continue
    for at in range(0, streamed, step):
        if cheat == "caches":
            os.preadv(cached, [buffer], at)
        else:
            os.preadv(direct, [buffer], at)
    if cheat == "twice":
        for at in range(0, streamed, step):
            os.preadv(direct, [buffer], at)
if cheat == "hoards" and ram < size:
    hoard = bytearray(ram)
    for at in range(0, ram, 4096): hoard[at] = 1
tokens = [(7 * i) %% 100 for i in range(n)]
if cheat == "answers" and ram < size:
    tokens[-1] += 1
said = streamed * (2 if cheat == "boasts" else 1)
if cheat == "fails":
    sys.exit("disk error at offset 12")
print(json.dumps({"ram_bytes": ram, "peak_rss_bytes": 20 * 10**6,
    "pass_bytes": size, "pinned_bytes": pinned, "tokens": tokens,
    "generated_tokens": n, "bytes_read_per_token": said}))
'''


class MemoryTestCanFail(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(dir=os.getcwd())
        cls.model = Path(cls.folder.name, "model.gguf")
        with open(cls.model, "wb") as file:
            for _ in range(MODEL_BYTES // 10**6):
                file.write(os.urandom(10**6))
        if not memory_test.reads_are_counted(cls.model):
            raise unittest.SkipTest("reads are not counted here")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def outcome(self, cheat):
        binary = Path(self.folder.name, f"flash-{cheat}")
        binary.write_text(STAND_IN % {"python": sys.executable,
                                      "cheat": cheat})
        binary.chmod(0o755)
        sys.argv = ["memory_test.py", "--binary", str(binary), "--model",
                    str(self.model), "--ram", str(RAM), "--tokens", "2", "5"]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = memory_test.main()
        return code, out.getvalue()

    def caught(self, cheat, message):
        code, out = self.outcome(cheat)
        self.assertEqual(code, 1, out)
        failed = [line for line in out.splitlines() if "FAIL" in line]
        self.assertTrue(any(message in line for line in failed), out)

    def test_an_honest_run_passes(self):
        code, out = self.outcome("none")
        self.assertEqual(code, 0, out)

    def test_weights_left_in_the_page_cache_are_caught(self):
        self.caught("caches", "page cache")

    def test_weights_kept_in_memory_are_caught(self):
        self.caught("keeps", "0.9 (M - R)")

    def test_reading_too_much_is_caught(self):
        self.caught("twice", "hardly more")

    def test_memory_beyond_the_budget_is_caught(self):
        code, out = self.outcome("hoards")
        self.assertEqual(code, 1, out)

    def test_another_answer_is_caught(self):
        self.caught("answers", "tokens as with plenty")

    def test_a_wrong_figure_is_caught(self):
        self.caught("boasts", "a token")

    def test_a_failing_run_is_caught(self):
        self.caught("fails", "disk error at offset 12")


if __name__ == "__main__":
    unittest.main()
