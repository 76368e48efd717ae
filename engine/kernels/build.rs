//! Compiles the HIP kernels ahead, for every card the engine knows, where feature `hip` is on; does nothing otherwise.
//!
//! Any clang from 16 on will do, Debian's or ROCm's, without ROCm's headers or device libraries. `ATLAS_HIP_CLANG`
//! names one; otherwise the usual names are tried. The objects are the same from build to build: nothing of the
//! machine, the folder or the time goes into them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// gfx targets: the RX 7900 XTX and the RX 7600.
const TARGETS: [&str; 2] = ["gfx1100", "gfx1102"];

/// Kernel files, the slowest to compile first.
const MODULES: [&str; 11] = [
    "matvec",
    "matmul",
    "prefill",
    "attend",
    "embed",
    "rope_kv",
    "norm",
    "quantize",
    "elementwise",
    "sample",
    "copy",
];

const COMPILERS: [&str; 7] = [
    "clang++-16",
    "clang++-17",
    "clang++-18",
    "clang++-19",
    "/opt/rocm/llvm/bin/clang++",
    "clang++-20",
    "clang++",
];

/// Sums are contracted where the source says so and nowhere else; infinities and NaNs are honoured.
const ARGUMENTS: [&str; 14] = [
    "-x",
    "hip",
    "--cuda-device-only",
    "-nogpuinc",
    "-nogpulib",
    "-O3",
    "-std=c++17",
    "-Wall",
    "-Wextra",
    "-Wno-missing-braces",
    "-ffp-contract=off",
    "-mcode-object-version=5",
    "-mcumode",
    "--no-gpu-bundle-output",
];

fn main() {
    println!("cargo::rerun-if-changed=hip");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ATLAS_HIP_CLANG");
    if std::env::var_os("CARGO_FEATURE_HIP").is_none() {
        return;
    }
    if let Err(reason) = build() {
        println!("cargo::error={reason}");
    }
}

fn build() -> Result<(), String> {
    let compiler = find_compiler()?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let jobs: Vec<(&str, &str)> =
        MODULES.iter().flat_map(|module| TARGETS.iter().map(move |target| (*module, *target))).collect();
    let queue = Mutex::new(jobs.iter());
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((module, target)) = queue.lock().ok().and_then(|mut jobs| jobs.next()) {
                    if let Err(reason) = compile(&compiler, module, target, &out)
                        && let Ok(mut failed) = failed.lock()
                    {
                        *failed = Some(reason);
                    }
                }
            });
        }
    });
    if let Some(reason) = failed.into_inner().ok().flatten() {
        return Err(reason);
    }
    let mut table = String::from("&[\n");
    for (module, target) in &jobs {
        let file = object(&out, module, target);
        table +=
            &format!("    ({target:?}, {module:?}, include_bytes!({:?})),\n", file.display().to_string());
    }
    table += "]\n";
    std::fs::write(out.join("objects.rs"), table)
        .map_err(|error| format!("cannot write the table: {error}"))?;
    // For the test that builds one again.
    std::fs::write(out.join("arguments.txt"), ARGUMENTS.join("\n"))
        .map_err(|error| format!("cannot write the arguments: {error}"))?;
    println!("cargo::rustc-env=ATLAS_HIP_COMPILER={compiler}");
    println!("cargo::rustc-env=ATLAS_HIP_OBJECTS={}", out.display());
    Ok(())
}

fn object(out: &Path, module: &str, target: &str) -> PathBuf {
    out.join(format!("{module}.{target}.co"))
}

fn compile(compiler: &str, module: &str, target: &str, out: &Path) -> Result<(), String> {
    // Relative to the package, so that no folder's name gets into the object.
    let output = Command::new(compiler)
        .args(ARGUMENTS)
        .arg(format!("--offload-arch={target}"))
        .arg("-o")
        .arg(object(out, module, target))
        .arg(format!("hip/{module}.hip"))
        .output()
        .map_err(|error| format!("cannot run {compiler}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().take(20).collect();
    Err(format!("hip/{module}.hip for {target}: {}", lines.join(" | ")))
}

fn find_compiler() -> Result<String, String> {
    if let Ok(compiler) = std::env::var("ATLAS_HIP_CLANG") {
        return Ok(compiler);
    }
    COMPILERS
        .into_iter()
        .find(|name| {
            let version = Command::new(name).arg("-dumpversion").output();
            let version = version.ok().and_then(|output| String::from_utf8(output.stdout).ok());
            let major = version.and_then(|text| text.trim().split('.').next()?.parse::<u32>().ok());
            major.is_some_and(|major| major >= 16)
        })
        .map(str::to_owned)
        .ok_or_else(|| {
            "feature hip needs clang 16 or later and its lld: apt-get install clang-16 lld-16, or set \
             ATLAS_HIP_CLANG; build without the feature for an engine without AMD cards"
                .to_owned()
        })
}
