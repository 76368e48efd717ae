//! The Deployment of a tier and its pod template: exactly what a card node gets.

use std::time::Duration;

use atlas_crds::{
    model::S3Options,
    names,
    profile::{Backend, ModelCache},
    quantity::parse_bytes,
};
use atlas_operator_core::{
    inventory::{Expression, node_selector_terms},
    vram::RUNTIME_BYTES,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{
    Desired, RenderError, Settings, Template,
    claim::{CLAIM, claim_template_name, is_claimed},
    meta::{Labels, Parts, TEMPLATE_ANNOTATION, assemble, base_labels, controller_of, hash_of, labels},
};
use crate::{
    credentials::build_environment,
    kinds::Kind,
    validate::{ValidatedModel, ValidatedTier},
};

/// Id of the image's user.
pub const USER_ID: i64 = 65532;
/// Where the model cache is mounted.
pub const CACHE_DIR: &str = "/models";
/// How long an engine stays bound to a node that is not reachable.
const UNREACHABLE_SECONDS: i64 = 30;
/// Fetching and loading may take this many seconds before the kubelet gives up on a start.
const STARTUP_SECONDS: i64 = 3600;

/// Annotation of a pod template: the nodes that it keeps its pods from, since their card is another one.
const EXCLUDED_ANNOTATION: &str = "atlas.gillsystems.com/excluded-nodes";

/// Annotation of a Deployment: bytes of the runtime's share that its pods were planned with, where that was measured.
const RUNTIME_ANNOTATION: &str = "atlas.gillsystems.com/planned-runtime-bytes";

/// The runtime's share that a live Deployment's pods were planned with.
#[must_use]
pub fn kept_runtime(live: &impl ResourceExt) -> u64 {
    live.annotations().get(RUNTIME_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or(RUNTIME_BYTES)
}

/// Labels that select a tier's pods.
pub fn selector(model: &ValidatedModel, tier: &ValidatedTier) -> Labels {
    labels([
        (names::LABEL_MODEL, model.name.as_str()),
        (names::LABEL_TIER, tier.name.as_str()),
        (names::LABEL_COMPONENT, names::COMPONENT_ENGINE),
    ])
}

/// A tier's labels: those of every object, and those that select its pods.
pub fn tier_labels(model: &ValidatedModel, tier: &ValidatedTier) -> Labels {
    let mut all = base_labels("atlas-engine");
    all.extend(selector(model, tier));
    all
}

/// Hash of a rendered pod template, which its pods carry too.
#[must_use]
pub fn template_hash(template: &Value) -> String {
    template
        .pointer(&format!("/metadata/annotations/{}", TEMPLATE_ANNOTATION.replace('/', "~1")))
        .and_then(Value::as_str)
        .map_or_else(|| hash_of(template), str::to_owned)
}

pub fn build_deployment(
    model: &ValidatedModel,
    tier: &ValidatedTier,
    replicas: i32,
    template: Template,
) -> Desired {
    let mut annotations = labels([(TEMPLATE_ANNOTATION, template.hash.as_str())]);
    // Of the Deployment and not of its pods: a figure is no reason to make them anew.
    if template.runtime != RUNTIME_BYTES {
        annotations.insert(RUNTIME_ANNOTATION.to_owned(), template.runtime.to_string().into());
    }
    assemble(Parts {
        kind: Kind::Deployment,
        namespace: &model.namespace,
        name: names::tier_object_name(&model.name, &tier.name),
        labels: tier_labels(model, tier),
        owners: &controller_of(model),
        annotations,
        fields: json!({"spec": {
            "replicas": replicas,
            // Never two pods that want one card.
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": whole_seconds(model.ready_timeout).max(1),
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": selector(model, tier)},
            "template": template.body,
        }}),
    })
}

/// The pod template of a tier.
///
/// # Errors
///
/// An override of the container is no JSON.
pub fn build_pod_template(
    model: &ValidatedModel,
    tier: &ValidatedTier,
    excluded_nodes: &[String],
    settings: &Settings,
) -> Result<Value, RenderError> {
    let profile = &tier.profile.spec;
    let image = engine_image(tier, settings);
    let probe = |path: &str, period: i64, failures: i64| {
        json!({
            "httpGet": {"path": path, "port": "internal"},
            "periodSeconds": period, "timeoutSeconds": 1, "failureThreshold": failures,
        })
    };
    let mut security = json!({
        "runAsNonRoot": true, "runAsUser": USER_ID, "runAsGroup": USER_ID,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if profile.backend == Backend::Hip && !profile.supplemental_groups.is_empty() {
        security["supplementalGroups"] = json!(profile.supplemental_groups);
    }
    if let Some(claim) = &profile.model_cache.claim {
        security["fsGroup"] = claim.fs_group.into();
    }
    let tolerations = tolerations(tier);
    let environment = credentials_of(tier);
    let mut template = json!({
        "metadata": {"labels": tier_labels(model, tier), "annotations": {}},
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            // With 0 the API server forgets a pod before its node has stopped it, and its card would be promised twice.
            "terminationGracePeriodSeconds": whole_seconds(model.drain_timeout).max(1),
            "securityContext": security,
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": terms(&node_selector_terms(profile.node_match.as_ref())),
                }},
                "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                    "weight": 100,
                    "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": selector(model, tier)},
                    },
                }]},
            },
            "tolerations": tolerations,
            "containers": [{
                "name": "engine",
                "image": image,
                "imagePullPolicy": settings.image_pull_policy,
                "args": build_args(model, tier),
                "ports": [
                    {"name": "api", "containerPort": names::ENGINE_PORT},
                    {"name": "internal", "containerPort": names::ENGINE_INTERNAL_PORT},
                ],
                "startupProbe": probe("/healthz", 1, STARTUP_SECONDS),
                "readinessProbe": probe("/readyz", 1, 2),
                "livenessProbe": probe("/healthz", 5, 3),
                "resources": resources(tier)?,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "models", "mountPath": CACHE_DIR}],
            }],
            "volumes": [model_volume(&profile.model_cache)],
        },
    });
    settings.pull_images_of(&mut template["spec"]);
    if !environment.is_empty() {
        template["spec"]["containers"][0]["env"] = environment.into();
    }
    if !excluded_nodes.is_empty() {
        exclude(&mut template, excluded_nodes);
    }
    if is_claimed(profile) {
        // The scheduler finds the card by the claim; labels would only keep nodes without a labeller away.
        let only_names = names_term(excluded_nodes);
        if let Some(affinity) = template["spec"]["affinity"].as_object_mut() {
            match only_names {
                Some(term) => affinity.insert("nodeAffinity".into(), term),
                None => affinity.remove("nodeAffinity"),
            };
        }
        template["spec"]["resourceClaims"] =
            json!([{"name": CLAIM, "resourceClaimTemplateName": claim_template_name(model, tier)}]);
    }
    template["metadata"]["annotations"][TEMPLATE_ANNOTATION] = hash_of(&template).into();
    Ok(template)
}

