//! What to do where Kubernetes refuses an object or a pod: a remedy for each kind of refusal, from its words; and how
//! an error is told to people.
//!
//! Quotas, limits, pod security and policies have no codes of their own, so their words are all that tells them apart.

use std::error::Error;

/// What a person does about a refusal of the API server.
#[must_use]
pub fn remedy(said: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["failed quota"]) {
        "a ResourceQuota of the namespace asks for requests or limits: set engine.resources of the tier, or add a LimitRange with defaults"
    } else if has(&["exceeded quota"]) {
        "raise the ResourceQuota of the namespace, or free what others use of it"
    } else if has(&["violates PodSecurity"]) {
        "let a GpuProfile with a modelCache other than hostPath be used, or lower the label pod-security.kubernetes.io/enforce of the namespace"
    } else if has(&["usage per Container", "usage per Pod", "limit to request ratio"]) {
        "set engine.resources of the tier within the LimitRange of the namespace"
    } else if has(&["failed calling webhook"]) {
        "the webhook named above does not answer: mend it, or ask whoever runs it"
    } else if has(&["denied the request", "denied request"]) {
        "meet the policy named above, or ask whoever runs it for an exception"
    } else if has(&["is forbidden: User ", "attempting to grant RBAC permissions"]) {
        "give the operator this right: its ClusterRole comes with the chart of the same release"
    } else if has(&["is invalid: "]) && has(&[".resources"]) {
        "correct engine.resources of the tier, which becomes that of the pod"
    } else if has(&["PriorityClass"]) {
        "create the PriorityClass that is named, or let no policy set it"
    } else {
        "see the Events of the namespace"
    }
}

/// What a person does about a pod that its node ended for good, by the pod's `status.reason`.
#[must_use]
pub fn remedy_of_end(reason: &str) -> &'static str {
    match reason {
        "Evicted" => "free memory or disk of the node, or raise the requests in engine.resources of the tier",
        "UnexpectedAdmissionError" => {
            "the node's device plugin had no card for it: see its logs, and restart it where the card is well"
        }
        _ => "`kubectl describe` of that pod tells more, and Kubernetes makes another",
    }
}

/// An error with its causes as one sentence for people; `said` knows the words of those that carry more than words.
#[must_use]
pub fn tell(
    error: &(dyn Error + 'static),
    said: impl Fn(&(dyn Error + 'static)) -> Option<String>,
) -> String {
    let mut told = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let (words, is_all) = said(error).map_or_else(|| (error.to_string(), false), |words| (words, true));
        // Some repeat their cause.
        if !told.contains(&words) {
            let colon = if told.is_empty() { "" } else { ": " };
            told = format!("{told}{colon}{words}");
        }
        next = error.source().filter(|_| !is_all);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("[code 7]")]
    struct Code;

    #[derive(Debug, thiserror::Error)]
    #[error("again: {0}")]
    struct Repeats(#[source] Code);

    #[derive(Debug, thiserror::Error)]
    #[error("it failed")]
    struct Outer(#[source] Repeats);

    #[test]
    fn an_error_is_told_once_in_its_own_words() {
        let error = Outer(Repeats(Code));
        assert_eq!(tell(&error, |_| None), "it failed: again: [code 7]");
        let words = |error: &(dyn Error + 'static)| error.is::<Repeats>().then(|| "no".to_owned());
        assert_eq!(tell(&error, words), "it failed: no");
    }

    #[test]
    fn a_refusal_is_told_by_its_words() {
        // As API servers say them.
        for (said, remedied) in [
            (
                r#"pods "a-1" is forbidden: exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0"#,
                "raise the ResourceQuota",
            ),
            (
                r#"pods "a-1" is forbidden: failed quota: q: must specify limits.memory for: engine"#,
                "set engine.resources",
            ),
            (
                r#"pods "a-1" is forbidden: violates PodSecurity "baseline:latest": hostPath volumes (volume "models")"#,
                "modelCache other than hostPath",
            ),
            (
                r#"pods "a-1" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi"#,
                "within the LimitRange",
            ),
            (
                r#"services "a" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: no"#,
                "meet the policy",
            ),
            (r#"admission webhook "w.example" denied the request: no"#, "meet the policy"),
            (
                r#"Internal error occurred: failed calling webhook "w.example": connection refused"#,
                "does not answer",
            ),
            (
                r#"services "a" is forbidden: User "system:serviceaccount:s:o" cannot patch resource "services""#,
                "give the operator this right",
            ),
            (
                r#"rolebindings "g" is forbidden: user "system:serviceaccount:s:o" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held"#,
                "give the operator this right",
            ),
            (
                r#"Deployment.apps "a-t-b" is invalid: spec.template.spec.containers[0].resources.requests: Invalid value: "5Gi": must be less than or equal to memory limit of 1Gi"#,
                "correct engine.resources",
            ),
            ("something else", "see the Events"),
        ] {
            assert!(remedy(said).contains(remedied), "{said}: {}", remedy(said));
        }
    }
}
