//! When an eviction may take the last pod that serves: when no other can be made first.
//!
//! A disruption budget of one keeps a drain from taking everything at once, and would make it wait for ever where what
//! was evicted before has no other node to go to.

use crate::{observe::PodView, stores::Nodes};

/// Whether waiting would be in vain: pods are missing, all that serve stand on nodes that are being emptied, and none
/// of the others can come up.
#[must_use]
pub fn last_may_go<'a>(pods: impl IntoIterator<Item = &'a PodView>, wanted: i32, nodes: &Nodes) -> bool {
    let leaves = |pod: &PodView| {
        let node = pod.node.as_ref().map(|name| nodes.get(name));
        node.is_some_and(|node| node.is_none_or(|node| !node.schedulable || !node.ready))
    };
    let (serving, others): (Vec<&PodView>, Vec<&PodView>) =
        pods.into_iter().filter(|pod| !pod.terminating).partition(|pod| pod.ready);
    let wanted = usize::try_from(wanted).unwrap_or(0);
    !serving.is_empty()
        && serving.len() < wanted
        // One that is not made yet may find a node.
        && serving.len() + others.len() >= wanted
        && serving.iter().all(|pod| leaves(pod))
        && others.iter().all(|pod| pod.unschedulable.is_some() || leaves(pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use atlas_operator_core::inventory::NodeView;
    use std::sync::Arc;

    #[test]
    fn the_last_may_go_only_where_no_other_can_come_first() {
        let nodes: Nodes = [("open", true), ("cordoned", false), ("also", false)]
            .map(|(name, schedulable)| {
                let view = NodeView { name: name.into(), ready: true, schedulable, ..NodeView::default() };
                (name.to_owned(), Arc::new(view))
            })
            .into();
        // One word a pod: `+` serves, `?` finds no node, `x` is going; then its node.
        let check = |pods: &str, wanted: i32, expected: bool| {
            let views: Vec<PodView> = pods
                .split_whitespace()
                .map(|word| {
                    let node = word.trim_start_matches(['+', '?', 'x', '-']);
                    PodView {
                        node: Some(node.to_owned()).filter(|node| !node.is_empty()),
                        ready: word.starts_with('+'),
                        terminating: word.starts_with('x'),
                        unschedulable: word.starts_with('?').then(|| "no node".to_owned()),
                        ..PodView::default()
                    }
                })
                .collect();
            assert_eq!(last_may_go(&views, wanted, &nodes), expected, "{pods} of {wanted}");
        };
        check("+cordoned ?", 2, true);
        check("+cordoned -also", 2, true);
        check("+cordoned +also", 2, false);
        check("+open ?", 2, false);
        // It comes up elsewhere, or has not been made yet.
        check("+cordoned -open", 2, false);
        check("+cordoned -", 2, false);
        check("+cordoned xalso", 2, false);
        check("+cordoned", 1, false);
        check("?", 1, false);
    }
}
