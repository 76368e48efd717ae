//! What a device must do: load weights, keep a KV cache, compile programs and run them.
//!
//! The one seam between the serving core and processors or cards. The worker thread owns the backend and calls it
//! one call at a time; a call returns when its work is done.

use crate::exit_code::ExitCode;
use crate::program::{MaxShape, Segment, WeightId};
use atlas_format::TensorType;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// What holds shared bytes.
pub trait SharedOwner: AsRef<[u8]> + Send + Sync {
    /// Takes note that nobody will read this range soon; its contents stay the same.
    fn release(&self, _range: Range<usize>) {}
}

impl SharedOwner for Vec<u8> {}

/// Bytes that outlive the call that passes them: a range of a memory map, or of a buffer.
///
/// A backend that computes on them where they lie keeps a clone; one that repacks or uploads them releases and drops
/// it.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn SharedOwner>,
    range: Range<usize>,
}

impl SharedBytes {
    /// A range of what `owner` holds; `None` where it ends before the range does.
    pub fn new(owner: Arc<dyn SharedOwner>, range: Range<usize>) -> Option<Self> {
        let inside = (*owner).as_ref().get(range.clone()).is_some();
        inside.then_some(Self { owner, range })
    }

    /// Says that nobody will read this part of them soon, so that a map's pages need not stay in memory.
    ///
    /// # Panics
    /// There is no such part.
    pub fn release(&self, part: Range<usize>) {
        assert!(part.start <= part.end && part.end <= self.len(), "{part:?} of {} bytes", self.len());
        self.owner.release(self.range.start + part.start..self.range.start + part.end);
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({} bytes)", self.len())
    }
}

/// A weight as it lies in a file: `rows` rows of `columns` elements, row after row, in ggml's block layout.
#[derive(Debug, Clone)]
pub struct RawTensor {
    /// The name, for messages.
    pub name: String,
    /// Element type.
    pub tensor_type: TensorType,
    /// Rows; a vector has one row an element.
    pub rows: usize,
    /// Elements a row; a vector has one.
    pub columns: usize,
    /// Exactly the bytes of the shape.
    pub bytes: SharedBytes,
}

/// How the KV cache stores an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, rounded to nearest even.
    F16,
    /// ggml's Q8_0: 32 elements share one f16 scale; a head's size must be a multiple of 32.
    Q8_0,
}

impl KvType {
    /// Bytes of one head of one position; `None` where the head is no whole number of blocks.
    #[must_use]
    pub fn head_bytes(self, head_size: usize) -> Option<usize> {
        match self {
            Self::F32 => Some(head_size * 4),
            Self::F16 => Some(head_size * 2),
            Self::Q8_0 => head_size.is_multiple_of(32).then_some(head_size / 32 * 34),
        }
    }
}

/// The KV cache of one device. Block ids mean the same positions on all devices of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers that are cached here.
    pub layers: Range<u16>,
    /// Key heads a layer.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_size: usize,
    /// Element type.
    pub kv_type: KvType,
    /// Blocks of [`crate::program::BLOCK_TOKENS`] positions.
    pub blocks: u32,
}

impl KvSpec {
    /// Bytes of one block over all layers; `None` where the head size does not go with the type.
    #[must_use]
    pub fn block_bytes(&self) -> Option<u64> {
        let head = self.kv_type.head_bytes(self.head_size)? as u64;
        let positions = crate::program::BLOCK_TOKENS as u64;
        Some(head * positions * 2 * self.kv_heads as u64 * self.layers.len() as u64)
    }
}

/// One step's input. T rows, S sequences, R logit rows, H hidden rows.
///
/// A sequence's rows stand together and ascend in position; every row's slot is in the sequence's own block table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Token ids, `[T]`.
    pub ids: &'a [u32],
    /// Positions, `[T]`.
    pub positions: &'a [u32],
    /// Where keys and values go: `block * BLOCK_TOKENS + position % BLOCK_TOKENS`, `[T]`.
    pub slots: &'a [u32],
    /// First row of each sequence, and T, `[S + 1]`.
    pub seq_start: &'a [u32],
    /// Positions that the cache holds after this step, `[S]`.
    pub context: &'a [u32],
    /// Block tables, `[S, blocks_per_sequence]`; entries beyond a sequence's context mean nothing.
    pub blocks: &'a [u32],
    /// Columns of `blocks`.
    pub blocks_per_sequence: usize,
    /// Rows whose logits are wanted, ascending, `[R]`.
    pub logit_rows: &'a [u32],
    /// Rows whose normed hidden states are wanted, ascending, `[H]`.
    pub hidden_rows: &'a [u32],
}

impl Batch<'_> {
    /// T.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// S.
    #[must_use]
    pub fn sequences(&self) -> usize {
        self.context.len()
    }
}

/// One step's results; kept by the caller, so that its memory is used again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOut {
    /// `[R, vocabulary]`.
    pub logits: Vec<f32>,
    /// `[H, d]`.
    pub hidden: Vec<f32>,
    /// `[T, d]` of a segment with an output; empty otherwise.
    pub handoff: Vec<f32>,
}

/// What a device is and can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// `cpu`, or the card's gfx target.
    pub name: String,
    /// Weight types that it computes with.
    pub tensor_types: Vec<TensorType>,
    /// KV cache types that it keeps.
    pub kv_types: Vec<KvType>,
    /// Memory for weights, cache and scratch, where it has its own.
    pub memory_bytes: Option<u64>,
}

