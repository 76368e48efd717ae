#!/usr/bin/env bash
# The kernels and the engine on an NVIDIA card: every check of the self-test, alone and under NVIDIA's checkers; the
# share of the memory's bandwidth that each decode kernel takes; models of the sizes that the project serves; and the
# small real model against the processor. The same sources as for AMD cards; what differs is tests/cuda of the kernels'
# crate.
#
#   tests/nvidia.sh prepare   where cargo and nvcc are (make setup): fills target/nvidia, which needs neither
#   tests/nvidia.sh run       where the card is, and a python3 with numpy
set -euo pipefail
cd "$(dirname "$0")/.."
folder=target/nvidia
files=$folder/files
node=$files/sys/class/kfd/kfd/topology/nodes/1 card=$files/sys/bus/pci/devices/0000:03:00.0
real=smollm2-135m-instruct-q4_1.gguf

prepare() {
    cargo build --workspace --bins --features atlas-engine/hip
    ATLAS_NVIDIA_FOLDER="$PWD/$folder" cargo test --workspace --features atlas-engine/hip --test hip_cuda
    strip -o "$folder/atlas-engine" target/debug/atlas-engine
    # The files of the driver of an AMD card, which the engine looks at first; the runtime answers for that card.
    mkdir -p "$node/mem_banks/0" "$card" "$files/dev/dri"
    printf 'gfx_target_version 110000\nlocation_id 768\ndomain 0\ndrm_render_minor 128\n' >"$node/properties"
    touch "$files/dev/kfd" "$files/dev/dri/renderD128"
    cp "${ATLAS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/atlas-operator}/models/$real" "$folder"
    # Token ids of texts, which `tests/bench_cpu.py accuracy` leaves.
    cp target/bench/ids.json "$folder" 2>/dev/null || echo "no token ids: run tests/bench_cpu.py accuracy before"
    du -sh "$folder"
}

flags=(--hip-library "$PWD/$folder/libamdhip64.so.6" --system-root "$files")

run() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.mem --format=csv,noheader
    local bytes=$(($(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits) << 20))
    echo "size_in_bytes $bytes" >"$node/mem_banks/0/properties"
    echo "$bytes" >"$card/mem_info_vram_total"
    "$folder/atlas-engine" selftest "${flags[@]}"
    check
    models
    accuracy
}

# Looking a kernel up in one file after the other is answered by errors that are none.
check() {
    local tool
    for tool in memcheck racecheck synccheck initcheck; do
        command -v compute-sanitizer >/dev/null || { echo "NOT RUN: $tool, compute-sanitizer is not on PATH"; continue; }
        echo "== compute-sanitizer --tool $tool"
        compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 \
            "$folder/atlas-engine" selftest --checks-only "${flags[@]}"
    done
}

# Random weights in the shapes of the models that the project is for.
models() {
    python3 -c 'import numpy' 2>/dev/null || { echo 'NOT RUN: models, python3 has no numpy'; return; }
    local shape path decode='"kind":"decode","tokens":64'
    local tests="[{\"kind\":\"prefill\",\"depth\":0,\"sequences\":1,\"tokens\":512},
        {$decode,\"depth\":496,\"sequences\":1},{$decode,\"depth\":496,\"sequences\":4},
        {$decode,\"depth\":4080,\"sequences\":1}]"
    for shape in 13b mistral-7b; do
        path=$(mktemp -d)/$shape-q4_k_m.gguf
        python3 tests/bench_cpu.py write-model "$path" --shape "$shape" --mixture Q4_K_M
        "$folder/atlas-engine" bench --backend hip "${flags[@]}" --model "$path" --tests "$tests"
        rm -r "$(dirname "$path")"
    done
}

accuracy() {
    [ -e "$folder/$real" ] && [ -e "$folder/ids.json" ] || { echo 'NOT RUN: the real model, it was not prepared'; return; }
    python3 tests/bench_cpu.py accuracy --engine "$folder/atlas-engine" --model "$folder/$real" \
        --ids "$folder/ids.json" --card "${flags[*]}"
}

case "${1:-}" in
    prepare) prepare ;;
    run) run ;;
    *) echo "usage: tests/nvidia.sh prepare|run" >&2; exit 2 ;;
esac
