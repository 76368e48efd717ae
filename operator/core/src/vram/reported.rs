//! A model's shape from what an engine reported of its header, where nobody else can read that.
//!
//! The report comes from the status of an AtlasModel or from an engine's own word: neither is trusted to be in bounds.

use std::collections::BTreeMap;

use atlas_crds::{AtlasModel, Tier, status::HeaderStatus};

use super::{
    LayerShape, ModelShape,
    shape::{MAX_LAYERS, MAX_WIDTH},
};

/// More bytes or weights than any model has; it keeps every sum within 64 bits.
const MAX_AMOUNT: u64 = 1 << 50;

impl ModelShape {
    /// The shape of a tier's model as an engine of the tier told it; `None` where that was another file, or nobody did.
    #[must_use]
    pub fn reported(model: &AtlasModel, tier: &Tier) -> Option<Self> {
        let tiers = &model.status.as_ref()?.tiers;
        let report = tiers.iter().find(|status| status.name == tier.name)?.header.as_ref()?;
        Self::from_report(report).filter(|_| report.source == tier.model.source)
    }

    /// The shape in a report; `None` where it holds what no model has.
    #[must_use]
    pub fn from_report(report: &HeaderStatus) -> Option<Self> {
        let within = |value: i64, limit: u64| u64::try_from(value).ok().filter(|value| *value <= limit);
        let width = |value: i64| within(value, MAX_WIDTH).filter(|width| *width > 0);
        let layers = report.layer_weight_bytes.len() as u64;
        if layers == 0 || layers > MAX_LAYERS {
            return None;
        }
        let (key_elements, value_elements) = (width(report.key_elements)?, width(report.value_elements)?);
        let layer = |bytes: &i64| {
            let weight_bytes = within(*bytes, MAX_AMOUNT)?;
            Some(LayerShape { weight_bytes, key_elements, value_elements })
        };
        Some(Self {
            architecture: report.architecture.clone(),
            quantization: report.quantization.clone(),
            parameters: within(report.parameters, MAX_AMOUNT)?,
            layers: report.layer_weight_bytes.iter().map(layer).collect::<Option<_>>()?,
            other_weight_bytes: within(report.other_weight_bytes, MAX_AMOUNT)?,
            hidden: width(report.hidden)?,
            feed_forward: width(report.feed_forward)?,
            query_elements: width(report.query_elements)?,
            takes_q8_cache: report.takes_q8_cache,
            vocabulary: width(report.vocabulary)?,
            trained_context: within(report.trained_context, u64::from(u32::MAX))?,
            bytes_by_type: BTreeMap::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vram::{Card, Question, Setting, plan_vram};
    use atlas_crds::model::KvCacheType;
    use proptest::prelude::*;

    fn report() -> HeaderStatus {
        HeaderStatus {
            source: "file:///models/m.gguf".into(),
            architecture: "llama".into(),
            quantization: Some("Q4_K_M".into()),
            parameters: 6_700_000_000,
            layer_weight_bytes: vec![120 << 20, 110 << 20],
            other_weight_bytes: 180 << 20,
            key_elements: 1024,
            value_elements: 512,
            hidden: 4096,
            feed_forward: 11008,
            query_elements: 2048,
            takes_q8_cache: true,
            vocabulary: 32000,
            trained_context: 4096,
        }
    }

    #[test]
    fn every_number_has_its_place() {
        let layer = |weight_bytes| LayerShape { weight_bytes, key_elements: 1024, value_elements: 512 };
        let expected = ModelShape {
            architecture: "llama".into(),
            quantization: Some("Q4_K_M".into()),
            parameters: 6_700_000_000,
            layers: vec![layer(120 << 20), layer(110 << 20)],
            other_weight_bytes: 180 << 20,
            hidden: 4096,
            feed_forward: 11008,
            query_elements: 2048,
            takes_q8_cache: true,
            vocabulary: 32000,
            trained_context: 4096,
            bytes_by_type: BTreeMap::new(),
        };
        assert_eq!(ModelShape::from_report(&report()), Some(expected));
        assert_eq!(ModelShape::from_report(&HeaderStatus { layer_weight_bytes: vec![], ..report() }), None);
        assert_eq!(ModelShape::from_report(&HeaderStatus { hidden: -1, ..report() }), None);
        assert_eq!(ModelShape::from_report(&HeaderStatus { parameters: i64::MAX, ..report() }), None);
    }

    proptest! {
        #[test]
        fn whatever_is_reported_is_planned_without_a_panic(
            numbers in prop::collection::vec(prop_oneof![any::<i64>(), 0_i64..1 << 21], 10),
            layers in prop::collection::vec(any::<i64>(), 0..4),
        ) {
            let report = HeaderStatus {
                parameters: numbers[0],
                layer_weight_bytes: layers,
                other_weight_bytes: numbers[1],
                key_elements: numbers[2],
                value_elements: numbers[3],
                hidden: numbers[4],
                feed_forward: numbers[5],
                query_elements: numbers[6],
                vocabulary: numbers[7],
                trained_context: numbers[8],
                ..report()
            };
            if let Some(shape) = ModelShape::from_report(&report) {
                let setting = Setting {
                    context_tokens: 4096,
                    max_batch: 256,
                    kv_cache_type: KvCacheType::F16,
                    offload_layers: 0,
                };
                let card = Card::with_available(u64::try_from(numbers[9]).unwrap_or(0));
                let plan =
                    plan_vram(&Question { shape: &shape, setting, card, other_profiles: &[], other_files: &[] });
                prop_assert!(plan.required >= shape.weight_bytes());
            }
        }
    }
}
