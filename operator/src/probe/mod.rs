//! Questions to gateways and engines, and the watch that every replica keeps over the gateways, leader or not.
//!
//! A gateway on a lost node keeps its endpoint for most of a minute, and deleting its pod takes the endpoint out within
//! half a second. `question` asks once, `views` holds what gateways said last, `silence` says (pure) which of them was silent
//! for too long, `judge` decides (pure) which of those is deleted, `claim` keeps two controllers from each deleting one, and
//! `prober` asks, listens and deletes.

mod claim;
mod judge;
mod prober;
mod question;
mod silence;
mod views;

pub use prober::GatewayProber;
pub use question::fetch_status;
#[cfg(test)]
pub use views::Switch;
pub use views::{GatewayEndpoint, GatewayModel, GatewayViews, HEALTHY};
