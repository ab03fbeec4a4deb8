//! One message on its way into the model.

use crate::goalstate::Message;
use crate::state::Origin;

/// One message on its way into the model.
#[derive(Debug)]
pub struct Run {
    pub(crate) message: Message,
    pub(crate) origin: Origin,
    pub(crate) now: u64,
    pub(crate) warnings: Vec<String>,
}

impl Run {
    /// Starts on a message; `now` is Unix time in seconds.
    #[must_use]
    pub fn new(message: Message, origin: Origin, now: u64) -> Self {
        Self { message, origin, now, warnings: Vec::new() }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Takes what is to be logged as warnings.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}
