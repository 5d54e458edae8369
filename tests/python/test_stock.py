# SPDX-License-Identifier: MIT
"""`stock` equals unpatched mlx-lm bit for bit, whatever is kept."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import utils

from mlx_flash import FlashConfig, FlashManager
from mlx_flash.manager import Hooks

import harness
import tiny_models

# One of each kind: dense, sliding windows, experts, MLA, mixtures with linear
# attention or state spaces, parallel blocks. walk.py has all.
ARCHITECTURES = [
    "llama",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "cohere2",
    "qwen3_moe",
    "mixtral",
    "deepseek_v3",
    "nemotron_h",
    "mamba2",
    "qwen3_next",
    "gpt2",
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_mlx_lm_at_every_budget(architecture, tmp_path):
    tiny_models.write(architecture, tmp_path)
    expected = harness.reference(tmp_path)
    runs = [harness.run(tmp_path, share, kernels="stock") for share in harness.SHARES]
    for run in runs:
        assert harness.same_bits(run.logits, expected)
        assert run.stats["weight_arrays_bytes"] == 0
    # The budgets really differed.
    assert runs[0].stats["tiles_pinned"] == 0
    assert runs[0].stats["bytes_read"] > runs[1].stats["bytes_read"] > runs[2].stats["bytes_read"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_equals_mlx_lm_quantised(architecture, bits, tmp_path):
    tiny_models.write(architecture, tmp_path, bits)
    expected = harness.reference(tmp_path)
    for share in harness.SHARES:
        run = harness.run(tmp_path, share, kernels="stock")
        assert harness.same_bits(run.logits, expected)


def test_a_planted_fault_is_seen(tmp_path):
    """One bit of one weight, flipped in the file, changes the logits."""
    tiny_models.write("llama", tmp_path)
    expected = harness.reference(tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    header = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8 : 8 + header])["model.layers.1.mlp.down_proj.weight"]
    data[8 + header + entry["data_offsets"][0] + 1001 * 4 + 2] ^= 0x40
    file.write_bytes(data)
    run = harness.run(tmp_path, 0.0, kernels="stock")
    assert not harness.same_bits(run.logits, expected)


@pytest.fixture
def unstacked(tmp_path):
    """Experts that lie one by one in the files: sanitize() stacks them."""
    tiny_models.write("qwen3_moe", tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    weights = {}
    for name, value in mx.load(str(file)).items():
        if ".switch_mlp." not in name:
            weights[name] = value
            continue
        for expert in range(value.shape[0]):
            weights[name.replace(".switch_mlp.", f".experts.{expert}.")] = value[expert]
    mx.eval(weights)
    file.unlink()
    mx.save_safetensors(str(file), weights)
    (tmp_path / "model.safetensors.index.json").unlink()
    return tmp_path


def test_expressions_of_sanitize_are_streamed(unstacked):
    expected = harness.reference(unstacked)
    for share in harness.SHARES:
        run = harness.run(unstacked, share, kernels="stock")
        assert harness.same_bits(run.logits, expected)
        assert run.stats["weight_arrays_bytes"] == 0
    near = harness.run(unstacked, 0.0, kernels="fast")
    assert harness.relative_error(near.logits, harness.reference_float32(unstacked)) < 1e-3


def test_other_threads_may_run_the_model(unstacked):
    expected = harness.reference(unstacked)
    found = []
    with FlashManager(FlashConfig(kernels="stock")) as manager:
        model, _ = manager.load(unstacked)
        for _ in range(2):
            thread = threading.Thread(target=lambda: found.append(harness.logits(model)))
            thread.start()
            thread.join()
    assert [harness.same_bits(logits, expected) for logits in found] == [True, True]


def test_loading_reads_no_weights(tmp_path):
    tiny_models.write("llama", tmp_path)
    with FlashManager(FlashConfig(kernels="stock")) as manager:
        model, _ = manager.load(tmp_path)
        total = tiny_models.parameters_bytes(model)
        plan = model.plan()
        assert plan["streamed_parameters"] > 20
        assert plan["resident_bytes"] < total / 20


def test_mlx_lms_own_generate_takes_the_model(tmp_path):
    from mlx_lm.generate import generate_step

    tiny_models.write("llama", tmp_path)
    reference, _ = utils.load_model(tmp_path)
    prompt = mx.array(harness.PROMPT)
    expected = [token for token, _ in generate_step(prompt, reference, max_tokens=12)]
    with FlashManager(FlashConfig(kernels="stock")) as manager:
        model, _ = manager.load(tmp_path)
        got = [token for token, _ in generate_step(prompt, model, max_tokens=12)]
        assert len(model.layers) == len(reference.layers)
        assert type(model).__name__ == type(reference).__name__
    assert got == expected


def test_loss_on_a_text_is_mlx_lms_to_the_last_bit():
    """A trained model (stories260K), 1,000 tokens of prose in two pieces."""
    from tokenizers import Tokenizer

    root = Path(__file__).resolve().parent.parent.parent
    folder = root / "testdata" / "models" / "stories260K"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode((root / "README.md").read_text(encoding="utf-8")).ids[:1000]
    assert len(ids) == 1000

    assert 0 < same_loss(folder, ids, harness.HOOK_TILE_BYTES) < 20


def loss(model, ids):
    """Nats a token, in two pieces."""
    total = mx.array(0.0)
    for piece in (ids[:500], ids[500:]):
        out = model(mx.array([piece[:-1]])).astype(mx.float32)
        picked = mx.take_along_axis(out[0], mx.array(piece[1:])[:, None], axis=1)[:, 0]
        total = total + (mx.logsumexp(out[0], axis=1) - picked).sum()
    return total.item() / (len(ids) - 2)


def same_loss(folder, ids, tile_bytes):
    """mlx-lm's; ours is the same number at every budget."""
    reference, _ = utils.load_model(folder)
    expected = loss(reference, ids)
    del reference
    for share in harness.SHARES:
        hooks = Hooks(pinned_share=share, tile_bytes=tile_bytes)
        with FlashManager(FlashConfig(kernels="stock"), _hooks=hooks) as manager:
            model, _ = manager.load(folder)
            assert loss(model, ids) - expected == 0
    return expected


@pytest.mark.slow
def test_loss_of_smollm2_on_wikitext_is_mlx_lms_to_the_last_bit(tmp_path):
    root = Path(__file__).resolve().parent.parent.parent
    program = root / "build" / "release" / "mlx-flash"
    found = subprocess.run(
        [root / "tools" / "run_default_model.sh", "--path"], capture_output=True, text=True
    )
    gguf = found.stdout.strip()
    if found.returncode != 0 or not program.exists():
        pytest.skip("the default model or build/release/mlx-flash is not there")
    text = root / "testdata" / "corpora" / "wikitext-2.txt"
    tokens = subprocess.run(
        [program, "tokenize", "-m", gguf, "--text-file", text, "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ids = json.loads(tokens.stdout)["ids"][:1000]
    assert len(ids) == 1000
    folder = tmp_path / "model"
    convert = root / "tools" / "gguf_to_hf.py"
    subprocess.run([sys.executable, convert, gguf, folder], check=True, stdout=subprocess.DEVNULL)
    nats = same_loss(folder, ids, 0)
    print(f"{nats} nats a token, ours and mlx-lm's")
    assert 2 < nats < 6
