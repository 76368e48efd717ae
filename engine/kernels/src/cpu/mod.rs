//! The CPU backend: runs op programs with repacked weights.
//!
//! `program` checks a segment once and runs it op by op, `linear` is every product with weights, `attend` reads the
//! paged cache of `kv` through block tables, `ops` is the rest. All of it keeps the row invariance of
//! [`atlas_engine_core::program`].

mod attend;
mod backend;
mod check;
mod kv;
mod linear;
mod ops;
mod program;
mod rows;

pub use backend::CpuBackend;
pub(crate) use ops::exp;
