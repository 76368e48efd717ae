//! Data for the checks: numbers that look random and are the same every time, and weights in every format.

use crate::blocks;
use crate::hip::format::Format;

/// Numbers that look random.
pub struct Numbers(pub u64);

impl Numbers {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }

    /// Between -1 and 1.
    pub fn next(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn list(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.bits() as usize % limit
    }

    /// Rows of weights in a format, of magnitude about 1.
    pub fn weights(&mut self, format: Format, rows: usize, columns: usize) -> Vec<u8> {
        let (elements, bytes) = format.block();
        let mut out = Vec::with_capacity(rows * columns / elements * bytes);
        for _ in 0..rows * columns / elements {
            let mut block: Vec<u8> = (0..bytes).map(|_| self.bits() as u8).collect();
            self.scales(format, &mut block);
            out.extend(block);
        }
        out
    }

    /// Overwrites what has to be a sane float.
    fn scales(&mut self, format: Format, block: &mut [u8]) {
        let mut f16_at = |at: usize, magnitude: f32| {
            let bits = half_bits(self.next() * magnitude);
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        };
        match format {
            Format::F32 => block.copy_from_slice(&self.next().to_le_bytes()),
            Format::F16 => f16_at(0, 1.0),
            Format::Bf16 => block.copy_from_slice(&self.next().to_le_bytes()[2..]),
            Format::Nf4 => block[..4].copy_from_slice(&self.next().to_le_bytes()),
            Format::Q4_0 => f16_at(0, 0.1),
            Format::Q5_0 => f16_at(0, 0.05),
            Format::Q8_0 => f16_at(0, 0.01),
            Format::Q4_1 | Format::Q5_1 => {
                f16_at(0, 0.05);
                f16_at(2, 0.5);
            }
            Format::Q4K | Format::Q5K => {
                f16_at(0, 0.002);
                f16_at(2, 0.01);
            }
            Format::Q6K => f16_at(208, 0.0003),
            Format::Awq4 => {
                f16_at(0, 0.1);
                block[2] &= 15;
                block[3] = 0;
            }
        }
    }
}

/// The f16 nearest to a value of magnitude at most 1, towards zero.
pub fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let exponent = (bits >> 23 & 0xff) as i32 - 112;
    let sign = (bits >> 16 & 0x8000) as u16;
    if exponent <= 0 { sign } else { sign | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16 }
}

/// What weights mean, by the CPU backend's code for their format.
pub fn values(format: Format, bytes: &[u8]) -> Vec<f32> {
    let (elements, size) = format.block();
    let mut out = vec![0.0; bytes.len() / size * elements];
    blocks::dequantize(format.block_type(), bytes, &mut out);
    out
}
