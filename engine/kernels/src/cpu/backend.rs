//! The device: weights, cache and programs behind [`Backend`].

use super::check::{Loaded, check_batch, check_segment, shape};
use super::kv::PagedKv;
use super::linear::{Products, Weight};
use super::program::{Device, Program};
use crate::blocks::BlockType;
use crate::pool::Pool;
use atlas_engine_core::DeviceError;
use atlas_engine_core::backend::{
    Backend, Batch, Caps, KvSpec, KvType, MemoryUse, ProgramId, RawTensor, StepOut,
};
use atlas_engine_core::program::{MaxShape, Op, Segment, WeightId};
use atlas_format::TensorType;

/// The processor as a device.
pub struct CpuBackend {
    pool: Pool,
    caps: Caps,
    weights: Vec<Weight>,
    kv: Option<PagedKv>,
    programs: Vec<Program>,
    products: Products,
    /// Weights that programs multiply with, the last one to be repacked first.
    put_off: Vec<WeightId>,
}

impl CpuBackend {
    /// A device that computes with this many threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn new(threads: usize) -> Result<Self, DeviceError> {
        Self::with(threads, Products::Repacked)
    }

    /// The same with products of f32, several times slower: what the others are compared with.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn exact(threads: usize) -> Result<Self, DeviceError> {
        Self::with(threads, Products::Exact)
    }

    /// Exact products of activations that were rounded to int8 blocks first, as slow: what cards are compared with,
    /// whose products with quantized weights take such blocks.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn rounded(threads: usize) -> Result<Self, DeviceError> {
        Self::with(threads, Products::Rounded)
    }

    fn with(threads: usize, products: Products) -> Result<Self, DeviceError> {
        let pool = Pool::new(threads).map_err(|error| DeviceError::Threads { reason: error.to_string() })?;
        let caps = Caps {
            name: "cpu".to_owned(),
            tensor_types: BlockType::ALL
                .into_iter()
                .chain(BlockType::OWN)
                .map(|block| TensorType::from_number(block.ggml()))
                .collect(),
            kv_types: vec![KvType::F32, KvType::F16, KvType::Q8_0],
            memory_bytes: None,
        };
        Ok(Self {
            pool,
            caps,
            weights: Vec::new(),
            kv: None,
            programs: Vec::new(),
            products,
            put_off: Vec::new(),
        })
    }

    fn loaded(&self) -> Loaded<'_> {
        Loaded { weights: &self.weights, kv: self.kv.as_ref() }
    }
}

impl Backend for CpuBackend {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn memory_use(&self) -> MemoryUse {
        MemoryUse {
            weights: self.weights.iter().map(Weight::byte_count).sum(),
            kv_cache: self.kv.as_ref().map_or(0, PagedKv::byte_count),
            scratch: self.programs.iter().map(Program::byte_count).sum(),
        }
    }

    fn load(&mut self, parts: &[RawTensor]) -> Result<WeightId, DeviceError> {
        let index = u32::try_from(self.weights.len());
        let index = index.map_err(|_| shape("weights", self.weights.len(), u32::MAX as usize))?;
        self.weights.push(Weight::load(parts, self.products, &self.caps.name)?);
        Ok(WeightId(index))
    }

    fn allocate_kv(&mut self, spec: &KvSpec) -> Result<(), DeviceError> {
        self.kv = Some(PagedKv::new(spec, &self.caps.name)?);
        Ok(())
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        let Some(kv) = &mut self.kv else { return Err(shape("KV caches", 0, 1)) };
        pairs.iter().try_for_each(|(from, to)| kv.copy(*from, *to))
    }

    fn compile(&mut self, segment: &Segment, max: &MaxShape) -> Result<ProgramId, DeviceError> {
        check_segment(segment, &self.loaded())?;
        let index = u32::try_from(self.programs.len());
        let index = index.map_err(|_| shape("programs", self.programs.len(), u32::MAX as usize))?;
        self.programs.push(Program::new(segment, max));
        // An embedding that no product needs stays where it is: a step reads a few rows of it.
        for op in segment.ops.iter().rev() {
            if let Op::Linear { weight, .. } | Op::Logits { weight, .. } = op
                && !self.put_off.contains(weight)
            {
                self.put_off.push(*weight);
            }
        }
        Ok(ProgramId(index))
    }

    fn settle(&mut self) -> Result<usize, DeviceError> {
        while let Some(id) = self.put_off.last() {
            let weight = &mut self.weights[id.0 as usize];
            let is_put_off = weight.is_put_off();
            weight.settle(&self.pool)?;
            self.put_off.pop();
            if is_put_off {
                break;
            }
        }
        Ok(self.put_off.len())
    }

    fn run(
        &mut self,
        program: ProgramId,
        batch: &Batch<'_>,
        handoff: Option<&[f32]>,
        out: &mut StepOut,
    ) -> Result<(), DeviceError> {
        let known = self.programs.len();
        let program = self.programs.get_mut(program.0 as usize);
        let program = program.ok_or_else(|| shape("a program's id", known, known))?;
        let loaded = Loaded { weights: &self.weights, kv: self.kv.as_ref() };
        check_batch(batch, handoff, program, &loaded)?;
        let device = Device { pool: &self.pool, weights: &self.weights, kv: self.kv.as_mut() };
        program.run(device, batch, handoff, out);
        Ok(())
    }
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