/// An affinity for every node but these; none where there are none.
fn names_term(nodes: &[String]) -> Option<Value> {
    let terms = json!({"nodeSelectorTerms": [{"matchFields": other_names(nodes)}]});
    (!nodes.is_empty()).then(|| json!({"requiredDuringSchedulingIgnoredDuringExecution": terms}))
}

/// A requirement on a node's name takes one value.
fn other_names(nodes: &[String]) -> Vec<Value> {
    let other = |node| json!({"key": "metadata.name", "operator": "NotIn", "values": [node]});
    nodes.iter().map(other).collect()
}

/// The image of a tier's engine.
pub fn engine_image(tier: &ValidatedTier, settings: &Settings) -> String {
    tier.engine.image.clone().unwrap_or_else(|| match tier.profile.spec.backend {
        Backend::Hip => settings.engine_hip_image.clone(),
        Backend::Cpu => settings.engine_cpu_image.clone(),
    })
}

/// Taints that a tier's pods tolerate: the profile's, and for a while those of a node that is lost.
pub fn tolerations(tier: &ValidatedTier) -> Value {
    let mut all: Vec<Value> = tier.profile.spec.tolerations.iter().map(|own| json!(own)).collect();
    for key in ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"] {
        all.push(json!({
            "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": UNREACHABLE_SECONDS,
        }));
    }
    all.into()
}

/// Keeps a template's pods from nodes whose card is another one, or failed.
fn exclude(template: &mut Value, nodes: &[String]) {
    let pointer =
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let fields = other_names(nodes);
    for term in template.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten() {
        term["matchFields"] = fields.clone().into();
    }
    template["metadata"]["annotations"][EXCLUDED_ANNOTATION] = nodes.join(",").into();
}

/// The nodes that a live Deployment's pods are kept from.
#[must_use]
pub fn excluded_nodes(deployment: &Value) -> Vec<String> {
    let pointer = format!("/spec/template/metadata/annotations/{}", EXCLUDED_ANNOTATION.replace('/', "~1"));
    let text = deployment.pointer(&pointer).and_then(Value::as_str).unwrap_or_default();
    text.split(',').filter(|node| !node.is_empty()).map(str::to_owned).collect()
}

