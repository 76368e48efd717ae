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
            let mut crd =
                serde_json::to_value(&crd).map_err(<serde_yaml_ng::Error as serde::ser::Error>::custom)?;
            // Defaults are written in the order of their types' fields or of their names, depending on how serde_json
            // is built; the files must not.
            crd.sort_all_objects();
            let yaml = serde_yaml_ng::to_string(&crd)?;
            Ok((format!("{}_{plural}.yaml", crate::names::GROUP), format!("{HEADER}{yaml}")))
        })
        .collect()
}
