# SPDX-License-Identifier: MIT
"""Every field is checked by name, and nothing is dropped in silence."""

import dataclasses
import subprocess
import sys

import pytest

from mlx_flash import FlashConfig, FlashManager

import tiny_models

BAD = {
    "enabled": 1,
    "kernels": "quick",
    "ram_budget_gb": -1,
    "expert_cache_size": -1,
    "pipeline_depth": 1000,
    "pipelined_execution": "yes",
    "tiled_execution": None,
    "tile_size": 1.5,
    "prefill_chunk_size": -4,
    "max_kv_size": 0,
    "kv_keep": -1,
    "kv_cache_quantized": 2,
    "kv_cache_bits": 5,
    "kv_cache_local_window_size": 1,
    "disk_kv_enabled": "no",
    "disk_kv_dir": 7,
    "disk_kv_max_tokens": 0,
    "disk_kv_max_gb": -1,
    "moe_top_k_override": 0,
    "eviction_strategy": "random",
    "io": "mmap",
    "disk_limit_gb_s": -1,
    "bandwidth_controller": 1,
    "threads": -1,
    "enable_profiling": 3,
    "monitor": "x",
    "debug": "x",
}


def test_the_table_has_every_field():
    assert set(BAD) == {field.name for field in dataclasses.fields(FlashConfig)}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_value_names_its_field(field):
    with pytest.raises(ValueError, match=f"FlashConfig.{field}"):
        FlashConfig(**{field: BAD[field]})


def test_unknown_keys_are_warned_about():
    with pytest.warns(UserWarning, match="'ram_gb'"):
        config = FlashConfig.from_dict({"ram_gb": 3, "ram_budget_gb": 2.0})
    assert config == FlashConfig(ram_budget_gb=2.0)
    assert FlashConfig.from_dict(config.to_dict()) == config


def test_a_budget_that_is_too_small_names_the_one_that_works(tmp_path):
    tiny_models.write("llama", tmp_path)
    with pytest.raises(ValueError, match=r"ram_budget_gb.* smallest that works is ") as error:
        FlashManager(FlashConfig(ram_budget_gb=0.0001)).load(tmp_path)
    least = float(str(error.value).split("works is ")[1].split(" GB")[0])
    with FlashManager(FlashConfig(ram_budget_gb=least * 1.05 + 0.002)) as manager:
        manager.load(tmp_path)


def test_a_forward_that_cannot_fit_is_refused_before_it_begins(tmp_path):
    import mlx.core as mx

    tiny_models.write("llama", tmp_path)
    with pytest.raises(ValueError) as error:
        FlashManager(FlashConfig(ram_budget_gb=0.0001)).load(tmp_path)
    least = float(str(error.value).split("works is ")[1].split(" GB")[0])
    with FlashManager(FlashConfig(ram_budget_gb=least + 0.004)) as manager:
        model, _ = manager.load(tmp_path)
        with pytest.raises(MemoryError, match="a forward of 200000 tokens.*prefill_chunk_size"):
            model(mx.array([[1] * 200_000]))
        mx.eval(model(mx.array([[1] * 8])))


def test_disabled_gives_mlx_lms_own_model(tmp_path):
    tiny_models.write("llama", tmp_path)
    # utils.load needs a tokenizer; the model alone is what is asked here.
    with pytest.raises(Exception):
        FlashManager(FlashConfig(enabled=False)).load(tmp_path / "nothing")


def test_another_mlx_is_refused_with_what_to_install():
    script = (
        "import importlib.metadata as m\n"
        "m.version = lambda name: '0.30.0'\n"
        "import mlx_flash\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "mlx_flash needs mlx==0.32.4, found 0.30.0: pip install mlx==0.32.4" in done.stderr
