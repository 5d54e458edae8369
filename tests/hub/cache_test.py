# SPDX-License-Identifier: MIT
"""Several processes, killed processes, full disks; and what takes models out of
the cache again."""

import os
import signal
import time

from hub_case import Fault, HubCase, Repo, noise, program

SIZE = 30_000_000


class Processes(HubCase):
    def test_two_pulls_store_one_copy(self):
        repo = self.add(self.weights(SIZE))
        self.hub.rate = 4_000_000
        pulls = [self.start("pull", "test/model") for _ in range(3)]
        for pull in pulls:
            _, message = pull.communicate(timeout=60)
            self.assertEqual(pull.returncode, 0, message)
        self.check_stored(repo)
        self.assertEqual(len(list(self.folder_of().glob("blobs/*"))), 2)
        # Headers that the plans read; nothing else comes more than once.
        self.assertLess(self.hub.sent_bytes, SIZE + 3_000_000)

    def test_killed_in_the_middle_it_goes_on(self):
        repo = self.add(self.weights(SIZE))
        self.hub.rate = 1_000_000
        for _ in range(3):
            before = self.hub.sent_bytes
            pull = self.start("pull", "test/model", "-q")
            while self.hub.sent_bytes < before + 5_000_000:
                self.assertIsNone(pull.poll(), "it ended too early")
                time.sleep(0.02)
            pull.kill()
            pull.wait()
            self.check_nothing_wrong(repo)
            self.assertFalse((self.folder_of() / "refs/main").exists())
        self.hub.rate = None
        self.pull("-q")
        self.check_stored(repo)
        self.check_nothing_wrong(repo)
        self.assertFalse(list(self.folder_of().glob("blobs/*.incomplete")))
        # What was under way at the kills may come again: not much.
        self.assertLess(self.hub.sent_bytes, SIZE * 1.35)

    def test_ctrl_c_ends_it_soon_and_keeps_what_came(self):
        repo = self.add(self.weights(SIZE))
        for rate, sign in ((500_000, signal.SIGINT), (500_000, signal.SIGTERM)):
            self.hub.rate = rate
            before = self.hub.sent_bytes
            pull = self.start("pull", "test/model")
            while self.hub.sent_bytes < before + 1_000_000:
                time.sleep(0.02)
            pull.send_signal(sign)
            start = time.monotonic()
            _, message = pull.communicate(timeout=10)
            self.assertLess(time.monotonic() - start, 1.0)
            self.assertEqual(pull.returncode, 128 + sign)
            self.assertIn(b"is kept", message)
        self.hub.rate = None
        self.pull("-q")
        self.check_stored(repo)
        self.assertLess(self.hub.sent_bytes, SIZE * 1.2)

    def test_ctrl_c_ends_what_does_not_answer(self):
        self.add(self.weights(SIZE))
        for where in ("/api/", "/resolve/"):
            self.environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "30"
            self.hub.faults = [Fault("hang", where, seconds=5)]
            self.hub.requests.clear()
            pull = self.start("pull", "test/model")
            while not self.hub.count(where):
                time.sleep(0.02)
            pull.send_signal(signal.SIGINT)
            start = time.monotonic()
            pull.communicate(timeout=10)
            self.assertLess(time.monotonic() - start, 1.0)
            self.assertEqual(pull.returncode, 130)

    def test_no_room_is_said_before_the_download(self):
        self.add(self.weights())
        def huge(listing):
            for each in listing["siblings"]:
                if "lfs" in each:
                    each["size"] = 1 << 49
            return listing
        self.hub.listing = huge
        self.fail_with(1, "pull", "test/model", "-q",
                       says=("GB more", "free", "HF_HUB_CACHE"))
        self.assertEqual(self.hub.count("model.safetensors", host="cdn",
                                        method="HEAD"), 0)
        self.assertFalse(list(self.folder_of().glob("blobs/*.incomplete")))

    def test_a_folder_that_cannot_be_written_is_said(self):
        self.add(self.weights())
        self.environment["HF_HUB_CACHE"] = "/proc/nothing"
        self.fail_with(1, "pull", "test/model", "-q", says="/proc/nothing")

