//! Prometheus metrics: one struct, registered in one place.

use crate::runtime::SchedulerMetrics;
use crate::status::{Phase, Status};
use atlas_kernels::hip::Card;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    core::Collector,
};
use std::sync::atomic::Ordering::Relaxed;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    /// Answers by status code.
    pub requests: IntCounterVec,
    /// Tokens in prompts.
    pub prompt_tokens: IntCounter,
    /// Tokens in answers.
    pub generated_tokens: IntCounter,
    /// Requests that ended without an answer's end, by reason: `client`, `timeout` or `engine`.
    pub aborted: IntCounterVec,
    /// Choices given up for lack of memory.
    pub shed: IntCounter,
    /// Spans that the collector did not take.
    pub dropped_spans: IntCounter,
    /// Time in the queue.
    pub queue_seconds: Histogram,
    /// Time to the first token.
    pub first_token_seconds: Histogram,
    /// Time between tokens.
    pub inter_token_seconds: Histogram,
    /// Time to the last token.
    pub request_seconds: Histogram,
    /// Steps, blocks, prefixes and drafts.
    pub scheduler: SchedulerMetrics,
    running: IntGauge,
    waiting: IntGauge,
    ready: IntGauge,
}

const SLOW: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];
const FAST: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5];

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Two metrics share a name, which the tests rule out.
    pub fn new(card: Option<&Card>) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        if let Some(card) = card {
            crate::card_metrics::register(&registry, card)?;
        }
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            register(
                &registry,
                Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?,
            )
        };
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help)?);
        let requests =
            Opts::new("atlas_engine_requests_total", "Answers to API requests, by path and status code.");
        let aborted = Opts::new(
            "atlas_engine_aborted_requests_total",
            "Requests that ended before their answer did, by reason: client, timeout, engine or grammar.",
        );
        Ok(Self {
            requests: register(&registry, IntCounterVec::new(requests, &["path", "code"])?)?,
            prompt_tokens: counter("atlas_engine_prompt_tokens_total", "Tokens in accepted prompts.")?,
            generated_tokens: counter("atlas_engine_generated_tokens_total", "Tokens in answers.")?,
            aborted: register(&registry, IntCounterVec::new(aborted, &["reason"])?)?,
            shed: counter(
                "atlas_engine_shed_choices_total",
                "Choices given up because the device was short of memory.",
            )?,
            dropped_spans: counter(
                "atlas_engine_dropped_spans_total",
                "Spans of requests that the collector did not take.",
            )?,
            queue_seconds: histogram(
                "atlas_engine_queue_seconds",
                "Time from arrival to the first step.",
                SLOW,
            )?,
            first_token_seconds: histogram(
                "atlas_engine_time_to_first_token_seconds",
                "Time from arrival to the first token.",
                SLOW,
            )?,
            inter_token_seconds: histogram(
                "atlas_engine_inter_token_seconds",
                "Time between two tokens.",
                FAST,
            )?,
            request_seconds: histogram(
                "atlas_engine_request_seconds",
                "Time from arrival to the last token.",
                SLOW,
            )?,
            scheduler: SchedulerMetrics::new(&registry)?,
            running: gauge("atlas_engine_running_requests", "Requests being computed.")?,
            waiting: gauge("atlas_engine_waiting_requests", "Requests in the queue.")?,
            ready: gauge("atlas_engine_ready", "1 while requests are served.")?,
            registry,
        })
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// The encoder refuses a metric.
    pub fn render(&self, status: &Status) -> Result<String, prometheus::Error> {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.running.set(gauge(status.progress.running.load(Relaxed)));
        self.waiting.set(gauge(status.progress.waiting.load(Relaxed)));
        self.ready.set(i64::from(status.phase() == Phase::Serving));
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        assert!(Metrics::new(None).is_ok());
    }
}
