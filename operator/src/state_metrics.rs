//! What the status of every object says, as metrics, so that alerts need nothing besides `/metrics`.
//!
//! Read from the stores at each scrape: a metric that were set by reconciles would outlive its object.

use std::sync::Arc;

use atlas_crds::{AtlasModel, GpuProfile};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{ResourceExt, runtime::reflector::Store};
use prometheus::{
    IntGauge, IntGaugeVec, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

use crate::stores::Stores;

/// Conditions of AtlasModels and GpuProfiles, and the cards of profiles; only where this replica leads, since the
/// others say the same.
pub struct StateMetrics {
    models: Store<AtlasModel>,
    profiles: Store<GpuProfile>,
    leader: IntGauge,
    /// Never filled: they tell the registry what is to come.
    empty: [IntGaugeVec; 3],
}

impl StateMetrics {
    /// Reads from these stores.
    ///
    /// # Errors
    ///
    /// A name or label is not valid: a mistake in this file.
    pub fn new(stores: &Arc<Stores>, leader: IntGauge) -> Result<Self, prometheus::Error> {
        Ok(Self {
            models: stores.models.clone(),
            profiles: stores.profiles.clone(),
            leader,
            empty: families()?,
        })
    }
}

impl Collector for StateMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.empty.iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if self.leader.get() == 0 {
            return Vec::new();
        }
        // Each scrape has its own, so that two at once do not fill and empty the same ones. Their names were accepted when
        // this was made, so there is no error to show.
        families()
            .map(|families| fill(&families, &self.models.state(), &self.profiles.state()))
            .unwrap_or_default()
    }
}

fn families() -> Result<[IntGaugeVec; 3], prometheus::Error> {
    let gauges = |name, help, labels| IntGaugeVec::new(Opts::new(name, help), labels);
    Ok([
        gauges(
            "atlas_model_condition",
            "1 for the present status of each condition of an AtlasModel.",
            &["namespace", "model", "condition", "status", "reason"],
        )?,
        gauges(
            "atlas_gpu_profile_condition",
            "1 for the present status of each condition of a GpuProfile.",
            &["profile", "condition", "status", "reason"],
        )?,
        gauges(
            "atlas_gpu_profile_cards",
            "Cards of a GpuProfile: what its nodes offer, and what engines hold.",
            &["profile", "state"],
        )?,
    ])
}

fn fill(
    [models_now, profiles_now, cards]: &[IntGaugeVec; 3],
    models: &[Arc<AtlasModel>],
    profiles: &[Arc<GpuProfile>],
) -> Vec<MetricFamily> {
    for model in models {
        // It is namespaced, so it has one.
        let (namespace, name) = (model.namespace().unwrap_or_default(), model.name_any());
        for Condition { type_, status, reason, .. } in
            model.status.iter().flat_map(|status| &status.conditions)
        {
            models_now.with_label_values(&[&namespace, &name, type_, status, reason]).set(1);
        }
    }
    for profile in profiles {
        let name = profile.name_any();
        let Some(status) = &profile.status else { continue };
        for Condition { type_, status, reason, .. } in &status.conditions {
            profiles_now.with_label_values(&[&name, type_, status, reason]).set(1);
        }
        cards.with_label_values(&[name.as_str(), "offered"]).set(status.capacity.into());
        cards.with_label_values(&[name.as_str(), "in_use"]).set(status.in_use.into());
    }
    [models_now, profiles_now, cards].into_iter().flat_map(Collector::collect).collect()
}

#[cfg(test)]
mod tests {
    use atlas_crds::{profile::GpuProfileStatus, status::AtlasModelStatus};
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        let fields = json!({"type": kind, "status": status, "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn a_scrape_tells_what_each_status_says_and_nothing_of_what_has_none() {
        let mut model: AtlasModel = serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
            "metadata": {"name": "code", "namespace": "atlas"},
            "spec": {"tiers": [{"name": "primary", "gpuProfile": "p", "model": {"source": "hf://a/b/c.gguf"}}]},
        }))
        .unwrap();
        let silent = Arc::new(model.clone());
        model.status = Some(AtlasModelStatus {
            conditions: vec![
                condition("Ready", "True", "Serving"),
                condition("Degraded", "False", "FirstTierServes"),
            ],
            ..AtlasModelStatus::default()
        });
        let sample = include_str!("../../deploy/samples/gpuprofiles.yaml");
        let sample = serde_yaml_ng::Deserializer::from_str(sample).next().unwrap();
        let mut profile = GpuProfile::deserialize(sample).unwrap();
        profile.status = Some(GpuProfileStatus {
            capacity: 3,
            in_use: 2,
            conditions: vec![condition("CardsHealthy", "False", "CardFault")],
            ..GpuProfileStatus::default()
        });

        let filled = fill(&families().unwrap(), &[silent, Arc::new(model)], &[Arc::new(profile)]);
        let text = prometheus::TextEncoder::new().encode_to_string(&filled).unwrap();
        let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                r#"atlas_gpu_profile_cards{profile="rx-7900-xtx",state="in_use"} 2"#,
                r#"atlas_gpu_profile_cards{profile="rx-7900-xtx",state="offered"} 3"#,
                r#"atlas_gpu_profile_condition{condition="CardsHealthy",profile="rx-7900-xtx",reason="CardFault",status="False"} 1"#,
                r#"atlas_model_condition{condition="Degraded",model="code",namespace="atlas",reason="FirstTierServes",status="False"} 1"#,
                r#"atlas_model_condition{condition="Ready",model="code",namespace="atlas",reason="Serving",status="True"} 1"#,
            ]
        );
    }
}
