//! The quantized types: which bits and scales they have, and where ggml's blocks hold them.
//!
//! Source of ggml's layouts: ggml-common.h and ggml-quants.c of ggml.

use super::quants::{Eight, Five, Four, GROUP, LANES, Quants, Six};
use super::scales::{Factor, FactorAndOffset, ScaleLayout, SignedBytes, SixBits};

/// Rows of a panel: two halves of 16, so that a broadcast activation serves two registers of weights.
pub(super) const PANEL: usize = 2 * LANES;

/// A quantized type.
///
/// A weight is `(value - ZERO) * factor + offset`. A panel is, superblock by superblock, the scales of both halves,
/// then for each group the values of both halves.
pub(super) trait Format {
    /// Its values.
    type Quants: Quants;
    /// Its scales.
    type Scales: ScaleLayout;
    /// Groups of 32 columns a superblock, which is ggml's block.
    const GROUPS: usize;
    /// Bytes of ggml's block.
    const BLOCK: usize;
    /// What is taken off a value.
    const ZERO: i32;
    /// Whether there are offsets.
    const OFFSETS: bool;
    /// Factors a group.
    const PARTS: usize;

    /// One group of a block of ggml, a byte a value.
    fn group(block: &[u8], group: usize) -> [u8; GROUP];

    /// Bytes of the values of one group of a panel.
    const GROUP_BYTES: usize = 2 * Self::Quants::BYTES;
    /// Bytes of the scales of one superblock of a panel.
    const SCALE_BYTES: usize = 2 * Self::Scales::BYTES;
    /// Bytes of one superblock of a panel.
    const SUPERBLOCK_BYTES: usize = Self::SCALE_BYTES + Self::GROUPS * Self::GROUP_BYTES;
}

/// Calls `$run::<F>($arguments)` with the format of a block type, `None` for a type without one.
macro_rules! with_format {
    ($block:expr, $run:ident($($argument:expr),*)) => {
        match $block {
            BlockType::Q4_0 => Some($run::<Q4_0>($($argument),*)),
            BlockType::Q4_1 => Some($run::<Q4_1>($($argument),*)),
            BlockType::Q5_0 => Some($run::<Q5_0>($($argument),*)),
            BlockType::Q5_1 => Some($run::<Q5_1>($($argument),*)),
            BlockType::Q8_0 => Some($run::<Q8_0>($($argument),*)),
            BlockType::Q4K => Some($run::<Q4K>($($argument),*)),
            BlockType::Q5K => Some($run::<Q5K>($($argument),*)),
            BlockType::Q6K => Some($run::<Q6K>($($argument),*)),
            _ => None,
        }
    };
}
pub(super) use with_format;

/// The low nibbles of 16 bytes, then the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    let mut out = [0; GROUP];
    for at in 0..16 {
        out[at] = bytes[at] & 15;
        out[at + 16] = bytes[at] >> 4;
    }
    out
}

/// Adds the bits of a little-endian u32 as fifth bits.
#[inline(always)]
fn with_fifth_bits(mut values: [u8; GROUP], bits: &[u8]) -> [u8; GROUP] {
    for (at, value) in values.iter_mut().enumerate() {
        *value |= (bits[at / 8] >> (at % 8) & 1) << 4;
    }
    values
}

macro_rules! format {
    ($(#[$doc:meta])* $name:ident, $quants:ty, $scales:ty, $groups:expr, $bytes:expr, zero $zero:expr,
        offsets $offsets:expr, parts $parts:expr, |$block:ident, $group:ident| $unpack:expr) => {
        $(#[$doc])*
        pub(super) struct $name;

        impl Format for $name {
            type Quants = $quants;
            type Scales = $scales;
            const GROUPS: usize = $groups;
            const BLOCK: usize = $bytes;
            const ZERO: i32 = $zero;
            const OFFSETS: bool = $offsets;
            const PARTS: usize = $parts;

            #[inline(always)]
            fn group($block: &[u8], $group: usize) -> [u8; GROUP] {
                $unpack
            }
        }
    };
}

format!(
    /// 4.5 bits a weight.
    Q4_0, Four, Factor<0>, 1, 18, zero 8, offsets false, parts 1, |block, _group| nibbles(&block[2..]));
format!(
    /// 5 bits a weight.
    Q4_1, Four, FactorAndOffset, 1, 20, zero 0, offsets true, parts 1, |block, _group| nibbles(&block[4..]));
format!(
    /// 5.5 bits a weight.
    Q5_0, Five, Factor<0>, 1, 22, zero 16, offsets false, parts 1,
    |block, _group| with_fifth_bits(nibbles(&block[6..]), &block[2..6]));
format!(
    /// 6 bits a weight.
    Q5_1, Five, FactorAndOffset, 1, 24, zero 0, offsets true, parts 1,
    |block, _group| with_fifth_bits(nibbles(&block[8..]), &block[4..8]));
format!(
/// 8.5 bits a weight.
Q8_0, Eight, Factor<0>, 1, 34, zero 128, offsets false, parts 1, |block, _group| {
    let mut values = [0; GROUP];
    values.copy_from_slice(&block[2..34]);
    values
});
format!(
    /// 4.5 bits a weight.
    Q4K, Four, SixBits, 8, 144, zero 0, offsets true, parts 1, |block, group| four_bits_of(&block[16..], group));
format!(
/// 5.5 bits a weight.
Q5K, Five, SixBits, 8, 176, zero 0, offsets true, parts 1, |block, group| {
    let mut values = four_bits_of(&block[48..], group);
    for (at, value) in values.iter_mut().enumerate() {
        *value |= (block[16 + at] >> group & 1) << 4;
    }
    values
});
format!(
/// 6.5625 bits a weight.
Q6K, Six, SignedBytes, 8, 210, zero 32, offsets false, parts 2, |block, group| {
    // Four groups share 64 bytes of low bits and 32 bytes of high ones.
    let (low, high) = (group / 4 * 64 + group % 2 * 32, 128 + group / 4 * 32);
    let (low_shift, high_shift) = (group % 4 / 2 * 4, group % 4 * 2);
    let mut values = [0; GROUP];
    for (at, value) in values.iter_mut().enumerate() {
        *value = block[low + at] >> low_shift & 15 | (block[high + at] >> high_shift & 3) << 4;
    }
    values
});

/// Q4_K's and Q5_K's low bits: two groups share 32 bytes.
#[inline(always)]
fn four_bits_of(bytes: &[u8], group: usize) -> [u8; GROUP] {
    let (first, shift) = (group / 2 * 32, group % 2 * 4);
    let mut values = [0; GROUP];
    for (at, value) in values.iter_mut().enumerate() {
        *value = bytes[first + at] >> shift & 15;
    }
    values
}
