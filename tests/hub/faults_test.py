# SPDX-License-Identifier: MIT
"""What a hub, a file server, a network or a file may do wrong, and that nothing
wrong ever gets a name in the cache."""

import shutil
import time

from hub_case import Fault, HubCase, Repo, noise, program

SIZE = 20_000_000  # several pieces


class Faults(HubCase):
    def setUp(self):
        super().setUp()
        self.repo = self.add(self.weights(SIZE))

    def recovers(self, *faults, seconds=20):
        self.hub.faults = list(faults)
        start = time.monotonic()
        self.pull("-q")
        self.assertLess(time.monotonic() - start, seconds)
        self.check_stored(self.repo)
        self.check_nothing_wrong(self.repo)
        self.assertFalse(list(self.folder_of().glob("blobs/*.incomplete")))

    def refuses(self, code, *faults, says=(), seconds=20):
        self.hub.faults = list(faults)
        start = time.monotonic()
        message = self.fail_with(code, "pull", "test/model", "-q", says=says)
        self.assertLess(time.monotonic() - start, seconds)
        self.check_nothing_wrong(self.repo)
        return message

    # --- faults that pass ---

    def test_errors_that_pass_are_tried_again(self):
        for code in (408, 429, 500, 502, 503, 504):
            shutil.rmtree(self.cache, ignore_errors=True)
            self.recovers(Fault("status", "/api/", code=code, times=2),
                          Fault("status", "/resolve/", code=code, times=2),
                          Fault("status", host="cdn", code=code, times=2))

    def test_retry_after_is_kept_to(self):
        for code in (429, 503):
            shutil.rmtree(self.cache, ignore_errors=True)
            start = time.monotonic()
            self.recovers(Fault("status", "/api/", code=code, times=1,
                                headers={"Retry-After": "1"}))
            self.assertGreater(time.monotonic() - start, 1.0)

    def test_retry_after_of_an_hour_is_not_waited_for(self):
        self.refuses(1, Fault("status", "/api/", code=429,
                              headers={"Retry-After": "3600"}), says="3600 s")

    def test_bodies_that_end_early_are_continued(self):
        self.recovers(Fault("truncate", host="cdn", bytes=1_500_000, times=7))
        fetched = self.hub.sent_bytes
        self.assertLess(fetched, SIZE * 1.2)

    def test_signed_addresses_that_run_out_are_renewed(self):
        self.recovers(Fault("status", host="cdn", code=403, times=2))

    def test_a_hanging_connection_is_given_up(self):
        self.recovers(Fault("hang", host="cdn", times=1, seconds=8))

    def test_a_body_changed_once_is_fetched_again(self):
        self.recovers(Fault("corrupt", host="cdn", times=1))

    def test_without_ranges_the_whole_file_comes(self):
        self.hub.ranges = False
        self.recovers()

    def test_without_ranges_a_truncated_body_starts_again(self):
        self.hub.ranges = False
        self.recovers(Fault("truncate", host="cdn", bytes=1_500_000, after=1,
                            times=2))

    def test_without_a_second_origin(self):
        self.hub.cdn = False
        self.recovers()

    def test_a_listing_without_sizes_and_digests(self):
        def bare(listing):
            listing["siblings"] = [{"rfilename": s["rfilename"]}
                                   for s in listing["siblings"]]
            return listing
        self.hub.listing = bare
        self.recovers()
        self.assertGreater(self.hub.count(method="HEAD"), 0)

    def test_a_mirror_without_addresses_for_revisions(self):
        self.hub.revisions = False
        self.recovers()
        self.fail_with(2, "pull", "test/model@v1", "-q", says="test/model")

    def test_wrong_etags_of_answers_do_not_matter_where_digests_are_known(self):
        self.hub.head_headers = lambda h: {**h, "ETag": '"0000"'}
        self.recovers()

    # --- faults that stay ---

    def test_no_etag_anywhere_is_refused(self):
        self.hub.listing = lambda listing: {**listing, "siblings": [
            {"rfilename": s["rfilename"]} for s in listing["siblings"]]}
        self.hub.head_headers = lambda h: {
            k: v for k, v in h.items() if "Etag" not in k and k != "ETag"}
        self.refuses(2, says=("etag", "config.json"))

    def test_etags_that_are_paths_are_refused(self):
        self.hub.listing = lambda listing: {**listing, "siblings": [
            {"rfilename": s["rfilename"]} for s in listing["siblings"]]}
        for etag in ("../../../evil", "a/b", "..", "a\\b", ""):
            self.hub.head_headers = lambda h, e=etag: {
                **h, "ETag": f'"{e}"', "X-Linked-Etag": f'"{e}"'}
            self.refuses(2, says="etag")

    def test_an_etag_that_changes_under_way_is_noticed(self):
        # Neither a sha256 nor a git id: nothing else could tell.
        self.add(Repo({"config.json": b"{}", "model.safetensors":
                       noise(50_000)}))
        self.hub.listing = lambda listing: {**listing, "siblings": [
            {"rfilename": s["rfilename"]} for s in listing["siblings"]]}
        etags = iter(range(1000))
        self.hub.head_headers = lambda h: {**h, "ETag": f'"v{next(etags)}"'}
        self.hub.faults = []
        self.fail_with(1, "pull", "test/model", "-q", says="etag changed")

    def test_a_wrong_body_never_gets_a_name(self):
        self.refuses(1, Fault("corrupt", host="cdn"), says="sha256")
        self.assertFalse(list(self.folder_of().glob("blobs/*.incomplete")))
        self.recovers()

    def test_a_wrong_small_file_never_gets_a_name(self):
        self.refuses(1, Fault("corrupt", "config.json"), says="git hash")

    def test_a_file_longer_than_the_hub_says(self):
        self.refuses(1, Fault("grow", host="cdn"), says="bytes")

    def test_a_file_shorter_than_the_hub_says(self):
        self.refuses(1, Fault("shrink", host="cdn"), says="bytes")

    def test_a_listing_that_lies_about_sizes(self):
        for lie in (SIZE - 1, SIZE + 1, 0, 2 * SIZE, 1 << 45, 1 << 60, -1, 1.5,
                    "many"):
            def lying(listing, lie=lie):
                for each in listing["siblings"]:
                    if each["rfilename"].startswith("model"):
                        each["size"] = lie
                return listing
            shutil.rmtree(self.cache, ignore_errors=True)
            self.hub.listing = lying
            if lie == "many":  # as if it said nothing: asked for
                self.recovers()
                continue
            done = self.run_program("pull", "test/model", "-q")
            self.assertIn(done.returncode, (1, 2), lie)
            self.assertTrue(done.stderr.startswith(b"mlx-flash: error: "))
            self.check_nothing_wrong(self.repo)

    def test_a_wrong_sha256_in_the_listing(self):
        def lying(listing):
            for each in listing["siblings"]:
                if "lfs" in each:
                    each["lfs"]["sha256"] = "0" * 64
            return listing
        self.hub.listing = lying
        self.refuses(1, says="sha256")

    def test_errors_that_stay_end_it_and_keep_what_came(self):
        self.refuses(1, Fault("truncate", host="cdn", bytes=2_000_000, times=4),
                     Fault("status", host="cdn", code=503), says="503")
        before = self.hub.sent_bytes
        self.assertGreater(before, 2_000_000)
        self.recovers()
        self.assertLess(self.hub.sent_bytes - before, SIZE - 1_000_000)

    def test_redirects_end(self):
        self.refuses(1, Fault("loop", "/resolve/"), says="redirects more than")
        for target in ("file:///etc/passwd", "ftp://127.0.0.1/x",
                       "gopher://127.0.0.1/x"):
            self.refuses(1, Fault("redirect", "/resolve/", to=target),
                         says="redirects to")

    def test_signatures_are_not_shown(self):
        message = self.refuses(1, Fault("status", host="cdn", code=500))
        self.assertNotIn("s3cret", message)

    def test_listings_that_are_none(self):
        for body in (b"", b"[]", b"{}", b"<html>", b'{"sha": 1}',
                     b'{"sha": "../../x", "siblings": []}',
                     b'{"sha": "' + b"a" * 40 + b'"}',
                     b'{"sha": "' + b"a" * 40 + b'", "siblings": [1]}',
                     b"[" * 100_000, b"\xff" * 100):
            self.refuses(2, Fault("status", "/api/", code=200, body=body),
                         says="cannot be used")
        self.refuses(1, Fault("status", "/api/", code=200,
                              body=b" " * (17 << 20)), says="longer than")


