# SPDX-License-Identifier: MIT
"""What `pull` and --model org/name do where nothing goes wrong."""

import json
import os
import shutil
import struct
from pathlib import Path

from hub_case import Fault, HubCase, Repo, noise, program


class Model(HubCase):
    def test_model_downloads_and_answers(self):
        self.add(self.story(), "test/story")
        out = self.succeed_json("run", "--model", "test/story", "--ram", "0.064",
                                "--kv-quant", 8, "--ctx", 256, "--prompt",
                                "Once", "--max-tokens", 5)
        self.assertEqual(out["generated_tokens"], 5)
        self.assertEqual(out["model"], "story")
        there = self.succeed_json("run", "--model", self.model, "--ram", "64MB",
                                  "--kv-quant", 8, "--prompt", "Once",
                                  "--max-tokens", 5)
        self.assertEqual(out["tokens"], there["tokens"])

    def test_what_is_there_is_not_asked_for(self):
        self.add(self.story(), "test/story")
        self.pull(name="test/story")
        self.hub.requests.clear()
        self.succeed("tokenize", "--model", "test/story", "--text", "a")
        self.succeed("run", "--model", "test/story", "--ram", "64MB",
                     "--prompt", "a", "--max-tokens", 1)
        self.assertEqual(self.hub.requests, [])

    def test_a_download_costs_the_run_no_memory(self):
        self.add(self.story(), "test/story")
        peaks = [self.succeed_json("run", "--model", "test/story", "--ram",
                                   "64MB", "--prompt", "Once", "--max-tokens",
                                   3)["peak_rss_bytes"] for _ in range(2)]
        self.assertGreater(self.hub.count("model.safetensors"), 0)
        self.assertLess(peaks[0], peaks[1] + 1_500_000)

    def test_too_small_a_budget_is_said_before_the_weights(self):
        self.add(self.story(), "test/story")
        message = self.run_program("run", "--model", "test/story", "--ram",
                                   "5MB", "--prompt", "a")
        self.assertEqual(message.returncode, 2)
        self.assertIn(b"at least", message.stderr)
        blobs = [b.stat().st_size
                 for b in self.folder_of("test/story").glob("blobs/*")]
        self.assertLess(max(blobs), 100_000)

    def test_a_hub_failure_is_one_line_and_code_2(self):
        self.fail_with(2, "run", "--model", "test/none", "--prompt", "a",
                       says=("test/none", "HF_TOKEN"))

    def test_a_missing_path_is_not_looked_for_on_the_hub(self):
        for path in ("no/model.gguf", "./no/model", "/no/model", "no/a/model"):
            self.fail_with(2, "run", "--model", path, "--prompt", "a",
                           says="no such folder or file")
        self.assertEqual(self.hub.requests, [])

    def test_a_folder_here_comes_before_the_hub(self):
        link = self.folder / "test" / "story"
        link.parent.mkdir()
        link.symlink_to(self.model)
        here = os.getcwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, here)
        self.succeed("inspect", "--model", "test/story")
        self.assertEqual(self.hub.requests, [])


