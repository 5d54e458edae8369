# SPDX-License-Identifier: MIT
"""One cache for this program and for Python's huggingface_hub, both ways."""

import os
import subprocess
import sys

from hub_case import HubCase, Repo, noise, program

PYTHON = ""

FIND = """
import sys, warnings
warnings.simplefilter("error")
from huggingface_hub import (hf_hub_download, scan_cache_dir,
                             snapshot_download, try_to_load_from_cache)
repo, revision, *files = sys.argv[1:]
print(snapshot_download(repo, revision=revision))
for name in files:
    path = hf_hub_download(repo, name, revision=revision)
    assert path == try_to_load_from_cache(repo, name, revision=revision), name
    print(path)
cache = scan_cache_dir()
assert not cache.warnings, cache.warnings
found = next(r for r in cache.repos if r.repo_id == repo)
print(found.size_on_disk)
print(sum(len(r.files) for r in found.revisions))
"""

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:] or None))
"""


class Shared(HubCase):
    def python(self, script, *args, **variables):
        environment = {**self.environment, "HF_HUB_DISABLE_XET": "1",
                       "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                       "HF_HUB_DISABLE_TELEMETRY": "1",
                       "HF_HUB_DOWNLOAD_TIMEOUT": "20",
                       "HF_HUB_ETAG_TIMEOUT": "20", **variables}
        done = subprocess.run([PYTHON, "-c", script, *args], env=environment,
                              capture_output=True, text=True, timeout=120,
                              check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.split()

    def test_python_finds_offline_what_pull_stored(self):
        repo = self.add(self.story(), "test/story")
        repo.refs["v1"] = repo.commit
        snapshot = self.pull(name="test/story")
        self.pull("--revision", "v1", name="test/story")
        self.hub.requests.clear()
        for revision in ("main", "v1", repo.commit):
            found, *paths = self.python(FIND, "test/story", revision,
                                        *repo.files, HF_HUB_OFFLINE="1")
            self.assertEqual(found, str(snapshot))
            size, files = map(int, paths[-2:])
            self.assertEqual(size, sum(map(len, repo.files.values())))
            self.assertEqual(files, len(repo.files))
            for name, path in zip(repo.files, paths):
                self.assertEqual(path, str(snapshot / name))
        self.assertEqual(self.hub.requests, [])

    def test_pull_and_model_find_offline_what_python_stored(self):
        self.add(self.story(), "test/story")
        snapshot, = self.python(DOWNLOAD, "test/story")
        self.hub.requests.clear()
        self.environment["HF_HUB_OFFLINE"] = "1"
        self.assertEqual(str(self.pull(name="test/story")), snapshot)
        self.succeed("run", "--model", "test/story", "--ram", "64MB", "-p",
                     "a", "--max-tokens", 2)
        self.assertEqual(self.hub.requests, [])
        listed, = self.succeed_json("models")["models"]
        self.assertEqual((listed["model"], listed["family"]),
                         ("test/story", "llama"))

    def test_each_takes_over_what_the_other_has_of_it(self):
        repo = self.add(self.story(), "test/story")
        self.python(DOWNLOAD, "test/story", "*.json")
        done = self.succeed_json("pull", "test/story")
        of_python = sum(len(c) for n, c in repo.files.items()
                        if n.endswith(".json"))
        self.assertEqual(done["fetched_bytes"], done["bytes"] - of_python)
        self.check_stored(repo, "test/story")
        sent = self.hub.sent_bytes
        self.python(DOWNLOAD, "test/story")
        self.assertLess(self.hub.sent_bytes - sent, 10_000)

    def test_pull_waits_for_python_and_python_for_pull(self):
        repo = self.add(self.weights(12_000_000))
        for first in ("python", "pull"):
            self.hub.rate = 3_000_000
            self.hub.sent_bytes = 0
            environment = {**self.environment, "HF_HUB_DISABLE_XET": "1",
                           "HF_HUB_DOWNLOAD_TIMEOUT": "20"}
            commands = [[PYTHON, "-c", DOWNLOAD, "test/model"],
                        self.command("pull", "test/model", "-q")]
            if first == "pull":
                commands.reverse()
            running = []
            for command in commands:
                running.append(subprocess.Popen(
                    command, env=environment, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL))
                while len(running) == 1 and self.hub.sent_bytes < 2_000_000:
                    self.assertIsNone(running[0].poll())
            for process in running:
                self.assertEqual(process.wait(timeout=60), 0)
            self.check_stored(repo)
            self.assertLess(self.hub.sent_bytes, 15_000_000, first)
            self.succeed("rm", "test/model", "--yes")

    def test_rm_leaves_a_cache_that_python_can_read(self):
        first = self.add(Repo({"config.json": b"{}",
                               "model.safetensors": noise(200_000)}))
        self.pull()
        self.add(Repo({**first.files, "config.json": b'{"a": 1}'}))
        self.pull()
        self.succeed("rm", f"test/model@{first.commit}", "--yes")
        found = self.python(FIND, "test/model", "main", "config.json",
                            HF_HUB_OFFLINE="1")
        self.assertEqual(found[-1], "2")


def main():
    global PYTHON
    at = sys.argv.index("--python")
    PYTHON = sys.argv[at + 1]
    del sys.argv[at:at + 2]
    known = os.path.exists(PYTHON) and subprocess.run(
        [PYTHON, "-c", "import huggingface_hub"], check=False,
        capture_output=True).returncode == 0
    if not known:
        print(f"SKIP: {PYTHON} has no huggingface_hub "
              "(tools/setup.sh parity installs it)")
        sys.exit(77)
    program.main()


if __name__ == "__main__":
    main()
