//! What the tests of the products share: numbers, and candle as quantizer and reader.

use crate::blocks::BlockType;
use candle_core::quantized::GgmlDType;
use std::borrow::Cow;

/// Numbers that look random and are the same every time.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn list(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn candle_type(block: BlockType) -> GgmlDType {
    match block {
        BlockType::F32 => GgmlDType::F32,
        BlockType::F16 => GgmlDType::F16,
        BlockType::Bf16 => GgmlDType::BF16,
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q4_1 => GgmlDType::Q4_1,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q5_1 => GgmlDType::Q5_1,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q2K => GgmlDType::Q2K,
        BlockType::Q3K => GgmlDType::Q3K,
        BlockType::Q4K => GgmlDType::Q4K,
        BlockType::Q5K => GgmlDType::Q5K,
        BlockType::Q6K => GgmlDType::Q6K,
        BlockType::Nf4 | BlockType::Awq4 => unreachable!("candle does not know it"),
    }
}

/// Values quantized by candle: their bytes, and what candle reads from them.
pub(crate) fn quantized(block: BlockType, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let dtype = candle_type(block);
    let mut stored = dtype.cpu_zeros(values.len());
    stored.from_float(values);
    let bytes =
        unsafe { std::slice::from_raw_parts(stored.as_ptr(), stored.storage_size_in_bytes()) }.to_vec();
    let read = dtype.from_data(Cow::Borrowed(&bytes)).dequantize(values.len()).unwrap();
    (bytes, read.as_slice::<f32>().unwrap().to_vec())
}
