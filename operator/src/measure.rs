//! What engines use of their cards, beside what was planned: the runtime's share for plans to come, and the error.
//!
//! The gateways hear it with every probe, so nobody is asked anew. Processors have no card and tell nothing.

use std::sync::Arc;

use atlas_crds::{AtlasModel, GpuProfile, ModelSource, profile::Backend};
use atlas_operator_core::vram::{Measured, ModelShape, Setting, estimate};
use kube::ResourceExt;

use crate::{
    credentials::Wanted,
    fit::setting_of,
    headers::Headers,
    probe::{GatewayEndpoint, GatewayModel},
};

/// One engine's figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// The runtime's share of its card.
    pub runtime: u64,
    /// Namespace, model and tier.
    pub on: String,
}

/// What the engines of a profile measured; those that serve another setting than their header is known for are left out.
#[must_use]
pub fn measurements(
    profile: &GpuProfile,
    engines: &[(String, String, GatewayEndpoint)],
    model: impl Fn(&str, &str) -> Option<Arc<AtlasModel>>,
    headers: Option<&Headers>,
) -> Vec<Measurement> {
    if profile.spec.backend != Backend::Hip {
        return Vec::new();
    }
    let name = profile.name_any();
    let one = |(namespace, model_name, engine): &(String, String, GatewayEndpoint)| {
        let model = model(namespace, model_name)?;
        let tier =
            model.spec.tiers.iter().find(|tier| tier.name == engine.tier && tier.gpu_profile == name)?;
        let vram = engine.vram.as_ref()?;
        let source: ModelSource = tier.model.source.parse().ok()?;
        // While a change rolls, the engine may still serve what was asked for before.
        let same = engine.model_file.as_deref() == Some(source.display_name())
            && profile.spec.gfx_target.as_ref() == Some(&vram.gfx_target);
        let read = headers.and_then(|headers| headers.known(&Wanted::of(namespace, &tier.model)));
        let shape = match read.filter(|_| same) {
            Some(known) => Arc::clone(&known.shape),
            None => Arc::new(ModelShape::reported(&model, tier).filter(|_| same)?),
        };
        let setting = Setting {
            context_tokens: engine.context_tokens?,
            max_batch: engine.max_batch?,
            ..setting_of(tier)
        };
        let measured = Measured {
            own_peak: vram.own_peak_bytes,
            weights: vram.weight_bytes,
            kv_cache: vram.kv_cache_bytes,
            activations: estimate(&shape, &setting, 0).activations,
        };
        Some(Measurement {
            runtime: measured.runtime()?,
            on: format!("{namespace}/{model_name} tier {}", tier.name),
        })
    };
    engines.iter().filter_map(one).collect()
}

/// The most that an engine of a tier was seen to use of its card, as far as the gateways know.
#[must_use]
pub fn measured_peak(gateways: &[GatewayModel], tier: &str) -> Option<u64> {
    let engines = gateways.iter().flat_map(|gateway| &gateway.endpoints);
    let peaks = engines.filter(|engine| engine.tier == tier).filter_map(|engine| engine.vram.as_ref());
    peaks.map(|vram| vram.own_peak_bytes).max()
}
