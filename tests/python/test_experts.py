# SPDX-License-Identifier: MIT
"""Experts go through the engine's cache, wherever they lie in the files."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_flash import FlashConfig, FlashManager
from mlx_flash.manager import Hooks
from mlx_flash.patch import FastExperts, StreamedExperts, walk

import harness
import tiny_models

BIG = {"num_experts": 32, "moe_intermediate_size": 256, "hidden_size": 128, "head_dim": 32}


MANY = BIG | {"n_routed_experts": 32}


def expert_modules(model):
    return [id(m) for _, m in walk(model) if isinstance(m, (StreamedExperts, FastExperts))]


def rewrite(folder, change):
    """The tensors of a model's folder, changed, as one file."""
    file = next(folder.glob("*.safetensors"))
    weights = change(dict(mx.load(str(file))))
    mx.eval(weights)
    file.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)


def unstack(weights):
    """A tensor for each expert, as Hugging Face has them."""
    out = {}
    for name, value in weights.items():
        if ".switch_mlp." not in name:
            out[name] = value
            continue
        for expert in range(value.shape[0]):
            out[name.replace(".switch_mlp.", f".experts.{expert}.")] = value[expert]
    return out


@pytest.mark.parametrize("architecture, bits", [("qwen3_moe", None), ("deepseek_v3", 4)])
@pytest.mark.parametrize("kernels", ["stock", "fast"])
def test_experts_that_lie_one_by_one_are_read_one_by_one(kernels, architecture, bits, tmp_path):
    stacked, single = tmp_path / "stacked", tmp_path / "single"
    for folder in (stacked, single):
        tiny_models.write(architecture, folder, bits, MANY)
    rewrite(single, unstack)
    runs = [harness.run(folder, 0.0, kernels=kernels) for folder in (stacked, single)]
    assert harness.same_bits(runs[0].logits, runs[1].logits)
    assert runs[1].stats["expert_bytes_read"] > 0
    # The same experts and hardly a byte more than from the stacked file.
    read = [run.stats["bytes_read"] for run in runs]
    assert 0.8 < read[1] / read[0] < 1.25


@pytest.mark.parametrize("architecture", ["granitemoe", "mistral4"])
def test_rows_of_stacked_experts_need_no_array_of_all(architecture, tmp_path):
    """gate and up in one tensor: sanitize() splits it."""
    tiny_models.write(architecture, tmp_path)

    def fuse(weights):
        out = {}
        for name, value in weights.items():
            if ".switch_mlp.up_proj." in name:
                continue
            if ".switch_mlp.gate_proj." not in name:
                name = name.replace("switch_mlp.down_proj.weight", DOWN[architecture])
                out[name] = value
                continue
            up = weights[name.replace("gate_proj", "up_proj")]
            name = name.replace("switch_mlp.gate_proj.weight", FUSED[architecture])
            out[name] = mx.concatenate([value, up], axis=1)
        return out

    rewrite(tmp_path, fuse)
    expected = harness.reference(tmp_path)
    with FlashManager(FlashConfig(kernels="stock")) as manager:
        model, _ = manager.load(tmp_path)
        switches = [id(m) for _, m in walk(model) if type(m).__name__ == "SwitchLinear"]
        assert len(switches) > 3 and switches == expert_modules(model)
        assert harness.same_bits(harness.logits(model), expected)


FUSED = {
    "granitemoe": "input_linear.weight",
    "mistral4": "experts.gate_up_proj",
}
DOWN = {
    "granitemoe": "output_linear.weight",
    "mistral4": "experts.down_proj",
}


def run_at(folder, budget_share, **config):
    hooks = Hooks(pinned_share=budget_share, tile_bytes=harness.HOOK_TILE_BYTES)
    with FlashManager(FlashConfig(**config), _hooks=hooks) as manager:
        model, _ = manager.load(folder)
        steps = [(i * 7) % tiny_models.VOCAB for i in range(60)]
        harness.logits(model, steps[:4], steps)
        return model.plan(), model.stats()


def test_what_is_used_most_stays(tmp_path):
    tiny_models.write("qwen3_moe", tmp_path, None, BIG)
    hits = {}
    for strategy in ("lfu", "lru"):
        plan, stats = run_at(tmp_path, 0.15, kernels="stock", eviction_strategy=strategy)
        assert stats["expert_evictions"] > 0
        assert 0 < plan["expert_bytes"] < plan["weights_bytes"]
        hits[strategy] = stats["expert_hits_bytes"] / stats["expert_uses_bytes"]
    assert hits["lfu"] > hits["lru"], hits


def test_a_cache_size_bounds_the_memory_of_experts(tmp_path):
    tiny_models.write("qwen3_moe", tmp_path, None, BIG)
    one = 256 * 128 * 4  # an expert of one matrix
    with FlashManager(FlashConfig(kernels="stock", expert_cache_size=4)) as manager:
        model, _ = manager.load(tmp_path)
        harness.logits(model)
        tables = 3 * len(model.layers)
        kept = model.stats()["expert_bytes"]
        assert len(expert_modules(model)) == tables
    assert tables * one < kept <= tables * 4 * one
    with FlashManager(FlashConfig(kernels="stock")) as manager:
        model, _ = manager.load(tmp_path)
        harness.logits(model)
        assert model.stats()["expert_bytes"] > 2 * kept


def test_one_budget_serves_all_layers(tmp_path):
    """Memory that one layer does not use is another's."""
    tiny_models.write("qwen3_moe", tmp_path, None, BIG)
    plan, stats = run_at(tmp_path, 1.0, kernels="stock")
    assert stats["expert_evictions"] == 0
    # Each expert that was used was read once.
    assert stats["expert_bytes_read"] <= plan["weights_bytes"]
    assert dict(tree_flatten(plan))["expert_bytes"] > 0
