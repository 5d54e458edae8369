# SPDX-License-Identifier: MIT
"""Every field of FlashConfig does something that can be seen."""

import dataclasses
import os
import time
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_flash import FlashConfig, FlashManager
from mlx_flash.manager import Hooks

import harness
import tiny_models

PROMPT = [i % tiny_models.VOCAB for i in range(40)]
LONG = [i % tiny_models.VOCAB for i in range(400)]
WIDE = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 1024}
EXPERTS = {"num_experts": 16, "moe_intermediate_size": 128}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for name, config in (("llama", WIDE), ("qwen3", {}), ("qwen3_moe", EXPERTS)):
        made[name] = tmp_path_factory.mktemp(name)
        tiny_models.write(name, made[name], None, config)
        tiny_models.write_tokenizer(made[name])
    return made


class Seen:
    """A model under a config, and what may be seen of it."""

    def __init__(self, folder, config, capfd, share):
        self.config = FlashConfig(**config)
        self.folder, self.capfd, self.share = folder, capfd, share
        self.manager = FlashManager(self.config, _hooks=Hooks(pinned_share=share))

    def __enter__(self):
        self.capfd.readouterr()
        threads = _threads()
        self.model, self.tokenizer = self.manager.load(self.folder)
        self.threads = _threads() - threads
        self.load_err = self.capfd.readouterr().err
        return self

    def __exit__(self, *_):
        self.manager.close()

    def plan(self, name):
        return self.model.plan()[name]

    def after_run(self, name):
        harness.logits(self.model, PROMPT)
        return self.model.stats()[name]

    def logits(self):
        return harness.logits(self.model, PROMPT).tolist()

    def cache(self):
        """The first layer's, after a long prompt and a token."""
        cache = self.model.new_cache()
        for ids in (LONG, [1]):
            mx.eval(self.model(mx.array([ids]), cache=cache))
        return cache[0]

    def on_disk(self):
        return sum(isinstance(block, int) for block in self.cache().old)

    def file(self):
        disk = self.cache()._store._disk
        return str(Path(os.readlink(f"/proc/self/fd/{disk._file.fileno()}")).parent)

    def stderr(self):
        list(self.model.stream_generate("t5 t9", max_tokens=12))
        return self.capfd.readouterr().err

    def chunks(self):
        seen = []
        list(
            self.model.stream_generate(
                PROMPT, max_tokens=1, prompt_progress_callback=lambda n, of: seen.append(n)
            )
        )
        return seen

    def waits(self):
        """Whether reading took what the limit says: it may take more."""
        before, begin = self.model.stats()["bytes_read"], time.monotonic()
        mx.eval([self.model(mx.array([[7]])) for _ in range(4)])
        read = self.model.stats()["bytes_read"] - before
        return time.monotonic() - begin > 0.5 * read / SLOW / 1e9


SLOW = 0.02  # GB a second: seconds for a model of 20 MB
OLD = {"kv_cache_quantized": True}
DISK = OLD | {"disk_kv_enabled": True}

# field: (a value, what is seen, settings of both runs)
EFFECTS = {
    "enabled": (False, lambda s: hasattr(s.model, "plan"), {}),
    "kernels": ("stock", lambda s: s.plan("kernels"), {}),
    "ram_budget_gb": (0.9, lambda s: s.plan("ram_bytes"), {"share": None}),
    "expert_cache_size": (
        3,
        lambda s: s.after_run("expert_bytes"),
        {"model": "qwen3_moe", "share": 1.0},
    ),
    "pipeline_depth": (3, lambda s: s.threads, {"io": "threads", "threads": 1}),
    "pipelined_execution": (False, lambda s: s.after_run("misses"), {}),
    "tiled_execution": (False, lambda s: s.after_run("tiles_streamed"), {"tile_size": 1 << 16}),
    "tile_size": (1 << 19, lambda s: s.after_run("tiles_streamed"), {}),
    "prefill_chunk_size": (16, lambda s: s.chunks(), {}),
    "max_kv_size": (64, lambda s: type(s.cache()).__name__, {"model": "qwen3"}),
    "kv_keep": (9, lambda s: s.cache().keep, {"max_kv_size": 64, "model": "qwen3"}),
    "kv_cache_quantized": (True, lambda s: type(s.cache()).__name__, {}),
    "kv_cache_bits": (4, lambda s: s.cache().nbytes, OLD),
    "kv_cache_local_window_size": (256, lambda s: len(s.cache().old), OLD),
    "disk_kv_enabled": (True, lambda s: s.cache().nbytes, OLD),
    "disk_kv_dir": ("DIR", lambda s: s.file(), DISK),
    "disk_kv_max_tokens": (64, lambda s: s.on_disk(), DISK),
    "disk_kv_max_gb": (0.00004, lambda s: s.on_disk(), DISK),
    "moe_top_k_override": (1, lambda s: s.logits(), {"model": "qwen3_moe"}),
    "io": ("uring", lambda s: s.after_run("io"), {}),
    "disk_limit_gb_s": (SLOW, lambda s: s.waits(), {}),
    "threads": (7, lambda s: s.threads, {}),
    "enable_profiling": (True, lambda s: "tok_s" in s.stderr(), {}),
    "monitor": (True, lambda s: "tok/s" in s.stderr(), {"disk_limit_gb_s": SLOW}),
    "debug": (True, lambda s: "ring_bytes" in s.load_err, {}),
}

# Seen elsewhere, because two runs of one config differ as well. What is read
# depends on the order in which reads end: test_what_is_used_most_stays compares
# hit rates. The controller's effect depends on how fast disk and kernels are:
# residency/bandwidth_controller_test.cpp.
ELSEWHERE = {"eviction_strategy", "bandwidth_controller"}


def _threads():
    return len(os.listdir("/proc/self/task"))


def test_the_table_has_every_field():
    assert set(EFFECTS) | ELSEWHERE == {field.name for field in dataclasses.fields(FlashConfig)}


@pytest.mark.parametrize("field", EFFECTS)
def test_a_change_can_be_seen(field, folders, tmp_path, capfd):
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc")
    value, look, base = EFFECTS[field]
    value = str(tmp_path) if value == "DIR" else value
    base = dict(base)
    folder = folders[base.pop("model", "llama")]
    share = base.pop("share", 0.0)
    seen = []
    for config in (base, base | {field: value}):
        with Seen(folder, config, capfd, share) as one:
            seen.append(look(one))
    if field == "io" and seen[1] == "threads":
        pytest.skip("no io_uring here")
    assert seen[0] != seen[1]


@pytest.mark.slow
def test_a_field_without_effect_would_be_noticed(folders, capfd):
    """The same config twice looks the same: differences above are the field's."""
    for field, (_, look, base) in EFFECTS.items():
        if field in ("io", "pipelined_execution", "disk_limit_gb_s", "monitor"):
            continue  # these look at time as well
        base = dict(base)
        folder = folders[base.pop("model", "llama")]
        share = base.pop("share", 0.0)
        seen = []
        for _ in range(2):
            with Seen(folder, base, capfd, share) as one:
                seen.append(look(one))
        if field != "ram_budget_gb":  # automatic: what is free changes
            assert seen[0] == seen[1], field
