#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The limit of a control group halved and doubled while an answer is written.

  live_test.py --binary mlx-flash

The group says first what is to come (cgroup v2 memory.high, v1's soft limit)
and then sets the hard limit, which v1 refuses until the process has shrunk.
The process must live, its memory must follow down and up again, and the answer
must be the one of a process with plenty. Standard library only.
"""

import argparse
import subprocess
import sys
import time

import cgroup
from memory_test import PROMPT, SKIPPED, Checker, default_model, mb

FULL, HALF = 110 * 10**6, 60 * 10**6
TOKENS = 300
PATIENCE_S = 60


class Answer:
    """A process that writes text; what it has written so far."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        self.text = b""

    def read(self, count):
        """Waits for `count` bytes more. False when it ended before."""
        wanted = len(self.text) + count
        while len(self.text) < wanted:
            some = self.process.stdout.read1(wanted - len(self.text))
            if not some:
                return False
            self.text += some
        return True

    def finish(self):
        rest, self.errors = self.process.communicate(timeout=300)
        self.text += rest
        return self.process.returncode


def command(binary, model, ram):
    return [binary, "run", "--model", model, "--ram", f"{ram // 10**6}MB",
            "--prompt", PROMPT, "--max-tokens", str(TOKENS), "--ignore-eos",
            "--temp", "0", "--quiet"]


def halve_and_double(answer, group, checker):
    checker.check(answer.read(40), "it has begun to answer")
    before = group.anonymous_bytes()
    group.ask(HALF)
    end = time.monotonic() + PATIENCE_S
    refused = 0
    # It shrinks between tokens: they must be read for it to go on.
    while not group.set_limit(HALF) and time.monotonic() < end:
        refused += 1
        answer.read(1)
    checker.check(time.monotonic() < end,
                  f"half the limit was taken, after {refused} refusals")
    checker.check(answer.read(60), "it goes on in half the memory")
    small = group.anonymous_bytes()
    checker.check(small <= HALF < before,
                  f"it held {mb(before)} and holds {mb(small)}")
    group.set_limit(FULL)
    group.ask(FULL)
    grown = small
    while grown <= HALF and answer.read(20):
        grown = max(grown, group.anonymous_bytes())
    checker.check(grown > HALF, f"with the old limit it holds {mb(grown)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    args = parser.parse_args()
    model = default_model()
    if not model:
        return SKIPPED
    plenty = subprocess.run(command(args.binary, model, 10**9), check=True,
                            capture_output=True, stdin=subprocess.DEVNULL)
    checker = Checker()
    try:
        with cgroup.Group(FULL) as group:
            if not group.folder:
                print("SKIP: the group is not ours to change")
                return SKIPPED
            answer = Answer(group.wrap(command(args.binary, model, FULL)))
            halve_and_double(answer, group, checker)
            code = answer.finish()
            checker.check(code == 0, f"exit {code} {answer.errors.decode()}"
                          f"; {group.figures()}")
            checker.check(answer.text == plenty.stdout,
                          f"the same answer ({len(answer.text)} bytes)")
    except cgroup.Unavailable as why:
        print(f"SKIP: {why}")
        return SKIPPED
    print(f"{checker.failures} failed" if checker.failures else "all ok")
    return 1 if checker.failures else 0


if __name__ == "__main__":
    sys.exit(main())
