//! The weight formats that kernels exist for; `hip/formats.h` is the other half.

use crate::blocks::BlockType;
use atlas_format::TensorType;

/// How a weight's rows are stored on the card: as in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Format {
    F32,
    F16,
    Bf16,
    /// 64 weights: an f32 scale and 32 bytes, the first weight of each in the high nibble.
    Nf4,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    /// 128 weights: an f16 scale, a zero point of a byte, a byte of padding, and four pieces laid out as Q4_0's.
    Awq4,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Nf4,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Awq4,
    ];

    /// The format of a tensor's type; `None` where there is no kernel.
    #[must_use]
    pub fn from_tensor_type(tensor_type: TensorType) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.tensor_type() == tensor_type)
    }

    /// The blocks, which the CPU backend knows too.
    pub(crate) fn block_type(self) -> BlockType {
        match self {
            Self::F32 => BlockType::F32,
            Self::F16 => BlockType::F16,
            Self::Bf16 => BlockType::Bf16,
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q4_1 => BlockType::Q4_1,
            Self::Q5_0 => BlockType::Q5_0,
            Self::Q5_1 => BlockType::Q5_1,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q4K => BlockType::Q4K,
            Self::Q5K => BlockType::Q5K,
            Self::Q6K => BlockType::Q6K,
            Self::Nf4 => BlockType::Nf4,
            Self::Awq4 => BlockType::Awq4,
        }
    }

    /// The type of tensors that are stored so.
    #[must_use]
    pub fn tensor_type(self) -> TensorType {
        TensorType::from_number(self.block_type().ggml())
    }

    /// The name in kernels' names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Nf4 => "nf4",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
            Self::Awq4 => "awq4",
        }
    }

    /// Elements and bytes of a block.
    #[must_use]
    pub fn block(self) -> (usize, usize) {
        self.block_type().size()
    }

    /// Whether its products take activations as q8 blocks (dot4) rather than as floats.
    #[must_use]
    pub fn is_integer(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Nf4)
    }

    /// Bytes of a row; `None` where kernels cannot take the length: whole blocks, and a multiple of 32.
    #[must_use]
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let (elements, bytes) = self.block();
        let whole = columns.is_multiple_of(elements) && columns.is_multiple_of(32) && columns > 0;
        whole.then(|| columns / elements * bytes)
    }
}
