//! The same kernel sources for NVIDIA cards: compiled by nvcc wherever it is, and run where there is such a card.
//!
//! `ATLAS_NVCC` names the compiler; `make setup` puts one into the cache folder. Where there is none the test fails
//! and says so; `ATLAS_WITHOUT_NVCC=1` leaves it out on purpose. `ATLAS_NVIDIA_FOLDER` names a folder that takes the
//! compiled kernels and the runtime over NVIDIA's driver, for a machine with a card and without compilers.

#![cfg(feature = "hip")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use atlas_kernels::hip::{BUILT, HipError, Options, selftest};
use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// H100 and H200.
const TARGET: &str = "-arch=sm_90";

/// Sums are contracted where the source says so, as on AMD cards.
const ARGUMENTS: [&str; 9] =
    ["-x", "cu", "-std=c++17", "-O3", "-fmad=false", "-Werror", "all-warnings", TARGET, "-cubin"];

/// Nothing where the check is left out on purpose.
fn nvcc() -> Option<PathBuf> {
    if env::var_os("ATLAS_WITHOUT_NVCC").is_some() {
        println!("LEFT OUT: ATLAS_WITHOUT_NVCC is set, so no kernel was compiled for NVIDIA cards");
        return None;
    }
    let cache = env::var_os("ATLAS_CACHE").map(PathBuf::from);
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/atlas-operator"));
    let installed = cache.or_else(home).unwrap_or_default().join("nvcc/nvidia/cu13/bin/nvcc");
    let nvcc = env::var_os("ATLAS_NVCC").map_or(installed, PathBuf::from);
    assert!(
        nvcc.exists(),
        "{} is missing: make setup installs it, ATLAS_NVCC names another, ATLAS_WITHOUT_NVCC=1 leaves the check out",
        nvcc.display()
    );
    Some(nvcc)
}

fn sources(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|found| found == ending)).collect();
    files.sort();
    files
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text =
        || [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).join("\n");
    assert!(output.status.success(), "{command:?}: {}", text());
}

/// The folder with a cubin of every kernel file and the runtime beside them; made anew when a source has changed.
fn build(nvcc: &Path) -> PathBuf {
    let shared = ["hip", "tests/cuda"].map(|folder| sources(folder, "h")).concat();
    let files = [shared, sources("hip", "hip"), sources("tests/cuda", "cpp")].concat();
    let newest = files.iter().map(|file| fs::metadata(file).unwrap().modified().unwrap()).max().unwrap();
    let given = env::var_os("ATLAS_NVIDIA_FOLDER").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvidia"));
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let is_new = |file: &Path| fs::metadata(file).is_ok_and(|made| made.modified().unwrap() > newest);
    let library = folder.join("libamdhip64.so.6");
    if !is_new(&library) {
        let source = sources("tests/cuda", "cpp");
        let flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-o"];
        run(Command::new(BUILT.0).args(flags).arg(&library).args(source));
    }
    let queue = Mutex::new(sources("hip", "hip").into_iter());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(source) = queue.lock().unwrap().next() else { break };
                    let name = source.file_stem().unwrap().to_str().unwrap();
                    let (cubin, part) =
                        (folder.join(format!("{name}.cubin")), folder.join(format!("{name}.part")));
                    if !is_new(&cubin) {
                        run(Command::new(nvcc).args(ARGUMENTS).arg("-o").arg(&part).arg(&source));
                        fs::rename(&part, &cubin).unwrap();
                    }
                }
            });
        }
    });
    folder
}

#[test]
fn every_kernel_compiles_for_nvidia_cards_too() {
    let Some(nvcc) = nvcc() else { return };
    let folder = build(&nvcc);
    let cubins: Vec<Vec<u8>> = sources("hip", "hip")
        .iter()
        .map(|source| fs::read(folder.join(source.file_stem().unwrap()).with_extension("cubin")).unwrap())
        .collect();
    // The kernels of the table of figures of the AMD objects.
    let table = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/isa.tsv")).unwrap();
    let names: BTreeSet<&str> = table.lines().skip(2).filter_map(|line| line.split('\t').next()).collect();
    assert!(names.len() > 90, "{}", names.len());
    for name in names {
        // A symbol of a cubin's string table, its section of code.
        let symbol = format!("\0.text.{name}\0");
        let holds = |cubin: &Vec<u8>| cubin.windows(symbol.len()).any(|bytes| bytes == symbol.as_bytes());
        assert!(cubins.iter().any(holds), "no cubin holds {name}");
    }
}

/// With a card every check of the self-test; without one, the same calls up to the driver that is missing.
#[test]
fn the_self_test_runs_on_an_nvidia_card_where_there_is_one() {
    let Some(nvcc) = nvcc() else { return };
    let folder = build(&nvcc);
    let root = support::root(110_000, support::VRAM_BYTES);
    let library = folder.join("libamdhip64.so.6").to_str().unwrap().to_owned();
    let options = Options { root: root.path().to_owned(), library: Some(library), ..Options::new() };
    let mut failed = Vec::new();
    let ran = selftest::run(&options, 1, &mut |check| {
        if !check.passed() {
            failed.push(format!("{}: {:.2e}, at most {:.2e}", check.name, check.error, check.tolerance));
        }
    });
    if Path::new("/dev/nvidiactl").exists() {
        ran.unwrap();
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    } else {
        println!("NOT RUN: there is no NVIDIA card here, so the kernels were compiled for one and no more");
        let error = ran.unwrap_err();
        assert!(matches!(&error, HipError::Call { call: "hipInit", .. }), "{error}");
    }
}
