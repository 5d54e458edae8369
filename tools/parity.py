#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compares mlx-flash's logits with mlx-lm's.

    parity.py --binary mlx-flash --models DIR [--only SUBSTRING]
        every case of make_tiny_models.py (made in DIR when missing)
    parity.py --binary mlx-flash --model DIR --ids 1,2,3 --chunks 2,1
        one model folder
    parity.py --stand-in --models DIR
        mlx-lm on both sides: a test of this script
    parity.py --self-test [--binary mlx-flash]
        proof that a wrong weight and a wrong dtype are found

stock: every logit's bits equal those of mlx-lm in the model's own dtype, for
the same sequence of forward lengths. fast: the largest difference over the
largest logit of mlx-lm's float32 run (all floating parameters cast to float32)
is with --kv-type f32 at most 1e-5 (weights that are floats) or 3e-4 (integer
codes), and 1e-3 with defaults. With experts up to the first near tie of two.
chunks: what `fast` gives for other forward lengths, bit for bit (experts, latent
attention; exactness tests have it for the rest).
Exit code 1 if anything differs. Needs mlx-lm 0.32.2 on the CPU.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional

import mlx.core as mx
import numpy as np

mx.disable_compile()
mx.set_default_device(mx.cpu)

from mlx.utils import tree_map
from mlx_lm import utils as lm_utils
from mlx_lm.models.cache import make_prompt_cache

sys.path.insert(0, str(Path(__file__).parent))
import make_tiny_models as tiny

# Weights that are floats are multiplied in float32; integer codes by inputs in
# 16-bit fixed point (kernels/fixed_point.h).
FAST_FLOAT_LIMIT = 1e-5
FAST_CODED_LIMIT = 3e-4
FAST_LIMIT = 1e-3
# Two experts whose scores differ by less than this part of themselves may change
# places by rounding: in float32, and with keys in float16. `fast` is compared up
# to the first position where that can happen, and at least this far.
ROUTING_GAP = 1e-4
ROUTING_GAP_F16 = 5e-3
ROUTED_ROWS_MIN = 12
ENGINE_TIMEOUT_S = 60


class Reference:
    """mlx-lm on one model folder. mode: "stock" or "float32"."""

    def __init__(self, folder: Path, mode: str):
        self.model, self.config = lm_utils.load_model(folder)
        if mode == "float32":
            self.model.update(tree_map(to_float32, self.model.parameters()))
        # Of the last run, by position: the least distance between the last
        # expert that was chosen and the first that was not, as a part of its
        # score. None: no experts.
        self.gaps: Optional[np.ndarray] = None

    def logits(self, ids: list, chunks: list) -> np.ndarray:
        """float32 [positions, vocab] of `ids` run in forwards of `chunks`."""
        cache = make_prompt_cache(self.model)
        rows, gaps, at = [], [], 0
        for length in forward_lengths(len(ids), chunks):
            with RoutingGaps(length) as seen:
                out = self.model(mx.array([ids[at : at + length]]), cache=cache)
                mx.eval(out)
            rows.append(np.array(out[0].astype(mx.float32)))
            gaps.append(seen.least)
            at += length
        gaps = np.concatenate(gaps)
        self.gaps = gaps if np.isfinite(gaps).any() else None
        return np.concatenate(rows)


class RoutingGaps:
    """Watches the choices that mlx-lm's routers make, all by argpartition, in
    one forward of `length` tokens."""

    def __init__(self, length: int):
        self.least = np.full(length, np.inf)

    def __enter__(self):
        self.original = mx.argpartition

        def watched(a, kth, axis=-1):
            scores = np.array(a.astype(mx.float32))
            scores = np.sort(np.moveaxis(scores, axis, -1), -1)
            at = kth % scores.shape[-1]
            # The head ends at kth, a tail begins there.
            low, high = (at, at + 1) if kth >= 0 else (at - 1, at)
            if 0 <= low and high < scores.shape[-1]:
                least = np.abs(scores[..., [low, high]]).max(-1) + 1e-30
                gaps = (scores[..., high] - scores[..., low]) / least
                gaps = gaps.reshape(len(self.least), -1).min(-1)
                self.least = np.minimum(self.least, gaps)
            return self.original(a, kth=kth, axis=axis)

        mx.argpartition = watched
        return self

    def __exit__(self, *_):
        mx.argpartition = self.original


