//! What a plan of a card's memory needs to know of a model, for whoever cannot read its files.

use super::{Checkpoint, Text};
use serde_json::{Value, json};

impl Checkpoint {
    /// The numbers of the model behind `source`, as the contract has them.
    pub fn report(&self, source: &str) -> Value {
        let config = &self.config;
        let mut layers = vec![0_u64; config.layers];
        let (mut others, mut parameters) = (0_u64, 0_u64);
        for (name, tensor) in self.tensors.iter() {
            let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
            let bytes = match layer.and_then(|layer: usize| layers.get_mut(layer)) {
                Some(layer) => layer,
                None => &mut others,
            };
            *bytes = bytes.saturating_add(tensor.byte_count());
            parameters = parameters.saturating_add(tensor.shape.iter().product());
        }
        let (architecture, quantization) = self.kind();
        json!({
            "source": source,
            "architecture": architecture,
            "quantization": quantization,
            "parameters": parameters,
            "layerWeightBytes": layers,
            "otherWeightBytes": others,
            "keyElements": config.kv_heads * config.head_size,
            "valueElements": config.kv_heads * config.head_size,
            "hidden": config.hidden,
            "feedForward": config.feed_forward,
            "queryElements": config.heads * config.head_size,
            "takesQ8Cache": config.head_size.is_multiple_of(32),
            "vocabulary": config.vocabulary,
            "trainedContext": config.trained_context,
        })
    }

    /// Architecture and quantization, as the files name them.
    fn kind(&self) -> (&str, Option<&str>) {
        match &self.text {
            Text::Gguf(header) => {
                let architecture = header.str("general.architecture").ok().flatten();
                (architecture.unwrap_or("unknown"), header.quantization().ok().flatten())
            }
            Text::Folder(files) => {
                let config = files.config();
                let method = config.pointer("/quantization_config/quant_method").and_then(Value::as_str);
                let method = match method {
                    Some("awq") => Some("AWQ"),
                    Some("gptq") => Some("GPTQ"),
                    Some("bitsandbytes") => Some("NF4"),
                    _ => None,
                };
                (config.get("model_type").and_then(Value::as_str).unwrap_or("unknown"), method)
            }
        }
    }
}
