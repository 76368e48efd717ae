#!/usr/bin/env bash
# The kernels on an NVIDIA card: every check of the self-test, then the share of the memory's bandwidth that each
# decode kernel takes. The same sources as for AMD cards; what differs is tests/cuda of the kernels' crate.
#
#   tests/nvidia.sh prepare   where cargo and nvcc are (make setup): fills target/nvidia, which needs neither
#   tests/nvidia.sh run       where the card is: prints the page of `atlas-engine selftest`
set -euo pipefail
cd "$(dirname "$0")/.."
folder=target/nvidia

prepare() {
    cargo build --workspace --bins --features atlas-engine/hip
    ATLAS_NVIDIA_FOLDER="$PWD/$folder" cargo test --workspace --features atlas-engine/hip --test hip_cuda
    strip -o "$folder/atlas-engine" target/debug/atlas-engine
    # The files of the driver of an AMD card, which the engine looks at first; the runtime answers for that card.
    local node=$folder/files/sys/class/kfd/kfd/topology/nodes/1 card=$folder/files/sys/bus/pci/devices/0000:03:00.0
    mkdir -p "$node/mem_banks/0" "$card" "$folder/files/dev/dri"
    printf 'gfx_target_version 110000\nlocation_id 768\ndomain 0\ndrm_render_minor 128\n' >"$node/properties"
    echo 'size_in_bytes 25753026560' >"$node/mem_banks/0/properties"
    echo 25753026560 >"$card/mem_info_vram_total"
    touch "$folder/files/dev/kfd" "$folder/files/dev/dri/renderD128"
    du -sh "$folder"
}

selftest() { "$@" "$folder/atlas-engine" selftest --hip-library "$PWD/$folder/libamdhip64.so.6" --system-root "$folder/files"; }

run() {
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.mem --format=csv,noheader
    selftest env
    if command -v compute-sanitizer >/dev/null; then
        compute-sanitizer --error-exitcode 1 "$folder/atlas-engine" selftest --checks-only \
            --hip-library "$PWD/$folder/libamdhip64.so.6" --system-root "$folder/files"
    else
        echo 'NOT RUN: compute-sanitizer is not on PATH'
    fi
}

case "${1:-}" in
    prepare) prepare ;;
    run) run ;;
    *) echo "usage: tests/nvidia.sh prepare|run" >&2; exit 2 ;;
esac
