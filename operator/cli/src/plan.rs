//! `plan`: what each tier of a model needs of its card, and what to change where it does not fit.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use atlas_crds::{
    AtlasModel, GpuProfile, ModelSource, Tier,
    model::{KvCacheType, ModelFile},
    quantity::parse_bytes,
};
use atlas_headers::{Ask, Guard, HeaderReader, Limits, Options, Pass, place_of};
use atlas_operator_core::vram::{
    Calibrations, Card, ModelShape, OtherFile, OtherProfile, Question, Setting, VramPlan, available_bytes,
    card_bytes_per_second, expected_tokens_per_second, mebibytes, plan_vram, profile_bytes,
};
use atlas_s3::Credentials;
use kube::ResourceExt;
use serde::Serialize;

use crate::{
    Outcome,
    args::{Output, PlanArgs, SourceArgs, Target},
    cluster::Cluster,
    error::CliError,
    manifest,
    render::render_plan,
    terminal::{Terminal, print_value, put},
};

/// One model's plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelReport {
    /// Name of the AtlasModel.
    pub model: String,
    /// Its namespace, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Whether every tier fits; absent where one could not be planned and none is known not to fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fits: Option<bool>,
    /// The tiers, in order of preference.
    pub tiers: Vec<TierReport>,
}

/// One tier's plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TierReport {
    /// Name of the tier.
    pub name: String,
    /// Its GpuProfile.
    pub gpu_profile: String,
    /// The card's product name, where the profile is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// The model's source.
    pub source: String,
    /// Name of the quantization, where the header tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Number of weights, where the header was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// As the tier asks.
    pub context_tokens: i32,
    /// As the tier asks.
    pub max_batch: i32,
    /// As the tier asks.
    pub kv_cache_type: KvCacheType,
    /// The plan, where the header was read and the profile is known.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub plan: Option<VramPlan>,
    /// What one sequence should get with layers on the CPU, where the card is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_tokens_per_second: Option<f64>,
    /// Why there is no plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What the header of a tier's model tells, or why it does not.
pub type Shapes = BTreeMap<String, Result<(Arc<ModelShape>, Vec<OtherFile>), String>>;

/// Plans, prints, and tells whether everything fits.
pub async fn run(args: &PlanArgs, target: &Target, terminal: &Terminal) -> Result<Outcome, CliError> {
    let (models, profiles) = gather(args, target).await?;
    let reader = build_reader(&args.sources)?;
    let mut reports = Vec::with_capacity(models.len());
    for model in &models {
        let shapes = read_shapes(model, &args.headers, &reader).await?;
        reports.push(build_report(model, &profiles, &shapes));
    }
    match (args.output, reports.as_slice()) {
        (Output::Table, reports) => {
            for report in reports {
                put(&render_plan(report, terminal));
            }
        }
        (output, [one]) => print_value(one, output)?,
        (output, all) => print_value(&all, output)?,
    }
    let problem = reports.iter().any(|report| report.fits != Some(true));
    Ok(if problem { Outcome::Problem } else { Outcome::Well })
}

async fn gather(args: &PlanArgs, target: &Target) -> Result<(Vec<AtlasModel>, Vec<GpuProfile>), CliError> {
    match (&args.file, &args.name) {
        (Some(path), _) => {
            let found = manifest::read(path)?;
            if found.models.is_empty() {
                return Err(CliError::Empty { path: path.clone(), kind: "AtlasModel" });
            }
            let mut profiles = found.profiles;
            if let Some(path) = &args.profiles {
                let more = manifest::read(path)?.profiles;
                if more.is_empty() {
                    return Err(CliError::Empty { path: path.clone(), kind: "GpuProfile" });
                }
                profiles.extend(more);
            }
            if profiles.is_empty() {
                profiles = manifest::sample_profiles()?;
            }
            Ok((found.models, profiles))
        }
        (None, Some(name)) => {
            let cluster = Cluster::connect(target).await?;
            Ok((vec![cluster.model(name).await?], cluster.profiles().await?))
        }
        (None, None) => Ok((Vec::new(), Vec::new())),
    }
}

