//! What is refused, what is warned of, and what is not spoken of: a table.

use std::{collections::BTreeMap, sync::Arc};

use atlas_crds::{AtlasModel, GpuProfile};
use atlas_operator_core::vram::{LayerShape, ModelShape};
use serde_json::{Value, json};

use super::review::{Knowledge, Opinion, review};
use crate::credentials::Wanted;
use crate::headers::Known;

/// Weights of a size, and 512 KiB of KV cache a token.
fn known(parameters: u64) -> Arc<Known> {
    let layer = LayerShape { weight_bytes: parameters / 57, key_elements: 4096, value_elements: 4096 };
    let shape = ModelShape {
        architecture: "llama".into(),
        quantization: Some("Q4_K_M".into()),
        parameters,
        layers: vec![layer; 32],
        other_weight_bytes: 0,
        hidden: 4096,
        feed_forward: 11008,
        query_elements: 4096,
        takes_q8_cache: true,
        vocabulary: 32000,
        trained_context: 16384,
        bytes_by_type: BTreeMap::new(),
    };
    Arc::new(Known { shape: Arc::new(shape), other_files: Vec::new() })
}

fn profile(name: &str, vram: &str) -> Arc<GpuProfile> {
    let spec = json!({"product": format!("Radeon {name}"), "vram": vram, "gfxTarget": "gfx1100",
        "match": {"vramClass": "8G", "computeUnits": 32}});
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "GpuProfile", "metadata": {"name": name}, "spec": spec,
        }))
        .unwrap(),
    )
}

fn model(profile: &str, file: &str, more: &Value) -> AtlasModel {
    let mut tier =
        json!({"name": "only", "gpuProfile": profile, "model": {"source": format!("hf://a/b/{file}")}});
    for (key, value) in more.as_object().unwrap() {
        tier[key] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
        "metadata": {"name": "code", "namespace": "atlas"}, "spec": {"tiers": [tier]},
    }))
    .unwrap()
}

fn judge(model: &AtlasModel, old: Option<&AtlasModel>) -> Opinion {
    let profiles = [profile("small", "8176Mi"), profile("big", "24560Mi")];
    let header = |wanted: &Wanted| match wanted.file.source.as_str() {
        "hf://a/b/7b.gguf" => Some(known(6_700_000_000)),
        "hf://a/b/giant.gguf" => Some(known(70_000_000_000)),
        _ => None,
    };
    review(model, old, &Knowledge { profiles: &profiles, header: &header })
}

/// What the refusal says, and what the only warning does; empty where there is none.
fn check(model: &AtlasModel, old: Option<&AtlasModel>, refusal: &[&str], warning: &[&str]) {
    let opinion = judge(model, old);
    let told = opinion.refusal.clone().unwrap_or_default();
    let warned = opinion.warnings.join("\n");
    assert_eq!(told.is_empty(), refusal.is_empty(), "{opinion:?}");
    assert_eq!(warned.is_empty(), warning.is_empty(), "{opinion:?}");
    for part in refusal {
        assert!(told.contains(part), "{part}: {told}");
    }
    for part in warning {
        assert!(warned.contains(part), "{part}: {warned}");
    }
}

#[test]
fn only_what_is_known_not_to_fit_is_refused() {
    let none = json!({});
    check(&model("big", "7b.gguf", &none), None, &[], &[]);
    let says = ["spec.tiers[only]: it needs", "of the 5,616 MiB", "Radeon small", "contextTokens 4096 -> "];
    check(&model("small", "7b.gguf", &none), None, &says, &[]);
    // Nothing is known of its file.
    check(&model("small", "other.gguf", &none), None, &[], &[]);
    check(&model("small", "7b.gguf", &json!({"contextTokens": 512})), None, &[], &[]);
    check(
        &model("small", "7b.gguf", &json!({"contextTokens": 512, "maxVram": "3Gi"})),
        None,
        &["of the 3,072 MiB"],
        &[],
    );
}

#[test]
fn a_change_is_refused_for_what_it_makes_wrong_alone() {
    let misfit = model("small", "7b.gguf", &json!({}));
    let fitting = model("small", "7b.gguf", &json!({"contextTokens": 512}));
    check(&misfit, Some(&fitting), &["it needs"], &[]);
    check(&fitting, Some(&misfit), &[], &[]);
    // Labels, finalizers and the like.
    check(&misfit, Some(&misfit), &[], &[]);
    let mut renamed = misfit.clone();
    renamed.spec.aliases = vec!["gpt".into()];
    check(&renamed, Some(&misfit), &[], &["spec.tiers[only]: it needs"]);
    let mut suspended = misfit.clone();
    suspended.spec.suspend = true;
    check(&suspended, None, &[], &["it needs"]);
}

#[test]
fn what_an_engine_told_of_its_file_is_a_warning_and_no_refusal() {
    let fitting = model("small", "told.gguf", &json!({"contextTokens": 512}));
    let wider = model("small", "told.gguf", &json!({"contextTokens": 65536}));
    let told = |source: &str| {
        let mut told = fitting.clone();
        let header = json!({
            "source": source, "architecture": "llama", "parameters": 6_700_000_000_i64,
            "layerWeightBytes": vec![116 << 20; 32], "otherWeightBytes": 1 << 27, "keyElements": 4096,
            "valueElements": 4096, "hidden": 4096, "feedForward": 11008, "queryElements": 4096,
            "takesQ8Cache": true, "vocabulary": 32000, "trainedContext": 4096,
        });
        told.status = serde_json::from_value(json!({"tiers": [{"name": "only", "header": header}]})).unwrap();
        told
    };
    let says = ["spec.tiers[only]: it needs", "of the 5,616 MiB", "contextTokens 65536 -> "];
    check(&wider, Some(&told("hf://a/b/told.gguf")), &[], &says);
    // It was told of another file.
    check(&wider, Some(&told("hf://a/b/other.gguf")), &[], &[]);
    check(&wider, Some(&fitting), &[], &[]);
}

#[test]
fn what_may_come_later_and_what_is_experimental_is_warned_of() {
    let none = json!({});
    check(
        &model("rx-9999", "7b.gguf", &none),
        None,
        &[],
        &["\"rx-9999\" does not exist yet", "there are big, small"],
    );
    check(&model("big", "Llama-70B.Q4_K_M.gguf", &none), None, &[], &["experimental"]);
    check(&model("big", "giant.gguf", &none), None, &["it needs"], &["experimental"]);
    let crowded = model("big", "other.gguf", &json!({"maxBatch": 4096}));
    check(&crowded, None, &[], &["not acted on as it stands: tier only: maxBatch 4096 is above"]);
    let two = model("big", "7b.gguf", &json!({"engine": {"resources": {"limits": {"amd.com/gpu": "2"}}}}));
    check(&two, None, &[], &["spec.tiers[only].engine.resources: amd.com/gpu \"2\" is not acted on"]);
    let offloaded = model("big", "7b.gguf", &json!({"cpuOffloadLayers": 4}));
    check(&offloaded, None, &[], &["spec.tiers[only].cpuOffloadLayers", "experimental"]);
}
