//! The dataplane's tables in readable form: every key and value decoded into named columns, numbered things shown by
//! the names that the table of names keeps. The agent's inspection service and the tool (which reads the pinned
//! tables itself while no agent runs) share this, as do the generated documents.

mod columns;
mod describe;
pub mod documents;
mod flows;
mod keys;
mod names;
mod policy;
pub mod read;
mod values;

pub use columns::{KeyError, Value};
pub use describe::{Description, describe, descriptions};
pub use flows::{idle_ticks, state_text as flow_state_text};
pub use names::Names;
