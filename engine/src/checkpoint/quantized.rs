//! Weights that were quantized before they were stored: AWQ's and bitsandbytes' NF4, repacked as the kernels read them.
//!
//! Sources of the layouts: `WQLinear_GEMM` of AutoAWQ (awq/modules/linear/gemm.py) and `QuantState.as_dict` with
//! `quantize_4bit` of bitsandbytes (functional.py, csrc/kernels.cu).
//! What the kernels read is described in engine/kernels/hip/formats.h.

use super::CheckpointError;
use super::gptq::GptqFormat;
use super::nibbles::{Blocks, HEAD, group_size, place_of, refused, word};
use atlas_kernels::NF4_VALUES;
use serde_json::Value;

/// Elements and bytes of a block of NF4 as the kernels read it.
pub const NF4_BLOCK: (usize, usize) = (64, 36);

/// How a folder's matrices are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// They are not.
    Plain,
    /// AWQ, with so many inputs a scale; 0 where a scale holds for the whole row.
    Awq {
        /// Inputs that share a scale and a zero point.
        group: usize,
    },
    /// GPTQ.
    Gptq(GptqFormat),
    /// NF4.
    Nf4,
}

impl Method {
    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// A method or a variant that would be computed wrongly.
    pub fn read(config: &Value) -> Result<Self, CheckpointError> {
        let Some(settings) = config.get("quantization_config").filter(|value| !value.is_null()) else {
            return Ok(Self::Plain);
        };
        let text = |key: &str| settings.get(key).and_then(Value::as_str).map(str::to_ascii_lowercase);
        let number = |key: &str| settings.get(key).and_then(Value::as_i64);
        match text("quant_method").as_deref() {
            Some("awq") => {
                if number("bits").or(number("w_bit")) != Some(4) {
                    return Err(refused(settings, "bits", "AWQ with 4 bits is built"));
                }
                if text("version").is_some_and(|version| version != "gemm") {
                    return Err(refused(settings, "version", "the gemm layout is built"));
                }
                if settings.get("zero_point").and_then(Value::as_bool) == Some(false) {
                    return Err(refused(settings, "zero_point", "AWQ with zero points is built"));
                }
                Ok(Self::Awq { group: group_size(settings, &["group_size", "q_group_size"])? })
            }
            Some("bitsandbytes") => {
                let nf4 = text("bnb_4bit_quant_type").is_some_and(|kind| kind == "nf4");
                let four = settings.get("load_in_4bit").and_then(Value::as_bool) == Some(true);
                let eight = settings.get("load_in_8bit").and_then(Value::as_bool) == Some(true);
                if four && nf4 && !eight {
                    Ok(Self::Nf4)
                } else {
                    Err(refused(settings, "bnb_4bit_quant_type", "NF4 is built"))
                }
            }
            Some("gptq") => GptqFormat::read(settings).map(Self::Gptq),
            _ => Err(refused(
                settings,
                "quant_method",
                "awq, gptq and bitsandbytes' nf4 are built; use a GGUF file",
            )),
        }
    }
}

/// AWQ's tensors of one matrix of `rows` outputs and `columns` inputs.
#[derive(Debug, Clone, Copy)]
pub struct Awq<'a> {
    /// Outputs, a multiple of 8.
    pub rows: usize,
    /// Inputs, whole groups of them.
    pub columns: usize,
    /// Inputs a scale, a multiple of 32.
    pub group: usize,
    /// `[columns, rows / 8]` little-endian words.
    pub weights: &'a [u8],
    /// `[columns / group, rows / 8]` words.
    pub zeros: &'a [u8],
    /// `[columns / group, rows]` of f16.
    pub scales: &'a [u8],
}

/// Nibble i of a word is output 8w + ORDER[i] (`order_map` in AutoAWQ's packing).
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

impl Awq<'_> {
    /// The rows as the kernels read them.
    ///
    /// # Shapes
    /// Each of the three has exactly the bytes of its shape; the caller checks.
    pub fn repack(&self) -> Vec<u8> {
        let kept = Blocks::of_group(self.group);
        let (elements, bytes) = kept.size();
        let (words, blocks) = (self.rows / 8, self.columns / elements);
        let row_bytes = blocks * bytes;
        let mut out = vec![0; self.rows * row_bytes];
        // The words of a block's inputs stay in the cache while neighbouring outputs are taken from them.
        for block in 0..blocks {
            let group = block * elements / self.group;
            for column in 0..words {
                let zeros = word(self.zeros, group * words + column);
                for (nibble, place) in ORDER.into_iter().enumerate() {
                    let row = column * 8 + place;
                    let scale = (group * self.rows + row) * 2;
                    let zero = (zeros >> (4 * nibble)) as u8 & 15;
                    let head = kept.head([self.scales[scale], self.scales[scale + 1]], zero);
                    out[row * row_bytes + block * bytes..][..HEAD].copy_from_slice(&head);
                }
                for input in 0..elements {
                    let weights = word(self.weights, (block * elements + input) * words + column);
                    let (byte, shift) = place_of(input);
                    for (nibble, place) in ORDER.into_iter().enumerate() {
                        let to = &mut out[(column * 8 + place) * row_bytes + block * bytes + HEAD + byte];
                        *to |= ((weights >> (4 * nibble)) as u8 & 15) << shift;
                    }
                }
            }
        }
        out
    }
}

