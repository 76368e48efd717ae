//! Weights and the KV cache: what is in the arena before programs.

use super::{HipBackend, Kv, PAIRS, Weight, shape};
use crate::hip::error::HipError;
use crate::hip::format::Format;
use crate::hip::kernels::Cache;
use crate::hip::products::Matrix;
use crate::hip::transfer::Progress;
use atlas_engine_core::backend::{DeviceError, KvSpec, KvType, RawTensor};
use atlas_engine_core::program::WeightId;
use atlas_format::TensorType;

impl HipBackend {
    pub(super) fn load_weight(
        &mut self,
        parts: &[RawTensor],
        moved: Progress<'_>,
    ) -> Result<WeightId, DeviceError> {
        let columns = parts.first().ok_or(shape("parts of a weight", 0, 1))?.columns;
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let n = u32::try_from(rows).map_err(|_| shape("a weight's rows", rows, u32::MAX as usize))?;
        let k =
            u32::try_from(columns).map_err(|_| shape("a weight's columns", columns, u32::MAX as usize))?;
        let weight = if columns == 1 {
            let span = self.load_vector(parts, rows, moved)?;
            Weight::Vector { span, n }
        } else {
            // Parts of one format become one matrix, and their products one launch.
            let runs = parts.chunk_by(|left, right| left.tensor_type == right.tensor_type);
            let parts = runs.map(|run| self.load_matrix(run, columns, moved)).collect::<Result<_, _>>()?;
            Weight::Matrix { parts, n, k }
        };
        self.weights.push(weight);
        Ok(WeightId(self.weights.len() as u32 - 1))
    }

    fn load_vector(
        &mut self,
        parts: &[RawTensor],
        rows: usize,
        moved: Progress<'_>,
    ) -> Result<crate::hip::arena::Span, DeviceError> {
        let span = self.take_weight(rows as u64 * 4)?;
        let mut at = 0;
        for part in parts {
            if part.tensor_type != TensorType::F32 {
                return Err(self.no_kernel(part));
            }
            if part.columns != 1 || part.bytes.len() != part.rows * 4 {
                return Err(shape("a vector's bytes", part.bytes.len(), part.rows * 4));
            }
            let bytes = part.bytes.len() as u64;
            let to = span.after(at).at_least("a vector", bytes)?;
            self.device.upload(&part.bytes, to, moved)?;
            at += bytes;
        }
        Ok(span)
    }

    /// Parts of one format, one after the other.
    fn load_matrix(
        &mut self,
        parts: &[RawTensor],
        columns: usize,
        moved: Progress<'_>,
    ) -> Result<Matrix, DeviceError> {
        let (mut format, mut bytes, mut n) = (Format::F32, 0, 0);
        for part in parts {
            format = Format::from_tensor_type(part.tensor_type).ok_or_else(|| self.no_kernel(part))?;
            if part.columns != columns {
                return Err(shape("a part's columns", part.columns, columns));
            }
            let row = format.row_bytes(columns);
            let row = row.ok_or(shape("a weight's columns", columns, columns.next_multiple_of(32)))?;
            if part.bytes.len() != row * part.rows {
                return Err(shape("a weight's bytes", part.bytes.len(), row * part.rows));
            }
            bytes += part.bytes.len() as u64;
            n += part.rows as u32;
        }
        let span = self.take_weight(bytes)?;
        let mut at = 0;
        for part in parts {
            let length = part.bytes.len() as u64;
            let to = span.after(at).at_least("a weight", length)?;
            self.device.upload(&part.bytes, to, moved)?;
            at += length;
        }
        Ok(Matrix { bytes: span, format, n, k: columns as u32 })
    }

    fn take_weight(&mut self, bytes: u64) -> Result<crate::hip::arena::Span, HipError> {
        let span = self.arena.take("weights", bytes)?;
        self.memory.weights += bytes;
        Ok(span)
    }

