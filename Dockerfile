# syntax=docker/dockerfile:1.7

# The three images of Atlas Operator:
#   docker build --target operator   -t ghcr.io/gillsystems/atlas-operator:0.1.0 .
#   docker build --target engine-cpu -t ghcr.io/gillsystems/atlas-engine-cpu:0.1.0 .
#   docker build --target engine-hip -t ghcr.io/gillsystems/atlas-engine-hip:0.1.0 .
# All run as 65532 with a read-only root; the manifests set `args` only.

ARG RUST=1.95.0
ARG UBUNTU=22.04
# The release that the hardware guide validates, on the Ubuntu it validates it on.
ARG ROCM=6.0.2

FROM rust:${RUST}-bookworm AS rust

# Built on the older glibc of Ubuntu 22.04, so that one binary runs there and on Debian 12.
FROM ubuntu:${UBUNTU} AS build
ARG RUST
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo
# RUSTUP_TOOLCHAIN keeps rustup from fetching what rust-toolchain.toml asks of a developer's machine.
# The path prefixes are the same on every machine, so the same sources give the same binaries.
ENV RUSTUP_HOME=/usr/local/rustup \
    CARGO_HOME=/usr/local/cargo \
    PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    RUSTUP_TOOLCHAIN=${RUST} \
    RUSTFLAGS="--remap-path-prefix=/src=atlas --remap-path-prefix=/usr/local/cargo=cargo" \
    SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .

FROM build AS build-operator
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --package atlas-operator --bin atlas-operator \
 && install -D --mode=0755 target/release/atlas-operator /out/atlas-operator

FROM build AS build-engine
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked --package atlas-engine --bin atlas-engine \
 && install -D --mode=0755 target/release/atlas-engine /out/atlas-engine

# The same with the kernels for AMD cards, which ROCm's clang compiles; ROCm's own runtime is not linked.
FROM rocm/dev-ubuntu-22.04:${ROCM} AS build-engine-hip
ARG RUST
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo
ENV RUSTUP_HOME=/usr/local/rustup \
    CARGO_HOME=/usr/local/cargo \
    PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    RUSTUP_TOOLCHAIN=${RUST} \
    ATLAS_HIP_CLANG=/opt/rocm/llvm/bin/clang++ \
    RUSTFLAGS="--remap-path-prefix=/src=atlas --remap-path-prefix=/usr/local/cargo=cargo" \
    SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,id=hip,sharing=locked \
    cargo build --release --locked --package atlas-engine --features hip --bin atlas-engine \
 && install -D --mode=0755 target/release/atlas-engine /out/atlas-engine

# The HIP runtime and what it links to, less glibc: some 200 MB instead of the many GB of a ROCm image.
# A library that is not there fails the build, but for librocprofiler-register, which only newer releases have.
FROM rocm/dev-ubuntu-22.04:${ROCM} AS hip-runtime
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN mkdir -p /runtime/lib /runtime/share/libdrm \
 && for name in libamdhip64 libamd_comgr libhsa-runtime64; do cp -a /opt/rocm/lib/"$name".so* /runtime/lib/; done \
 && find /opt/rocm/lib -maxdepth 1 -name 'librocprofiler-register.so*' -exec cp -a {} /runtime/lib/ ';' \
 && find /runtime/lib -type f -exec ldd {} ';' \
    | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u \
    | { grep -Ev '/(ld-linux.*|libc|libm|libdl|libpthread|librt)\.so' || true; } \
    | while read -r library; do \
        [ -e "/runtime/lib/$(basename "$library")" ] || cp -L "$library" /runtime/lib/; \
      done \
 && ls /runtime/lib/libdrm.so* /runtime/lib/libdrm_amdgpu.so* /runtime/lib/libnuma.so* /runtime/lib/libelf.so* \
 && find / -xdev -name amdgpu.ids -not -path '/runtime/*' -exec cp {} /runtime/share/libdrm/ ';' -quit

FROM gcr.io/distroless/cc-debian12:nonroot AS operator
LABEL org.opencontainers.image.source="https://github.com/gillsystems/atlas-operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.title="atlas-operator"
COPY --from=build-operator /out/atlas-operator /usr/local/bin/atlas-operator
COPY LICENSE /licenses/LICENSE
USER 65532:65532
EXPOSE 8080 8081 8082
ENTRYPOINT ["/usr/local/bin/atlas-operator"]

FROM gcr.io/distroless/cc-debian12:nonroot AS engine-cpu
LABEL org.opencontainers.image.source="https://github.com/gillsystems/atlas-operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.title="atlas-engine-cpu"
COPY --from=build-engine /out/atlas-engine /usr/local/bin/atlas-engine
COPY LICENSE /licenses/LICENSE
USER 65532:65532
EXPOSE 8000 8001
ENTRYPOINT ["/usr/local/bin/atlas-engine"]

FROM ubuntu:${UBUNTU} AS engine-hip
LABEL org.opencontainers.image.source="https://github.com/gillsystems/atlas-operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.title="atlas-engine-hip"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=hip-runtime /runtime/lib /opt/rocm/lib
COPY --from=hip-runtime /runtime/share/libdrm /opt/amdgpu/share/libdrm
COPY --from=build-engine-hip /out/atlas-engine /usr/local/bin/atlas-engine
COPY LICENSE /licenses/LICENSE
ENV LD_LIBRARY_PATH=/opt/rocm/lib
USER 65532:65532
EXPOSE 8000 8001
ENTRYPOINT ["/usr/local/bin/atlas-engine"]
