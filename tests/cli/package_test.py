#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Installs the build into a temporary folder; the examples must build alone
against it, without warnings, and run."""

import argparse
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TIMEOUT_S = 280


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True,
                          text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise AssertionError(f"{command} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


class Package(unittest.TestCase):
    options = None

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.prefix = cls.folder / "prefix"
        run(cls.options.cmake, "--install", cls.options.build, "--prefix",
            cls.prefix)

    def build(self, name):
        source = self.folder / name
        shutil.copytree(Path(self.options.examples) / name, source)
        run(self.options.cmake, "-S", source, "-B", source / "build", "-G",
            "Ninja", f"-DCMAKE_PREFIX_PATH={self.prefix}",
            f"-DCMAKE_CXX_COMPILER={self.options.compiler}",
            "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wshadow -Wconversion -Werror")
        run(self.options.cmake, "--build", source / "build")
        return source / "build" / name

    def test_the_installed_program_runs(self):
        out = run(self.prefix / "bin" / "mlx-flash", "run", "-m",
                  self.options.model, "--prompt-ids", "1", "-n", "8", "-q")
        self.assertTrue(out.startswith("Once upon a time"), out)

    def test_hello_world(self):
        out = run(self.build("hello_world"), self.options.model,
                  "Once upon a time")
        self.assertTrue(out.startswith("Once upon a time, there was"), out)

    def test_two_models(self):
        out = run(self.build("two_models"), self.options.model,
                  self.options.model, "200")
        self.assertTrue(out.startswith("Once upon a time, there was"), out)
        self.assertEqual(out.count(" / "), 4, out)


def main():
    parser = argparse.ArgumentParser()
    for name in ("cmake", "build", "examples", "compiler", "model"):
        parser.add_argument(f"--{name}", required=True)
    Package.options = parser.parse_args()
    unittest.main(argv=sys.argv[:1])


if __name__ == "__main__":
    main()
