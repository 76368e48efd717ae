//! A GGUF file of Llama's architecture as a folder of safetensors, as Hugging Face's libraries would have written it.
//!
//! Nothing of the engine takes part but its header parser: weights are dequantized by candle, and `tokenizer.json` is
//! put together from the vocabulary with the steps that SmolLM2's published one has.

#![allow(dead_code, clippy::unwrap_used)]

use atlas_format::{Gguf, TensorInfo, Value as Meta};
use candle_core::quantized::gguf_file::Content;
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// How to write the weights.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// What values are rounded to.
    pub rounded: DType,
    /// What they are stored as.
    pub stored: DType,
    /// The first so many layers.
    pub layers: usize,
    /// Files; more than one have an index.
    pub files: usize,
}

const OF_LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Writes the folder.
pub fn write(gguf: &Path, folder: &Path, form: &Form) {
    let bytes = std::fs::read(gguf).unwrap();
    let header = Gguf::parse_file(&bytes).unwrap();
    let config = config(&header, form.layers);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer(&header).to_string()).unwrap();
    let text = |id: &str| {
        let tokens = header.strings("tokenizer.ggml.tokens").unwrap().unwrap();
        tokens[header.require_u32(&format!("tokenizer.ggml.{id}_token_id")).unwrap() as usize].to_owned()
    };
    let template = header.str("tokenizer.chat_template").unwrap();
    let tokenizer_config = json!({"bos_token": {"content": text("bos")}, "eos_token": text("eos"),
        "chat_template": template});
    std::fs::write(folder.join("tokenizer_config.json"), tokenizer_config.to_string()).unwrap();
    let kept: Vec<(&TensorInfo, String)> =
        header.tensors().iter().filter_map(|info| Some((info, name(&info.name, form.layers)?))).collect();
    let (mut weight_map, mut total) = (Map::new(), 0);
    let content = Content::read(&mut std::io::Cursor::new(&bytes)).unwrap();
    for part in 0..form.files {
        let file = match form.files {
            1 => "model.safetensors".to_owned(),
            files => format!("model-{:05}-of-{files:05}.safetensors", part + 1),
        };
        let own: Vec<_> = kept.iter().enumerate().filter(|(index, _)| index % form.files == part).collect();
        let (mut entries, mut offset) = (Map::new(), 0);
        for (_, (info, name)) in &own {
            let length = info.element_count() * form.stored.size_in_bytes() as u64;
            let shape: Vec<u64> = info.shape.iter().rev().copied().collect();
            let dtype = format!("{:?}", form.stored);
            entries.insert(
                name.clone(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}),
            );
            weight_map.insert(name.clone(), json!(file));
            offset += length;
        }
        total += offset;
        let text = Value::Object(entries).to_string();
        let mut out = BufWriter::new(File::create(folder.join(file)).unwrap());
        out.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
        out.write_all(text.as_bytes()).unwrap();
        for (_, (info, _)) in &own {
            let tensor = content.tensor(&mut std::io::Cursor::new(&bytes), &info.name, &Device::Cpu).unwrap();
            let tensor = halves(&header, &info.name, &tensor.dequantize(&Device::Cpu).unwrap());
            let tensor = tensor.to_dtype(form.rounded).unwrap().to_dtype(form.stored).unwrap();
            tensor.write_bytes(&mut out).unwrap();
        }
        out.flush().unwrap();
    }
    if form.files > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

/// Hugging Face's name of a tensor of the first layers.
fn name(gguf: &str, layers: usize) -> Option<String> {
    let (stem, kind) = gguf.rsplit_once('.')?;
    let stem = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => {
            let (_, part) = OF_LAYER.iter().find(|(gguf, _)| *gguf == part)?;
            (layer.parse::<usize>().ok()? < layers).then(|| format!("model.layers.{layer}.{part}"))?
        }
        None => match stem {
            "token_embd" => "model.embed_tokens".to_owned(),
            "output_norm" => "model.norm".to_owned(),
            "output" => "lm_head".to_owned(),
            _ => return None,
        },
    };
    Some(format!("{stem}.{kind}"))
}

/// Undoes what the conversion to GGUF does to Llama's queries and keys: row 2i + j of a head is row j * n + i of n
/// pairs in the original.
fn halves(header: &Gguf, name: &str, tensor: &Tensor) -> Tensor {
    let heads = match name.rsplit_once("attn_") {
        Some((_, "q.weight")) => header.require_u32("llama.attention.head_count").unwrap(),
        Some((_, "k.weight")) => header.require_u32("llama.attention.head_count_kv").unwrap(),
        _ => return tensor.clone(),
    } as usize;
    let (rows, columns) = tensor.dims2().unwrap();
    let pairs = tensor.reshape((heads, rows / heads / 2, 2, columns)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

fn config(header: &Gguf, layers: usize) -> Value {
    let number = |key: &str| header.require_u32(&format!("llama.{key}")).unwrap();
    let float = |key: &str| header.f32(&format!("llama.{key}")).unwrap();
    let vocabulary = header.strings("tokenizer.ggml.tokens").unwrap().unwrap().len();
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": number("embedding_length"), "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": layers, "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"), "vocab_size": vocabulary,
        "max_position_embeddings": number("context_length"), "rope_scaling": null,
        "rope_theta": float("rope.freq_base"), "rms_norm_eps": float("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": !header.tensors().iter().any(|tensor| tensor.name == "output.weight"),
        "eos_token_id": header.require_u32("tokenizer.ggml.eos_token_id").unwrap(),
    })
}

fn tokenizer(header: &Gguf) -> Value {
    let tokens = header.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let kinds = header.u32s("tokenizer.ggml.token_type").unwrap().unwrap();
    let Some(Meta::Array(merges)) = header.value("tokenizer.ggml.merges") else { return Value::Null };
    let merges: Vec<Value> = merges.iter().filter_map(|merge| merge.as_str()).map(Value::from).collect();
    let vocabulary: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let control = |kind: &u32| *kind == 3;
    let added = tokens.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| control(kind));
    let added = added.map(|(id, (token, _))| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges},
    })
}
