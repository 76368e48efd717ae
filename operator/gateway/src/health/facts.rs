//! What an engine says about itself in `/internal/status`, as far as the gateway needs it.

use atlas_operator_core::routing::EngineReport;
use serde::Deserialize;

/// What does not change from one request to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// File name of the model without extension: a broken stream continues on the same one only.
    pub model_file: Option<String>,
    /// Context window in tokens, prompt and answer together.
    pub context_tokens: Option<u64>,
    /// Sequences that it generates at once.
    pub max_batch: Option<usize>,
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
        let Wire { ready, model_file, context_tokens, max_batch, queue, progress } =
            serde_json::from_slice(body).ok()?;
        Some(Self {
            ready,
            report: EngineReport {
                busy: queue.running + queue.waiting > 0,
                steps: progress.steps,
                tokens: progress.tokens_generated,
            },
            facts: EngineFacts { model_file, context_tokens, max_batch },
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
        let facts =
            EngineFacts { model_file: Some("m".into()), context_tokens: Some(4096), max_batch: Some(4) };
        let report = EngineReport { busy: true, steps: Some(7), tokens: 12 };
        assert_eq!(full, Some(Status { ready: true, report, facts }));
        let bare = Status::parse(br#"{"ready": false, "progress": {"tokensGenerated": 1}}"#).unwrap();
        assert_eq!((bare.ready, bare.report.busy, bare.report.steps), (false, false, None));
        assert_eq!(Status::parse(b"Serving"), None);
    }
}
