# SPDX-License-Identifier: MIT
"""mlx_flash under programs that use mlx-lm themselves."""
