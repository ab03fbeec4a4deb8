//! The endpoint tables: what their keys come to hold, and whose epochs rise with it.
//!
//! These tables are too large to be kept beside the kernel's. So that epochs rise only where something is different, the
//! first change of a key's claims in a step notes what the entry was.

use ncm_common::tables::{Endpoint, IpKey, MacKey, endpoint_flags, epoch_slot, mac_slot};

use crate::compile::{Changes, Delta, Handle, Put};
use crate::model::Model;
use crate::store::NONE;

/// What flows are decided by of an entry. The subnet is not among it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Facts {
    target: u32,
    generation: u32,
    members: u32,
    flags: u16,
    mac: [u8; 6],
}

impl Facts {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        let Endpoint { target, generation, members, flags, mac, .. } = *endpoint;
        Self { target, generation, members, flags, mac }
    }
}

/// What an entry was when its key was marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Before {
    /// This, or there was none.
    Was(Option<Facts>),
    /// What it is: its claims do not change.
    Same,
    /// What the kernel has is not known.
    Unknown,
}

/// A key to decide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark<K> {
    pub(crate) key: K,
    /// The claimant, where it is the only one and new: no search for the winner.
    pub(crate) claimant: u32,
    pub(crate) before: Before,
}

/// Whether the entry differs from what it was before the first of these marks.
fn has_changed<K>(marks: &[Mark<K>], after: Option<Facts>) -> bool {
    let known = |mark: &Mark<K>| match mark.before {
        Before::Was(before) => Some(before),
        Before::Same | Before::Unknown => None,
    };
    marks.iter().any(|mark| mark.before == Before::Unknown)
        || marks.iter().find_map(known).is_some_and(|before| before != after)
}

/// Decides the marked keys of a table, and tells which entries have changed.
fn decide<K: Copy + Ord>(
    marks: &mut Vec<Mark<K>>,
    delta: &mut Delta<K, Endpoint>,
    value: impl Fn(&K, u32) -> Option<(Endpoint, Handle)>,
    mut changed: impl FnMut(&K, &Mark<K>),
) {
    // Of one key, the marks stay in the order in which they were made.
    marks.sort_by_key(|mark| mark.key);
    delta.put.reserve(marks.len());
    for marks in marks.chunk_by(|one, other| one.key == other.key) {
        let first = &marks[0];
        let key = first.key;
        let decided = value(&key, if marks.len() == 1 { first.claimant } else { NONE });
        if has_changed(marks, decided.map(|(value, _)| Facts::of(&value))) {
            changed(&key, first);
        }
        match decided {
            Some((value, cause)) => delta.put.push(Put { key, value, cause }),
            None => delta.del.push(key),
        }
    }
    marks.clear();
    marks.shrink_to(16_384);
}

impl Model {
    /// Decides all marked keys.
    pub(crate) fn write_endpoints(&mut self, changes: &mut Changes) {
        let mut marks = std::mem::take(&mut self.dirty_ip);
        let epochs = &mut changes.epochs;
        decide(
            &mut marks,
            &mut changes.endpoints_ip,
            |key, claimant| self.endpoint_by_ip(key, claimant),
            |key, _| epochs.push(epoch_slot(key.vni, &key.ip)),
        );
        self.dirty_ip = marks;
        let mut marks = std::mem::take(&mut self.dirty_mac);
        decide(
            &mut marks,
            &mut changes.endpoints_mac,
            |key, claimant| self.endpoint_by_mac(key, claimant),
            |key, first| {
                // No flow is decided by a MAC that leads nowhere. What an earlier run has written is not known.
                if self.resumed || first.before != Before::Was(None) {
                    epochs.push(mac_slot(key.vni, &key.mac));
                }
            },
        );
        self.dirty_mac = marks;
        epochs.sort_unstable();
        epochs.dedup();
    }

    fn endpoint_by_ip(&self, key: &IpKey, claimant: u32) -> Option<(Endpoint, Handle)> {
        let owners = self.owners();
        let (slot, flags) = if claimant == NONE {
            self.claims_ip.winner(key, |slot| owners.ip_key(slot), |slot| owners.member(slot))?
        } else {
            (claimant, owners.member(claimant).flags)
        };
        Some((self.endpoint(slot, flags, true), self.handle_of(slot)))
    }

    fn endpoint_by_mac(&self, key: &MacKey, claimant: u32) -> Option<(Endpoint, Handle)> {
        let owners = self.owners();
        let (slot, flags) = if claimant == NONE {
            self.claims_mac.winner(key, |slot| owners.mac_key(slot), |slot| owners.member(slot))?
        } else {
            (claimant, owners.member(claimant).flags)
        };
        Some((self.endpoint(slot, flags, false), self.handle_of(slot)))
    }

    /// The entry that an address makes, in the table by address or in that by MAC.
    pub(crate) fn endpoint(&self, slot: u32, flags: u16, by_ip: bool) -> Endpoint {
        let address = &self.addresses[slot];
        let (mut endpoint, members) = match address.port() {
            Some(port) => {
                let port = &self.ports[port];
                let flags = flags | endpoint_flags::LOCAL;
                (
                    Endpoint {
                        target: port.index,
                        generation: port.generation,
                        flags,
                        ..Endpoint::default()
                    },
                    port.members,
                )
            }
            None => {
                let neighbour = &self.neighbours[address.owner];
                let host = &self.hosts.slots[neighbour.host];
                (
                    Endpoint {
                        target: host.index,
                        generation: host.generation,
                        flags,
                        ..Endpoint::default()
                    },
                    self.provenances.get(neighbour.provenance).members,
                )
            }
        };
        endpoint.mac = self.owners().mac(slot);
        if by_ip {
            endpoint.subnet = self.subnets[address.subnet].index;
            endpoint.members = members;
        }
        endpoint
    }

    /// What an entry was whose key had this winner, with the flags of all its claims.
    pub(crate) fn before(&self, winner: Option<(u32, u16)>, by_ip: bool) -> Before {
        Before::Was(winner.map(|(slot, flags)| Facts::of(&self.endpoint(slot, flags, by_ip))))
    }
}
