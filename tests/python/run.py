#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs pytest on the package that `make python` built.

    run.py --package FOLDER --python PYTHON -- PYTEST ARGUMENTS

Exit code 77, with the reason, where either is missing.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    if not options.python.exists():
        print("SKIP: no Python environment for tests (make setup-parity)")
        return 77
    if not list(options.package.glob("mlx_flash/_engine*.so")):
        print("SKIP: the extension module is not built (make python)")
        return 77
    root = Path(__file__).resolve().parent.parent.parent
    environment = os.environ | {"PYTHONPATH": str(options.package)}
    tests = str(Path(__file__).resolve().parent)
    command = [str(options.python), "-m", "pytest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, tests, *options.arguments], env=environment, cwd=root, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
