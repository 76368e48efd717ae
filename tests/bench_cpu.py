#!/usr/bin/env python3
"""Measures atlas-engine against llama.cpp on the CPU, on the same files, alternately.

The peer is built natively from the sources that the package llama-cpp-python ships, in a virtual environment of the
cache folder. The model has the shape of a 1.1B Llama, is made of a seed in F16 and quantized by the peer. Both engines
stay loaded and take turns at every test, seconds apart, so that whatever else the machine does meets both; a pair of
turns that others disturbed is taken again. Ratios are of pairs. Results go to target/bench/cpu.json: quantization,
test, ours, peer, ratio, low, high, roofline, share of the machine that others took.
"""

import argparse
import ctypes
import json
import math
import os
import platform
import resource
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
QUICK = ["Q4_0", "Q4_K_M"]
# The share of the machine that others may take while a pair is measured.
QUIET = 0.1


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


class Peer:
    """The peer with a model loaded. One context serves all tests of one sequence, every other test has its own."""

    def __init__(self, model, threads, tests):
        self.llama, self.threads, self.tests = library(), threads, tests
        began = time.perf_counter()
        parameters = self.llama.llama_model_default_params()
        self.model = self.llama.llama_model_load_from_file(str(model).encode(), parameters)
        self.contexts = {}
        self.batch = self.llama.llama_batch_init(512, 0, 1)
        alone = [test["depth"] + test["tokens"] for test in tests if test["sequences"] == 1]
        self.step(self.context(1, max(alone, default=64)), [(0, position, position == 31) for position in range(32)])
        self.load_seconds = time.perf_counter() - began

    def context(self, sequences, tokens):
        """The context of a test and how far its sequences are filled."""
        if sequences not in self.contexts:
            parameters = self.llama.llama_context_default_params()
            parameters.n_ctx = -(-(tokens + 1) // 256) * 256 * sequences
            parameters.n_batch = parameters.n_ubatch = 512
            parameters.n_seq_max = sequences
            parameters.n_threads = parameters.n_threads_batch = self.threads
            context = self.llama.llama_init_from_model(self.model, parameters)
            self.contexts[sequences] = (context, [0] * sequences)
        return self.contexts[sequences]

    def step(self, context, rows):
        """Rows are (sequence, position, whether logits are wanted)."""
        context, filled = context
        batch = self.batch
        batch.n_tokens = len(rows)
        memory = self.llama.llama_get_memory(context)
        for sequence, position in {sequence: position for sequence, position, _ in reversed(rows)}.items():
            if position < filled[sequence]:
                self.llama.llama_memory_seq_rm(memory, sequence, position, -1)
        for index, (sequence, position, logits) in enumerate(rows):
            batch.token[index] = (position * 7919 + sequence * 31) % (SHAPE["vocabulary"] - 1) + 1
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = logits
            filled[sequence] = position + 1
        if self.llama.llama_decode(context, batch) != 0:
            sys.exit("the peer cannot compute a step")
        if rows[-1][2]:
            self.llama.llama_get_logits_ith(context, len(rows) - 1)[0]

    def prefill(self, context, sequence, begin, end):
        for first in range(begin, end, 512):
            last = min(first + 512, end)
            self.step(context, [(sequence, position, position + 1 == end) for position in range(first, last)])

    def measure(self, test):
        """Seconds of a test."""
        sequences, depth, tokens = test["sequences"], test["depth"], test["tokens"]
        context = self.context(sequences, depth + tokens)
        if test["kind"] == "prefill":
            began = time.perf_counter()
            self.prefill(context, 0, 0, tokens)
            return time.perf_counter() - began
        for sequence in range(sequences):
            if context[1][sequence] < depth:
                self.prefill(context, sequence, context[1][sequence], depth)
        self.step(context, [(sequence, depth, True) for sequence in range(sequences)])
        began = time.perf_counter()
        for token in range(1, tokens + 1):
            self.step(context, [(sequence, depth + token, True) for sequence in range(sequences)])
        return time.perf_counter() - began


def take_turns(model, threads, tests):
    """What `atlas-engine bench --turns` does, by the peer."""
    peer = Peer(model, threads, tests)

    def say(**answer):
        print(json.dumps(answer | {"peak_bytes": peak_bytes()}), flush=True)

    say(load_seconds=peer.load_seconds, version=peer.llama.__version__)
    for line in sys.stdin:
        say(seconds=peer.measure(tests[int(line)]))


def peak_bytes():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


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
    tests = [{"kind": "prefill", "depth": 0, "sequences": 1, "tokens": tokens} for tokens in prompts]
    for depth, sequences, tokens in DECODES:
        tests.append({"kind": "decode", "depth": depth, "sequences": sequences, "tokens": tokens})
    return tests


def name_of(test):
    if test["kind"] == "prefill":
        return f"prefill {test['tokens']}"
    return f"decode {test['sequences']} at {test['depth']}"


class Process:
    """An engine that measures when it is told to."""

    def __init__(self, command):
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.loaded = self.answer()
        self.start_seconds = time.perf_counter() - began

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(map(str, self.process.args))} has ended with status {self.process.wait()}")
        return json.loads(line)

    def busy_seconds(self):
        """Processor time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        """Waits for its end; afterwards `ended_seconds` is the processor time that it took in all."""
        self.process.stdin.close()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.ended_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def machine_seconds():
    """Processor time that all processes and other guests of this machine have had so far."""
    user, nice, system, _, _, interrupts, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + steal) / os.sysconf("SC_CLK_TCK")


def least_disturbed(pairs, attempts, take):
    """Pairs of measurements, and the share of the machine that others had meanwhile.

    `take(side)` measures ours (0) or the peer (1) and answers with the processor time that it took itself. A pair that
    others disturbed is measured again, up to so many attempts; the least disturbed ones count.
    """
    taken = []
    while sum(others <= QUIET for others, _ in taken) < pairs and len(taken) < attempts:
        answers, others = [None, None], 0.0
        # Who goes first changes, so that neither always finds the machine as the other left it.
        for side in (0, 1) if len(taken) % 2 == 0 else (1, 0):
            began, machine = time.perf_counter(), machine_seconds()
            answers[side], own = take(side)
            spent = machine_seconds() - machine - own
            others = max(others, spent / (time.perf_counter() - began) / os.cpu_count())
        taken.append((others, answers))
    taken.sort(key=lambda pair: pair[0])
    return taken[:pairs]


def ratios_of(ours, peers):
    """Median, lowest and highest of the ratios of pairs."""
    ratios = [peer / own for own, peer in zip(ours, peers)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def measure_kind(kind, model, commands, tests, pairs, attempts):
    """Rows of one quantization: starts, then each test by turns."""

    def start(side):
        process = Process(commands[side])
        process.end()
        # The whole process of ours; of the peer's without the interpreter and its imports.
        seconds = process.start_seconds if side == 0 else process.loaded["load_seconds"]
        return {"seconds": seconds}, process.ended_seconds

    def row(test, unit, amount, taken):
        ours, peers = ([answers[side]["seconds"] for _, answers in taken] for side in (0, 1))
        figures = [amount(statistics.median(seconds)) for seconds in (ours, peers)]
        return {"quantization": kind, "test": test, "unit": unit, "ours": figures[0], "peer": figures[1],
                **ratios_of(ours, peers), "others": max(others for others, _ in taken)}

    rows = [row("start to first logits", "s", lambda seconds: seconds, least_disturbed(pairs, attempts, start))]
    processes = [Process(command) for command in commands]
    peaks = [0, 0]
    for index, test in enumerate(tests):

        def turn(side):
            own = processes[side].busy_seconds()
            answer = processes[side].ask(index)
            return answer, processes[side].busy_seconds() - own

        if test["kind"] == "decode":
            # The first turn fills the cache and is not counted.
            for side in (0, 1):
                turn(side)
        taken = least_disturbed(pairs, attempts, turn)
        for _, answers in taken:
            peaks = [max(peak, answer["peak_bytes"]) for peak, answer in zip(peaks, answers)]
        tokens = test["tokens"] * test["sequences"]
        rows.append(row(name_of(test), "tokens/s", lambda seconds: tokens / seconds, taken))
        machine_peaks = processes[0].ask("peaks")
        best = machine_peaks["products_per_second" if test["kind"] == "prefill" else "read_bytes_per_second"]
        seconds = statistics.median(answers[0]["seconds"] for _, answers in taken)
        rows[-1]["roofline"] = taken[0][1][0]["work"] / seconds / best
    for process in processes:
        process.end()
    size, kv = model.stat().st_size, processes[0].loaded["kv_bytes"]
    rows.append({"quantization": kind, "test": "peak memory", "unit": "MiB", "ours": peaks[0] / 2**20,
                 "peer": peaks[1] / 2**20, "file": size / 2**20, "kv": kv / 2**20,
                 "beyond": (peaks[0] - size - kv) / 2**20})
    return rows


def print_row(row):
    text = "{quantization:7} {test:22} ours {ours:8.2f} peer {peer:8.2f} {unit}".format(**row)
    if "ratio" in row:
        text += ", ratio {ratio:5.2f} ({low:.2f} to {high:.2f}), others {others:.2f}".format(**row)
    if "roofline" in row:
        text += ", {roofline:.2f} of the roofline".format(**row)
    if "beyond" in row:
        text += ", {beyond:.0f} MiB beyond file and cache".format(**row)
    print(text, flush=True)


def compare(arguments):
    try:
        # Both sides alike; without it every other process of a shared machine shows in the figures.
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    except PermissionError:
        print("measuring at ordinary priority, because only root may have more", file=sys.stderr)
    cache = cache_folder()
    models = cache / "bench"
    models.mkdir(parents=True, exist_ok=True)
    python = build_peer(cache / "peer")
    this = Path(__file__).resolve()
    source = models / "llama-1.1b-f16.gguf"
    if not source.exists():
        subprocess.run([python, this, "write-model", source], check=True)
    kinds = arguments.types.split(",") if arguments.types else QUICK if arguments.quick else list(TYPES)
    tests = tests_of(arguments.quick)
    output = Path("target/bench/cpu.json")
    report = {"machine": machine(), "threads": arguments.threads, "pairs": arguments.pairs, "peer": PEER, "rows": []}
    if arguments.types and output.exists():
        # Types that were measured before stay.
        report["rows"] = [row for row in json.loads(output.read_text())["rows"] if row["quantization"] not in kinds]
    output.parent.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        model = source if kind == "F16" else models / f"llama-1.1b-{kind.lower()}.gguf"
        if not model.exists():
            subprocess.run([python, this, "quantize", source, model, kind], check=True)
        shared = ["--threads", str(arguments.threads), "--tests", json.dumps(tests)]
        ours = [arguments.engine, "bench", "--turns", "--model", model, *shared]
        peer = [python, this, "peer", model, *shared]
        rows = measure_kind(kind, model, (ours, peer), tests, arguments.pairs, arguments.attempts or 2 * arguments.pairs)
        for row in rows:
            print_row(row)
        report["rows"] += rows
        output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


def table():
    """The results as Markdown, as docs/benchmarks.md has them."""
    report = json.loads(Path("target/bench/cpu.json").read_text())
    print("| type | test | ours | llama.cpp | ratio (lowest to highest) | share of the roofline |")
    print("|---|---|---|---|---|---|")
    for row in report["rows"]:
        ratio = "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**row) if "ratio" in row else ""
        roofline = "{roofline:.2f}".format(**row) if "roofline" in row else ""
        figures = "{ours:.{digits}f} {unit} | {peer:.{digits}f} {unit}".format(**row, digits=2 if row["unit"] == "s" else 0)
        print("| {quantization} | {test} |".format(**row), figures, "|", ratio, "|", roofline, "|")


# ---- accuracy -------------------------------------------------------------------------------------------------------

TEXTS = ["LICENSE", "CONTRIBUTING.md", "engine/core/src/scheduler.rs"]
CHUNK, CHUNKS = 512, 2


def peer_logits(model, threads):
    """Prints the token ids of every text, then answers each line of ids by logits, as `atlas-engine logits` does."""
    llama = library()
    loaded = llama.llama_model_load_from_file(str(model).encode(), llama.llama_model_default_params())
    vocabulary = llama.llama_model_get_vocab(loaded)
    width = llama.llama_vocab_n_tokens(vocabulary)
    texts = []
    for text in TEXTS:
        text = Path(text).read_bytes()
        ids = (ctypes.c_int32 * len(text))()
        texts.append(ids[: llama.llama_tokenize(vocabulary, text, len(text), ids, len(text), True, False)])
    print(json.dumps(texts), flush=True)
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CHUNK
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama.llama_init_from_model(loaded, parameters)
    batch = llama.llama_batch_init(CHUNK, 0, 1)
    for line in sys.stdin:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        ids = json.loads(line)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, True
        if llama.llama_decode(context, batch) != 0:
            sys.exit("the peer cannot compute a step")
        sys.stdout.buffer.write(ctypes.string_at(llama.llama_get_logits(context), 4 * width * len(ids)))
        sys.stdout.buffer.flush()


def accuracy(arguments):
    """Both engines against products of f32, teacher-forced on the same tokens. Needs numpy, so the peer's Python."""
    import numpy

    model = cache_folder() / "models" / "smollm2-135m-instruct-q4_1.gguf"
    shared = ["--model", model, "--threads", str(arguments.threads)]
    commands = {
        "reference": [arguments.engine, "logits", "--exact", *shared],
        "ours": [arguments.engine, "logits", *shared],
        "peer": [sys.executable, Path(__file__).resolve(), "peer-logits", model, "--threads", str(arguments.threads)],
    }
    processes = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name, command in commands.items()
    }
    texts = json.loads(processes["peer"].stdout.readline())
    positions, scored, losses = 0, 0, dict.fromkeys(commands, 0.0)
    found = {name: {"agreed": 0, "divergence": 0.0, "lead": 0.0} for name in ("ours", "peer")}

    def log_probabilities(name, ids):
        process = processes[name]
        process.stdin.write(f"{json.dumps(ids)}\n".encode())
        process.stdin.flush()
        width = log_probabilities.width
        logits = numpy.frombuffer(process.stdout.read(4 * width * len(ids)), dtype="<f4").reshape(len(ids), width)
        logits = logits.astype(numpy.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))

    log_probabilities.width = arguments.vocabulary
    for text in texts:
        for first in range(0, min(len(text) // CHUNK, CHUNKS) * CHUNK, CHUNK):
            ids = text[first : first + CHUNK]
            expected = log_probabilities("reference", ids)
            two = numpy.sort(numpy.partition(expected, -2, axis=1)[:, -2:], axis=1)
            rows, following = numpy.arange(len(ids) - 1), numpy.array(ids[1:])
            losses["reference"] -= expected[rows, following].sum()
            for name, result in found.items():
                given = log_probabilities(name, ids)
                same = given.argmax(axis=1) == expected.argmax(axis=1)
                result["agreed"] += int(same.sum())
                result["divergence"] += float((numpy.exp(expected) * (expected - given)).sum())
                result["lead"] = max([result["lead"], *(two[:, 1] - two[:, 0])[~same]])
                losses[name] -= given[rows, following].sum()
            positions += len(ids)
            scored += len(ids) - 1
    for process in processes.values():
        process.stdin.close()
        process.wait()
    perplexity = {name: math.exp(loss / scored) for name, loss in losses.items()}
    report = {"model": model.name, "positions": positions, "perplexity": perplexity}
    for name, result in found.items():
        report[name] = {
            "top_1_percent": 100 * result["agreed"] / positions,
            "mean_kl_nats": result["divergence"] / positions,
            "largest_lead_nats_where_tokens_differ": float(result["lead"]),
        }
    print(json.dumps(report, indent=1))
    output = Path("target/bench/accuracy.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    ours, peer = report["ours"], report["peer"]
    bounds = {
        "top-1 agreement within 0.5 points of the peer's": ours["top_1_percent"] >= peer["top_1_percent"] - 0.5,
        "mean KL at most 1.1 of the peer's": ours["mean_kl_nats"] <= 1.1 * peer["mean_kl_nats"],
        "no other token where the lead is above 1 nat": ours["largest_lead_nats_where_tokens_differ"] <= 1,
        "perplexity within 0.5 % of the peer's": abs(perplexity["ours"] / perplexity["peer"] - 1) <= 0.005,
    }
    for bound, holds in bounds.items():
        print(f"{bound}: {'holds' if holds else 'DOES NOT HOLD'}")
    if not all(bounds.values()):
        sys.exit(1)


def machine():
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    return {"cpu": cpu.partition(":")[2].strip(), "cores": os.cpu_count(), "kernel": platform.release()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("compare", help="the whole comparison")
    command.add_argument("--engine", default="target/debug/atlas-engine")
    command.add_argument("--threads", type=int, default=os.cpu_count())
    command.add_argument("--quick", action="store_true", help="two types, without the long prompt")
    command.add_argument("--pairs", type=int, default=3, help="turns that each side takes at each test")
    command.add_argument("--attempts", type=int, help="turns at most, because others disturb some; twice the pairs by default")
    command.add_argument("--types", help="only these, such as Q4_0,F16; results of others stay")
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
    commands.add_parser("table", help="the results as Markdown")
    command = commands.add_parser("accuracy", help="both engines against products of f32, on the small real model")
    command.add_argument("--engine", default="target/debug/atlas-engine")
    command.add_argument("--threads", type=int, default=os.cpu_count())
    command.add_argument("--vocabulary", type=int, default=49152)
    command = commands.add_parser("peer-logits")
    command.add_argument("model", type=Path)
    command.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    match arguments.command:
        case "compare":
            compare(arguments)
        case "write-model":
            write_model(arguments.path)
        case "quantize":
            quantize(arguments.source, arguments.target, arguments.kind)
        case "table":
            table()
        case "accuracy":
            folder = cache_folder() / "peer"
            if Path(sys.prefix) != folder:
                python = build_peer(folder)
                os.execv(python, [python, *sys.argv])
            accuracy(arguments)
        case "peer-logits":
            peer_logits(arguments.model, arguments.threads)
        case "peer":
            take_turns(arguments.model, arguments.threads, arguments.tests)


if __name__ == "__main__":
    main()
