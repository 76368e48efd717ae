//! AMD cards: the HIP runtime behind `dlopen`, kernels compiled ahead, and the backend trait on top of them.
//!
//! With feature `hip` off nothing of it is compiled but the card's identity and health, and the rest says so.
//!
//! | file | what it is |
//! |---|---|
//! | `card` | which card this is and how it is, from the driver's files |
//! | `ffi`, `library` | the runtime's functions, declared by hand, found at run time |
//! | `device`, `transfer`, `graph` | one card, its stream, memory, modules; copies and waits; captured launches |
//! | `arena` | the one allocation |
//! | `format`, `kernels` | what formats and kernels there are |
//! | `products`, `rows`, `attention` | launches, each after a check of its operands |
//! | `predict/` | how long decoding should take, from the compiled kernels |
//! | `selftest/` | every kernel against its reference, on whatever device there is |
//! | `backend/` | weights, KV cache, compiled programs, steps |

mod card;
mod error;
mod options;
pub mod predict;
mod report;
mod sizes;

#[cfg(feature = "hip")]
mod arena;
#[cfg(feature = "hip")]
mod attention;
#[cfg(feature = "hip")]
mod backend;
#[cfg(feature = "hip")]
mod device;
#[cfg(feature = "hip")]
mod ffi;
#[cfg(feature = "hip")]
mod format;
#[cfg(feature = "hip")]
mod graph;
#[cfg(feature = "hip")]
mod kernels;
#[cfg(feature = "hip")]
mod library;
#[cfg(feature = "hip")]
mod products;
#[cfg(feature = "hip")]
mod rows;
#[cfg(feature = "hip")]
pub mod selftest;
#[cfg(feature = "hip")]
mod transfer;

#[cfg(not(feature = "hip"))]
mod off;

pub use card::{Card, Expected, Health};
pub use error::HipError;
pub use options::Options;
pub use sizes::Sizes;

#[cfg(feature = "hip")]
pub use backend::{HipBackend, find};
#[cfg(not(feature = "hip"))]
pub use off::{HipBackend, find, selftest};

/// The compiler that made this build's kernels, and the folder of their code objects: for the tests.
#[cfg(feature = "hip")]
pub const BUILT: (&str, &str) = (env!("ATLAS_HIP_COMPILER"), env!("ATLAS_HIP_OBJECTS"));
