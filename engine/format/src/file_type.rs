//! The name of a GGUF file's quantization, as people know it from file names.

use crate::{Gguf, MetadataError};

/// `general.file_type` of llama.cpp, for the types that people download.
const FILE_TYPES: &[(u32, &str)] = &[
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (25, "IQ4_NL"),
    (30, "IQ4_XS"),
    (32, "BF16"),
];

impl Gguf {
    /// Name of the file's quantization, such as `Q4_K_M`, where the header tells and it is a usual one.
    ///
    /// # Errors
    /// The header has something else there than a number.
    pub fn quantization(&self) -> Result<Option<&'static str>, MetadataError> {
        let number = self.u32("general.file_type")?;
        Ok(FILE_TYPES.iter().find(|(known, _)| Some(*known) == number).map(|(_, name)| *name))
    }
}
