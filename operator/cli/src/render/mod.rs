//! Answers for people: pure functions from a report to text.

mod bench;
mod cards;
mod explain;
mod findings;
mod plan;
mod status;

pub use bench::render_bench;
pub use cards::render_cards;
pub use explain::render_node;
pub use findings::render_findings;
pub use plan::render_plan;
pub use status::render_status;
