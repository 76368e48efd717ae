#!/usr/bin/env python3
"""Measures output tokens a second of atlas-engine's server against llama.cpp's, by turns, with wrk as the generator.

Both servers stay loaded with the same file and the same number of slots and are asked for the same completions of
32-token prompts over HTTP at 1, 4 and 16 connections; a pair of turns that others disturbed is taken again. Neither
speculates: the generator's prompts are noise, whose answers repeat themselves more than any text that people ask for.
Results go to target/bench/server.json.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from bench_cpu import least_disturbed, machine, ratios_of
from cpu_peer.peer import PEER, cache_folder
from cpu_peer.server import build_server

CONNECTIONS = [1, 4, 16]
SLOTS = max(CONNECTIONS)
# Tokens of a slot: 32 of prompt and at most 48 of answer, and room.
CONTEXT = 256
# Once 4 connections give less than this many times the tokens of one, batching does not work.
WANTED_OF_FOUR = 1.3


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server that answers; `tokens_per_second` loads it."""

    def __init__(self, name, command, port, log, ready="/v1/models"):
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self.log = open(log, "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        while not self.answers(ready):
            if self.process.poll() is not None:
                sys.exit(f"{name} has ended with status {self.process.returncode}: see {log}")
            time.sleep(0.1)

    def answers(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def busy_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def load(self, connections, seconds):
        """What wrk counted, and the processor time that the server took."""
        script = Path(__file__).resolve().parent / "load" / "answers.lua"
        before = self.busy_seconds()
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--timeout", "120s",
                   "--duration", f"{seconds}s", "--script", script, self.url]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        counted = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        if counted["failed"] or not counted["answered"]:
            sys.exit(f"{self.name} with {connections} connections: {counted}")
        return counted, self.busy_seconds() - before

    def end(self):
        self.process.terminate()
        self.process.wait()
        self.log.close()


def measure(model, ours, peer, pairs, seconds):
    rows = []
    for connections in CONNECTIONS:

        def turn(side):
            counted, own = (ours, peer)[side].load(connections, seconds)
            # Seconds a token, so that the ratio of a pair is theirs to ours, as in the other benchmark.
            return {"seconds": counted["seconds"] / counted["tokens"]}, own

        taken = least_disturbed(pairs, 2 * pairs, turn)
        sides = [[answers[side]["seconds"] for _, answers in taken] for side in (0, 1)]
        figures = [1 / statistics.median(side) for side in sides]
        rows.append({"model": model.stem, "connections": connections, "ours": figures[0], "peer": figures[1],
                     **ratios_of(*sides), "others": max(others for others, _ in taken)})
        print("{model:32} {connections:3} at a time: ours {ours:7.1f} peer {peer:7.1f} tokens/s, "
              "ratio {ratio:.2f} ({low:.2f} to {high:.2f}), others {others:.2f}".format(**rows[-1]), flush=True)
    one, four = (row["ours"] for row in rows[:2])
    print(f"{model.stem:32} 4 at a time give {four / one:.2f} times the tokens of one (aim {WANTED_OF_FOUR})", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="target/debug/atlas-engine")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pairs", type=int, default=3, help="turns that each side takes at each number of connections")
    parser.add_argument("--seconds", type=int, default=10, help="length of a turn")
    parser.add_argument("--quick", action="store_true", help="shorter turns")
    arguments = parser.parse_args()
    seconds = 5 if arguments.quick else arguments.seconds
    cache = cache_folder()
    program = build_server(cache / "peer-server")
    # The larger model of the other benchmark is made of noise and has no tokenizer, so no server takes it.
    model = cache / "models" / "smollm2-135m-instruct-q4_1.gguf"
    output = Path("target/bench/server.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine(), "threads": arguments.threads, "pairs": arguments.pairs, "peer": PEER, "rows": []}
    if not model.exists():
        sys.exit(f"{model} is missing: run make setup")
    port = free_port()
    ours = Server("atlas-engine", [
        arguments.engine, "serve", "--model", model, "--served-model-name", "bench", "--backend", "cpu",
        "--host", "127.0.0.1", "--port", str(port), "--internal-port", "0", "--context-tokens", str(CONTEXT),
        "--max-batch", str(SLOTS), "--threads", str(arguments.threads), "--speculate", "false",
    ], port, output.parent / "server-ours.log")
    port = free_port()
    peer = Server("llama-server", [
        program, "--model", model, "--host", "127.0.0.1", "--port", str(port), "--ctx-size", str(CONTEXT * SLOTS),
        "--parallel", str(SLOTS), "--threads", str(arguments.threads), "--cache-ram", "0",
    ], port, output.parent / "server-peer.log", "/health")
    try:
        report["rows"] = measure(model, ours, peer, arguments.pairs, seconds)
    finally:
        ours.end()
        peer.end()
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