/// A reader of headers with the settings of the command line.
pub fn build_reader(sources: &SourceArgs) -> Result<HeaderReader, CliError> {
    Ok(HeaderReader::new(Options {
        hub: sources.hub.clone(),
        token: sources.hub_token.clone().filter(|token| !token.is_empty()),
        guard: Guard { allowed: sources.allow_addresses.clone().into() },
        limits: Limits::default(),
    })?)
}

async fn read_shapes(
    model: &AtlasModel,
    files: &[(String, PathBuf)],
    reader: &HeaderReader,
) -> Result<Shapes, CliError> {
    let known = || model.spec.tiers.iter().map(|tier| tier.name.clone()).collect::<Vec<_>>();
    if let Some((tier, _)) = files.iter().find(|(tier, _)| !known().contains(tier)) {
        return Err(CliError::UnknownTier { tier: tier.clone(), known: known() });
    }
    let mut shapes = Shapes::new();
    for tier in &model.spec.tiers {
        let file = files.iter().find(|(name, _)| name == &tier.name);
        let read = match file {
            Some((_, path)) => atlas_headers::read_file(path)
                .map(|shape| (Arc::new(shape), Vec::new()))
                .map_err(|error| error.to_string()),
            None => read_source(&tier.model, reader).await,
        };
        // The engine of a model in a cluster may have told what nobody here can read.
        let read = read.or_else(|problem| match ModelShape::reported(model, tier) {
            Some(shape) => Ok((Arc::new(shape), Vec::new())),
            None => Err(problem),
        });
        shapes.insert(tier.name.clone(), read);
    }
    Ok(shapes)
}

/// Reads a source's header, and lists what lies beside it.
pub async fn read_source(
    file: &ModelFile,
    reader: &HeaderReader,
) -> Result<(Arc<ModelShape>, Vec<OtherFile>), String> {
    let source: ModelSource =
        file.source.parse().map_err(|error: atlas_crds::source::SourceError| error.to_string())?;
    // Who plans at a desk has credentials of their own; the Secret's name means nothing here.
    let pass = match &source {
        ModelSource::S3 { .. } => Credentials::read(|name| std::env::var(name).ok())
            .map_err(|error| error.to_string())?
            .map_or(Pass::None, Pass::S3),
        _ => Pass::None,
    };
    let ask = Ask { source, place: place_of(file.s3.as_ref()), pass };
    let header = match &ask.source {
        // What a node has under that path this machine may have too.
        ModelSource::File(path) if std::path::Path::new(path).is_file() => {
            let shape = atlas_headers::read_file(path.as_ref()).map_err(|error| error.to_string())?;
            return Ok((Arc::new(shape), Vec::new()));
        }
        ModelSource::File(_) => {
            return Err("the file is on its node, and no engine has told what it read there: give its header here with --header TIER=PATH".to_owned());
        }
        _ => reader.read(&ask).await.map_err(|error| error.to_string())?,
    };
    // A list that cannot be had costs the advice its exact sizes, and nothing else.
    let files = reader.list_other_files(&ask).await.unwrap_or_default();
    Ok((header.shape, files))
}

/// Plans every tier of a model.
pub fn build_report(model: &AtlasModel, profiles: &[GpuProfile], shapes: &Shapes) -> ModelReport {
    let tiers: Vec<TierReport> =
        model.spec.tiers.iter().map(|tier| told(model, report_tier(tier, profiles, shapes))).collect();
    let plans = || tiers.iter().map(|tier| tier.plan.as_ref().map(|plan| plan.fits));
    let fits = if plans().any(|fits| fits == Some(false)) {
        Some(false)
    } else {
        plans().all(|fits| fits == Some(true)).then_some(true)
    };
    ModelReport { model: model.name_any(), namespace: model.namespace(), fits, tiers }
}

