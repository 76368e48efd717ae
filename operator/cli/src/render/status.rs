//! A model's status on a terminal: its tiers, and the conditions that ask for a look.

use std::fmt::Write as _;

use atlas_crds::{
    AtlasModel, ModelCondition,
    quantity::parse_bytes,
    status::{AtlasModelStatus, TierStatus, VramStatus},
};
use atlas_operator_core::vram::mebibytes;
use comfy_table::{Cell, Table, presets};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use crate::{status::is_ready, terminal::Terminal};

/// Reason of Progressing while every tier is as it should be.
const SETTLED: &str = "Settled";

/// Draws models one below the other; `namespace` is where they were looked for, where not in all.
pub fn render_status(models: &[AtlasModel], namespace: Option<&str>, terminal: &Terminal) -> String {
    if models.is_empty() {
        return match namespace {
            Some(namespace) => {
                format!("no AtlasModels in namespace {namespace}: -n names another, -A looks into all\n")
            }
            None => "no AtlasModels\n".to_owned(),
        };
    }
    let mut out = String::new();
    for (index, model) in models.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        render_model(&mut out, model, terminal);
    }
    out
}

fn render_model(out: &mut String, model: &AtlasModel, terminal: &Terminal) {
    let name = format!("{}/{}", model.namespace().unwrap_or_default(), model.name_any());
    let name = terminal.strong(&name);
    // Writing to a String cannot fail.
    let Some(status) = &model.status else {
        let _ = writeln!(out, "{name}: {}", terminal.warn("no status yet: is the operator running?"));
        return;
    };
    let word = if is_ready(model) { terminal.good("Ready") } else { terminal.bad("not ready") };
    let _ = writeln!(out, "{name}: {word}");
    if let Some(url) = &status.url {
        out.push_str(&terminal.wrap(url, "  "));
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_width(terminal.width.saturating_sub(2));
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(["", "TIER", "CARD", "NODE", "READY", "VRAM", "STATE"]);
    for tier in &status.tiers {
        table.add_row(tier_row(model, status, tier));
    }
    for line in table.to_string().lines() {
        let _ = writeln!(out, " {}", line.trim_end());
    }
    if let Some(failover) = status.failover.as_ref().filter(|failover| failover.count > 0) {
        let reason = failover.last_reason.as_deref().unwrap_or("unknown");
        let millis = failover.last_millis.map_or(String::new(), |millis| format!(" in {millis} ms"));
        let text = format!("{} failover(s), the last by {reason}{millis}", failover.count);
        out.push_str(&terminal.wrap(&text, "  "));
    }
    for condition in status.conditions.iter().filter(|c| deserves_a_look(c)) {
        let text =
            format!("{}={} {}: {}", condition.type_, condition.status, condition.reason, condition.message);
        let wrapped = terminal.wrap(&text, "    ");
        let _ = write!(out, "  {} {}", terminal.warn("!"), wrapped.trim_start());
    }
}

fn tier_row(model: &AtlasModel, status: &AtlasModelStatus, tier: &TierStatus) -> Vec<Cell> {
    let active = status.active_tier.as_deref() == Some(&tier.name);
    let profile =
        model.spec.tiers.iter().find(|spec| spec.name == tier.name).map(|spec| spec.gpu_profile.as_str());
    let download = tier.download.as_ref().and_then(|d| d.percent.filter(|percent| *percent < 100));
    let download = download.map(|percent| format!("downloading, {percent} %"));
    let state = match (&tier.message, download) {
        _ if active => "serves".to_owned(),
        (_, Some(download)) => download,
        (Some(message), None) => message.clone(),
        (None, None) => "stands by".to_owned(),
    };
    let ready = format!("{}/{}", tier.ready, tier.replicas);
    let vram = tier.vram.as_ref().map_or(String::new(), vram_text);
    let node = tier.node.as_deref().unwrap_or("-");
    let mark = if active { "*" } else { "" };
    [mark, &tier.name, profile.unwrap_or("-"), node, &ready, &vram, &state].map(Cell::new).into()
}

fn vram_text(vram: &VramStatus) -> String {
    let bytes = |quantity: &Option<_>| quantity.as_ref().and_then(parse_bytes);
    match (bytes(&vram.required), bytes(&vram.available)) {
        (Some(required), Some(available)) => format!("{} of {}", mebibytes(required), mebibytes(available)),
        (None, Some(available)) => format!("? of {}", mebibytes(available)),
        _ => String::new(),
    }
}

/// Conditions that are as they should be are not shown.
fn deserves_a_look(condition: &Condition) -> bool {
    let Condition { type_, status, reason, .. } = condition;
    let is = |condition: ModelCondition| type_ == condition.as_str();
    if is(ModelCondition::Available) {
        return false;
    }
    if is(ModelCondition::Degraded) {
        return status == "True";
    }
    // A change that was taken back, or that an engine's end keeps up, is over and not well.
    if is(ModelCondition::Progressing) {
        return status == "True" || (status == "False" && reason != SETTLED);
    }
    let early = is(ModelCondition::VramFits) || is(ModelCondition::Accepted);
    status == "False" || (status == "Unknown" && early)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_model_shows_its_tiers_and_what_is_wrong_with_them() {
        let condition = |type_: &str, status: &str, message: &str| json!({"type": type_, "status": status, "reason": "R", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let mut rolled_back = condition("Progressing", "False", "taken back");
        rolled_back["reason"] = "RolledBack".into();
        let model: AtlasModel = serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
            "metadata": {"name": "code", "namespace": "atlas"},
            "spec": {"tiers": [
                {"name": "primary", "gpuProfile": "rx-7900-xtx", "model": {"source": "file:///a"}},
                {"name": "fallback", "gpuProfile": "rx-7600", "model": {"source": "file:///b"}}]},
            "status": {
                "url": "http://code.atlas.svc:8080/v1", "activeTier": "fallback",
                "tiers": [
                    {"name": "primary", "ready": 0, "replicas": 1, "message": "its pod is not ready", "node": "n1"},
                    {"name": "fallback", "ready": 1, "replicas": 1, "node": "n2",
                     "vram": {"required": "5000Mi", "available": "5616Mi"}}],
                "failover": {"count": 2, "lastReason": "ConnectionRefused", "lastMillis": 12},
                "conditions": [condition("Ready", "True", "fine"), condition("Degraded", "True", "fallback serves"), rolled_back],
            },
        }))
        .unwrap();
        let text = render_status(&[model], None, &Terminal::plain(120));
        for part in [
            "atlas/code: Ready",
            "rx-7900-xtx",
            "its pod is not ready",
            "5,000 MiB of 5,616 MiB",
            "serves",
            "2 failover(s), the last by ConnectionRefused in 12 ms",
            "! Degraded=True R: fallback serves",
            "! Progressing=False RolledBack: taken back",
        ] {
            assert!(text.contains(part), "{part} is missing\n{text}");
        }
        assert!(!text.contains("Ready=True"), "{text}");
    }

    #[test]
    fn a_model_without_a_status_asks_for_the_operator() {
        let model: AtlasModel = serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
            "metadata": {"name": "code", "namespace": "atlas"}, "spec": {"tiers": []},
        }))
        .unwrap();
        assert!(render_status(&[model], None, &Terminal::plain(80)).contains("is the operator running?"));
        assert_eq!(render_status(&[], None, &Terminal::plain(80)), "no AtlasModels\n");
        assert!(render_status(&[], Some("team"), &Terminal::plain(80)).contains("in namespace team: -n"));
    }
}
