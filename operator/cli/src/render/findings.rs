//! Findings of the doctor on a terminal.

use std::fmt::Write as _;

use crate::{
    doctor::{Report, Severity},
    terminal::Terminal,
};

/// Draws findings, the remedy below each.
pub fn render_findings(report: &Report, terminal: &Terminal) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}", terminal.strong(&report.about));
    for finding in &report.findings {
        let mark = match finding.severity {
            Severity::Well => terminal.good("ok  "),
            Severity::Warning => terminal.warn("warn"),
            Severity::Broken => terminal.bad("bad "),
            Severity::Unknown => terminal.faint("?   "),
        };
        let text = terminal.wrap(&format!("{}: {}", finding.check, finding.found), "       ");
        let _ = write!(out, "  {mark} {}", text.trim_start());
        if let Some(remedy) = &finding.remedy {
            out.push_str(&terminal.wrap(&format!("-> {remedy}"), "         "));
        }
    }
    out
}
