//! Reports of models whose headers are made here.

use std::sync::Arc;

use atlas_format::{Gguf, HeaderWriter, Parsed};
use serde_json::json;

use super::*;
use crate::{manifest::sample_profiles, render::render_plan, terminal::Terminal};

/// A model of some four billion weights in one big matrix a layer.
fn shape() -> Arc<ModelShape> {
    let mut header = HeaderWriter::default()
        .text("general.architecture", "llama")
        .number("general.file_type", 15)
        .number("llama.block_count", 32)
        .number("llama.context_length", 32768)
        .number("llama.embedding_length", 4096)
        .number("llama.feed_forward_length", 14336)
        .number("llama.attention.head_count", 32)
        .number("llama.attention.head_count_kv", 8);
    for layer in 0..32 {
        header = header.tensor(&format!("blk.{layer}.ffn_up.weight"), &[4096, 54000], 12);
    }
    let Ok(Parsed::Complete(header)) = Gguf::parse(&header.finish()) else {
        panic!("the header is complete")
    };
    Arc::new(ModelShape::from_gguf(&header).unwrap())
}

fn model(tiers: serde_json::Value) -> AtlasModel {
    serde_json::from_value(json!({
        "apiVersion": "atlas.gillsystems.com/v1alpha1", "kind": "AtlasModel",
        "metadata": {"name": "code", "namespace": "atlas"}, "spec": {"tiers": tiers},
    }))
    .unwrap()
}

fn tier(name: &str, profile: &str, batch: i32) -> serde_json::Value {
    json!({"name": name, "gpuProfile": profile, "maxBatch": batch, "model": {"source": "hf://acme/m/m.gguf"}})
}

fn report(tiers: serde_json::Value) -> ModelReport {
    let model = model(tiers);
    let shapes = model.spec.tiers.iter().map(|tier| (tier.name.clone(), Ok((shape(), Vec::new())))).collect();
    build_report(&model, &sample_profiles().unwrap(), &shapes)
}

#[test]
fn a_report_says_per_tier_what_it_needs_and_whether_all_fits() {
    let all = report(json!([tier("a", "rx-7900-xtx", 2), tier("b", "rx-7600", 1)]));
    assert_eq!(all.fits, Some(true));
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(json["tiers"][0]["kvCache"].as_u64(), Some(2 * (512 << 20)));
    assert_eq!(json["tiers"][1]["product"], "Radeon RX 7600");
    for key in [
        "weights",
        "overhead",
        "required",
        "available",
        "maxContextTokens",
        "maxBatch",
        "largestBatch",
        "parameters",
    ] {
        assert!(json["tiers"][0][key].is_u64(), "{key}: {json}");
    }

    let some = report(json!([tier("a", "rx-7900-xtx", 2), tier("b", "rx-7600", 4)]));
    assert_eq!((some.fits, some.tiers[1].plan.as_ref().map(|plan| plan.fits)), (Some(false), Some(false)));
    let advice: Vec<_> =
        some.tiers[1].plan.iter().flat_map(|plan| &plan.advice).map(|a| a.text.clone()).collect();
    assert!(advice.contains(&"maxBatch 4 -> 2".to_owned()), "{advice:?}");
    assert!(advice.contains(&"gpuProfile rx-7700-xt".to_owned()), "{advice:?}");
}

#[test]
fn what_cannot_be_planned_says_why_and_claims_nothing() {
    let unknown = report(json!([tier("a", "rx-9070", 1), tier("b", "rx-7600", 1)]));
    assert_eq!(unknown.fits, None);
    let problem = unknown.tiers[0].problem.as_deref().unwrap_or_default();
    assert!(
        problem.contains("GpuProfile rx-9070 does not exist (there are: rx-7900-xtx, rx-7600"),
        "{problem}"
    );
    let model = model(json!([tier("a", "rx-7600", 1)]));
    let shapes = [("a".to_owned(), Err("https://h/m.gguf answers 404".to_owned()))].into();
    let report = build_report(&model, &sample_profiles().unwrap(), &shapes);
    assert_eq!(
        (report.fits, report.tiers[0].problem.as_deref()),
        (None, Some("https://h/m.gguf answers 404"))
    );
}

#[test]
fn a_plan_is_drawn_to_the_width() {
    let report = report(json!([tier("primary", "rx-7900-xtx", 4), tier("fallback", "rx-7600", 8)]));
    for width in [40, 72, 100, 200] {
        let text = render_plan(&report, &Terminal::plain(width));
        let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(longest <= usize::from(width), "{width}: {longest}\n{text}");
        for part in [
            "code",
            "primary",
            "fallback",
            "Radeon RX 7600",
            "weights",
            "KV cache",
            "does not fit",
            "maxBatch 8 -> 2",
        ] {
            assert!(text.contains(part), "{width}: {part} is missing\n{text}");
        }
    }
}

#[test]
fn layers_on_the_cpu_come_with_the_speed_to_expect() {
    let mut offloaded = tier("a", "rx-7900-xtx", 1);
    offloaded["cpuOffloadLayers"] = json!(16);
    let all = report(json!([offloaded, tier("b", "rx-7900-xtx", 1)]));
    // 16 layers of 124 MB each from the machine's memory, the others from the card's.
    let speed = all.tiers[0].expected_tokens_per_second.unwrap();
    assert!((20.0..25.0).contains(&speed), "{speed}");
    assert_eq!(all.tiers[1].expected_tokens_per_second, None);
    let text = render_plan(&all, &Terminal::plain(200));
    assert!(text.contains("tokens/s where the node's memory gives 50 GB/s"), "{text}");
}

#[test]
fn what_cannot_be_read_here_is_told_as_the_operator_planned_it() {
    let mut model = model(json!([tier("a", "rx-7900-xtx", 2), tier("b", "rx-7600", 1)]));
    model.status = serde_json::from_value(json!({"tiers": [
        {"name": "a", "ready": 1, "replicas": 1, "vram": {"required": "471Mi", "available": "22000Mi"}},
    ]}))
    .unwrap();
    let unread = model.spec.tiers.iter().map(|tier| (tier.name.clone(), Err("no such host".to_owned())));
    let report = build_report(&model, &sample_profiles().unwrap(), &unread.collect());
    let problems: Vec<_> = report.tiers.iter().map(|tier| tier.problem.as_deref().unwrap()).collect();
    assert_eq!(
        problems,
        ["no such host; the operator planned it with 471 MiB of 22,000 MiB", "no such host"]
    );
    assert_eq!(report.fits, None);
}
