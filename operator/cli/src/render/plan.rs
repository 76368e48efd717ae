//! A plan as bars: weights, KV cache, overhead and what is left of each card.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use atlas_operator_core::vram::{HOST_BYTES_PER_SECOND, VramPlan, mebibytes, whole_mebibytes};

use crate::{
    plan::{ModelReport, TierReport},
    terminal::Terminal,
};

/// One part of a bar: its letter without colours, its style, its name.
const PARTS: [(char, AnsiColor, &str); 3] = [
    ('w', AnsiColor::Blue, "weights"),
    ('k', AnsiColor::Magenta, "KV cache"),
    ('o', AnsiColor::Cyan, "overhead"),
];
/// Widest bar.
const MAX_BAR: usize = 80;

/// Draws a model's plan.
pub fn render_plan(report: &ModelReport, terminal: &Terminal) -> String {
    let mut out = String::new();
    let name = match &report.namespace {
        Some(namespace) => format!("{namespace}/{}", report.model),
        None => report.model.clone(),
    };
    let verdict = match report.fits {
        Some(true) => terminal.good("every tier fits"),
        Some(false) => terminal.bad("does not fit"),
        None => terminal.warn("not every tier can be planned"),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}: {verdict}", terminal.strong(&name));
    for tier in &report.tiers {
        out.push('\n');
        render_tier(&mut out, tier, terminal);
    }
    out
}

fn render_tier(out: &mut String, tier: &TierReport, terminal: &Terminal) {
    let product = tier.product.as_deref().unwrap_or(&tier.gpu_profile);
    let _ = writeln!(out, "{} on {product}", terminal.strong(&tier.name));
    out.push_str(&terminal.wrap(&describe(tier), "  "));
    if let Some(problem) = &tier.problem {
        out.push_str(&terminal.wrap(&format!("not planned: {problem}"), "  "));
    }
    let Some(plan) = &tier.plan else { return };
    let _ = writeln!(out, "  {}", draw_bar(plan, terminal));
    for ((letter, color, name), bytes) in
        PARTS.iter().zip([plan.need.weights, plan.need.kv_cache, plan.overhead])
    {
        let key = terminal.paint(color.on_default(), &letter.to_string());
        let _ = writeln!(out, "  {key} {name:<10} {:>12}", mebibytes(bytes));
    }
    let rest = if plan.fits {
        let left = difference(plan.available, plan.required);
        let _ = writeln!(out, "  . {:<10} {left:>12}", "free");
        if plan.tight { terminal.warn("fits tightly") } else { terminal.good("fits") }
    } else {
        let _ = writeln!(out, "  ! {:<10} {:>12}", "missing", difference(plan.required, plan.available));
        terminal.bad("does not fit")
    };
    let _ = writeln!(out, "  {rest}");
    out.push_str(
        &terminal
            .wrap(&format!("{} of {} are needed", mebibytes(plan.required), mebibytes(plan.available)), "  "),
    );
    if plan.experimental {
        out.push_str(&terminal.wrap("experimental: layers on the CPU answer several times slower", "  "));
        if let Some(speed) = tier.expected_tokens_per_second {
            let memory = HOST_BYTES_PER_SECOND / 1e9;
            let text = format!(
                "one sequence should get about {speed:.1} tokens/s where the node's memory gives {memory:.0} GB/s \
                 (predicted, not measured)"
            );
            out.push_str(&terminal.wrap(&text, "  "));
        }
    }
    if plan.max_context_tokens > 0 || plan.max_batch > 0 {
        let context = format!("largest context at this batch: {}", plan.max_context_tokens);
        let batch = format!("largest batch at this context: {}", plan.max_batch);
        out.push_str(&terminal.wrap(&format!("{context}; {batch}"), "  "));
    } else if !plan.fits {
        out.push_str(&terminal.wrap("no context fits at this batch, and no batch at this context", "  "));
    }
    if !plan.advice.is_empty() {
        let _ = writeln!(out, "  any one of these makes it fit:");
        for advice in &plan.advice {
            let text = format!("{}, then {}", advice.text, mebibytes(advice.required));
            let wrapped = terminal.wrap(&text, "      ");
            let _ = write!(out, "    - {}", wrapped.trim_start());
        }
    }
}

fn describe(tier: &TierReport) -> String {
    let mut text = String::new();
    if let Some(parameters) = tier.parameters {
        let _ = write!(text, "{:.1}B weights", parameters as f64 / 1e9);
        if let Some(quantization) = &tier.quantization {
            let _ = write!(text, " as {quantization}");
        }
        text.push_str(", ");
    }
    let _ = write!(
        text,
        "context {}, batch {}, KV cache {:?}",
        tier.context_tokens, tier.max_batch, tier.kv_cache_type
    );
    text
}

/// The bar spans the card, or what is needed where that is more; `|` marks the card's end then.
fn draw_bar(plan: &VramPlan, terminal: &Terminal) -> String {
    let columns = usize::from(terminal.width).saturating_sub(4).min(MAX_BAR);
    let span = plan.available.max(plan.required).max(1);
    let column = |bytes: u64| {
        let scaled = u128::from(bytes) * columns as u128 / u128::from(span);
        usize::try_from(scaled).unwrap_or(columns).min(columns)
    };
    let mut cells = vec!['.'; columns];
    let mut begin = 0;
    let mut end_bytes = 0_u64;
    let mut styles = vec![Style::new(); columns];
    for ((letter, color, _), bytes) in
        PARTS.iter().zip([plan.need.weights, plan.need.kv_cache, plan.overhead])
    {
        end_bytes = end_bytes.saturating_add(bytes);
        let end = column(end_bytes);
        for (cell, style) in cells.iter_mut().zip(&mut styles).take(end).skip(begin) {
            *cell = *letter;
            *style = color.on_default();
        }
        begin = end;
    }
    if !plan.fits
        && let Some((cell, style)) =
            cells.iter_mut().zip(&mut styles).nth(column(plan.available).min(columns.saturating_sub(1)))
    {
        *cell = '|';
        *style = AnsiColor::Red.on_default().bold();
    }
    let mut out = String::from("[");
    let mut at = 0;
    while at < columns {
        let run = styles[at..].iter().take_while(|style| **style == styles[at]).count();
        let text: String = cells[at..at + run].iter().collect();
        out.push_str(&terminal.paint(styles[at], &text));
        at += run;
    }
    out.push(']');
    out
}

/// The difference of two amounts as they are printed, so that a table adds up.
fn difference(more: u64, less: u64) -> String {
    mebibytes(whole_mebibytes(more).saturating_sub(whole_mebibytes(less)) << 20)
}
