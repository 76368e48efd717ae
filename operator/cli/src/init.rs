//! `init`: an AtlasModel from model sources and the cards that there are, as large as the planner lets it be.

use std::sync::Arc;

use atlas_crds::{
    GpuProfile, ModelSource,
    model::{KvCacheType, ModelFile},
};
use atlas_operator_core::vram::{
    Calibrations, Card, ModelShape, Question, Setting, plan_vram, profile_bytes,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    Outcome,
    args::{InitArgs, Target},
    cluster::Cluster,
    error::CliError,
    manifest,
    plan::{build_reader, read_source},
    terminal::put,
};

/// Contexts that are proposed, largest first, as far as model and card allow.
const CONTEXTS: [u64; 6] = [32768, 16384, 8192, 4096, 2048, 1024];
/// A context that is worth a smaller batch.
const GOOD_CONTEXT: u64 = 4096;

/// Prints a manifest; what fits no card is a problem.
pub async fn run(args: &InitArgs, target: &Target) -> Result<Outcome, CliError> {
    let profiles = gather_profiles(args, target).await?;
    let reader = build_reader(&args.sources)?;
    let mut tiers = Vec::with_capacity(args.models.len());
    let mut used: Vec<String> = Vec::new();
    for (index, uri) in args.models.iter().enumerate() {
        let file = ModelFile { source: uri.clone(), sha256: None, credentials_secret: None, s3: None };
        let shape = read_source(&file, &reader).await.map(|(shape, _)| shape);
        let shape = shape.map_err(|reason| CliError::Source { uri: uri.clone(), reason })?;
        let free: Vec<&GpuProfile> =
            profiles.iter().filter(|profile| !used.contains(&profile.name_any())).collect();
        let Some((profile, setting)) = choose(&shape, &free, &Calibrations::of(&profiles)) else {
            let tried = free.iter().map(|profile| profile.name_any()).collect();
            return Err(CliError::NoCard { uri: uri.clone(), tried });
        };
        used.push(profile.name_any());
        tiers.push(tier(index, uri, profile, &setting));
    }
    let name = args.name.clone().unwrap_or_else(|| object_name(&args.models[0]));
    let mut metadata = json!({"name": name});
    if let Some(namespace) = &target.namespace {
        metadata["namespace"] = namespace.clone().into();
    }
    let object = json!({
        "apiVersion": "atlas.gillsystems.com/v1alpha1",
        "kind": "AtlasModel",
        "metadata": metadata,
        "spec": {"tiers": tiers},
    });
    put(&serde_yaml_ng::to_string(&object).map_err(CliError::Yaml)?);
    Ok(Outcome::Well)
}

async fn gather_profiles(args: &InitArgs, target: &Target) -> Result<Vec<GpuProfile>, CliError> {
    if let Some(path) = &args.profiles {
        return Ok(manifest::read(path)?.profiles);
    }
    if args.offline {
        return manifest::sample_profiles();
    }
    let found = Cluster::connect(target).await?.profiles().await?;
    // A profile without a node has no card to offer.
    Ok(found
        .into_iter()
        .filter(|p| p.status.as_ref().is_some_and(|status| status.matched_nodes > 0))
        .collect())
}

/// The largest card, and the largest setting that fits it: a good context first, then the batch, then more context.
fn choose<'a>(
    shape: &Arc<ModelShape>,
    profiles: &[&'a GpuProfile],
    calibrations: &Calibrations,
) -> Option<(&'a GpuProfile, Setting)> {
    let mut cards: Vec<(&GpuProfile, u64)> =
        profiles.iter().filter_map(|profile| Some((*profile, profile_bytes(&profile.spec)?))).collect();
    cards.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    cards.into_iter().find_map(|(profile, available)| {
        let card = Card { available, runtime: calibrations.runtime(profile) };
        Some((profile, largest_setting(shape, profile, card)?))
    })
}

