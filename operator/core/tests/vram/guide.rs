//! The hardware guide's tables: both profiles reserve 2560Mi, Q4_K_M weights, 4096 tokens.

use atlas_crds::model::KvCacheType;
use atlas_operator_core::vram::{
    Card, Change, OtherFile, OtherProfile, Question, Setting, VramPlan, card_bytes_per_second,
    expected_tokens_per_second, plan_vram,
};

use crate::models::{
    CODELLAMA_13B, CODELLAMA_34B, LLAMA_2_7B, LLAMA_31_8B, LLAMA_31_70B, Llama, MISTRAL_7B, shape,
};

const MIB: u64 = 1 << 20;
const XTX: u64 = (24560 - 2560) * MIB;
const RX_7600: u64 = (8176 - 2560) * MIB;

fn setting(max_batch: u64) -> Setting {
    Setting { context_tokens: 4096, max_batch, kv_cache_type: KvCacheType::F16, offload_layers: 0 }
}

fn ask(model: Llama, available: u64, setting: Setting) -> VramPlan {
    plan_vram(&Question {
        shape: &shape(&model.q4_k_m()),
        setting,
        card: Card::with_available(available),
        other_profiles: &[OtherProfile { name: "rx-7900-xtx".into(), card: Card::with_available(XTX) }],
        other_files: &[],
    })
}

#[test]
fn every_row_of_the_guide_comes_out() {
    let check = |what: &str, model: Llama, available: u64, setting: Setting, fits: bool, tight: bool| {
        let plan = ask(model, available, setting);
        let asked = (setting.max_batch, plan.required / MIB, available / MIB);
        assert_eq!((plan.fits, plan.tight), (fits, tight), "{what}: batch, required, available {asked:?}");
        assert!(plan.overhead <= 400 * MIB, "{what}: {} of overhead", plan.overhead);
        assert_eq!(plan.advice.is_empty(), fits, "{what}: {:?}", plan.advice);
    };
    let f16 = setting;
    let q8 = |batch| Setting { kv_cache_type: KvCacheType::Q8_0, ..setting(batch) };
    let offload = |layers| Setting { offload_layers: layers, ..setting(1) };
    // Tier 1 on the 7900 XTX: CodeLlama 13B, and any other 13B of the Llama architecture; batch sizes 2 to 4.
    for (batch, fits, tight) in [(1, true, false), (2, true, false), (4, true, true), (8, false, false)] {
        check("13B on 24 GB", CODELLAMA_13B, XTX, f16(batch), fits, tight);
    }
    // Tier 2: 34B fits with little to spare, 70B relies on the CPU.
    check("34B on 24 GB", CODELLAMA_34B, XTX, f16(1), true, true);
    check("70B on 24 GB", LLAMA_31_70B, XTX, f16(1), false, false);
    check("70B on 24 GB with 42 layers on the CPU", LLAMA_31_70B, XTX, offload(42), true, true);
    // The RX 7600: Mistral 7B at 1 and 2, an 8B at 1, at 2 only with a smaller KV cache, a 13B never.
    check("Mistral 7B on 8 GB", MISTRAL_7B, RX_7600, f16(1), true, false);
    check("Mistral 7B on 8 GB", MISTRAL_7B, RX_7600, f16(2), true, true);
    check("Mistral 7B on 8 GB", MISTRAL_7B, RX_7600, f16(3), false, false);
    check("8B on 8 GB", LLAMA_31_8B, RX_7600, f16(1), true, true);
    check("8B on 8 GB", LLAMA_31_8B, RX_7600, f16(2), false, false);
    check("8B on 8 GB, Q8_0", LLAMA_31_8B, RX_7600, q8(2), true, true);
    check("7B with full attention heads on 8 GB", LLAMA_2_7B, RX_7600, f16(1), false, false);
    check("7B with full attention heads on 8 GB, Q8_0", LLAMA_2_7B, RX_7600, q8(1), true, true);
    check("13B on 8 GB", CODELLAMA_13B, RX_7600, f16(1), false, false);
}

#[test]
fn sizes_are_those_of_the_published_files() {
    // MiB of tensors; the files are their headers longer.
    let check = |model: Llama, weights: u64, kv_cache: u64| {
        let plan = ask(model, XTX, setting(1));
        assert_eq!((plan.need.weights / MIB, plan.need.kv_cache / MIB), (weights, kv_cache));
    };
    check(LLAMA_2_7B, 3891, 2048);
    check(MISTRAL_7B, 4165, 512);
    check(LLAMA_31_8B, 4685, 512);
    check(CODELLAMA_13B, 7500, 3200);
    check(CODELLAMA_34B, 19282, 768);
    check(LLAMA_31_70B, 40543, 1280);
    let full = ask(LLAMA_2_7B, RX_7600, setting(1));
    assert_eq!(((full.need.weights + full.need.kv_cache) / MIB, full.available / MIB), (5939, 5616));
}

