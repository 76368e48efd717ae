//! AtlasModels and GpuProfiles from YAML files, with the defaults that the API server would set.

use std::path::Path;

use atlas_crds::{AtlasModel, GpuProfile};
use serde::Deserialize;
use serde_yaml_ng::Value;

use crate::error::CliError;

/// The operator's sample profiles, for planning without any at hand.
const SAMPLE_PROFILES: [&str; 2] = [
    include_str!("../../../deploy/samples/gpuprofiles.yaml"),
    include_str!("../../../deploy/samples/gpuprofiles-rdna3.yaml"),
];

/// What a file holds of ours.
#[derive(Debug, Default)]
pub struct Manifests {
    /// AtlasModels in order.
    pub models: Vec<AtlasModel>,
    /// GpuProfiles in order.
    pub profiles: Vec<GpuProfile>,
}

/// The profiles that the operator comes with.
pub fn sample_profiles() -> Result<Vec<GpuProfile>, CliError> {
    let mut profiles = Vec::new();
    for text in SAMPLE_PROFILES {
        profiles.extend(parse(text, Path::new("the samples"))?.profiles);
    }
    Ok(profiles)
}

/// Reads a file.
pub fn read(path: &Path) -> Result<Manifests, CliError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| CliError::File { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Parses documents, Lists and plain sequences; other kinds are none of ours.
fn parse(text: &str, path: &Path) -> Result<Manifests, CliError> {
    let mut found = Manifests::default();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        let wrong = |kind: &str, source| CliError::Manifest {
            path: path.to_owned(),
            number,
            kind: kind.to_owned(),
            source,
        };
        let value = Value::deserialize(document).map_err(|source| wrong("YAML", source))?;
        let items = match value {
            Value::Sequence(items) => items,
            value if value.get("kind").and_then(Value::as_str) == Some("List") => {
                value.get("items").and_then(Value::as_sequence).cloned().unwrap_or_default()
            }
            value => vec![value],
        };
        for item in items {
            match item.get("kind").and_then(Value::as_str) {
                Some("AtlasModel") => {
                    found.models.push(serde_yaml_ng::from_value(item).map_err(|e| wrong("AtlasModel", e))?);
                }
                Some("GpuProfile") => {
                    found.profiles.push(serde_yaml_ng::from_value(item).map_err(|e| wrong("GpuProfile", e))?);
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_are_read_and_mistakes_are_named() {
        let model = "{apiVersion: atlas.gillsystems.com/v1alpha1, kind: AtlasModel, metadata: {name: code}, spec: {tiers: [{name: a, gpuProfile: p, model: {source: \"file:///m\"}}]}}";
        let text =
            format!("kind: Namespace\n---\n{model}\n---\n{{kind: List, items: [{model}]}}\n---\n- {model}\n");
        let found = parse(&text, Path::new("x.yaml")).unwrap();
        assert_eq!((found.models.len(), found.models[0].spec.tiers[0].context_tokens), (3, 4096));
        let error = parse("a: 1\n---\n{kind: AtlasModel, spec: 3}\n", Path::new("x.yaml")).unwrap_err();
        assert_eq!(error.to_string(), "x.yaml: document 2 is no valid AtlasModel");
    }

    #[test]
    fn the_samples_are_profiles() {
        let names: Vec<_> = sample_profiles().unwrap().into_iter().filter_map(|p| p.metadata.name).collect();
        assert_eq!((names.len(), names[0].as_str(), names[1].as_str()), (8, "rx-7900-xtx", "rx-7600"));
    }
}
