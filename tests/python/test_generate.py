# SPDX-License-Identifier: MIT
"""Text in, text out: the model's own stream_generate, the patch of mlx_lm, the
command."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import mlx.core as mx
import mlx_lm
import pytest

from mlx_flash import FlashConfig, FlashManager, Segment
from mlx_flash.directives import parse_flash_directives
from mlx_flash.integration import lmstudio

import tiny_models

TEXT = "t5 t9 t17 t4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_models.write("llama", path)
    tiny_models.write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def expected(folder):
    """mlx-lm's own answer."""
    model, tokenizer = mlx_lm.load(str(folder))
    return [r.token for r in mlx_lm.stream_generate(model, tokenizer, TEXT, max_tokens=10)]


def test_segments_are_text_with_numbers(folder, expected):
    with FlashManager(FlashConfig(kernels="stock")) as manager:
        model, tokenizer = manager.load(folder)
        segments = list(model.stream_generate(TEXT, max_tokens=10))
    assert [s.token for s in segments] == expected
    assert all(isinstance(s, (str, Segment)) and s.logprob <= 0 for s in segments)
    assert segments[-1].finish_reason == "length"
    assert all(s.finish_reason is None for s in segments[:-1])
    assert segments[-1].stats["generated_tokens"] == 10
    assert "".join(segments).split() == [f"t{t}" for t in expected]


def test_prompts_may_be_ids_or_messages(folder, expected):
    ids = [int(word[1:]) for word in TEXT.split()]
    with FlashManager(FlashConfig(kernels="stock")) as manager:
        model, _ = manager.load(folder)
        for prompt in (ids, [{"role": "user", "content": TEXT}], mx.array(ids)):
            got = [s.token for s in model.stream_generate(prompt, max_tokens=10)]
            assert got == expected


def test_chunks_of_a_prompt_follow_the_config(folder):
    seen = []
    with FlashManager(FlashConfig(kernels="stock", prefill_chunk_size=8)) as manager:
        model, _ = manager.load(folder)
        list(
            model.stream_generate(
                [3] * 20, max_tokens=1, prompt_progress_callback=lambda n, of: seen.append(n)
            )
        )
    assert seen[:4] == [0, 8, 16, 19]


def test_what_nobody_waited_for_does_not_fail_another_model(tmp_path):
    """mlx-lm has the next token computed before it hands out the last one."""
    from mlx_lm.generate import generate_step

    tiny_models.write("llama", tmp_path, config={"hidden_size": 512, "intermediate_size": 4096})
    for _ in range(3):
        with FlashManager(FlashConfig(kernels="stock", disk_limit_gb_s=0.2)) as manager:
            model, _ = manager.load(tmp_path)
            steps = generate_step(mx.array([1, 2, 3]), model, max_tokens=8)
            assert len([next(steps) for _ in range(3)]) == 3


def test_a_closed_model_says_so(folder):
    with FlashManager(FlashConfig(kernels="stock")) as manager:
        model, _ = manager.load(folder)
        mx.eval(model(mx.array([[3, 4]])))
    with pytest.raises(RuntimeError, match="closed"):
        mx.eval(model(mx.array([[3, 4]])))


def test_patching_mlx_lm_and_back(folder, expected):
    originals = (mlx_lm.load, mlx_lm.stream_generate, mlx_lm.utils.load)
    lmstudio.apply_flash_patch(FlashConfig(kernels="stock"))
    lmstudio.apply_flash_patch(FlashConfig(kernels="fast"))
    assert mlx_lm.load is not originals[0]
    inner, tokenizer = mlx_lm.load(str(folder))
    assert inner.plan()["kernels"] == "fast"
    lmstudio.remove_flash_patch()
    model, tokenizer = mlx_lm.load(str(folder))
    assert model.plan()["kernels"] == "stock"
    got = [r.token for r in mlx_lm.stream_generate(model, tokenizer, TEXT, max_tokens=10)]
    assert got == expected
    lmstudio.remove_flash_patch()
    lmstudio.remove_flash_patch()  # without a patch: nothing
    assert (mlx_lm.load, mlx_lm.stream_generate, mlx_lm.utils.load) == originals


