# SPDX-License-Identifier: MIT
"""The program with a hub of its own, for the tests beside this file."""

import os
import random
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "cli"))

import program  # noqa: E402
from fake_hub import FakeHub, Fault, Repo, git_oid, sha256  # noqa: E402

__all__ = ["Fault", "HubCase", "Repo", "git_oid", "noise", "program", "sha256"]


def noise(size, seed=0):
    return random.Random(seed).randbytes(size)


class HubCase(program.Case):
    """Each test has a hub and an empty cache."""

    def setUp(self):
        super().setUp()
        self.hub = FakeHub()
        self.addCleanup(self.hub.close)
        for name in list(self.environment):
            if name.startswith("HF_") or name.lower().endswith("_proxy"):
                del self.environment[name]
        self.environment.update({
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "MLX_FLASH_HUB_BACKOFF_MS": "20",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        })
        self.cache = self.folder / "hf" / "hub"

    def story(self):
        """A model that runs."""
        files = {p.name: p.read_bytes() for p in Path(self.model).iterdir()}
        return Repo(files, lfs={"model.safetensors"})

    def weights(self, size=3_000_000, **more):
        """A repository with weights that are only bytes."""
        return Repo({"config.json": b"{}", "model.safetensors": noise(size)},
                    **more)

    def add(self, repo, name="test/model"):
        self.hub.repos[name] = repo
        return repo

    def folder_of(self, name="test/model"):
        return self.cache / ("models--" + name.replace("/", "--"))

    def pull(self, *args, name="test/model"):
        """The snapshot's path."""
        return Path(self.succeed("pull", name, *args).strip())

    def check_stored(self, repo, name="test/model", names=None):
        """Every file is there, right, and a link to a blob named as it
        should."""
        snapshot = self.folder_of(name) / "snapshots" / repo.commit
        for file in names or repo.files:
            path = snapshot / file
            self.assertEqual(path.read_bytes(), repo.files[file], file)
            self.assertTrue(path.is_symlink())
            self.assertEqual(
                path.resolve(),
                (self.folder_of(name) / "blobs" / repo.etag(file)).resolve())
            self.assertFalse(os.readlink(path).startswith("/"))

    def check_nothing_wrong(self, repo, name="test/model"):
        """No blob but right ones, no name that leads to anything else."""
        folder = self.folder_of(name)
        right = {repo.etag(n): c for n, c in repo.files.items()}
        for blob in folder.glob("blobs/*"):
            if not blob.name.endswith(".incomplete"):
                self.assertEqual(blob.read_bytes(), right.get(blob.name),
                                 blob.name)
        for path in folder.glob("snapshots/*/**/*"):
            if path.is_symlink() or path.is_file():
                self.assertIn(path.resolve().name, right)

    def start(self, *args, **more):
        process = subprocess.Popen(
            self.command(*args), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.environment, **more)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        return process
