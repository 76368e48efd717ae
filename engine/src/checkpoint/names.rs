//! Names of tensors: Hugging Face's of Llama and its relatives, and GGUF's.

/// Parts of a layer, with what GGUF calls them.
const OF_LAYER: [(&str, &str); 16] = [
    ("input_layernorm.weight", "attn_norm.weight"),
    ("self_attn.q_proj.weight", "attn_q.weight"),
    ("self_attn.k_proj.weight", "attn_k.weight"),
    ("self_attn.v_proj.weight", "attn_v.weight"),
    ("self_attn.q_proj.bias", "attn_q.bias"),
    ("self_attn.k_proj.bias", "attn_k.bias"),
    ("self_attn.v_proj.bias", "attn_v.bias"),
    ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    ("self_attn.o_proj.weight", "attn_output.weight"),
    ("post_attention_layernorm.weight", "ffn_norm.weight"),
    ("mlp.gate_proj.weight", "ffn_gate.weight"),
    ("mlp.up_proj.weight", "ffn_up.weight"),
    ("mlp.down_proj.weight", "ffn_down.weight"),
    // Tables of sines that older files kept; they follow from the model's numbers.
    ("self_attn.rotary_emb.inv_freq", ""),
    ("rotary_emb.inv_freq", ""),
];

/// Parts that belong to no layer.
const OTHERS: [(&str, &str); 4] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", HEAD),
    ("model.rotary_emb.inv_freq", ""),
];

/// GGUF's name of the head.
pub const HEAD: &str = "output.weight";

/// What becomes of a tensor of a folder.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// It is this one.
    Tensor(String),
    /// It is not needed.
    Needless,
    /// Nobody knows.
    None,
}

/// The place of a tensor by its name in a folder.
pub fn place(name: &str) -> Place {
    let find = |table: &[(&str, &'static str)], name: &str| {
        table.iter().find(|(known, _)| *known == name).map(|(_, gguf)| *gguf)
    };
    let (found, layer) = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (find(&OF_LAYER, part), layer.parse::<u16>().ok()),
        None => (find(&OTHERS, name), None),
    };
    match (found, layer) {
        (Some(""), _) => Place::Needless,
        (Some(gguf), Some(layer)) => Place::Tensor(format!("blk.{layer}.{gguf}")),
        (Some(gguf), None) if !name.starts_with("model.layers.") => Place::Tensor(gguf.to_owned()),
        _ => Place::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_place_or_none() {
        let tensor = |name: &str| Place::Tensor(name.to_owned());
        for (name, expected) in [
            ("model.embed_tokens.weight", tensor("token_embd.weight")),
            ("lm_head.weight", tensor("output.weight")),
            ("model.layers.31.mlp.down_proj.weight", tensor("blk.31.ffn_down.weight")),
            ("model.layers.0.self_attn.q_norm.weight", tensor("blk.0.attn_q_norm.weight")),
            ("model.layers.0.self_attn.rotary_emb.inv_freq", Place::Needless),
            ("model.layers.0.self_attn.o_proj.bias", Place::None),
            ("model.layers.x.mlp.down_proj.weight", Place::None),
            ("model.layers.0.model.norm.weight", Place::None),
            ("model.layers.0", Place::None),
            ("mlp.down_proj.weight", Place::None),
            ("vision_tower.weight", Place::None),
        ] {
            assert_eq!(place(name), expected, "{name}");
        }
    }
}
