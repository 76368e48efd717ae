//! `explain`: which cards a node has as far as its labels tell, which GpuProfiles match it, and what runs on it.

use atlas_crds::{GpuProfile, names};
use atlas_operator_core::inventory::{
    CU_COUNT, LabelForm, NodeView, VRAM, describe_match, match_node, read_label,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt, api::ListParams};
use serde::Serialize;

use crate::{
    Outcome,
    args::{ExplainArgs, Output, Target},
    cluster::{Cluster, list},
    error::CliError,
    render::render_node,
    terminal::{Terminal, print_value, put},
};

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Its name.
    pub node: String,
    /// Whether its kubelet reports it as ready.
    pub ready: bool,
    /// Whether new pods may be placed on it.
    pub schedulable: bool,
    /// Labels of the AMD node labeller, as KEY=VALUE.
    pub labels: Vec<String>,
    /// Extended resources: name, what it has, what can be handed out.
    pub resources: Vec<ResourceReport>,
    /// Every profile, and how it stands to the node.
    pub profiles: Vec<ProfileReport>,
    /// Engine pods on it.
    pub engines: Vec<String>,
    /// What is wrong, with the remedy.
    pub problems: Vec<String>,
}

/// One extended resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceReport {
    /// Its name.
    pub name: String,
    /// What the node has.
    pub capacity: i64,
    /// What can be handed out.
    pub allocatable: i64,
}

/// How a profile stands to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProfileReport {
    /// Its name.
    pub profile: String,
    /// Whether the node carries its card.
    pub matches: bool,
    /// Why, or why not.
    pub reason: String,
}

/// Prints; a problem is one.
pub async fn run(args: &ExplainArgs, target: &Target, terminal: &Terminal) -> Result<Outcome, CliError> {
    let cluster = Cluster::connect(target).await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let what = format!("Node {}", args.node);
    let found = nodes.get_opt(&args.node).await;
    let Some(node) = found.map_err(|source| CliError::Read { what: what.clone(), source })? else {
        let known: Vec<String> = list(&nodes, "Nodes").await?.iter().map(ResourceExt::name_any).collect();
        return Err(CliError::NotFound { what, hint: format!(": there are {}", known.join(", ")) });
    };
    let engines = list_engines(&cluster, &args.node).await?;
    let report = explain(&node, &cluster.profiles().await?, engines);
    match args.output {
        Output::Table => put(&render_node(&report, terminal)),
        output => print_value(&report, output)?,
    }
    Ok(if report.problems.is_empty() { Outcome::Well } else { Outcome::Problem })
}

async fn list_engines(cluster: &Cluster, node: &str) -> Result<Vec<String>, CliError> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let params = ListParams::default()
        .labels(&format!("{}={}", names::LABEL_COMPONENT, names::COMPONENT_ENGINE))
        .fields(&format!("spec.nodeName={node}"));
    let found = pods.list(&params).await.map_err(|source| CliError::Read { what: "Pods".into(), source })?;
    Ok(found
        .iter()
        .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
        .collect())
}

/// What a node's labels mean.
pub fn explain(node: &Node, profiles: &[GpuProfile], engines: Vec<String>) -> NodeReport {
    let view = NodeView::from_node(node);
    let mut resources: Vec<ResourceReport> = view
        .capacity
        .iter()
        .map(|(name, capacity)| ResourceReport {
            name: name.clone(),
            capacity: *capacity,
            allocatable: view.allocatable.get(name).copied().unwrap_or(0),
        })
        .collect();
    resources.sort_by(|a, b| a.name.cmp(&b.name));
    let reports: Vec<ProfileReport> = profiles.iter().map(|profile| report_profile(profile, &view)).collect();
    let problems = find_problems(&view, profiles, &resources);
    NodeReport {
        node: view.name.clone(),
        ready: view.ready,
        schedulable: view.schedulable,
        labels: view.labels.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        resources,
        profiles: reports,
        engines,
        problems,
    }
}

fn report_profile(profile: &GpuProfile, view: &NodeView) -> ProfileReport {
    let matched = match_node(profile, view);
    let reason = match &matched {
        Some(found) if found.mixed => {
            format!(
                "{} card(s), beside cards of another kind: the engine checks its card at start",
                found.cards
            )
        }
        Some(found) if profile.spec.node_match.is_some() => format!("{} card(s)", found.cards),
        Some(_) => "a CPU profile takes nodes without AMD cards".to_owned(),
        None => why_not(profile, view),
    };
    ProfileReport { profile: profile.name_any(), matches: matched.is_some(), reason }
}

