//! What stands in for the HIP backend in a build without it: the same signatures, and no value.

use super::card::Card;
use super::error::HipError;
use super::options::Options;
use atlas_engine_core::backend::{
    Backend, Batch, Caps, DeviceError, KvSpec, MemoryUse, ProgramId, RawTensor, StepOut,
};
use atlas_engine_core::program::{MaxShape, Segment, WeightId};

/// A card that runs programs; there is none in this build.
pub enum HipBackend {}

impl HipBackend {
    /// Says that this build has no HIP backend.
    ///
    /// # Errors
    /// Always.
    pub fn open(_options: &Options) -> Result<Self, HipError> {
        Err(HipError::NotBuilt)
    }

    /// The card.
    #[must_use]
    pub fn card(&self) -> &Card {
        match *self {}
    }

    /// Steps so far that were replayed from a captured graph, over all programs.
    #[must_use]
    pub fn replayed_steps(&self) -> u64 {
        match *self {}
    }
}

/// Says that this build has no HIP backend.
///
/// # Errors
/// Always.
pub fn find(_options: &Options) -> Result<Card, HipError> {
    Err(HipError::NotBuilt)
}

/// The self-test; there is none in this build.
pub mod selftest {
    use super::{HipError, Options};
    pub use crate::hip::report::{Amount, Check, Machine, Speed, Work};

    /// Says that this build has no HIP backend.
    ///
    /// # Errors
    /// Always.
    pub fn run(_options: &Options, _seed: u64, _tell: &mut dyn FnMut(Check)) -> Result<Machine, HipError> {
        Err(HipError::NotBuilt)
    }

    /// Says that this build has no HIP backend.
    ///
    /// # Errors
    /// Always.
    pub fn measure(_options: &Options, _work: Work, _tell: &mut dyn FnMut(Speed)) -> Result<(), HipError> {
        Err(HipError::NotBuilt)
    }
}

impl Backend for HipBackend {
    fn caps(&self) -> &Caps {
        match *self {}
    }

    fn memory_use(&self) -> MemoryUse {
        match *self {}
    }

    fn load(&mut self, _parts: &[RawTensor]) -> Result<WeightId, DeviceError> {
        match *self {}
    }

    fn allocate_kv(&mut self, _spec: &KvSpec) -> Result<(), DeviceError> {
        match *self {}
    }

    fn copy_blocks(&mut self, _pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        match *self {}
    }

    fn compile(&mut self, _segment: &Segment, _max: &MaxShape) -> Result<ProgramId, DeviceError> {
        match *self {}
    }

    fn run(
        &mut self,
        _program: ProgramId,
        _batch: &Batch<'_>,
        _handoff: Option<&[f32]>,
        _out: &mut StepOut,
    ) -> Result<(), DeviceError> {
        match *self {}
    }
}
