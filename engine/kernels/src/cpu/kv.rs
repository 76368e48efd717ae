//! The paged KV cache: one array of blocks that hold sixteen positions of every head, in f32, f16 or Q8_0.
//!
//! `[layer][block][keys, values][head]` of `[position][element]`, but keys in f16 and f32 of `[element][position]`:
//! a register then holds one element of sixteen positions, and scores need no sum across it.

use super::check::shape;
use crate::blocks::{BlockType, dequantize};
use crate::pages::Pages;
use crate::partition::Cached;
use crate::pool::Pool;
use atlas_engine_core::DeviceError;
use atlas_engine_core::backend::{KvSpec, KvType};
use atlas_engine_core::program::{BLOCK_TOKENS, Heads};
use std::ops::Range;

/// Rows below which waking threads costs more than it saves.
const FEW: usize = 8;

/// The cache's bytes, written to by several threads.
struct Shared(*mut u8);

// SAFETY: each thread writes the parts of its own head.
unsafe impl Sync for Shared {}

/// Which half of a cached position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Keys,
    Values,
}

/// The cache.
pub(crate) struct PagedKv {
    bytes: Pages,
    block_type: BlockType,
    spec: KvSpec,
    head_bytes: usize,
}

impl PagedKv {
    /// A cache of zeros. Memory is taken by the operating system when a block is first written.
    pub(crate) fn new(spec: &KvSpec, device: &str) -> Result<Self, DeviceError> {
        let refused = || DeviceError::KvType {
            kv_type: spec.kv_type,
            head_size: spec.head_size,
            device: device.to_owned(),
        };
        let head_bytes = spec.kv_type.head_bytes(spec.head_size).ok_or_else(refused)?;
        let needed = spec.block_bytes().and_then(|bytes| bytes.checked_mul(u64::from(spec.blocks)));
        let needed = needed.ok_or_else(refused)?;
        let too_much = |_| DeviceError::OutOfMemory { what: "the KV cache", needed, available: 0 };
        let length = usize::try_from(needed).map_err(|_| DeviceError::OutOfMemory {
            what: "the KV cache",
            needed,
            available: usize::MAX as u64,
        })?;
        let bytes = Pages::new(length).map_err(too_much)?;
        let block_type = match spec.kv_type {
            KvType::F32 => BlockType::F32,
            KvType::F16 => BlockType::F16,
            KvType::Q8_0 => BlockType::Q8_0,
        };
        Ok(Self { bytes, block_type, spec: spec.clone(), head_bytes })
    }

    pub(crate) fn spec(&self) -> &KvSpec {
        &self.spec
    }