/// Adds to why there is no plan here what the operator planned in the cluster, which may reach what this machine does not.
fn told(model: &AtlasModel, mut report: TierReport) -> TierReport {
    let planned = model.status.iter().flat_map(|status| &status.tiers).find(|tier| tier.name == report.name);
    let figures = planned.and_then(|tier| {
        let vram = tier.vram.as_ref()?;
        Some((parse_bytes(vram.required.as_ref()?)?, parse_bytes(vram.available.as_ref()?)?))
    });
    if let (Some(problem), Some((required, available))) = (&mut report.problem, figures) {
        let (required, available) = (mebibytes(required), mebibytes(available));
        problem.push_str(&format!("; the operator planned it with {required} of {available}"));
    }
    report
}

fn report_tier(tier: &Tier, profiles: &[GpuProfile], shapes: &Shapes) -> TierReport {
    let profile = profiles.iter().find(|profile| profile.name_any() == tier.gpu_profile);
    let shape = shapes.get(&tier.name);
    let read = shape.and_then(|shape| shape.as_ref().ok());
    let mut report = TierReport {
        name: tier.name.clone(),
        gpu_profile: tier.gpu_profile.clone(),
        product: profile.map(|profile| profile.spec.product.clone()),
        source: tier.model.source.clone(),
        quantization: read.and_then(|(shape, _)| shape.quantization.clone()),
        parameters: read.map(|(shape, _)| shape.parameters),
        context_tokens: tier.context_tokens,
        max_batch: tier.max_batch,
        kv_cache_type: tier.kv_cache_type,
        plan: None,
        expected_tokens_per_second: None,
        problem: None,
    };
    let available = profile.and_then(|profile| available_bytes(&profile.spec, tier));
    match (profile, available, shape) {
        (None, ..) => {
            let known: Vec<String> = profiles.iter().map(ResourceExt::name_any).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            report.problem =
                Some(format!("GpuProfile {} does not exist (there are: {known})", tier.gpu_profile));
        }
        (_, None, _) => {
            report.problem = Some("the profile's or tier's amounts of memory cannot be read".to_owned())
        }
        (_, _, None) => report.problem = Some("the header was not read".to_owned()),
        (_, _, Some(Err(problem))) => report.problem = Some(problem.clone()),
        (Some(profile), Some(available), Some(Ok((shape, other_files)))) => {
            let calibrations = Calibrations::of(profiles);
            let setting = setting_of(tier);
            let bandwidth =
                card_bytes_per_second(&profile.spec.product).filter(|_| setting.offload_layers > 0);
            report.expected_tokens_per_second =
                bandwidth.map(|bandwidth| expected_tokens_per_second(shape, &setting, bandwidth));
            report.plan = Some(plan_vram(&Question {
                shape,
                setting,
                card: Card { available, runtime: calibrations.runtime(profile) },
                other_profiles: &other_profiles(tier, profiles, &calibrations),
                other_files,
            }));
        }
    }
    report
}

/// What a tier asks of its model.
pub fn setting_of(tier: &Tier) -> Setting {
    let number = |value: i32| u64::try_from(value).unwrap_or(0);
    Setting {
        context_tokens: number(tier.context_tokens),
        max_batch: number(tier.max_batch),
        kv_cache_type: tier.kv_cache_type,
        offload_layers: number(tier.cpu_offload_layers),
    }
}

fn other_profiles(tier: &Tier, profiles: &[GpuProfile], calibrations: &Calibrations) -> Vec<OtherProfile> {
    let others = profiles.iter().filter(|profile| profile.name_any() != tier.gpu_profile);
    others
        .filter_map(|profile| {
            let runtime = calibrations.runtime(profile);
            let card = Card { available: profile_bytes(&profile.spec)?, runtime };
            Some(OtherProfile { name: profile.name_any(), card })
        })
        .collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
