//! A container's environment: `$(NAME)` references and the fields a pod may ask for.
//!
//! Pure; `inputs` fetches what Secrets and ConfigMaps hold.

use k8s_openapi::api::core::v1::Pod;

/// Replaces `$(NAME)` by the variable's value; an unknown name stays as it is, and `$$` is a plain `$`.
pub fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The value of a downward-API field; `None` for a field that this node agent does not know.
pub fn field_value(pod: &Pod, field_path: &str, pod_ip: &str, node_ip: &str) -> Option<String> {
    let spec = pod.spec.as_ref();
    let metadata = &pod.metadata;
    let value = match field_path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.podIP" | "status.podIPs" => Some(pod_ip.to_owned()),
        "status.hostIP" | "status.hostIPs" => Some(node_ip.to_owned()),
        _ => {
            let keyed =
                |prefix: &str| field_path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
            return if let Some(key) = keyed("metadata.labels") {
                Some(metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default())
            } else {
                let key = keyed("metadata.annotations")?;
                let annotations = metadata.annotations.as_ref();
                Some(annotations.and_then(|annotations| annotations.get(key)).cloned().unwrap_or_default())
            };
        }
    };
    Some(value.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let variables = [("A", "1"), ("B", "two"), ("A", "last")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(expand(text, &variables), expected, "{text}");
    }

    #[test]
    fn references_expand_as_in_kubernetes() {
        check("plain", "plain");
        check("$(A)-$(B)", "last-two");
        check("$$(A)", "$(A)");
        check("$(UNKNOWN)", "$(UNKNOWN)");
        check("$(A", "$(A");
        check("cost: 5$", "cost: 5$");
        check("ä$(B)ö", "ätwoö");
        check("$A", "$A");
    }

    #[test]
    fn fields_come_from_the_pod_and_its_node() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": []}
        }))
        .expect("a pod");
        for (path, expected) in [
            ("metadata.name", Some("p")),
            ("metadata.namespace", Some("ns")),
            ("metadata.labels['app']", Some("web")),
            ("metadata.annotations['none']", Some("")),
            ("spec.nodeName", Some("n1")),
            ("status.podIP", Some("10.0.0.1")),
            ("status.hostIP", Some("10.0.0.2")),
            ("status.phase", None),
        ] {
            assert_eq!(field_value(&pod, path, "10.0.0.1", "10.0.0.2").as_deref(), expected, "{path}");
        }
    }
}