    fn no_kernel(&self, part: &RawTensor) -> DeviceError {
        DeviceError::TensorType {
            name: part.name.clone(),
            tensor_type: part.tensor_type,
            device: self.caps.name.clone(),
        }
    }

    pub(super) fn make_kv(&mut self, spec: &KvSpec) -> Result<(), DeviceError> {
        let cache = match spec.kv_type {
            KvType::F16 => Some(Cache::F16),
            KvType::Q8_0 => Some(Cache::Q8),
            KvType::F32 => None,
        };
        let cache = cache.filter(|cache| cache.takes(spec.head_size));
        let cache = cache.ok_or_else(|| DeviceError::KvType {
            kv_type: spec.kv_type,
            head_size: spec.head_size,
            device: self.caps.name.clone(),
        })?;
        let block = cache.head_bytes(spec.head_size) as u64 * spec.kv_heads as u64;
        let plane_bytes = block * u64::from(spec.blocks);
        let bytes = plane_bytes * 2 * spec.layers.len() as u64;
        let span = self.arena.take("the KV cache", bytes)?;
        // Positions that were never written take part in products with weight 0, so they must be numbers.
        self.device.zero(span.at_least("the KV cache", bytes)?, bytes)?;
        self.device.finish()?;
        let pairs = self.arena.take("block pairs", PAIRS as u64 * 8)?;
        let pairs_host = self.device.allocate_pinned(PAIRS * 8)?;
        self.memory.kv_cache += bytes;
        self.kv = Some(Kv { spec: spec.clone(), cache, span, plane_bytes, pairs, pairs_host });
        Ok(())
    }

    pub(super) fn copy_pairs(&mut self, pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        let Some(kv) = &mut self.kv else { return Err(shape("KV caches", 0, 1)) };
        let blocks = kv.spec.blocks;
        if let Some((from, to)) = pairs.iter().find(|(from, to)| from.max(to) >= &blocks) {
            return Err(shape("a copied block", *from.max(to) as usize, blocks as usize - 1));
        }
        self.device.bind()?;
        let mut rest = pairs;
        while !rest.is_empty() {
            let count = independent(rest).min(PAIRS);
            let (now, later) = rest.split_at(count);
            rest = later;
            let words = kv.pairs_host.bytes_mut().as_chunks_mut::<4>().0;
            for (words, (from, to)) in words.chunks_exact_mut(2).zip(now) {
                words[0] = from.to_le_bytes();
                words[1] = to.to_le_bytes();
            }
            let to = kv.pairs.at_least("block pairs", count as u64 * 8)?;
            self.device.upload_pinned(&kv.pairs_host, count * 8, to)?;
            let block_bytes = kv.plane_bytes / u64::from(blocks);
            let sizes = [2 * kv.spec.layers.len() as u64, kv.plane_bytes, block_bytes];
            self.kernels.copy_blocks(&self.device, kv.span, kv.pairs, count as u32, sizes)?;
            self.device.finish()?;
        }
        Ok(())
    }
}

/// How many of the first pairs touch no block that an earlier one writes, so that their order does not matter.
fn independent(pairs: &[(u32, u32)]) -> usize {
    let clash = |index: &usize| {
        let (from, to) = pairs[*index];
        pairs[..*index].iter().any(|(read, written)| *written == from || *written == to || *read == to)
    };
    (1..pairs.len()).find(clash).unwrap_or(pairs.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_build_on_each_other_are_copied_one_after_the_other() {
        for (pairs, expected) in [
            (vec![(0, 1)], 1),
            (vec![(0, 1), (0, 2), (3, 4)], 3),
            (vec![(0, 1), (1, 2)], 1),
            (vec![(0, 1), (2, 0)], 1),
            (vec![(0, 1), (2, 3), (4, 1)], 2),
        ] {
            assert_eq!(independent(&pairs), expected, "{pairs:?}");
        }
    }
}
