//! What the chart offers to Prometheus and Grafana: off unless asked for, of the right pods, and of metrics that exist.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use atlas_crds::names;
use serde_json::Value;

use super::{Helm, chart, documents, repository};

const ALL: &str = "metrics.monitors.create=true,metrics.monitors.labels.release=stack,metrics.rules.create=true,metrics.dashboard.create=true";

/// Endings of the series that one histogram has.
const HISTOGRAM: [&str; 3] = ["_bucket", "_sum", "_count"];

#[test]
fn monitoring_is_what_was_asked_for_and_selects_the_pods_that_there_are() -> Result<()> {
    let helm = Helm::offline()?;
    let plain = documents(&helm.run(&["template", "x", &chart()])?)?;
    ensure!(!plain.iter().any(is_monitoring), "an API that may not be there is used without being asked to");

    let rendered = documents(&helm.run(&["template", "x", &chart(), "--set", ALL])?)?;
    let found: Vec<&Value> = rendered.iter().filter(|document| is_monitoring(document)).collect();
    let kinds: Vec<&str> = found.iter().filter_map(|document| document["kind"].as_str()).collect();
    assert_eq!(kinds, ["PodMonitor", "PodMonitor", "PodMonitor", "PrometheusRule"]);
    for (monitor, component) in
        found.iter().zip(["controller", names::COMPONENT_GATEWAY, names::COMPONENT_ENGINE])
    {
        let labels = &monitor["spec"]["selector"]["matchLabels"];
        assert_eq!(labels[names::LABEL_COMPONENT], component);
        if component != "controller" {
            assert_eq!(labels[names::LABEL_MANAGED_BY], names::FIELD_MANAGER);
            assert_eq!(monitor["spec"]["namespaceSelector"]["any"], true);
        }
        assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "internal");
        assert_eq!(monitor["metadata"]["labels"]["release"], "stack");
    }
    Ok(())
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() -> Result<()> {
    let folder = repository().join("helm/atlas-operator/files/monitoring");
    let known = registered()?;
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = std::fs::read_to_string(folder.join(file))?;
        let used = metrics_in(&text);
        ensure!(used.len() > 8, "{file}: only {used:?} was found");
        let unknown: Vec<&String> =
            used.iter().filter(|name| !known.contains(series_of(name, &known))).collect();
        ensure!(unknown.is_empty(), "{file} asks for {unknown:?}, which nothing registers");
    }
    Ok(())
}

#[test]
fn every_alert_says_how_bad_what_and_what_to_do() -> Result<()> {
    let rendered = documents(&Helm::offline()?.run(&["template", "x", &chart(), "--set", ALL])?)?;
    let rule = rendered.iter().find(|d| d["kind"] == "PrometheusRule").context("no rules")?;
    let groups = rule["spec"]["groups"].as_array().context("no groups")?;
    let alerts: Vec<&Value> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
    for alert in &alerts {
        let severity = alert["labels"]["severity"].as_str();
        ensure!(matches!(severity, Some("critical" | "warning")), "{alert}");
        for text in ["summary", "description"] {
            ensure!(
                alert["annotations"][text].as_str().is_some_and(|text| text.ends_with('.')),
                "{text}: {alert}"
            );
        }
    }
    let names: BTreeSet<&str> = alerts.iter().filter_map(|alert| alert["alert"].as_str()).collect();
    ensure!(names.len() == alerts.len() && names.len() > 10, "{names:?}");
    Ok(())
}

fn is_monitoring(document: &Value) -> bool {
    document["apiVersion"].as_str().is_some_and(|version| version.starts_with("monitoring.coreos.com/"))
}

/// Names that begin as ours do, in any text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("atlas_"))
        .map(str::to_owned)
        .collect()
}

/// The metric that a series belongs to.
fn series_of<'a>(name: &'a str, known: &BTreeSet<String>) -> &'a str {
    let metric = HISTOGRAM.iter().find_map(|ending| name.strip_suffix(ending));
    metric.filter(|metric| known.contains(*metric)).unwrap_or(name)
}

/// What the programs register: each name stands as a literal where it is registered, those of the engine's scheduler
/// without their beginning.
fn registered() -> Result<BTreeSet<String>> {
    let mut known = BTreeSet::new();
    for file in [
        "operator/src/metrics.rs",
        "operator/src/state_metrics.rs",
        "operator/gateway/src/metrics.rs",
        "engine/src/metrics.rs",
        "engine/src/card_metrics.rs",
        "engine/src/runtime/metrics.rs",
    ] {
        let text = std::fs::read_to_string(repository().join(file)).with_context(|| file.to_owned())?;
        // Literals are every second piece between quotes, as far as names go: none holds a quote.
        for literal in text.split('"').skip(1).step_by(2) {
            let beginning = if file.contains("runtime") { "atlas_engine_" } else { "" };
            known.insert(format!("{beginning}{literal}"));
        }
    }
    Ok(known)
}