class Names(HubCase):
    def test_names_that_lead_elsewhere_are_refused(self):
        for name in ("../evil.json", "a/../../../evil.json", "/tmp/evil.json",
                     "a/./evil.json", "a//evil.json", "..\\evil.json",
                     "C:\\evil.json", "evil\n.json", "evil\0.json", "",
                     "x" * 300 + ".json", "a/" * 600 + "x.json", "..", "."):
            self.add(self.weights())
            self.hub.listing = lambda listing, n=name: {
                **listing, "siblings": listing["siblings"] + [
                    {"rfilename": n, "size": 5, "blobId": "0" * 40}]}
            self.fail_with(2, "pull", "test/model", "-q", says="refused")
        self.assertEqual(self.hub.count("/resolve/"), 0)
        self.assertEqual(sorted(p.name for p in self.folder.rglob("*evil*")), [])

    def test_one_name_twice_is_refused(self):
        self.add(self.weights())
        self.hub.listing = lambda listing: {
            **listing, "siblings": listing["siblings"] * 2}
        self.fail_with(2, "pull", "test/model", "-q", says="twice")

    def test_an_index_that_leads_elsewhere_is_refused(self):
        self.add(Repo({
            "config.json": b"{}", "model.safetensors": noise(1000),
            "model.safetensors.index.json":
                b'{"weight_map": {"a": "../../../x.safetensors"}}'}))
        self.fail_with(2, "pull", "test/model", "-q", says="refused")


