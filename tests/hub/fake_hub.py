# SPDX-License-Identifier: MIT
"""A server that behaves like the Hugging Face hub, and misbehaves on demand.
Two origins: the hub itself, and the file server that it redirects large files
to. Standard library only."""

import hashlib
import json
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def once(function):
    """Digests of large contents are taken once: on a busy machine a client
    would give up while each answer to it begins with seconds of hashing."""
    known = {}  # by id(content), which the content beside it keeps taken

    def digest(content):
        if len(content) < 1_000_000:
            return function(content)
        if id(content) not in known:
            known[id(content)] = (content, function(content))
        return known[id(content)][1]
    return digest


@once
def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@once
def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Repo:
    """Files by name. Large ones, and those named in `lfs`, are LFS files."""

    def __init__(self, files, lfs=(), gated=False, commit=None):
        self.files = dict(files)
        self.lfs = {n for n, c in self.files.items()
                    if n in lfs or len(c) > 100_000}
        self.gated = gated
        self.refs = {}
        self.commit = commit or hashlib.sha1(
            repr(sorted((n, sha256(c)) for n, c in self.files.items()))
            .encode()).hexdigest()

    def etag(self, name):
        content = self.files[name]
        return sha256(content) if name in self.lfs else git_oid(content)


class Fault:
    """Something wrong with answers whose path contains `path`.

    kind: "status" (code, headers), "truncate" (after `bytes`), "trickle"
    (`bytes` at once, `pause` seconds between), "hang", "corrupt", "grow",
    "shrink", "loop", "redirect" (to)."""

    def __init__(self, kind, path="", host=None, method=None, times=1 << 30,
                 after=0, **values):
        self.kind, self.path, self.host = kind, path, host
        self.method, self.times, self.after = method, times, after
        self.values = values

    def applies(self, host, method, path):
        if self.path not in path or self.host not in (None, host):
            return False
        if self.method not in (None, method) or self.times <= 0:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True


