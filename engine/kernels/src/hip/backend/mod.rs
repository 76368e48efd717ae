//! The backend trait on a card: weights as in the file, one arena, programs as lists of launches.
//!
//! Row invariance (see `atlas_engine_core::program`) holds among steps of at most eight rows, and of at most sixteen where
//! each sequence has one, which take the matrix-vector and split-KV kernels, and among steps of more than sixteen, which
//! take WMMA; between the two, a row's bits differ within the stated tolerance, because the sums over k are cut
//! differently.

mod compile;
mod inputs;
mod load;
mod lower;
mod run;

use super::arena::{Arena, Span};
use super::card::Card;
use super::device::{Device, Pinned, known_target};
use super::error::HipError;
use super::format::Format;
use super::kernels::{Cache, Kernels};
use super::library::Library;
use super::options::Options;
use super::products::Matrix;
use atlas_engine_core::backend::{
    Backend, Batch, Caps, DeviceError, KvSpec, KvType, MemoryUse, ProgramId, RawTensor, StepOut,
};
use atlas_engine_core::program::{MaxShape, Segment, WeightId};
use compile::Program;

/// Pairs of blocks that one launch copies at most.
const PAIRS: usize = 256;

/// A loaded weight.
enum Weight {
    /// Rows of one or several formats, one part after the other.
    Matrix { parts: Vec<Matrix>, n: u32, k: u32 },
    /// f32.
    Vector { span: Span, n: u32 },
}

/// The KV cache: for each layer keys, then values, each `[blocks, kv_heads]` heads of 16 positions.
struct Kv {
    spec: KvSpec,
    cache: Cache,
    span: Span,
    plane_bytes: u64,
    pairs: Span,
    pairs_host: Pinned,
}

impl Kv {
    fn plane(&self, layer: u16, values: bool) -> Option<Span> {
        let index = layer.checked_sub(self.spec.layers.start)?;
        (index < self.spec.layers.len() as u16)
            .then(|| self.span.after((u64::from(index) * 2 + u64::from(values)) * self.plane_bytes))
    }
}

/// A card that runs programs.
pub struct HipBackend {
    // Before the device: graphs belong to it, and it goes last.
    programs: Vec<Program>,
    weights: Vec<Weight>,
    kv: Option<Kv>,
    arena: Arena,
    kernels: Kernels,
    caps: Caps,
    memory: MemoryUse,
    card: Card,
    use_graphs: bool,
    device: Device,
}

impl HipBackend {
    /// Finds the card, compares it with the flags, loads the runtime and the kernels, and takes the memory.
    ///
    /// # Errors
    /// Any of it fails; the error's exit code is the contract's.
    pub fn open(options: &Options) -> Result<Self, HipError> {
        let Options { root, library, expected, arena_bytes, spare_bytes, step_timeout, graphs } = options;
        let card = Card::find(root)?;
        card.check(expected)?;
        let library = Library::open(library.as_deref())?;
        let mut device = Device::open(library, &card.gfx_target, *step_timeout)?;
        let address = device.pci_address()?;
        if address != card.pci_address {
            let reason = format!(
                "the driver's first usable card is {}, and the HIP runtime's is {address}; give the container one",
                card.pci_address
            );
            return Err(HipError::NoCard { reason });
        }
        let (free, total) = device.memory()?;
        let available = free.saturating_sub(*spare_bytes);
        let bytes = arena_bytes.unwrap_or(available);
        if bytes > total.saturating_sub(*spare_bytes) {
            return Err(HipError::TooLarge { what: "the model", needed: bytes, total });
        }
        if bytes > available {
            return Err(HipError::OutOfMemory { what: "the model", needed: bytes, available });
        }
        let kernels = Kernels::new(&device)?;
        let arena = Arena::new(&mut device, bytes)?;
        let caps = Caps {
            name: card.gfx_target.clone(),
            tensor_types: Format::ALL.into_iter().map(Format::tensor_type).collect(),
            kv_types: vec![KvType::F16, KvType::Q8_0],
            memory_bytes: Some(bytes),
        };
        Ok(Self {
            programs: Vec::new(),
            weights: Vec::new(),
            kv: None,
            arena,
            kernels,
            caps,
            memory: MemoryUse::default(),
            card,
            use_graphs: *graphs && device.has_graphs(),
            device,
        })
    }

    /// The card.
    #[must_use]
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Steps so far that were replayed from a captured graph, over all programs.
    #[must_use]
    pub fn replayed_steps(&self) -> u64 {
        self.programs.iter().map(Program::replayed).sum()
    }
}

/// The card that [`HipBackend::open`] would take, after a look at everything that takes no memory.
///
/// # Errors
/// No card, no permission, another card than planned, no runtime, or no kernels for the card.
pub fn find(options: &Options) -> Result<Card, HipError> {
    let card = Card::find(&options.root)?;
    card.check(&options.expected)?;
    known_target(&card.gfx_target)?;
    Library::open(options.library.as_deref())?;
    Ok(card)
}

impl Backend for HipBackend {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn memory_use(&self) -> MemoryUse {
        self.memory
    }

    fn load(&mut self, parts: &[RawTensor]) -> Result<WeightId, DeviceError> {
        self.load_weight(parts, &mut |_| {})
    }

    fn load_telling(
        &mut self,
        parts: &[RawTensor],
        moved: &mut dyn FnMut(u64),
    ) -> Result<WeightId, DeviceError> {
        self.load_weight(parts, moved)
    }

    fn allocate_kv(&mut self, spec: &KvSpec) -> Result<(), DeviceError> {
        self.make_kv(spec)
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), DeviceError> {
        self.copy_pairs(pairs)
    }

    fn compile(&mut self, segment: &Segment, max: &MaxShape) -> Result<ProgramId, DeviceError> {
        let program = self.compile_segment(segment, max)?;
        self.programs.push(program);
        Ok(ProgramId(self.programs.len() as u32 - 1))
    }

    fn run(
        &mut self,
        program: ProgramId,
        batch: &Batch<'_>,
        handoff: Option<&[f32]>,
        out: &mut StepOut,
    ) -> Result<(), DeviceError> {
        self.run_step(program, batch, handoff, out)
    }
}

fn shape(what: &'static str, found: usize, expected: usize) -> DeviceError {
    DeviceError::Shape { what, found, expected }
}