class Access(HubCase):
    def test_gated_says_what_to_do(self):
        self.add(self.weights(gated=True))
        self.fail_with(2, "pull", "test/model", "-q",
                       says=("gated", "accept", "HF_TOKEN",
                             self.hub.url + "/test/model"))
        self.environment["HF_TOKEN"] = "hf_right"
        self.pull("-q")

    def test_gated_and_not_accepted(self):
        self.add(self.weights(gated="not accepted"))
        self.environment["HF_TOKEN"] = "hf_right"
        self.fail_with(2, "pull", "test/model", "-q",
                       says=("gated", "accept", "account", "HF_TOKEN", "403"))

    def test_a_wrong_token_is_named_but_not_shown(self):
        self.add(self.weights())
        self.environment["HF_TOKEN"] = "hf_wrong"
        message = self.fail_with(2, "pull", "test/model", "-q",
                                 says=("token", "HF_TOKEN", "401"))
        self.assertNotIn("hf_wrong", message)

    def test_a_token_that_could_not_be_a_header_is_not_sent(self):
        self.add(self.weights())
        self.environment["HF_TOKEN"] = "hf_right\r\nX-Evil: 1"
        self.pull("-q")
        for _, _, _, headers in self.hub.requests:
            self.assertNotIn("X-Evil", headers)
            self.assertNotIn("Authorization", headers)

    def test_a_redirected_listing_does_not_get_the_token(self):
        repo = self.add(self.weights())
        self.environment["HF_TOKEN"] = "hf_right"
        self.hub.faults = [Fault("redirect", "/api/", host="hub",
                                 to=self.hub.cdn_url + "/test/model/config.json")]
        self.fail_with(2, "pull", "test/model", "-q", says="cannot be used")
        elsewhere = [h for host, _, _, h in self.hub.requests if host == "cdn"]
        self.assertEqual(len(elsewhere), 1)
        self.assertNotIn("Authorization", elsewhere[0])
        self.assertTrue(repo.files)

    def test_missing_repository(self):
        self.fail_with(2, "pull", "test/none", "-q", says="test/none")

    def test_nothing_listens(self):
        self.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
        self.fail_with(1, "pull", "test/model", "-q", says="127.0.0.1:9")
        self.environment["HF_ENDPOINT"] = "not an address"
        self.fail_with(2, "pull", "test/model", "-q", says=("HF_ENDPOINT", "address"))


if __name__ == "__main__":
    program.main()
