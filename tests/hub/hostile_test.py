# SPDX-License-Identifier: MIT
"""Servers, mirrors, proxies and disks that are odd rather than broken: what is
allowed is understood, what is not is refused, and nothing wrong gets a name."""

import email.utils
import gzip
import os
import shutil
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hub_case import Fault, HubCase, Repo, git_oid, noise, program

SIZE = 20_000_000  # several pieces


def bare(listing):
    """As some mirrors list: names and nothing else."""
    return {**listing, "siblings": [{"rfilename": s["rfilename"]}
                                    for s in listing["siblings"]]}


class Answers(HubCase):
    def setUp(self):
        super().setUp()
        self.repo = self.add(self.weights(SIZE))

    def stores(self):
        self.pull("-q")
        self.check_stored(self.repo)
        self.check_nothing_wrong(self.repo)

    def test_weak_and_bare_etags_are_etags(self):
        self.hub.listing = bare
        for form in ('W/"{}"', "{}", '"{}"'):
            shutil.rmtree(self.cache, ignore_errors=True)
            self.hub.head_headers = lambda h, f=form: {
                k: f.format(v.strip('"')) if "tag" in k.lower() else v
                for k, v in h.items()}
            self.stores()

    def test_retry_after_may_be_a_date(self):
        for seconds, passes in ((2, True), (3600, False)):
            shutil.rmtree(self.cache, ignore_errors=True)
            when = email.utils.formatdate(time.time() + seconds, usegmt=True)
            self.hub.faults = [Fault("status", "/api/", code=429, times=1,
                                     headers={"Retry-After": when})]
            start = time.monotonic()
            if passes:
                self.stores()
                self.assertGreater(time.monotonic() - start, 0.9)
            else:
                self.fail_with(1, "pull", "test/model", "-q",
                               says="come back in")
            self.assertLess(time.monotonic() - start, 20)

    def test_a_retry_after_that_is_none_is_passed_over(self):
        for value in ("soon", "-5", "", "9" * 40):
            shutil.rmtree(self.cache, ignore_errors=True)
            self.hub.faults = [Fault("status", host="cdn", code=503, times=1,
                                     headers={"Retry-After": value})]
            done = self.run_program("pull", "test/model", "-q")
            self.assertIn(done.returncode, (0, 1), value)
            self.check_nothing_wrong(self.repo)

    def test_relative_redirects(self):
        self.add(self.repo, "moved/here")
        for to in ("/moved/here/resolve/{}/model.safetensors",
                   "../../../../moved/here/resolve/{}/model.safetensors",
                   "./model.safetensors?again=1"):
            shutil.rmtree(self.cache, ignore_errors=True)
            self.hub.faults = [Fault(
                "redirect", "/test/model/resolve/", method="GET",
                after=1, times=1, to=to.format(self.repo.commit))]
            self.stores()

    def test_a_redirect_in_circles_over_two_hosts_ends(self):
        self.hub.faults = [
            Fault("redirect", "/resolve/", host="hub",
                  to=self.hub.cdn_url + "/test/model/circle"),
            Fault("redirect", "/circle", host="cdn",
                  to=self.hub.url + "/test/model/resolve/main/config.json")]
        self.fail_with(1, "pull", "test/model", "-q", says="redirects")

    def test_redirects_without_an_address(self):
        for headers in ({}, {"Location": ""}, {"Location": "http://"},
                        {"Location": "http://[::1"}):
            self.hub.faults = [Fault("status", "/resolve/", code=302,
                                     headers=headers)]
            self.fail_with(1, "pull", "test/model", "-q", says="redirects")

    def test_ranges_that_stop_working_under_way(self):
        # The first pieces come as ranges, then the whole file, always.
        self.hub.rate = 20_000_000
        pull = self.start("pull", "test/model", "-q")
        while self.hub.sent_bytes < 3_000_000:
            time.sleep(0.01)
        self.hub.ranges = False
        _, errors = pull.communicate(timeout=60)
        self.assertEqual(pull.returncode, 0, errors)
        self.check_stored(self.repo)

    def test_a_model_runs_from_a_hub_without_ranges(self):
        self.hub.ranges = False
        self.add(self.story(), "test/story")
        self.succeed("plan", "--model", "test/story", "--ram", "64MB")
        self.succeed("run", "--model", "test/story", "--ram", "64MB",
                     "--prompt", "a", "--max-tokens", 1)

    def test_another_range_than_asked_for(self):
        handler = self.hub.servers[1].RequestHandlerClass

        def shifted(this, content, headers):
            this.reply(206, content[:1000], {
                **headers, "Content-Range": f"bytes 0-999/{len(content)}"})
        handler.send_content = shifted
        self.fail_with(1, "pull", "test/model", "-q", says="range")
        self.check_nothing_wrong(self.repo)

    def test_a_part_that_does_not_say_which(self):
        handler = self.hub.servers[1].RequestHandlerClass
        real = handler.send_content

        def silent(this, content, headers):
            reply = this.reply
            this.reply = lambda code, body, more: reply(
                code, body, {k: v for k, v in more.items()
                             if k != "Content-Range"})
            real(this, content, headers)
        handler.send_content = silent
        self.fail_with(1, "pull", "test/model", "-q", says="range")
        self.check_nothing_wrong(self.repo)

    def test_a_hub_without_head(self):
        for code in (405, 501):
            shutil.rmtree(self.cache, ignore_errors=True)
            self.hub.listing = bare
            self.hub.faults = [Fault("status", method="HEAD", code=code)]
            self.stores()

    def test_answers_compressed_unasked_are_refused(self):
        self.hub.faults = [Fault("status", "/api/", code=200,
                                 body=gzip.compress(b"{}"),
                                 headers={"Content-Encoding": "gzip"})]
        self.fail_with(1, "pull", "test/model", "-q", says="compressed")
        for request in self.hub.requests:
            self.assertEqual(request[3].get("Accept-Encoding"), "identity")
        self.hub.faults = []
        handler = self.hub.servers[1].RequestHandlerClass
        real = handler.send_content
        handler.send_content = lambda this, content, headers: real(
            this, gzip.compress(content), {**headers,
                                           "Content-Encoding": "gzip"})
        self.fail_with(1, "pull", "test/model", "-q", says="compressed")
        self.check_nothing_wrong(self.repo)

    def test_sizes_that_overflow_in_sum_are_too_large(self):
        def huge(listing):
            listing["siblings"] = [
                s for s in listing["siblings"] if s["rfilename"] != "x"]
            listing["siblings"] += [
                {"rfilename": f"model-{i:05}.safetensors", "size": 1 << 50,
                 "blobId": "0" * 40,
                 "lfs": {"sha256": f"{i:064x}", "size": 1 << 50}}
                for i in range(1 << 14)]
            for each in listing["siblings"]:
                if each["rfilename"] == "model.safetensors":
                    each["size"] = 0
            return listing
        self.hub.listing = huge
        self.fail_with(1, "pull", "test/model", "-q", says="free")
        self.assertFalse(list(self.folder_of().glob("blobs/*.incomplete")))

    def test_a_commit_in_short(self):
        short = self.repo.commit[:7]
        self.repo.refs[short] = self.repo.commit  # the hub knows them
        path = self.pull("-q", name=f"test/model@{short}")
        self.assertEqual(path.name, self.repo.commit)
        self.fail_with(2, "pull", "test/model@abc1234", "-q",
                       says=("abc1234", "no branch, tag or commit"))

    def test_revisions_that_are_paths_are_refused(self):
        for revision in ("..", "../../x", "a/../../b", "/etc", "a b", "a//b"):
            self.fail_with(2, "pull", f"test/model@{revision}", says="")
        self.assertEqual(self.hub.requests, [])


