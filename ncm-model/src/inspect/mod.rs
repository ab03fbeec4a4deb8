//! What is held, how it stands, and what a message would change.

mod list;
mod preview;
mod rows;
mod shown;
mod status;

pub(crate) use status::{SUCCESS, Standing};
