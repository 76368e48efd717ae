//! What the compiler made of the kernels: registers, LDS, spills, occupancy, dot4 and WMMA instructions.
//!
//! The figures stand in tests/isa.tsv, so that a change shows in review; `ATLAS_UPDATE=1` writes them anew. They are
//! those of clang 16; with another compiler only the rules are checked.

#![cfg(feature = "hip")]
#![allow(clippy::unwrap_used, clippy::panic)]

use atlas_kernels::hip::BUILT;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One kernel on one target.
#[derive(Debug, Default, Clone, PartialEq)]
struct Figures {
    vgprs: u32,
    sgprs: u32,
    lds: u32,
    scratch: u32,
    spills: u32,
    threads: u32,
    dot4: usize,
    wmma: usize,
    /// Instructions of the longest loop.
    longest: usize,
}

/// Vector registers a SIMD has for each lane of a wave, and how many are given out at once (LLVM's AMDGPU tables).
const REGISTERS: [(&str, u32, u32); 2] = [("gfx1100", 1536, 24), ("gfx1102", 1024, 16)];
/// LDS of a compute unit, which has two SIMDs.
const LDS_BYTES: u32 = 64 << 10;
const MOST_WAVES: u32 = 16;

impl Figures {
    /// Waves that a SIMD holds at once: limited by registers and by LDS.
    fn occupancy(&self, target: &str) -> u32 {
        let (_, registers, granule) = REGISTERS.iter().find(|(name, ..)| *name == target).unwrap();
        let by_registers = registers / self.vgprs.max(1).next_multiple_of(*granule);
        let waves = self.threads / 32;
        let by_lds = LDS_BYTES.checked_div(self.lds).map_or(MOST_WAVES, |groups| groups * waves / 2);
        by_registers.min(by_lds).min(MOST_WAVES)
    }
}

/// The tool that goes with the compiler: `clang++-16` has `llvm-objdump-16`, and a path has it in its folder.
fn tool(name: &str) -> String {
    match (BUILT.0.rsplit_once('/'), BUILT.0.rsplit_once('-')) {
        (Some((folder, _)), _) => format!("{folder}/{name}"),
        (None, Some((_, version))) => format!("{name}-{version}"),
        (None, None) => name.to_owned(),
    }
}

