//! A model that is as it was, from the bytes that [`super::held`] makes.

use std::net::Ipv6Addr;
use std::sync::LazyLock;

use prost::encoding::decode_varint;

use super::held::TOMBSTONE;
use crate::apply::{Outcome, Request};
use crate::goalstate::Message;
use crate::goalstate::neighbour_view::{self, split_state};
use crate::model::Model;
use crate::run::Run;
use crate::state::Origin;
use crate::wire::{NeighborConfiguration, NeighborState, OperationType, ResourceType};

/// Why the bytes make no model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(String);

fn error(text: impl Into<String>) -> RestoreError {
    RestoreError(text.into())
}

/// Reads what was put.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn number(&mut self) -> Result<u64, RestoreError> {
        decode_varint(&mut self.0).map_err(|_| error("a number is cut off"))
    }

    fn byte(&mut self) -> Result<u8, RestoreError> {
        let (first, rest) = self.0.split_first().ok_or_else(|| error("a number is cut off"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn bytes(&mut self) -> Result<&'a [u8], RestoreError> {
        let length = usize::try_from(self.number()?).map_err(|_| error("a length is out of range"))?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(|| error("a state is cut off"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, RestoreError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| error("an id is no text"))
    }

    fn head(&mut self) -> Result<(u64, Request), RestoreError> {
        let (version, now) = (self.number()?, self.number()?);
        let origin = match self.byte()? {
            0 => Origin::Controller,
            1 => Origin::Tool,
            2 => Origin::OnDemand,
            3 => Origin::Queue,
            other => return Err(error(format!("an origin is {other}"))),
        };
        Ok((version, Request { origin, now }))
    }
}

static NOTHING: LazyLock<Option<Message>> = LazyLock::new(|| Message::decode_v2(bytes::Bytes::new()).ok());

impl Model {
    /// Takes up neighbours again.
    ///
    /// # Errors
    ///
    /// The bytes are none of [`Model::held_neighbours`].
    pub fn restore_neighbours(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        // One that went after it was written has its tombstone already, and must not take it away.
        let known = std::mem::take(&mut self.tombstones);
        let restored = self.restore_each_neighbour(Bytes(bytes));
        self.tombstones = known;
        restored
    }

    fn restore_each_neighbour(&mut self, mut bytes: Bytes<'_>) -> Result<(), RestoreError> {
        while !bytes.0.is_empty() {
            let (version, request) = bytes.head()?;
            let state = bytes.bytes()?;
            let (operation, configuration) =
                split_state(state).map_err(|_| error("a neighbour cannot be read"))?;
            let view = neighbour_view::read(operation, configuration.as_deref())
                .map_err(|_| error("a neighbour cannot be read"))?;
            let l3 = view.first.is_some_and(|fixed| fixed.neighbor_type == 1);
            if self.find_neighbour(view.id, l3).is_some() {
                self.restore_gone(view.id, l3);
            }
            self.restored(version, |model| model.apply_neighbour(&view, request), view.id)?;
        }
        self.dirty_ip.clear();
        self.dirty_mac.clear();
        Ok(())
    }

    /// Neighbours went after they were written.
    ///
    /// # Errors
    ///
    /// The bytes are none of [`Model::gone_neighbours`].
    pub fn restore_gone_neighbours(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut bytes = Bytes(bytes);
        while !bytes.0.is_empty() {
            let l3 = bytes.byte()? != 0;
            self.restore_gone(bytes.text()?, l3);
        }
        Ok(())
    }

    fn restore_gone(&mut self, id: &str, l3: bool) {
        let Some(slot) = self.find_neighbour(id, l3) else { return };
        let configuration = self.neighbour_configuration(&self.neighbours[slot]);
        let configuration = Some(NeighborConfiguration { revision_number: 0, ..configuration });
        let state = NeighborState { operation_type: OperationType::Delete as i32, configuration };
        let state = prost::Message::encode_to_vec(&state);
        // It was made of this model.
        if let Ok((operation, configuration)) = split_state(&state)
            && let Ok(view) = neighbour_view::read(operation, configuration.as_deref())
        {
            // Of its deletion the tombstones tell, not this.
            let known = std::mem::take(&mut self.tombstones);
            let _outcome = self.apply_neighbour(&view, Request { origin: Origin::Controller, now: 0 });
            self.tombstones = known;
        }
    }

    /// Takes up everything else again.
    ///
    /// # Errors
    ///
    /// The bytes are none of [`Model::held_others`].
    pub fn restore_others(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let mut bytes = Bytes(bytes);
        while !bytes.0.is_empty() {
            let resource = bytes.byte()?;
            if resource == TOMBSTONE {
                let (kind, revision, buried) = (bytes.byte()?, bytes.number()?, bytes.number()?);
                let id = bytes.text()?;
                let revision = u32::try_from(revision).map_err(|_| error("a revision is out of range"))?;
                self.tombstones.bury(kind, id, revision, buried, usize::MAX);
                continue;
            }
            let resource = ResourceType::try_from(i32::from(resource))
                .map_err(|_| error(format!("there is no type of resource {resource}")))?;
            let (version, request) = bytes.head()?;
            let (state, more) = (bytes.bytes()?, bytes.bytes()?);
            let message = NOTHING.clone().ok_or_else(|| error("an empty message cannot be read"))?;
            let mut run = Run::new(message, request.origin, request.now);
            for learned in more.chunks_exact(22) {
                let (address, mac) = learned.split_at(16);
                let address: [u8; 16] = address.try_into().unwrap_or_default();
                let mac: [u8; 6] = mac.try_into().unwrap_or_default();
                run.next_hops.insert(Ipv6Addr::from(address).to_canonical(), vec![(String::new(), mac)]);
            }
            let (id, _) = crate::run::head(resource, state);
            self.restored(version, |model| model.apply_state(resource, state, &run), &id)?;
        }
        Ok(())
    }

    /// The version of all that was restored.
    ///
    /// # Errors
    ///
    /// The bytes are none of [`Model::held_version`].
    pub fn restore_version(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let bytes = bytes.try_into().map_err(|_| error("the version is cut off"))?;
        self.version = u64::from_le_bytes(bytes);
        self.recent.begin(self.version);
        self.settle_replayed();
        Ok(())
    }

    /// Has the next change get a version, and sees to it that there is one.
    fn restored(
        &mut self,
        version: u64,
        apply: impl FnOnce(&mut Self) -> Outcome,
        id: &str,
    ) -> Result<(), RestoreError> {
        self.version = version.saturating_sub(1);
        let outcome = apply(self);
        if self.version == version {
            return Ok(());
        }
        let cause = match outcome {
            Outcome::Refused(_, cause) => cause.into_owned(),
            Outcome::Applied | Outcome::Success => "nothing came of it".to_owned(),
        };
        Err(error(format!("{id} cannot be restored: {cause}")))
    }
}
