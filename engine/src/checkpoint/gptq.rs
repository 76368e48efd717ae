//! GPTQ's weights of 4 bits, repacked as the kernels read AWQ's: both are a scale times a difference of whole numbers.
//!
//! Sources of the layout: `QuantLinear.pack` of AutoGPTQ (nn_modules/qlinear/qlinear_cuda.py) and `checkpoint_format` in
//! GPTQModel's documentation. Eight inputs of an output make a word, and eight outputs of a group of zero points.

use super::CheckpointError;
use super::nibbles::{Blocks, HEAD, group_size, place_of, refused, word};
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
        if settings.get("bits").and_then(Value::as_i64) != Some(4) {
            return Err(refused(settings, "bits", "GPTQ with 4 bits is built"));
        }
        if settings.get("desc_act").and_then(Value::as_bool) == Some(true) {
            let reason = "its groups are strewn over the inputs, and neighbouring inputs have to share a scale: use a \
                          version without desc_act, an AWQ folder or a GGUF file";
            return Err(refused(settings, "desc_act", reason));
        }
        let zero_offset = match settings.get("checkpoint_format").map(|format| format.as_str()) {
            None | Some(Some("gptq")) => 1,
            Some(Some("gptq_v2")) => 0,
            Some(_) => return Err(refused(settings, "checkpoint_format", "gptq and gptq_v2 are built")),
        };
        if settings.get("is_marlin_format").and_then(Value::as_bool) == Some(true) {
            return Err(refused(settings, "is_marlin_format", "the plain layout is built"));
        }
        let group = group_size(settings, &["group_size"])?;
        Ok(Self { group, zero_offset })
    }
}

/// GPTQ's tensors of one matrix of `rows` outputs and `columns` inputs.
#[derive(Debug, Clone, Copy)]
pub struct Gptq<'a> {
    /// Outputs, a multiple of 8.
    pub rows: usize,
    /// Inputs, whole groups of them.
    pub columns: usize,
    /// Inputs a scale, a multiple of 32.
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
        let kept = Blocks::of_group(self.group);
        let (elements, bytes) = kept.size();
        let blocks = self.columns / elements;
        let row_bytes = blocks * bytes;
        let mut out = vec![0; self.rows * row_bytes];
        for block in 0..blocks {
            let group = block * elements / self.group;
            for row in 0..self.rows {
                let zeros = word(self.zeros, group * (self.rows / 8) + row / 8);
                let to = &mut out[row * row_bytes + block * bytes..][..bytes];
                let scale = (group * self.rows + row) * 2;
                let zero = ((zeros >> (row % 8 * 4)) as u8 & 15) + self.zero_offset;
                let head = kept.head([self.scales[scale], self.scales[scale + 1]], zero);
                to[..HEAD].copy_from_slice(&head);
            }
            // The words of eight inputs lie beside each other for all outputs.
            for eight in 0..elements / 8 {
                let words = (block * elements / 8 + eight) * self.rows;
                for row in 0..self.rows {
                    let weights = word(self.weights, words + row);
                    let to = &mut out[row * row_bytes + block * bytes + HEAD..][..bytes - HEAD];
                    for nibble in 0..8 {
                        let (byte, shift) = place_of(eight * 8 + nibble);
                        to[byte] |= ((weights >> (4 * nibble)) as u8 & 15) << shift;
                    }
                }
            }
        }
        out
    }
}

/// Whether `g_idx` says what the kernels take for granted: each group is the next so many inputs.
pub fn is_in_order(groups: &[u8], group: usize) -> bool {
    let words = groups.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    words.enumerate().all(|(input, found)| found == input / group)
}
