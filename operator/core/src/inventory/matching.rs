//! Which nodes carry a profile's card, and the same question in the scheduler's words.

use std::collections::BTreeMap;

use atlas_crds::profile::{Allocation, Backend, GpuProfile, NodeMatch};

use super::{AMD_MARKER_KEYS, CU_COUNT, NodeView, PREFIXES, VRAM};

/// How a node matches a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileMatch {
    /// Cards of the profile's kind on it.
    pub cards: i32,
    /// Whether it carries another kind of card too, which the device plugin cannot tell apart.
    pub mixed: bool,
}

/// Whether the node carries the profile's card. A CPU profile without `match` takes every node without AMD cards.
#[must_use]
pub fn match_node(profile: &GpuProfile, node: &NodeView) -> Option<ProfileMatch> {
    let Some(wanted) = &profile.spec.node_match else {
        let free = profile.spec.backend == Backend::Cpu && !node.has_amd_card();
        return free.then_some(ProfileMatch { cards: 0, mixed: false });
    };
    let by_vram = look_up(&node.labels, VRAM, &wanted.vram_class)?;
    let by_units = look_up(&node.labels, CU_COUNT, &wanted.compute_units.to_string())?;
    let capacity = node.capacity.get(&profile.spec.resource_name).copied().unwrap_or(0);
    let capacity = i32::try_from(capacity).unwrap_or(i32::MAX);
    let counted = [by_vram.count, by_units.count].into_iter().flatten().min();
    let cards = if profile.spec.allocation == Allocation::ResourceClaim {
        // No device plugin has to count the cards there: a plain label says that there is one at least.
        counted.unwrap_or_else(|| capacity.max(1))
    } else {
        counted.map_or(capacity, |count| count.min(capacity))
    };
    Some(ProfileMatch { cards, mixed: by_vram.mixed || by_units.mixed })
}

/// What the labels of one kind say of one value.
struct LookUp {
    /// Cards with this value; `None` where the plain form does not count them.
    count: Option<i32>,
    /// Whether there are cards with other values.
    mixed: bool,
}

/// The same as [`super::read_label`] asked for one value, without a copy of anything: every reconcile asks every node.
fn look_up(labels: &BTreeMap<String, String>, kind: &str, value: &str) -> Option<LookUp> {
    let of_kind = |prefix: &'static str| {
        labels
            .iter()
            .filter_map(move |(key, said)| Some((key.strip_prefix(prefix)?.strip_prefix(kind)?, said)))
    };
    let plain = PREFIXES.iter().find_map(|prefix| of_kind(prefix).find(|(rest, _)| rest.is_empty()));
    if let Some((_, said)) = plain {
        return (said == value).then_some(LookUp { count: None, mixed: false });
    }
    PREFIXES.iter().find_map(|prefix| {
        let split = || {
            of_kind(prefix).filter_map(|(rest, count)| {
                Some((rest.strip_prefix('.')?, count.parse::<i32>().ok().filter(|count| *count > 0)?))
            })
        };
        let kinds = split().count();
        (kinds > 0).then(|| {
            let (_, count) = split().find(|(rest, _)| *rest == value)?;
            Some(LookUp { count: Some(count), mixed: kinds > 1 })
        })
    })?
}

/// Operator of a node selector requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// The label has the value.
    In,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Operator {
    /// The word that Kubernetes matches on.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
}

/// One requirement of a node selector term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// Label key.
    pub key: String,
    /// Comparison.
    pub operator: Operator,
    /// Value for [`Operator::In`].
    pub value: Option<String>,
}

impl Expression {
    fn is_in(key: String, value: String) -> Self {
        Self { key, operator: Operator::In, value: Some(value) }
    }
    fn exists(key: String) -> Self {
        Self { key, operator: Operator::Exists, value: None }
    }
    fn absent(key: impl Into<String>) -> Self {
        Self { key: key.into(), operator: Operator::DoesNotExist, value: None }
    }
}

