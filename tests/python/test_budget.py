# SPDX-License-Identifier: MIT
"""The process stays within its budget, however long a prompt is: weights yield
while a forward is computed, and one that does not fit is given up."""

import json
import subprocess
import sys

import mlx.core as mx
import pytest

from mlx_flash import FlashConfig, FlashManager
from mlx_flash.manager import Loaded

import tiny_models

# 90 MB of weights in two layers, and many heads: scores of attention are what
# takes memory, within one of MLX's own operations.
WIDE = {
    "hidden_size": 1024,
    "head_dim": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
}

FORWARD = """
import json, sys
from mlx_flash import FlashConfig, FlashManager, _engine
import mlx.core as mx
mx.disable_compile()
from mlx_flash import manager as m
folder, tokens, guarded = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "guarded"
planned = m.Loaded._budget
def unguarded(self, held):
    budget = planned(self, held)
    budget.fixed = True
    return budget
if not guarded:
    m.Loaded._budget = unguarded
held = _engine.resident_bytes()
with FlashManager(FlashConfig(ram_budget_gb=0.2)) as manager:
    model, _ = manager.load(folder)
    for _ in range(5):  # all is kept that can be
        mx.eval(model(mx.array([[1]])))
    kept = model.stats()["pinned_bytes"]
    begin = _engine.peak_resident_bytes()
    error = ""
    try:
        mx.eval(model(mx.array([[i % 300 for i in range(tokens)]])))
    except MemoryError as reason:
        error = str(reason)
    peak = _engine.peak_resident_bytes()
    out = model(mx.array([[1, 2, 3]]))  # and goes on
    report = {"finite": mx.isfinite(out).all().item()}
print(json.dumps(report | {"kept": kept, "over": peak - held - 200_000_000, "error": error}))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    tiny_models.write("llama", folder, config=WIDE)
    tiny_models.write_tokenizer(folder)
    return folder


def forward(folder, tokens, guarded=True):
    words = [folder, str(tokens), "guarded" if guarded else "not"]
    done = subprocess.run(
        [sys.executable, "-c", FORWARD, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["finite"]
    return report


def test_weights_yield_to_a_forward_while_it_is_computed(wide):
    report = forward(wide, 720)
    assert report["kept"] > 60e6
    assert report["error"] == "" and report["over"] <= 0
    # Not so by itself: without a guard the same forward is more.
    assert forward(wide, 720, guarded=False)["over"] > 0


def test_a_forward_that_does_not_fit_is_given_up(wide):
    report = forward(wide, 1600)
    assert "a forward of 1600 tokens does not fit in the budget" in report["error"]


def test_a_prompt_goes_on_in_smaller_pieces(wide, monkeypatch):
    """Where the estimate of its pieces is wrong."""
    ids = [i % 300 + 3 for i in range(1500)]
    seen = []

    def answer(config):
        with FlashManager(config) as manager:
            model, _ = manager.load(wide)
            out = model.stream_generate(
                ids, max_tokens=3, prompt_progress_callback=lambda n, of: seen.append(n)
            )
            return [segment.token for segment in out]

    expected = answer(FlashConfig(prefill_chunk_size=512))
    seen.clear()
    monkeypatch.setattr(Loaded, "prefill_chunk", lambda self, *_: self.chunk_max)
    assert answer(FlashConfig(ram_budget_gb=0.2)) == expected
    assert seen.count(0) > 1
