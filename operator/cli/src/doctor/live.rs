//! Why a model is slow, from its engines at work: two looks at their metrics, some seconds apart. Judging is pure.

use std::{collections::BTreeMap, time::Duration};

use atlas_crds::{AtlasModel, GpuProfile, quantity::parse_bytes};
use atlas_operator_core::speed::expected_step_seconds;
use kube::{Client, ResourceExt};

use super::checks::{Finding, Severity};
use crate::{
    engines::{self, Engine, EngineStatus},
    error::CliError,
};

/// Between the two looks.
const WATCHED: Duration = Duration::from_secs(5);
/// A step that takes so many times what the card should need is slow.
const SLOW: f64 = 2.0;
/// A card that is busy for less than this share while requests run waits for something.
const IDLE_SHARE: f64 = 0.5;

/// Values of Prometheus' text format by name; labelled ones are summed up.
#[derive(Debug, Clone, Default, PartialEq)]
struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let mut values = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let name = name.split('{').next().unwrap_or_default();
            if let Ok(value) = value.parse::<f64>() {
                *values.entry(name.to_owned()).or_insert(0.0) += value;
            }
        }
        Self(values)
    }

    fn get(&self, name: &str) -> Option<f64> {
        self.0.get(&format!("atlas_engine_{name}")).copied()
    }
}

/// An engine between two looks.
struct Watched<'a> {
    tier: &'a str,
    /// The card's product, where its profile is known.
    product: Option<&'a str>,
    status: EngineStatus,
    weights: Option<u64>,
    seconds: f64,
    before: Metrics,
    after: Metrics,
}

impl Watched<'_> {
    fn grown(&self, name: &str) -> f64 {
        self.after.get(name).unwrap_or(0.0) - self.before.get(name).unwrap_or(0.0)
    }

    /// Mean of what a histogram took in between the looks.
    fn mean(&self, name: &str) -> Option<f64> {
        let count = self.grown(&format!("{name}_count"));
        (count > 0.0).then(|| self.grown(&format!("{name}_sum")) / count)
    }
}

/// Looks at every running engine of a model twice, and judges.
pub async fn watch(
    client: &Client,
    model: &AtlasModel,
    profiles: &[GpuProfile],
) -> Result<Vec<Finding>, CliError> {
    let engines = engines::list(client, model).await?;
    let mut looks = Vec::with_capacity(engines.len());
    for engine in &engines {
        looks.push(look(client, engine).await);
    }
    if looks.iter().all(Result::is_err) {
        return Ok(engines
            .iter()
            .zip(looks)
            .filter_map(|(e, look)| Some(unasked(e, &look.err()?)))
            .collect());
    }
    let began = tokio::time::Instant::now();
    tokio::time::sleep(WATCHED).await;
    let mut findings = Vec::new();
    for (engine, before) in engines.iter().zip(looks) {
        let seconds = began.elapsed().as_secs_f64();
        match (before, look(client, engine).await) {
            (Err(reason), _) | (_, Err(reason)) => findings.push(unasked(engine, &reason)),
            (Ok((_, before)), Ok((status, after))) => {
                let tier = model.spec.tiers.iter().find(|tier| tier.name == engine.tier);
                let profile =
                    tier.and_then(|tier| profiles.iter().find(|p| p.name_any() == tier.gpu_profile));
                let planned = model.status.iter().flat_map(|status| &status.tiers);
                let planned = planned.filter(|planned| planned.name == engine.tier);
                let mut planned =
                    planned.filter_map(|planned| parse_bytes(planned.vram.as_ref()?.weights.as_ref()?));
                let weights = status.vram.as_ref().and_then(|vram| vram.weight_bytes);
                findings.extend(judge(&Watched {
                    tier: &engine.tier,
                    product: profile.map(|profile| profile.spec.product.as_str()),
                    weights: weights.or_else(|| planned.next()),
                    status,
                    seconds,
                    before,
                    after,
                }));
            }
        }
    }
    Ok(findings)
}

async fn look(client: &Client, engine: &Engine) -> Result<(EngineStatus, Metrics), String> {
    let metrics = Metrics::parse(&engines::ask(client, engine, "/metrics").await?);
    Ok((engines::ask_status(client, engine).await?, metrics))
}

fn unasked(engine: &Engine, reason: &str) -> Finding {
    Finding::bad(
        "engine",
        Severity::Unknown,
        format!("pod {} of tier {} cannot be asked: {reason}", engine.pod, engine.tier),
        "this needs `get` on pods/proxy, and a way for the API server to port 8001 of the pod",
    )
}

