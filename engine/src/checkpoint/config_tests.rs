//! `config.json` of published models, and of models that nobody should serve.

use super::*;
use serde_json::json;

/// Llama 3.1 8B Instruct's, as published, without what nobody reads.
fn llama31() -> Value {
    json!({
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "quantization_config": null,
        "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    })
}

fn with(key: &str, value: Value) -> Value {
    let mut json = llama31();
    json.as_object_mut().unwrap().insert(key.into(), value);
    json
}

#[test]
fn a_published_config_gives_the_models_numbers() {
    let Described { config, rope_factors, tied, .. } = read(&llama31(), "m".into()).unwrap();
    let expected = ModelConfig {
        name: "m".into(),
        layers: 32,
        hidden: 4096,
        feed_forward: 14336,
        heads: 32,
        kv_heads: 8,
        head_size: 128,
        rope_size: 128,
        pairing: Pairing::Halves,
        rope_base: 500_000.0,
        rope_divisor: 1.0,
        norm_epsilon: 1e-5,
        vocabulary: 128_256,
        trained_context: 131_072,
    };
    assert_eq!((config, tied), (expected, false));
    // What GGUF files of this model hold in rope_freqs.weight.
    let factors = rope_factors.unwrap();
    assert_eq!((factors.len(), factors[0], factors[28], factors[63]), (64, 1.0, 1.0, 8.0));
    assert!((factors[29] - 1.0).abs() < 0.5 && factors[34] > 4.0 && factors[35] == 8.0, "{factors:?}");
}

#[test]
fn head_sizes_windows_and_rope_are_taken_from_wherever_they_stand() {
    let config = |key: &str, value: Value| read(&with(key, value), String::new()).unwrap().config;
    assert_eq!(config("head_dim", json!(256)).head_size, 256);
    assert_eq!(config("sliding_window", json!(4096)).trained_context, 4096);
    let mut qwen = with("sliding_window", json!(4096));
    qwen["model_type"] = json!("qwen2");
    assert_eq!(read(&qwen, String::new()).unwrap().config.trained_context, 131_072);
    qwen["use_sliding_window"] = json!(true);
    assert_eq!(read(&qwen, String::new()).unwrap().config.trained_context, 4096);
    assert_eq!(config("rope_scaling", json!({"type": "linear", "factor": 4})).rope_divisor, 4.0);
    let mut newer = with("rope_scaling", Value::Null);
    newer.as_object_mut().unwrap().remove("rope_theta");
    newer["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1e6});
    assert_eq!(read(&newer, String::new()).unwrap().config.rope_base, 1e6);
}

#[test]
fn what_would_be_computed_wrongly_is_refused_by_key() {
    for (key, value, expected) in [
        ("model_type", json!("gemma2"), "model_type \"gemma2\""),
        ("hidden_act", json!("gelu"), "\"hidden_act\" to gelu"),
        ("hidden_size", Value::Null, "nothing for \"hidden_size\""),
        ("num_hidden_layers", json!(1e9 as u64), "1000000000 for \"num_hidden_layers\""),
        ("num_attention_heads", json!(0), "0 for \"num_attention_heads\""),
        ("num_key_value_heads", json!(5), "number of heads is 32"),
        ("rope_theta", json!("big"), "\"big\" for \"rope_theta\""),
        ("rope_theta", json!(0), "for \"rope_theta\", expected a number above 0"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4}), "\"rope_scaling\" to yarn"),
        ("rope_scaling", json!({"rope_type": "linear"}), "nothing for \"factor\""),
        ("partial_rotary_factor", json!(0.001), "number of RoPE dimensions is 0"),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            "\"quantization_config.quant_method\" to \"gptq\"",
        ),
    ] {
        let message = read(&with(key, value), String::new()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}
