//! Whether what is said about a card agrees with itself: the labeller's labels, the device plugin's counts, the driver.

use atlas_crds::GpuProfile;

use super::{CU_COUNT, LabelForm, NodeView, PREFIXES, VRAM, match_node, read_label};

/// Kind of label: the driver's version, empty where the kernel's own driver runs.
pub const DRIVER_VERSION: &str = "driver-version";

/// What the labels and counts of a profile's nodes contradict each other in; empty where they agree.
#[must_use]
pub fn label_problems(profile: &GpuProfile, nodes: &[&NodeView]) -> Vec<String> {
    let Some(wanted) = &profile.spec.node_match else { return Vec::new() };
    let mut problems = Vec::new();
    for node in nodes {
        let has_class = matches!(read_label(&node.labels, VRAM), Some(form) if form.count_of(&wanted.vram_class).is_some());
        // A node of that memory class that lacks the other label would never match, and nobody would know why.
        if has_class && read_label(&node.labels, CU_COUNT).is_none() {
            problems.push(format!(
                "node {} has amd.com/gpu.{VRAM}={} and no {CU_COUNT}: switch that label of the node labeller on",
                node.name, wanted.vram_class
            ));
        }
        if match_node(profile, node).is_none() {
            continue;
        }
        for kind in [VRAM, CU_COUNT] {
            problems.extend(kind_problem(node, kind));
        }
        problems.extend(count_problem(profile, node));
    }
    problems
}

/// A plain label beside split ones: the labeller never removes the latter, and the plain one is believed.
fn kind_problem(node: &NodeView, kind: &str) -> Option<String> {
    let prefix = PREFIXES[0];
    let plain = node.labels.get(&format!("{prefix}{kind}"))?;
    let stem = format!("{prefix}{kind}.");
    let stale = node.labels.keys().find(|key| key.starts_with(&stem))?;
    Some(format!(
        "node {} has {prefix}{kind}={plain} and the stale label {stale}: remove it with kubectl label node {} {stale}-",
        node.name, node.name
    ))
}

fn count_problem(profile: &GpuProfile, node: &NodeView) -> Option<String> {
    let resource = &profile.spec.resource_name;
    let count = |from: &std::collections::BTreeMap<String, i64>| from.get(resource).copied().unwrap_or(0);
    let (capacity, allocatable) = (count(&node.capacity), count(&node.allocatable));
    if capacity > 0 && allocatable == 0 {
        return Some(format!(
            "node {} has {capacity} {resource} and offers none: restart the AMD device plugin's pod there",
            node.name
        ));
    }
    let labelled: i64 = match read_label(&node.labels, VRAM)? {
        LabelForm::Split(values) => values.values().map(|count| i64::from(*count)).sum(),
        LabelForm::Plain(_) => return None,
    };
    (labelled != capacity && capacity > 0).then(|| {
        format!("node {} has labels of {labelled} card(s) and {capacity} {resource}: restart the node labeller's pod there", node.name)
    })
}

/// How a profile's nodes stand to the drivers that it was validated with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverVerdict {
    /// The profile names none.
    NotListed,
    /// No matched node tells its driver.
    Untold,
    /// Every matched node that tells it runs a validated one.
    Validated,
    /// Some run another: node and version of each.
    Other(Vec<(String, String)>),
}