/// The node selector terms (any of them, all expressions of each) that select exactly what [`match_node`] accepts.
#[must_use]
pub fn node_selector_terms(node_match: Option<&NodeMatch>) -> Vec<Vec<Expression>> {
    let Some(wanted) = node_match else {
        return vec![AMD_MARKER_KEYS.iter().map(|key| Expression::absent(*key)).collect()];
    };
    let (vram, units) = (&wanted.vram_class, wanted.compute_units);
    // A plain key makes split keys stale, so the split terms ask for its absence.
    let plain = |prefix: &str| {
        vec![
            Expression::is_in(format!("{prefix}{VRAM}"), vram.clone()),
            Expression::is_in(format!("{prefix}{CU_COUNT}"), units.to_string()),
        ]
    };
    let split = |prefix: &str, absent: &[&str]| {
        let mut term = vec![
            Expression::exists(format!("{prefix}{VRAM}.{vram}")),
            Expression::exists(format!("{prefix}{CU_COUNT}.{units}")),
        ];
        term.extend(absent.iter().map(|key| Expression::absent(*key)));
        term
    };
    let plain_keys = ["amd.com/gpu.vram", "beta.amd.com/gpu.vram"];
    vec![
        plain("amd.com/gpu."),
        split("amd.com/gpu.", &plain_keys),
        plain("beta.amd.com/gpu."),
        split("beta.amd.com/gpu.", &plain_keys),
    ]
}

/// The labels that were looked for, as a person reads them in a condition.
#[must_use]
pub fn describe_match(profile: &GpuProfile) -> String {
    match &profile.spec.node_match {
        None => "no label amd.com/gpu.*".to_owned(),
        Some(m) => format!(
            "amd.com/gpu.vram={v} and amd.com/gpu.cu-count={c} (or amd.com/gpu.vram.{v} and amd.com/gpu.cu-count.{c})",
            v = m.vram_class,
            c = m.compute_units
        ),
    }
}

/// What makes a profile's nodes ambiguous: other kinds of card on the node, or another profile matching it too.
#[must_use]
pub fn unambiguous_problems(profile: &GpuProfile, all: &[&GpuProfile], nodes: &[&NodeView]) -> Vec<String> {
    let mut problems = Vec::new();
    // Any CPU is as good as another: profiles that share nodes are no mistake there.
    if profile.spec.backend == Backend::Cpu {
        return problems;
    }
    for node in nodes {
        let Some(matched) = match_node(profile, node) else { continue };
        // A claim gets the right card of several.
        if matched.mixed && profile.spec.allocation == Allocation::ResourceClaim {
            continue;
        }
        if matched.mixed {
            problems.push(format!(
                "node {} carries several kinds of card, which the device plugin cannot tell apart (allocation: ResourceClaim can)",
                node.name
            ));
            continue;
        }
        let others: Vec<&str> = all
            .iter()
            .filter(|other| name_of(other) != name_of(profile) && other.spec.backend == profile.spec.backend)
            .filter(|other| match_node(other, node).is_some())
            .map(|other| name_of(other))
            .collect();
        if !others.is_empty() {
            problems.push(format!("node {} is matched by profile {} too", node.name, others.join(", ")));
        }
    }
    problems
}

