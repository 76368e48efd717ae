#!/usr/bin/env python3
"""Measures atlas-engine against llama.cpp on the CPU, on the same files, alternately.

The peer is built natively from the sources that the package llama-cpp-python ships, in a virtual environment of the
cache folder. The model has the shape of a 1.1B Llama, is made of a seed in F16 and quantized by the peer. Results go
to target/bench/cpu.json: quantization, test, ours, peer, ratio, low, high, roofline.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

PEER = "llama-cpp-python==0.3.36"
# Names of the peer's file types, as its C API numbers them.
TYPES = {"Q4_0": 2, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7, "F16": 1}
SHAPE = {"layers": 22, "hidden": 2048, "heads": 32, "kv_heads": 4, "feed_forward": 5632, "vocabulary": 32000}
PROMPTS = [512, 2048]
# Context before the first measured token, sequences, tokens measured for each of them.
DECODES = [(128, 1, 32), (2048, 1, 16), (128, 4, 16), (128, 16, 8)]
PAIRS = 3


def cache_folder():
    if cache := os.environ.get("ATLAS_CACHE"):
        return Path(cache)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "atlas-operator"


# ---- the peer -------------------------------------------------------------------------------------------------------


def build_peer(folder):
    """The Python of a virtual environment that has the peer, built for this processor."""
    python = folder / "bin" / "python"
    if (folder / "built").exists():
        return python
    print(f"building {PEER} natively, once (10 to 40 minutes of processor time)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    environment = os.environ | {
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
    }
    install = [python, "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python", PEER, "numpy"]
    subprocess.run(["nice", *install], check=True, env=environment)
    (folder / "built").touch()
    return python


def library():
    import llama_cpp

    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    library.silent = silent
    return llama_cpp


def quantize(source, target, kind):
    llama = library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = TYPES[kind]
    parameters.nthread = os.cpu_count()
    partial = target.with_suffix(".part")
    if llama.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(parameters)) != 0:
        sys.exit(f"the peer cannot quantize {source} to {kind}")
    partial.rename(target)


def bench_peer(model, threads, tests):
    """The peer's seconds for each test, and what it took to load."""
    llama = library()
    began = time.perf_counter()
    parameters = llama.llama_model_default_params()
    loaded = llama.llama_model_load_from_file(str(model).encode(), parameters)
    load = time.perf_counter() - began
    results = []
    for test in tests:
        sequences, depth, tokens = test["sequences"], test["depth"], test["tokens"]
        context = llama.llama_context_default_params()
        context.n_ctx = (depth + tokens + 32) * sequences
        context.n_batch = context.n_ubatch = 512
        context.n_seq_max = sequences
        context.n_threads = context.n_threads_batch = threads
        context = llama.llama_init_from_model(loaded, context)
        batch = llama.llama_batch_init(512, 0, 1)

        def step(rows):
            """Rows are (sequence, position, whether logits are wanted)."""
            batch.n_tokens = len(rows)
            for index, (sequence, position, logits) in enumerate(rows):
                batch.token[index] = (position * 7919 + sequence * 31) % 31000 + 1
                batch.pos[index] = position
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = logits
            if llama.llama_decode(context, batch) != 0:
                sys.exit("the peer cannot compute a step")
            if rows[-1][2]:
                llama.llama_get_logits_ith(context, len(rows) - 1)[0]

        def prefill(sequence, count):
            for first in range(0, count, 512):
                last = min(first + 512, count)
                step([(sequence, position, position + 1 == count) for position in range(first, last)])

        if test["kind"] == "prefill":
            prefill(0, 32)
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            began = time.perf_counter()
            prefill(0, tokens)
        else:
            for sequence in range(sequences):
                prefill(sequence, depth)
            step([(sequence, depth, True) for sequence in range(sequences)])
            began = time.perf_counter()
            for token in range(1, tokens + 1):
                step([(sequence, depth + token, True) for sequence in range(sequences)])
        results.append(time.perf_counter() - began)
        llama.llama_batch_free(batch)
        llama.llama_free(context)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return {"load_seconds": load, "peak_bytes": peak, "seconds": results, "version": llama.__version__}


# ---- the model ------------------------------------------------------------------------------------------------------


