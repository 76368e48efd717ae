#!/usr/bin/env python3
"""Measures atlas-engine against llama.cpp on the CPU, on the same files, alternately.

The peer is built natively from the sources that the package llama-cpp-python ships, in a virtual environment of the
cache folder. The model has the shape of a 1.1B Llama, is made of a seed in F16 and quantized by the peer. Both engines
stay loaded and take turns at every test, seconds apart, so that whatever else the machine does meets both; a pair of
turns that others disturbed is taken again. Ratios are of pairs. Results go to target/bench/cpu.json: quantization,
test, ours, peer, ratio, low, high, roofline, share of the machine that others took.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from cpu_peer.accuracy import accuracy, peer_logits
from cpu_peer.model import SHAPES, write_model
from cpu_peer.peer import PEER, TYPES, build_peer, cache_folder, quantize, take_turns

PROMPTS = [512, 2048]
# Context before the first measured token, sequences, tokens measured for each of them.
DECODES = [(128, 1, 32), (2048, 1, 16), (128, 4, 16), (128, 16, 8)]
QUICK = ["Q4_0", "Q4_K_M"]
# The share of the machine that others may take while a pair is measured.
QUIET = 0.1


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


def seconds_of(name):
    """What a figure usually takes on two cores with a 1.1B model."""
    return {START: 12, "prefill 2048": 50, "decode 16 at 128": 45, MEMORY: 1}.get(name, 15)


class Progress:
    """Says after each figure how many are left, and for how long as far as can be told from those that there are."""

    def __init__(self, kinds, names):
        self.began = self.last = time.perf_counter()
        self.left = [(kind, name) for kind in kinds for name in names]
        self.taken = {}

    def report(self, row):
        now = time.perf_counter()
        self.left.remove((row["quantization"], row["test"]))
        self.taken.setdefault(row["test"], []).append(now - self.last)
        self.last = now
        # The same test takes much the same time with every type; for one that has not been seen, the usual time is
        # stretched as those that were seen have stretched.
        usual = sum(seconds_of(name) * len(times) for name, times in self.taken.items())
        stretch = (now - self.began) / usual
        expected = sum(statistics.mean(self.taken.get(name, [seconds_of(name) * stretch])) for _, name in self.left)
        print_row(row)
        if self.left:
            print(f"  {len(self.left)} figures and about {expected / 60:.1f} minutes left, "
                  f"after {(now - self.began) / 60:.1f} minutes", flush=True)


def read_through(path):
    """Brings a file into the page cache."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


START, MEMORY = "start to first logits", "peak memory"


def measure_kind(kind, model, commands, tests, pairs, attempts, report):
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

    read_through(model)
    rows = [row(START, "s", lambda seconds: seconds, least_disturbed(pairs, attempts, start))]
    report(rows[-1])
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
        report(rows[-1])
    for process in processes:
        process.end()
    size, kv = model.stat().st_size, processes[0].loaded["kv_bytes"]
    rows.append({"quantization": kind, "test": MEMORY, "unit": "MiB", "ours": peaks[0] / 2**20,
                 "peer": peaks[1] / 2**20, "file": size / 2**20, "kv": kv / 2**20,
                 "beyond": (peaks[0] - size - kv) / 2**20})
    report(rows[-1])
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
    progress = Progress(kinds, [START, *map(name_of, tests), MEMORY])
    for kind in kinds:
        model = source if kind == "F16" else models / f"llama-1.1b-{kind.lower()}.gguf"
        if not model.exists():
            subprocess.run([python, this, "quantize", source, model, kind], check=True)
        shared = ["--threads", str(arguments.threads), "--tests", json.dumps(tests)]
        ours = [arguments.engine, "bench", "--turns", "--model", model, *shared]
        peer = [python, this, "peer", model, *shared]
        attempts = arguments.attempts or 2 * arguments.pairs
        report["rows"] += measure_kind(kind, model, (ours, peer), tests, arguments.pairs, attempts, progress.report)
        output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")


def table():
    """The results as Markdown, as docs/benchmarks.md has them: a column a type, a row a test."""
    report = json.loads(Path("target/bench/cpu.json").read_text())
    rows = {(row["quantization"], row["test"]): row for row in report["rows"]}
    kinds = [kind for kind in TYPES if any(kind == quantization for quantization, _ in rows)]
    names = list(dict.fromkeys(name for _, name in rows))

    def lines(title, names, cell):
        print(f"| {title} | {' | '.join(kinds)} |")
        print("|---" * (len(kinds) + 1) + "|")
        for name in names:
            cells = [cell(rows[kind, name]) if (kind, name) in rows else "not measured" for kind in kinds]
            print(f"| {name} | {' | '.join(cells)} |")
        print()

    def figures(row):
        digits = 2 if row["unit"] == "s" else 0
        return "{ours:.{digits}f} / {peer:.{digits}f}, **{ratio:.2f}** ({low:.2f} to {high:.2f})".format(**row, digits=digits)

    compared = [name for name in names if name != MEMORY]
    lines("ours / llama.cpp, ratio", compared, figures)
    lines("share of the roofline", [name for name in compared if name != START], lambda row: f"{row['roofline']:.2f}")
    lines("MiB", [MEMORY], lambda row: "{ours:.0f} / {peer:.0f}, {beyond:.0f} beyond file and cache".format(**row))
    low = [row for row in report["rows"] if row.get("ratio", 1) < (1 / 1.2 if row["test"] == START else 1)]
    print("below the aim:", "; ".join("{quantization} {test} {ratio:.2f}".format(**row) for row in low) or "nothing")
    others = [row["others"] for row in report["rows"] if "others" in row]
    print(f"others took {min(others):.2f} to {max(others):.2f} of the machine")


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
    command = commands.add_parser("write-model", help="random weights in the shape of a model")
    command.add_argument("path", type=Path)
    command.add_argument("--shape", choices=SHAPES, default="1.1b")
    command.add_argument("--mixture", choices=["F16", "Q4_K_M"], default="F16")
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
    command.add_argument("--model", type=Path, help="the small real model, elsewhere than in the cache folder")
    command.add_argument("--card", metavar="FLAGS", help="compare a card too, with these flags of its own")
    command.add_argument("--ids", type=Path, help="token ids of another run (target/bench/ids.json), and no peer")
    command = commands.add_parser("peer-logits")
    command.add_argument("model", type=Path)
    command.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    match arguments.command:
        case "compare":
            compare(arguments)
        case "write-model":
            write_model(arguments.path, SHAPES[arguments.shape], arguments.mixture)
        case "quantize":
            quantize(arguments.source, arguments.target, arguments.kind)
        case "table":
            table()
        case "accuracy":
            folder = cache_folder() / "peer"
            if not arguments.ids and Path(sys.prefix) != folder:
                python = build_peer(folder)
                os.execv(python, [python, *sys.argv])
            accuracy(arguments)
        case "peer-logits":
            peer_logits(arguments.model, arguments.threads)
        case "peer":
            take_turns(arguments.model, arguments.threads, arguments.tests)


if __name__ == "__main__":
    main()
