# SPDX-License-Identifier: MIT
"""HybridQuantizedCache: exact while nothing is old, near after that."""

import mlx.core as mx
import pytest

from mlx_lm.models.cache import KVCache, RotatingKVCache, load_prompt_cache, make_prompt_cache

from mlx_flash import FlashConfig, FlashManager
from mlx_flash.cache import DiskStore, HybridQuantizedCache, apply_settings

import harness
import tiny_models

CONFIG = {"hidden_size": 128, "head_dim": 32}


def feed(cache, tokens, dtype=mx.float32):
    """Keys and values that are a function of the position."""
    begin = cache.offset
    at = mx.arange(begin, begin + tokens)[None, None, :, None]
    keys = mx.sin(at * 0.1 + mx.arange(64) * 0.3)
    values = mx.cos(at * 0.2 + mx.arange(64) * 0.7)
    shape = (1, 2, tokens, 64)
    return cache.update_and_fetch(
        mx.broadcast_to(keys, shape).astype(dtype), mx.broadcast_to(values, shape).astype(dtype)
    )


def test_full_precision_until_a_block_is_old():
    plain, hybrid = KVCache(), HybridQuantizedCache(8, window=128)
    for tokens in (100, 91):
        for a, b in zip(feed(plain, tokens), feed(hybrid, tokens)):
            assert mx.array_equal(a, b)
    assert not hybrid.old
    feed(plain, 1), feed(hybrid, 1)  # 192: a block beyond the window
    assert len(hybrid.old) == 1
    exact, near = feed(plain, 1), feed(hybrid, 1)
    for a, b in zip(exact, near):
        assert a.shape == b.shape
        assert not mx.array_equal(a, b)
        assert mx.array_equal(a[..., 64:, :], b[..., 64:, :])


@pytest.mark.parametrize("bits, bound", [(8, 0.01), (4, 0.15)])
def test_old_ones_are_near(bits, bound):
    plain, hybrid = KVCache(), HybridQuantizedCache(bits, window=64)
    for tokens in (300, 1, 1):
        exact, near = feed(plain, tokens), feed(hybrid, tokens)
    errors = [mx.abs(a - b).max().item() for a, b in zip(exact, near)]
    assert all(0 < error < bound for error in errors)
    assert hybrid.nbytes < plain.nbytes


def test_blocks_on_disk_are_the_same_bits(tmp_path):
    disk = DiskStore(str(tmp_path))
    here, there = HybridQuantizedCache(8, 64), HybridQuantizedCache(8, 64, disk.layer())
    for tokens in (200, 70, 1, 1):
        for a, b in zip(feed(here, tokens, mx.bfloat16), feed(there, tokens, mx.bfloat16)):
            assert harness.same_bits(a, b)
    assert disk.bytes_written > 0 and disk.bytes_read > disk.bytes_written
    assert there.nbytes < here.nbytes
    assert not list(tmp_path.iterdir())  # the file has no name


def test_the_limit_on_disk_keeps_the_rest_in_memory(tmp_path):
    disk = DiskStore(str(tmp_path), max_tokens=64)
    cache = HybridQuantizedCache(8, 64, disk.layer())
    feed(cache, 400)
    assert sum(isinstance(block, int) for block in cache.old) == 1
    assert len(cache.old) > 2


def test_trim_goes_back_over_blocks():
    cache = HybridQuantizedCache(8, 64)
    keys, _ = feed(cache, 300)
    assert cache.trim(200) == 200 and cache.offset == 100
    again, _ = feed(cache, 1)
    assert again.shape[2] == 101
    assert mx.abs(again[..., :100, :] - keys[..., :100, :]).max().item() < 0.01


def test_a_state_goes_through_a_file(tmp_path):
    from mlx_lm.models.cache import save_prompt_cache

    import mlx_lm.models.cache as caches

    caches.HybridQuantizedCache = HybridQuantizedCache  # where mlx-lm looks it up
    cache = HybridQuantizedCache(8, 64)
    feed(cache, 200)
    save_prompt_cache(str(tmp_path / "c.safetensors"), [cache])
    (loaded,) = load_prompt_cache(str(tmp_path / "c.safetensors"))
    for a, b in zip(feed(cache, 1), feed(loaded, 1)):
        assert harness.same_bits(a, b)


def test_only_plain_caches_are_replaced():
    disk = None
    settings = dict(
        own=False, bits=8, window=128, max_kv_size=None, keep=4, disk=disk, quantized=True
    )
    rotating = RotatingKVCache(max_size=8)
    out = apply_settings([KVCache(), rotating], **settings)
    assert type(out[0]) is HybridQuantizedCache and out[1] is rotating


def test_the_model_uses_it(tmp_path):
    tiny_models.write("llama", tmp_path, config={"hidden_size": 128, "head_dim": 32})
    prompt = [i % tiny_models.VOCAB for i in range(230)]
    config = FlashConfig(kernels="stock", kv_cache_quantized=True)
    with FlashManager(config) as manager:
        model, _ = manager.load(tmp_path)
        outs = []
        for cache in (make_prompt_cache(model), model.new_cache()):
            model(mx.array([prompt]), cache=cache)
            outs.append(model(mx.array([[5]]), cache=cache))
        assert type(cache[0]) is HybridQuantizedCache and cache[0].old
        error = harness.relative_error(outs[1], outs[0])
        assert 0 < error < 0.05
