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
    let Described { mut config, tied, .. } = read(&llama31(), "m".into()).unwrap();
    let rope_factors = config.rope_factors.take();
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
        rope_factors: None,
        rope_attention: 1.0,
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

/// As the model card of Qwen2.5 tells to write it, and the ways in which others do.
#[test]
fn yarn_is_read_with_its_context_and_attention() {
    let qwen = |scaling: Value| {
        let mut json = with("rope_scaling", scaling);
        (json["model_type"], json["max_position_embeddings"]) = (json!("qwen2"), json!(32_768));
        json["rope_theta"] = json!(1e6);
        read(&json, String::new()).unwrap().config
    };
    let plain = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    let config = qwen(plain.clone());
    let factors = config.rope_factors.as_ref().unwrap();
    assert_eq!((factors.len(), factors[23], factors[40]), (64, 1.0, 4.0));
    assert_eq!((config.trained_context, config.rope_divisor), (131_072, 1.0));
    assert!((config.rope_attention - 1.138_629_4).abs() < 1e-6, "{}", config.rope_attention);
    // Without the original context, it is the model's.
    assert_eq!(qwen(json!({"rope_type": "yarn", "factor": 4.0})), config);
    let attention = |key: &str, value: Value| {
        let mut scaling = plain.clone();
        scaling["mscale"] = json!(0.707);
        scaling[key] = value;
        qwen(scaling).rope_attention
    };
    assert_eq!(attention("attention_factor", json!(1.5)), 1.5);
    assert!((attention("mscale_all_dim", json!(0.707)) - 1.0).abs() < 1e-6);
    assert!((attention("mscale_all_dim", json!(1.0)) - 1.098_01 / 1.138_63).abs() < 1e-5);
    let mut partial = with("rope_scaling", plain);
    partial["partial_rotary_factor"] = json!(0.5);
    let message = read(&partial, String::new()).unwrap_err().to_string();
    assert!(message.contains("RoPE dimensions with yarn is 64"), "{message}");
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
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 4}), "\"rope_scaling\" to dynamic"),
        ("rope_scaling", json!({"rope_type": "yarn"}), "nothing for \"factor\""),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4, "beta_slow": -1}), "-1 for \"beta_slow\""),
        ("rope_scaling", json!({"rope_type": "linear"}), "nothing for \"factor\""),
        ("partial_rotary_factor", json!(0.001), "number of RoPE dimensions is 0"),
        (
            "quantization_config",
            json!({"quant_method": "hqq"}),
            "\"quantization_config.quant_method\" to \"hqq\"",
        ),
    ] {
        let message = read(&with(key, value), String::new()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message:?} does not say {expected:?}");
    }
}
