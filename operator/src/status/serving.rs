//! Conditions `Available`, `Ready` and `Degraded`: whether clients are served, by which tier, and why not by the first.

use kube::ResourceExt;

use super::{
    Observed, Verdict,
    conditions::{Draft, State, draft, tier_message},
};
use crate::probe::{GatewayEndpoint, HEALTHY};

/// Conditions `Available` and `Ready`.
pub fn serves(observed: &Observed<'_>, active: Option<usize>) -> Draft {
    if let Some(problem) = certificate_problem(observed)
        && observed.gateways.iter().all(|gateway| gateway.lets_nobody_in)
    {
        return draft(State::False, "CertificateUnusable", format!("no client is let in: {problem}"));
    }
    match active.and_then(|index| observed.tiers.get(index)) {
        Some(_) if observed.no_gateway.is_some() => {
            let why = observed.no_gateway.unwrap_or_default();
            draft(State::False, "NoGateway", format!("no client is let in: {why}"))
        }
        Some(tier) => {
            let node =
                tier.current().find(|pod| pod.ready).and_then(|pod| pod.node.as_deref()).unwrap_or("-");
            let besides = observed.fewer_gateways.map_or_else(String::new, |why| format!("; {why}"));
            draft(State::True, "Serving", format!("tier {} serves on node {node}{besides}", tier.tier))
        }
        None if matches!(&observed.verdict, Verdict::Planned { model, .. } if model.suspended) => {
            draft(State::False, "Suspended", "spec.suspend is true: set it to false to serve")
        }
        None => {
            let why: Vec<String> = observed
                .tiers
                .iter()
                .enumerate()
                .filter_map(|(index, tier)| {
                    let message = tier_message(observed, index)?;
                    // Messages that stand alone elsewhere name their tier already.
                    let named = message.starts_with("tier ");
                    Some(if named { message } else { format!("tier {}: {message}", tier.tier) })
                })
                .collect();
            draft(
                State::False,
                "NoTierServes",
                if why.is_empty() { "no tier serves".to_owned() } else { why.join("; ") },
            )
        }
    }
}

/// What is wrong with the certificate of the gateways, by the Secret's name.
fn certificate_problem(observed: &Observed<'_>) -> Option<String> {
    let problem = observed.gateways.iter().find_map(|gateway| gateway.certificate_problem.as_deref())?;
    // It is namespaced, so it has one.
    let namespace = observed.object.namespace().unwrap_or_default();
    Some(match observed.tls_secret {
        Some(secret) => format!("Secret {namespace}/{secret}: {problem}"),
        None => problem.to_owned(),
    })
}

/// Condition `Degraded`.
pub fn degraded(observed: &Observed<'_>, active: Option<usize>) -> Draft {
    let problem = certificate_problem(observed).map(|problem| {
        let nobody = observed.gateways.iter().any(|gateway| gateway.lets_nobody_in);
        let so = if nobody { "gateways let nobody in" } else { "gateways go on with the last certificate" };
        format!("{so}: {problem}")
    });
    match (active, problem) {
        (Some(0) | None, Some(problem)) => draft(State::True, "CertificateUnusable", problem),
        (Some(0), None) => draft(State::False, "FirstTierServes", "the first tier serves"),
        (None, None) => draft(State::False, "NothingServes", "no tier serves: see condition Ready"),
        (Some(index), problem) => {
            let first = observed.tiers.first().map_or("", |tier| tier.tier.as_str());
            let pinned = match &observed.verdict {
                Verdict::Planned { model, .. } => model.pinned.is_some(),
                Verdict::Refused(_) => false,
            };
            let why = if pinned {
                "failover.mode is Pinned".to_owned()
            } else {
                tier_message(observed, 0).unwrap_or_else(|| waiting_message(observed))
            };
            // Nothing is said of a certificate that is well.
            let besides = problem.map(|problem| format!("; {problem}")).unwrap_or_default();
            draft(
                State::True,
                "FallbackServing",
                format!("tier {} serves instead of {first}: {why}{besides}", observed.tiers[index].tier),
            )
        }
    }
}

/// Why the first tier does not serve although a pod of it is ready.
///
/// Kubernetes takes most of a minute to call a pod on a lost node unready; the gateways know within a second, so it is
/// their word that counts, and without it nothing is claimed.
fn waiting_message(observed: &Observed<'_>) -> String {
    let first = observed.tiers.first().map_or("", |tier| tier.tier.as_str());
    let seen: Vec<&GatewayEndpoint> = observed
        .gateways
        .iter()
        .flat_map(|gateway| &gateway.endpoints)
        .filter(|endpoint| endpoint.tier == first)
        .collect();
    let healthy = seen.iter().any(|endpoint| endpoint.health == HEALTHY);
    match seen.first() {
        None => "its pod is ready, but no gateway knows it".to_owned(),
        Some(_) if healthy => "it is healthy again and waits for failover.failbackAfter".to_owned(),
        Some(lost) => {
            let cause = lost.cause.as_deref().unwrap_or("it does not answer");
            format!("the gateways do not reach it: {cause}")
        }
    }
}
