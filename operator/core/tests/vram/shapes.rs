//! Headers that are not plain: layers that differ, split files, safetensors, and what is refused.

use std::collections::BTreeMap;

use atlas_format::{Gguf, HeaderWriter, Parsed};
use atlas_operator_core::vram::{GGUF_ARCHITECTURES, ModelShape, ShapeError};
use serde_json::json;

use crate::models::{F32, MISTRAL_7B, shape};

fn read(header: &HeaderWriter) -> Result<ModelShape, ShapeError> {
    let Ok(Parsed::Complete(header)) = Gguf::parse(&header.finish()) else {
        panic!("the header is complete")
    };
    ModelShape::from_gguf(&header)
}

fn small() -> HeaderWriter {
    HeaderWriter::default()
        .text("general.architecture", "llama")
        .number("llama.block_count", 2)
        .number("llama.context_length", 512)
        .number("llama.embedding_length", 64)
        .number("llama.attention.head_count", 4)
}

#[test]
fn layers_may_differ() {
    let header = small()
        .numbers("llama.attention.head_count_kv", &[4, 1])
        .numbers("llama.feed_forward_length", &[128, 96])
        .number("llama.attention.value_length", 8)
        .tensor("token_embd.weight", &[64, 10], F32)
        .tensor("blk.1.attn_q.weight", &[64, 64], F32);
    let shape = read(&header).unwrap();
    let keys: Vec<_> = shape.layers.iter().map(|layer| (layer.key_elements, layer.value_elements)).collect();
    assert_eq!(keys, [(64, 32), (16, 8)]);
    assert_eq!((shape.layers[0].weight_bytes, shape.layers[1].weight_bytes), (0, 16384));
    assert_eq!((shape.other_weight_bytes, shape.vocabulary, shape.feed_forward), (2560, 10, 128));
}

#[test]
fn without_a_number_of_key_heads_every_head_has_its_own() {
    assert_eq!(read(&small()).unwrap().layers[0].key_elements, 64);
}