    pub(crate) fn byte_count(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn block_bytes(&self) -> usize {
        2 * self.spec.kv_heads * BLOCK_TOKENS * self.head_bytes
    }

    /// Bytes of one head's positions in a block. `layer` counts from the cache's first.
    fn range(
        &self,
        layer: usize,
        block: u32,
        part: Part,
        head: usize,
        positions: Range<usize>,
    ) -> Range<usize> {
        let block = layer * self.spec.blocks as usize + block as usize;
        let part = if part == Part::Keys { 0 } else { 1 };
        let head = (block * 2 + part) * self.spec.kv_heads + head;
        let at = |position: usize| (head * BLOCK_TOKENS + position) * self.head_bytes;
        at(positions.start)..at(positions.end)
    }

    /// Writes keys and values of every row to its slot.
    ///
    /// # Shapes
    /// `qkv`: `[T, heads.qkv_columns()]`, `slots`: `[T]`.
    ///
    /// # Panics
    /// A slot lies outside the cache.
    pub(crate) fn write_rows(
        &mut self,
        pool: &Pool,
        layer: usize,
        heads: &Heads,
        qkv: &[f32],
        slots: &[u32],
    ) {
        let capacity = self.spec.blocks as usize * BLOCK_TOKENS;
        assert!(slots.iter().all(|slot| (*slot as usize) < capacity), "slots inside the cache");
        let bytes = Shared(self.bytes.as_mut_ptr());
        let cache = &*self;
        // An item is one head's keys or values: no two touch the same bytes, whatever the slots are.
        let items = 2 * heads.kv;
        let work = |item: usize| {
            let bytes = &bytes;
            let (part, head) =
                if item < heads.kv { (Part::Keys, item) } else { (Part::Values, item - heads.kv) };
            let first = (heads.query + item) * heads.size;
            for (row, slot) in qkv.chunks_exact(heads.qkv_columns()).zip(slots) {
                let (block, position) = (slot / BLOCK_TOKENS as u32, *slot as usize % BLOCK_TOKENS);
                let range = cache.range(layer, block, part, head, 0..BLOCK_TOKENS);
                // SAFETY: the block lies inside the cache, as asserted, and this head's part of it belongs to this
                // item alone.
                let block = unsafe { std::slice::from_raw_parts_mut(bytes.0.add(range.start), range.len()) };
                cache.write(part, position, &row[first..first + heads.size], block);
            }
        };
        if slots.len() < FEW {
            (0..items).for_each(work);
        } else {
            pool.run(items, &work);
        }
    }

    /// Writes one head's position into a block of this part.
    fn write(&self, part: Part, position: usize, values: &[f32], block: &mut [u8]) {
        let row = position * self.head_bytes..(position + 1) * self.head_bytes;
        match (self.spec.kv_type, part) {
            (KvType::F32, Part::Keys) => each_turned(block, position, values, f32::to_le_bytes),
            (KvType::F16, Part::Keys) => {
                each_turned(block, position, values, |value| half_of(value).to_le_bytes());
            }
            (KvType::F32, Part::Values) => {
                each(&mut block[row], values, |value: &[f32; 1]| value[0].to_le_bytes());
            }
            (KvType::F16, Part::Values) => {
                each(&mut block[row], values, |value: &[f32; 1]| half_of(value[0]).to_le_bytes());
            }
            (KvType::Q8_0, _) => each(&mut block[row], values, q8_0_of),
        }
    }

    /// The first positions of one head in a block, as many as `out` holds, `[positions, head_size]`.
    #[inline(always)]
    pub(crate) fn read(&self, layer: usize, block: u32, part: Part, head: usize, out: &mut [f32]) {
        let positions = out.len() / self.spec.head_size;
        dequantize(self.block_type, &self.bytes[self.range(layer, block, part, head, 0..positions)], out);
    }

    /// One head's keys or values of a block as they are stored, where `E` is the element's type.
    #[inline(always)]
    pub(crate) fn block<E: Cached>(&self, layer: usize, block: u32, part: Part, head: usize) -> &[E] {
        let bytes = &self.bytes[self.range(layer, block, part, head, 0..BLOCK_TOKENS)];
        // SAFETY: a cached element is plain bits, so any bytes are values of it.
        let (before, elements, after) = unsafe { bytes.align_to::<E>() };
        assert!(before.is_empty() && after.is_empty(), "elements lie at multiples of their size");
        elements
    }

    /// One head's keys of a block of Q8_0 as `[head_size, positions]`.
    pub(crate) fn read_turned(&self, layer: usize, block: u32, head: usize, out: &mut [f32]) {
        let mut row = vec![0.0; self.spec.head_size];
        for position in 0..BLOCK_TOKENS {
            let range = self.range(layer, block, Part::Keys, head, position..position + 1);
            dequantize(self.block_type, &self.bytes[range], &mut row);
            for (element, value) in row.iter().enumerate() {
                out[element * BLOCK_TOKENS + position] = *value;
            }
        }
    }

    /// Copies a block of all layers.
    pub(crate) fn copy(&mut self, from: u32, to: u32) -> Result<(), DeviceError> {
        let blocks = self.spec.blocks;
        if let Some(beyond) = [from, to].into_iter().find(|block| *block >= blocks) {
            return Err(shape("a block to copy", beyond as usize, blocks as usize));
        }
        let length = self.block_bytes();
        for layer in 0..self.spec.layers.len() {
            let at = |block: u32| (layer * blocks as usize + block as usize) * length;
            self.bytes.copy_within(at(from)..at(from) + length, at(to));
        }
        Ok(())
    }
}

fn each<const E: usize, const B: usize>(
    bytes: &mut [u8],
    values: &[f32],
    convert: impl Fn(&[f32; E]) -> [u8; B],
) {
    let (blocks, _) = bytes.as_chunks_mut::<B>();
    let (values, _) = values.as_chunks::<E>();
    for (block, values) in blocks.iter_mut().zip(values) {
        *block = convert(values);
    }
}

/// Writes values to one column of `[value][position]`.
fn each_turned<const B: usize>(
    bytes: &mut [u8],
    position: usize,
    values: &[f32],
    convert: impl Fn(f32) -> [u8; B],
) {
    let (elements, _) = bytes.as_chunks_mut::<B>();
    for (elements, value) in elements.chunks_exact_mut(BLOCK_TOKENS).zip(values) {
        elements[position] = convert(*value);
    }
}

/// The nearest f16, the even one of two.
fn half_of(value: f32) -> u16 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below f16's smallest normal number: 0.5 has the same distance to its neighbour as those have.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5_f32.to_bits()
    } else {
        (magnitude + 0xfff + (magnitude >> 13 & 1) - (112 << 23)) >> 13
    };
    (half | bits >> 16 & 0x8000) as u16
}

