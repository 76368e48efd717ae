//! Every kernel against its reference, on whatever device there is: a card, or the tests' stand-in.
//!
//! References are plain f64 sums over what the kernel reads (weights as the CPU backend dequantizes them, activations
//! as the card quantized them), so an error is the kernel's own. Tolerances stand beside the checks.

mod attention;
mod products;
mod random;
mod rows;
mod sample;
mod speed;

use super::arena::{Arena, Span};
use super::card::Card;
use super::device::Device;
use super::error::HipError;
use super::graph::Graph;
use super::kernels::Kernels;
use super::library::Library;
use super::options::Options;
use super::products::Blocks;
pub use super::report::{Amount, Check, Machine, Speed, Work};
use sample::Numbers;
pub use speed::measure;

/// Random shapes that each kind of kernel is checked in besides the tables'.
const RANDOM_SHAPES: u32 = 30;

/// Runs every check on the card and tells each result; the seed decides the random shapes.
///
/// # Errors
/// There is no card, or a call fails.
pub fn run(options: &Options, seed: u64, tell: &mut dyn FnMut(Check)) -> Result<Machine, HipError> {
    let card = Card::find(&options.root)?;
    card.check(&options.expected)?;
    let library = Library::open(options.library.as_deref())?;
    let name = library.name().to_owned();
    let device = Device::open(library, &card.gfx_target, options.step_timeout)?;
    let machine = Machine { card, name: device.name()?, library: name, runtime: device.runtime_version()? };
    let mut bench = Bench::new(device)?;
    products::check(&mut bench, tell)?;
    rows::check(&mut bench, tell)?;
    attention::check(&mut bench, tell)?;
    random::check(&mut bench, RANDOM_SHAPES, seed, tell)?;
    Ok(machine)
}

/// A device with memory that is given out anew for each check.
struct Bench {
    kernels: Kernels,
    memory: Memory,
    numbers: Numbers,
    device: Device,
}

/// Where operands lie.
enum Memory {
    /// Each in an allocation of its own, so that a memory checker sees what reaches beyond one.
    Apart(Vec<Arena>),
    /// All in one stretch, of which so many bytes are used.
    Together(Span, u64),
}

impl Bench {
    fn new(device: Device) -> Result<Self, HipError> {
        let kernels = Kernels::new(&device)?;
        Ok(Self { kernels, memory: Memory::Apart(Vec::new()), numbers: Numbers(7), device })
    }

    fn over(device: Device, whole: Span) -> Result<Self, HipError> {
        let kernels = Kernels::new(&device)?;
        Ok(Self { kernels, memory: Memory::Together(whole, 0), numbers: Numbers(7), device })
    }

    fn capture(&mut self, work: impl Fn(&Self) -> Result<(), HipError>) -> Result<Graph, HipError> {
        self.device.begin_capture()?;
        let worked = work(self);
        self.device.end_capture(worked)
    }

    /// Begins a check: the memory is free again.
    fn clear(&mut self) -> Result<(), HipError> {
        match &mut self.memory {
            Memory::Apart(held) => held.drain(..).try_for_each(|arena| arena.free(&mut self.device)),
            Memory::Together(_, used) => {
                *used = 0;
                Ok(())
            }
        }
    }

    fn empty(&mut self, bytes: usize) -> Result<Span, HipError> {
        let bytes = bytes as u64;
        match &mut self.memory {
            Memory::Apart(held) => {
                let mut arena = Arena::new(&mut self.device, bytes.max(1))?;
                let span = arena.take("a check's operand", bytes)?;
                held.push(arena);
                Ok(span)
            }
            Memory::Together(whole, used) => {
                let at = used.next_multiple_of(256);
                *used = at + bytes;
                whole.slice("a measurement's operand", at, bytes)
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<Span, HipError> {
        let span = self.empty(bytes.len())?;
        self.device.upload(bytes, span.at_least("an upload", bytes.len() as u64)?, &mut |_| {})?;
        Ok(span)
    }

    fn floats(&mut self, values: &[f32]) -> Result<Span, HipError> {
        self.bytes(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    fn words(&mut self, values: &[u32]) -> Result<Span, HipError> {
        self.bytes(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    }

    /// Room for f32, filled with NaNs, so that what a kernel leaves out shows.
    fn room(&mut self, count: usize) -> Result<Span, HipError> {
        self.floats(&vec![f32::NAN; count])
    }

    fn blocks(&mut self, rows: usize, k: usize, element_bytes: usize) -> Result<Blocks, HipError> {
        Ok(Blocks { elements: self.empty(rows * k * element_bytes)?, scales: self.room(rows * k / 32 * 2)? })
    }

    fn read(&mut self, span: Span, bytes: usize) -> Result<Vec<u8>, HipError> {
        let mut out = vec![0; bytes];
        self.device.download(span.at_least("a download", bytes as u64)?, &mut out)?;
        Ok(out)
    }

    fn read_floats(&mut self, span: Span, count: usize) -> Result<Vec<f32>, HipError> {
        let bytes = self.read(span, count * 4)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn read_words(&mut self, span: Span, count: usize) -> Result<Vec<u32>, HipError> {
        let bytes = self.read(span, count * 4)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// Activations that are on the card as q8: what they mean as numbers.
    fn read_q8(&mut self, blocks: Blocks, count: usize) -> Result<Vec<f64>, HipError> {
        let (elements, scales) =
            (self.read(blocks.elements, count)?, self.read_floats(blocks.scales, count / 16)?);
        let value = |(at, byte): (usize, &u8)| f64::from(*byte as i8) * f64::from(scales[at / 32 * 2]);
        Ok(elements.iter().enumerate().map(value).collect())
    }
}

/// The largest difference, relative to `scale` of each element; NaN where one is missing.
fn worst(found: &[f32], expected: impl Fn(usize) -> (f64, f64)) -> f64 {
    found.iter().enumerate().fold(0.0, |worst, (at, found)| {
        let (expected, scale) = expected(at);
        let error = (f64::from(*found) - expected).abs() / scale;
        // Not `max`, which would lose a NaN.
        if error <= worst { worst } else { error }
    })
}
