#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tools/parity.py as a test: skipped where mlx-lm is not installed.

    parity_test.py --python PYTHON_WITH_MLX_LM -- arguments of tools/parity.py
"""

import os
import subprocess
import sys
from pathlib import Path

import flash

MLX_LM = "0.32.2"
PROBE = "import importlib.metadata as m; print(m.version('mlx-lm'))"


def main() -> int:
    if len(sys.argv) < 4 or sys.argv[1] != "--python" or sys.argv[3] != "--":
        print(__doc__.strip(), file=sys.stderr)
        return 2
    python, arguments = sys.argv[2], sys.argv[4:]
    if not os.access(python, os.X_OK):
        flash.skip(f"{python} is missing (`tools/setup.sh parity` makes it)")
    probe = subprocess.run([python, "-c", PROBE], capture_output=True, text=True)
    found = probe.stdout.strip() or "no mlx-lm"
    if found != MLX_LM:
        flash.skip(f"{python} has {found}, the tests compare with mlx-lm {MLX_LM}")
    script = Path(__file__).resolve().parents[2] / "tools" / "parity.py"
    sys.stdout.flush()
    return subprocess.run([python, str(script), *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main())
