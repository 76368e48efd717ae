//! How a pod claims exactly its profile's card from the DRA driver, which can tell two cards of one node apart.
//!
//! A claim's card is found by what the driver measured, not by labels of the node.

use atlas_crds::{
    names,
    profile::{Allocation, Backend, GpuProfileSpec},
    quantity::parse_bytes,
};
use serde_json::{Value, json};

use super::{
    Desired,
    engine::tier_labels,
    meta::{Labels, Parts, assemble, controller_of, hash_of},
};
use crate::{
    kinds::Kind,
    validate::{ValidatedModel, ValidatedTier},
};

/// Name of the claim inside its pod.
pub const CLAIM: &str = "gpu";
/// A card's memory may differ from the profile's by this part: less than between any two kinds of card.
const TOLERANCE: u64 = 16;

/// Whether a profile's cards are allocated by claims.
pub fn is_claimed(profile: &GpuProfileSpec) -> bool {
    profile.backend == Backend::Hip && profile.allocation == Allocation::ResourceClaim
}

/// Name of a tier's claim template. A template never changes, so each has a name of its own.
pub fn claim_template_name(model: &ValidatedModel, tier: &ValidatedTier) -> String {
    let hash = hash_of(&claim_spec(&tier.profile.spec));
    format!("{}-{}", names::tier_object_name(&model.name, &tier.name), &hash[..8])
}

/// The claim template of a tier, where its profile allocates by claims.
pub fn build_claim_template(model: &ValidatedModel, tier: &ValidatedTier) -> Option<Desired> {
    is_claimed(&tier.profile.spec).then(|| {
        assemble(Parts {
            kind: Kind::ResourceClaimTemplate,
            namespace: &model.namespace,
            name: claim_template_name(model, tier),
            labels: tier_labels(model, tier),
            owners: &controller_of(model),
            annotations: Labels::new(),
            fields: json!({"spec": {"spec": claim_spec(&tier.profile.spec)}}),
        })
    })
}

fn claim_spec(profile: &GpuProfileSpec) -> Value {
    json!({"devices": {"requests": [{
        "name": CLAIM,
        "exactly": {
            "deviceClassName": names::DEVICE_CLASS,
            "allocationMode": "ExactCount",
            "count": 1,
            "selectors": [{"cel": {"expression": selector(profile)}}],
        },
    }]}})
}

/// The CEL expression that only the profile's card satisfies.
///
/// The upper bound is no luxury: drivers have advertised 80 GiB, or nothing, for a card whose memory they could not
/// read. A capacity that is absent would be an error and end the whole allocation, so each is asked for first.
fn selector(profile: &GpuProfileSpec) -> String {
    let capacity = format!("device.capacity[\"{}\"]", names::DEVICE_CLASS);
    let mut terms = Vec::new();
    let units = profile.node_match.as_ref().map(|node| node.compute_units).or(profile.compute_units);
    if let Some(units) = units {
        terms.push(format!("\"computeUnits\" in {capacity}"));
        terms.push(format!("{capacity}.computeUnits.compareTo(quantity(\"{units}\")) == 0"));
    }
    if let Some(bytes) = parse_bytes(&profile.vram) {
        let mebibytes = bytes >> 20;
        let slack = mebibytes / TOLERANCE;
        terms.push(format!("\"memory\" in {capacity}"));
        terms.push(format!("{capacity}.memory.compareTo(quantity(\"{}Mi\")) >= 0", mebibytes - slack));
        terms.push(format!("{capacity}.memory.compareTo(quantity(\"{}Mi\")) <= 0", mebibytes + slack));
    }
    terms.join(" && ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selector_bounds_memory_on_both_sides_and_never_reads_what_is_absent() {
        let profile = |vram: &str, units: i32| -> GpuProfileSpec {
            serde_json::from_value(json!({"product": "P", "vram": vram, "gfxTarget": "gfx1100",
                "match": {"vramClass": "24G", "computeUnits": units}}))
            .unwrap()
        };
        let text = selector(&profile("24560Mi", 96));
        for part in [
            "\"computeUnits\" in device.capacity[\"gpu.amd.com\"] && ",
            ".computeUnits.compareTo(quantity(\"96\")) == 0",
            "\"memory\" in device.capacity[\"gpu.amd.com\"] && ",
            ".memory.compareTo(quantity(\"23025Mi\")) >= 0",
            ".memory.compareTo(quantity(\"26095Mi\")) <= 0",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(selector(&profile("8176Mi", 32)).contains("quantity(\"8687Mi\")) <= 0"));
    }
}