/// Memory that a backend holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Weights.
    pub weights: u64,
    /// KV cache.
    pub kv_cache: u64,
    /// Activations and what the device needs besides.
    pub scratch: u64,
}

/// A compiled segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProgramId(pub u32);

/// A device that runs programs.
///
/// The order of calls: `load` for every weight, `allocate_kv` once, `compile` for every segment, then `run` and
/// `copy_blocks` for as long as the process lives, and `settle` until nothing is left to do. Nothing else allocates
/// after `compile`.
pub trait Backend: Send {
    /// What the device is and can do.
    fn caps(&self) -> &Caps;

    /// Memory held now.
    fn memory_use(&self) -> MemoryUse;

    /// Takes a weight; several parts of equal columns become one weight, row after row. Parts may have several types.
    ///
    /// # Errors
    /// A type that the device does not compute with, bytes that do not fit the shape, or no memory.
    fn load(&mut self, parts: &[RawTensor]) -> Result<WeightId, DeviceError>;

    /// The same, and `moved` hears of so many bytes more whenever some have arrived on the device.
    ///
    /// # Errors
    /// As [`Self::load`].
    fn load_telling(
        &mut self,
        parts: &[RawTensor],
        moved: &mut dyn FnMut(u64),
    ) -> Result<WeightId, DeviceError> {
        let weight = self.load(parts)?;
        moved(parts.iter().map(|part| part.bytes.len() as u64).sum());
        Ok(weight)
    }

    /// Makes the KV cache.
    ///
    /// # Errors
    /// A type that the device does not keep, or no memory.
    fn allocate_kv(&mut self, spec: &KvSpec) -> Result<(), DeviceError>;

    /// Copies whole blocks of the cache, all layers, from the first to the second of each pair.
    ///
    /// # Errors
    /// The device fails.
    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), DeviceError>;

    /// Makes a segment ready to run with steps of at most this shape.
    ///
    /// # Errors
    /// An op that the device does not know, shapes that contradict each other, or no memory.
    fn compile(&mut self, segment: &Segment, max: &MaxShape) -> Result<ProgramId, DeviceError>;

    /// Does the next piece of what loading put off, such as laying a weight out for fast products; the answer is how
    /// many pieces are left, 0 from the start where a device puts nothing off. Steps compute the same before, between
    /// and after, only more slowly as long as pieces are left.
    ///
    /// # Errors
    /// No memory.
    fn settle(&mut self) -> Result<usize, DeviceError> {
        Ok(0)
    }

    /// Computes a step. `handoff` is the `[T, d]` of the segment before, where the segment has an input.
    ///
    /// # Errors
    /// The batch is larger than the program was compiled for, or the device fails.
    fn run(
        &mut self,
        program: ProgramId,
        batch: &Batch<'_>,
        handoff: Option<&[f32]>,
        out: &mut StepOut,
    ) -> Result<(), DeviceError>;
}

/// Why a device refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Memory is short.
    #[error("{what} needs {needed} bytes, and the device has {available} left")]
    OutOfMemory {
        /// What was to be allocated.
        what: &'static str,
        /// Bytes.
        needed: u64,
        /// Bytes.
        available: u64,
    },
    /// The device has no kernel for a tensor's type.
    #[error("tensor {name:?} has the type {tensor_type}, which the {device} backend cannot compute with")]
    TensorType {
        /// The tensor.
        name: String,
        /// Its type.
        tensor_type: TensorType,
        /// The device.
        device: String,
    },
    /// The device does not keep a KV cache of this type with this head size.
    #[error("the {device} backend cannot keep a KV cache of {kv_type:?} with heads of {head_size}")]
    KvType {
        /// The type.
        kv_type: KvType,
        /// Elements a head.
        head_size: usize,
        /// The device.
        device: String,
    },
    /// Sizes that contradict each other: a defect of the caller, found before anything is computed.
    #[error("{what}: {found} where {expected} is expected")]
    Shape {
        /// What is off.
        what: &'static str,
        /// What was passed.
        found: usize,
        /// What goes with the rest.
        expected: usize,
    },
    /// The compute threads could not be started.
    #[error("cannot start the compute threads: {reason}")]
    Threads {
        /// The operating system's words.
        reason: String,
    },
    /// A call to the device's runtime failed.
    #[error("{call} failed with {code} ({name})")]
    Call {
        /// The function.
        call: &'static str,
        /// Its error code.
        code: i32,
        /// The code's name.
        name: String,
    },
    /// The device does not finish a step.
    #[error("the device has not finished a step after {seconds} s")]
    Hung {
        /// How long was waited.
        seconds: u64,
    },
    /// The device is gone: reset, unplugged or fallen off the bus.
    #[error("the device is lost: {reason}")]
    Lost {
        /// What showed it.
        reason: String,
    },
    /// The device answers, with other values than it computed before.
    #[error("the device computes wrong values: {reason}")]
    Unsound {
        /// What showed it.
        reason: String,
    },
}

impl DeviceError {
    /// The exit code of a process that ends for this.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::OutOfMemory { .. } => ExitCode::OutOfMemory,
            Self::TensorType { .. } | Self::Shape { .. } => ExitCode::ModelInvalid,
            Self::KvType { .. } => ExitCode::Usage,
            Self::Hung { .. } => ExitCode::Hang,
            Self::Lost { .. } | Self::Unsound { .. } => ExitCode::Lost,
            Self::Threads { .. } | Self::Call { .. } => ExitCode::Internal,
        }
    }
}
