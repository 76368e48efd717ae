//! A sweep as a table.

use std::fmt::Write as _;

use comfy_table::{Table, presets};

use crate::{bench::BenchReport, terminal::Terminal};

/// Draws the figures of a sweep.
pub fn render_bench(report: &BenchReport, terminal: &Terminal) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{} at {}", terminal.strong(&report.model), report.url);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_width(terminal.width);
    table.set_header([
        "at once",
        "answered",
        "failed",
        "tokens/s",
        "first token ms",
        "between tokens ms",
        "answer ms",
        "tiers",
    ]);
    let pair = |millis: &Option<_>| -> String { millis.as_ref().map_or("-".to_owned(), show_millis) };
    for level in &report.levels {
        let tiers: Vec<String> = level.tiers.iter().map(|(tier, count)| format!("{tier} {count}")).collect();
        table.add_row([
            level.concurrency.to_string(),
            level.answered.to_string(),
            level.failed.to_string(),
            format!("{:.1}", level.tokens_per_second),
            pair(&level.first_token_millis),
            pair(&level.inter_token_millis),
            pair(&level.answer_millis),
            tiers.join(", "),
        ]);
    }
    for line in table.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
    let _ = writeln!(out, "{}", terminal.faint("times are p50 / p95, as this client saw them"));
    for level in &report.levels {
        if let Some(failure) = &level.first_failure {
            let text = format!("{} at once: {failure}", level.concurrency);
            let _ = write!(out, "{} {}", terminal.bad("!"), terminal.wrap(&text, "  ").trim_start());
        }
    }
    out
}

fn show_millis(millis: &crate::bench::Millis) -> String {
    format!("{:.0} / {:.0}", millis.p50, millis.p95)
}
