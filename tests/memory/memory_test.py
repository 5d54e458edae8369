#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The promise of --ram, checked from outside the process.

  memory_test.py --binary mlx-flash --model M --ram SIZE_BYTES [...]
  memory_test.py --binary mlx-flash --smollm2
  memory_test.py --binary mlx-flash --synthetic 1.5GB --work FOLDER

Runs the model inside a control group whose limit is the budget exactly, twice
with different token counts, and once with plenty of memory. What the process
says (`run --json`) is compared with what the kernel counted:

  - it was not killed; its peak plus what it left of the model file in the page
    cache is within the budget;
  - each token read at least 0.9 (M - R) bytes from the disk, so nothing hides
    in memory, and not much more; the figure it prints is that figure;
  - the answer is the same.

Where no control group can be made the reason is printed after SKIP and all
else is checked all the same. Standard library only.
"""

import argparse
import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cgroup

ROOT = Path(__file__).resolve().parent.parent.parent
SKIPPED = 77
PROMPT = "Explain in a few sentences why the sky is blue."


class Run:
    """One finished process: its JSON, and what the kernel says of it."""

    def __init__(self, command, timeout_s):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            started = time.monotonic()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                       stdout=out, stderr=err)
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() - started > timeout_s:
                    process.kill()
                time.sleep(0.02)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.seconds = time.monotonic() - started
            self.code = process.returncode
            # The counters of /proc/PID/io and VmHWM, of all threads, kept by
            # the kernel past the end of the process.
            self.read_bytes = usage.ru_inblock * 512
            self.peak_bytes = usage.ru_maxrss * 1024
            out.seek(0)
            err.seek(0)
            self.text = out.read().decode("utf-8", "replace")
            self.errors = err.read().decode("utf-8", "replace")
        self.json = None
        if self.code == 0:
            try:
                self.json = json.loads(self.text)
            except ValueError:
                self.errors = "stdout is not one JSON object: " + self.text


def model_files(model):
    path = Path(model)
    if path.is_file():
        return [path]
    return sorted(path.glob("*.safetensors"))


def drop_from_cache(files):
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_in_cache(files):
    """How much of the files lies in the page cache (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
                          ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t,
                             ctypes.c_char_p]
    total = 0
    for path in files:
        size = path.stat().st_size
        with open(path, "rb") as file:
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED,
                                file.fileno(), 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"cannot map {path}")
        pages = -(-size // mmap.PAGESIZE)
        present = ctypes.create_string_buffer(pages)
        if libc.mincore(address, size, present) != 0:
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
        total += sum(b & 1 for b in present.raw) * mmap.PAGESIZE
        libc.munmap(address, size)
    return total


def reads_are_counted(path):
    """Whether a direct read of this file shows up in the kernel's count."""
    program = (
        "import mmap, os, sys\n"
        "f = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\n"
        "b = mmap.mmap(-1, 1 << 20)\n"
        "for i in range(8): os.preadv(f, [b], i << 20)\n")
    run = Run([sys.executable, "-c", program, str(path)], 60)
    return run.code == 0 and run.read_bytes >= 7 << 20


class Checker:
    def __init__(self):
        self.failures = 0

    def check(self, good, what):
        print(f"  {'ok  ' if good else 'FAIL'} {what}")
        self.failures += not good


def mb(count):
    return f"{count / 1e6:.2f} MB"


def flash_command(args, ram_bytes, tokens):
    prompt = (["--prompt-ids", args.prompt_ids] if args.prompt_ids
              else ["--prompt", PROMPT])
    return [args.binary, "run", "--model", str(args.model), "--ram",
            f"{ram_bytes // 1000000}MB", "--max-tokens", str(tokens),
            "--temp", "0", "--json", *prompt]


def limited_runs(args, files, checker):
    """Two runs under the limit; None when one of them failed."""
    runs = []
    for tokens in args.tokens:
        drop_from_cache(files)
        before = bytes_in_cache(files)
        command = flash_command(args, args.ram, tokens)
        try:
            with cgroup.Group(args.ram) as group:
                where = group.kind
                run = Run(group.wrap(command), args.timeout)
                figures = group.figures()
        except cgroup.Unavailable as why:
            where, figures = "no control group", ""
            print(f"SKIP the limit by the kernel: {why}")
            run = Run(command, args.timeout)
        run.cached_bytes = max(0, bytes_in_cache(files) - before)
        print(f"{args.ram // 1000000} MB, {tokens} tokens, {where}: exit "
              f"{run.code} after {run.seconds:.1f} s; {figures}")
        if run.json is None:
            killed = " (killed: out of memory?)" if run.code == -9 else ""
            checker.check(False, f"runs in its budget{killed}: "
                          + run.errors.strip()[-400:])
            return None
        runs.append(run)
    return runs


def check_memory(args, run, checker):
    said = run.json["peak_rss_bytes"]
    checker.check(run.json["ram_bytes"] == args.ram,
                  f"ram_bytes is {args.ram}")
    checker.check(said <= args.ram, f"says a peak of {mb(said)}")
    total = run.peak_bytes + run.cached_bytes
    checker.check(total <= args.ram,
                  f"peak by the kernel {mb(run.peak_bytes)} + model file in "
                  f"the page cache {mb(run.cached_bytes)} <= {mb(args.ram)}")


def check_reads(args, files, runs, checker):
    short, long = runs
    m, r = long.json["pass_bytes"], long.json["pinned_bytes"]
    streamed = m - r
    size = sum(f.stat().st_size for f in files)
    checker.check(0.8 * size <= m <= size,
                  f"M = {mb(m)} is a pass over {mb(size)} of files")
    checker.check(0 <= r < args.ram < m,
                  f"R = {mb(r)} is within the budget, M is not")
    if not reads_are_counted(files[0]):
        print("SKIP the count of reads: this file system does not account "
              "them to the process")
        return
    tokens = long.json["generated_tokens"] - short.json["generated_tokens"]
    checker.check(tokens > 0, "the longer run generated more tokens")
    counted = (long.read_bytes - short.read_bytes) / max(1, tokens)
    checker.check(counted >= 0.9 * streamed,
                  f"read {mb(counted)} a token >= 0.9 (M - R) = "
                  f"{mb(0.9 * streamed)}")
    checker.check(counted <= 1.15 * streamed + 2e6,
                  "and hardly more than M - R")
    said = long.json["bytes_read_per_token"]
    checker.check(abs(said - counted) <= 0.05 * counted + 1e6,
                  f"says {mb(said)} a token")


def check_answer(args, runs, checker):
    plenty = Run(flash_command(args, args.plenty, args.tokens[-1]),
                 args.timeout)
    if plenty.json is None:
        checker.check(False, "runs with plenty of memory: "
                      + plenty.errors.strip()[-400:])
        return
    expected = plenty.json["tokens"]
    checker.check(plenty.json["ram_bytes"] > args.ram
                  and plenty.json["pinned_bytes"] >
                  runs[-1].json["pinned_bytes"],
                  "the run with plenty of memory pins more")
    for run in runs:
        tokens = run.json["tokens"]
        checker.check(len(tokens) == run.json["generated_tokens"] > 0
                      and tokens == expected[:len(tokens)],
                      f"the same {len(tokens)} tokens as with plenty of "
                      "memory")


def check_long_prompt(args, checker):
    """What a prompt's rows borrowed is given back before tiles take its place:
    the tokens after it stay in the budget."""
    ids = [str(3 + i % 400) for i in range(args.long_prompt)]
    command = [args.binary, "run", "--model", str(args.model), "--ram",
               f"{args.ram // 1000000}MB", "--max-tokens", "3", "--temp", "0",
               "--json", "--prompt-ids", ",".join(ids)]
    try:
        with cgroup.Group(args.ram) as group:
            run = Run(group.wrap(command), args.timeout)
    except cgroup.Unavailable:
        run = Run(command, args.timeout)
    print(f"a prompt of {len(ids)} tokens: exit {run.code} after "
          f"{run.seconds:.1f} s")
    if run.json is None:
        checker.check(False, "runs in its budget: " + run.errors.strip()[-400:])
        return
    checker.check(run.json["prompt_tokens"] == len(ids), "the whole prompt")
    for peak in (run.json["peak_rss_bytes"], run.peak_bytes):
        checker.check(peak <= args.ram, f"a peak of {mb(peak)}")


def test(args):
    checker = Checker()
    files = model_files(args.model)
    if not files:
        print(f"FAIL {args.model}: no weights")
        return 1
    runs = limited_runs(args, files, checker)
    if runs:
        for run in runs:
            check_memory(args, run, checker)
        check_reads(args, files, runs, checker)
        check_answer(args, runs, checker)
    if args.long_prompt:
        check_long_prompt(args, checker)
    print(f"{checker.failures} failed" if checker.failures else "passed")
    return 1 if checker.failures else 0


def default_model():
    """Its path; None, and a line that says why, where it is not there."""
    found = subprocess.run([ROOT / "tools" / "run_default_model.sh", "--path"],
                           check=False, capture_output=True, text=True)
    if found.returncode:
        print(f"SKIP: {found.stderr.strip()}")
        return None
    return found.stdout.strip()


def test_smollm2(args):
    args.model, args.ram = default_model(), args.ram or 64 * 10**6
    if not args.model:
        return SKIPPED
    args.tokens = args.tokens or [2, 10]
    return test(args)


def test_synthetic(args):
    work = Path(args.work or tempfile.gettempdir())
    work.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(work).free < 4 * 10**9:
        print(f"SKIP: less than 4 GB free in {work}")
        return SKIPPED
    with tempfile.TemporaryDirectory(dir=work) as folder:
        args.model = os.path.join(folder, "model")
        subprocess.run([sys.executable, ROOT / "tools" /
                        "synth_model.py", args.model, "--size",
                        args.synthetic], check=True)
        args.ram = args.ram or 300 * 10**6
        args.tokens = args.tokens or [2, 5]
        args.prompt_ids = args.prompt_ids or "1,403,407,261"
        args.long_prompt = args.long_prompt or 300
        return test(args)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model")
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--synthetic", metavar="SIZE")
    parser.add_argument("--work", help="a folder on a real disk")
    parser.add_argument("--ram", type=int, help="bytes, whole MB")
    parser.add_argument("--plenty", type=int, default=4 * 10**9)
    parser.add_argument("--tokens", type=int, nargs=2)
    parser.add_argument("--prompt-ids")
    parser.add_argument("--long-prompt", type=int, metavar="TOKENS")
    parser.add_argument("--timeout", type=float, default=240)
    args = parser.parse_args()
    if sys.platform != "linux":
        print("SKIP: needs Linux's accounting of memory and reads")
        return SKIPPED
    if args.smollm2:
        return test_smollm2(args)
    if args.synthetic:
        return test_synthetic(args)
    if not args.model or not args.ram or not args.tokens:
        parser.error("--model needs --ram and --tokens")
    return test(args)


if __name__ == "__main__":
    sys.exit(main())