#[test]
fn advice_names_every_single_change_that_helps_the_cheapest_first() {
    let check = |model: Llama, available: u64, setting: Setting, expected: &[&str]| {
        let plan = ask(model, available, setting);
        let texts: Vec<String> = plan.advice.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected);
        for advice in &plan.advice {
            let offloads = matches!(advice.change, Change::CpuOffloadLayers { .. });
            assert_eq!(advice.experimental, offloads);
            let moved = matches!(advice.change, Change::GpuProfile { .. });
            assert!(advice.required <= if moved { XTX } else { available }, "{advice:?}");
        }
    };
    check(
        LLAMA_2_7B,
        RX_7600,
        setting(1),
        &[
            "contextTokens 4096 -> 2816",
            "kvCacheType F16 -> Q8_0",
            "a Q3_K_M file of the model (about 3,214 MiB)",
            "cpuOffloadLayers 0 -> 4 (experimental, several times slower)",
            "gpuProfile rx-7900-xtx",
        ],
    );
    check(
        CODELLAMA_13B,
        XTX,
        setting(8),
        &[
            "contextTokens 4096 -> 2048",
            "maxBatch 8 -> 4",
            "kvCacheType F16 -> Q8_0",
            "cpuOffloadLayers 0 -> 14 (experimental, several times slower)",
        ],
    );
    check(LLAMA_31_70B, XTX, setting(1), &["cpuOffloadLayers 0 -> 41 (experimental, several times slower)"]);
}

#[test]
fn a_cache_of_blocks_is_advised_only_where_heads_are_whole_blocks() {
    for (hidden, advised) in [(4096, true), (32 * 112, false), (32 * 80, false)] {
        let model = Llama { hidden, kv_heads: 32, ..LLAMA_2_7B };
        let fits_in_half = ask(model, u64::MAX, setting(1)).required - 512 * MIB;
        let plan = ask(model, fits_in_half, setting(1));
        let change =
            |advice: &atlas_operator_core::vram::Advice| matches!(advice.change, Change::KvCacheTypeQ8);
        assert_eq!(plan.advice.iter().any(change), advised, "{hidden}: {:?}", plan.advice);
    }
}

#[test]
fn files_of_the_repository_are_advised_by_their_own_names_and_sizes() {
    let file = |name: &str, mib: u64| OtherFile { name: name.into(), bytes: mib * MIB };
    let plan = plan_vram(&Question {
        shape: &shape(&LLAMA_2_7B.q4_k_m()),
        setting: setting(1),
        card: Card::with_available(RX_7600),
        other_profiles: &[],
        other_files: &[file("a.Q2_K.gguf", 2700), file("a.Q3_K_S.gguf", 2811), file("a.Q5_K_M.gguf", 4560)],
    });
    assert!(
        plan.advice.iter().any(|advice| advice.text == "the file a.Q3_K_S.gguf (2,811 MiB)"),
        "{:?}",
        plan.advice
    );
}

#[test]
fn a_plan_reads_as_json() {
    let plan = serde_json::to_value(ask(LLAMA_2_7B, RX_7600, setting(1))).unwrap();
    for key in [
        "weights",
        "kvCache",
        "activations",
        "runtime",
        "overhead",
        "required",
        "available",
        "maxContextTokens",
    ] {
        assert!(plan[key].is_u64(), "{key}: {plan}");
    }
    assert_eq!((plan["fits"].as_bool(), plan["largestBatch"].as_u64()), (Some(false), Some(0)));
    assert_eq!(plan["advice"][0]["change"], "contextTokens");
    assert_eq!(
        (plan["advice"][0]["from"].as_u64(), plan["advice"][0]["to"].as_u64()),
        (Some(4096), Some(2816))
    );
}

/// The engine's model of its kernels says the same of these two (engine/kernels/src/hip/predict/split.rs).
#[test]
fn a_34b_is_read_by_the_card_and_a_70b_waits_for_the_machines_memory() {
    let card = card_bytes_per_second("Radeon RX 7900 XTX").unwrap();
    for (what, model, layers, low, high) in
        [("34B", CODELLAMA_34B, 0, 28.0, 40.0), ("70B", LLAMA_31_70B, 42, 1.9, 2.4)]
    {
        let setting = Setting { offload_layers: layers, ..setting(1) };
        let found = expected_tokens_per_second(&shape(&model.q4_k_m()), &setting, card);
        assert!((low..high).contains(&found), "{what}: {found}");
    }
}
