//! Reads what a planner needs of a model file that lies behind HTTP: its header, by ranges, and nothing of its data.
//!
//! It keeps what it read by address and ETag, connects to public addresses only unless told otherwise, and gives up
//! after a bounded time and a bounded number of bytes.
//! It never writes a file, and it knows nothing of Kubernetes.

mod ask;
mod cache;
mod error;
mod guard;
mod model;
mod prefix;
mod reader;
mod source;

pub use ask::{Ask, Pass, place_of};
pub use error::HeaderError;
pub use guard::{AddressRange, Forbidden, Guard, RangeError};
pub use model::read_file;
pub use reader::{Header, HeaderReader, Limits, Options};
