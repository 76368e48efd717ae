//! Every kernel's CPU twin against its reference, in every thread order, through the real loading and launching code.

#![cfg(feature = "hip")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use atlas_kernels::hip::selftest::{self, Amount};
use atlas_kernels::hip::{BUILT, Options};
use std::env;
use std::path::Path;
use std::process::Command;

fn options(root: &Path) -> Options {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = support::standin(BUILT.0, kernels, Path::new(env!("CARGO_TARGET_TMPDIR")));
    let (root, library) = (root.to_owned(), Some(library.to_str().unwrap().to_owned()));
    Options { root, library, ..Options::new() }
}

#[test]
fn every_kernel_equals_its_reference() {
    let root = support::root(110_000, support::VRAM_BYTES);
    let (mut checks, mut failed) = (0, Vec::new());
    let seed =
        env::var("ATLAS_SEED").map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("random shapes by ATLAS_SEED={seed}");
    let machine = selftest::run(&options(root.path()), seed, &mut |check| {
        checks += 1;
        if !check.passed() {
            failed.push(format!("{}: {:.2e}, at most {:.2e}", check.name, check.error, check.tolerance));
        }
    });
    assert_eq!(machine.unwrap().card.gfx_target, "gfx1100");
    assert!(failed.is_empty(), "{} of {checks}:\n{}", failed.len(), failed.join("\n"));
    assert!(checks > 300, "{checks}");
}

/// The stand-in reads its orders when it is loaded, so each order is a process of its own.
#[test]
fn no_kernel_depends_on_the_order_of_its_threads() {
    for order in ["reverse", "shuffled"] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_kernel_equals_its_reference"])
            .env("ATLAS_STANDIN", format!("order={order};seed=5"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{order}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn speeds_are_measured_for_every_format_and_cache() {
    let root = support::root(110_000, support::VRAM_BYTES);
    let mut speeds = Vec::new();
    selftest::measure(&options(root.path()), selftest::Work::SMALL, &mut |speed| speeds.push(speed)).unwrap();
    // The copy; decode for 1, 2, 4 and 8 rows and three groups of heads; prefill.
    assert_eq!(speeds.len(), 1 + 13 * 4 + 2 * 3 + 13 + 2);
    for speed in speeds {
        let (Amount::Bytes(amount) | Amount::Operations(amount)) = speed.amount;
        assert!(amount > 0 && speed.milliseconds.is_finite() && speed.milliseconds >= 0.0, "{speed:?}");
    }
}