/// ggml's Q8_0 of 32 values: a scale and eight bits each.
fn q8_0_of(values: &[f32; 32]) -> [u8; 34] {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut block = [0; 34];
    block[..2].copy_from_slice(&half_of(scale).to_le_bytes());
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = ((value * inverse).round() as i8).cast_unsigned();
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::Half;

    /// What an f16's bits say, by its definition.
    fn value_of(half: u16) -> f64 {
        let (exponent, fraction) = (i32::from(half >> 10 & 31), f64::from(half & 1023));
        let magnitude = match exponent {
            0 => fraction * 2_f64.powi(-24),
            exponent => (1.0 + fraction / 1024.0) * 2_f64.powi(exponent - 15),
        };
        if half >> 15 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn halves_round_to_the_nearest_even() {
        for half in 0..0x7c00_u16 {
            let (low, high) = (value_of(half), value_of(half + 1));
            assert_eq!(half_of(low as f32), half);
            assert_eq!(half_of(-low as f32), half | 0x8000);
            // Halfway goes to the even one; a little beside it, to the nearer one.
            let middle = ((low + high) / 2.0) as f32;
            assert_eq!(half_of(middle), half + half % 2);
            assert_eq!(half_of(f32::from_bits(middle.to_bits() - 1)), half);
            assert_eq!(half_of(f32::from_bits(middle.to_bits() + 1)), half + 1);
        }
        assert_eq!([f32::INFINITY, -1e9, 65520.0].map(half_of), [0x7c00, 0xfc00, 0x7c00]);
        assert!(half_of(f32::NAN) & 0x7fff > 0x7c00);
    }

    #[test]
    fn every_type_keeps_what_is_written_within_its_precision() {
        for (kv_type, tolerance) in [(KvType::F32, 0.0), (KvType::F16, 5e-4), (KvType::Q8_0, 5e-3)] {
            let spec = KvSpec { layers: 3..5, kv_heads: 2, head_size: 32, kv_type, blocks: 3 };
            let mut kv = PagedKv::new(&spec, "cpu").unwrap();
            let row = |seed: usize| -> Vec<f32> {
                (0..64).map(|index| ((index * 37 + seed * 101) % 200) as f32 / 100.0 - 1.0).collect()
            };
            let (pool, heads) = (Pool::new(2).unwrap(), Heads { query: 0, kv: 2, size: 32 });
            kv.write_rows(&pool, 0, &heads, &[row(0), row(4), row(1), row(5)].concat(), &[0, 17]);
            kv.write_rows(&pool, 1, &heads, &[row(6), row(2), row(7), row(3)].concat(), &[17, 18]);
            let many: Vec<f32> = (0..9).flat_map(|seed| [row(seed + 10), row(seed + 20)].concat()).collect();
            kv.write_rows(&pool, 0, &heads, &many, &[32, 33, 34, 35, 36, 37, 38, 39, 40]);
            kv.copy(1, 0).unwrap();
            let check = |layer, block, part, head: usize, position: usize, seed: Option<usize>| {
                let turned = |element: usize| element * BLOCK_TOKENS + position;
                let out: Vec<f32> = match (part, kv_type) {
                    (Part::Keys, KvType::F32) => {
                        (0..32).map(|at| kv.block::<f32>(layer, block, part, head)[turned(at)]).collect()
                    }
                    (Part::Keys, KvType::F16) => (0..32)
                        .map(|at| kv.block::<Half>(layer, block, part, head)[turned(at)].read())
                        .collect(),
                    (Part::Keys, KvType::Q8_0) => {
                        let mut out = vec![9.0; BLOCK_TOKENS * 32];
                        kv.read_turned(layer, block, head, &mut out);
                        (0..32).map(|at| out[turned(at)]).collect()
                    }
                    (Part::Values, _) => {
                        let mut out = vec![9.0; (position + 1) * 32];
                        kv.read(layer, block, part, head, &mut out);
                        out.split_off(position * 32)
                    }
                };
                let expected = seed.map_or(vec![0.0; 64], row);
                for (out, expected) in out.iter().zip(&expected[head * 32..]) {
                    assert!((out - expected).abs() <= tolerance, "{kv_type:?} {out} {expected}");
                }
            };
            for head in [0, 1] {
                check(0, 0, Part::Keys, head, 1, Some(1));
                check(0, 0, Part::Keys, head, 0, None);
                check(0, 1, Part::Values, head, 1, Some(5));
                check(1, 1, Part::Values, head, 1, Some(2));
                check(1, 0, Part::Values, head, 2, Some(3));
                check(1, 1, Part::Keys, head, 2, Some(7));
                check(1, 1, Part::Keys, head, 3, None);
                for position in 0..9 {
                    check(0, 2, Part::Keys, head, position, Some(position + 10));
                    check(0, 2, Part::Values, head, position, Some(position + 20));
                }
            }
            assert!(kv.copy(0, 3).is_err());
        }
    }

    #[test]
    fn heads_that_do_not_go_with_the_type_are_refused() {
        let spec = KvSpec { layers: 0..1, kv_heads: 1, head_size: 20, kv_type: KvType::Q8_0, blocks: 1 };
        assert!(matches!(PagedKv::new(&spec, "cpu"), Err(DeviceError::KvType { head_size: 20, .. })));
    }
}
