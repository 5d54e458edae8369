# SPDX-License-Identifier: MIT
"""Tests run on the CPU without MLX's run-time compiler, as mlx_flash itself."""

import sys
from pathlib import Path

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parent))
mx.disable_compile()
mx.set_default_device(mx.cpu)