class Pull(HubCase):
    def test_stores_only_what_a_model_needs(self):
        repo = self.add(Repo({
            "config.json": b"{}", "tokenizer.json": b"{}",
            "chat_template.jinja": b"x", "tokenizer.model": b"x",
            "model.safetensors": noise(200_000), "README.md": b"#",
            "pytorch_model.bin": noise(300_000), ".gitattributes": b"",
            "original/consolidated.safetensors": noise(300_000, 1),
            "consolidated.safetensors": noise(300_000, 2),
            "onnx/model.onnx": noise(200_000, 3)}))
        snapshot = self.pull()
        self.assertEqual(
            {p.name for p in snapshot.iterdir()},
            {"config.json", "tokenizer.json", "chat_template.jinja",
             "tokenizer.model", "model.safetensors"})
        self.check_stored(repo, names=os.listdir(snapshot))

    def test_shards_are_those_the_index_names(self):
        index = {"weight_map": {"a": "model-1.safetensors",
                                "b": "part/x.safetensors"}}
        repo = self.add(Repo({
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-1.safetensors": noise(200_000),
            "model-old.safetensors": noise(200_000, 1),
            "part/x.safetensors": noise(200_000, 2)}))
        self.pull()
        self.check_stored(repo, names=["model-1.safetensors",
                                       "part/x.safetensors", "config.json"])
        self.assertEqual(self.hub.count("model-old"), 0)

    def test_an_index_that_names_what_is_not_there_fails_before_weights(self):
        index = {"weight_map": {"a": "model-1.safetensors", "b": "gone.safetensors"}}
        self.add(Repo({
            "config.json": b"{}", "model-1.safetensors": noise(200_000),
            "model.safetensors.index.json": json.dumps(index).encode()}))
        self.fail_with(2, "pull", "test/model", "-q", says="gone.safetensors")
        self.assertEqual(self.hub.count("model-1"), 0)

    def test_a_second_pull_downloads_nothing(self):
        self.add(self.weights())
        self.pull()
        done = self.succeed_json("pull", "test/model")
        self.assertEqual(done["fetched_bytes"], 0)
        self.assertEqual(done["files"], 2)

    def test_large_files_come_in_ranges_over_several_connections(self):
        repo = self.add(self.weights(40_000_000))
        self.pull()
        self.check_stored(repo)
        ranges = {h["Range"] for host, _, p, h in self.hub.requests
                  if host == "cdn" and int(h["Range"].split("-")[1]) > 10**6}
        self.assertGreaterEqual(len(ranges), 4)

    def test_ref_is_written_last_and_without_newline(self):
        repo = self.add(self.weights())
        self.pull()
        ref = self.folder_of() / "refs" / "main"
        self.assertEqual(ref.read_text(), repo.commit)

    def test_revisions(self):
        repo = self.add(self.weights())
        repo.refs["refs/pr/1"] = repo.commit
        repo.refs["v1.0"] = repo.commit
        self.pull("--revision", "refs/pr/1")
        self.succeed("pull", "test/model@v1.0")
        self.succeed("pull", f"test/model@{repo.commit}")
        refs = self.folder_of() / "refs"
        self.assertEqual((refs / "refs/pr/1").read_text(), repo.commit)
        self.assertEqual(sorted(p.name for p in refs.rglob("*")
                                if p.is_file()), ["1", "v1.0"])
        self.fail_with(2, "pull", "test/model@v2", says=("v2", "branch"))
        self.fail_with(2, "pull", "test/model@a", "--revision", "b",
                       says="contradict")

    def test_a_new_commit_takes_over_equal_files(self):
        first = self.add(self.weights())
        self.pull()
        second = self.add(Repo({**first.files, "config.json": b'{"a": 1}'}))
        done = self.succeed_json("pull", "test/model")
        self.assertEqual(done["fetched_bytes"], 8)
        self.check_stored(first)
        self.check_stored(second)

    def test_include_takes_what_fits_and_nothing_else(self):
        self.add(Repo({"config.json": b"{}", "a/b.txt": b"b", "c.txt": b"c",
                       "model.safetensors": noise(200_000)}))
        snapshot = self.pull("--include", "*.txt", "--include", "conf[!x]g.*")
        self.assertEqual(sorted(str(p.relative_to(snapshot))
                                for p in snapshot.rglob("*") if p.is_file()),
                         ["a/b.txt", "c.txt", "config.json"])
        self.fail_with(2, "pull", "test/model", "--include", "*.zip",
                       says="*.zip")

    def test_names_are_escaped_on_the_way(self):
        odd = "model a#b%20?ü+&=.safetensors"
        repo = self.add(Repo({"config.json": b"{}", odd: noise(150_000)}))
        self.pull()
        self.check_stored(repo)

    def test_a_renamed_repository_is_followed(self):
        repo = self.add(self.weights(), "new/name")
        self.hub.faults = [Fault(
            "redirect", "/api/models/test/model",
            to="/api/models/new/name/revision/main?blobs=true")]
        self.hub.repos["test/model"] = repo
        self.pull()
        self.check_stored(repo)

    def test_usage(self):
        self.fail_with(2, "pull", says="org/name")
        for name in ("../x", "a/b/c", "a/..", "a//b", "-a/b", "a/b.git",
                     "a--b/c", "a/b\n"):
            self.fail_with(2, "pull", name, says="")
        self.assertEqual(self.hub.requests, [])

    def test_quiet_says_nothing(self):
        self.add(self.weights())
        done = self.run_program("pull", "test/model", "-q")
        self.assertEqual((done.returncode, done.stderr), (0, b""))


def gguf(size, seed=0):
    return b"GGUF" + noise(size - 4, seed)


