//! `atlas-engine selftest`: every kernel against its reference on the card, and the memory's speed, on one page.

use crate::backend::any_card;
use crate::config::SelfTest;
use crate::error::Fatal;
use atlas_kernels::hip::predict::{CardLimits, report};
use atlas_kernels::hip::selftest::{self, Amount, Check, Speed, Work};
use atlas_kernels::hip::{Card, Health, Options};
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
    let options = any_card(&arguments.hip);
    let mut checks = Vec::new();
    let machine = selftest::run(&options, arguments.seed, &mut |check| checks.push(check))?;
    let (major, minor, patch) = machine.runtime;
    let mut page = String::new();
    let card = &machine.card;
    let mut line = |text: String| {
        page.push_str(&text);
        page.push('\n');
    };
    line(format!("atlas-engine {} selftest", env!("CARGO_PKG_VERSION")));
    line(format!("card      {} at {}, {} bytes of VRAM", card.gfx_target, card.pci_address, card.vram_bytes));
    if let Some(name) = &machine.name {
        line(format!("name      {name}"));
    }
    line(format!("runtime   {} (HIP {major}.{minor}.{patch})", machine.library));
    line(format!("sensors   {}", sensors(&Health::read(card))));
    let failed: Vec<&Check> = checks.iter().filter(|check| !check.passed()).collect();
    line(format!("kernels   {} of {} checks passed", checks.len() - failed.len(), checks.len()));
    for check in &failed {
        line(format!("  WRONG   {}: error {:.3e}, at most {:.3e}", check.name, check.error, check.tolerance));
    }
    print(&page);
    if !arguments.checks_only {
        print(&speeds(&options, &machine.card, arguments.megabytes)?);
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

/// The tables of speeds: bytes with their share of the copy's, operations with that of the data sheet's.
fn speeds(options: &Options, card: &Card, megabytes: Option<u64>) -> Result<String, Fatal> {
    let work = match megabytes {
        None => Work::CARD,
        // Small weights, so that several fit.
        Some(megabytes) if megabytes < 100 => Work { bytes: megabytes << 20, ..Work::SMALL },
        Some(megabytes) => Work { bytes: megabytes << 20, ..Work::CARD },
    };
    let mut speeds: Vec<Speed> = Vec::new();
    selftest::measure(options, work, &mut |speed| speeds.push(speed))?;
    Ok(table(work, CardLimits::of(&card.gfx_target, card.vram_bytes), &speeds))
}

fn table(work: Work, limits: Option<CardLimits>, speeds: &[Speed]) -> String {
    let Work { bytes, hidden, feed_forward, context, runs, .. } = work;
    let mut text = format!(
        "speed     matrices of a layer {hidden} and {feed_forward} wide as one run, over {} MiB of distinct weights \
         or more; caches of {context} positions; fastest of {runs}\n",
        bytes >> 20
    );
    let Some((copy, kernels)) = speeds.split_first() else { return text };
    let copied = copy.giga_per_second();
    let of_sheet = limits.map(|limits| copied / limits.gigabytes_per_second);
    let of_sheet = of_sheet.map(|share| format!(", {share:.2} of the data sheet's")).unwrap_or_default();
    // Writing to a string does not fail.
    let _ = writeln!(text, "  {}, {}: {copied:.1} GB/s{of_sheet}", copy.kernel, copy.variant);
    let mut columns: Vec<&str> = Vec::new();
    for rows in kernels.chunk_by(|one, next| one.kernel == next.kernel) {
        let variants: Vec<&str> = rows.iter().map(|speed| speed.variant.as_str()).collect();
        if variants != columns {
            let unit = match rows[0].amount {
                Amount::Bytes(_) => "GB/s (share of the copy's)",
                Amount::Operations(_) if limits.is_some() => "TFLOP/s (share of the data sheet's)",
                Amount::Operations(_) => "TFLOP/s",
            };
            let _ = write!(text, "  {unit:36}");
            for variant in &variants {
                let _ = write!(text, " {variant:>14}");
            }
            text.push('\n');
            columns = variants;
        }
        let _ = write!(text, "  {:36}", rows[0].kernel);
        for speed in rows {
            let rate = speed.giga_per_second();
            let cell = match speed.amount {
                Amount::Bytes(_) => format!("{rate:.0} ({:.2})", rate / copied),
                Amount::Operations(_) => {
                    let share = limits.map(|limits| format!(" ({:.2})", rate / 1e3 / limits.teraflops));
                    format!("{:.1}{}", rate / 1e3, share.unwrap_or_default())
                }
            };
            let _ = write!(text, " {cell:>14}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_kernels::hip::predict::RX_7900_XTX;

    #[test]
    fn speeds_stand_in_tables_with_their_shares() {
        let speed = |kernel: &str, variant: &str, amount, milliseconds| Speed {
            kernel: kernel.to_owned(),
            variant: variant.to_owned(),
            amount,
            milliseconds,
        };
        let speeds = [
            speed("copy", "read and written", Amount::Bytes(480_000_000), 1.0),
            speed("matvec_q4_k", "1 row", Amount::Bytes(240_000_000), 1.0),
            speed("matvec_q4_k", "2 rows", Amount::Bytes(240_000_000), 2.0),
            speed("matvec_q6_k", "1 row", Amount::Bytes(480_000_000), 1.5),
            speed("matvec_q6_k", "2 rows", Amount::Bytes(480_000_000), 2.0),
            speed("matmul_q4_k", "512 rows", Amount::Operations(61_400_000_000), 1.0),
        ];
        let known = table(Work::CARD, Some(RX_7900_XTX), &speeds);
        let lines: Vec<String> =
            known.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "copy, read and written: 480.0 GB/s, 0.50 of the data sheet's",
                "GB/s (share of the copy's) 1 row 2 rows",
                "matvec_q4_k 240 (0.50) 120 (0.25)",
                "matvec_q6_k 320 (0.67) 240 (0.50)",
                "TFLOP/s (share of the data sheet's) 512 rows",
                "matmul_q4_k 61.4 (0.50)",
            ]
        );
        let unknown = table(Work::CARD, None, &speeds);
        assert!(unknown.contains("480.0 GB/s\n") && unknown.contains(" 61.4\n"), "{unknown}");
    }
}
