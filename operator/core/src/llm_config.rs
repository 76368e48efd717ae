//! The clients' `llm_config.yaml`, in the schema of the hardware guide.
//!
//! It is generated, never read: the source of every value is the AtlasModel or a GpuProfile.
//! What a person changed in it is found only to be told.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_yaml_ng::Value;

/// First line of the file.
pub const HEADER: &str = "# generated: change spec.tiers[].maxBatch\n";
/// Key of the file in its ConfigMap.
pub const FILE_NAME: &str = "llm_config.yaml";

/// One card as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GpuSection {
    /// Product name.
    pub model: String,
    /// Memory in GB, as the product is sold.
    pub vram_gb: u64,
    /// Models that are served on it.
    pub recommended_models: Vec<String>,
    /// Sequences at once.
    pub max_batch_size: i32,
}

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerSection {
    /// Host name.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `http` or `https`.
    pub protocol: &'static str,
    /// Longest time of a request.
    pub timeout_seconds: u64,
}

#[derive(Serialize)]
struct Hardware<'a> {
    primary_gpu: Option<&'a GpuSection>,
    secondary_gpu: Option<&'a GpuSection>,
    llm_server: &'a ServerSection,
}

#[derive(Serialize)]
struct File<'a> {
    hardware: Hardware<'a>,
}

/// Renders the file: the first tier's card is the primary one, the second tier's the secondary one.
///
/// # Errors
///
/// Only if the sections held what YAML cannot say, which strings and numbers do not.
pub fn build_llm_config(gpus: &[GpuSection], server: &ServerSection) -> Result<String, serde_yaml_ng::Error> {
    let hardware = Hardware { primary_gpu: gpus.first(), secondary_gpu: gpus.get(1), llm_server: server };
    Ok(format!("{HEADER}{}", serde_yaml_ng::to_string(&File { hardware })?))
}

/// The file with another server, for clients that reach the model by another address.
///
/// # Errors
///
/// The text is no YAML.
pub fn replace_server(text: &str, host: &str, port: u16) -> Result<String, serde_yaml_ng::Error> {
    let mut file: Value = serde_yaml_ng::from_str(text)?;
    if let Some(server) = file.get_mut("hardware").and_then(|hardware| hardware.get_mut("llm_server")) {
        server["host"] = host.into();
        server["port"] = port.into();
    }
    Ok(format!("{HEADER}{}", serde_yaml_ng::to_string(&file)?))
}

/// Paths of the fields in which a file differs from the generated one, such as `hardware.primary_gpu.max_batch_size`.
///
/// A text that is no YAML differs as a whole, and one that differs in comments alone in nothing that has a name: both
/// are told by the file's name.
#[must_use]
pub fn changed_fields(generated: &str, found: &str) -> Vec<String> {
    let leaves = |text: &str| {
        let mut leaves = BTreeMap::new();
        let file: Value = serde_yaml_ng::from_str(text).ok()?;
        collect_leaves(&file, String::new(), &mut leaves);
        Some(leaves)
    };
    let whole = || vec![FILE_NAME.to_owned()];
    let (Some(generated), Some(found)) = (leaves(generated), leaves(found)) else { return whole() };
    let keys: std::collections::BTreeSet<&String> = generated.keys().chain(found.keys()).collect();
    let changed: Vec<String> =
        keys.into_iter().filter(|key| generated.get(*key) != found.get(*key)).cloned().collect();
    if changed.is_empty() { whole() } else { changed }
}

/// Every value that holds no others, by its path.
fn collect_leaves(value: &Value, path: String, leaves: &mut BTreeMap<String, Value>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Mapping(map) => {
            for (key, value) in map {
                let key = key.as_str().map_or_else(|| format!("{key:?}"), str::to_owned);
                collect_leaves(value, below(&key), leaves);
            }
        }
        Value::Sequence(list) => {
            for (index, value) in list.iter().enumerate() {
                collect_leaves(value, format!("{path}[{index}]"), leaves);
            }
        }
        leaf => {
            leaves.insert(path, leaf.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_edit_is_told_by_its_field() {
        let text = "# generated: change spec.tiers[].maxBatch\nhardware:\n  primary_gpu:\n    max_batch_size: 4\n    recommended_models:\n    - a\n";
        let check =
            |found: &str, expected: &[&str]| assert_eq!(changed_fields(text, found), expected, "{found}");
        check(&text.replace("size: 4", "size: 8"), &["hardware.primary_gpu.max_batch_size"]);
        check(
            &text.replace("- a", "- b\n    - c"),
            &["hardware.primary_gpu.recommended_models[0]", "hardware.primary_gpu.recommended_models[1]"],
        );
        check(&format!("{text}more: 1\n"), &["more"]);
        check("hardware: [", &["llm_config.yaml"]);
        check(&text.replace("# generated", "# mine"), &["llm_config.yaml"]);
    }

    #[test]
    fn another_server_changes_nothing_else() {
        let text = "# generated: change spec.tiers[].maxBatch\nhardware:\n  secondary_gpu: null\n  llm_server:\n    host: code.atlas.svc\n    port: 8080\n    protocol: http\n";
        let changed = replace_server(text, "192.0.2.7", 30123).unwrap();
        assert_eq!(changed, text.replace("code.atlas.svc", "192.0.2.7").replace("8080", "30123"));
        assert!(replace_server("a: [", "h", 1).is_err());
    }

    #[test]
    fn the_file_has_every_key_of_the_guide() {
        let gpu = |model: &str, vram_gb, name: &str, max_batch_size| GpuSection {
            model: model.into(),
            vram_gb,
            recommended_models: vec![name.into()],
            max_batch_size,
        };
        let server = ServerSection {
            host: "code.atlas.svc".into(),
            port: 8080,
            protocol: "http",
            timeout_seconds: 300,
        };
        let text = build_llm_config(
            &[gpu("Radeon RX 7900 XTX", 24, "codellama-13b", 4), gpu("Radeon RX 7600", 8, "mistral-7b", 2)],
            &server,
        )
        .unwrap();
        assert_eq!(
            text,
            "# generated: change spec.tiers[].maxBatch\nhardware:\n  primary_gpu:\n    model: Radeon RX 7900 XTX\n    vram_gb: 24\n    recommended_models:\n    - codellama-13b\n    max_batch_size: 4\n  secondary_gpu:\n    model: Radeon RX 7600\n    vram_gb: 8\n    recommended_models:\n    - mistral-7b\n    max_batch_size: 2\n  llm_server:\n    host: code.atlas.svc\n    port: 8080\n    protocol: http\n    timeout_seconds: 300\n"
        );
    }
}
