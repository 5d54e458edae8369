#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs clang-tidy (.clang-tidy) and clang's thread safety analysis over src/.

  tools/clang_tidy.py BUILD_FOLDER [PATH_PREFIX...]

One process a core. A file that passed is not looked at again until it, a
header it includes, its command or the configuration changes: what each object
file was made of is asked of ninja. Tests and benchmarks are left out; the
compiler's own warnings cover them.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("src/",)
SKIP = re.compile(r"_(test|bench)(_\w+)?\.cpp$|/testing/")
PCH = re.compile(r" (-Winvalid-pch|-fpch-preprocess|"
                 r'-include ("[^"]*cmake_pch\.hxx"|\S*cmake_pch\.hxx))(?= )')
OPTIONS = ["--quiet", "--extra-arg=-Wthread-safety",
           "--extra-arg=-Wno-string-conversion",  # CHECK(false && "why")
           "--extra-arg=-Wno-unknown-warning-option",
           "--extra-arg=-Wno-unused-command-line-argument"]


def dependencies(build):
    """object -> files it was made of, from ninja's log."""
    out = subprocess.run(["ninja", "-C", build, "-t", "deps"], check=False,
                         capture_output=True, text=True).stdout
    result, current = {}, None
    for line in out.splitlines():
        if line.startswith("    "):
            if current is not None:
                current.append(line.strip())
        elif ": #deps" in line:
            current = result.setdefault(line.split(": #deps")[0], [])
    return result


def without_precompiled_headers(entries, cache):
    """A folder with the same commands but for GCC's precompiled headers, which
    clang cannot read; every file includes what it needs by itself."""
    folder = cache / "commands"
    folder.mkdir(exist_ok=True)
    plain = [dict(entry, command=PCH.sub(" ", entry["command"]))
             for entry in entries]
    (folder / "compile_commands.json").write_text(json.dumps(plain))
    return str(folder)


class Digests:
    def __init__(self):
        self.known = {}

    def of(self, path):
        if path not in self.known:
            try:
                data = Path(path).read_bytes()
            except OSError:
                data = os.urandom(16)  # gone: never up to date
            self.known[path] = hashlib.sha256(data).hexdigest()
        return self.known[path]


def key_of(entry, build, depends, digests, base):
    """What a result is a function of; None while the file was never built."""
    made_of = depends.get(entry.get("output", ""))
    if not made_of:
        return None
    digest = hashlib.sha256(base.encode())
    digest.update(entry["command"].encode())
    for path in sorted({os.path.join(build, p) for p in made_of}):
        digest.update(f"{path} {digests.of(path)}\n".encode())
    return digest.hexdigest()


def main():
    build = os.path.abspath(sys.argv[1])
    prefixes = tuple(sys.argv[2:]) or OURS
    tool = shutil.which("clang-tidy-14") or shutil.which("clang-tidy")
    if tool is None:
        sys.exit("error: clang-tidy is missing: run tools/setup.sh lint")
    version = subprocess.run([tool, "--version"], check=True,
                             capture_output=True, text=True).stdout
    base = version + str(OPTIONS) + (ROOT / ".clang-tidy").read_text()
    cache = Path(build, "..", "lint").resolve()
    cache.mkdir(parents=True, exist_ok=True)
    entries = json.loads(Path(build, "compile_commands.json").read_text())
    commands = without_precompiled_headers(entries, cache)
    depends, digests, work = dependencies(build), Digests(), {}
    for entry in entries:
        name = os.path.relpath(entry["file"], ROOT)
        if name.startswith(prefixes) and not SKIP.search(name):
            work[name] = key_of(entry, build, depends, digests, base)

    def check(name):
        mark = cache / (work[name] or "none")
        if work[name] and mark.exists():
            return name, 0, ""
        done = subprocess.run([tool, "-p", commands, *OPTIONS, str(ROOT / name)],
                              check=False, capture_output=True, text=True)
        if done.returncode == 0 and work[name]:
            mark.touch()
        return name, done.returncode, done.stdout or done.stderr

    failures = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, code, output in pool.map(check, sorted(work)):
            if code:
                failures += 1
                print(output.replace(f"{ROOT}/", "").rstrip())
    print(f"clang-tidy: {len(work)} files, {failures} with errors",
          file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
