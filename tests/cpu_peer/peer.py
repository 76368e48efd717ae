"""The peer: llama.cpp, built natively from the package that ships its sources, driven through its C API."""

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PEER = "llama-cpp-python==0.3.36"
# Names of the peer's file types, as its C API numbers them.
TYPES = {"Q4_0": 2, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "Q8_0": 7, "F16": 1}
# The benchmark's model; its vocabulary bounds the tokens that the peer is fed.
SHAPE = {"layers": 22, "hidden": 2048, "heads": 32, "kv_heads": 4, "feed_forward": 5632, "vocabulary": 32000}


def cache_folder():
    if cache := os.environ.get("ATLAS_CACHE"):
        return Path(cache)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "atlas-operator"


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
