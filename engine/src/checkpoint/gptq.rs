//! GPTQ's weights of 4 bits, repacked as the kernels read AWQ's: both are a scale times a difference of whole numbers.
//!
//! Sources of the layout: `QuantLinear.pack` of AutoGPTQ (nn_modules/qlinear/qlinear_cuda.py) and `checkpoint_format` in
//! GPTQModel's documentation. Eight inputs of an output make a word, and eight outputs of a group of zero points.

use super::CheckpointError;
use super::quantized::AWQ_BLOCK;
use crate::model::ModelError;
use serde_json::Value;

/// How a folder of GPTQ's is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GptqFormat {
    /// Inputs that share a scale and a zero point; 0 where the whole row does.
    pub group: usize,
    /// What is added to a zero point as it is stored: 1, and in the second version of the format 0.
    pub zero_offset: u8,
}

impl GptqFormat {
    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// A variant that would be computed wrongly.
    pub fn read(settings: &Value) -> Result<Self, CheckpointError> {
        let refused = |key: &str, reason| {
            let value = settings.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
            ModelError::Unsupported { key: format!("quantization_config.{key}"), value, reason }.into()
        };
        if settings.get("bits").and_then(Value::as_i64) != Some(4) {
            return Err(refused("bits", "GPTQ with 4 bits is built"));
        }
        if settings.get("desc_act").and_then(Value::as_bool) == Some(true) {
            let reason = "its groups are strewn over the inputs, and neighbouring inputs have to share a scale: use a \
                          version without desc_act, an AWQ folder or a GGUF file";
            return Err(refused("desc_act", reason));
        }
        let zero_offset = match settings.get("checkpoint_format").map(|format| format.as_str()) {
            None | Some(Some("gptq")) => 1,
            Some(Some("gptq_v2")) => 0,
            Some(_) => return Err(refused("checkpoint_format", "gptq and gptq_v2 are built")),
        };
        if settings.get("is_marlin_format").and_then(Value::as_bool) == Some(true) {
            return Err(refused("is_marlin_format", "the plain layout is built"));
        }
        let group = match settings.get("group_size").and_then(Value::as_i64) {
            Some(-1) => 0,
            Some(group @ 128..=0x10_0000) if group % 128 == 0 => group as usize,
            _ => return Err(refused("group_size", "groups of 128 or multiples of it are built")),
        };
        Ok(Self { group, zero_offset })
    }
}

/// GPTQ's tensors of one matrix of `rows` outputs and `columns` inputs.
#[derive(Debug, Clone, Copy)]
pub struct Gptq<'a> {
    /// Outputs, a multiple of 8.
    pub rows: usize,
    /// Inputs, a multiple of 128.
    pub columns: usize,
    /// Inputs a scale, a multiple of 128 that divides `columns`.
    pub group: usize,
    /// What is added to a stored zero point.
    pub zero_offset: u8,
    /// `[columns / 8, rows]` little-endian words.
    pub weights: &'a [u8],
    /// `[columns / group, rows / 8]` words.
    pub zeros: &'a [u8],
    /// `[columns / group, rows]` of f16.
    pub scales: &'a [u8],
}

impl Gptq<'_> {
    /// The rows as the kernels read them.
    ///
    /// # Shapes
    /// Each of the three has exactly the bytes of its shape; the caller checks.
    pub fn repack(&self) -> Vec<u8> {
        let (elements, bytes) = AWQ_BLOCK;
        let blocks = self.columns / elements;
        let row_bytes = blocks * bytes;
        let mut out = vec![0; self.rows * row_bytes];
        for block in 0..blocks {
            let group = block * elements / self.group;
            for row in 0..self.rows {
                let zeros = word(self.zeros, group * (self.rows / 8) + row / 8);
                let to = &mut out[row * row_bytes + block * bytes..][..bytes];
                to[..2].copy_from_slice(&self.scales[(group * self.rows + row) * 2..][..2]);
                to[2] = ((zeros >> (row % 8 * 4)) as u8 & 15) + self.zero_offset;
            }
            // The words of eight inputs lie beside each other for all outputs.
            for eight in 0..elements / 8 {
                let words = (block * elements / 8 + eight) * self.rows;
                for row in 0..self.rows {
                    let weights = word(self.weights, words + row);
                    let to = &mut out[row * row_bytes + block * bytes + 4..][..bytes - 4];
                    for nibble in 0..8 {
                        // As Q4_0: the first half of 32 in low nibbles, the second in high ones.
                        let input = eight * 8 + nibble;
                        let (byte, shift) = (input / 32 * 16 + input % 16, input % 32 / 16 * 4);
                        to[byte] |= ((weights >> (4 * nibble)) as u8 & 15) << shift;
                    }
                }
            }
        }
        out
    }
}

fn word(bytes: &[u8], index: usize) -> u32 {
    bytes.as_chunks().0.get(index).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Whether `g_idx` says what the kernels take for granted: each group is the next so many inputs.
pub fn is_in_order(groups: &[u8], group: usize) -> bool {
    let words = groups.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    words.enumerate().all(|(input, found)| found == input / group)
}