fn largest_setting(shape: &ModelShape, profile: &GpuProfile, card: Card) -> Option<Setting> {
    let setting = |context_tokens, max_batch| Setting {
        context_tokens,
        max_batch,
        kv_cache_type: KvCacheType::F16,
        offload_layers: 0,
    };
    let fits = |setting: &Setting| {
        plan_vram(&Question { shape, setting: *setting, card, other_profiles: &[], other_files: &[] }).fits
    };
    let contexts = || CONTEXTS.into_iter().filter(|context| *context <= shape.trained_context.max(1024));
    let context = contexts().filter(|c| *c <= GOOD_CONTEXT).find(|context| fits(&setting(*context, 1)))?;
    let most = u64::try_from(profile.spec.max_batch).unwrap_or(1).max(1);
    let batch = (1..=most).rev().find(|batch| fits(&setting(context, *batch)))?;
    let context = contexts().find(|longer| fits(&setting(*longer, batch))).unwrap_or(context);
    Some(setting(context, batch))
}

fn tier(index: usize, uri: &str, profile: &GpuProfile, setting: &Setting) -> Value {
    let name = match index {
        0 => "primary".to_owned(),
        1 => "fallback".to_owned(),
        more => format!("fallback-{more}"),
    };
    json!({
        "name": name,
        "gpuProfile": profile.name_any(),
        "model": {"source": uri},
        "contextTokens": setting.context_tokens,
        "maxBatch": setting.max_batch,
    })
}

/// A name for the object from the file's, as a Service takes it.
fn object_name(uri: &str) -> String {
    let display =
        uri.parse::<ModelSource>().map_or_else(|_| "model".to_owned(), |s| s.display_name().to_lowercase());
    let mapped: String = display.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let begun = mapped.trim_start_matches(|c: char| !c.is_ascii_lowercase());
    let name: String = begun.chars().take(40).collect();
    let name = name.trim_end_matches('-');
    if name.is_empty() { "model".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::sample_profiles;
    use atlas_operator_core::vram::LayerShape;

    /// Mistral 7B's numbers at four bits and a half.
    fn mistral() -> Arc<ModelShape> {
        let layer = LayerShape { weight_bytes: 125 << 20, key_elements: 1024, value_elements: 1024 };
        Arc::new(ModelShape {
            architecture: "llama".into(),
            quantization: None,
            parameters: 7_200_000_000,
            layers: vec![layer; 32],
            other_weight_bytes: 170 << 20,
            hidden: 4096,
            feed_forward: 14336,
            query_elements: 4096,
            takes_q8_cache: true,
            vocabulary: 32000,
            trained_context: 32768,
            bytes_by_type: [].into(),
        })
    }

    #[test]
    fn the_largest_card_gets_the_largest_setting_that_fits() {
        let profiles = sample_profiles().unwrap();
        let of = |name: &str| profiles.iter().find(|profile| profile.name_any() == name).unwrap();
        let check = |names: &[&str], expected: Option<(&str, u64, u64)>| {
            let some: Vec<&GpuProfile> = names.iter().map(|name| of(name)).collect();
            let chosen = choose(&mistral(), &some, &Calibrations::default())
                .map(|(p, s)| (p.name_any(), s.context_tokens, s.max_batch));
            assert_eq!(chosen.as_ref().map(|(name, c, b)| (name.as_str(), *c, *b)), expected);
        };
        check(&["rx-7600", "rx-7900-xtx"], Some(("rx-7900-xtx", 32768, 4)));
        check(&["rx-7600"], Some(("rx-7600", 4096, 2)));
        check(&[], None);
    }

    #[test]
    fn names_are_what_a_service_takes() {
        let check = |uri: &str, name: &str| assert_eq!(object_name(uri), name);
        check("hf://o/r/codellama-13b-instruct.Q4_K_M.gguf", "codellama-13b-instruct-q4-k-m");
        check("https://h/7B_Model.gguf", "b-model");
        check("https://h/123.gguf", "model");
    }
}