/// The object's name; the API server gives every stored object one.
fn name_of(profile: &GpuProfile) -> &str {
    profile.metadata.name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn profile(name: &str, class: &str, units: i32) -> GpuProfile {
        serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "GpuProfile", "metadata": {"name": name},
            "spec": {"product": name, "vram": "24560Mi", "gfxTarget": "gfx1100",
                     "match": {"vramClass": class, "computeUnits": units}}
        }))
        .unwrap()
    }

    fn node(cards: i64, labels: &[(&str, &str)]) -> NodeView {
        NodeView {
            name: "n1".into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            capacity: [("amd.com/gpu".to_owned(), cards)].into(),
            ready: true,
            schedulable: true,
            ..NodeView::default()
        }
    }

    /// The terms evaluated as the scheduler does it: any term, every expression.
    fn selected(terms: &[Vec<Expression>], node: &NodeView) -> bool {
        terms.iter().any(|term| {
            term.iter().all(|e| match e.operator {
                Operator::In => node.labels.get(&e.key) == e.value.as_ref(),
                Operator::Exists => node.labels.contains_key(&e.key),
                Operator::DoesNotExist => !node.labels.contains_key(&e.key),
            })
        })
    }

    #[test]
    fn labels_in_every_form_find_the_card_and_the_scheduler_agrees() {
        let plain24 = [("amd.com/gpu.vram", "24G"), ("amd.com/gpu.cu-count", "96")];
        let split = [
            ("amd.com/gpu.vram.24G", "1"),
            ("amd.com/gpu.vram.8G", "1"),
            ("amd.com/gpu.cu-count.96", "1"),
            ("amd.com/gpu.cu-count.32", "1"),
            ("amd.com/gpu.family", "GC_11_0_0"),
        ];
        let beta = [("beta.amd.com/gpu.vram", "24G"), ("beta.amd.com/gpu.cu-count", "96")];
        let beta_split = [("beta.amd.com/gpu.vram.24G", "2"), ("beta.amd.com/gpu.cu-count.96", "2")];
        let stale = [
            ("amd.com/gpu.vram", "8G"),
            ("amd.com/gpu.cu-count", "32"),
            ("amd.com/gpu.vram.24G", "1"),
            ("amd.com/gpu.cu-count.96", "1"),
        ];
        let units_differ = [("amd.com/gpu.vram", "24G"), ("amd.com/gpu.cu-count", "84")];
        let hit = |cards, mixed| Some(ProfileMatch { cards, mixed });
        let check = |what: &str, cards: i64, labels: &[(&str, &str)], big, small| {
            let node = node(cards, labels);
            for (profile, expected) in [(profile("xtx", "24G", 96), big), (profile("rx", "8G", 32), small)] {
                assert_eq!(match_node(&profile, &node), expected, "{what}: {}", profile.spec.product);
                let terms = node_selector_terms(profile.spec.node_match.as_ref());
                assert_eq!(selected(&terms, &node), expected.is_some(), "{what}: terms");
            }
        };
        check("plain", 1, &plain24, hit(1, false), None);
        check("two of a kind", 2, &plain24, hit(2, false), None);
        check("plugin gone", 0, &plain24, hit(0, false), None);
        check("split", 2, &split, hit(1, true), hit(1, true));
        check("beta", 1, &beta, hit(1, false), None);
        check("beta split alone", 2, &beta_split, hit(2, false), None);
        check("stale split beside plain", 1, &stale, None, hit(1, false));
        check("same memory, other card", 1, &units_differ, None, None);
        check("no label", 0, &[], None, None);
        check("vram alone", 1, &plain24[..1], None, None);
    }

    #[test]
    fn cpu_profiles_take_nodes_without_amd_cards() {
        let mut cpu = profile("cpu", "24G", 96);
        cpu.spec.backend = Backend::Cpu;
        cpu.spec.node_match = None;
        assert!(match_node(&cpu, &node(0, &[])).is_some());
        assert!(match_node(&cpu, &node(1, &[("amd.com/gpu.vram", "8G")])).is_none());
    }

    #[test]
    fn ambiguity_names_nodes_and_profiles() {
        let (a, b) = (profile("a", "24G", 96), profile("b", "24G", 96));
        let plain = node(1, &[("amd.com/gpu.vram", "24G"), ("amd.com/gpu.cu-count", "96")]);
        assert_eq!(unambiguous_problems(&a, &[&a, &b], &[&plain]), ["node n1 is matched by profile b too"]);
        assert!(unambiguous_problems(&a, &[&a], &[&plain]).is_empty());
    }
}