/// Compares the drivers of a profile's nodes with those it was validated with.
///
/// A version counts as validated where a listed one equals it or is its beginning up to a dot or hyphen: `6.3.6` holds
/// for `6.3.6-1718217.22.04`.
#[must_use]
pub fn judge_drivers(profile: &GpuProfile, nodes: &[&NodeView]) -> DriverVerdict {
    let validated = &profile.spec.validated_drivers;
    if validated.is_empty() {
        return DriverVerdict::NotListed;
    }
    let told: Vec<(String, String)> = nodes
        .iter()
        .filter(|node| match_node(profile, node).is_some())
        .flat_map(|node| driver_versions(node).into_iter().map(|version| (node.name.clone(), version)))
        .collect();
    if told.is_empty() {
        return DriverVerdict::Untold;
    }
    let holds = |version: &str| {
        validated.iter().any(|known| {
            version
                .strip_prefix(known.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-']))
        })
    };
    let other: Vec<_> = told.into_iter().filter(|(_, version)| !holds(version)).collect();
    if other.is_empty() { DriverVerdict::Validated } else { DriverVerdict::Other(other) }
}

fn driver_versions(node: &NodeView) -> Vec<String> {
    match read_label(&node.labels, DRIVER_VERSION) {
        None => Vec::new(),
        Some(LabelForm::Plain(version)) => {
            Some(version).filter(|version| !version.is_empty()).into_iter().collect()
        }
        Some(LabelForm::Split(versions)) => versions.into_keys().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn profile(drivers: &[&str]) -> GpuProfile {
        serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "GpuProfile", "metadata": {"name": "xtx"},
            "spec": {"product": "P", "vram": "24560Mi", "gfxTarget": "gfx1100", "validatedDrivers": drivers,
                     "match": {"vramClass": "24G", "computeUnits": 96}}
        }))
        .unwrap()
    }

    fn node(labels: &[(&str, &str)], capacity: i64, allocatable: i64) -> NodeView {
        NodeView {
            name: "n1".into(),
            labels: labels.iter().map(|(k, v)| (format!("amd.com/gpu.{k}"), (*v).into())).collect(),
            capacity: [("amd.com/gpu".to_owned(), capacity)].into(),
            allocatable: [("amd.com/gpu".to_owned(), allocatable)].into(),
            ..NodeView::default()
        }
    }

    #[test]
    fn contradictions_are_told_with_their_remedy() {
        let check = |labels: &[(&str, &str)], cards: (i64, i64), says: Option<&str>| {
            let node = node(labels, cards.0, cards.1);
            let problems = label_problems(&profile(&[]), &[&node]);
            match says {
                None => assert!(problems.is_empty(), "{problems:?}"),
                Some(part) => {
                    assert!(problems.len() == 1 && problems[0].contains(part), "{part}: {problems:?}")
                }
            }
        };
        let plain = [("vram", "24G"), ("cu-count", "96")];
        let split = [("vram.24G", "1"), ("vram.8G", "1"), ("cu-count.96", "1"), ("cu-count.32", "1")];
        check(&plain, (1, 1), None);
        check(&split, (2, 2), None);
        check(&[("vram", "8G"), ("cu-count", "32")], (1, 0), None);
        check(&plain, (1, 0), Some("restart the AMD device plugin's pod"));
        check(&split, (3, 3), Some("labels of 2 card(s) and 3 amd.com/gpu"));
        check(
            &[plain[0], plain[1], ("vram.8G", "1")],
            (1, 1),
            Some("kubectl label node n1 amd.com/gpu.vram.8G-"),
        );
        check(&plain[..1], (1, 1), Some("no cu-count"));
    }

    #[test]
    fn drivers_are_compared_by_their_beginning() {
        let check = |drivers: &[&str], label: Option<&str>, expected: DriverVerdict| {
            let mut labels = vec![("vram", "24G"), ("cu-count", "96")];
            labels.extend(label.map(|version| ("driver-version", version)));
            assert_eq!(judge_drivers(&profile(drivers), &[&node(&labels, 1, 1)]), expected, "{label:?}");
        };
        let other = |version: &str| DriverVerdict::Other(vec![("n1".into(), version.into())]);
        check(&[], Some("6.3.6"), DriverVerdict::NotListed);
        check(&["6.3.6"], None, DriverVerdict::Untold);
        check(&["6.3.6"], Some(""), DriverVerdict::Untold);
        check(&["6.3.6"], Some("6.3.6"), DriverVerdict::Validated);
        check(&["6.3.6"], Some("6.3.6-1718217.22.04"), DriverVerdict::Validated);
        check(&["6.3.6"], Some("6.3.60"), other("6.3.60"));
        check(&["6.3.6", "6.7.0"], Some("5.18.13"), other("5.18.13"));
    }
}
