# SPDX-License-Identifier: MIT
"""`fast` is mlx-lm's float32 run to 1e-3, and the same bits at every budget."""

import mlx.core as mx
import pytest

import harness
import tiny_models


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3_moe", "nemotron_h"])
def test_is_near_the_float32_run(architecture, bits, tmp_path):
    tiny_models.write(architecture, tmp_path, bits)
    expected = harness.reference_float32(tmp_path)
    runs = [harness.run(tmp_path, share, kernels="fast") for share in harness.SHARES]
    assert harness.relative_error(runs[0].logits, expected) < 1e-3
    for run in runs[1:]:
        assert harness.same_bits(run.logits, runs[0].logits)
    assert runs[0].stats["bytes_read"] > runs[2].stats["bytes_read"]


@pytest.mark.parametrize("bits", [None, 3, 4, 8])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_makes_no_arrays_of_linear_layers_and_experts(architecture, bits, tmp_path):
    tiny_models.write(architecture, tmp_path, bits)
    run = harness.run(tmp_path, 0.0, kernels="fast")
    assert run.stats["weight_arrays_made"] == 0
    assert run.stats["compute_s"] > 0


@pytest.mark.parametrize("kth, position", [(0, None), (-1, None), (1, 1), (-2, 1)])
def test_a_near_tie_of_experts_is_found_at_its_position(kth, position):
    scores = mx.array([[[0.1, 0.7, 0.2], [0.3, 0.30001, 0.4], [0.5, 0.2, 0.1]]])
    with harness.Routing() as routing:
        for part in (scores[:, :2], scores[:, 2:]):
            routing.begin(part.shape[1])
            mx.argpartition(-part if kth >= 0 else part, kth=kth, axis=-1)
    assert routing.first_below(1e-4) == position
