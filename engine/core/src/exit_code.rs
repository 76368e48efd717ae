//! The engine's exit codes: part of the contract with the operator, which turns each into a condition.

/// Why the process ends. The numbers are written in docs/contracts.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Stopped as asked.
    Success = 0,
    /// Anything that has no code of its own.
    Internal = 1,
    /// Wrong command line.
    Usage = 2,
    /// The model file is missing or could not be downloaded.
    ModelUnavailable = 10,
    /// The model file is corrupt, or of an unknown architecture or tokenizer.
    ModelInvalid = 11,
    /// The model file's sha256 is not the expected one.
    ChecksumMismatch = 12,
    /// Weights and KV cache exceed memory.
    DoesNotFit = 13,
    /// A listener's port is taken.
    PortInUse = 14,
    /// gfx target or VRAM is not the expected one.
    WrongCard = 20,
    /// No permission on the card's device files.
    NoPermission = 21,
    /// The HIP runtime or the HIP backend is missing.
    NoRuntime = 22,
    /// Work is queued and nothing moves.
    Hang = 30,
    /// The device is gone, or computes wrong values.
    Lost = 31,
    /// The device has less memory left than is needed, though enough where nobody else holds some.
    OutOfMemory = 32,
}

impl ExitCode {
    /// The number for the operating system.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}
