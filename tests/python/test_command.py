# SPDX-License-Identifier: MIT
"""python -m mlx_flash takes the flags of the C++ command, or says why not."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy
import pytest
from mlx_lm import utils

from mlx_flash import __main__ as command
from mlx_flash import _options

import tiny_models

ROOT = Path(__file__).resolve().parent.parent.parent
BINARY = ROOT / "build" / "release" / "mlx-flash"
TEXT = "t5 t9 t17 t4"
IDS = [5, 9, 17, 4, 100, 33, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_models.write("llama", path)
    tiny_models.write_tokenizer(path)
    return path


def run(capsys, *arguments):
    """(exit code, what went to stdout and stderr)"""
    try:
        code = command.main([str(word) for word in arguments])
    except SystemExit as end:
        code = end.code
    done = capsys.readouterr()
    return code, done.out, done.err


def answer(capsys, folder, *arguments):
    code, out, err = run(
        capsys, "run", "-m", folder, "--kernels", "stock", "--raw", "--json", *arguments
    )
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("name", _options.COMMANDS)
def test_every_flag_of_the_other_command_is_known(name):
    if not BINARY.exists():
        pytest.skip("build/release/mlx-flash is not built")
    listed = subprocess.run([BINARY, name, "--help"], capture_output=True, text=True, check=True)
    flags = set()
    for line in listed.stdout.splitlines():
        if re.match(r"  -", line):
            names = re.split(r" {2,}", line.strip())[0]
            flags |= set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", names))
    assert len(flags) > 20
    ours = _options.parser(name)._option_string_actions
    assert flags - set(ours) == set()


def test_every_command_of_the_other_is_known():
    if not BINARY.exists():
        pytest.skip("build/release/mlx-flash is not built")
    listed = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True)
    block = listed.stdout.split("Commands\n")[1].split("\n\n")[0]
    names = set(re.findall(r"^  ([a-z]+) ", block, re.MULTILINE))
    assert {"run", "chat", "score", "plan"} <= names
    assert names <= set(_options.COMMANDS) | set(_options.ELSEWHERE)


@pytest.mark.parametrize("name", _options.ELSEWHERE)
def test_commands_of_the_other_are_named(capsys, name):
    code, out, err = run(capsys, name, "--model", "m")
    assert code == 2 and out == ""
    assert err.startswith(f"error: python -m mlx_flash has no command {name}: ")


@pytest.mark.parametrize("flag", _options.REFUSED)
def test_what_cannot_be_had_is_refused_with_the_reason(capsys, folder, flag):
    value = [] if flag in _options._REFUSED_WITHOUT_VALUE else ["1"]
    code, _, err = run(capsys, "run", "-m", folder, "-p", "t5", flag, *value)
    assert code == 2
    assert err == f"error: {flag} is not for python -m mlx_flash: {_options.REFUSED[flag]}\n"


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--kv-keep", "4"], "--ctx"),
        (["--kv-disk-limit", "1MB"], "--kv-dir"),
        (["--disk-limit", "fast"], "--disk-limit"),
        (["--tile", "x"], "--tile"),
        (["--ctx", "2"], "--ctx 2 holds no answer"),
        (["--prompt-ids", "1,x"], "--prompt-ids"),
        (["--io", "mmap"], "--io"),
        (["--bogus"], "--bogus"),
    ],
)
def test_wrong_usage_ends_with_2(capsys, folder, arguments, says):
    code, _, err = run(capsys, "run", "-m", folder, "-p", TEXT, "--raw", *arguments)
    assert code == 2
    assert says in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--io", "threads"],
        ["--queue-depth", "2", "--no-controller", "--no-pipeline"],
        ["--prefill", "auto", "--tile", "8KB", "--no-learn", "--no-look-ahead"],
        ["--threads", "auto", "--seed", "3", "--ctx", "auto", "--model-name", "x"],
        ["--disk-limit", "1GB", "--quiet"],
    ],
)
def test_how_weights_come_changes_no_token(capsys, folder, arguments):
    expected = answer(capsys, folder, "-p", TEXT, "-n", "6")["tokens"]
    assert answer(capsys, folder, "-p", TEXT, "-n", "6", *arguments)["tokens"] == expected


def test_ctx_bounds_the_answer(capsys, folder):
    report = answer(capsys, folder, "-p", TEXT, "--ctx", "7", "--ignore-eos")
    assert report["generated_tokens"] == 3 and report["finish_reason"] == "length"


def test_kv_keep_goes_on_beyond_ctx(capsys, folder, tmp_path):
    tiny_models.write("qwen3", tmp_path)
    tiny_models.write_tokenizer(tmp_path)
    more = ["--ctx", "7", "--kv-keep", "2", "-n", "9", "--ignore-eos"]
    assert answer(capsys, tmp_path, "-p", TEXT, *more)["generated_tokens"] == 9
    code, _, err = run(capsys, "run", "-m", folder, "-p", TEXT, *more)
    assert code == 2 and "makes its own caches" in err


def test_seeds_repeat(capsys, folder):
    def tokens(seed):
        return answer(capsys, folder, "-p", TEXT, "-n", "12", "--temp", "1.5", "--ignore-eos",
                      "--seed", seed)["tokens"]  # fmt: skip

    assert tokens(1) == tokens(1) != tokens(2)


def test_a_stop_text_is_not_part_of_the_answer(capsys, folder):
    whole = answer(capsys, folder, "-p", TEXT, "-n", "6", "--ignore-eos")["text"]
    word = whole.split()[2]
    report = answer(capsys, folder, "-p", TEXT, "-n", "6", "--ignore-eos", "--stop", word)
    assert report["text"] == whole[: whole.index(word)]
    assert report["finish_reason"] == "stop"


def test_a_session_goes_on_where_it_was(capsys, folder, tmp_path):
    file = tmp_path / "s"
    arguments = ["-n", "4", "--ignore-eos", "--session", file]
    first = answer(capsys, folder, "--prompt-ids", "5,9,17,4", *arguments)
    assert first["cached_tokens"] == 0
    longer = ",".join(map(str, [5, 9, 17, 4, *first["tokens"], 7, 8]))
    again = answer(capsys, folder, "--prompt-ids", longer, *arguments)
    assert again["cached_tokens"] >= 7 and again["prompt_tokens"] == 10
    fresh = answer(capsys, folder, "--prompt-ids", longer, "-n", "4", "--ignore-eos")
    assert again["tokens"] == fresh["tokens"]
    tiny_models.write("qwen3", tmp_path / "other")
    tiny_models.write_tokenizer(tmp_path / "other")
    code, _, err = run(capsys, "run", "-m", tmp_path / "other", "-p", TEXT, "--session", file)
    assert code == 2 and "another model" in err
    file.write_bytes(b"no session")
    code, _, err = run(capsys, "run", "-m", folder, "-p", TEXT, "--session", file)
    assert code == 2 and "no session file" in err


def test_chat_reads_lines_and_keeps_what_it_has_read(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mlx_flash", "chat", "-m", folder, "-n", "3", "--stats",
         "--temp", "0", "--ignore-eos"],
        input="t5 t9\nt7\n/quit\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stdout.split("\n")) >= 3
    cached = [int(n) for n in re.findall(r"cached_tokens (\d+)", done.stderr)]
    assert cached[0] == 0 and cached[1] >= 2


def test_score_is_what_the_model_says(capsys, folder, tmp_path):
    ids = ",".join(map(str, IDS))
    logits = tmp_path / "l.npy"
    code, out, err = run(
        capsys, "score", "-m", folder, "--kernels", "stock", "--ids", ids, "--json",
        "--top", "2", "--logits", logits, "--chunks", "4,1",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    model, _ = utils.load_model(folder)
    rows = model(mx.array([IDS]))[0]
    chances = rows - mx.logsumexp(rows, axis=-1, keepdims=True)
    expected = [chances[i, IDS[i + 1]].item() for i in range(len(IDS) - 1)]
    assert report["logprobs"][0] is None and report["tokens"] == IDS
    assert numpy.allclose(report["logprobs"][1:], expected, atol=1e-4)
    assert abs(report["nll_mean"] + sum(expected) / 6) < 1e-4
    assert len(report["top"]) == 7 and report["top"][0] is None
    assert report["top_next"][0]["id"] == mx.argmax(rows[-1]).item()
    assert numpy.allclose(numpy.load(logits), numpy.array(rows), atol=1e-4)


def test_plan_and_bench_have_their_keys(capsys, folder):
    code, out, _ = run(capsys, "plan", "-m", folder, "--json")
    assert code == 0
    keys = """weights_bytes pass_bytes ram_bytes ram_min_bytes pinned_bytes streamed_bytes
    ring_bytes kv_bytes activation_bytes runtime_bytes predicted_peak_bytes
    predicted_decode_tok_s disk_bytes_per_s fits""".split()
    assert set(keys) <= set(json.loads(out))
    code, out, err = run(capsys, "bench", "-m", folder, "--prompt-tokens", "9", "-n", "3",
                         "--runs", "3", "--warm-up", "--json")  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["prompt_tokens"] == 9 and report["generated_tokens"] == 3
    keys = """model weights_bytes ram_bytes pinned_bytes prompt_tokens generated_tokens tokens
    text finish_reason load_s ttft_s prefill_tok_s decode_tok_s pass_bytes bytes_read
    bytes_read_per_token prefill_bytes_read io_wait_s compute_s disk_bytes_per_s
    peak_rss_bytes kernels threads""".split()
    assert set(keys) <= set(report)


@pytest.mark.parametrize("architecture", ["nemotron_h", "mamba2"])
def test_the_other_command_says_exactly_what_to_type(architecture, tmp_path):
    """For what only mlx-lm knows; the line works as it is printed."""
    if not BINARY.exists():
        pytest.skip("build/release/mlx-flash is not built")
    folder = tmp_path / "a model's folder"
    tiny_models.write(architecture, folder)
    tiny_models.write_tokenizer(folder)
    words = ["-p", "t5 t9", "-n", "2"]
    done = subprocess.run([BINARY, "run", "-m", folder, *words], capture_output=True, text=True)
    assert done.returncode == 2 and f"'{architecture}' is not supported" in done.stderr
    line = re.search(r"then (python -m mlx_flash .*)$", done.stderr, re.MULTILINE)[1]
    printed = shlex.split(line)
    assert printed == ["python", "-m", "mlx_flash", "run", "--model", str(folder)]
    ran = subprocess.run(
        [sys.executable, *printed[1:], *words, "--json"], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["generated_tokens"] == 2
