//! What an engine says about itself in `/internal/status`, as far as the gateway needs it.

use atlas_operator_core::routing::EngineReport;
use serde::{Deserialize, Serialize};

/// Peaks are told in steps, since each change of what a gateway tells is looked at by the controller.
const PEAK_STEP_BYTES: u64 = 4 << 20;

/// What does not change from one request to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// File name of the model without extension: a broken stream continues on the same one only.
    pub model_file: Option<String>,
    /// Context window in tokens, prompt and answer together.
    pub context_tokens: Option<u64>,
    /// Sequences that it generates at once.
    pub max_batch: Option<usize>,
    /// What it uses of its card, where it has one.
    pub vram: Option<MeasuredVram>,
}

/// What an engine uses of its card, for the controller's plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredVram {
    /// Target of the card.
    pub gfx_target: String,
    /// Highest use by the engine itself.
    pub own_peak_bytes: u64,
    /// Weights on the card.
    pub weight_bytes: u64,
    /// KV cache on the card.
    pub kv_cache_bytes: u64,
}

/// The answer to a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Whether the engine serves.
    pub ready: bool,
    /// Its work.
    pub report: EngineReport,
    /// The rest.
    pub facts: EngineFacts,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    ready: bool,
    model_file: Option<String>,
    context_tokens: Option<u64>,
    max_batch: Option<usize>,
    #[serde(default)]
    queue: Queue,
    #[serde(default)]
    progress: Progress,
    card: Option<Card>,
    vram: Option<Vram>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Card {
    gfx_target: String,
}

/// Absent figures are those of an engine that is still loading, or whose driver does not tell.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Vram {
    own_peak_bytes: Option<u64>,
    weight_bytes: Option<u64>,
    kv_cache_bytes: Option<u64>,
}

impl Vram {
    fn measured(&self, card: Card) -> Option<MeasuredVram> {
        Some(MeasuredVram {
            gfx_target: card.gfx_target,
            own_peak_bytes: self.own_peak_bytes?.checked_next_multiple_of(PEAK_STEP_BYTES)?,
            weight_bytes: self.weight_bytes?,
            kv_cache_bytes: self.kv_cache_bytes?,
        })
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Queue {
    running: u64,
    waiting: u64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Progress {
    steps: Option<u64>,
    tokens_generated: u64,
}

impl Status {
    /// Reads it; `None` where it is not what the contract says, so that `/readyz` has to be asked.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let Wire { ready, model_file, context_tokens, max_batch, queue, progress, card, vram } =
            serde_json::from_slice(body).ok()?;
        Some(Self {
            ready,
            report: EngineReport {
                busy: queue.running + queue.waiting > 0,
                steps: progress.steps,
                tokens: progress.tokens_generated,
            },
            facts: EngineFacts {
                model_file,
                context_tokens,
                max_batch,
                vram: card.zip(vram).and_then(|(card, vram)| vram.measured(card)),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_with_and_without_steps() {
        let full = Status::parse(
            br#"{"ready": true, "modelFile": "m", "contextTokens": 4096, "maxBatch": 4, "queue": {"running": 0, "waiting": 2},
                "progress": {"steps": 7, "tokensGenerated": 12, "millisSinceLastToken": null}, "card": null}"#,
        );
        let facts = EngineFacts {
            model_file: Some("m".into()),
            context_tokens: Some(4096),
            max_batch: Some(4),
            vram: None,
        };
        let report = EngineReport { busy: true, steps: Some(7), tokens: 12 };
        assert_eq!(full, Some(Status { ready: true, report, facts }));
        let bare = Status::parse(br#"{"ready": false, "progress": {"tokensGenerated": 1}}"#).unwrap();
        assert_eq!((bare.ready, bare.report.busy, bare.report.steps), (false, false, None));
        assert_eq!(Status::parse(b"Serving"), None);
    }

    #[test]
    fn what_a_card_shows_is_read_once_the_model_is_on_it() {
        let read = |vram: &str| {
            let card = r#"{"pciAddress": "p", "gfxTarget": "gfx1100", "vramBytes": 9}"#;
            let text = format!(r#"{{"ready": true, "card": {card}, "vram": {vram}}}"#);
            Status::parse(text.as_bytes()).unwrap().facts.vram
        };
        let loaded =
            r#"{"usedBytes": 9000000, "ownPeakBytes": 8000001, "weightBytes": 5000000, "kvCacheBytes": 7}"#;
        let expected = MeasuredVram {
            gfx_target: "gfx1100".into(),
            own_peak_bytes: 8 << 20,
            weight_bytes: 5_000_000,
            kv_cache_bytes: 7,
        };
        assert_eq!(read(loaded), Some(expected));
        // Loading, an engine of an earlier release, and a processor.
        assert_eq!(read(r#"{"usedBytes": 9, "ownPeakBytes": null, "weightBytes": null}"#), None);
        assert_eq!(read(r#"{"usedBytes": 9}"#), None);
        assert_eq!(read("null"), None);
    }
}