fn why_not(profile: &GpuProfile, view: &NodeView) -> String {
    let Some(wanted) = &profile.spec.node_match else {
        return "a CPU profile takes no node with AMD cards".to_owned();
    };
    let units = wanted.compute_units.to_string();
    for (kind, value) in [(VRAM, &wanted.vram_class), (CU_COUNT, &units)] {
        match read_label(&view.labels, kind) {
            None => {
                return format!(
                    "the node has no label amd.com/gpu.{kind}; wanted {}",
                    describe_match(profile)
                );
            }
            Some(form) if form.count_of(value).is_none() => {
                return format!("amd.com/gpu.{kind} is {}, wanted {value}", show(&form));
            }
            Some(_) => {}
        }
    }
    format!("wanted {}", describe_match(profile))
}

fn show(form: &LabelForm) -> String {
    match form {
        LabelForm::Plain(value) => value.clone(),
        LabelForm::Split(values) => values.keys().cloned().collect::<Vec<_>>().join(" and "),
    }
}

fn find_problems(view: &NodeView, profiles: &[GpuProfile], resources: &[ResourceReport]) -> Vec<String> {
    let mut problems = Vec::new();
    if !view.ready {
        problems.push("the kubelet does not report the node as ready".to_owned());
    }
    if !view.schedulable {
        problems.push(format!("the node is cordoned: kubectl uncordon {}", view.name));
    }
    let cards: Vec<&GpuProfile> = profiles
        .iter()
        .filter(|profile| profile.spec.node_match.is_some() && match_node(profile, view).is_some())
        .collect();
    for resource in resources.iter().filter(|resource| resource.capacity > 0 && resource.allocatable == 0) {
        problems.push(format!(
            "{} has a capacity of {} and nothing to hand out: restart the AMD device plugin's pod on the node",
            resource.name, resource.capacity
        ));
    }
    for profile in &cards {
        let name = &profile.spec.resource_name;
        if !resources.iter().any(|resource| &resource.name == name && resource.capacity > 0) {
            problems.push(format!(
                "the labels are those of {}, but the node has no {name}: install the AMD device plugin, or look into its pod's log",
                profile.name_any()
            ));
        }
    }
    if view.has_amd_card() && cards.is_empty() {
        problems.push(
            "no GpuProfile matches the node's card: create one, or correct match of one above".to_owned(),
        );
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::sample_profiles;
    use serde_json::json;

    fn report(labels: serde_json::Value, capacity: &str, allocatable: &str, cordoned: bool) -> NodeReport {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": labels}, "spec": {"unschedulable": cordoned},
            "status": {"capacity": {"amd.com/gpu": capacity, "cpu": "8"}, "allocatable": {"amd.com/gpu": allocatable},
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        explain(&node, &sample_profiles().unwrap(), Vec::new())
    }

    fn reason<'a>(report: &'a NodeReport, profile: &str) -> &'a str {
        report.profiles.iter().find(|p| p.profile == profile).map_or("", |p| p.reason.as_str())
    }

    #[test]
    fn a_node_says_which_profile_it_is_and_why_it_is_not_another() {
        let one = report(json!({"amd.com/gpu.vram": "24G", "amd.com/gpu.cu-count": "96"}), "1", "1", false);
        assert!(one.problems.is_empty(), "{:?}", one.problems);
        assert_eq!(reason(&one, "rx-7900-xtx"), "1 card(s)");
        assert_eq!(reason(&one, "rx-7600"), "amd.com/gpu.vram is 24G, wanted 8G");
        let both = json!({"amd.com/gpu.vram.24G": "1", "amd.com/gpu.vram.8G": "1",
                          "amd.com/gpu.cu-count.96": "1", "amd.com/gpu.cu-count.32": "1"});
        let both = report(both, "2", "2", false);
        assert!(reason(&both, "rx-7600").contains("beside cards of another kind"));
        let none = report(json!({}), "0", "0", false);
        assert!(reason(&none, "rx-7600").contains("the node has no label amd.com/gpu.vram"));
    }

    #[test]
    fn what_is_wrong_with_a_node_names_its_remedy() {
        let labels = json!({"amd.com/gpu.vram": "8G", "amd.com/gpu.cu-count": "32"});
        let check = |report: NodeReport, says: &str| {
            assert!(
                report.problems.iter().any(|problem| problem.contains(says)),
                "{says}: {:?}",
                report.problems
            );
        };
        check(report(labels.clone(), "1", "0", false), "restart the AMD device plugin's pod");
        check(report(labels.clone(), "0", "0", false), "install the AMD device plugin");
        check(report(labels, "1", "1", true), "kubectl uncordon n1");
        let other = json!({"amd.com/gpu.vram": "48G", "amd.com/gpu.cu-count": "99"});
        check(report(other, "1", "1", false), "no GpuProfile matches the node's card");
    }
}