class Models(HubCase):
    def test_lists_family_quantisation_size_and_use(self):
        self.add(self.story(), "test/story")
        self.add(Repo({
            "config.json": b'{"model_type": "qwen3", "quantization": '
                           b'{"bits": 4, "group_size": 64}}',
            "model.safetensors": noise(2_000_000)}), "a/four")
        self.add(Repo({"x-Q4_K_M.gguf": noise(1_000_000),
                       "x-Q8_0.gguf": noise(1_500_000, 1)}), "b/gguf")
        self.assertEqual(self.succeed_json("models")["models"], [])
        self.pull(name="test/story")
        self.pull(name="a/four")
        self.pull("--include", "*.gguf", name="b/gguf")
        listed = {m["model"]: m for m in self.succeed_json("models")["models"]}
        self.assertEqual(list(listed), ["a/four", "b/gguf:x-Q4_K_M.gguf",
                                        "b/gguf:x-Q8_0.gguf", "test/story"])
        self.assertEqual(listed["a/four"]["family"], "qwen3")
        self.assertEqual(listed["a/four"]["quantization"], "4-bit")
        self.assertGreater(listed["a/four"]["bytes"], 2_000_000)
        self.assertEqual(listed["b/gguf:x-Q8_0.gguf"]["quantization"], "Q8_0")
        self.assertEqual(listed["b/gguf:x-Q8_0.gguf"]["bytes"], 1_500_000)
        self.assertEqual(listed["test/story"]["family"], "llama")
        self.assertLess(time.time() - listed["test/story"]["last_used"], 100)
        table = self.succeed("models")
        for word in ("SIZE", "FAMILY", "QUANTISATION", "LAST USED", "a/four",
                     "4-bit", "today"):
            self.assertIn(word, table)

    def test_use_is_noted(self):
        self.add(self.story(), "test/story")
        snapshot = self.pull(name="test/story")
        old = time.time() - 10 * 86_400
        for path in snapshot.iterdir():
            os.utime(path, (old, old))
        for _ in range(2):  # looking is no use
            self.assertIn("10 days ago", self.succeed("models"))
        self.succeed("run", "--model", "test/story", "--ram", "64MB", "-p", "a",
                     "--max-tokens", 1)
        self.assertIn("today", self.succeed("models"))

    def test_what_is_no_model_is_passed_over(self):
        self.cache.mkdir(parents=True)
        (self.cache / "version.txt").write_text("1")
        (self.cache / "datasets--a--b").mkdir()
        (self.cache / "models--evil").symlink_to("/")
        (self.cache / "models--a--..").mkdir()
        self.assertEqual(self.succeed_json("models")["models"], [])


class Rm(HubCase):
    def test_asks_or_wants_yes(self):
        self.add(self.weights())
        self.pull()
        self.fail_with(2, "rm", "test/model", says=("--yes", "3 MB"))
        self.assertTrue(self.folder_of().exists())
        self.succeed("rm", "test/model", "--yes")
        self.assertFalse(self.folder_of().exists())
        self.fail_with(2, "rm", "test/model", "--yes", says="not in the cache")

    def test_a_revision_leaves_what_others_share(self):
        first = self.add(self.weights())
        self.pull()
        second = self.add(Repo({**first.files, "config.json": b'{"a": 1}'}))
        self.pull()
        self.succeed("rm", f"test/model@{first.commit}", "--yes")
        self.check_stored(second)
        names = {p.name for p in self.folder_of().glob("blobs/*")}
        self.assertEqual(names, {second.etag(n) for n in second.files})
        self.assertFalse((self.folder_of() / "snapshots" / first.commit).exists())
        self.succeed("rm", "test/model@main", "--yes")
        self.assertEqual(list(self.folder_of().glob("blobs/*")), [])
        self.assertFalse((self.folder_of() / "refs/main").exists())

    def test_one_gguf_file_of_several(self):
        repo = self.add(Repo({"x-Q4_K_M.gguf": noise(1_000_000),
                              "x-Q8_0.gguf": noise(1_500_000, 1)}))
        self.pull("--include", "*.gguf")
        self.succeed("rm", "test/model:Q8_0", "--yes")
        self.assertEqual([p.name for p in self.folder_of().glob("blobs/*")],
                         [repo.etag("x-Q4_K_M.gguf")])
        self.check_stored(repo, names=["x-Q4_K_M.gguf"])

    def test_nothing_outside_the_cache_goes(self):
        self.add(self.weights())
        precious = self.folder / "precious"
        precious.mkdir()
        (precious / "file").write_text("x")
        # A link in the place of each folder, and names that lead out.
        for part in ("", "blobs", "snapshots", "refs"):
            self.pull()
            folder = self.folder_of() / part if part else self.folder_of()
            moved = self.folder / ("moved" + part)
            folder.rename(moved)
            folder.symlink_to(moved)
            self.fail_with(2, "rm", "test/model", "--yes", says="is a link")
            self.assertTrue(any(moved.iterdir()))
            folder.unlink()
            moved.rename(folder)
        snapshot = self.pull()
        (snapshot / "out").symlink_to(precious / "file")
        (snapshot / "dir").symlink_to(precious)
        (self.folder_of() / "blobs" / "link").symlink_to(precious / "file")
        self.succeed("rm", "test/model@main", "--yes")
        self.assertEqual((precious / "file").read_text(), "x")
        self.pull()
        (self.folder_of() / "dir").symlink_to(precious)
        self.succeed("rm", "test/model", "--yes")
        self.assertEqual((precious / "file").read_text(), "x")
        for name in ("../precious", "a/../../precious", "/precious", ".."):
            self.fail_with(2, "rm", name, "--yes", says="")

    def test_what_is_being_downloaded_stays(self):
        self.add(self.weights(SIZE))
        self.hub.rate = 1_000_000
        pull = self.start("pull", "test/model", "-q")
        while self.hub.sent_bytes < 4_000_000:
            time.sleep(0.02)
        self.fail_with(2, "rm", "test/model", "--yes",
                       says="another process")
        pull.kill()
        pull.wait()
        self.succeed("rm", "test/model", "--yes")
        self.assertFalse(self.folder_of().exists())


if __name__ == "__main__":
    program.main()
