#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`pip install .` of a fresh clone into a fresh environment: it answers, and says
what to install beside another mlx. Needs git and a package index: exit code 77
without.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clone, python = folder / "clone", folder / "venv" / "bin" / "python"
        if subprocess.run(["git", "clone", "-q", ROOT, clone], check=False).returncode != 0:
            print("SKIP: this tree is no git repository")
            return 77
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pip = [python, "-m", "pip", "-q"]
        reachable = [*pip, "download", "--no-deps", "-d", folder, "nanobind"]
        if subprocess.run(reachable, capture_output=True, check=False).returncode != 0:
            print("SKIP: no package index can be reached")
            return 77
        subprocess.run([*pip, "install", clone], check=True)
        model = clone / "testdata" / "models" / "stories260K"
        words = ["run", "-m", model, "-p", "Once upon a time", "--raw", "-n", "8", "--json"]
        done = subprocess.run(
            [python, "-m", "mlx_flash", *words],
            cwd=folder, check=True, capture_output=True, text=True,
        )  # fmt: skip
        report = json.loads(done.stdout)
        assert report["generated_tokens"] == 8, report
        # Another mlx, as far as the package can tell.
        (notes,) = (folder / "venv").glob("lib/python*/site-packages/mlx-*.dist-info/METADATA")
        text = notes.read_text(encoding="utf-8")
        notes.write_text(re.sub(r"(?m)^Version: .*", "Version: 0.31.0", text), encoding="utf-8")
        done = subprocess.run(
            [python, "-c", "import mlx_flash"],
            cwd=folder, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode != 0
        assert "mlx_flash needs mlx==0.32.4, found 0.31.0: pip install mlx==0.32.4" in done.stderr
    print("installed, answered, refused another mlx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
