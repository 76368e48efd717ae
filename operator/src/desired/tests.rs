//! The objects of the sample model, as snapshots, and every field of them as the API server's types know it.

use std::sync::Arc;

use atlas_crds::{AtlasModel, GpuProfile, model::Standby};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::RoleBinding,
    resource::v1::ResourceClaimTemplate,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    Desired, Owner, Settings, Template, build_objects, build_pod_template,
    gateway::{GatewayInputs, build_gateway},
    template_hash,
    weights::build_weights,
};
use crate::{
    fit::TierVram,
    kinds::Kind,
    plan::{Placement, Plan, TierPlan},
    validate::{ValidatedModel, validate},
};
use atlas_operator_core::tiers::{Admission, RolloutStep};
use atlas_operator_core::vram::RUNTIME_BYTES;

fn documents<T: DeserializeOwned>(text: &str, kind: &str) -> Vec<T> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| serde_yaml_ng::Value::deserialize(document).unwrap())
        .filter(|value| value["kind"] == kind)
        .map(|value| serde_yaml_ng::from_value(value).unwrap())
        .collect()
}

fn settings() -> Settings {
    Settings {
        operator_image: "example/atlas-operator:1".into(),
        engine_hip_image: "example/atlas-engine-hip:2".into(),
        engine_cpu_image: "example/atlas-engine-cpu:3".into(),
        image_pull_policy: "IfNotPresent".into(),
        cluster_domain: "cluster.local".into(),
        gateway_replicas: 2,
        image_pull_secrets: Vec::new(),
        gateway_tls_secret: None,
    }
}

fn sample() -> ValidatedModel {
    let profiles: Vec<Arc<GpuProfile>> =
        documents(include_str!("../../../deploy/samples/gpuprofiles.yaml"), "GpuProfile")
            .into_iter()
            .map(Arc::new)
            .collect();
    let mut models: Vec<AtlasModel> =
        documents(include_str!("../../../deploy/samples/atlasmodel.yaml"), "AtlasModel");
    let mut model = models.remove(0);
    model.metadata.uid = Some("11111111-2222-3333-4444-555555555555".into());
    validate(&model, &profiles).unwrap()
}

fn objects_with(settings: &Settings) -> Vec<Desired> {
    let model = sample();
    let plan = Plan {
        tiers: model
            .tiers
            .iter()
            .map(|tier| TierPlan {
                wanted: tier.replicas,
                replicas: tier.replicas,
                placement: Placement::Possible,
                contended: false,
                refused: Vec::new(),
                ambiguities: Vec::new(),
                vram: TierVram::Unread(Arc::from("nobody looked")),
                admission: Admission::Run,
                step: RolloutStep::Apply,
                taken_back: None,
                stands_by: false,
                weights: 0,
            })
            .collect(),
        last_may_go: false,
    };
    let templates = model
        .tiers
        .iter()
        .map(|tier| {
            let body = build_pod_template(&model, tier, &[], settings).unwrap();
            Template {
                hash: template_hash(&body),
                body,
                runtime: RUNTIME_BYTES,
                good: None,
                taken_back: None,
            }
        })
        .collect();
    build_objects(&model, &plan, templates, settings).unwrap()
}

fn objects() -> Vec<Desired> {
    objects_with(&settings())
}

fn gateway() -> Vec<Desired> {
    gateway_with(&settings())
}

fn gateway_with(settings: &Settings) -> Vec<Desired> {
    let model = sample();
    let inputs = GatewayInputs {
        namespace: model.namespace.clone(),
        owners: vec![
            Owner { name: "code".into(), uid: model.uid.clone(), controller: false },
            Owner {
                name: "other".into(),
                uid: "66666666-7777-8888-9999-000000000000".into(),
                controller: false,
            },
        ],
        first_tier_nodes: vec![model.tiers[0].profile.spec.node_match.clone().unwrap()],
        last_may_go: false,
    };
    build_gateway(&inputs, settings)
}

#[test]
fn the_samples_objects_are_these() {
    for object in objects().into_iter().chain(gateway()) {
        // In one order, whatever order the keys were put in.
        let mut body = object.body;
        body.sort_all_objects();
        insta::assert_yaml_snapshot!(format!("{}-{}", object.kind.as_str(), object.name), body);
    }
}

