//! What is held, how it stands, and what a message would change.

mod learned;
mod list;
mod preview;
mod rows;
mod shown;
mod status;

pub use learned::Learned;
pub(crate) use status::{SUCCESS, Standing};
