//! Metrics of the gateway: one struct, registered in one place.

use std::time::Duration;

use http::StatusCode;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector,
};

use crate::{model::SwitchRecord, table::ModelConfig};

/// Every metric of the gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    retries: IntCounterVec,
    switches: IntCounterVec,
    switch_seconds: HistogramVec,
    interrupted_streams: IntCounterVec,
    resumes: IntCounterVec,
    aborts: IntCounterVec,
    held: IntGaugeVec,
    queued: IntGaugeVec,
    retry_budget: IntGaugeVec,
    limited: IntCounterVec,
    active_tier: IntGaugeVec,
    in_flight: IntGaugeVec,
    added_seconds: HistogramVec,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    ///
    /// A name or label is not valid, or stands twice: a mistake in this function, seen by any test.
    pub fn register() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            add(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            add(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            add(&registry, HistogramVec::new(opts, labels)?)
        };
        let switch_buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0];
        let added_buckets =
            [0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25];
        Ok(Self {
            requests: counter(
                "atlas_gateway_requests_total",
                "Requests by the tier that answered and the class of the status.",
                &["model", "tier", "code"],
            )?,
            retries: counter(
                "atlas_gateway_retries_total",
                "Attempts that were made again, by why the one before failed.",
                &["model", "cause"],
            )?,
            switches: counter(
                "atlas_gateway_switches_total",
                "Moves of the traffic from one tier to another: failovers by cause, and FailedBack.",
                &["model", "from", "to", "cause"],
            )?,
            switch_seconds: histogram(
                "atlas_gateway_failover_seconds",
                "Time from the first sign of trouble to the move away from a tier.",
                &["model"],
                &switch_buckets,
            )?,
            interrupted_streams: counter(
                "atlas_gateway_interrupted_streams_total",
                "Streams that ended in an error event because their engine was lost.",
                &["model", "tier"],
            )?,
            resumes: counter(
                "atlas_gateway_resumes_total",
                "Broken streams by whether another engine went on with them.",
                &["model", "outcome"],
            )?,
            aborts: counter(
                "atlas_gateway_aborted_attempts_total",
                "Attempts without a byte that were ended because their engine was lost.",
                &["model"],
            )?,
            held: gauge(
                "atlas_gateway_held_requests",
                "Requests that wait for a tier to become ready.",
                &["model"],
            )?,
            queued: gauge(
                "atlas_gateway_queued_requests",
                "Requests that wait for their turn because the engines have all that they can do.",
                &["model"],
            )?,
            retry_budget: gauge(
                "atlas_gateway_retry_budget",
                "Further attempts that the requests of a model may make now, the first retry of each apart.",
                &["model"],
            )?,
            limited: counter(
                "atlas_gateway_limited_requests_total",
                "Requests refused because a limit of their API key was reached.",
                &["model", "limit"],
            )?,
            active_tier: gauge(
                "atlas_gateway_active_tier",
                "1 for the tier that serves, 0 for the others.",
                &["model", "tier"],
            )?,
            in_flight: gauge(
                "atlas_gateway_requests_in_flight",
                "Requests without an answer yet.",
                &["model"],
            )?,
            added_seconds: histogram(
                "atlas_gateway_added_seconds",
                "Time that the gateway itself added before the first byte of an answer.",
                &["model"],
                &added_buckets,
            )?,
            registry,
        })
    }

    /// Everything in the text format.
    #[must_use]
    pub fn render(&self) -> String {
        // Encoding our own families into a string cannot fail; an empty page would show it.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// A request was answered.
    pub fn answered(&self, model: &str, tier: Option<&str>, status: StatusCode) {
        let class = match status.as_u16() / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        };
        self.requests.with_label_values(&[model, tier.unwrap_or("none"), class]).inc();
    }

    /// An attempt failed and another one follows.
    pub fn retried(&self, model: &str, cause: &str) {
        self.retries.with_label_values(&[model, cause]).inc();
    }

    /// Traffic moved.
    pub fn switched(&self, model: &str, record: &SwitchRecord, voluntary: bool) {
        self.switches.with_label_values(&[model, &record.from, &record.to, record.cause]).inc();
        if !voluntary {
            let seconds = Duration::from_millis(record.millis).as_secs_f64();
            self.switch_seconds.with_label_values(&[model]).observe(seconds);
        }
    }

    /// A stream broke.
    pub fn interrupted(&self, model: &str, tier: &str) {
        self.interrupted_streams.with_label_values(&[model, tier]).inc();
    }

    /// A stream broke, and another engine went on or none did.
    pub fn resumed(&self, model: &str, outcome: &str) {
        self.resumes.with_label_values(&[model, outcome]).inc();
    }

    /// An attempt was ended because its engine was lost.
    pub fn aborted(&self, model: &str) {
        self.aborts.with_label_values(&[model]).inc();
    }

    /// Counts a request that waits for a tier, for as long as the guard lives.
    #[must_use]
    pub fn hold(&self, model: &str) -> Running {
        Running::count(self.held.with_label_values(&[model]))
    }

    /// Counts a request that waits for its turn, for as long as the guard lives.
    #[must_use]
    pub fn queue(&self, model: &str) -> Running {
        Running::count(self.queued.with_label_values(&[model]))
    }

    /// Retries that are left.
    pub fn retry_budget(&self, model: &str, left: u64) {
        self.retry_budget.with_label_values(&[model]).set(i64::try_from(left).unwrap_or(i64::MAX));
    }

    /// A caller was at one of its limits.
    pub fn limited(&self, model: &str, limit: &str) {
        self.limited.with_label_values(&[model, limit]).inc();
    }

    /// Which tier serves.
    pub fn active_tier(&self, model: &ModelConfig, active: Option<&str>) {
        for tier in &model.tiers {
            let value = i64::from(active == Some(tier.name.as_str()));
            self.active_tier.with_label_values(&[&model.name, &tier.name]).set(value);
        }
    }

    /// Shows some of a model's tiers no more.
    pub fn forget_tiers(&self, model: &ModelConfig, gone: impl Fn(&str) -> bool) {
        for tier in model.tiers.iter().filter(|tier| gone(&tier.name)) {
            // One that was never shown is no error.
            let _ = self.active_tier.remove_label_values(&[&model.name, &tier.name]);
        }
    }

    /// Shows no more what a model is like now; what was counted stays.
    pub fn forget_model(&self, model: &ModelConfig) {
        self.forget_tiers(model, |_| true);
        // Nor is a budget that was never shown.
        let _ = self.retry_budget.remove_label_values(&[&model.name]);
    }

    /// Counts a request for as long as the guard lives.
    #[must_use]
    pub fn begin(&self, model: &str) -> Running {
        Running::count(self.in_flight.with_label_values(&[model]))
    }

    /// Time of the gateway's own before the first byte of an answer.
    pub fn added(&self, model: &str, time: Duration) {
        self.added_seconds.with_label_values(&[model]).observe(time.as_secs_f64());
    }
}

/// A request that runs.
#[derive(Debug)]
pub struct Running {
    gauge: prometheus::IntGauge,
}

impl Running {
    fn count(gauge: prometheus::IntGauge) -> Self {
        gauge.inc();
        Self { gauge }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

fn add<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_and_shows_up() {
        let metrics = Metrics::register().unwrap();
        metrics.answered("code", Some("primary"), StatusCode::OK);
        let running = metrics.begin("code");
        let page = metrics.render();
        assert!(
            page.contains(r#"atlas_gateway_requests_total{code="2xx",model="code",tier="primary"} 1"#),
            "{page}"
        );
        assert!(page.contains(r#"atlas_gateway_requests_in_flight{model="code"} 1"#), "{page}");
        drop(running);
        assert!(metrics.render().contains(r#"atlas_gateway_requests_in_flight{model="code"} 0"#));
    }
}
