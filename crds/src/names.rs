//! Strings that Kubernetes or another part of the product matches on, each written once.

/// The API group of both kinds.
pub const GROUP: &str = "atlas.gillsystems.com";
/// The only API version so far.
pub const VERSION: &str = "v1alpha1";
/// Field manager of everything that the controller applies.
pub const FIELD_MANAGER: &str = "atlas-operator";

/// Label: the AtlasModel that an object belongs to.
pub const LABEL_MODEL: &str = "atlas.gillsystems.com/model";
/// Label: the tier of that AtlasModel.
pub const LABEL_TIER: &str = "atlas.gillsystems.com/tier";
/// Label: what an object is for, `engine` or `gateway`.
pub const LABEL_COMPONENT: &str = "app.kubernetes.io/component";
/// Label: who manages an object; the value is [`FIELD_MANAGER`].
pub const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label: the tier whose weights a pod keeps on its node. Such a pod is no engine, so it has no [`LABEL_TIER`].
pub const LABEL_WEIGHTS: &str = "atlas.gillsystems.com/weights-of";
/// Value of [`LABEL_COMPONENT`] on pods that keep weights.
pub const COMPONENT_WEIGHTS: &str = "weights";
/// Value of [`LABEL_COMPONENT`] on engine pods.
pub const COMPONENT_ENGINE: &str = "engine";
/// Value of [`LABEL_COMPONENT`] on gateway pods.
pub const COMPONENT_GATEWAY: &str = "gateway";

/// Name of the gateway's Deployment, ServiceAccount, RoleBinding and PodDisruptionBudget in each namespace.
pub const GATEWAY_NAME: &str = "atlas-gateway";
/// ClusterRole that the chart ships and that each namespace's gateway is bound to.
pub const GATEWAY_CLUSTER_ROLE: &str = "atlas-gateway";

/// API that resource claims belong to.
pub const CLAIMS_API: &str = "resource.k8s.io/v1";
/// DeviceClass, and driver, of AMD cards that are allocated by claims.
pub const DEVICE_CLASS: &str = "gpu.amd.com";

/// Condition of a Node while a card of it is marked as failed, where the operator is told to set it.
pub const NODE_GPU_FAULT: &str = "AtlasGpuFault";
/// Taint of a Node while a card of it is marked as failed, where the operator is told to set it.
pub const NODE_GPU_FAULT_TAINT: &str = "atlas.gillsystems.com/gpu-fault";

/// Port of the Service URL and of the gateway's API listener.
pub const GATEWAY_PORT: u16 = 8080;
/// Port of the gateway's own `/healthz`, `/readyz`, `/metrics` and `/internal/status`.
pub const GATEWAY_INTERNAL_PORT: u16 = 8081;
/// Port of an engine's OpenAI-compatible API.
pub const ENGINE_PORT: u16 = 8000;
/// Port of an engine's `/healthz`, `/readyz`, `/metrics` and `/internal/status`, served by a thread of its own.
pub const ENGINE_INTERNAL_PORT: u16 = 8001;
/// Port of the controller's `/healthz`, `/readyz` and `/metrics`.
pub const CONTROLLER_PORT: u16 = 8082;

/// Name of the headless Service and of the Deployment of one tier: `MODEL-t-TIER`, with a short hash in place of
/// the end where that would pass the 63 characters of a DNS label.
#[must_use]
pub fn tier_object_name(model: &str, tier: &str) -> String {
    shorten(format!("{model}-t-{tier}"))
}

fn shorten(full: String) -> String {
    if full.len() <= 63 {
        return full;
    }
    let digest = fnv1a(full.as_bytes());
    let kept: String = full.chars().take(54).collect();
    format!("{}-{digest:08x}", kept.trim_end_matches('-'))
}

/// Name of the Deployment that keeps a warm tier's weights on its nodes: `MODEL-w-TIER`.
#[must_use]
pub fn weights_object_name(model: &str, tier: &str) -> String {
    shorten(format!("{model}-w-{tier}"))
}

/// Name of the generated client configuration of a model.
#[must_use]
pub fn llm_config_name(model: &str) -> String {
    format!("{model}-llm-config")
}

/// 32-bit FNV-1a (Fowler, Noll and Vo): stable across releases, which the standard library's hasher is not.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tier_names_stay_dns_labels_and_stay_distinct() {
        assert_eq!(tier_object_name("code", "primary"), "code-t-primary");
        let long = "m".repeat(63);
        let (a, b) = (tier_object_name(&long, "primary"), tier_object_name(&long, "fallback"));
        assert_eq!((a.len(), b.len()), (63, 63));
        assert_ne!(a, b);
    }
}
