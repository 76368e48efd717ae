//! What the card's sensors show, read anew at each scrape; there is none of it without a card.

use atlas_kernels::hip::{Card, Health};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Registry};

/// Gauges of one card; a sensor that the card lacks shows no value.
#[derive(Clone)]
struct CardMetrics {
    card: Card,
    vram_total: Gauge,
    vram_used: Gauge,
    busy: Gauge,
    junction: Gauge,
    memory: Gauge,
    watts: Gauge,
}

/// Registers the card's gauges.
///
/// # Errors
/// A name is taken.
pub fn register(registry: &Registry, card: &Card) -> Result<(), prometheus::Error> {
    let metrics = CardMetrics {
        card: card.clone(),
        vram_total: Gauge::new("atlas_engine_vram_total_bytes", "Memory of the card.")?,
        vram_used: Gauge::new("atlas_engine_vram_used_bytes", "Memory of the card in use, by anyone.")?,
        busy: Gauge::new("atlas_engine_card_busy_ratio", "Share of time that the card was busy lately.")?,
        junction: Gauge::new("atlas_engine_card_junction_celsius", "Temperature of the hottest spot.")?,
        memory: Gauge::new("atlas_engine_card_memory_celsius", "Temperature of the memory.")?,
        watts: Gauge::new("atlas_engine_card_power_watts", "Power that the card draws.")?,
    };
    metrics.vram_total.set(card.vram_bytes as f64);
    registry.register(Box::new(metrics))
}

impl CardMetrics {
    fn gauges(&self) -> [&Gauge; 6] {
        [&self.vram_total, &self.vram_used, &self.busy, &self.junction, &self.memory, &self.watts]
    }
}

impl Collector for CardMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Health { vram_used_bytes, busy_percent, junction_celsius, memory_celsius, watts } =
            Health::read(&self.card);
        let mut families = self.vram_total.collect();
        for (gauge, value) in [
            (&self.vram_used, vram_used_bytes.map(|bytes| bytes as f64)),
            (&self.busy, busy_percent.map(|percent| percent as f64 / 100.0)),
            (&self.junction, junction_celsius),
            (&self.memory, memory_celsius),
            (&self.watts, watts),
        ] {
            if let Some(value) = value {
                gauge.set(value);
                families.extend(gauge.collect());
            }
        }
        families
    }
}