def to_float32(value: mx.array) -> mx.array:
    floating = mx.issubdtype(value.dtype, mx.floating)
    return value.astype(mx.float32) if floating else value


def forward_lengths(total: int, chunks: list) -> list:
    """`chunks` cut or repeated (its last) to `total` tokens."""
    lengths = []
    while total > 0:
        length = min(chunks[min(len(lengths), len(chunks) - 1)], total)
        lengths.append(length)
        total -= length
    return lengths


@dataclass
class Settings:
    """How the engine is asked to run."""

    kernels: str
    kv_type: Optional[str] = None
    ram: Optional[str] = None
    threads: Optional[int] = None
    ctx: Optional[int] = None

    def flags(self) -> list:
        flags = ["--kernels", self.kernels]
        for name in ("kv_type", "ram", "threads", "ctx"):
            value = getattr(self, name)
            if value is not None:
                flags += ["--" + name.replace("_", "-"), str(value)]
        return flags


class EngineError(Exception):
    pass


def run_engine(
    binary: Path, model: Path, ids: list, chunks: list, settings: Settings
) -> tuple:
    """Logits (float32 [positions, vocab]) and the report of `score --json`."""
    with tempfile.TemporaryDirectory(prefix="parity") as scratch:
        out = Path(scratch) / "logits.npy"
        command = [str(binary), "score", "--model", str(model), "--json", "--quiet"]
        command += ["--ids", ",".join(map(str, ids)), "--logits", str(out)]
        command += ["--chunks", ",".join(map(str, chunks))]
        command += settings.flags()
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=ENGINE_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"no answer within {ENGINE_TIMEOUT_S} s") from error
        if done.returncode != 0:
            lines = (done.stderr.strip() or "no message").splitlines()
            raise EngineError(f"exit code {done.returncode}: {lines[-1]}")
        logits = np.load(out)
        if logits.dtype != np.float32:
            raise EngineError(f"logits are {logits.dtype}, not float32")
        return logits, json.loads(done.stdout)


@dataclass
class Finding:
    """One comparison: what was measured, and whether that is good enough."""

    what: str
    value: float  # differing logits, or the relative error
    failure: Optional[str] = None
    near_ties: int = 0  # positions where two experts may change places
    rows: Optional[int] = None  # compared, where that is not all


def shape_failure(got: np.ndarray, want: np.ndarray) -> Optional[str]:
    if got.shape != want.shape:
        return f"shape {list(got.shape)}, mlx-lm has {list(want.shape)}"
    if not np.isfinite(want).all():
        return "mlx-lm's logits are not finite: the case proves nothing"
    return None


def describe(index: tuple, got: np.ndarray, want: np.ndarray) -> str:
    row, column = (int(i) for i in index)
    return (
        f"position {row}, id {column}: {got[row, column]:.9g} "
        f"for {want[row, column]:.9g}"
    )


def compare_bits(what: str, got: np.ndarray, want: np.ndarray) -> Finding:
    failure = shape_failure(got, want)
    if failure:
        return Finding(what, np.nan, failure)
    differs = got.view(np.uint32) != want.view(np.uint32)
    count = int(differs.sum())
    if count:
        rows = np.flatnonzero(differs.any(1))
        first = (rows[0], np.flatnonzero(differs[rows[0]])[0])
        error = relative_error(got, want)
        failure = (
            f"{count} of {got.size} logits differ in {len(rows)} of {len(got)} rows, "
            f"relative error {error:.1e}; first {describe(first, got, want)}"
        )
    return Finding(what, count, failure)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def compare_close(what: str, got: np.ndarray, want: np.ndarray, limit: float) -> Finding:
    failure = shape_failure(got, want)
    if failure:
        return Finding(what, np.nan, failure)
    error = relative_error(got, want)
    if not error <= limit:  # also when it is NaN
        worst = np.unravel_index(np.abs(got - want).argmax(), got.shape)
        failure = (
            f"relative error {error:.2e} exceeds {limit:.0e}, "
            f"worst {describe(worst, got, want)}"
        )
    return Finding(what, error, failure)