class Files(HubCase):
    def test_names_that_differ_in_case_are_two_files(self):
        probe = self.folder / "case"
        probe.write_text("")
        if (self.folder / "CASE").exists():
            self.skipTest("this file system does not tell them apart")
        repo = self.add(Repo({"config.json": b"{}", "notes.txt": b"small",
                              "Notes.txt": b"LARGE",
                              "model.safetensors": noise(1000)}))
        self.pull("-q")
        self.check_stored(repo)

    def test_escapes_in_names_are_part_of_them(self):
        names = ["%2e%2e%2fevil.json", "..%2f..%2fevil.json", "a%00.json"]
        repo = self.add(Repo({"config.json": b"{}",
                              "model.safetensors": noise(1000),
                              **{n: n.encode() for n in names}}))
        self.pull("-q")
        self.check_stored(repo)
        inside = self.folder_of().resolve()
        for path in self.folder.rglob("*evil*"):
            self.assertTrue(path.parent.resolve().is_relative_to(inside), path)

    def test_a_file_and_a_folder_of_one_name(self):
        self.add(Repo({"config.json": b"{}", "model.safetensors": noise(1000),
                       "a.json": b"1"}))
        self.hub.listing = lambda listing: {
            **listing, "siblings": listing["siblings"] + [
                {"rfilename": "a.json/b.json", "size": 1,
                 "blobId": git_oid(b"2")}]}
        done = self.run_program("pull", "test/model", "-q", "--include", "*")
        self.assertIn(done.returncode, (1, 2))
        self.assertTrue(done.stderr.startswith(b"mlx-flash: error: "))


