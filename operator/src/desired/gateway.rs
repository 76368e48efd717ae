//! The gateway of a namespace: shared by its models, owned by all of them and controlled by none.

use std::collections::BTreeSet;

use atlas_crds::{names, profile::NodeMatch};
use atlas_operator_core::inventory::AMD_MARKER_KEYS;
use serde_json::{Value, json};

use super::{
    Desired, Settings,
    access::max_unavailable,
    engine::USER_ID,
    meta::{Labels, Owner, Parts, assemble, base_labels, labels},
};
use crate::kinds::Kind;

/// How long a gateway stays bound to a node that is not reachable.
const UNREACHABLE_SECONDS: i64 = 5;
/// More than the gateway's own drain: 3 s in which clients learn that it goes, 5 s for those that come all the same, and
/// 300 s for running answers, which is what `requests.timeout` gives them by default. One that has none left ends at once.
const GRACE_SECONDS: i64 = 315;

/// Where the certificate lies.
const TLS_DIR: &str = "/etc/atlas/tls";

/// Labels that select a namespace's gateways.
pub fn selector() -> Labels {
    labels([
        ("app.kubernetes.io/name", names::GATEWAY_NAME),
        (names::LABEL_COMPONENT, names::COMPONENT_GATEWAY),
    ])
}

/// What a namespace's gateway is made from.
#[derive(Debug, Clone)]
pub struct GatewayInputs {
    /// The namespace.
    pub namespace: String,
    /// Every live AtlasModel of it, sorted.
    pub owners: Vec<Owner>,
    /// How nodes of the models' first tiers are found: the loss of such a node should not take a gateway too.
    pub first_tier_nodes: Vec<NodeMatch>,
    /// Whether an eviction may take the last gateway, since no other can be made first.
    pub last_may_go: bool,
}

/// ServiceAccount, RoleBinding, Deployment, budget and NetworkPolicy of a namespace's gateway.
#[must_use]
pub fn build_gateway(inputs: &GatewayInputs, settings: &Settings) -> Vec<Desired> {
    let object = |kind, fields: Value| {
        let mut all = base_labels(names::GATEWAY_NAME);
        all.extend(selector());
        assemble(Parts {
            kind,
            namespace: &inputs.namespace,
            name: names::GATEWAY_NAME.to_owned(),
            labels: all,
            owners: &inputs.owners,
            annotations: Labels::new(),
            fields,
        })
    };
    vec![
        object(Kind::ServiceAccount, json!({})),
        object(
            Kind::RoleBinding,
            json!({
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": names::GATEWAY_CLUSTER_ROLE},
                "subjects": [{"kind": "ServiceAccount", "name": names::GATEWAY_NAME, "namespace": inputs.namespace}],
            }),
        ),
        object(Kind::Deployment, json!({"spec": deployment(inputs, settings)})),
        object(
            Kind::PodDisruptionBudget,
            json!({"spec": {
                "maxUnavailable": max_unavailable(inputs.last_may_go),
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": selector()},
            }}),
        ),
        // Clients may come from anywhere, the controller and the kubelet ask the internal port: a namespace that
        // denies by default would cut them off.
        object(
            Kind::NetworkPolicy,
            json!({"spec": {
                "podSelector": {"matchLabels": selector()},
                "policyTypes": ["Ingress"],
                "ingress": [{"ports": [
                    {"port": names::GATEWAY_PORT, "protocol": "TCP"},
                    {"port": names::GATEWAY_INTERNAL_PORT, "protocol": "TCP"},
                ]}],
            }}),
        ),
    ]
}

fn deployment(inputs: &GatewayInputs, settings: &Settings) -> Value {
    let mut pod_labels = base_labels(names::GATEWAY_NAME);
    pod_labels.extend(selector());
    let mut template = pod_template(inputs, settings, pod_labels);
    settings.pull_images_of(&mut template["spec"]);
    if let Some(secret) = &settings.gateway_tls_secret {
        mount_certificate(&mut template, secret);
    }
    json!({
        "replicas": settings.gateway_replicas,
        // With one gateway a node, a surge would have no place on a small cluster.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": selector()},
        "template": template,
    })
}

/// Gives the gateway its certificate. As files a Secret changes under it; by a variable it would need a restart. One that is
/// missing keeps no gateway from starting: it says itself what it waits for, and takes the Secret as soon as it is there.
fn mount_certificate(template: &mut Value, secret: &str) {
    let path = |file: &str| format!("{TLS_DIR}/{file}");
    template["spec"]["volumes"] =
        json!([{"name": "tls", "secret": {"secretName": secret, "optional": true}}]);
    let container = &mut template["spec"]["containers"][0];
    container["volumeMounts"] = json!([{"name": "tls", "mountPath": TLS_DIR, "readOnly": true}]);
    if let Some(args) = container["args"].as_array_mut() {
        let flags =
            ["--tls-certificate".to_owned(), path("tls.crt"), "--tls-key".to_owned(), path("tls.key")];
        args.extend(flags.map(Value::from));
    }
}

fn pod_template(inputs: &GatewayInputs, settings: &Settings, pod_labels: Labels) -> Value {
    let tolerate = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": UNREACHABLE_SECONDS});
    json!({
            "metadata": {"labels": pod_labels},
            "spec": {
                "serviceAccountName": names::GATEWAY_NAME,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": GRACE_SECONDS,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": USER_ID, "runAsGroup": USER_ID,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "affinity": {
                    "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": selector()},
                    }]},
                    "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferences(inputs)},
                },
                "tolerations": [
                    tolerate("node.kubernetes.io/unreachable"),
                    tolerate("node.kubernetes.io/not-ready"),
                ],
                "containers": [{
                    "name": "gateway",
                    "image": settings.operator_image,
                    "imagePullPolicy": settings.image_pull_policy,
                    "args": ["gateway", "--cluster-domain", settings.cluster_domain],
                    "env": [field_env("POD_NAME", "metadata.name"), field_env("POD_NAMESPACE", "metadata.namespace")],
                    "ports": [
                        {"name": "api", "containerPort": names::GATEWAY_PORT},
                        {"name": "internal", "containerPort": names::GATEWAY_INTERNAL_PORT},
                    ],
                    "readinessProbe": {
                        "httpGet": {"path": "/readyz", "port": "internal"},
                        "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 2,
                    },
                    "livenessProbe": {
                        "httpGet": {"path": "/healthz", "port": "internal"},
                        "periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 3,
                    },
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
    })
}

fn preferences(inputs: &GatewayInputs) -> Value {
    let absent = |key: &str| json!({"key": key, "operator": "DoesNotExist"});
    let mut terms = vec![json!({
        "weight": 100,
        "preference": {"matchExpressions": AMD_MARKER_KEYS.iter().map(|key| absent(key)).collect::<Vec<_>>()},
    })];
    let classes: BTreeSet<&str> =
        inputs.first_tier_nodes.iter().map(|node| node.vram_class.as_str()).collect();
    if !classes.is_empty() {
        let mut expressions =
            vec![json!({"key": "amd.com/gpu.vram", "operator": "NotIn", "values": classes})];
        expressions.extend(classes.iter().map(|class| absent(&format!("amd.com/gpu.vram.{class}"))));
        terms.push(json!({"weight": 50, "preference": {"matchExpressions": expressions}}));
    }
    terms.into()
}

fn field_env(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}
