//! The real binary with `--backend hip` on the stand-in runtime.

#![cfg(feature = "hip")]
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../kernels/tests/support/mod.rs"]
mod support;

use atlas_kernels::hip::BUILT;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn library() -> PathBuf {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    support::standin(BUILT.0, &kernels, Path::new(env!("CARGO_TARGET_TMPDIR")))
}

fn selftest(settings: &str, gfx_version: u32) -> Output {
    let root = support::root(gfx_version, support::VRAM_BYTES);
    let (_folder, path) = support::standin_with(&library(), settings);
    let mut command = Command::new(env!("CARGO_BIN_EXE_atlas-engine"));
    command.args(["selftest", "--megabytes", "4", "--hip-library", &path, "--system-root"]).arg(root.path());
    command.output().unwrap()
}

#[test]
fn the_self_test_tells_the_card_its_checks_and_its_speeds_on_a_page() {
    let output = selftest("", 110_002);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for wanted in [
        "card      gfx1102 at 0000:03:00.0, 25753026560 bytes of VRAM",
        "(HIP 6.0.32830)",
        "used 1073741824 bytes, busy 42 %, junction 61 C, power 212 W",
        "checks passed",
        "matvec_q4_k 512 x 512, 4 rows",
        "attend_q8",
        " of copy",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is missing:\n{text}");
    }
}

#[test]
fn a_self_test_without_a_usable_card_ends_with_the_codes_of_the_contract() {
    for (settings, gfx_version, code, words) in [
        ("", 90_402, 20, "this build has no kernels for gfx942; it has them for gfx1100, gfx1102"),
        ("fault=hipModuleLaunchKernel:9:719", 110_000, 1, "hipErrorLaunchFailure"),
    ] {
        let output = selftest(settings, gfx_version);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(words), "{text}");
    }
}
