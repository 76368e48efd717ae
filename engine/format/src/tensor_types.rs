//! The ggml tensor types: names and block sizes.
//!
//! A type whose size is known can be planned for even where no kernel can run it; a type that is not in the table
//! keeps its number, so that one odd tensor does not make a whole header unreadable.

use std::fmt;

/// A tensor's element type as numbered by ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType(u32);

/// ggml number, name, elements a block, bytes a block (ggml.h, `type_traits` in ggml.c).
const TYPES: &[(u32, &str, u64, u64)] = &[
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    // This project's own, made from folders of safetensors; files do not have them (engine/kernels/hip/formats.h).
    (OWN, "NF4", 64, 36),
    (OWN + 1, "AWQ4", 128, 68),
];

/// Far beyond ggml's numbers.
const OWN: u32 = 0x4154_0000;

impl TensorType {
    /// 32-bit floats.
    pub const F32: Self = Self(0);
    /// 16-bit floats.
    pub const F16: Self = Self(1);
    /// 4-bit integers with an f16 scale and an f16 offset for 32.
    pub const Q4_1: Self = Self(3);
    /// The upper half of 32-bit floats.
    pub const BF16: Self = Self(30);
    /// 4-bit quantiles of a normal distribution with an f32 scale for 64, as this project packs them.
    pub const NF4: Self = Self(OWN);
    /// 4-bit integers with an f16 scale and a zero point for 128, as this project packs them.
    pub const AWQ4: Self = Self(OWN + 1);

    /// The type with this ggml number, known or not.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The ggml number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    fn row(self) -> Option<&'static (u32, &'static str, u64, u64)> {
        TYPES.iter().find(|(number, ..)| *number == self.0)
    }

    /// Elements and bytes of one block, where the type is known.
    #[must_use]
    pub fn block(self) -> Option<(u64, u64)> {
        self.row().map(|(_, _, elements, bytes)| (*elements, *bytes))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some((_, name, ..)) => f.pad(name),
            None => f.pad(&format!("type {}", self.0)),
        }
    }
}
