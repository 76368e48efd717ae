//! The only crate with `unsafe`: the memory map of a weight file, the thread pool, and the products and the attention
//! of the CPU backend, for AVX-512, AVX2 and any other processor, chosen at run time.
//!
//! [`CpuBackend`] runs op programs with them, [`hip`] does the same on AMD cards. It knows nothing of models.
//! Every `unsafe` block stands behind a safe function that checks what the block relies on.

mod blocks;
mod cpu;
pub mod hip;
mod int8;
mod lanes;
mod map;
mod pages;
mod partition;
pub mod peak;
mod pool;
mod product;
#[cfg(test)]
mod testing;

pub use blocks::{BlockType, NF4_VALUES};
pub use cpu::CpuBackend;
pub use int8::{Activations, Items, Operands, Output, PackError, Packed, RowWriter};
pub use map::MappedFile;
pub use pages::Pages;
pub use pool::{Awake, Pool};
pub use product::{ShapeError, Weights};
