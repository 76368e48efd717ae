//! What the HIP side refuses and where it fails.

use atlas_engine_core::{DeviceError, ExitCode};
use std::path::PathBuf;

/// Why a card cannot be used, or stopped working.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HipError {
    /// The program was built without kernels for cards.
    #[error("this build has no HIP backend; use the engine image for AMD cards, or --backend cpu")]
    NotBuilt,
    /// No HIP runtime can be loaded.
    #[error("cannot load the HIP runtime: {reason}; install ROCm 5, 6 or 7 (rocm-hip-runtime)")]
    Library {
        /// The loader's words, one a file that was tried.
        reason: String,
    },
    /// The HIP runtime is too old or broken.
    #[error("{library} has no function {symbol}: ROCm 5.2 or later is needed")]
    Symbol {
        /// The missing function.
        symbol: &'static str,
        /// The library.
        library: String,
    },
    /// The kernel driver is not loaded, or its device is not in the container.
    #[error("{path} is missing: load the amdgpu driver, or give the container the device (amd.com/gpu)")]
    NoDriver {
        /// The device file.
        path: PathBuf,
    },
    /// A device file may not be opened.
    #[error(
        "no permission on {path}: it needs group {group}; add it to supplementalGroups of the GpuProfile"
    )]
    Permission {
        /// The device file.
        path: PathBuf,
        /// Its group.
        group: u32,
    },
    /// The driver knows no card that this process may use.
    #[error("no AMD card is usable: {reason}")]
    NoCard {
        /// What was looked at.
        reason: String,
    },
    /// The card is not the one that was planned for.
    #[error("the card at {pci_address} is {found}, and --expect-gfx-target is {expected}")]
    WrongTarget {
        /// Which card.
        pci_address: String,
        /// Its target.
        found: String,
        /// The flag.
        expected: String,
    },
    /// The card has another amount of memory than was planned for.
    #[error("the card at {pci_address} has {found} bytes of VRAM, and --expect-vram-bytes is {expected}")]
    WrongVram {
        /// Which card.
        pci_address: String,
        /// Its memory.
        found: u64,
        /// The flag.
        expected: u64,
    },
    /// There are no kernels for the card.
    #[error("this build has no kernels for {found}; it has them for {built}")]
    UnknownTarget {
        /// The card's target.
        found: String,
        /// The targets in the build.
        built: String,
    },
    /// Memory is short.
    #[error("{what} needs {needed} bytes, and the card has {available} left")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// The card has less memory than is needed, whoever holds how much of it now.
    #[error("{what} needs {needed} bytes, and the whole card has {total}")]
    TooLarge {
        /// What was to be allocated.
        what: &'static str,
        /// Bytes.
        needed: u64,
        /// Bytes.
        total: u64,
    },
    /// A kernel was to be given less memory than its shapes need: a defect of this program.
    #[error("{what} has {found} bytes, and the shapes need {needed}")]
    Bounds {
        /// Which operand.
        what: &'static str,
        /// Its bytes.
        found: u64,
        /// Bytes.
        needed: u64,
    },
    /// A call of the runtime failed.
    #[error("{call} failed with {code} ({name})")]
    Call {
        /// The function.
        call: &'static str,
        /// Its error code.
        code: i32,
        /// The code's name.
        name: String,
    },
    /// The card does not finish a step.
    #[error("the card has not finished its work after {seconds} s")]
    Hung {
        /// How long was waited.
        seconds: u64,
    },
}

/// Codes after which nothing on the device works any more: no device, uncorrectable ECC, illegal address, launch
/// timeout and failure (hip_runtime_api.h, the same in HIP 5, 6 and 7).
const LOST: [i32; 6] = [100, 101, 214, 700, 702, 719];

/// `hipErrorOutOfMemory`.
pub(crate) const OUT_OF_MEMORY: i32 = 2;

impl HipError {
    /// The exit code of the contract.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::NotBuilt
            | Self::Library { .. }
            | Self::Symbol { .. }
            | Self::NoDriver { .. }
            | Self::NoCard { .. } => ExitCode::NoRuntime,
            Self::Permission { .. } => ExitCode::NoPermission,
            Self::WrongTarget { .. } | Self::WrongVram { .. } | Self::UnknownTarget { .. } => {
                ExitCode::WrongCard
            }
            Self::TooLarge { .. } => ExitCode::DoesNotFit,
            Self::OutOfMemory { .. } => ExitCode::OutOfMemory,
            Self::Call { code, .. } if *code == OUT_OF_MEMORY => ExitCode::OutOfMemory,
            Self::Call { code, .. } if LOST.contains(code) => ExitCode::Lost,
            Self::Bounds { .. } | Self::Call { .. } => ExitCode::Internal,
            Self::Hung { .. } => ExitCode::Hang,
        }
    }
}

impl From<HipError> for DeviceError {
    fn from(error: HipError) -> Self {
        match error {
            HipError::OutOfMemory { what, needed, available } => {
                Self::OutOfMemory { what, needed, available }
            }
            HipError::TooLarge { what, needed, total } => {
                Self::OutOfMemory { what, needed, available: total }
            }
            HipError::Call { call, code, .. } if code == OUT_OF_MEMORY => {
                Self::OutOfMemory { what: call, needed: 0, available: 0 }
            }
            HipError::Call { call, code, name } if LOST.contains(&code) => {
                Self::Lost { reason: format!("{call} failed with {code} ({name})") }
            }
            HipError::Call { call, code, name } => Self::Call { call, code, name },
            HipError::Bounds { what, found, needed } => {
                let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
                Self::Shape { what, found: size(found), expected: size(needed) }
            }
            HipError::Hung { seconds } => Self::Hung { seconds },
            other => Self::Lost { reason: other.to_string() },
        }
    }
}
