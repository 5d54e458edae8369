#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every command on a small model: what it prints, and that bad input gives one
clear line and exit code 2."""

import array
import json
import math
import shutil
import struct
import time
import unittest
from pathlib import Path

from program import Case, main

# The documented keys, in the documented order.
RUN_KEYS = """model weights_bytes ram_bytes pinned_bytes prompt_tokens
generated_tokens tokens text finish_reason load_s ttft_s prefill_tok_s
decode_tok_s pass_bytes bytes_read bytes_read_per_token prefill_bytes_read
io_wait_s compute_s disk_bytes_per_s peak_rss_bytes kernels threads""".split()
PLAN_KEYS = """weights_bytes pass_bytes ram_bytes ram_min_bytes pinned_bytes
streamed_bytes ring_bytes kv_bytes activation_bytes runtime_bytes
predicted_peak_bytes predicted_decode_tok_s disk_bytes_per_s fits""".split()

# What llama2.c prints for this model with temperature 0.
STORY = "Once upon a time, there was a little girl named Lily."


def read_npy(path):
    """(rows, cols, values) of a float32 .npy file of version 1.0."""
    data = Path(path).read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00", data[:8]
    (length,) = struct.unpack("<H", data[8:10])
    header = eval(data[10:10 + length], {})  # a literal that we wrote
    assert header["descr"] == "<f4" and not header["fortran_order"]
    values = array.array("f", data[10 + length:])
    rows, cols = header["shape"]
    assert len(values) == rows * cols
    return rows, cols, values


class Run(Case):
    def test_text_goes_to_stdout_and_figures_to_stderr(self):
        done = self.run_program("run", "-m", self.model, "--prompt-ids", "1",
                                "-n", "40")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(done.stdout.decode().startswith(STORY))
        self.assertTrue(done.stdout.endswith(b"\n"))
        line = done.stderr.decode()
        self.assertEqual(line.count("\n"), 1, line)
        self.assertRegex(
            line, r"^model: stories260K \| [\d.]+ [kM]B weights in [\d.]+ \wB "
            r"\| [\d.]+ tok/s \| [\d.]+ \w*B read per token \| peak [\d.]+ MB$")

    def test_json_is_one_object_with_the_documented_keys_in_order(self):
        done = self.run_program("run", "-m", self.model, "--prompt-ids", "1",
                                "-n", "12", "--json")
        self.assertEqual(done.stderr, b"")
        report = json.loads(done.stdout)
        self.assertEqual(list(report)[:len(RUN_KEYS)], RUN_KEYS)
        self.assertEqual(report["generated_tokens"], 12)
        self.assertEqual(len(report["tokens"]), 12)
        self.assertEqual(report["prompt_tokens"], 1)
        self.assertEqual(report["finish_reason"], "length")
        self.assertTrue(STORY.startswith(report["text"][:20]))
        self.assertIn(report["kernels"], ("fast", "stock"))
        self.assertGreater(report["peak_rss_bytes"], 1 << 20)
        self.assertLessEqual(report["peak_rss_bytes"], report["ram_bytes"])
        for key in ("tiles_streamed", "tiles_pinned", "ring_wraps", "misses",
                    "passes"):
            self.assertIn(key, report["stats"])

    def test_every_way_to_give_a_prompt_gives_the_same_answer(self):
        text = "Once upon a time"
        path = self.file("prompt.txt", text)
        ways = [["--prompt", text], [f"--prompt={text}"], [text],
                ["--prompt-file", path]]
        answers = [self.succeed_json("run", "-m", self.model, "-n", "8", *way)
                   for way in ways]
        for stdin_way in (["-"], [], ["--prompt", "-"], ["-f", "-"]):
            answers.append(self.succeed_json("run", "-m", self.model, "-n", "8",
                                             *stdin_way, stdin=text + "\n"))
        ids = self.succeed_json("tokenize", "-m", self.model, text)["ids"]
        answers.append(self.succeed_json(
            "run", "-m", self.model, "-n", "8",
            "--prompt-ids", ",".join(map(str, ids))))
        for answer in answers:
            self.assertEqual(answer["tokens"], answers[0]["tokens"])
            self.assertEqual(answer["prompt_tokens"], len(ids))

    def test_without_a_command_a_prompt_is_run(self):
        out = self.succeed("-m", self.model, "--prompt", "Once", "-n", "4", "-q")
        self.assertTrue(out.strip())
        self.assertEqual(out, self.succeed("-m", self.model, "-n", "4", "-q",
                                           stdin="Once\n"))

    def test_quiet_prints_the_text_only(self):
        done = self.run_program("run", "-m", self.model, "-p", "Once", "-n", "4",
                                "--quiet")
        self.assertEqual(done.stderr, b"")

    def test_stats_is_a_table_on_stderr(self):
        done = self.run_program("run", "-m", self.model, "-p", "Once", "-n", "4",
                                "--stats", "--json")
        json.loads(done.stdout)
        for word in (b"weights", b"peak memory", b"read per token", b"tiles"):
            self.assertIn(word, done.stderr)

    def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(self):
        report = self.succeed_json("run", "-m", self.model, "--prompt-ids", "1",
                                   "-n", "60", "--stop", "[none]",
                                   "--stop", " little")
        self.assertEqual(report["text"], "Once upon a time, there was a")
        self.assertEqual(report["finish_reason"], "stop")

    def test_sampling_repeats_with_its_seed(self):
        def tokens(*more):
            return self.succeed_json("run", "-m", self.model, "-p", "Once",
                                     "-n", "24", "--temp", "1", "--top-p",
                                     "0.95", *more)["tokens"]
        self.assertEqual(tokens("--seed", "7"), tokens("--seed", "7"))
        self.assertNotEqual(tokens("--seed", "7"), tokens("--seed", "8"))

    def test_the_name_in_reports_can_be_given(self):
        done = self.run_program("run", "-m", self.model, "-p", "Once", "-n", "2",
                                "--model-name", "stories (fallback)")
        self.assertTrue(done.stderr.startswith(b"model: stories (fallback) |"))

    def test_an_answer_ends_where_the_context_does(self):
        report = self.succeed_json("run", "-m", self.model, "-p", "Once", "-n",
                                   "500", "--ctx", "32", "--ignore-eos")
        self.assertEqual(report["finish_reason"], "length")
        self.assertLessEqual(
            report["prompt_tokens"] + report["generated_tokens"], 33)

    def test_bad_input_is_refused(self):
        run = ["run", "-m", self.model]
        bad_text = self.file("bad.txt", b"ab\xffcd")
        self.fail_with(2, *run, "-p", "", says="empty")
        self.fail_with(2, *run, says="empty")
        self.fail_with(2, *run, "--prompt-ids", "", says="--prompt-ids")
        self.fail_with(2, *run, "--prompt-ids", "1,x", says="item 2")
        self.fail_with(2, *run, "--prompt-ids", "1,-2", says="-2")
        self.fail_with(2, *run, "--prompt-ids", "1,512", says=("512", "item 2"))
        self.fail_with(2, *run, "-p", b"ab\xff".decode("utf-8", "surrogateescape"),
                       says=("offset 2", "UTF-8"))
        self.fail_with(2, *run, "-f", bad_text, says=("bad.txt", "offset 2"))
        self.fail_with(2, *run, stdin=b"\x80", says=("stdin", "offset 0"))
        self.fail_with(2, *run, "-f", self.folder / "none", says="none")
        self.fail_with(2, *run, "-f", self.folder, says=str(self.folder))
        self.fail_with(2, *run, "-p", "a", "-f", bad_text, says="more than one")
        self.fail_with(2, *run, "-p", "a", "--system", "b", says="--system")
        self.fail_with(2, *run, "-p", "word " * 400, "--ctx", "64",
                       says=("context", "64"))

    def test_ways_of_reading_change_no_token(self):
        smallest = self.succeed_json("plan", "-m", self.model, "--ram", "1MB")
        budget = f"{smallest['ram_min_bytes'] + 2000000}B"
        run = ["run", "-m", self.model, "--prompt-ids", "1", "-n", "12"]
        plain = self.succeed_json(*run)
        for way in (["--no-pipeline"], ["--no-controller"],
                    ["--disk-limit", "20MB", "--ram", budget],
                    ["--io", "threads", "--no-pipeline", "--ram", budget]):
            with self.subTest(way=way):
                report = self.succeed_json(*run, *way)
                self.assertEqual(report["tokens"], plain["tokens"])

    def test_a_disk_limit_bounds_what_is_read(self):
        limit = 2_000_000
        begin = time.monotonic()
        report = self.succeed_json("run", "-m", self.model, "--prompt-ids", "1",
                                   "-n", "2", "--disk-limit", f"{limit}B")
        seconds = time.monotonic() - begin
        self.assertGreater(report["bytes_read"], 400_000)
        # What one request asks for may be ahead of the limit.
        self.assertGreaterEqual(seconds * limit, report["bytes_read"] * 0.5)

    def test_a_budget_that_cannot_work_names_one_that_can(self):
        message = self.fail_with(2, "run", "-m", self.model, "-p", "a", "--ram",
                                 "1MB")
        self.assertRegex(message, r"smallest .* is [\d.]+ ?MB")
        smallest = self.succeed_json("plan", "-m", self.model, "--ram", "1MB")
        self.assertFalse(smallest["fits"])
        report = self.succeed_json("run", "-m", self.model, "-p", "Once", "-n",
                                   "4", "--ram",
                                   f"{smallest['ram_min_bytes'] + 2000000}B")
        self.assertLessEqual(report["peak_rss_bytes"], report["ram_bytes"])

    def test_bad_options_are_refused(self):
        run = ["run", "-m", self.model, "-p", "a"]
        for flag, values in {
                "--max-tokens": ["-1", "0", "x", "1.5", ""],
                "--threads": ["-1", "0", "100000"],
                "--temp": ["-1", "nan", "inf", "hot"],
                "--top-p": ["-0.1", "1.1"],
                "--top-k": ["-1"],
                "--min-p": ["2"],
                "--repeat-penalty": ["0", "-1"],
                "--seed": ["-1", "18446744073709551616"],
                "--ctx": ["0", "-5", "many"],
                "--ram": ["0", "-1", "12XB", "", "1e9", "nan"],
                "--kernels": ["quick"],
                "--kv-type": ["f64"],
                "--kv-quant": ["3", "16", ""],
                "--kv-ram": ["12XB", "-1"],
                "--kv-dir": [""],
                "--kv-disk-limit": ["x"],
                "--io": ["mmap"],
                "--prefill": ["0"],
                "--tile": ["-4"],
                "--queue-depth": ["0"],
                "--disk-limit": ["0", "-1", "fast", ""],
                "--stop": [""],
                "--model": [""],
        }.items():
            for value in values:
                with self.subTest(flag=flag, value=value):
                    self.fail_with(2, *run, flag, value, says=flag)

    def test_missing_things_are_named(self):
        self.fail_with(2, "run", "-p", "a", says="--model")
        self.fail_with(2, "run", "-p", "a", "-m", "/no/model", says="/no/model")
        self.fail_with(2, "run", "-p", "a", "-m", "no/model", says="no/model")
        self.fail_with(2, "run", "-m", self.model, "-p", says="--prompt")
        self.fail_with(2, "run", "-m", self.folder, "-p", "a")
        self.fail_with(2, "run", "-m", self.file("x.gguf", b"GG"), "-p", "a",
                       says="x.gguf")

    def test_a_hub_id_is_found_in_the_hub_cache(self):
        root = self.folder / "hub" / "hub" / "models--some--story"
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text("0123abc")
        shutil.copytree(self.model, root / "snapshots" / "0123abc")
        report = self.succeed_json("run", "-m", "some/story", "-p", "Once", "-n",
                                   "2")
        self.assertEqual(report["model"], "story")


class Usage(Case):
    def test_help_lists_what_there_is(self):
        out = self.succeed("--help")
        for name in ("run", "chat", "score", "plan", "tokenize", "template",
                     "inspect", "pull", "models", "rm"):
            self.assertRegex(out, rf"(?m)^  {name} ")
            self.assertIn(f"Usage: mlx-flash {name}",
                          self.succeed(name, "--help"))
            self.assertEqual(self.succeed("help", name),
                             self.succeed(name, "--help"))
        for name in ("serve", "monitor", "doctor", "convert"):
            self.assertNotIn(name, out)
        self.assertLessEqual(max(map(len, out.splitlines())), 80)

    def test_version_names_this_program_and_mlx(self):
        self.assertRegex(self.succeed("--version"),
                         r"^mlx-flash \d+\.\d+\.\d+ .*MLX \d+\.\d+\.\d+")

    def test_what_is_not_there_yet_says_so(self):
        for name in ("serve", "convert", "monitor", "doctor"):
            self.fail_with(2, name, says=(name, "not available yet"))
        self.fail_with(2, "run", "-p", "a", "--modelfile", "s",
                       says=("--modelfile", "not available yet"))
        self.fail_with(2, "run", "-m", self.model, "-p", "a", "--trace",
                       "no/such/folder/t.json",
                       says=("--trace", "No such file"))

    def test_slips_of_the_fingers_get_a_hint(self):
        self.fail_with(2, "rnu", says="did you mean run")
        self.fail_with(2, "run", "--promt", "x", says="did you mean --prompt")
        self.fail_with(2, "run", "--frobnicate", says="--frobnicate")


class Score(Case):
    def test_log_probabilities_belong_to_the_logits(self):
        path = self.folder / "logits.npy"
        ids = [1, 403, 407, 261, 378]
        score = self.succeed_json("score", "-m", self.model, "--ids",
                                  ",".join(map(str, ids)), "--logits", path,
                                  "--top", "3")
        rows, cols, logits = read_npy(path)
        self.assertEqual((rows, cols), (len(ids), 512))
        self.assertEqual(score["tokens"], ids)
        self.assertIsNone(score["logprobs"][0])
        total = 0
        for i in range(1, len(ids)):
            row = logits[(i - 1) * cols:i * cols]
            log_sum = math.log(math.fsum(map(math.exp, row)))
            self.assertAlmostEqual(score["logprobs"][i], row[ids[i]] - log_sum,
                                   places=9)
            total -= score["logprobs"][i]
            best = sorted(range(cols), key=lambda k, r=row: (-r[k], k))[:3]
            self.assertEqual([c["id"] for c in score["top"][i]], best)
            self.assertAlmostEqual(score["top"][i][0]["logprob"],
                                   row[best[0]] - log_sum, places=9)
        self.assertIsNone(score["top"][0])
        self.assertAlmostEqual(score["nll_mean"], total / (len(ids) - 1))
        self.assertAlmostEqual(score["perplexity"], math.exp(score["nll_mean"]))
        for key in ("tiles_streamed", "passes"):
            self.assertIn(key, score["stats"])

    def test_text_file_argument_and_stdin_score_the_same(self):
        text = STORY + "\n"
        path = self.file("story.txt", text)
        scores = [self.succeed_json("score", "-m", self.model, *way)
                  for way in (["--text-file", path], ["--text", text])]
        scores.append(self.succeed_json("score", "-m", self.model, stdin=text))
        for score in scores:
            self.assertEqual(score["logprobs"], scores[0]["logprobs"])
        self.assertLess(scores[0]["perplexity"], 10)
        self.assertRegex(self.succeed("score", "-m", self.model, "--text-file",
                                      path), r"^\d+ tokens \| nll [\d.]+ \| ")

    def test_chunks_change_no_bit(self):
        files = []
        for i, chunks in enumerate((["--chunks", "1"], ["--chunks", "7,1,3"],
                                    [])):
            files.append(self.folder / f"{i}.npy")
            self.succeed("score", "-m", self.model, "--kernels", "fast",
                         "--text", STORY * 3, "--logits", files[-1], *chunks)
        self.assertEqual(files[0].read_bytes(), files[1].read_bytes())
        self.assertEqual(files[0].read_bytes(), files[2].read_bytes())

    def test_one_token_predicts_nothing(self):
        score = self.succeed_json("score", "-m", self.model, "--ids", "5")
        self.assertEqual(score["logprobs"], [None])
        self.assertIsNone(score["nll_mean"])

    def test_bad_input_is_refused(self):
        score = ["score", "-m", self.model]
        self.fail_with(2, *score, says="empty")
        self.fail_with(2, *score, "--ids", "", says="token")
        self.fail_with(2, *score, "--ids", "1,9999", says="9999")
        self.fail_with(2, *score, "--ids", "1", "--text", "a", says="more than")
        self.fail_with(2, *score, "--text-file", self.file("b", b"\xfe"),
                       says="offset 0")
        self.fail_with(2, *score, "--ids", "1,2", "--chunks", "0",
                       says="--chunks")
        self.fail_with(2, *score, "--ids", "1,2", "--logits",
                       self.folder / "no" / "x.npy", says="x.npy")
        self.fail_with(2, *score, "--text", "a b c " * 300, says="context")


class Plan(Case):
    def test_json_has_the_documented_keys(self):
        plan = self.succeed_json("plan", "-m", self.model, "--ram", "100MB")
        self.assertEqual(list(plan)[:len(PLAN_KEYS)], PLAN_KEYS)
        self.assertTrue(plan["fits"])
        self.assertEqual(plan["ram_bytes"], 100000000)
        self.assertEqual(plan["pinned_bytes"] + plan["streamed_bytes"],
                         plan["pass_bytes"])
        self.assertLessEqual(plan["predicted_peak_bytes"], plan["ram_bytes"])

    def test_the_speed_is_predicted_from_the_disk(self):
        plan = self.succeed_json("plan", "-m", self.model, "--ram", "100MB")
        self.assertGreater(plan["disk_bytes_per_s"], 0)
        smallest = plan["ram_min_bytes"]
        tight = self.succeed_json("plan", "-m", self.model, "--ram",
                                  f"{smallest}B")
        self.assertGreater(tight["streamed_bytes"], 0)
        self.assertAlmostEqual(
            tight["predicted_decode_tok_s"] * tight["streamed_bytes"],
            tight["disk_bytes_per_s"], delta=1)

    def test_a_bare_number_is_in_gigabytes(self):
        plan = self.succeed_json("plan", "-m", self.model, "--ram", "0.5")
        self.assertEqual(plan["ram_bytes"], 500000000)

    def test_a_table_for_people(self):
        out = self.succeed("plan", "-m", self.model, "--ram", "100MB")
        for word in ("weights", "kept in memory", "smallest budget", "fits"):
            self.assertIn(word, out)
        self.assertRegex(self.succeed("plan", "-m", self.model, "--ram", "1MB"),
                         r"fits +no")


class Bench(Case):
    def test_warmed_up_it_reads_what_fits_before_it_measures(self):
        def measure(*flags):
            return self.succeed_json("bench", "-m", self.model,
                                     "--ram", "200MB", "--prompt-tokens", "16",
                                     "-n", "4", "--json", *flags)
        cold, warm = measure(), measure("--warm-up")
        self.assertGreater(cold["prefill_bytes_read"], 0)
        self.assertEqual(warm["prefill_bytes_read"], 0)
        self.assertEqual(warm["tokens"], cold["tokens"])

    def test_several_runs_say_which_was_cold_and_report_the_median(self):
        bench = ["bench", "-m", self.model, "--ram", "200MB",
                 "--prompt-tokens", "16", "-n", "4"]
        report = self.succeed_json(*bench, "--runs", "3", "--json", "--probe")
        runs = report["runs"]
        self.assertEqual([r["cold"] for r in runs], [True, False, False])
        self.assertGreater(runs[0]["prefill_bytes_read"], 0)
        self.assertEqual(runs[1]["prefill_bytes_read"], 0)
        self.assertEqual(report["decode_tok_s"],
                         min(r["decode_tok_s"] for r in runs[1:]))
        self.assertGreater(report["probe"]["disk_bytes_per_s"], 0)
        self.assertEqual(report["probe"]["share"], 0)  # all was in memory
        out = self.succeed(*bench, "--runs", "2", "--probe")
        for word in ("cold", "warm", "disk alone", "computing waited"):
            self.assertIn(word, out)
        self.fail_with(2, *bench, "--runs", "0", says="--runs")


class BenchDisk(Case):
    def test_json_has_the_documented_keys(self):
        measured = self.succeed_json("bench", "--disk", "-m", self.model)
        self.assertEqual(list(measured), [
            "file", "file_bytes", "io", "direct", "disk_bytes_per_s", "loads"])
        weights = Path(self.model) / "model.safetensors"
        self.assertEqual(measured["file"], str(weights))
        self.assertEqual(measured["file_bytes"], weights.stat().st_size)
        self.assertEqual(len(measured["loads"]), 21)
        for load in measured["loads"]:
            self.assertEqual(list(load), [
                "request_bytes", "depth", "direct", "bytes_per_s",
                "latency_p50_ms", "latency_p99_ms", "reads"])
        self.assertEqual(
            measured["disk_bytes_per_s"],
            max(load["bytes_per_s"] for load in measured["loads"]
                if load["direct"]))

    def test_a_table_for_people(self):
        out = self.succeed("bench", "--disk", "-m", self.model)
        for word in ("MB/s", "under way", "4096 KiB", "through the page cache"):
            self.assertIn(word, out)

    def test_a_folder_without_weights_is_named(self):
        (self.folder / "bare").mkdir()
        self.fail_with(2, "bench", "--disk", "-m", self.folder / "bare",
                       says=["bare", "safetensors"])


class BenchKernels(Case):
    def test_json_has_the_documented_keys(self):
        measured = self.succeed_json("bench", "--kernels", "--only", "mxfp8")
        self.assertGreater(measured["dram_read_gb_s"], 0)
        self.assertGreater(measured["fma_gflops"], 0)
        self.assertEqual([k["t"] for k in measured["kernels"]],
                         [1, 2, 4, 8, 16, 64, 512])
        for kernel in measured["kernels"]:
            self.assertEqual(list(kernel), [
                "format", "rows", "cols", "t", "gb_s", "dram_share", "gflops",
                "mix_share"])
            self.assertEqual(kernel["format"], "mxfp8")
            self.assertGreater(kernel["gflops"], 0)

    def test_a_slip_is_named(self):
        self.fail_with(2, "bench", "--kernels", "--only", "Q9",
                       says=["--only", "Q9"])
        self.fail_with(2, "bench", "--kernels", "swift", says=["swift"])


class Inspect(Case):
    def test_tensors_and_totals_agree_with_the_files(self):
        report = self.succeed_json("inspect", "-m", self.model)
        self.assertEqual(report["architecture"], "llama")
        self.assertEqual(report["weights_bytes"],
                         sum(t["bytes"] for t in report["tensors"]))
        data = (Path(self.model) / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + length])
        header.pop("__metadata__", None)
        self.assertEqual(len(header), report["tensor_count"])
        for tensor in report["tensors"]:
            begin, end = header[tensor["name"]]["data_offsets"]
            self.assertEqual(tensor["shape"], header[tensor["name"]]["shape"])
            self.assertEqual(tensor["bytes"], end - begin)
            self.assertEqual(tensor["offset"], 8 + length + begin)
            self.assertEqual(tensor["dtype"], "float32")
            self.assertEqual(tensor["file"], "model.safetensors")

    def test_a_table_for_people(self):
        out = self.succeed("inspect", "-m", self.model)
        self.assertIn("llama", out)
        self.assertIn("hidden_size", out)
        self.assertIn("model.norm.weight", out)

    def test_a_broken_file_is_named(self):
        broken = self.folder / "broken"
        shutil.copytree(self.model, broken)
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        self.fail_with(2, "inspect", "-m", broken, says="model.safetensors")
        self.fail_with(2, "run", "-m", broken, "-p", "a",
                       says="model.safetensors")

    def test_a_trace_shows_every_step_and_changes_no_token(self):
        asked = ("run", "-m", self.model, "-p", "Once upon a time", "-n", "8")
        plain = self.succeed_json(*asked)
        path = self.folder / "trace.json"
        traced = self.succeed_json(*asked, "--trace", path)
        self.assertEqual(traced["tokens"], plain["tokens"])
        events = json.loads(path.read_text())["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        forwards = [span for span in spans if span["name"] == "forward"]
        # The prompt, then every token but the last.
        self.assertEqual(len(forwards), 8)
        reads = [span for span in spans if span["name"].startswith("read ")]
        self.assertGreater(sum(read["args"]["bytes"] for read in reads), 0)
        tiles = [span for span in spans if "bytes" in span["args"] and
                 "tile" in span["args"]]
        self.assertEqual(len(tiles) % 8, 0, "each pass uses each tile")
        self.assertGreater(len(tiles), 0)
        for tile in tiles:
            self.assertTrue(any(step["ts"] <= tile["ts"] and tile["ts"] +
                                tile["dur"] <= step["ts"] + step["dur"] + 1
                                for step in forwards), tile)

    def test_a_trace_of_a_mixture_shows_hits_and_misses(self):
        path = self.folder / "experts.json"
        report = self.succeed_json(
            "run", "-m", Path(self.model).parent / "tinymoe", "-p", "Once upon a time", "-n", "8",
            "--no-learn", "--trace", path)
        events = json.loads(path.read_text())["traceEvents"]
        rounds = [event for event in events
                  if event["name"].startswith("experts of layer ")]
        self.assertEqual(len(rounds), 8 * 6, "forwards by layers")
        experts = report["stats"]["experts"]
        for name, total in (("hits", experts["hits"]),
                            ("misses", experts["used"] - experts["hits"])):
            self.assertEqual(sum(one["args"][name] for one in rounds), total)
            self.assertGreater(total, 0, name)
        self.assertGreater(
            sum(one["args"]["missing_bytes"] for one in rounds), 0)


if __name__ == "__main__":
    main()
