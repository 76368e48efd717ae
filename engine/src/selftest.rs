//! `atlas-engine selftest`: every kernel against its reference on the card, and the memory's speed, on one page.

use crate::config::SelfTest;
use crate::error::Fatal;
use atlas_kernels::hip::predict::report;
use atlas_kernels::hip::selftest::{self, Check, Speed, Work};
use atlas_kernels::hip::{Health, Options};
use std::fmt::Write;

/// Checks and measures; the answer is the page.
///
/// # Errors
/// There is no card, a call fails, or a kernel is wrong; the page is printed in the last case too.
pub fn selftest(arguments: &SelfTest, print: impl Fn(&str)) -> Result<(), Fatal> {
    if arguments.model_only {
        print(&report());
        return Ok(());
    }
    let options = Options {
        root: arguments.hip.system_root.clone(),
        library: arguments.hip.hip_library.clone(),
        ..Options::new()
    };
    let mut checks = Vec::new();
    let machine = selftest::run(&options, &mut |check| checks.push(check))?;
    let (major, minor, patch) = machine.runtime;
    let mut page = String::new();
    let card = &machine.card;
    let mut line = |text: String| {
        page.push_str(&text);
        page.push('\n');
    };
    line(format!("atlas-engine {} selftest", env!("CARGO_PKG_VERSION")));
    line(format!("card      {} at {}, {} bytes of VRAM", card.gfx_target, card.pci_address, card.vram_bytes));
    line(format!("runtime   {} (HIP {major}.{minor}.{patch})", machine.library));
    line(format!("sensors   {}", sensors(&Health::read(card))));
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.passed()).collect();
    line(format!("kernels   {} of {} checks passed", checks.len() - failed.len(), checks.len()));
    for check in &failed {
        line(format!("  WRONG   {}: error {:.3e}, at most {:.3e}", check.name, check.error, check.tolerance));
    }
    print(&page);
    if !arguments.checks_only {
        print(&speeds(&options, arguments.megabytes)?);
    }
    let (failed, checks) = (failed.len(), checks.len());
    if failed > 0 { Err(Fatal::SelfTest { failed, checks }) } else { Ok(()) }
}

fn sensors(health: &Health) -> String {
    let Health { vram_used_bytes, busy_percent, junction_celsius, memory_celsius, watts } = health;
    let mut text = String::new();
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(text, "{}{name} {value}", if text.is_empty() { "" } else { ", " });
        }
    };
    add("used", vram_used_bytes.map(|bytes| format!("{bytes} bytes")));
    add("busy", busy_percent.map(|percent| format!("{percent} %")));
    add("junction", junction_celsius.map(|celsius| format!("{celsius:.0} C")));
    add("memory", memory_celsius.map(|celsius| format!("{celsius:.0} C")));
    add("power", watts.map(|watts| format!("{watts:.0} W")));
    if text.is_empty() { "none".to_owned() } else { text }
}

/// The table of speeds, each with its share of the copy's.
fn speeds(options: &Options, megabytes: Option<u64>) -> Result<String, Fatal> {
    let mut work = Work::CARD;
    if let Some(megabytes) = megabytes {
        work.bytes = megabytes << 20;
        // Small weights, so that several fit.
        work.side = if megabytes < 100 { 512 } else { work.side };
        work.context = if megabytes < 100 { 256 } else { work.context };
    }
    let mut speeds: Vec<Speed> = Vec::new();
    selftest::measure(options, work, &mut |speed| speeds.push(speed))?;
    let whole = speeds.first().map_or(f64::NAN, Speed::gigabytes_per_second);
    let mut text = format!("speed     fastest of {} runs over {} MiB\n", work.runs, work.bytes >> 20);
    for speed in &speeds {
        let rate = speed.gigabytes_per_second();
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {:<44} {rate:>8.1} GB/s  {:>5.2} of copy", speed.name, rate / whole);
    }
    Ok(text)
}
