//! Quantized matrices of a folder, gathered from the tensors that each of them is kept in.

use super::CheckpointError;
use super::folder::{Found, Stored};
use super::gptq::{Gptq, GptqFormat, is_in_order};
use super::names::{Place, place};
use super::nibbles::Blocks;
use super::quantized::{Awq, Method, NF4_BLOCK, Nf4, Nf4State, is_nf4, nested_scales};
use crate::model::{ModelError, Tensor};
use atlas_format::{Dtype, TensorType};

/// Takes the parts of quantized matrices out of what was found; the answer is the matrices by their names.
///
/// # Errors
/// A part is missing, or of another shape or type than the others ask for.
pub fn take(found: &mut Found, method: Method) -> Result<Vec<(String, Tensor)>, CheckpointError> {
    match method {
        Method::Plain => Ok(Vec::new()),
        Method::Awq { group } => stems(found, ".qweight")
            .into_iter()
            .map(|stem| Ok((format!("{stem}.weight"), take_awq(found, &stem, group)?)))
            .collect(),
        Method::Gptq(format) => stems(found, ".qweight")
            .into_iter()
            .map(|stem| Ok((format!("{stem}.weight"), take_gptq(found, &stem, format)?)))
            .collect(),
        Method::Nf4 => stems(found, STATE)
            .into_iter()
            .map(|name| take_nf4(found, &name).map(|tensor| (name, tensor)))
            .collect(),
    }
}

/// What bitsandbytes appends to the name of a weight for its description.
const STATE: &str = ".quant_state.bitsandbytes__nf4";

fn stems(found: &Found, suffix: &str) -> Vec<String> {
    found.keys().filter_map(|name| name.strip_suffix(suffix)).map(str::to_owned).collect()
}

fn part(found: &mut Found, name: String) -> Result<Stored, CheckpointError> {
    found.remove(&name).ok_or_else(|| ModelError::MissingTensor { name }.into())
}

fn odd(name: &str, reason: &'static str) -> CheckpointError {
    CheckpointError::Quantized { name: name.to_owned(), reason }
}

/// The three tensors of a matrix of 4-bit codes, which go together, and how it is kept.
struct Parts {
    rows: usize,
    columns: usize,
    group: usize,
    weights: Stored,
    zeros: Stored,
    scales: Stored,
}

impl Parts {
    /// Takes them; `packed` tells rows and columns from the shape of the codes' words.
    fn take(
        found: &mut Found,
        stem: &str,
        group: usize,
        packed: impl Fn([usize; 2]) -> [usize; 2],
    ) -> Result<Self, CheckpointError> {
        let mut part = |name: &str| part(found, format!("{stem}.{name}"));
        let (weights, zeros, scales) = (part("qweight")?, part("qzeros")?, part("scales")?);
        let [first, second] = weights.shape()[..] else { return Err(odd(stem, "qweight is no matrix")) };
        let [rows, columns] = packed([first, second]);
        let group = if group == 0 { columns } else { group };
        if rows == 0 || columns == 0 || !rows.is_multiple_of(8) || !columns.is_multiple_of(32) {
            return Err(odd(stem, "its inputs are no multiple of 32, or its outputs none of 8"));
        }
        if !columns.is_multiple_of(group) {
            return Err(odd(stem, "its inputs are no whole groups"));
        }
        let groups = columns / group;
        let go_together = *weights.dtype() == Dtype::I32
            && (zeros.dtype(), zeros.shape()) == (&Dtype::I32, vec![groups, rows / 8])
            && (scales.dtype(), scales.shape()) == (&Dtype::F16, vec![groups, rows]);
        if !go_together {
            return Err(odd(stem, "qweight (I32), qzeros (I32) and scales (F16) do not go together"));
        }
        Ok(Self { rows, columns, group, weights, zeros, scales })
    }

    /// The matrix, whose bytes are made when it is loaded.
    fn tensor(self, repack: impl Fn(&Self) -> Vec<u8> + Send + Sync + 'static) -> Tensor {
        let kept = Blocks::of_group(self.group);
        let shape = vec![self.columns as u64, self.rows as u64];
        let bytes = kept.bytes_of(self.rows, self.columns);
        Tensor::made(kept.tensor_type(), shape, bytes, Box::new(move || repack(&self)))
    }
}

