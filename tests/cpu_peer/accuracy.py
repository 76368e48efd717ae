"""Logits of engines and devices against products of f32, teacher-forced on the same tokens of the small real model."""

import ctypes
import json
import math
import subprocess
import sys
from pathlib import Path

from .peer import cache_folder, library

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
    """Both engines against products of f32, teacher-forced on the same tokens. Needs numpy, so the peer's Python.

    With ids of another run there is no peer, so that a machine without one can compare a card with its processor.
    """
    import numpy

    model = arguments.model or cache_folder() / "models" / "smollm2-135m-instruct-q4_1.gguf"
    shared = ["--model", model, "--threads", str(arguments.threads)]
    commands = {
        "reference": [arguments.engine, "logits", "--exact", *shared],
        "ours": [arguments.engine, "logits", *shared],
    }
    if arguments.card is not None:
        commands["card"] = [arguments.engine, "logits", "--backend", "hip", *shared, *arguments.card.split()]
    if not arguments.ids:
        peer = ["peer-logits", model, "--threads", str(arguments.threads)]
        commands["peer"] = [sys.executable, Path(sys.argv[0]).resolve(), *peer]
    processes = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name, command in commands.items()
    }
    output = Path("target/bench/accuracy.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    if arguments.ids:
        texts = json.loads(arguments.ids.read_text())
    else:
        texts = json.loads(processes["peer"].stdout.readline())
        (output.parent / "ids.json").write_text(json.dumps(texts))
    positions, scored, losses = 0, 0, dict.fromkeys(commands, 0.0)
    found = {name: {"agreed": 0, "divergence": 0.0, "lead": 0.0} for name in commands if name != "reference"}

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
    output.write_text(json.dumps(report, indent=1) + "\n")
    bounds = {}
    # The product must be as near as the peer, and a card as near as the processor.
    for name, other in (("ours", "peer"), ("card", "ours")):
        if name not in report or other not in report:
            continue
        one, two = report[name], report[other]
        bounds |= {
            f"{name}: top-1 agreement within 0.5 points of {other}": one["top_1_percent"] >= two["top_1_percent"] - 0.5,
            f"{name}: mean KL at most 1.1 of {other}": one["mean_kl_nats"] <= 1.1 * two["mean_kl_nats"],
            f"{name}: no other token where the lead is above 1 nat": one["largest_lead_nats_where_tokens_differ"] <= 1,
            f"{name}: perplexity within 0.5 % of {other}": abs(perplexity[name] / perplexity[other] - 1) <= 0.005,
        }
    for bound, holds in bounds.items():
        print(f"{bound}: {'holds' if holds else 'DOES NOT HOLD'}")
    if not all(bounds.values()):
        sys.exit(1)
