# SPDX-License-Identifier: MIT
"""What takes its time: slow servers, large files, whole command lines that are
stopped."""

import os
import re
import signal
import subprocess
import threading
import time

from hub_case import Fault, HubCase, program

SIZE = 30_000_000

# Runs a command and prints the most memory it had, in KB.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class Slow(HubCase):
    def test_a_trickle_is_given_up(self):
        self.add(self.weights(SIZE))
        self.hub.faults = [Fault("trickle", host="cdn", pause=0.2, bytes=10)]
        start = time.monotonic()
        self.fail_with(1, "pull", "test/model", "-q",
                       says="HF_HUB_DOWNLOAD_TIMEOUT")
        self.assertLess(time.monotonic() - start, 30)

    def test_memory_does_not_grow_with_the_file(self):
        peaks = []
        for size in (2_000_000, 200_000_000):
            name = f"test/m{size}"
            self.add(self.weights(size), name)
            done = subprocess.run(
                ["/usr/bin/env", "python3", "-c", MEASURE,
                 *self.command("pull", name, "-q", "--include", "*")],
                env=self.environment, capture_output=True, timeout=120,
                check=True)
            peaks.append(int(done.stdout))
        self.assertLess(peaks[1], peaks[0] + 20_000, peaks)  # KB

    def test_a_damaged_partial_file_is_found_out(self):
        repo = self.add(self.weights(SIZE))
        self.hub.rate = 1_000_000
        pull = self.start("pull", "test/model", "-q")
        while self.hub.sent_bytes < 5_000_000:
            time.sleep(0.02)
        pull.kill()
        pull.wait()
        partial, = self.folder_of().glob("blobs/*.mlx-flash.incomplete")
        with open(partial, "r+b") as file:
            file.write(b"damaged")
        self.hub.rate = None
        self.pull()
        self.check_stored(repo)

    def test_a_run_that_is_stopped_stops_its_download(self):
        self.add(self.story(), "test/story")
        self.hub.rate = 100_000
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            self.hub.requests.clear()
            run = self.start("run", "--model", "test/story", "-p", "a")
            while not self.hub.count("model.safetensors"):
                time.sleep(0.02)
            run.send_signal(sign)
            start = time.monotonic()
            self.assertEqual(run.wait(timeout=10), -sign)
            self.assertLess(time.monotonic() - start, 1.0)
            time.sleep(0.8)  # the child notices by itself
            sent = self.hub.sent_bytes
            time.sleep(0.5)
            self.assertEqual(self.hub.sent_bytes, sent)

    def test_progress_on_a_terminal(self):
        self.add(self.weights(SIZE))
        self.hub.rate = 2_000_000
        parent, child = os.openpty()
        seen = []

        def read():
            try:
                while data := os.read(parent, 4096):
                    seen.append(data)
            except OSError:
                pass

        reader = threading.Thread(target=read)
        reader.start()
        done = subprocess.run(self.command("pull", "test/model"), stderr=child,
                              stdout=subprocess.PIPE, env=self.environment,
                              check=True, timeout=60)
        os.close(child)
        reader.join()
        os.close(parent)
        text = b"".join(seen).decode()
        self.assertRegex(text, r"test/model \[#*\.*\] +\d+% [\d.]+ MB of 30 MB"
                         r" \| [\d.]+ [kM]B/s \| [\d. s:]+ left")
        percents = [int(p) for p in re.findall(r"(\d+)% ", text)]
        self.assertEqual(percents, sorted(percents))
        self.assertIn("models--test--model", done.stdout.decode())


if __name__ == "__main__":
    program.main()
