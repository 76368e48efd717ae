//! The clients' `llm_config.yaml`, in the schema of the hardware guide.
//!
//! It is generated, never read: the source of every value is the AtlasModel or a GpuProfile.

use serde::Serialize;

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
    /// `http`.
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

#[cfg(test)]
mod tests {
    use super::*;

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