fn judge(watched: &Watched<'_>) -> Vec<Finding> {
    let Watched { tier, status, .. } = watched;
    let step_tokens = watched.mean("step_tokens");
    let (Some(step_seconds), Some(step_tokens)) = (watched.mean("step_seconds"), step_tokens) else {
        return vec![Finding::bad(
            "load",
            Severity::Unknown,
            format!("tier {tier} computed nothing while it was watched"),
            "run kubectl atlas bench URL beside this command: slowness shows under load only",
        )];
    };
    vec![
        speed(watched, step_seconds),
        batch(watched, step_tokens),
        cache(watched),
        busy(tier, watched, status),
    ]
}

/// Tokens a second, and a step's time against what the card's memory lets expect.
fn speed(watched: &Watched<'_>, step_seconds: f64) -> Finding {
    let Watched { tier, product, weights, status, .. } = watched;
    let tokens = watched.grown("generated_tokens_total") / watched.seconds;
    let steps =
        format!("tier {tier} generates {tokens:.1} tokens/s in steps of {:.1} ms", step_seconds * 1e3);
    if status.backend == "cpu" {
        return Finding::bad(
            "speed",
            Severity::Unknown,
            format!("{steps}, on the processor"),
            "a processor's speed is not planned: `atlas-engine bench` measures what it could do",
        );
    }
    let expected = product.zip(*weights).and_then(|(product, bytes)| expected_step_seconds(product, bytes));
    let Some(expected) = expected else {
        return Finding::well("speed", format!("{steps}; nothing is known to compare its card with"));
    };
    // Prompts make steps longer than answers do, and nothing is wrong with that.
    let found = format!("{steps}, where its weights alone take {:.1} ms", expected * 1e3);
    if step_seconds <= expected * SLOW || watched.grown("prompt_tokens_total") > 0.0 {
        return Finding::well("speed", found);
    }
    Finding::bad(
        "speed",
        Severity::Warning,
        found,
        "check the card's clocks and power limit, its PCIe link and the kernel's log on its node with kubectl atlas doctor, and `atlas-engine selftest` in its pod",
    )
}

/// How full the batch is.
fn batch(watched: &Watched<'_>, step_tokens: f64) -> Finding {
    let Watched { tier, status, .. } = watched;
    let EngineStatus { max_batch, queue, .. } = status;
    let found = format!(
        "tier {tier} computes {} of {max_batch} requests, {} wait, {step_tokens:.1} tokens a step",
        queue.running, queue.waiting
    );
    match (queue.waiting > 0, queue.running >= *max_batch) {
        (true, true) => Finding::bad(
            "batch",
            Severity::Warning,
            found,
            "requests wait for a place: raise maxBatch where the card has room (kubectl atlas plan), or replicas",
        ),
        (true, false) => Finding::bad(
            "batch",
            Severity::Warning,
            found,
            "requests wait though there are places: prompts are long or the KV cache is full, see the next lines",
        ),
        (false, _) => Finding::well("batch", found),
    }
}

/// Whether the KV cache is too small for what runs.
fn cache(watched: &Watched<'_>) -> Finding {
    let Watched { tier, after, .. } = watched;
    let blocks = after.get("kv_blocks").unwrap_or(0.0).max(1.0);
    let percent = after.get("kv_used_blocks").unwrap_or(0.0) / blocks * 100.0;
    let preemptions = watched.grown("preemptions_total");
    let found =
        format!("tier {tier} uses {percent:.0} % of its KV cache, {preemptions:.0} sequences gave theirs up");
    if preemptions > 0.0 {
        return Finding::bad(
            "KV cache",
            Severity::Warning,
            found,
            "sequences are computed again for lack of room: lower maxBatch or contextTokens, or set kvCacheType Q8_0",
        );
    }
    Finding::well("KV cache", found)
}