fn take_awq(found: &mut Found, stem: &str, group: usize) -> Result<Tensor, CheckpointError> {
    let parts = Parts::take(found, stem, group, |[columns, words]| [words.saturating_mul(8), columns])?;
    Ok(parts.tensor(|parts| {
        let Parts { rows, columns, group, weights, zeros, scales } = parts;
        let (rows, columns, group) = (*rows, *columns, *group);
        let [weights, zeros, scales] = [weights, zeros, scales].map(Stored::bytes);
        Awq { rows, columns, group, weights, zeros, scales }.repack()
    }))
}

fn take_gptq(found: &mut Found, stem: &str, format: GptqFormat) -> Result<Tensor, CheckpointError> {
    let GptqFormat { group, zero_offset } = format;
    let parts = Parts::take(found, stem, group, |[words, rows]| [rows, words.saturating_mul(8)])?;
    if let Some(order) = found.remove(&format!("{stem}.g_idx"))
        && (*order.dtype() != Dtype::I32
            || order.shape() != [parts.columns]
            || !is_in_order(order.bytes(), parts.group))
    {
        return Err(odd(stem, "its g_idx strews groups over the inputs (desc_act), which is not built"));
    }
    // Some tools write a bias for every matrix; where the architecture has none, it is zero.
    let bias = format!("{stem}.bias");
    if place(&bias) == Place::None
        && found.get(&bias).is_some_and(|bias| bias.bytes().iter().all(|byte| *byte == 0))
    {
        found.remove(&bias);
    }
    Ok(parts.tensor(move |parts| {
        let Parts { rows, columns, group, weights, zeros, scales } = parts;
        let (rows, columns, group) = (*rows, *columns, *group);
        let [weights, zeros, scales] = [weights, zeros, scales].map(Stored::bytes);
        Gptq { rows, columns, group, zero_offset, weights, zeros, scales }.repack()
    }))
}

fn take_nf4(found: &mut Found, name: &str) -> Result<Tensor, CheckpointError> {
    let state = part(found, format!("{name}{STATE}"))?;
    let state = Nf4State::read(state.bytes()).map_err(|reason| odd(name, reason))?;
    let weights = part(found, name.to_owned())?;
    let codes = part(found, format!("{name}.absmax"))?;
    let map = part(found, format!("{name}.quant_map"))?.floats();
    if !map.is_some_and(|map| is_nf4(&map)) {
        return Err(odd(name, "its quant_map is not that of nf4"));
    }
    let elements = state.elements().ok_or_else(|| odd(name, "its shape is beyond any file"))?;
    if *weights.dtype() != Dtype::U8 || weights.bytes().len() != elements / 2 {
        return Err(odd(name, "its weights are not half a byte an element of the shape"));
    }
    let nested = match state.nested {
        None => None,
        Some(how) => {
            let mut floats = |what: &str| part(found, format!("{name}.{what}")).map(|part| part.floats());
            let (map, scales) = (floats("nested_quant_map")?, floats("nested_absmax")?);
            let scales =
                scales.filter(|scales| state.scales().is_some_and(|all| scales.len() == all.div_ceil(how.0)));
            match (map.filter(|map| map.len() == 256), scales) {
                (Some(map), Some(scales)) => Some((map, scales, how)),
                _ => return Err(odd(name, "its nested scales do not go together")),
            }
        }
    };
    let (dtype, width) = if nested.is_some() { (Dtype::U8, 1) } else { (Dtype::F32, 4) };
    if *codes.dtype() != dtype
        || Some(codes.bytes().len()) != state.scales().and_then(|all| all.checked_mul(width))
    {
        return Err(odd(name, "its absmax has not one scale a block"));
    }
    let Nf4State { rows, columns, block, .. } = state;
    let bytes = elements / NF4_BLOCK.0 * NF4_BLOCK.1;
    let make = move || {
        let scales = match &nested {
            Some((map, scales, how)) => nested_scales(codes.bytes(), map, scales, *how),
            // They are f32, as was checked, so there are some.
            None => codes.floats().unwrap_or_default(),
        };
        Nf4 { block, weights: weights.bytes(), scales: &scales }.repack()
    };
    Ok(Tensor::made(TensorType::NF4, vec![columns as u64, rows as u64], bytes, Box::new(make)))
}