/// The engine's command line, as `docs/contracts.md` promises it.
fn build_args(model: &ValidatedModel, tier: &ValidatedTier) -> Vec<String> {
    let profile = &tier.profile.spec;
    let mut args: Vec<String> = vec!["serve".into()];
    let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    flag("model", tier.source.clone());
    for (name, value) in bucket_flags(tier) {
        flag(name, value);
    }
    flag("served-model-name", model.name.clone());
    for alias in &model.aliases {
        flag("served-model-name", alias.clone());
    }
    flag("backend", if profile.backend == Backend::Hip { "hip".into() } else { "cpu".into() });
    flag("host", "0.0.0.0".into());
    flag("port", names::ENGINE_PORT.to_string());
    flag("internal-port", names::ENGINE_INTERNAL_PORT.to_string());
    flag("context-tokens", tier.context_tokens.to_string());
    flag("max-batch", tier.max_batch.to_string());
    if let Some(sha256) = &tier.sha256 {
        flag("sha256", sha256.clone());
    }
    flag("cache-dir", CACHE_DIR.into());
    flag("queue", model.queue.to_string());
    flag("request-timeout", duration_text(model.request_timeout));
    flag("max-body-bytes", model.max_body_bytes.to_string());
    flag("drain-timeout", duration_text(model.drain_timeout));
    flag("kv-cache-type", tier.setting.kv_cache_type.as_str().into());
    if profile.backend == Backend::Hip {
        if let Some(target) = &profile.gfx_target {
            flag("expect-gfx-target", target.clone());
        }
        if let Some(bytes) = parse_bytes(&profile.vram) {
            flag("expect-vram-bytes", bytes.to_string());
        }
        if tier.setting.offload_layers > 0 {
            flag("cpu-layers", tier.setting.offload_layers.to_string());
        }
    }
    flag("termination-log", "/dev/termination-log".into());
    args.extend(tier.engine.extra_args.iter().cloned());
    args
}

/// Where the tier's bucket is, for the command line of whoever fetches from it.
pub fn bucket_flags(tier: &ValidatedTier) -> Vec<(&'static str, String)> {
    let S3Options { endpoint, region, path_style } = tier.wanted.file.s3.clone().unwrap_or_default();
    let flags = [
        ("s3-endpoint", endpoint),
        ("s3-region", region),
        ("s3-path-style", path_style.map(|path_style| path_style.to_string())),
    ];
    flags.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// What the tier's source asks for, from its Secret.
pub fn credentials_of(tier: &ValidatedTier) -> Vec<Value> {
    build_environment(&tier.parsed_source, tier.wanted.file.credentials_secret.as_deref())
}

/// The container's resources: the tier's own or small requests, and the card, which nobody may override.
fn resources(tier: &ValidatedTier) -> Result<Value, RenderError> {
    let mut resources = match &tier.engine.resources {
        Some(own) => serde_json::to_value(own).map_err(RenderError::Json)?,
        None => json!({"requests": {"cpu": "250m", "memory": "512Mi"}}),
    };
    if is_claimed(&tier.profile.spec) {
        resources["claims"] = json!([{"name": CLAIM}]);
    } else if tier.profile.spec.backend == Backend::Hip {
        let name = &tier.profile.spec.resource_name;
        resources["limits"][name] = "1".into();
        if resources.get("requests").is_some_and(|requests| requests.get(name).is_some()) {
            resources["requests"][name] = "1".into();
        }
    }
    Ok(resources)
}

pub fn model_volume(cache: &ModelCache) -> Value {
    let source = |name: &str, value: Value| {
        let mut volume = json!({"name": "models"});
        volume[name] = value;
        volume
    };
    let ModelCache { empty_dir, claim, host_path } = cache;
    match (claim, host_path, empty_dir) {
        (Some(claim), _, _) => source("persistentVolumeClaim", json!({"claimName": claim.claim_name})),
        (None, Some(host), _) => source("hostPath", json!({"path": host.path, "type": "DirectoryOrCreate"})),
        (None, None, Some(dir)) => source(
            "emptyDir",
            dir.size_limit.as_ref().map_or_else(|| json!({}), |limit| json!({"sizeLimit": limit.0})),
        ),
        (None, None, None) => source("emptyDir", json!({})),
    }
}

/// Node selector terms as the API server reads them.
pub fn terms(terms: &[Vec<Expression>]) -> Value {
    let expression = |e: &Expression| match &e.value {
        Some(value) => json!({"key": e.key, "operator": e.operator.as_str(), "values": [value]}),
        None => json!({"key": e.key, "operator": e.operator.as_str()}),
    };
    terms
        .iter()
        .map(|term| json!({"matchExpressions": term.iter().map(expression).collect::<Vec<_>>()}))
        .collect()
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

fn duration_text(duration: Duration) -> String {
    if duration.subsec_nanos() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}
