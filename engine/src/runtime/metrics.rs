//! What the scheduler tells Prometheus.

use atlas_engine_core::block_pool::BlockPool;
use atlas_engine_core::{SchedulerStats, StepPlan};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};
use std::time::Duration;

/// Steps, blocks, prefixes and drafts.
pub struct SchedulerMetrics {
    /// Tokens that a step may compute now.
    pub token_budget: IntGauge,
    step_seconds: Histogram,
    step_tokens: Histogram,
    blocks: IntGauge,
    used_blocks: IntGauge,
    cached_blocks: IntGauge,
    preemptions: IntCounter,
    admitted_tokens: IntCounter,
    prefix_hit_tokens: IntCounter,
    drafted_tokens: IntCounter,
    accepted_tokens: IntCounter,
}

const SECONDS: &[f64] = &[0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 3.0, 10.0];
const TOKENS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

impl SchedulerMetrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("atlas_engine_{name}"), help)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("atlas_engine_{name}"), help)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(format!("atlas_engine_{name}"), help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone())).map(|()| histogram)
        };
        Ok(Self {
            token_budget: gauge("token_budget", "Tokens that a step may compute, as measured.")?,
            step_seconds: histogram("step_seconds", "Time of a step.", SECONDS)?,
            step_tokens: histogram("step_tokens", "Tokens computed in a step.", TOKENS)?,
            blocks: gauge("kv_blocks", "Blocks of the KV cache.")?,
            used_blocks: gauge("kv_used_blocks", "Blocks of the KV cache that sequences refer to.")?,
            cached_blocks: gauge("kv_cached_blocks", "Blocks of the KV cache that hold a known prefix.")?,
            preemptions: counter(
                "preemptions_total",
                "Sequences that gave their blocks up and were computed again.",
            )?,
            admitted_tokens: counter("admitted_tokens_total", "Tokens of sequences when they began to run.")?,
            prefix_hit_tokens: counter(
                "prefix_hit_tokens_total",
                "Tokens of sequences that the prefix cache held when they began to run.",
            )?,
            drafted_tokens: counter("drafted_tokens_total", "Guessed tokens.")?,
            accepted_tokens: counter("accepted_draft_tokens_total", "Guessed tokens that were right.")?,
        })
    }

    /// Counts a step.
    pub fn observe(&self, plan: &StepPlan, time: Duration) {
        self.step_seconds.observe(time.as_secs_f64());
        self.step_tokens.observe(plan.token_count() as f64);
    }

    /// Takes over the scheduler's own counts.
    pub fn set(&self, stats: SchedulerStats, pool: &BlockPool) {
        let SchedulerStats {
            preemptions,
            admitted_tokens,
            prefix_hit_tokens,
            drafted_tokens,
            accepted_tokens,
        } = stats;
        for (counter, value) in [
            (&self.preemptions, preemptions),
            (&self.admitted_tokens, admitted_tokens),
            (&self.prefix_hit_tokens, prefix_hit_tokens),
            (&self.drafted_tokens, drafted_tokens),
            (&self.accepted_tokens, accepted_tokens),
        ] {
            counter.inc_by(value.saturating_sub(counter.get()));
        }
        self.blocks.set(pool.len() as i64);
        self.used_blocks.set((pool.len() - pool.free_count()) as i64);
        self.cached_blocks.set(pool.cached_count() as i64);
    }
}
