//! Block formats of ggml and how their bytes become f32.
//!
//! Source of the layouts: ggml-common.h and ggml-quants.c of ggml. Plain loops over arrays of fixed length, which the
//! compiler vectorises for whichever instruction set they are inlined into.

use atlas_format::TensorType;

/// How a row of weights is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BlockType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    /// 64 weights: an f32 scale and 32 bytes, the first weight of each in the high nibble.
    Nf4,
    /// 128 weights: an f16 scale, a zero point of a byte, a byte of padding, and four pieces laid out as Q4_0's.
    Awq4,
}

impl BlockType {
    /// ggml's types that there is a kernel for.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// This project's own types.
    pub const OWN: [Self; 2] = [Self::Nf4, Self::Awq4];

    /// The type with this number, ggml's or our own; `None` where there is no kernel for it.
    pub fn from_ggml(number: u32) -> Option<Self> {
        Self::ALL.into_iter().chain(Self::OWN).find(|block| block.ggml() == number)
    }

    /// The number in ggml, or in this project.
    pub fn ggml(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
            Self::Nf4 => TensorType::NF4.number(),
            Self::Awq4 => TensorType::AWQ4.number(),
        }
    }

    /// Whether cards multiply it with activations in floats rather than in int8 blocks.
    pub fn takes_floats(self) -> bool {
        self.is_float() || self == Self::Nf4
    }

    /// Whether its elements are floats, each for itself.
    pub fn is_float(self) -> bool {
        self.size().0 == 1
    }

    /// Elements and bytes of a block.
    pub fn size(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Nf4 => (64, 36),
            Self::Awq4 => (128, 68),
        }
    }

    /// Bytes of a row; `None` where the row is not made of whole blocks.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let (elements, bytes) = self.size();
        columns.is_multiple_of(elements).then(|| columns / elements)?.checked_mul(bytes)
    }
}

/// Turns whole blocks into f32: as many as both sides hold.
#[inline(always)]
pub(crate) fn dequantize(block: BlockType, bytes: &[u8], out: &mut [f32]) {
    match block {
        BlockType::F32 => each(bytes, out, |b: &[u8; 4], y: &mut [f32; 1]| y[0] = f32::from_le_bytes(*b)),
        BlockType::F16 => each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| y[0] = half(b, 0)),
        BlockType::Bf16 => each(bytes, out, |b: &[u8; 2], y: &mut [f32; 1]| {
            y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        }),
        BlockType::Q4_0 => each(bytes, out, q4_0),
        BlockType::Q4_1 => each(bytes, out, q4_1),
        BlockType::Q5_0 => each(bytes, out, q5_0),
        BlockType::Q5_1 => each(bytes, out, q5_1),
        BlockType::Q8_0 => each(bytes, out, q8_0),
        BlockType::Q2K => each(bytes, out, q2_k),
        BlockType::Q3K => each(bytes, out, q3_k),
        BlockType::Q4K => each(bytes, out, q4_k),
        BlockType::Q5K => each(bytes, out, q5_k),
        BlockType::Q6K => each(bytes, out, q6_k),
        BlockType::Nf4 => each(bytes, out, nf4),
        BlockType::Awq4 => each(bytes, out, awq4),
    }
}

#[inline(always)]
fn each<const B: usize, const E: usize>(
    bytes: &[u8],
    out: &mut [f32],
    convert: impl Fn(&[u8; B], &mut [f32; E]),
) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (values, _) = out.as_chunks_mut::<E>();
    for (block, values) in blocks.iter().zip(values) {
        convert(block, values);
    }
}

/// The f16 at this byte, by scaling its bits as an f32 up: no branch, subnormals included.
#[inline(always)]
pub(crate) fn half(bytes: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let magnitude = (bits & 0x7fff) << 13;
    let value = if magnitude >= 0x0f80_0000 {
        f32::from_bits(magnitude | 0x7f80_0000)
    } else {
        // 2^112, the difference of the exponents' biases.
        f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)
    };
    f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
}