# An engine: (model, ids, chunks, settings) -> logits. Raises EngineError.
Engine = Callable[[Path, list, list, Settings], np.ndarray]


def binary_engine(binary: Path) -> Engine:
    return lambda model, ids, chunks, settings: run_engine(
        binary, model, ids, chunks, settings
    )[0]


def stand_in(model: Path, ids: list, chunks: list, settings: Settings) -> np.ndarray:
    folder = model.parent / "hf" if model.suffix == ".gguf" else model
    mode = "stock" if settings.kernels == "stock" else "float32"
    return Reference(folder, mode).logits(ids, chunks)


STOCK = Settings("stock")
FAST_F32 = Settings("fast", kv_type="f32")
FAST = Settings("fast")


def check_stock(got: np.ndarray, want: np.ndarray) -> Finding:
    return compare_bits("stock", got, want)


def check_fast_float(got: np.ndarray, want: np.ndarray) -> Finding:
    return compare_close("fast f32", got, want, FAST_FLOAT_LIMIT)


def check_fast_coded(got: np.ndarray, want: np.ndarray) -> Finding:
    return compare_close("fast f32", got, want, FAST_CODED_LIMIT)


def check_fast(got: np.ndarray, want: np.ndarray) -> Finding:
    return compare_close("fast", got, want, FAST_LIMIT)


def check_chunks(got: np.ndarray, want: np.ndarray) -> Finding:
    return compare_bits("chunks", got, want)


@dataclass
class Job:
    """One run of the engine and what it is held against."""

    chunks: list
    settings: Settings
    mode: str  # of the reference; "same": the engine's own first FAST_F32 run
    check: Callable[[np.ndarray, np.ndarray], Finding]


def jobs_of(case: tiny.Case) -> list:
    # A GGUF file's reference is a float32 folder: its own dtype is float32.
    stock_chunks = [] if case.fast_only else case.chunks
    jobs = [Job(c, STOCK, "stock", check_stock) for c in stock_chunks]
    coded = case.quant is not None or case.gguf not in (None, "F32", "F16", "BF16")
    check_f32 = check_fast_coded if coded else check_fast_float
    for chunks in case.fast_chunks or case.chunks:
        jobs.append(Job(chunks, FAST_F32, "float32", check_f32))
        jobs.append(Job(chunks, FAST, "float32", check_fast))
    if any(key in case.config for key in ("num_experts_per_tok", "kv_lora_rank")):
        total = sum((case.fast_chunks or case.chunks)[0])
        other = [7, 1, 1, 30]
        jobs.append(Job(other + [total - sum(other)], FAST_F32, "same", check_chunks))
    for job in jobs:
        # By itself the engine keeps to the length the model was made for.
        if sum(job.chunks) > case.config["max_position_embeddings"]:
            job.settings = replace(job.settings, ctx=sum(job.chunks))
    return jobs


# Other prompts for cases whose own soon comes to a near tie of experts.
SALTS = {
    "deepseek_v2_f32": "2",
    "deepseek_v3_4bit_bf16": "5",
    "deepseek_v3_f32": "7",
    "gguf_deepseek_v3_F32": "1",
    "gguf_mixtral_Q4_K": "1",
    "gguf_qwen3moe_F16": "1",
    "glm4_moe_experts_f32": "1",
    "glm4_moe_f32": "1",
    "glm4_moe_groups_f32": "12",
    "gpt_oss_full_first_f32": "1",
    "gpt_oss_mxfp4_bf16": "4",
    "granitemoe_biases_f32": "6",
    "mixtral_mxfp4_bf16": "1",
    "mixtral_tied_f32": "1",
    "olmoe_norm_f32": "2",
    "qwen3_moe_f32": "1",
    "qwen3_moe_mixed_layers_f32": "1",
}