class Gguf(HubCase):
    def setUp(self):
        super().setUp()
        self.repo = self.add(Repo({
            "README.md": b"#", "mmproj-f16.gguf": gguf(150_000, 9),
            "m-Q4_K_M.gguf": gguf(200_000, 1),
            "m-Q4_K_S.gguf": gguf(210_000, 2),
            "m-IQ2_XS.gguf": gguf(220_000, 3),
            "big/m-Q8_0-00001-of-00002.gguf": gguf(230_000, 4),
            "big/m-Q8_0-00002-of-00002.gguf": gguf(240_000, 5)}))

    def test_several_are_listed_and_none_downloaded(self):
        message = self.fail_with(2, "pull", "test/model", says=(
            "m-Q4_K_M.gguf", "m-IQ2_XS.gguf", "--file", "2 parts", "0.2 MB"))
        self.assertNotIn("mmproj", message)
        self.assertNotIn("00002-of", message)
        self.assertEqual(self.hub.count("/resolve/"), 0)

    def test_by_name_or_quantisation(self):
        for args in (("--file", "m-Q4_K_M.gguf"), ("--file", "q4_k_m")):
            path = self.pull("-q", *args)
            self.assertEqual(path.name, "m-Q4_K_M.gguf")
        path = self.pull("-q", name="test/model:IQ2_XS")
        self.assertEqual(path.name, "m-IQ2_XS.gguf")
        self.check_stored(self.repo, names=["m-Q4_K_M.gguf", "m-IQ2_XS.gguf"])
        self.assertEqual(self.hub.count("Q4_K_S"), 0)

    def test_half_a_quantisation_fits_nothing(self):
        self.fail_with(2, "pull", "test/model", "--file", "Q4_K",
                       says=("Q4_K", "m-Q4_K_S.gguf"))

    def test_all_parts_come(self):
        path = self.pull("-q", "--file", "Q8_0")
        self.assertEqual(path.name, "m-Q8_0-00001-of-00002.gguf")
        self.check_stored(self.repo, names=[
            "big/m-Q8_0-00001-of-00002.gguf", "big/m-Q8_0-00002-of-00002.gguf"])

    def test_a_missing_part_is_said(self):
        del self.repo.files["big/m-Q8_0-00002-of-00002.gguf"]
        self.fail_with(2, "pull", "test/model", "--file", "Q8_0", says="part")

    def test_the_only_one_needs_no_choice(self):
        self.add(Repo({"only-Q5_0.gguf": gguf(200_000)}), "test/only")
        self.assertEqual(self.pull("-q", name="test/only").name,
                         "only-Q5_0.gguf")

    def test_the_only_one_in_the_cache_needs_no_choice_either(self):
        self.pull("-q", "--file", "Q4_K_M")
        self.hub.requests.clear()
        # It is found; that it is no GGUF file is another matter.
        self.fail_with(2, "inspect", "--model", "test/model",
                       says="m-Q4_K_M.gguf")
        self.assertEqual(self.hub.requests, [])


class Plan(HubCase):
    def test_a_plan_needs_headers_only(self):
        repo = self.story()
        # As many weights again, which no plan has to see.
        content = repo.files["model.safetensors"]
        header = json.loads(content[8:8 + struct.unpack("<Q", content[:8])[0]])
        header["unused"] = {"dtype": "U8", "shape": [50_000_000],
                            "data_offsets": [len(content), 0]}
        start = max(e["data_offsets"][1] for k, e in header.items()
                    if k not in ("unused", "__metadata__"))
        header["unused"]["data_offsets"] = [start, start + 50_000_000]
        text = json.dumps(header).encode()
        old = 8 + struct.unpack("<Q", content[:8])[0]
        repo.files["model.safetensors"] = (
            struct.pack("<Q", len(text)) + text + content[old:]
            + bytes(50_000_000))
        self.add(repo, "test/story")
        for command in (("pull", "test/story", "--plan"),
                        ("plan", "--model", "test/story")):
            plan = self.succeed_json(*command, "--ram", "200MB")
            self.assertTrue(plan["fits"])
            self.assertEqual(plan["ram_bytes"], 200_000_000)
        self.assertLess(self.hub.sent_bytes, 3_000_000)
        left = [p.name for p in self.folder_of("test/story").iterdir()]
        self.assertFalse([n for n in left if "plan" in n], left)
        self.assertFalse(self.succeed_json(
            "pull", "test/story", "--plan", "--ram", "5MB")["fits"])

    def test_equals_the_plan_of_the_downloaded_model(self):
        self.add(self.story(), "test/story")
        before = self.succeed_json("plan", "--model", "test/story", "--ram",
                                   "64MB")
        self.pull(name="test/story")
        after = self.succeed_json("plan", "--model", "test/story", "--ram",
                                  "64MB")
        for key in ("weights_bytes", "pass_bytes", "pinned_bytes", "kv_bytes",
                    "context"):
            self.assertEqual(before[key], after[key], key)

    def test_gguf_plans_from_its_header_too(self):
        path = os.environ.get("FLASH_GGUF")  # a real one, where there is any
        if not path:
            self.skipTest("FLASH_GGUF names no GGUF file")
        self.add(Repo({"m.gguf": Path(path).read_bytes()}), "test/gguf")
        before = self.succeed_json("plan", "--model", "test/gguf", "--ram",
                                   "80MB")
        self.assertLess(self.hub.sent_bytes, 10_000_000)
        after = self.succeed_json("plan", "--model", path, "--ram", "80MB")
        self.assertEqual(before["weights_bytes"], after["weights_bytes"])
        self.assertEqual(before["pinned_bytes"] > 0, after["pinned_bytes"] > 0)


