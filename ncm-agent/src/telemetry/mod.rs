//! What the agent counts and measures about itself and the packet path, for metrics and tools alike.

mod families;
pub mod flows;
pub mod log;
pub mod own;
pub mod prometheus;

pub use families::{Family, Sample, packet_path};
