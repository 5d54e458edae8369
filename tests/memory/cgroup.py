# SPDX-License-Identifier: MIT
"""A control group with a memory limit, by whichever way this machine has.

cgroup v1, cgroup v2 where a child may be made, or a scope of systemd. Used
only by the tests here.
"""

import os
import shutil
import subprocess
import time


class Unavailable(Exception):
    """No group can be made; says why."""


def _mounts():
    """(root, mount point, type, super options) of each cgroup mount."""
    with open("/proc/self/mountinfo", encoding="ascii") as file:
        for line in file:
            left, right = line.split(" - ")
            kind, _, options = right.split()[:3]
            if kind.startswith("cgroup"):
                fields = left.split()
                yield fields[3], fields[4], kind, options.split(",")


def _own_path(controller):
    with open("/proc/self/cgroup", encoding="ascii") as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            if controller in names.split(","):
                return path
    return "/"


def _candidates():
    """(folder in which a child might be made, version)."""
    for root, point, kind, options in _mounts():
        if kind == "cgroup" and "memory" not in options:
            continue
        own = _own_path("memory" if kind == "cgroup" else "")
        inside = own[len(root):] if own.startswith(root) else own
        version = 1 if kind == "cgroup" else 2
        # Below our own group, or beside it where that one holds processes.
        for path in (inside, os.path.dirname(inside), "/"):
            folder = os.path.normpath(point + "/" + path)
            if os.path.isdir(folder):
                yield folder, version


class Group:
    """with Group(limit) as group: group.wrap(command) -> command in it."""

    def __init__(self, limit_bytes):
        self.limit_bytes = limit_bytes
        self.folder = None
        self.version = 0
        self.kind = ""

    def __enter__(self):
        reasons = []
        for folder, version in _candidates():
            try:
                self._make(folder, version)
                return self
            except OSError as error:
                reasons.append(f"v{version} {folder}: {error.strerror}")
        for scope in (["--user"], []):
            if self._systemd(scope):
                return self
        raise Unavailable("no memory cgroup can be made ("
                          + ("; ".join(dict.fromkeys(reasons))
                             or "none is mounted") + ")")

    def __exit__(self, *_):
        if self.folder:
            for _ in range(50):  # the last process leaves a moment later
                try:
                    os.rmdir(self.folder)
                    break
                except OSError:
                    time.sleep(0.1)

    def _write(self, name, value):
        with open(os.path.join(self.folder, name), "w",
                  encoding="ascii") as file:
            file.write(str(value))

    def _make(self, parent, version):
        self.version = version
        self.folder = os.path.join(parent, f"mlx-flash-test-{os.getpid()}")
        if version == 2:
            try:
                with open(os.path.join(parent, "cgroup.subtree_control"), "w",
                          encoding="ascii") as file:
                    file.write("+memory")
            except OSError:
                pass  # may be on already: memory.max tells
        os.mkdir(self.folder)
        try:
            if version == 2:
                self._write("memory.max", self.limit_bytes)
                self._optional("memory.swap.max", 0)
            else:
                self._write("memory.limit_in_bytes", self.limit_bytes)
                self._optional("memory.memsw.limit_in_bytes",
                               self.limit_bytes)
                self._optional("memory.swappiness", 0)
            # A process must be allowed in, too.
            subprocess.run(self.wrap(["true"]), check=True,
                           stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__()
            self.folder = None
            raise OSError(0, getattr(error, "strerror", None)
                          or "no process may be moved in") from error
        self.kind = f"cgroup v{version}"

    def _optional(self, name, value):
        try:
            self._write(name, value)
        except OSError:
            pass  # swap accounting is off in many kernels

    def _systemd(self, scope):
        if not shutil.which("systemd-run"):
            return False
        self.folder, self.kind = None, "systemd scope"
        self.prefix = ["systemd-run", *scope, "--scope", "--quiet", "-p",
                       f"MemoryMax={self.limit_bytes}", "-p",
                       "MemorySwapMax=0", "--"]
        try:
            return subprocess.run([*self.prefix, "true"], check=False,
                                  stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL,
                                  timeout=20).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def anonymous_bytes(self):
        """What the group holds besides page cache."""
        with open(os.path.join(self.folder, "memory.stat"),
                  encoding="ascii") as file:
            stat = dict(line.split() for line in file)
        return int(stat["total_rss" if self.version == 1 else "anon"])

    def ask(self, limit_bytes):
        """Says that the limit is to come: memory.high, v1's soft limit."""
        self._write({1: "memory.soft_limit_in_bytes", 2: "memory.high"}[
            self.version], limit_bytes)

    def set_limit(self, limit_bytes):
        """Sets the hard limit. v1 refuses one below what is used: False."""
        name = {1: "memory.limit_in_bytes", 2: "memory.max"}[self.version]
        try:
            self._write(name, limit_bytes)
            return True
        except OSError:
            return False

    def wrap(self, command):
        """The command as a child of this process that runs in the group."""
        if self.folder is None:
            return [*self.prefix, *command]
        return ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"',
                os.path.join(self.folder, "cgroup.procs"), *command]

    def figures(self):
        """What the kernel counted, as text; for messages."""
        names = {1: ["memory.max_usage_in_bytes", "memory.failcnt",
                     "memory.oom_control"],
                 2: ["memory.peak", "memory.events"]}
        result = []
        for name in names[self.version] if self.folder else []:
            try:
                with open(os.path.join(self.folder, name),
                          encoding="ascii") as file:
                    result.append(f"{name}: {' '.join(file.read().split())}")
            except OSError:
                continue
        return "; ".join(result)