class Cache(HubCase):
    def test_a_cache_that_is_a_link(self):
        repo = self.add(self.weights())
        real = self.folder / "elsewhere"
        real.mkdir()
        self.cache.parent.mkdir(parents=True)
        self.cache.symlink_to(real)
        path = self.pull("-q")
        self.check_stored(repo)
        self.assertTrue(path.resolve().is_relative_to(real.resolve()))

    def test_offline_with_a_part_of_it(self):
        repo = self.add(Repo({
            **self.story().files,
            "model-00001-of-00002.safetensors": noise(1000),
            "model-00002-of-00002.safetensors": noise(2000, 1)}))
        del repo.files["model.safetensors"]
        self.pull("-q")
        snapshot = self.folder_of() / "snapshots" / repo.commit
        self.environment["HF_HUB_OFFLINE"] = "1"
        self.hub.requests.clear()
        for missing in ("model-00002-of-00002.safetensors",
                        "config.json"):
            link = snapshot / missing
            if not link.exists():
                continue
            to = os.readlink(link)
            link.unlink()
            self.fail_with(2, "run", "--model", "test/model", "-p", "a",
                           says="HF_HUB_OFFLINE")
            link.symlink_to(to)
        # A link whose blob is gone is as good as none.
        blob = (snapshot / "config.json").resolve()
        blob.unlink()
        self.fail_with(2, "run", "--model", "test/model", "-p", "a",
                       says="HF_HUB_OFFLINE")
        self.assertEqual(self.hub.requests, [])

    def test_a_disk_that_fills_up_under_way(self):
        disk = self.folder / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m",
                                  "tmpfs", disk], capture_output=True,
                                 check=False)
        if mounted.returncode != 0:
            self.skipTest("cannot mount a small disk (root?)")
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        repo = self.add(self.weights(SIZE))
        self.environment["HF_HUB_CACHE"] = str(disk)
        self.hub.rate = 20_000_000
        pull = self.start("pull", "test/model", "-q")
        while self.hub.sent_bytes < 1_000_000:
            time.sleep(0.01)
        with open(disk / "others", "wb") as other:
            try:
                while True:
                    other.write(bytes(1 << 20))
                    other.flush()
            except OSError:
                pass
        _, errors = pull.communicate(timeout=60)
        self.assertEqual(pull.returncode, 1, errors)
        self.assertIn(b"No space left", errors)
        self.assertEqual(errors.count(b"\n"), 1)
        self.cache = disk
        self.check_nothing_wrong(repo)
        (disk / "others").unlink()
        self.hub.rate = None
        before = self.hub.sent_bytes
        self.pull("-q")
        self.check_stored(repo)
        self.assertLess(self.hub.sent_bytes - before, SIZE)

    def test_an_empty_file_of_the_repository(self):
        repo = self.add(Repo({"config.json": b"{}", "notes.txt": b"",
                              "model.safetensors": noise(1000)}))
        self.pull("-q")
        self.check_stored(repo)


class Secure(HubCase):
    """A hub behind TLS that leads to an address without."""

    def setUp(self):
        super().setUp()
        self.certificate = self.folder / "cert.pem"
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes",
             "-keyout", self.folder / "key.pem", "-out", self.certificate,
             "-days", "2", "-subj", "/CN=localhost", "-addext",
             "subjectAltName=DNS:localhost,IP:127.0.0.1"],
            capture_output=True, check=False) if shutil.which("openssl") else None
        if made is None or made.returncode != 0:
            self.skipTest("no openssl to make a certificate")
        hub = self.hub

        class Leads(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(302)
                self.send_header("Location", hub.url + self.path)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Leads)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.folder / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None
        threading.Thread(target=server.serve_forever, args=(0.05,),
                         daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.port = server.server_address[1]

    def test_https_never_leads_to_http(self):
        self.add(self.weights())
        self.environment["REQUESTS_CA_BUNDLE"] = str(self.certificate)
        self.environment["HF_TOKEN"] = "hf_right"
        for scheme in ("https", "HTTPS"):
            self.environment["HF_ENDPOINT"] = f"{scheme}://localhost:{self.port}"
            self.fail_with(1, "pull", "test/model", "-q",
                           says="never from https to http")
        self.assertEqual(self.hub.requests, [])

    def test_an_unknown_certificate_is_refused(self):
        self.environment["REQUESTS_CA_BUNDLE"] = ""
        self.environment["HF_ENDPOINT"] = f"https://localhost:{self.port}"
        self.fail_with(1, "pull", "test/model", "-q", says="ertificate")
        self.assertEqual(self.hub.requests, [])


if __name__ == "__main__":
    program.main()
