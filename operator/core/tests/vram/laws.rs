//! Laws of the planner on random models: more never needs less, and what it says fits does.

use atlas_crds::model::KvCacheType;
use atlas_operator_core::vram::{
    Card, Change, OtherProfile, Question, RUNTIME_BYTES, Setting, estimate, plan_vram,
};
use proptest::prelude::*;

use crate::models::{Llama, shape};

/// Types of growing bits a weight.
const BY_BITS: [u32; 7] = [10, 11, 12, 13, 14, 8, 1];

fn any_model() -> impl Strategy<Value = Llama> {
    (1_u64..12, 1_u64..9, 0_u32..4, 1_u64..9, 1_u64..400, 8_u32..17).prop_map(
        |(layers, width, group, ff, vocabulary, context)| {
            let heads = 8 * width;
            Llama {
                layers,
                hidden: 512 * width,
                heads,
                kv_heads: heads >> group,
                feed_forward: 256 * ff,
                vocabulary: 100 * vocabulary,
                context: 1 << context,
            }
        },
    )
}

fn any_setting() -> impl Strategy<Value = Setting> {
    (256_u64..200_000, 1_u64..=256, any::<bool>(), 0_u64..14).prop_map(
        |(context_tokens, max_batch, q8, offload_layers)| {
            let kv_cache_type = if q8 { KvCacheType::Q8_0 } else { KvCacheType::F16 };
            Setting { context_tokens, max_batch, kv_cache_type, offload_layers }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn more_context_batch_or_bits_never_need_less(
        model in any_model(), setting in any_setting(), kind in 0..BY_BITS.len() - 1, more in 1_u64..5000,
    ) {
        let lighter = shape(&model.uniform(BY_BITS[kind]));
        let heavier = shape(&model.uniform(BY_BITS[kind + 1]));
        let need = |shape, setting: &Setting| estimate(shape, setting, RUNTIME_BYTES).required();
        let base = need(&lighter, &setting);
        prop_assert!(need(&heavier, &setting) >= base);
        let longer = Setting { context_tokens: setting.context_tokens + more, ..setting };
        prop_assert!(need(&lighter, &longer) >= base);
        let wider = Setting { max_batch: setting.max_batch + 1, ..setting };
        prop_assert!(need(&lighter, &wider) > base);
        let offloaded = Setting { offload_layers: setting.offload_layers + 1, ..setting };
        prop_assert!(need(&lighter, &offloaded) <= base);
        let f16 = Setting { kv_cache_type: KvCacheType::F16, ..setting };
        let q8 = Setting { kv_cache_type: KvCacheType::Q8_0, ..setting };
        prop_assert!(need(&lighter, &q8) <= need(&lighter, &f16));
    }

    #[test]
    fn what_a_plan_says_fits_does_and_one_more_does_not(
        model in any_model(), setting in any_setting(), available in 0_u64..40_000, other in 0_u64..80_000,
    ) {
        let shape = shape(&model.q4_k_m());
        let card = Card::with_available(available << 20);
        let other = OtherProfile { name: "other".into(), card: Card::with_available(other << 20) };
        let question = Question {
            shape: &shape, setting, card, other_profiles: std::slice::from_ref(&other), other_files: &[],
        };
        let plan = plan_vram(&question);
        let fits = |setting: &Setting| estimate(&shape, setting, card.runtime).required() <= card.available;
        prop_assert_eq!(plan.fits, fits(&setting));
        prop_assert_eq!(plan.required, plan.need.weights + plan.need.kv_cache + plan.overhead);
        prop_assert_eq!(plan.fits, plan.advice.is_empty() && plan.required <= plan.available);
        let limit = shape.trained_context.max(setting.context_tokens);
        let context = |context_tokens| Setting { context_tokens, ..setting };
        prop_assert!(plan.max_context_tokens == 0 || fits(&context(plan.max_context_tokens)));
        prop_assert!(plan.max_context_tokens == limit || !fits(&context(plan.max_context_tokens + 1)));
        let batch = |max_batch| Setting { max_batch, ..setting };
        prop_assert!(plan.max_batch == 0 || fits(&batch(plan.max_batch)));
        prop_assert!(plan.max_batch == 256 || !fits(&batch(plan.max_batch + 1)));
        for advice in &plan.advice {
            let moved = matches!(advice.change, Change::GpuProfile { .. });
            let room = if moved { other.card.available } else { card.available };
            prop_assert!(advice.required <= room);
            match advice.change {
                Change::ContextTokens { to, .. } => prop_assert!(fits(&context(to)) && to < setting.context_tokens),
                Change::MaxBatch { to, .. } => prop_assert!(fits(&batch(to)) && to < setting.max_batch),
                Change::CpuOffloadLayers { to, .. } => {
                    let offload = |offload_layers| Setting { offload_layers, ..setting };
                    prop_assert!(fits(&offload(to)) && !fits(&offload(to - 1)));
                }
                _ => {}
            }
        }
    }
}