#[inline(always)]
fn q4_0(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = half(b, 0);
    for i in 0..16 {
        y[i] = (i32::from(b[2 + i] & 15) - 8) as f32 * d;
        y[i + 16] = (i32::from(b[2 + i] >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (half(b, 0), half(b, 2));
    for i in 0..16 {
        y[i] = i32::from(b[4 + i] & 15) as f32 * d + m;
        y[i + 16] = i32::from(b[4 + i] >> 4) as f32 * d + m;
    }
}

#[inline(always)]
fn q5_0(b: &[u8; 22], y: &mut [f32; 32]) {
    let (d, high) = (half(b, 0), u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
    for i in 0..16 {
        let (low, up) = ((high >> i) << 4 & 16, (high >> (i + 16)) << 4 & 16);
        y[i] = ((u32::from(b[6 + i] & 15) | low) as i32 - 16) as f32 * d;
        y[i + 16] = ((u32::from(b[6 + i] >> 4) | up) as i32 - 16) as f32 * d;
    }
}

#[inline(always)]
fn q5_1(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m, high) = (half(b, 0), half(b, 2), u32::from_le_bytes([b[4], b[5], b[6], b[7]]));
    for i in 0..16 {
        let (low, up) = ((high >> i) << 4 & 16, (high >> (i + 16)) << 4 & 16);
        y[i] = (u32::from(b[8 + i] & 15) | low) as i32 as f32 * d + m;
        y[i + 16] = (u32::from(b[8 + i] >> 4) | up) as i32 as f32 * d + m;
    }
}

#[inline(always)]
fn q8_0(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = half(b, 0);
    for i in 0..32 {
        y[i] = f32::from(b[2 + i] as i8) * d;
    }
}

#[inline(always)]
fn q2_k(b: &[u8; 84], y: &mut [f32; 256]) {
    let (d, min) = (half(b, 80), half(b, 82));
    for (group, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, shift) = (b[group], group % 8 / 2 * 2);
        let (d, m) = (d * f32::from(scale & 15), min * f32::from(scale >> 4));
        let first = 16 + group / 8 * 32 + group % 2 * 16;
        for i in 0..16 {
            y[i] = d * i32::from((b[first + i] >> shift) & 3) as f32 - m;
        }
    }
}

#[inline(always)]
fn q3_k(b: &[u8; 110], y: &mut [f32; 256]) {
    let d = half(b, 108);
    for (group, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if group < 8 { b[96 + group] & 15 } else { b[88 + group] >> 4 };
        let scale = low | ((b[104 + group % 4] >> (group / 4 * 2)) & 3) << 4;
        let d = d * (f32::from(scale) - 32.0);
        let (shift, bit) = (group % 8 / 2 * 2, group / 2);
        let (first, mask) = (32 + group / 8 * 32 + group % 2 * 16, group % 2 * 16);
        for i in 0..16 {
            let low = i32::from((b[first + i] >> shift) & 3);
            y[i] = d * (low + i32::from((b[mask + i] >> bit) & 1) * 4 - 4) as f32;
        }
    }
}

/// Scale and minimum of one of the eight groups of Q4_K and Q5_K.
#[inline(always)]
pub(crate) fn scale_and_min(scales: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let (low, high) = (scales[group + 4], (scales[group - 4] >> 6, scales[group] >> 6));
        ((low & 15) | high.0 << 4, low >> 4 | high.1 << 4)
    }
}

#[inline(always)]
fn q4_k(b: &[u8; 144], y: &mut [f32; 256]) {
    let (d, min) = (half(b, 0), half(b, 2));
    for (group, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, least) = scale_and_min(&b[4..16], group);
        let (d, m, first, shift) =
            (d * f32::from(scale), min * f32::from(least), 16 + group / 2 * 32, group % 2 * 4);
        for i in 0..32 {
            y[i] = d * i32::from((b[first + i] >> shift) & 15) as f32 - m;
        }
    }
}

#[inline(always)]
fn q5_k(b: &[u8; 176], y: &mut [f32; 256]) {
    let (d, min) = (half(b, 0), half(b, 2));
    for (group, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, least) = scale_and_min(&b[4..16], group);
        let (d, m, first, shift) =
            (d * f32::from(scale), min * f32::from(least), 48 + group / 2 * 32, group % 2 * 4);
        for i in 0..32 {
            let high = (b[16 + i] >> group & 1) << 4;
            y[i] = d * i32::from((b[first + i] >> shift) & 15 | high) as f32 - m;
        }
    }
}

#[inline(always)]
fn q6_k(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = half(b, 208);
    for (group, y) in y.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = d * f32::from(b[192 + group] as i8);
        // Eight groups share 64 bytes of low and 32 bytes of high bits.
        let (part, place) = (group / 8, group % 8);
        let (low, low_shift) = (part * 64 + place % 4 * 16, place / 4 * 4);
        let (high, high_shift) = (128 + part * 32 + place % 2 * 16, place / 2 * 2);
        for i in 0..16 {
            let value = (b[low + i] >> low_shift) & 15 | (b[high + i] >> high_shift & 3) << 4;
            y[i] = d * (i32::from(value) - 32) as f32;
        }
    }
}

/// The quantiles that NF4 counts in (Dettmers et al. 2023, appendix E).
pub const NF4_VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

#[inline(always)]
fn nf4(b: &[u8; 36], y: &mut [f32; 64]) {
    let scale = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    for i in 0..32 {
        y[2 * i] = scale * NF4_VALUES[usize::from(b[4 + i] >> 4)];
        y[2 * i + 1] = scale * NF4_VALUES[usize::from(b[4 + i] & 15)];
    }
}

#[inline(always)]
fn awq4(b: &[u8; 68], y: &mut [f32; 128]) {
    let (scale, zero) = (half(b, 0), i32::from(b[2]));
    for (piece, y) in y.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for i in 0..16 {
            let byte = b[4 + piece * 16 + i];
            y[i] = scale * (i32::from(byte & 15) - zero) as f32;
            y[i + 16] = scale * (i32::from(byte >> 4) - zero) as f32;
        }
    }
}