fn run(tool: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(tool).args(arguments).arg(file).output().unwrap();
    assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// All kernels of one object, by name.
fn figures(file: &Path, readelf: &str, objdump: &str) -> BTreeMap<String, Figures> {
    let mut kernels = BTreeMap::new();
    let (mut now, mut name) = (Figures::default(), None);
    for line in run(readelf, &["--notes"], file).lines() {
        let line = line.trim().trim_start_matches("- ");
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let number = || value.parse().unwrap();
        match key {
            ".args" => (now, name) = (Figures::default(), None),
            ".group_segment_fixed_size" => now.lds = number(),
            ".private_segment_fixed_size" => now.scratch = number(),
            ".max_flat_workgroup_size" => now.threads = number(),
            ".sgpr_count" => now.sgprs = number(),
            ".vgpr_count" => now.vgprs = number(),
            ".sgpr_spill_count" | ".vgpr_spill_count" => now.spills += number(),
            ".name" => name = Some(value.to_owned()),
            // The last key of a kernel.
            ".wavefront_size" => {
                assert_eq!(number(), 32, "{file:?}");
                kernels.insert(name.clone().unwrap(), now.clone());
            }
            _ => {}
        }
    }
    let (mut name, mut addresses) = (String::new(), Vec::new());
    for line in run(objdump, &["-d", "--no-show-raw-insn"], file).lines() {
        if let Some(symbol) = line.strip_suffix(">:").and_then(|line| line.split('<').nth(1)) {
            name = symbol.to_owned();
            addresses.clear();
        } else if let Some(kernel) = kernels.get_mut(&name) {
            let Some((text, address)) = line.rsplit_once("// ") else { continue };
            let address = address.split(':').next().unwrap_or_default();
            addresses.push(u64::from_str_radix(address, 16).unwrap());
            kernel.longest = kernel.longest.max(loop_length(text, &addresses));
            kernel.dot4 += usize::from(line.contains("v_dot4_i32_iu8"));
            kernel.wmma += usize::from(line.contains("v_wmma_f32_16x16x16_f16"));
        }
    }
    kernels
}

/// Instructions from where a backward branch leads to the branch, the last of the addresses; 0 for all others.
fn loop_length(text: &str, addresses: &[u64]) -> usize {
    let mut words = text.split_whitespace();
    let branches = words.next().is_some_and(|name| name.starts_with("s_cbranch") || name == "s_branch");
    let offset = words.next().and_then(|word| word.parse::<u16>().ok()).map(|offset| offset as i16);
    match (offset, addresses.last()) {
        (Some(offset), Some(last)) if branches && offset < 0 => {
            let target = last.wrapping_add_signed(4 + 4 * i64::from(offset));
            addresses.iter().filter(|address| **address >= target).count()
        }
        _ => 0,
    }
}

#[test]
fn kernels_use_the_registers_and_instructions_that_they_are_meant_to() {
    let (readelf, objdump) = (tool("llvm-readelf"), tool("llvm-objdump"));
    let mut table = String::from(
        "# clang 16. Waves are those a SIMD holds at once, at most 16.\n\
         kernel\ttarget\tvgprs\tsgprs\tlds\tspills\twaves\tdot4\twmma\tloop\n",
    );
    let mut objects: Vec<PathBuf> = fs::read_dir(BUILT.1)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|file| file.extension().is_some_and(|extension| extension == "co"))
        .collect();
    objects.sort();
    let mut seen = 0;
    for file in &objects {
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let (_, target) = stem.split_once('.').unwrap();
        for (name, kernel) in figures(file, &readelf, &objdump) {
            seen += 1;
            check(&name, target, &kernel);
            let waves = kernel.occupancy(target);
            let Figures { vgprs, sgprs, lds, spills, dot4, wmma, longest, .. } = kernel;
            let registers = format!("{vgprs}\t{sgprs}\t{lds}\t{spills}\t{waves}");
            writeln!(table, "{name}\t{target}\t{registers}\t{dot4}\t{wmma}\t{longest}").unwrap();
        }
    }
    // 13 formats in 6 kernels, and 25 others, on two targets.
    assert!(seen >= 2 * (13 * 6 + 20), "{seen} kernels in {}", BUILT.1);
    let version = Command::new(BUILT.0).arg("-dumpversion").output().unwrap().stdout;
    if !version.starts_with(b"16.") {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/isa.tsv");
    if std::env::var_os("ATLAS_UPDATE").is_some() {
        fs::write(&path, &table).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    for (found, expected) in table.lines().zip(expected.lines()) {
        assert_eq!(
            found, expected,
            "the kernels changed: run with ATLAS_UPDATE=1 and look at the difference"
        );
    }
    assert_eq!(table.lines().count(), expected.lines().count(), "kernels came or went: ATLAS_UPDATE=1");
}

/// The rules, whichever compiler it was.
fn check(name: &str, target: &str, kernel: &Figures) {
    let at = format!("{name} on {target}: {kernel:?}");
    assert_eq!((kernel.spills, kernel.scratch), (0, 0), "{at}: registers are spilled");
    let waves = kernel.occupancy(target);
    let of_floats = ["_f32", "_f16", "_bf16", "_nf4"].iter().any(|format| name.contains(format));
    let (dot4, wmma, least_waves) = match name.split('_').next().unwrap() {
        // Latency of memory is hidden by waves.
        "matvec" => (!of_floats, false, 8),
        "attend" => (false, false, 7),
        "matmul" => (false, true, 4),
        "prefill" => (false, true, 4),
        _ => (false, false, 10),
    };
    assert_eq!(kernel.dot4 > 0, dot4, "{at}: dot4 instructions");
    assert_eq!(kernel.wmma > 0, wmma, "{at}: WMMA instructions");
    assert!(waves >= least_waves, "{at}: {waves} waves, at least {least_waves} wanted");
}

/// Two builds of one source are the same bytes, wherever they are made.
#[test]
fn objects_are_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("hip");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("hip")).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, copy.join(file.file_name().unwrap())).unwrap();
    }
    let arguments = fs::read_to_string(Path::new(BUILT.1).join("arguments.txt")).unwrap();
    for (module, target) in [("norm", "gfx1100"), ("quantize", "gfx1102")] {
        let object = folder.path().join("again.co");
        let status = Command::new(BUILT.0)
            .args(arguments.lines())
            .arg(format!("--offload-arch={target}"))
            .arg("-o")
            .arg(&object)
            .arg(format!("hip/{module}.hip"))
            .current_dir(folder.path())
            .status()
            .unwrap();
        assert!(status.success());
        let first = fs::read(Path::new(BUILT.1).join(format!("{module}.{target}.co"))).unwrap();
        assert!(first == fs::read(&object).unwrap(), "{module} for {target} differs from build to build");
    }
}
