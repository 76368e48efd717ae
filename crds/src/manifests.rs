//! The CRDs as the YAML files that are checked in under `crds/manifests/`.

use kube::CustomResourceExt;

use crate::{AtlasModel, GpuProfile};

/// First line of each generated file.
const HEADER: &str = "# Generated from the Rust types by `make generate`: change those.\n";

/// Returns (file name, content) of every generated manifest.
///
/// # Errors
///
/// Serialisation fails only if a schema holds what YAML cannot say, which the drift test would show.
pub fn render() -> Result<Vec<(String, String)>, serde_yaml_ng::Error> {
    [("atlasmodels", AtlasModel::crd()), ("gpuprofiles", GpuProfile::crd())]
        .into_iter()
        .map(|(plural, crd)| {
            let yaml = serde_yaml_ng::to_string(&crd)?;
            Ok((format!("{}_{plural}.yaml", crate::names::GROUP), format!("{HEADER}{yaml}")))
        })
        .collect()
}
