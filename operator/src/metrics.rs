//! Every metric of the controllers, registered in one place.

use atlas_operator_core::vram::Calibrations;
use prometheus::{
    Counter, Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};

/// The controllers' metrics.
pub struct Metrics {
    registry: Registry,
    /// Reconciles by controller.
    pub reconciles: IntCounterVec,
    /// Failed reconciles by controller and error label.
    pub errors: IntCounterVec,
    /// Durations of reconciles by controller.
    pub seconds: HistogramVec,
    /// The same without waits, for the API server above all.
    pub busy: HistogramVec,
    /// Writes by kind of object.
    pub writes: IntCounterVec,
    /// Events that watches have lost without breaking, by kind of object.
    pub lost_events: IntCounterVec,
    /// How often watches broke, or could not be begun, by kind of object.
    pub broken_watches: IntCounterVec,
    /// Gateways that were deleted because they stayed silent.
    pub silent_gateways: IntCounter,
    /// Seconds in which the watch over the gateways did not run on time, which count as nobody's silence.
    pub watch_stalled: Counter,
    /// Headers of model files that could not be read, by kind of failure.
    pub header_errors: IntCounterVec,
    /// Bytes of headers that were read.
    pub header_bytes: IntCounter,
    /// Reviews of the webhook by verdict.
    pub reviews: IntCounterVec,
    /// What was planned for an engine less the most that it was seen to use, by namespace, model and tier.
    vram_error: IntGaugeVec,
    /// What plans take as the runtime's share of a card, by gfx target; targets that nobody measured are left out.
    vram_runtime: IntGaugeVec,
    /// When the webhook's certificate is renewed, in seconds since 1970.
    pub webhook_renewal: IntGauge,
    /// 1 while this replica reconciles.
    pub leader: IntGauge,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    ///
    /// Two metrics have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let by = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let seconds = HistogramVec::new(
            HistogramOpts::new("atlas_reconcile_duration_seconds", "Durations of reconciles.")
                .buckets(vec![0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0]),
            &["controller"],
        )?;
        registry.register(Box::new(seconds.clone()))?;
        let busy = HistogramVec::new(
            HistogramOpts::new(
                "atlas_reconcile_busy_seconds",
                "Durations of reconciles without what they wait for, such as the API server.",
            )
            .buckets(vec![0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5]),
            &["controller"],
        )?;
        registry.register(Box::new(busy.clone()))?;
        let silent_gateways = IntCounter::new(
            "atlas_silent_gateways_deleted_total",
            "Gateway pods deleted because they stayed silent.",
        )?;
        registry.register(Box::new(silent_gateways.clone()))?;
        let watch_stalled = Counter::new(
            "atlas_gateway_watch_stalled_seconds_total",
            "Seconds in which this process did not run on time; they count as no gateway's silence.",
        )?;
        registry.register(Box::new(watch_stalled.clone()))?;
        let header_bytes =
            IntCounter::new("atlas_header_bytes_total", "Bytes read of the headers of model files.")?;
        registry.register(Box::new(header_bytes.clone()))?;
        let leader = IntGauge::new("atlas_leader", "1 while this replica reconciles.")?;
        registry.register(Box::new(leader.clone()))?;
        let webhook_renewal = IntGauge::new(
            "atlas_webhook_certificate_renewal_timestamp_seconds",
            "When the webhook's certificate is renewed; 0 before it has one.",
        )?;
        registry.register(Box::new(webhook_renewal.clone()))?;
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        Ok(Self {
            vram_error: gauges(
                "atlas_vram_estimate_error_bytes",
                "Planned memory of an engine less the most that it was seen to use of its card.",
                &["namespace", "model", "tier"],
            )?,
            vram_runtime: gauges(
                "atlas_vram_calibrated_runtime_bytes",
                "What plans take as the runtime's share of a card, where engines measured it.",
                &["gfx_target"],
            )?,
            reviews: by("atlas_webhook_reviews_total", "Reviews of the webhook by verdict.", &["verdict"])?,
            webhook_renewal,
            reconciles: by("atlas_reconciles_total", "Reconciles by controller.", &["controller"])?,
            errors: by("atlas_reconcile_errors_total", "Failed reconciles.", &["controller", "error"])?,
            writes: by("atlas_writes_total", "Writes to the API server by kind.", &["kind"])?,
            lost_events: by(
                "atlas_lost_watch_events_total",
                "Events that a watch lost without breaking, found by comparing it with a list.",
                &["kind"],
            )?,
            broken_watches: by(
                "atlas_watch_errors_total",
                "Watches that broke or could not be begun, by kind; one that goes on breaking sees nothing.",
                &["kind"],
            )?,
            header_errors: by(
                "atlas_header_errors_total",
                "Headers of model files that could not be read.",
                &["error"],
            )?,
            header_bytes,
            seconds,
            busy,
            silent_gateways,
            watch_stalled,
            leader,
            registry,
        })
    }

    /// Adds what is read at each scrape.
    ///
    /// # Errors
    ///
    /// A metric of its names is there already.
    pub fn register(&self, collector: impl Collector + 'static) -> Result<(), prometheus::Error> {
        self.registry.register(Box::new(collector))
    }

    /// Shows what plans take as the runtime's share.
    pub fn note_runtimes(&self, calibrations: &Calibrations) {
        self.vram_runtime.reset();
        for (target, bytes) in calibrations.iter() {
            self.vram_runtime.with_label_values(&[target]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Shows how far a tier's plan is from what its engine uses, or that nothing is known of it.
    pub fn note_vram(&self, labels: [&str; 3], planned: Option<u64>, peak: Option<u64>) {
        match planned.zip(peak) {
            Some((planned, peak)) => {
                let bytes = |number| i64::try_from(number).unwrap_or(i64::MAX);
                self.vram_error.with_label_values(&labels).set(bytes(planned) - bytes(peak));
            }
            // Most tiers have no figure, and then there is nothing to remove.
            None => drop(self.vram_error.remove_label_values(&labels)),
        }
    }

    /// Forgets the figures of models that are not there, by namespace and name.
    pub fn forget_models(&self, is_there: impl Fn(&str, &str) -> bool) {
        for family in self.vram_error.collect() {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    let found = metric.get_label().iter().find(|label| label.name() == name);
                    found.map(|label| label.value()).unwrap_or_default()
                };
                let labels = [label("namespace"), label("model"), label("tier")];
                if !is_there(labels[0], labels[1]) {
                    drop(self.vram_error.remove_label_values(&labels));
                }
            }
        }
    }

    /// The text that `/metrics` answers.
    ///
    /// # Errors
    ///
    /// A metric cannot be written as text.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
