//! The Deployment that keeps a warm tier's weights on its nodes: fetched, checked and read, without a card.

use atlas_crds::{model::Standby, names};
use atlas_operator_core::inventory::node_selector_terms;
use serde_json::{Value, json};

use super::{
    Desired, Settings,
    engine::{
        CACHE_DIR, USER_ID, bucket_flags, credentials_of, engine_image, model_volume, terms, tolerations,
    },
    meta::{Labels, Parts, assemble, base_labels, controller_of, labels},
};
use crate::{
    kinds::Kind,
    validate::{ValidatedModel, ValidatedTier},
};

fn selector(model: &ValidatedModel, tier: &ValidatedTier) -> Labels {
    labels([
        (names::LABEL_MODEL, model.name.as_str()),
        (names::LABEL_WEIGHTS, tier.name.as_str()),
        (names::LABEL_COMPONENT, names::COMPONENT_WEIGHTS),
    ])
}

/// The Deployment of a warm tier; none for others.
pub fn build_weights(
    model: &ValidatedModel,
    tier: &ValidatedTier,
    replicas: i32,
    settings: &Settings,
) -> Option<Desired> {
    if tier.standby != Standby::Warm {
        return None;
    }
    let mut all = base_labels("atlas-weights");
    all.extend(selector(model, tier));
    Some(assemble(Parts {
        kind: Kind::Deployment,
        namespace: &model.namespace,
        name: names::weights_object_name(&model.name, &tier.name),
        labels: all.clone(),
        owners: &controller_of(model),
        annotations: Labels::new(),
        fields: json!({"spec": {
            "replicas": replicas,
            // One a node: the next one comes when the last one has gone.
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": selector(model, tier)},
            "template": {"metadata": {"labels": all}, "spec": pod(model, tier, settings)},
        }}),
    }))
}

fn pod(model: &ValidatedModel, tier: &ValidatedTier, settings: &Settings) -> Value {
    let profile = &tier.profile.spec;
    let mut security = json!({
        "runAsNonRoot": true, "runAsUser": USER_ID, "runAsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let Some(claim) = &profile.model_cache.claim {
        security["fsGroup"] = claim.fs_group.into();
    }
    let container = |name: &str, more: &[&str]| {
        let mut args = vec!["fetch", "--model", tier.source.as_str(), "--cache-dir", CACHE_DIR];
        args.extend(["--termination-log", "/dev/termination-log"]);
        if let Some(sha256) = &tier.sha256 {
            args.extend(["--sha256", sha256.as_str()]);
        }
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        args.extend(bucket_flags(tier).into_iter().flat_map(|(name, value)| [format!("--{name}"), value]));
        args.extend(more.iter().map(|flag| (*flag).to_owned()));
        let mut container = json!({
            "name": name,
            "image": engine_image(tier, settings),
            "imagePullPolicy": settings.image_pull_policy,
            "args": args,
            // Pages of the file count for the pod and are given back when others need the memory.
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "models", "mountPath": CACHE_DIR}],
        });
        let environment = credentials_of(tier);
        if !environment.is_empty() {
            container["env"] = environment.into();
        }
        container
    };
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 5,
        "securityContext": security,
        "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": terms(&node_selector_terms(profile.node_match.as_ref())),
            }},
            "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": selector(model, tier)},
            }]},
        },
        "tolerations": tolerations(tier),
        // The pod is ready when the file is there, whole and checked.
        "initContainers": [container("fetch", &[])],
        "containers": [container("hold", &["--hold"])],
        "volumes": [model_volume(&profile.model_cache)],
    });
    settings.pull_images_of(&mut pod);
    pod
}
