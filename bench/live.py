#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A memory limit halved and doubled while a model writes, beside the law.

    bench/live.py --flash BIN [--limit 3500] [--read 800] [--tokens 8] MODEL

Sizes are in MB. One process in a control group (bench/limited.sh, as root): it
writes TOKENS tokens, its group's limit is halved (said first: cgroup v2's
memory.high, v1's soft limit), it writes TOKENS more, and so on with the old
limit again. A row for each token: its time, what it read, the disk's rate, what
the process holds. The answer must be that of a run without the group: if it is
not, or the process ends, the exit code is 1.
"""

import argparse
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def field(path, name):
    with open(path, encoding="ascii") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1])
    raise KeyError(f"{path}: no {name}")


class Group:
    """The memory group that a process of limited.sh runs in."""

    def __init__(self, pid):
        with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
            paths = {names: path for _, names, path in
                     (line.rstrip("\n").split(":", 2) for line in file)}
        self.v1 = "memory" in paths
        self.folder = "/sys/fs/cgroup" + (
            "/memory" + paths["memory"] if self.v1 else paths[""])

    def put(self, name, value):
        with open(os.path.join(self.folder, name), "w",
                  encoding="ascii") as file:
            file.write(str(value))

    def ask(self, size):
        self.put("memory.soft_limit_in_bytes" if self.v1 else "memory.high",
                 size)

    def limit(self, size):
        """False where v1 refuses: more than that is still used."""
        try:
            self.put("memory.limit_in_bytes" if self.v1 else "memory.max",
                     size)
            return True
        except OSError:
            return False


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def find(pid, name):
    """The process of that name below `pid`, once it is there."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        below = [pid]
        for each in below:
            try:
                if os.path.basename(os.readlink(f"/proc/{each}/exe")) == name:
                    return each
                below += children(each)
            except OSError:
                continue
        time.sleep(0.01)
    sys.exit(f"live.py: {name} did not start")


def words(stream, pid):
    """(time, bytes read from the disk, bytes held, text) of each piece."""
    while True:
        text = stream.read1(4096)
        if not text.strip():
            if not text:
                return
            continue
        yield (time.monotonic(), field(f"/proc/{pid}/io", "read_bytes"),
               1024 * field(f"/proc/{pid}/status", "VmRSS"), text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flash", required=True)
    parser.add_argument("--limit", type=int, default=3500)
    parser.add_argument("--read", type=int, default=800)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("model")
    args = parser.parse_args()
    full, half = args.limit * 10**6, args.limit * 10**6 // 2
    run = [os.path.abspath(args.flash), "run", "-m", args.model, "--raw",
           "-p", "a b c", "-n", str(3 * args.tokens), "--ignore-eos", "--temp",
           "0", "--ctx", "256", "--quiet", "--ram"]
    plenty = subprocess.run([*run, "20GB"], check=True, capture_output=True,
                            stdin=subprocess.DEVNULL)
    process = subprocess.Popen(
        [os.path.join(HERE, "limited.sh"), "--memory", f"{args.limit}MB",
         "--read", f"{args.read}MB", "--disk", args.model, "--", *run,
         f"{args.limit}MB"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    pid = find(process.pid, os.path.basename(os.path.realpath(args.flash)))
    group, answer, wanted, refused = Group(pid), b"", None, 0
    print("| token | limit, MB | s | read, MB | MB/s | holds, MB |\n"
          "|---|---|---|---|---|---|", flush=True)
    last = None
    for count, (now, read, holds, text) in enumerate(
            words(process.stdout, pid), 1):
        answer += text
        if last:
            took, size = now - last[0], (read - last[1]) / 1e6
            print(f"| {count} | {(wanted or full) // 10**6} | {took:.2f} | "
                  f"{size:.0f} | {size / took:.0f} | {holds / 1e6:.0f} |",
                  flush=True)
        last = now, read
        if count == args.tokens:
            group.ask(half)
            wanted = half
        elif count == 2 * args.tokens:
            group.limit(full)
            group.ask(full)
            wanted = full
        if wanted == half and not group.limit(half):
            refused += 1
    code = process.wait()
    same = answer.split() == plenty.stdout.split()
    print(f"exit {code}, refused {refused} times, "
          f"{'the same' if same else 'ANOTHER'} answer as with plenty "
          f"({len(answer)} bytes)")
    return 0 if code == 0 and same else 1


if __name__ == "__main__":
    sys.exit(main())
