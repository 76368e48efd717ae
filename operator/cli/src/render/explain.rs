//! A node on a terminal.

use std::fmt::Write as _;

use crate::{explain::NodeReport, terminal::Terminal};

/// Draws what is known of a node.
pub fn render_node(report: &NodeReport, terminal: &Terminal) -> String {
    let mut out = String::new();
    let ready = if report.ready { terminal.good("ready") } else { terminal.bad("not ready") };
    let cordoned = if report.schedulable { String::new() } else { terminal.warn(", cordoned") };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}: {ready}{cordoned}", terminal.strong(&report.node));
    let mut section = |title: &str, lines: Vec<String>, none: &str| {
        let _ = writeln!(out, "\n{}", terminal.strong(title));
        if lines.is_empty() {
            let _ = writeln!(out, "  {}", terminal.faint(none));
        }
        for line in lines {
            out.push_str(&line);
        }
    };
    let plain = |text: &String| terminal.wrap(text, "  ");
    section("Labels of the AMD node labeller", report.labels.iter().map(plain).collect(), "none");
    let resources = report.resources.iter().map(|resource| {
        terminal.wrap(
            &format!(
                "{}: {} of {} can be handed out",
                resource.name, resource.allocatable, resource.capacity
            ),
            "  ",
        )
    });
    section("Extended resources", resources.collect(), "none: the AMD device plugin is not there");
    let profiles = report.profiles.iter().map(|profile| {
        let mark = if profile.matches { terminal.good("+") } else { terminal.faint("-") };
        let text = terminal.wrap(&format!("{}: {}", profile.profile, profile.reason), "    ");
        format!("  {mark} {}", text.trim_start())
    });
    section("GpuProfiles", profiles.collect(), "there are none");
    section("Engines on it", report.engines.iter().map(plain).collect(), "none");
    if !report.problems.is_empty() {
        let problems = report.problems.iter().map(|problem| {
            let text = terminal.wrap(problem, "    ");
            format!("  {} {}", terminal.bad("!"), text.trim_start())
        });
        section("Problems", problems.collect(), "");
    }
    out
}