def test_directives():
    text = "FROM model\nFLASH ram_budget_gb 2.5\nflash kernels=stock\nFLASH debug on\nSYSTEM hi\n"
    found = parse_flash_directives(text)
    assert found == {"ram_budget_gb": 2.5, "kernels": "stock", "debug": True}
    assert FlashConfig.from_dict(found).ram_budget_gb == 2.5
    with pytest.raises(ValueError, match="line 2"):
        parse_flash_directives("FROM x\nFLASH kernels\n")
    with pytest.raises(ValueError, match="FlashConfig.kernels"):
        parse_flash_directives("FLASH kernels quick")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mlx_flash", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_answers_in_json(folder, expected):
    done = command(
        "run", "--model", str(folder), "--kernels", "stock", "--prompt", TEXT, "--raw",
        "--max-tokens", "10", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["tokens"] == expected
    assert report["finish_reason"] == "length" and report["kernels"] == "stock"
    assert report["peak_rss_bytes"] > 0


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--ram", "much"], "'much' is no size"),
        (["--ram", "1KB"], "smallest that works"),
        (["--moe-top-k", "2"], "moe_top_k_override"),
        (["--max-tokens", "-5"], "'-5' is not a whole number from 1"),
        (["--temp", "-1"], "'-1' is not a number from 0 to 100"),
        (["--threads", "x"], "'x' is not a whole number"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--model", "/nope"], "'/nope': no such folder"),
    ],
)
def test_the_command_refuses_bad_input(folder, arguments, says):
    done = command("run", "--model", str(folder), "--prompt", "t5", *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_command_refuses_a_word_that_is_none_of_its_own(folder):
    done = command("bogus", "--model", str(folder))
    assert done.returncode == 2 and "unknown command 'bogus'" in done.stderr


@pytest.mark.parametrize(
    "settings, says", [(None, "it has no config.json"), ("{", "config.json: ")]
)
def test_a_folder_that_is_no_model_is_refused_by_name(tmp_path, settings, says):
    if settings is not None:
        (tmp_path / "config.json").write_text(settings)
    with pytest.raises(ValueError, match=says) as error:
        FlashManager().load(tmp_path)
    assert str(tmp_path) in str(error.value)


def interrupted_eval(model, ids):
    """Seconds from Ctrl-C to the exception, and the longest time that another
    thread of Python stood still meanwhile."""
    outs = [model(ids) for _ in range(30)]  # one evaluation: seconds of work
    ticks, done, sent = [], threading.Event(), []

    def tick():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.01)

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    ticker, timer = threading.Thread(target=tick), threading.Timer(0.2, interrupt)
    ticker.start()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            mx.eval(outs)
        seconds = time.monotonic() - sent[0]
    finally:
        done.set()
        ticker.join()
    return seconds, max(b - a for a, b in zip(ticks, ticks[1:]))


@pytest.fixture
def sigint():
    """As in a terminal: a shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kernels", ["stock", "fast"])
@pytest.mark.usefixtures("sigint")
def test_ctrl_c_ends_a_forward_at_once_and_python_goes_on_meanwhile(tmp_path, kernels):
    change = {"hidden_size": 512, "head_dim": 128, "intermediate_size": 2048}
    tiny_models.write("llama", tmp_path, config=change | {"num_hidden_layers": 24})
    # What cannot be stopped is one of MLX's own operations: few tokens keep each short.
    ids = mx.array([[i % tiny_models.VOCAB for i in range(64)]])
    with FlashManager(FlashConfig(kernels=kernels)) as manager:
        model, _ = manager.load(tmp_path)
        # Another process may have the cores for a while: one try of a few has to
        # be in time. Who waits for the end, or holds the lock, never is.
        tries = []
        while len(tries) < 6 and not any(s < 0.5 and gap < 0.4 for s, gap in tries):
            tries.append(interrupted_eval(model, ids))
            mx.eval(model(ids[:, :4]))  # and the model goes on
        assert any(s < 0.5 and gap < 0.4 for s, gap in tries), tries