def write_model(path):
    """A GGUF of random F16 weights in the shape of a 1.1B Llama, without a tokenizer."""
    import numpy

    hidden, feed = SHAPE["hidden"], SHAPE["feed_forward"]
    kv = hidden // SHAPE["heads"] * SHAPE["kv_heads"]
    tensors = [("token_embd.weight", SHAPE["vocabulary"], hidden)]
    for layer in range(SHAPE["layers"]):
        for name, rows, columns in [
            ("attn_norm", hidden, 0),
            ("attn_q", hidden, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_norm", hidden, 0),
            ("ffn_gate", feed, hidden),
            ("ffn_up", feed, hidden),
            ("ffn_down", hidden, feed),
        ]:
            tensors.append((f"blk.{layer}.{name}.weight", rows, columns))
    tensors += [("output_norm.weight", hidden, 0), ("output.weight", SHAPE["vocabulary"], hidden)]

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = [
        ("general.architecture", "llama"),
        ("general.name", "atlas benchmark 1.1B"),
        ("general.file_type", 1),
        ("general.alignment", 32),
        ("llama.block_count", SHAPE["layers"]),
        ("llama.context_length", 8192),
        ("llama.embedding_length", hidden),
        ("llama.feed_forward_length", feed),
        ("llama.attention.head_count", SHAPE["heads"]),
        ("llama.attention.head_count_kv", SHAPE["kv_heads"]),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5),
        ("llama.rope.dimension_count", hidden // SHAPE["heads"]),
        ("llama.rope.freq_base", 10000.0),
        ("llama.vocab_size", SHAPE["vocabulary"]),
        ("tokenizer.ggml.model", "none"),
    ]
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata:
        header += text(key)
        if isinstance(value, str):
            header += struct.pack("<I", 8) + text(value)
        elif isinstance(value, float):
            header += struct.pack("<If", 6, value)
        else:
            header += struct.pack("<II", 4, value)
    offset = 0
    for name, rows, columns in tensors:
        dimensions = [columns, rows] if columns else [rows]
        header += text(name) + struct.pack("<I", len(dimensions))
        header += b"".join(struct.pack("<Q", dimension) for dimension in dimensions)
        header += struct.pack("<IQ", 1 if columns else 0, offset)
        offset += (rows * columns * 2 if columns else rows * 4) + 31 & ~31
    header += bytes(-len(header) % 32)
    random = numpy.random.default_rng(7)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(header)
        for _, rows, columns in tensors:
            if columns:
                values = random.standard_normal(rows * columns, dtype=numpy.float32) * columns**-0.5
                data = values.astype(numpy.float16).tobytes()
            else:
                data = numpy.ones(rows, dtype=numpy.float32).tobytes()
            file.write(data + bytes(-len(data) % 32))
    partial.rename(path)


# ---- the comparison -------------------------------------------------------------------------------------------------


def tests_of(quick):
    prompts = PROMPTS[:1] if quick else PROMPTS
    decodes = [DECODES[0], DECODES[2]] if quick else DECODES
    tests = [{"kind": "prefill", "depth": 0, "sequences": 1, "tokens": tokens} for tokens in prompts]
    for depth, sequences, tokens in decodes:
        tests.append({"kind": "decode", "depth": depth, "sequences": sequences, "tokens": tokens})
    return tests


def name_of(test):
    if test["kind"] == "prefill":
        return f"prefill {test['tokens']}"
    return f"decode {test['sequences']} at {test['depth']}"


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def compare(arguments):
    cache = cache_folder()
    models = cache / "bench"
    models.mkdir(parents=True, exist_ok=True)
    python = build_peer(cache / "peer")
    this = Path(__file__).resolve()
    source = models / "llama-1.1b-f16.gguf"
    if not source.exists():
        subprocess.run([python, this, "write-model", source], check=True)
    kinds = ["Q4_0", "Q4_K_M"] if arguments.quick else list(TYPES)
    tests = tests_of(arguments.quick)
    rows, peaks = [], {}
    for kind in kinds:
        model = source if kind == "F16" else models / f"llama-1.1b-{kind.lower()}.gguf"
        if not model.exists():
            subprocess.run([python, this, "quantize", source, model, kind], check=True)
        ours, peers = [], []
        for _ in range(PAIRS):
            described = json.dumps(tests)
            shared = ["--threads", str(arguments.threads), "--tests", described]
            ours.append(run([arguments.engine, "bench", "--json", "--model", model, *shared]))
            peers.append(run([python, this, "peer", model, *shared]))
        for index, test in enumerate(tests):
            tokens = test["tokens"] * test["sequences"]
            ratios = [peer["seconds"][index] / own["tests"][index]["seconds"] for own, peer in zip(ours, peers)]
            rows.append(
                {
                    "quantization": kind,
                    "test": name_of(test),
                    "ours": tokens / statistics.median(own["tests"][index]["seconds"] for own in ours),
                    "peer": tokens / statistics.median(peer["seconds"][index] for peer in peers),
                    "ratio": statistics.median(ratios),
                    "low": min(ratios),
                    "high": max(ratios),
                    "roofline": statistics.median(own["tests"][index]["roofline"] for own in ours),
                }
            )
            print("{quantization:7} {test:18} ours {ours:8.1f} peer {peer:8.1f} tokens/s, ratio {ratio:5.2f} "
                  "({low:.2f} to {high:.2f}), {roofline:.2f} of the roofline".format(**rows[-1]), flush=True)
        peaks[kind] = {
            "file_bytes": model.stat().st_size,
            "ours_peak_bytes": max(own["peak_bytes"] for own in ours),
            "peer_peak_bytes": max(peer["peak_bytes"] for peer in peers),
            "ours_load_seconds": statistics.median(own["load_seconds"] for own in ours),
            "peer_load_seconds": statistics.median(peer["load_seconds"] for peer in peers),
        }
    report = {
        "machine": machine(),
        "threads": arguments.threads,
        "pairs": PAIRS,
        "peer": PEER,
        "rows": rows,
        "memory": peaks,
    }
    output = Path("target/bench/cpu.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


def machine():
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {"cpu": cpu.partition(":")[2].strip(), "cores": os.cpu_count(), "kernel": platform.release()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="the whole comparison")
    command.add_argument("--engine", default="target/debug/atlas-engine")
    command.add_argument("--threads", type=int, default=os.cpu_count())
    command.add_argument("--quick", action="store_true", help="two types, short tests")
    command = commands.add_parser("write-model")
    command.add_argument("path", type=Path)
    command = commands.add_parser("quantize")
    command.add_argument("source", type=Path)
    command.add_argument("target", type=Path)
    command.add_argument("kind", choices=TYPES)
    command = commands.add_parser("peer")
    command.add_argument("model", type=Path)
    command.add_argument("--threads", type=int, required=True)
    command.add_argument("--tests", type=json.loads, required=True)
    arguments = parser.parse_args()
    match arguments.command:
        case "compare":
            compare(arguments)
        case "write-model":
            write_model(arguments.path)
        case "quantize":
            quantize(arguments.source, arguments.target, arguments.kind)
        case "peer":
            print(json.dumps(bench_peer(arguments.model, arguments.threads, arguments.tests)))


if __name__ == "__main__":
    main()
