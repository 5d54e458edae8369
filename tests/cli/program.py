# SPDX-License-Identifier: MIT
"""The program under test, for the tests beside this file. Standard library
only."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TIMEOUT_S = 60
ERROR = "mlx-flash: error: "


class Case(unittest.TestCase):
    """Runs the binary; checks what every error must be."""

    binary = ""
    model = ""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.environment = {
            **os.environ,
            "MLX_FLASH_CACHE": str(self.folder / "cache"),
            "HF_HOME": str(self.folder / "hub"),
            "HF_HUB_OFFLINE": "1",  # no test needs the network
        }
        for name in ("HF_HUB_CACHE", "XDG_CACHE_HOME"):
            self.environment.pop(name, None)

    def command(self, *args):
        return [self.binary, *map(str, args)]

    def run_program(self, *args, stdin=b""):
        if isinstance(stdin, str):
            stdin = stdin.encode()
        return subprocess.run(self.command(*args), input=stdin,
                              capture_output=True, timeout=TIMEOUT_S,
                              env=self.environment, check=False)

    def succeed(self, *args, stdin=b""):
        """stdout as text; the command must exit with 0."""
        done = self.run_program(*args, stdin=stdin)
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return done.stdout.decode()

    def succeed_json(self, *args, stdin=b""):
        out = self.succeed(*args, "--json", stdin=stdin)
        self.assertEqual(out.count("\n"), 1, "one object on one line")
        return json.loads(out)

    def fail_with(self, code, *args, says=(), stdin=b""):
        """One line on stderr that holds all of `says`, nothing on stdout."""
        done = self.run_program(*args, stdin=stdin)
        message = done.stderr.decode()
        self.assertEqual(done.returncode, code, message)
        self.assertEqual(done.stdout, b"")
        self.assertTrue(message.startswith(ERROR), message)
        self.assertEqual(message.count("\n"), 1, message)
        self.assertTrue(message.endswith("\n"))
        for word in (says,) if isinstance(says, str) else says:
            self.assertIn(word, message)
        return message

    def file(self, name, content):
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        return path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    options, rest = parser.parse_known_args()
    Case.binary = os.path.abspath(options.binary)
    Case.model = os.path.abspath(options.model)
    unittest.main(module="__main__", argv=[sys.argv[0], *rest])
