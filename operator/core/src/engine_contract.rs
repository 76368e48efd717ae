//! What an engine's exit code means: the condition it becomes, the reason and the remedy.
//!
//! The engine has its own list; a test that sees both fails when they drift (`docs/contracts.md` is the text).

use atlas_crds::{ModelCondition, profile::CardError};

/// Starts after which memory that is short each time is taken for too little.
const REPEATED: i32 = 3;

/// An exit code of the engine that tells why it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EngineExit {
    /// Anything without a code of its own.
    Internal,
    /// Wrong command line.
    Usage,
    /// The model file is missing or its download failed.
    ModelUnavailable,
    /// Corrupt file, unknown architecture or tokenizer.
    ModelInvalid,
    /// The file's sha256 is not the expected one.
    ChecksumMismatch,
    /// Weights and KV cache exceed the memory.
    DoesNotFit,
    /// A listener's port is taken.
    PortInUse,
    /// Another card than the profile's.
    WrongCard,
    /// `/dev/kfd` may not be opened.
    NoPermission,
    /// The HIP runtime or backend is missing.
    NoRuntime,
    /// Work was queued and nothing progressed.
    Hang,
    /// The device is gone, or computes wrong values.
    Lost,
    /// The device had less memory left than was needed.
    OutOfMemory,
}

impl EngineExit {
    /// Every code.
    pub const ALL: [Self; 13] = [
        Self::Internal,
        Self::Usage,
        Self::ModelUnavailable,
        Self::ModelInvalid,
        Self::ChecksumMismatch,
        Self::DoesNotFit,
        Self::PortInUse,
        Self::WrongCard,
        Self::NoPermission,
        Self::NoRuntime,
        Self::Hang,
        Self::Lost,
        Self::OutOfMemory,
    ];

    /// The process's exit code.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::ModelUnavailable => 10,
            Self::ModelInvalid => 11,
            Self::ChecksumMismatch => 12,
            Self::DoesNotFit => 13,
            Self::PortInUse => 14,
            Self::WrongCard => 20,
            Self::NoPermission => 21,
            Self::NoRuntime => 22,
            Self::Hang => 30,
            Self::Lost => 31,
            Self::OutOfMemory => 32,
        }
    }

    /// Reads an exit code; `None` for a stop as asked (0). Codes that nobody named, such as 137 for a kill, are
    /// [`EngineExit::Internal`].
    #[must_use]
    pub fn from_code(code: i32) -> Option<Self> {
        (code != 0).then(|| Self::ALL.into_iter().find(|exit| exit.code() == code).unwrap_or(Self::Internal))
    }

    /// How the card failed, where the card did.
    #[must_use]
    pub const fn card_error(self) -> Option<CardError> {
        match self {
            Self::Hang => Some(CardError::Hang),
            Self::Lost => Some(CardError::Lost),
            Self::Internal
            | Self::Usage
            | Self::ModelUnavailable
            | Self::ModelInvalid
            | Self::ChecksumMismatch
            | Self::DoesNotFit
            | Self::PortInUse
            | Self::WrongCard
            | Self::NoPermission
            | Self::NoRuntime
            | Self::OutOfMemory => None,
        }
    }

    /// What it is after so many starts: memory that is short every time is too little.
    #[must_use]
    pub const fn after_restarts(self, restarts: i32) -> Self {
        match self {
            Self::OutOfMemory if restarts >= REPEATED => Self::DoesNotFit,
            other => other,
        }
    }

    /// The condition that becomes `False`.
    #[must_use]
    pub const fn condition(self) -> ModelCondition {
        match self {
            Self::ModelUnavailable | Self::ModelInvalid | Self::ChecksumMismatch => {
                ModelCondition::ModelCached
            }
            Self::DoesNotFit | Self::OutOfMemory => ModelCondition::VramFits,
            Self::WrongCard | Self::NoPermission => ModelCondition::Scheduled,
            Self::Internal | Self::Usage | Self::PortInUse | Self::NoRuntime | Self::Hang | Self::Lost => {
                ModelCondition::Progressing
            }
        }
    }

    /// The reason of that condition.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Internal | Self::Usage => "EngineFailed",
            Self::ModelUnavailable => "ModelUnavailable",
            Self::ModelInvalid => "ModelInvalid",
            Self::ChecksumMismatch => "ChecksumMismatch",
            Self::DoesNotFit => "DoesNotFit",
            Self::PortInUse => "PortInUse",
            Self::WrongCard => "WrongCard",
            Self::NoPermission => "NoPermission",
            Self::NoRuntime => "NoRuntime",
            Self::Hang => "EngineHung",
            Self::Lost => "GpuLost",
            Self::OutOfMemory => "OutOfMemory",
        }
    }

    /// What a person does about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Internal => "see `kubectl logs --previous` of the pod",
            Self::Usage => {
                "check engine.extraArgs of the tier, and that engine image and operator are of one release"
            }
            Self::ModelUnavailable => "check model.source of the tier and that its nodes can reach it",
            Self::ModelInvalid => {
                "use a GGUF file of a supported architecture; a broken download is fetched anew after the file is removed"
            }
            Self::ChecksumMismatch => {
                "check model.sha256 of the tier against the publisher's; the file is not served"
            }
            Self::DoesNotFit => "lower contextTokens or maxBatch of the tier, or use a smaller quantization",
            Self::PortInUse => {
                "another process of the node uses the port: do not run engines with hostNetwork"
            }
            Self::WrongCard => "check match of the tier's GpuProfile against the node's labels and its card",
            Self::NoPermission => "add the group id named above to supplementalGroups of the GpuProfile",
            Self::NoRuntime => "use the engine-hip image for a profile with backend Hip",
            Self::Hang => {
                "the GPU made no progress: the engine is started again, and after a second time within the hour its node is left alone for a while; see the node's kernel log for amdgpu resets"
            }
            Self::Lost => {
                "the GPU is gone or computes wrong values: the engine is started again, and after a second time within the hour its node is left alone for a while; see the node's kernel log, and the card's power, heat and slot"
            }
            Self::OutOfMemory => {
                "the card is at no fault: lower contextTokens or maxBatch of the tier, or end what else holds the card's memory"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_short_again_and_again_is_too_little_and_marks_no_card() {
        for (restarts, expected) in
            [(0, EngineExit::OutOfMemory), (2, EngineExit::OutOfMemory), (3, EngineExit::DoesNotFit)]
        {
            assert_eq!(EngineExit::OutOfMemory.after_restarts(restarts), expected, "{restarts}");
        }
        assert_eq!(EngineExit::Hang.after_restarts(9), EngineExit::Hang);
        let marked: Vec<_> = EngineExit::ALL.into_iter().filter(|exit| exit.card_error().is_some()).collect();
        assert_eq!(marked, [EngineExit::Hang, EngineExit::Lost]);
    }

    #[test]
    fn codes_read_back_and_unknown_ones_are_internal() {
        for exit in EngineExit::ALL {
            assert_eq!(EngineExit::from_code(exit.code()), Some(exit));
        }
        assert_eq!(EngineExit::from_code(0), None);
        assert_eq!(EngineExit::from_code(137), Some(EngineExit::Internal));
    }
}
