//! The memory of cards that engines run on, one a line.

use atlas_operator_core::vram::mebibytes;
use std::fmt::Write as _;

use crate::{
    engines::{Card, Engine, EngineStatus, Vram},
    terminal::Terminal,
};

/// Draws what each engine tells of its card; engines on processors have none, and what cannot be asked says why.
pub fn render_cards(engines: &[(Engine, Result<EngineStatus, String>)], terminal: &Terminal) -> String {
    let mut out = String::new();
    for (engine, answer) in engines {
        let whose = format!("tier {} on {}", engine.tier, engine.node);
        let line = match answer {
            Ok(EngineStatus { card: Some(card), vram, .. }) => describe(&whose, card, vram.as_ref()),
            Ok(status) => format!("{whose}: {}, no card", status.backend),
            Err(reason) => terminal.warn(&format!("{whose}: {reason}")),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {line}");
    }
    out
}

fn describe(whose: &str, card: &Card, vram: Option<&Vram>) -> String {
    let used = vram.and_then(|vram| vram.used_bytes).map_or_else(|| "?".to_owned(), mebibytes);
    let own = vram.and_then(|vram| vram.own_peak_bytes);
    let own = own.map_or(String::new(), |bytes| format!(", at most {} by this engine", mebibytes(bytes)));
    let Card { pci_address, gfx_target, vram_bytes } = card;
    format!("{whose}: {gfx_target} at {pci_address}, {used} of {} in use{own}", mebibytes(*vram_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_shows_what_is_used_of_all_of_it() {
        let engine = |tier: &str| Engine {
            namespace: "atlas".into(),
            pod: "p".into(),
            tier: tier.into(),
            node: "n1".into(),
        };
        let card = Card {
            pci_address: "0000:03:00.0".into(),
            gfx_target: "gfx1100".into(),
            vram_bytes: 24560 << 20,
        };
        let vram =
            Vram { used_bytes: Some(20500 << 20), own_peak_bytes: Some(20000 << 20), weight_bytes: None };
        let status = EngineStatus { card: Some(card), vram: Some(vram), ..EngineStatus::default() };
        let cpu = EngineStatus { backend: "cpu".into(), ..EngineStatus::default() };
        let text = render_cards(
            &[(engine("a"), Ok(status)), (engine("b"), Ok(cpu)), (engine("c"), Err("no answer".into()))],
            &Terminal::plain(120),
        );
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                "  tier a on n1: gfx1100 at 0000:03:00.0, 20,500 MiB of 24,560 MiB in use, at most 20,000 MiB by this engine",
                "  tier b on n1: cpu, no card",
                "  tier c on n1: no answer",
            ]
        );
    }
}