/// What stands in `quant_state.bitsandbytes__nf4`.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4State {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Elements a scale.
    pub block: usize,
    /// Scales a scale of scales, and what is added to them, where they are quantized too.
    pub nested: Option<(usize, f32)>,
}

impl Nf4State {
    /// Reads the JSON.
    ///
    /// # Errors
    /// It is none, or describes what the kernels cannot read; the answer says which.
    pub fn read(text: &[u8]) -> Result<Self, &'static str> {
        let json: Value = serde_json::from_slice(text).map_err(|_| "its quant_state is no JSON")?;
        let number =
            |key: &str| json.get(key).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        let shape: Option<Vec<u64>> = json
            .get("shape")
            .and_then(Value::as_array)
            .map(|sizes| sizes.iter().filter_map(Value::as_u64).collect());
        let Some([rows, columns]) = shape.as_deref() else {
            return Err("its quant_state has no shape of a matrix");
        };
        let (rows, columns) = (usize::try_from(*rows).unwrap_or(0), usize::try_from(*columns).unwrap_or(0));
        let block = number("blocksize").unwrap_or(0);
        if json.get("quant_type").and_then(Value::as_str) != Some("nf4") {
            return Err("its quant_state is not of nf4");
        }
        if block == 0 || !block.is_multiple_of(NF4_BLOCK.0) {
            return Err("its blocks are no multiples of 64");
        }
        if rows == 0 || columns == 0 || !columns.is_multiple_of(NF4_BLOCK.0) {
            return Err("its rows are no multiples of 64");
        }
        let nested = match (number("nested_blocksize"), json.get("nested_offset").and_then(Value::as_f64)) {
            (Some(size), Some(offset)) if size > 0 => Some((size, offset as f32)),
            (None, None) => None,
            _ => return Err("its quant_state describes nested scales incompletely"),
        };
        Ok(Self { rows, columns, block, nested })
    }

    /// Elements of the matrix.
    pub fn elements(&self) -> Option<usize> {
        self.rows.checked_mul(self.columns)
    }

    /// Scales that there have to be.
    pub fn scales(&self) -> Option<usize> {
        self.elements().map(|elements| elements.div_ceil(self.block))
    }
}

/// bitsandbytes' tensors of one matrix.
#[derive(Debug, Clone, Copy)]
pub struct Nf4<'a> {
    /// Elements a scale, a multiple of 64.
    pub block: usize,
    /// Two elements a byte, the first in the high nibble.
    pub weights: &'a [u8],
    /// One f32 a block.
    pub scales: &'a [f32],
}

impl Nf4<'_> {
    /// The rows as the kernels read them.
    pub fn repack(&self) -> Vec<u8> {
        let (elements, bytes) = NF4_BLOCK;
        let mut out = Vec::with_capacity(self.weights.len() / (elements / 2) * bytes);
        for (index, codes) in self.weights.chunks_exact(elements / 2).enumerate() {
            let scale = self.scales.get(index * elements / self.block).copied().unwrap_or(0.0);
            out.extend(scale.to_le_bytes());
            out.extend(codes);
        }
        out
    }
}

/// Scales that were quantized to bytes: `map[code] * scale of its block + offset`.
pub fn nested_scales(codes: &[u8], map: &[f32], scales: &[f32], (block, offset): (usize, f32)) -> Vec<f32> {
    let of = |(index, code): (usize, &u8)| {
        let value = map.get(usize::from(*code)).copied().unwrap_or(0.0);
        value * scales.get(index / block).copied().unwrap_or(0.0) + offset
    };
    codes.iter().enumerate().map(of).collect()
}

/// Whether a file's codes mean what the kernels take them for.
pub fn is_nf4(map: &[f32]) -> bool {
    map.len() == NF4_VALUES.len()
        && map.iter().zip(NF4_VALUES).all(|(found, known)| (found - known).abs() < 1e-4)
}

#[cfg(test)]
#[path = "quantized_tests.rs"]
mod tests;
