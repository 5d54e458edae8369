# SPDX-License-Identifier: MIT
"""Runs mlx-lm models that are larger than the memory they may use."""

from importlib.metadata import PackageNotFoundError, version

_MLX_VERSION = "0.32.4"


def _check_mlx() -> None:
    """The extension shares MLX's C++ types, which change with every version."""
    try:
        found = version("mlx")
    except PackageNotFoundError:
        found = None
    if found != _MLX_VERSION:
        raise ImportError(
            f"mlx_flash needs mlx=={_MLX_VERSION}, found {found or 'none'}: "
            f"pip install mlx=={_MLX_VERSION}"
        )


_check_mlx()

from .config import FlashConfig  # noqa: E402
from .manager import FlashManager  # noqa: E402
from .model import Segment  # noqa: E402

__all__ = ["FlashConfig", "FlashManager", "Segment"]
__version__ = "0.1.0"
