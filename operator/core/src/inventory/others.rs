//! Cards that pods of other workloads hold: the scheduler counts them, so the inventory does too.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

/// Extended resources by name.
type Amounts = BTreeMap<String, i64>;

/// What pods of others have requested, by node and by `NAMESPACE/NAME`; pods without extended resources are not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherWorkloads {
    by_node: BTreeMap<String, BTreeMap<String, Amounts>>,
}

impl OtherWorkloads {
    /// Notes a pod as it is now; returns its node where that changed anything.
    pub fn put(&mut self, pod: &Pod) -> Option<String> {
        let node = pod.spec.as_ref()?.node_name.clone()?;
        let requests = extended_requests(pod);
        if requests.is_empty() {
            return self.remove(pod);
        }
        let before = self.by_node.entry(node.clone()).or_default().insert(key_of(pod), requests.clone());
        (before.as_ref() != Some(&requests)).then_some(node)
    }

    /// Forgets a pod; returns its node where it was known.
    pub fn remove(&mut self, pod: &Pod) -> Option<String> {
        let node = pod.spec.as_ref()?.node_name.clone()?;
        let pods = self.by_node.get_mut(&node)?;
        let known = pods.remove(&key_of(pod)).is_some();
        if pods.is_empty() {
            self.by_node.remove(&node);
        }
        known.then_some(node)
    }

    /// The node of a pod that holds something, or did; `None` for every other pod.
    #[must_use]
    pub fn node_of<'a>(&self, pod: &'a Pod) -> Option<&'a str> {
        let node = pod.spec.as_ref()?.node_name.as_deref()?;
        let known = self.by_node.get(node).is_some_and(|pods| pods.contains_key(&key_of(pod)));
        (known || !extended_requests(pod).is_empty()).then_some(node)
    }

    /// Nodes on which anything is held.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.by_node.keys().map(String::as_str)
    }

    /// How much of a resource is held on a node, and by which pods.
    #[must_use]
    pub fn held(&self, node: &str, resource: &str) -> (i64, Vec<&str>) {
        let mut total = 0;
        let mut holders = Vec::new();
        for (pod, requests) in self.by_node.get(node).into_iter().flatten() {
            if let Some(amount) = requests.get(resource).filter(|amount| **amount > 0) {
                total += amount;
                holders.push(pod.as_str());
            }
        }
        (total, holders)
    }
}

fn key_of(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    )
}

/// What a pod counts for on its node: its containers and sidecars together, or its largest init container.
fn extended_requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let mut running = Amounts::new();
    for container in &spec.containers {
        add(&mut running, &requests_of(container));
    }
    let mut largest = Amounts::new();
    let mut sidecars = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let mut requests = requests_of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut running, &requests);
            add(&mut sidecars, &requests);
        } else {
            add(&mut requests, &sidecars);
            raise(&mut largest, &requests);
        }
    }
    raise(&mut running, &largest);
    running
}

fn requests_of(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else { return Amounts::new() };
    // The API server makes requests of limits where a resource has only those.
    [&resources.limits, &resources.requests]
        .into_iter()
        .flatten()
        .flatten()
        .filter(|(name, _)| name.contains('/'))
        .filter_map(|(name, amount)| Some((name.clone(), amount.0.parse().ok()?)))
        .collect()
}

fn add(into: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *into.entry(name.clone()).or_default() += amount;
    }
}

fn raise(into: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let held = into.entry(name.clone()).or_default();
        *held = (*held).max(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "ml", "name": name}, "spec": spec})).unwrap()
    }

    fn container(cards: i64) -> Value {
        json!({"name": "c", "resources": {"limits": {"amd.com/gpu": cards.to_string(), "cpu": "1"}}})
    }

    #[test]
    fn a_pod_counts_as_the_scheduler_counts_it() {
        let check = |spec: Value, expected: i64| {
            let mut others = OtherWorkloads::default();
            let pod = pod("train", spec.clone());
            others.put(&pod);
            assert_eq!(others.held("n1", "amd.com/gpu").0, expected, "{spec}");
        };
        let sidecar = |cards: i64| {
            let mut container = container(cards);
            container["restartPolicy"] = "Always".into();
            container
        };
        check(json!({"nodeName": "n1", "containers": [container(1), container(2)]}), 3);
        check(json!({"nodeName": "n1", "containers": [container(1)], "initContainers": [container(2)]}), 2);
        check(json!({"nodeName": "n1", "containers": [container(1)], "initContainers": [sidecar(1)]}), 2);
        check(
            json!({"nodeName": "n1", "containers": [{"name": "c"}], "initContainers": [sidecar(1), container(1)]}),
            2,
        );
        check(json!({"nodeName": "n1", "containers": [{"name": "c"}]}), 0);
        check(json!({"nodeName": "n2", "containers": [container(1)]}), 0);
        check(json!({"containers": [container(1)]}), 0);
    }

    #[test]
    fn changes_are_told_once_and_nothing_stays_behind() {
        let mut others = OtherWorkloads::default();
        let train = pod("train", json!({"nodeName": "n1", "containers": [container(1)]}));
        let web = pod("web", json!({"nodeName": "n1", "containers": [{"name": "c"}]}));
        assert_eq!(others.put(&train).as_deref(), Some("n1"));
        assert_eq!(others.put(&train), None);
        assert_eq!(others.put(&web), None);
        assert_eq!(others.held("n1", "amd.com/gpu"), (1, vec!["ml/train"]));
        assert_eq!(others.remove(&train).as_deref(), Some("n1"));
        assert_eq!(others.remove(&train), None);
        assert_eq!(others, OtherWorkloads::default());
    }
}