class FakeHub:
    def __init__(self):
        self.repos = {}
        self.faults = []
        self.token = "hf_right"
        self.requests = []      # (host, method, path, headers)
        self.ranges = True
        self.revisions = True   # mirrors may lack their addresses
        self.cdn = True         # redirect LFS files to the other origin
        self.listing = None     # changes the listing: f(dict) -> dict
        self.head_headers = None  # changes headers of resolve: f(dict) -> dict
        self.rate = None        # bytes per second of each connection
        self.sent_bytes = 0
        self.lock = threading.Lock()
        self.servers = [self._serve("hub"), self._serve("cdn")]
        self.url, self.cdn_url = (
            f"http://127.0.0.1:{s.server_address[1]}" for s in self.servers)

    def _serve(self, host):
        hub = self

        class Bound(Handler):
            name, state = host, hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # clients that went away
        threading.Thread(target=server.serve_forever, args=(0.05,),
                         daemon=True).start()
        return server

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def count(self, text="", host=None, method=None):
        with self.lock:
            return sum(text in p and host in (None, h) and method in (None, m)
                       for h, m, p, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""
    state = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer("GET")

    def do_HEAD(self):
        self.answer("HEAD")

    def answer(self, method):
        hub = self.state
        with hub.lock:
            hub.requests.append((self.name, method, self.path,
                                 dict(self.headers)))
            self.fault = next((f for f in hub.faults
                               if f.applies(self.name, method, self.path)),
                              None)
        try:
            if self.fault and self.plain_fault():
                return
            path = urllib.parse.urlparse(self.path).path
            if self.name == "cdn":
                self.send_cdn(path)
            elif path.startswith("/api/models/"):
                self.send_listing(urllib.parse.unquote(path[12:]))
            else:
                self.send_resolve(urllib.parse.unquote(path))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def plain_fault(self):
        fault = self.fault
        if fault.kind == "status":
            self.reply(fault.values["code"], fault.values.get("body", b""),
                       fault.values.get("headers", {}))
        elif fault.kind == "loop":
            self.reply(302, b"", {"Location": self.path})
        elif fault.kind == "redirect":
            self.reply(302, b"", {"Location": fault.values["to"]})
        elif fault.kind == "hang":
            time.sleep(fault.values.get("seconds", 30))
            self.close_connection = True
        else:
            return False
        return True

    def reply(self, code, body, headers):
        self.send_response(code)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.write(body)

    def write(self, body):
        hub, fault = self.state, self.fault
        kind = fault.kind if fault else None
        if kind == "truncate":
            self.push(body[:fault.values["bytes"]])
            self.close_connection = True
            return
        if kind == "trickle":
            step = fault.values.get("bytes", 1)
            for at in range(0, len(body), step):
                self.push(body[at:at + step])
                time.sleep(fault.values["pause"])
            return
        if hub.rate:
            step = max(1, hub.rate // 20)
            for at in range(0, len(body), step):
                self.push(body[at:at + step])
                time.sleep(0.05)
            return
        self.push(body)

    def push(self, data):
        self.wfile.write(data)
        self.wfile.flush()
        with self.state.lock:
            self.state.sent_bytes += len(data)

    def refused(self, repo):
        """The hub's answers to those who may not read."""
        hub = self.state
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {hub.token}"):
            self.reply(401, b"", {"X-Error-Message": "Invalid credentials"})
            return True
        if repo is None:
            code = 404 if given else 401
            self.reply(code, b"", {"X-Error-Code": "RepoNotFound"})
            return True
        if repo.gated and not given:
            self.reply(401, b"", {"X-Error-Code": "GatedRepo"})
            return True
        if repo.gated == "not accepted":
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
            return True
        return False

    def send_listing(self, rest):
        hub = self.state
        match = re.fullmatch(r"(.+?)(?:/(revision|tree)/(.+))?", rest)
        repo = hub.repos.get(match[1])
        gated = repo.gated if repo else False
        if repo:
            repo.gated = False  # a gated repository is listed for everybody
        refused = self.refused(repo)
        if repo:
            repo.gated = gated
        if refused:
            return
        revision = match[3] or "main"
        if match[2] == "revision" and not hub.revisions:
            self.reply(404, b"", {})
            return
        if revision not in ("main", repo.commit, *repo.refs):
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        if match[2] == "tree":
            self.send_tree(repo)
            return
        siblings = []
        for name, content in repo.files.items():
            entry = {"rfilename": name, "size": len(content),
                     "blobId": git_oid(content)}
            if name in repo.lfs:
                entry["lfs"] = {"sha256": sha256(content),
                                "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        listing = {"id": match[1], "sha": repo.commit, "siblings": siblings}
        if hub.listing:
            listing = hub.listing(listing)
        self.reply(200, json.dumps(listing).encode(),
                   {"Content-Type": "application/json"})

    def send_tree(self, repo):
        entries = []
        for name, content in repo.files.items():
            entry = {"type": "file", "path": name, "size": len(content),
                     "oid": git_oid(content)}
            if name in repo.lfs:
                entry["lfs"] = {"oid": sha256(content), "size": len(content),
                                "pointerSize": 130}
            entries.append(entry)
        self.reply(200, json.dumps(entries).encode(),
                   {"Content-Type": "application/json"})

    def send_resolve(self, path):
        hub = self.state
        match = re.fullmatch(r"/(.+?)/resolve/(.+?)/(.+)", path)
        repo = hub.repos.get(match[1]) if match else None
        if self.refused(repo):
            return
        name = match[3]
        if name not in repo.files:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = repo.files[name]
        headers = {"X-Repo-Commit": repo.commit, "ETag":
                   f'"{repo.etag(name)}"'}
        if name in repo.lfs:
            headers.update({"X-Linked-Etag": f'"{repo.etag(name)}"',
                            "X-Linked-Size": str(len(content)),
                            "ETag": '"not-the-file-of-it"'})
        if hub.head_headers:
            headers = hub.head_headers(headers)
        if name in repo.lfs and hub.cdn:
            headers["Location"] = (f"{hub.cdn_url}/{match[1]}/"
                                   f"{urllib.parse.quote(name)}?signature=s3cret")
            self.reply(302, b"", headers)
            return
        self.send_content(content, headers)

    def send_cdn(self, path):
        org, name, file = urllib.parse.unquote(path)[1:].split("/", 2)
        content = self.state.repos[f"{org}/{name}"].files[file]
        self.send_content(content, {"ETag": '"of-the-cdn"'})

    def send_content(self, content, headers):
        kind = self.fault.kind if self.fault else None
        if kind == "corrupt":
            at = len(content) // 2
            content = (content[:at] + bytes([content[at] ^ 1])
                       + content[at + 1:])
        elif kind == "grow":
            content += b"x" * 1000
        elif kind == "shrink":
            content = content[:-1000]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)",
                              self.headers.get("Range", ""))
        if not wanted or not self.state.ranges:
            self.reply(200, content, headers)
            return
        first = int(wanted[1])
        last = min(int(wanted[2] or len(content)), len(content) - 1)
        if first > last:
            self.reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        self.reply(206, content[first:last + 1],
                   {**headers, "Content-Range":
                    f"bytes {first}-{last}/{len(content)}"})