class Environment(HubCase):
    def test_offline_uses_the_cache_and_nothing_else(self):
        self.add(self.story(), "test/story")
        self.environment["HF_HUB_OFFLINE"] = "1"
        self.fail_with(2, "pull", "test/story", says="HF_HUB_OFFLINE")
        self.fail_with(2, "run", "--model", "test/story", "-p", "a",
                       says="HF_HUB_OFFLINE")
        self.assertEqual(self.hub.requests, [])
        del self.environment["HF_HUB_OFFLINE"]
        path = self.pull(name="test/story")
        self.environment["HF_HUB_OFFLINE"] = "1"
        self.hub.requests.clear()
        self.assertEqual(self.pull(name="test/story"), path)
        self.succeed("run", "--model", "test/story", "--ram", "64MB", "-p",
                     "a", "--max-tokens", 1)
        self.assertEqual(self.hub.requests, [])

    def test_cache_folders(self):
        self.add(self.weights(10_000))
        for variables, where in (
                ({"HF_HUB_CACHE": "one"}, "one"),
                ({"HF_HUB_CACHE": "", "HF_HOME": "two"}, "two/hub"),
                ({"HF_HOME": "", "XDG_CACHE_HOME": "three"},
                 "three/huggingface/hub"),
                ({"XDG_CACHE_HOME": "", "HOME": "four"},
                 "four/.cache/huggingface/hub")):
            for name, value in variables.items():
                self.environment[name] = str(self.folder / value) if value else ""
            self.pull()
            self.assertTrue((self.folder / where / "models--test--model").exists(),
                            where)

    def test_the_token_goes_to_the_hub_and_not_to_its_file_server(self):
        self.add(self.weights(gated=True))
        self.environment["HF_TOKEN"] = " hf_right\n"
        self.pull()
        seen = {"hub": set(), "cdn": set()}
        for host, _, _, headers in self.hub.requests:
            seen[host].add(headers.get("Authorization"))
        self.assertEqual(seen, {"hub": {"Bearer hf_right"}, "cdn": {None}})

    def test_the_token_of_hf_auth_login_is_found(self):
        self.add(self.weights(gated=True))
        (self.folder / "hf").mkdir()
        (self.folder / "hf" / "token").write_text("hf_right")
        self.pull()

    def test_proxies(self):
        self.add(self.weights(10_000))
        # The hub itself, asked as a proxy asks: by whole addresses.
        self.environment["HF_ENDPOINT"] = "http://hub.invalid"
        self.fail_with(1, "pull", "test/model", "-q", says="hub.invalid")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            self.environment[name] = self.hub.url
            shutil.rmtree(self.cache, ignore_errors=True)
            self.hub.requests.clear()
            self.pull("-q")
            self.assertTrue(self.hub.requests[0][2].startswith(
                "http://hub.invalid/"), name)
            del self.environment[name]
        self.environment["http_proxy"] = self.hub.url
        self.environment["no_proxy"] = "hub.invalid"
        self.hub.requests.clear()
        self.fail_with(1, "pull", "test/model", "-q", says="hub.invalid")
        self.assertEqual(self.hub.requests, [])


if __name__ == "__main__":
    program.main()