#[test]
fn the_weights_of_a_warm_tier_are_kept_by_these_pods() {
    let mut model = sample();
    let tier = &mut model.tiers[1];
    tier.standby = Standby::Warm;
    let profile = Arc::make_mut(&mut tier.profile);
    profile.spec.model_cache =
        serde_json::from_value(json!({"hostPath": {"path": "/var/lib/models"}})).unwrap();
    assert_eq!(build_weights(&model, &model.tiers[0], 2, &settings()), None);
    let object = build_weights(&model, &model.tiers[1], 2, &settings()).unwrap();
    assert_eq!(known::<Deployment>(&object.body), object.body);
    let mut body = object.body;
    body.sort_all_objects();
    insta::assert_yaml_snapshot!(format!("{}-{}", object.kind.as_str(), object.name), body);
}

#[test]
fn gateways_with_a_certificate_mount_it_and_clients_are_told() {
    let settings = Settings { gateway_tls_secret: Some("web".into()), ..settings() };
    let all: Vec<Desired> = objects_with(&settings).into_iter().chain(gateway_with(&settings)).collect();
    let find = |kind: Kind, name: &str| {
        let found = all.iter().find(|object| object.kind == kind && object.name == name);
        found.map(|object| object.body.clone()).unwrap_or_else(|| panic!("no {name}"))
    };
    let gateway = find(Kind::Deployment, "atlas-gateway");
    serde_json::from_value::<Deployment>(gateway.clone()).unwrap();
    let spec = &gateway["spec"]["template"]["spec"];
    assert_eq!(
        spec["volumes"],
        serde_json::json!([{"name": "tls", "secret": {"secretName": "web", "optional": true}}])
    );
    let (args, mount) =
        (&spec["containers"][0]["args"], &spec["containers"][0]["volumeMounts"][0]["mountPath"]);
    let folder = mount.as_str().unwrap();
    for file in ["tls.crt", "tls.key"] {
        assert!(args.to_string().contains(&format!("\"{folder}/{file}\"")), "{args}");
    }
    let port = &find(Kind::Service, "code")["spec"]["ports"][0];
    assert_eq!((&port["name"], &port["appProtocol"]), (&"https".into(), &"https".into()));
    let config = find(Kind::ConfigMap, "code-llm-config");
    assert!(config["data"].to_string().contains("protocol: https"), "{config}");
}

#[test]
fn every_pod_pulls_its_images_with_the_secrets_that_are_named() {
    let settings = Settings { image_pull_secrets: vec!["a".into(), "b".into()], ..settings() };
    let mut model = sample();
    model.tiers[1].standby = Standby::Warm;
    let weights = build_weights(&model, &model.tiers[1], 1, &settings).unwrap();
    let all = objects_with(&settings).into_iter().chain(gateway_with(&settings)).chain([weights]);
    let pods: Vec<_> = all.filter_map(|object| object.body.pointer("/spec/template/spec").cloned()).collect();
    assert_eq!(pods.len(), 2 + 1 + 1);
    for pod in pods {
        assert_eq!(pod["imagePullSecrets"], serde_json::json!([{"name": "a"}, {"name": "b"}]), "{pod}");
    }
}

#[test]
fn layers_that_the_card_cannot_hold_go_to_the_processor() {
    let mut model = sample();
    model.tiers[0].setting.offload_layers = 7;
    let args = |index: usize| {
        let template = build_pod_template(&model, &model.tiers[index], &[], &settings()).unwrap();
        template["spec"]["containers"][0]["args"].to_string()
    };
    assert!(args(0).contains(r#""--cpu-layers","7""#), "{}", args(0));
    assert!(!args(1).contains("--cpu-layers"), "{}", args(1));
}

fn known<T: DeserializeOwned + Serialize>(body: &Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(body.clone()).unwrap()).unwrap()
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    for Desired { kind, name, body, .. } in objects().into_iter().chain(gateway()) {
        let typed = match kind {
            Kind::Deployment => known::<Deployment>(&body),
            Kind::Service => known::<Service>(&body),
            Kind::ConfigMap => known::<ConfigMap>(&body),
            Kind::PodDisruptionBudget => known::<PodDisruptionBudget>(&body),
            Kind::NetworkPolicy => known::<NetworkPolicy>(&body),
            Kind::ServiceAccount => known::<ServiceAccount>(&body),
            Kind::RoleBinding => known::<RoleBinding>(&body),
            Kind::ResourceClaimTemplate => known::<ResourceClaimTemplate>(&body),
        };
        assert_eq!(typed, body, "{kind:?} {name}");
    }
}
