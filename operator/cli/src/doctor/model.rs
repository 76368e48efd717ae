//! Why a model is slow or silent, as far as its status and settings tell; `live` looks at its engines.

use atlas_crds::{AtlasModel, ModelCondition, quantity::parse_bytes};

use super::checks::{Finding, Severity};

/// Every check of a model.
pub fn check(model: &AtlasModel) -> Vec<Finding> {
    let Some(status) = &model.status else {
        return vec![Finding::bad(
            "status",
            Severity::Broken,
            "there is none",
            "look at the operator: kubectl -n atlas-system get pods",
        )];
    };
    let mut findings = Vec::new();
    for condition in &status.conditions {
        let is = |type_: ModelCondition| condition.type_ == type_.as_str();
        let wanted = if is(ModelCondition::Degraded) { "False" } else { "True" };
        let told = [
            (ModelCondition::Accepted, "accepted", Severity::Broken),
            (ModelCondition::VramFits, "memory", Severity::Broken),
            (ModelCondition::Scheduled, "scheduling", Severity::Broken),
            (ModelCondition::ModelCached, "download", Severity::Warning),
            (ModelCondition::Ready, "serving", Severity::Broken),
            (ModelCondition::Degraded, "tier", Severity::Warning),
        ];
        let Some((_, check, severity)) = told.into_iter().find(|(type_, ..)| is(*type_)) else { continue };
        if condition.status == wanted {
            findings.push(Finding::well(check, condition.message.clone()));
        } else {
            let severity = if condition.status == "Unknown" { Severity::Unknown } else { severity };
            findings.push(Finding { check, severity, found: condition.message.clone(), remedy: None });
        }
    }
    for tier in &model.spec.tiers {
        if tier.cpu_offload_layers > 0 {
            findings.push(Finding::bad(
                "offload",
                Severity::Warning,
                format!("tier {} keeps {} layers on the CPU", tier.name, tier.cpu_offload_layers),
                "every token waits for them: use a smaller model or quantization that fits the card whole",
            ));
        }
        if tier.max_batch == 1 {
            findings.push(Finding::bad(
                "batch",
                Severity::Warning,
                format!("tier {} answers one request at a time", tier.name),
                "maxBatch 2 answers two in little more time, where the card has room: kubectl atlas plan shows it",
            ));
        }
    }
    for tier in &status.tiers {
        let Some(vram) = &tier.vram else { continue };
        let bytes = |quantity: &Option<_>| quantity.as_ref().and_then(parse_bytes);
        if let (Some(required), Some(available)) = (bytes(&vram.required), bytes(&vram.available)) {
            let percent = u128::from(required) * 100 / u128::from(available.max(1));
            findings.push(Finding::well(
                "memory of a tier",
                format!("{} needs {percent} % of its card's share", tier.name),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_models_complaints_come_from_its_status_and_settings() {
        let mut model: AtlasModel = serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel", "metadata": {"name": "code"},
            "spec": {"tiers": [{"name": "a", "gpuProfile": "p", "model": {"source": "file:///m"}, "cpuOffloadLayers": 9}]},
        }))
        .unwrap();
        assert_eq!(check(&model)[0].severity, Severity::Broken);
        model.status = serde_json::from_value(json!({
            "tiers": [{"name": "a", "vram": {"required": "50Mi", "available": "100Mi"}}],
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "R", "message": "tier a serves", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Degraded", "status": "True", "reason": "R", "message": "tier b serves instead", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]}))
        .unwrap();
        let findings = check(&model);
        let of = |check: &str| {
            findings.iter().find(|finding| finding.check == check).map(|f| (f.severity, f.found.as_str()))
        };
        assert_eq!(of("serving"), Some((Severity::Well, "tier a serves")));
        assert_eq!(of("tier"), Some((Severity::Warning, "tier b serves instead")));
        assert_eq!(of("offload"), Some((Severity::Warning, "tier a keeps 9 layers on the CPU")));
        assert_eq!(of("memory of a tier"), Some((Severity::Well, "a needs 50 % of its card's share")));
        assert!(of("batch").is_some());
    }
}