def ids_for(name: str, count: int, vocab: int = tiny.VOCAB) -> list:
    rng = random.Random(zlib.crc32((name + SALTS.get(name, "")).encode()))
    return [rng.randrange(vocab) for _ in range(count)]


# What gguf_to_hf.py knows. Of others the reference is what the file was made from.
CONVERTED = ("llama", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe")


def reference_folder(case: tiny.Case, folder: Path) -> tuple:
    """The folder mlx-lm runs, and what is wrong with its conversion, if so."""
    if not case.gguf:
        return folder, None
    if case.config["model_type"] not in CONVERTED:
        return folder / "hf", None
    converter = Path(__file__).parent / "gguf_to_hf.py"
    converted = folder / "converted"
    shutil.rmtree(converted, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, converter, folder / "model.gguf", converted],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        lines = (done.stderr.strip() or "no message").splitlines()
        return folder / "hf", f"gguf_to_hf.py: {lines[-1]}"
    return converted, conversion_failure(folder / "hf", converted)


def conversion_failure(expected: Path, converted: Path) -> Optional[str]:
    """Compares gguf_to_hf.py's tensors with what the file was made from."""
    want = mx.load(str(expected / "model.safetensors"))
    got = {}
    for file in sorted(converted.glob("model*.safetensors")):
        got.update(mx.load(str(file)))
    if set(got) != set(want):
        names = sorted(set(got) ^ set(want))
        return f"gguf_to_hf.py: tensors only on one side: {', '.join(names[:4])}"
    for name, value in want.items():
        same = got[name].shape == value.shape and got[name].dtype == value.dtype
        if not same or not mx.array_equal(got[name], value):
            return f"gguf_to_hf.py: {name} is not what the file holds"
    return None


class Report:
    """One row a case as it is done: logits that differ, relative errors (the
    worst of its runs). Failures are listed again at the end."""

    COLUMNS = ("stock", "fast f32", "fast", "chunks")

    def __init__(self):
        self.failures = []
        self.worst = {}  # column -> (value, case)
        self.row("case", {c: c for c in self.COLUMNS}, "")

    def row(self, name: str, cells: dict, verdict: str) -> None:
        columns = "".join(f"{cells.get(c, ''):>10}" for c in self.COLUMNS)
        print(f"{name:<32}{columns}  {verdict}", flush=True)

    def add(self, name: str, findings: list) -> None:
        cells = {}
        for column in self.COLUMNS:
            values = [f.value for f in findings if f.what == column]
            if not values:
                continue
            value = float(np.max(values))  # NaN, an error, wins
            self.worst[column] = max(self.worst.get(column, (-1.0, "")), (value, name))
            cells[column] = (
                "error" if np.isnan(value)
                else f"{value:.0f}" if column in ("stock", "chunks")
                else f"{value:.1e}"
            )
        cut = [f for f in findings if f.rows is not None]
        note = ""
        if cut:
            ties = max(f.near_ties for f in cut)
            note = f", {ties} near ties of experts, compared {min(f.rows for f in cut)} rows"
        failed = [f for f in findings if f.failure]
        self.failures += [f"{name} ({f.what}): {f.failure}" for f in failed]
        self.row(name, cells, ("FAIL" if failed else "ok") + note)

    def finish(self, cases: int) -> int:
        for column, (value, name) in self.worst.items():
            print(f"worst {column}: {value:.2g} ({name})")
        for failure in self.failures:
            print("FAIL", failure)
        names = {f.split(" ")[0] for f in self.failures}
        print(f"{cases - len(names)} of {cases} cases agree with mlx-lm")
        return 1 if self.failures or cases == 0 else 0


def check_case(case: tiny.Case, folder: Path, results: list) -> list:
    """`results`: a future of the engine's logits for each of jobs_of(case)."""
    findings = []
    hf, failure = reference_folder(case, folder)
    if failure:
        findings.append(Finding("conversion", np.nan, failure))
    models, wanted, gaps = {}, {}, {}
    jobs = jobs_of(case)
    for job, result in zip(jobs, results):
        if job.mode == "same":
            first = next(i for i, j in enumerate(jobs) if j.settings.kv_type == "f32")
            findings.append(check_engine_twice(job, result, results[first]))
            continue
        key = (job.mode, tuple(job.chunks))
        if key not in wanted:
            if job.mode not in models:
                models[job.mode] = Reference(hf, job.mode)
            ids = ids_for(case.name, sum(job.chunks))
            wanted[key] = models[job.mode].logits(ids, job.chunks)
            gaps[key] = models[job.mode].gaps
        try:
            findings.append(check_routed(job, result.result(), wanted[key], gaps[key]))
        except EngineError as error:
            what = job.check(wanted[key], wanted[key]).what
            findings.append(Finding(what, np.nan, str(error)))
    return findings


def check_engine_twice(job: Job, result: Future, first: Future) -> Finding:
    try:
        return job.check(result.result(), first.result())
    except EngineError as error:
        return Finding("chunks", np.nan, str(error))


def check_routed(
    job: Job, got: np.ndarray, want: np.ndarray, gaps: Optional[np.ndarray]
) -> Finding:
    """job.check, in `fast` up to the first near tie between two experts: what
    comes after it may rightly differ."""
    limit = ROUTING_GAP if job.settings.kv_type == "f32" else ROUTING_GAP_F16
    near = np.flatnonzero(gaps < limit) if gaps is not None else []
    if job.settings.kernels != "fast" or len(near) == 0 or got.shape != want.shape:
        return job.check(got, want)
    rows = int(near[0])
    if rows < ROUTED_ROWS_MIN:
        what = job.check(want, want).what
        return Finding(what, np.nan, f"a near tie at position {rows}: too little is compared")
    finding = job.check(got[:rows], want[:rows])
    finding.near_ties, finding.rows = len(near), rows
    return finding


class Inline:
    """An executor that runs each call when its result is asked for."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, call: Callable, *args):
        future = Future()
        future.result = lambda: call(*args)
        return future


def check_cases(engine: Engine, cases: list, models: Path, workers: int) -> int:
    """workers: engines that run beside mlx-lm; 0: in turn with it."""
    report = Report()
    with ThreadPoolExecutor(workers) if workers else Inline() as pool:
        pending = []
        for case in cases:
            folder = models / case.name
            target = folder / "model.gguf" if case.gguf else folder
            results = [
                pool.submit(
                    engine,
                    target,
                    ids_for(case.name, sum(job.chunks)),
                    job.chunks,
                    job.settings,
                )
                for job in jobs_of(case)
            ]
            pending.append((case, folder, results))
        for case, folder, results in pending:
            report.add(case.name, check_case(case, folder, results))
    return report.finish(len(cases))


def ensure_models(cases: list, models: Path) -> None:
    """Makes what is missing; all of it when the makers have changed."""
    digest = hashlib.sha256(mx.__version__.encode())
    for script in ("make_tiny_models.py", "tiny_experts.py", "tiny_gguf.py"):
        digest.update((Path(__file__).parent / script).read_bytes())
    stamp = models / "made-by"
    if not stamp.exists() or stamp.read_text() != digest.hexdigest():
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir(parents=True)
    for case in cases:
        if not (models / case.name).is_dir():
            tiny.make(case, models)
    stamp.write_text(digest.hexdigest())


def flip_bit(folder: Path, tensor: str, element: int, bit: int) -> None:
    """Flips one bit of one 16-bit element of a one-file model."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    info = json.loads(data[8 : 8 + length])[tensor]
    assert info["dtype"] in ("BF16", "F16"), info
    at = 8 + length + info["data_offsets"][0] + 2 * element + bit // 8
    assert at < 8 + length + info["data_offsets"][1]
    data[at] ^= 1 << (bit % 8)
    path.write_bytes(bytes(data))


# What each of these cases is for: without it the logits must be others.
MATTERS = [
    ("llama_bf16", {"rms_norm_eps": 1e-5}),
    ("llama_bf16", {"rope_theta": 10000.0}),
    ("llama_linear_bf16", {"rope_scaling": None}),
    ("llama_llama3_bf16", {"rope_scaling": None}),
    ("llama_llama3_f32", {"rope_scaling": {**tiny.LLAMA3, "low_freq_factor": 1.0}}),
    ("llama_llama3_f32", {"rope_scaling": {**tiny.LLAMA3, "high_freq_factor": 4.0}}),
    ("llama_yarn_bf16", {"rope_scaling": {"type": "linear", "factor": 5.0}}),
    ("llama_yarn_bf16", {"rope_scaling": {**tiny.YARN, "beta_slow": 1}}),
    ("llama_yarn_bf16", {"rope_scaling": {**tiny.YARN, "beta_fast": 32}}),
    ("llama_yarn_mscale_f16", {"rope_scaling": tiny.YARN}),
    ("llama_dynamic_bf16", {"rope_scaling": None}),
    ("llama_dynamic_late_f32", {"rope_scaling": None}),
    ("llama_traditional_bf16", {"rope_traditional": False}),
    ("llama_window_bf16", {"sliding_window": 14}),
    ("llama_window_f32", {"layer_types": ["full_attention"] * 3}),
    ("llama_window_grows_f16", {"sliding_window": 46}),
    ("mistral_window_f32", {"sliding_window": 1000}),
    ("qwen2_bf16", {"rope_theta": 1000000.0}),
    ("qwen3_parameters_bf16", {"rope_parameters": {"rope_theta": 10000.0}}),
    ("qwen3_parameters_yarn_f32", {"rope_theta": 4321.0}),
    ("qwen3_parameters_yarn_f32", {"rope_parameters": None}),
    ("mixtral_f32", {"num_experts_per_tok": 1}),
    ("qwen3_moe_f32", {"norm_topk_prob": False}),
    ("olmoe_norm_f32", {"norm_topk_prob": False}),
    ("gpt_oss_f32", {"sliding_window": 14}),
    ("granitemoe_f32", {"attention_multiplier": 0.204}),
    ("granitemoe_f32", {"embedding_multiplier": 1.0}),
    ("granitemoe_f32", {"residual_multiplier": 1.0}),
    ("granitemoe_f32", {"logits_scaling": 1.0}),
    ("glm4_moe_f32", {"routed_scaling_factor": 1.0}),
    ("glm4_moe_f32", {"partial_rotary_factor": 1.0}),
    ("glm4_moe_groups_f32", {"topk_group": 3}),
    ("deepseek_f32", {"rope_scaling": None}),
]


def check_matters(models: Path) -> list:
    """The entries of MATTERS that change nothing `fast` would notice."""
    silent = []
    for name, changes in MATTERS:
        case = next(c for c in tiny.CASES if c.name == name)
        ensure_models([case], models)
        folder = models / name
        chunks = case.chunks[0]
        ids = ids_for(name, sum(chunks))
        want = Reference(folder, "float32").logits(ids, chunks)
        with tempfile.TemporaryDirectory(prefix="parity") as scratch:
            changed = Path(scratch) / name
            shutil.copytree(folder, changed)
            config = {**json.loads((folder / "config.json").read_text()), **changes}
            (changed / "config.json").write_text(json.dumps(config))
            got = Reference(changed, "float32").logits(ids, chunks)
        error = relative_error(got, want)
        ok = error > 3 * FAST_LIMIT
        print(f"{'ok' if ok else 'FAIL':<6}{name} with {changes}: {error:.1e}")
        if not ok:
            silent.append(name)
    return silent


def self_test(engine: Engine, models: Path) -> int:
    """Each line is a wrong thing that has to be noticed."""
    case = next(c for c in tiny.CASES if c.name == "llama_bf16")
    ensure_models([case], models)
    folder, chunks = models / case.name, case.chunks[0]
    ids = ids_for(case.name, sum(chunks))
    stock = Reference(folder, "stock").logits(ids, chunks)
    exact = Reference(folder, "float32").logits(ids, chunks)
    failures = check_matters(models)

    def expect(what: str, finding: Finding, noticed: bool) -> None:
        ok = (finding.failure is not None) == noticed
        print(f"{'ok' if ok else 'FAIL':<6}{what}: {finding.failure or 'no difference'}")
        if not ok:
            failures.append(what)

    run = lambda model, settings: engine(model, ids, chunks, settings)
    expect("right weights, stock", check_stock(run(folder, STOCK), stock), False)
    expect("right weights, fast", check_fast_float(run(folder, FAST_F32), exact), False)
    expect("bf16 against float32", check_stock(stock, exact), True)
    expect("bf16 against float32", check_fast(stock, exact), True)
    changes = [
        ("model.layers.1.mlp.up_proj.weight", 12345, 6),
        ("model.layers.2.self_attn.k_proj.weight", 1500, 14),
        ("model.norm.weight", 77, 6),
    ]
    with tempfile.TemporaryDirectory(prefix="parity") as scratch:
        for tensor, element, bit in changes:
            wrong = Path(scratch) / tensor
            shutil.copytree(folder, wrong)
            flip_bit(wrong, tensor, element, bit)
            what = f"bit {bit} of {tensor}[{element}]"
            expect(f"{what}, stock", check_stock(run(wrong, STOCK), stock), True)
            if bit == 6 and "norm" not in tensor:
                continue  # one mantissa bit may be less than fast's tolerance
            expect(f"{what}, fast", check_fast(run(wrong, FAST), exact), True)
    return 1 if failures else 0


def check_one(engine: Engine, args: argparse.Namespace) -> int:
    ids = [int(i) for i in args.ids.split(",")]
    chunks = [int(i) for i in (args.chunks or str(len(ids))).split(",")]
    report = Report()
    findings = []
    plan = [(STOCK, "stock", check_stock)] if args.kernels != "fast" else []
    if args.kernels != "stock":
        close = lambda got, want: compare_close("fast", got, want, args.fast_limit)
        plan += [(FAST_F32, "float32", check_fast_coded), (FAST, "float32", close)]
    for settings, mode, check in plan:
        want = Reference(args.reference or args.model, mode).logits(ids, chunks)
        settings = replace(settings, ram=args.ram, threads=args.threads)
        try:
            got = engine(args.model, ids, chunks, settings)
            findings.append(check(got, want))
        except EngineError as error:
            findings.append(Finding(settings.kernels, np.nan, str(error)))
    report.add(args.model.name, findings)
    return report.finish(1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, help="mlx-flash")
    parser.add_argument("--stand-in", action="store_true", help="mlx-lm as the engine")
    parser.add_argument("--models", type=Path, help="folder of the tiny models")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="engines at a time")
    parser.add_argument("--model", type=Path, help="one folder instead of the cases")
    parser.add_argument("--reference", type=Path, help="folder mlx-lm runs instead")
    parser.add_argument("--ids", help="with --model: 1,2,3")
    parser.add_argument("--chunks", help="with --model: forward lengths, last repeats")
    parser.add_argument("--kernels", choices=["stock", "fast"])
    parser.add_argument(
        "--fast-limit",
        type=float,
        default=FAST_LIMIT,
        help="with --model: what fast with defaults may differ by (%(default)s)",
    )
    parser.add_argument("--ram")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if not args.binary and not args.stand_in:
        parser.error("give --binary or --stand-in")
    if args.model and not args.ids:
        parser.error("--model needs --ids")
    if not args.model and not args.models:
        parser.error("give --models or --model")
    return args


def main() -> int:
    args = parse_args()
    engine = stand_in if args.stand_in else binary_engine(args.binary.resolve())
    # MLX's streams belong to a thread: mlx-lm runs on this one only.
    workers = 0 if args.stand_in else args.workers
    if args.model:
        return check_one(engine, args)
    if args.self_test:
        return self_test(engine, args.models)
    started = time.monotonic()
    cases = [c for c in tiny.CASES if args.only in c.name]
    ensure_models(cases, args.models)
    code = check_cases(engine, cases, args.models, workers)
    print(f"{time.monotonic() - started:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
