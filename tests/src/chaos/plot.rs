//! Latency across the faults as one SVG: a panel a fault, a point a request. Pure.

use std::{fmt::Write, time::Instant};

use super::{FaultSummary, Played};

const WIDTH: f64 = 900.0;
const PANEL: f64 = 190.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 28.0;
/// Seconds before and after the fault.
const SPAN: (f64, f64) = (-1.0, 4.0);

/// Draws it.
#[must_use]
pub fn render(panels: &[(FaultSummary, Played)]) -> String {
    let height = PANEL * panels.len() as f64 + 30.0;
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">
<rect width="100%" height="100%" fill="white"/>
"#
    );
    for (index, (summary, played)) in panels.iter().enumerate() {
        let title = format!("{} ({})", summary.fault, summary.place);
        // Writing into a String cannot fail.
        let _ = panel(&mut svg, PANEL * index as f64, &title, played);
    }
    let _ = writeln!(
        svg,
        r#"<text x="{LEFT}" y="{}">seconds after the fault; time to the first token, of streams (circles) and whole answers (squares), by the tier that began the answer</text>
</svg>"#,
        height - 8.0
    );
    svg
}

fn panel(svg: &mut String, top: f64, title: &str, played: &Played) -> std::fmt::Result {
    let points: Vec<(f64, f64, bool, bool)> = played
        .rounds
        .iter()
        .flat_map(|round| {
            played.samples.iter().filter_map(move |sample| {
                let at = seconds(round.fault, sample.started);
                let latency = sample.first_after()?.as_secs_f64();
                let fallback = sample.tier.as_deref() == Some("fallback");
                (SPAN.0..SPAN.1).contains(&at).then_some((at, latency, sample.streams, fallback))
            })
        })
        .collect();
    let highest = points.iter().map(|point| point.1).fold(0.1, f64::max);
    let (right, bottom) = (WIDTH - 10.0, top + PANEL - 22.0);
    let x = |at: f64| LEFT + (at - SPAN.0) / (SPAN.1 - SPAN.0) * (right - LEFT);
    let y = |latency: f64| bottom - latency / highest * (PANEL - TOP - 22.0);
    writeln!(
        svg,
        r#"<text x="{LEFT}" y="{}" font-weight="bold">{title}, {} rounds</text>"#,
        top + 16.0,
        played.rounds.len()
    )?;
    writeln!(svg, r##"<path d="M{LEFT} {} V{bottom} H{right}" fill="none" stroke="#888"/>"##, top + TOP)?;
    writeln!(
        svg,
        r##"<path d="M{0} {1} V{bottom}" stroke="#c00" stroke-dasharray="4 3"/>"##,
        x(0.0),
        top + TOP
    )?;
    for at in 0..=5 {
        let at = SPAN.0 + f64::from(at);
        writeln!(svg, r#"<text x="{}" y="{}" text-anchor="middle">{at}</text>"#, x(at), bottom + 13.0)?;
    }
    for share in [0.5, 1.0] {
        let latency = highest * share;
        writeln!(
            svg,
            r#"<text x="{}" y="{}" text-anchor="end">{:.0} ms</text>"#,
            LEFT - 5.0,
            y(latency) + 4.0,
            latency * 1e3
        )?;
    }
    for (at, latency, streams, fallback) in points {
        let color = if fallback { "#d95f02" } else { "#1b6ca8" };
        if streams {
            writeln!(
                svg,
                r#"<circle cx="{:.1}" cy="{:.1}" r="2.2" fill="{color}" fill-opacity="0.6"/>"#,
                x(at),
                y(latency)
            )?;
        } else {
            writeln!(
                svg,
                r#"<rect x="{:.1}" y="{:.1}" width="4" height="4" fill="{color}" fill-opacity="0.6"/>"#,
                x(at) - 2.0,
                y(latency) - 2.0
            )?;
        }
    }
    Ok(())
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() - from.saturating_duration_since(to).as_secs_f64()
}