#[test]
fn what_cannot_be_planned_says_why() {
    let check = |header: HeaderWriter, says: &str| {
        let error = read(&header).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    check(HeaderWriter::default().text("general.architecture", "llama"), "\"llama.block_count\" is missing");
    check(small().number("split.count", 3).number("split.no", 1), "part 2 of 3");
    check(
        small().tensor("blk.0.attn_q.weight", &[64, 64], 99),
        "\"blk.0.attn_q.weight\" has the unknown type 99",
    );
    check(small().numbers("llama.attention.head_count_kv", &[1]), "is 1 values, expected one value a layer");
    check(
        small().numbers("llama.attention.head_count_kv", &[1, u32::MAX]),
        "is 4294967295, expected a number",
    );
    let zero = HeaderWriter::default().text("general.architecture", "llama").number("llama.block_count", 0);
    check(zero, "llama.block_count is 0");
}

/// Sliding windows, compressed caches, states instead of caches, experts: a figure of any of them would be wrong.
#[test]
fn what_the_engine_does_not_serve_gets_no_figure() {
    let architectures =
        ["gemma2", "gemma3", "deepseek2", "mamba", "jamba", "phi3", "qwen2moe", "qwen3moe", "mistral", ""];
    for found in architectures {
        let key = |name: &str| format!("{found}.{name}");
        let header = HeaderWriter::default()
            .text("general.architecture", found)
            .number(&key("block_count"), 2)
            .number(&key("context_length"), 512)
            .number(&key("embedding_length"), 64)
            .number(&key("attention.head_count"), 4);
        let error = read(&header).unwrap_err();
        assert_eq!(error, ShapeError::Architecture { found: found.to_owned(), known: &GGUF_ARCHITECTURES });
        assert!(error.to_string().contains("llama, qwen2, qwen3"), "{error}");
    }
    let mixtral = small().number("llama.expert_count", 8);
    assert_eq!(read(&mixtral).unwrap_err(), ShapeError::Experts { experts: 8 });
    assert!(read(&small().number("llama.expert_count", 0)).is_ok());
    for config in [json!({"model_type": "mixtral", "num_local_experts": 8}), json!({"hidden_size": 64})] {
        let error = ModelShape::from_config(&config, BTreeMap::new()).unwrap_err();
        assert!(matches!(error, ShapeError::Architecture { .. }), "{error}");
    }
}

#[test]
fn a_safetensors_model_plans_like_the_same_gguf() {
    let config = json!({
        "model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
        "max_position_embeddings": 32768, "tie_word_embeddings": false,
    });
    // total_size of the published index: every weight in 16 bits.
    let bytes: BTreeMap<String, u64> = [("BF16".to_owned(), 14_483_464_192)].into();
    let from_config = ModelShape::from_config(&config, bytes).unwrap();
    let from_gguf = shape(&MISTRAL_7B.uniform(30));
    assert_eq!(from_config.parameters, from_gguf.parameters);
    assert_eq!(from_config.weight_bytes(), 14_483_464_192);
    // GGUF keeps norms in 32 bits.
    let norms = 2 * (2 * 32 + 1) * 4096;
    assert_eq!(from_gguf.weight_bytes() - norms, 14_483_464_192);
    assert_eq!(from_config.layers[0].key_elements, from_gguf.layers[0].key_elements);
    assert!(from_config.layers[0].weight_bytes.abs_diff(from_gguf.layers[0].weight_bytes) < 1 << 15);
}

#[test]
fn a_quantized_folder_is_planned_as_the_engine_keeps_it() {
    for (quantization, name, bits) in [
        (json!({"quant_method": "awq", "bits": 4}), "AWQ", 4.25),
        (json!({"quant_method": "gptq", "bits": 4, "group_size": -1}), "GPTQ", 4.25),
        (json!({"quant_method": "gptq", "bits": 4, "group_size": 32}), "GPTQ", 5.0),
        (json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}), "AWQ", 5.0),
        (json!({"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}), "NF4", 4.5),
    ] {
        let config = json!({
            "model_type": "mistral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
            "max_position_embeddings": 32768, "tie_word_embeddings": false, "quantization_config": quantization,
        });
        // What the file holds does not matter, since it is repacked.
        let shape = ModelShape::from_config(&config, [("I32".to_owned(), 4_000_000_000)].into()).unwrap();
        assert_eq!(shape.quantization.as_deref(), Some(name));
        let products = f64::from(4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336);
        assert_eq!(shape.layers[0].weight_bytes as f64, products * bits / 8.0 + 8.0 * 4096.0);
        assert_eq!(shape.other_weight_bytes, 2 * 2 * 4096 * 32000 + 4 * 4096);
    }
}

#[test]
fn a_model_stretched_by_yarn_is_planned_with_the_context_that_engines_serve() {
    let config = |scaling: serde_json::Value| {
        let config = json!({
            "model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
            "intermediate_size": 96, "vocab_size": 40, "max_position_embeddings": 32768, "rope_scaling": scaling,
        });
        ModelShape::from_config(&config, BTreeMap::new()).unwrap().trained_context
    };
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    assert_eq!(config(yarn), 131_072);
    assert_eq!(config(json!({"rope_type": "yarn", "factor": 2.0})), 65_536);
    // A file that names the stretched context already.
    let original = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192});
    assert_eq!(config(original), 32_768);
    assert_eq!(config(json!({"rope_type": "linear", "factor": 4.0})), 32_768);
    assert_eq!(config(json!(null)), 32_768);
    let stretched = small()
        .text("llama.rope.scaling.type", "yarn")
        .number("llama.rope.scaling.original_context_length", 512)
        .raw("llama.rope.scaling.factor", 6, &8_f32.to_le_bytes());
    assert_eq!(read(&stretched).unwrap().trained_context, 4096);
}

#[test]
fn a_config_without_a_number_names_it() {
    let error =
        ModelShape::from_config(&json!({"model_type": "llama", "num_hidden_layers": 32}), BTreeMap::new())
            .unwrap_err();
    assert!(error.to_string().contains("config.json: hidden_size"), "{error}");
    let huge = json!({"model_type": "llama", "num_hidden_layers": 1e12 as u64});
    assert!(ModelShape::from_config(&huge, BTreeMap::new()).is_err());
}