/// How busy the card is while requests run.
fn busy(tier: &str, watched: &Watched<'_>, status: &EngineStatus) -> Finding {
    if status.card.is_none() {
        return Finding::bad(
            "card",
            Severity::Unknown,
            format!("tier {tier} runs on the processor: there is no card to be busy"),
            "nothing, where that is meant; else see backend of its GpuProfile",
        );
    }
    let Some(share) = watched.after.get("card_busy_ratio") else {
        return Finding::bad(
            "card",
            Severity::Unknown,
            format!("the driver of tier {tier}'s card does not tell how busy it is"),
            "look for gpu_busy_percent below /sys/class/drm on its node",
        );
    };
    let found = format!("tier {tier}'s card is busy {:.0} % of the time", share * 100.0);
    if share >= IDLE_SHARE || status.queue.running == 0 {
        return Finding::well("card", found);
    }
    Finding::bad(
        "card",
        Severity::Warning,
        found,
        "it waits for the processor: give the engine's pod more CPU (tiers[].engine.resources), and keep layers off the CPU",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::{Card, Queue};

    const BEFORE: &str = "# HELP x y\natlas_engine_generated_tokens_total 100\natlas_engine_step_seconds_sum 1\n\
        atlas_engine_step_seconds_count 100\natlas_engine_step_tokens_sum 100\natlas_engine_step_tokens_count 100\n\
        atlas_engine_requests_total{code=\"200\"} 2\natlas_engine_requests_total{code=\"429\"} 3\n";

    fn after(steps: u32, seconds: f64, more: &str) -> String {
        format!(
            "atlas_engine_generated_tokens_total {}\natlas_engine_step_seconds_sum {}\natlas_engine_step_seconds_count {}\n\
             atlas_engine_step_tokens_sum {}\natlas_engine_step_tokens_count {}\natlas_engine_kv_blocks 100\n\
             atlas_engine_kv_used_blocks 40\n{more}",
            100 + steps,
            1.0 + seconds,
            100 + steps,
            100 + 2 * steps,
            100 + steps
        )
    }

    fn found(status: EngineStatus, after: &str) -> Vec<(&'static str, Severity, String)> {
        let judged = judge(&Watched {
            tier: "primary",
            product: Some("Radeon RX 7900 XTX"),
            weights: Some(7_000_000_000),
            status,
            seconds: 5.0,
            before: Metrics::parse(BEFORE),
            after: Metrics::parse(after),
        });
        judged.into_iter().map(|finding| (finding.check, finding.severity, finding.found)).collect()
    }

    fn on_card(running: u64, waiting: u64) -> EngineStatus {
        EngineStatus {
            backend: "hip".into(),
            max_batch: 4,
            queue: Queue { running, waiting },
            card: Some(Card::default()),
            ..EngineStatus::default()
        }
    }

    #[test]
    fn labelled_values_are_summed_up() {
        assert_eq!(Metrics::parse(BEFORE).get("requests_total"), Some(5.0));
    }

    #[test]
    fn an_engine_at_work_is_compared_with_what_its_card_could_do() {
        let check = |status, text: String, expected: &[(&str, Severity, &str)]| {
            let found = found(status, &text);
            for (check, severity, says) in expected {
                let hit = found.iter().find(|(name, ..)| name == check);
                assert!(
                    hit.is_some_and(|(_, is, text)| is == severity && text.contains(says)),
                    "{check}: {found:?}"
                );
            }
        };
        // 7 GB take 13.5 ms: 15 ms a step are well, 60 are not.
        let well = after(200, 3.0, "atlas_engine_card_busy_ratio 0.97\n");
        check(
            on_card(2, 0),
            well,
            &[
                (
                    "speed",
                    Severity::Well,
                    "40.0 tokens/s in steps of 15.0 ms, where its weights alone take 13.5 ms",
                ),
                ("batch", Severity::Well, "2 of 4 requests, 0 wait, 2.0 tokens a step"),
                ("KV cache", Severity::Well, "40 %"),
                ("card", Severity::Well, "97 %"),
            ],
        );
        let slow = after(50, 3.0, "atlas_engine_card_busy_ratio 0.2\natlas_engine_preemptions_total 3\n");
        check(
            on_card(4, 2),
            slow,
            &[
                ("speed", Severity::Warning, "steps of 60.0 ms"),
                ("batch", Severity::Warning, "2 wait"),
                ("KV cache", Severity::Warning, "3 sequences"),
                ("card", Severity::Warning, "20 %"),
            ],
        );
        check(on_card(0, 0), BEFORE.to_owned(), &[("load", Severity::Unknown, "computed nothing")]);
        let cpu = EngineStatus { backend: "cpu".into(), card: None, ..on_card(1, 0) };
        check(
            cpu,
            after(50, 3.0, ""),
            &[("speed", Severity::Unknown, "on the processor"), ("card", Severity::Unknown, "processor")],
        );
    }
}
