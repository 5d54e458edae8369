# SPDX-License-Identifier: MIT
"""All architectures of mlx-lm (walk.py), in a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["--bits", "4"]], ids=["float32", "4 bits"])
def test_every_architecture_equals_mlx_lm(kind):
    walk = [sys.executable, str(Path(__file__).parent / "walk.py"), "--fast", *kind]
    done = subprocess.run(walk, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
