#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every architecture of mlx-lm: patched against unpatched.

    walk.py [--fast] [--bits N] [--seconds N] [ARCHITECTURE...]

Prints a line for each; exits 1 if one that could be made differs, or fewer than
MADE_MIN could be made.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import mlx.core as mx

mx.disable_compile()

import harness  # noqa: E402
import tiny_models  # noqa: E402

MADE_MIN = 118
FAST_BOUND = 1e-3
NEAR_TIE = 1e-4  # of scores: rounding may choose the other expert
ROWS_MIN = 8


class TooSlow(Exception):
    pass


def check(architecture: str, folder: Path, fast: bool, bits: int | None) -> str:
    """"ok ..." or what is wrong."""
    try:
        tiny_models.write(architecture, folder, bits)
        expected = harness.reference(folder)
    except TooSlow:
        raise
    except Exception as error:
        return f"not made: {describe(error)}"
    if not mx.all(mx.isfinite(expected)).item():
        return "not made: logits are not finite"
    streamed = 0
    for share in harness.SHARES:
        got = harness.run(folder, share, kernels="stock")
        if not harness.same_bits(got.logits, expected):
            error = harness.relative_error(got.logits, expected)
            return f"DIFFERS by {error:.1e} with {share} of the weights kept"
        if got.stats["weight_arrays_bytes"] != 0:
            return f"KEEPS {got.stats['weight_arrays_bytes']} bytes of weights"
        streamed += got.stats["tiles_streamed"]
    if streamed == 0:
        return "NOTHING was streamed"
    return f"ok, {streamed} tiles{check_fast(folder) if fast else ''}"


def check_fast(folder: Path) -> str:
    """Against mlx-lm in float32: all positions, or where a choice between two
    experts is too near a tie for that, those before it."""
    with harness.Routing() as routing:
        expected = harness.reference_float32(folder, routing)
    got = harness.run(folder, 0.0, kernels="fast").logits
    error = harness.relative_error(got, expected)
    note = ""
    rows = routing.first_below(NEAR_TIE)
    if error > FAST_BOUND and rows is not None and rows >= ROWS_MIN:
        note = f" (of {rows} positions before a near tie; {error:.1e} of all)"
        error = harness.relative_error(got[:, :rows], expected[:, :rows])
    return f", fast {error:.1e}{note}" + (" ABOVE the bound" if error > FAST_BOUND else "")


def describe(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="compare fast with float32 too")
    parser.add_argument("--bits", type=int, help="quantise; default: float32")
    parser.add_argument("--seconds", type=int, default=60, help="for each, at most")
    parser.add_argument("architectures", nargs="*")
    options = parser.parse_args()

    def too_slow(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, too_slow)
    names = options.architectures or tiny_models.architectures()
    made, wrong = 0, 0
    for name in names:
        if name in tiny_models.EXCEPTIONS:
            print(f"{name}: exception: {tiny_models.EXCEPTIONS[name]}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            signal.alarm(options.seconds)
            try:
                said = check(name, Path(folder), options.fast, options.bits)
            except TooSlow:
                said = f"TOO SLOW: more than {options.seconds} s"
            except Exception as error:
                said = f"FAILED: {describe(error)}"
            signal.alarm(0)
        made += said.startswith("ok")
        wrong += said.split()[0] in ("DIFFERS", "KEEPS", "NOTHING", "TOO", "FAILED:")
        wrong += "ABOVE" in said
        print(f"{name}: {said}", flush=True)
    print(f"{made} of {len(names)} equal, {wrong} wrong")
    if options.architectures:
        return 1 if wrong else 0
    return 1 if wrong or made < MADE_MIN else 0


if __name__ == "__main__":
    sys.exit(main())
