//! What is applied: the model with the operator, and what a person would write without it.

use serde_json::{Value, json};

use crate::{
    cluster::models::model_url,
    lab::{FALLBACK_NODE, PRIMARY_NODE},
    tour::{MODEL, NAMESPACE},
};

/// Namespace and name of what stands without the operator.
pub const PLAIN_NAME: &str = "plain";
/// One file for both tiers, so that streams can go on.
const FILE: &str = "smollm2-135m-primary.gguf";
/// Tokens of context and sequences at once, of every engine here: what the smaller card takes, so that the pace measured on one
/// fits the other.
const CONTEXT: u32 = 512;
const BATCH: u32 = 2;

/// Namespace and AtlasModel.
pub fn atlas() -> Value {
    let tier = |name: &str, profile: &str| {
        json!({"name": name, "gpuProfile": profile, "contextTokens": CONTEXT, "maxBatch": BATCH,
            "model": {"source": model_url(FILE)}})
    };
    list(vec![
        namespace(NAMESPACE),
        json!({"apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
        "metadata": {"name": MODEL, "namespace": NAMESPACE},
        "spec": {
            "tiers": [tier("primary", "rx-7900-xtx"), tier("fallback", "rx-7600")],
            // Between two rounds the better tier must be back; the patience for that is not what is measured.
            "failover": {"failbackAfter": "200ms"},
            "rollout": {"drainTimeout": "10s"},
        }}),
    ])
}

/// Namespace, a Deployment a card, and one Service over both: Kubernetes has no order of preference.
pub fn plain() -> Value {
    let labels = |card: &str| json!({"app": PLAIN_NAME, "card": card});
    let probe = |path: &str, period: u32, failures: u32| {
        json!({"httpGet": {"path": path, "port": "internal"}, "periodSeconds": period, "timeoutSeconds": 1,
            "failureThreshold": failures})
    };
    let deployment = |card: &str, node: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": format!("{PLAIN_NAME}-{card}"), "namespace": PLAIN_NAME},
        "spec": {
            "replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels(card)},
            "template": {
                "metadata": {"labels": labels(card)},
                "spec": {
                    "nodeSelector": {"kubernetes.io/hostname": node},
                    "containers": [{
                        "name": "engine",
                        "image": "ghcr.io/gillsystems/atlas-engine-hip:plain",
                        "args": ["serve", "--model", model_url(FILE), "--served-model-name", MODEL,
                            "--backend", "hip", "--host", "0.0.0.0", "--port", "8000", "--internal-port", "8001",
                            "--context-tokens", CONTEXT.to_string(), "--max-batch", BATCH.to_string(),
                            "--cache-dir", "/models", "--drain-timeout", "10s"],
                        "ports": [{"name": "api", "containerPort": 8000}, {"name": "internal", "containerPort": 8001}],
                        "readinessProbe": probe("/readyz", 1, 2),
                        "livenessProbe": probe("/healthz", 5, 3),
                        "resources": {"limits": {"amd.com/gpu": 1}},
                        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                    }],
                    "volumes": [{"name": "models", "emptyDir": {}}],
                },
            },
        }})
    };
    list(vec![
        namespace(PLAIN_NAME),
        deployment("primary", PRIMARY_NODE),
        deployment("fallback", FALLBACK_NODE),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": PLAIN_NAME, "namespace": PLAIN_NAME},
            "spec": {"selector": {"app": PLAIN_NAME}, "ports": [{"port": 8080, "targetPort": "api"}]}}),
    ])
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn list(items: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
