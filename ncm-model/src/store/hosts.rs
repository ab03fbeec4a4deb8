//! Remote hosts: who has endpoints there, and their index while anything is programmed to go there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hashbrown::HashMap;

use super::allocator::Allocator;
use super::slab::Slab;

/// A remote host (or this one).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    pub(crate) address: IpAddr,
    /// It is this node: its endpoints are local ports.
    pub(crate) local: bool,
    /// Neighbours that name the host.
    pub(crate) holders: u32,
    /// Programmed addresses on the host.
    pub(crate) active: u32,
    /// Index in `HOSTS`; 0 while it has none.
    pub(crate) index: u32,
    /// Generation of the index.
    pub(crate) generation: u32,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            local: false,
            holders: 0,
            active: 0,
            index: 0,
            generation: 0,
        }
    }
}

/// All hosts that neighbours name.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    pub(crate) slots: Slab<Host>,
    by_address: HashMap<IpAddr, u32>,
    pub(crate) indices: Allocator,
    /// Hosts with programmed addresses that have no place in the table.
    pub(crate) waiting: BTreeSet<u32>,
    /// Hosts to look at when a step ends: they may have lost their last address.
    pub(crate) idle: Vec<u32>,
}

impl Hosts {
    /// Counts one more neighbour on a host.
    pub(crate) fn hold(&mut self, address: IpAddr, local: bool) -> u32 {
        let slot = match self.by_address.get(&address) {
            Some(slot) => *slot,
            None => {
                let slot = self.slots.insert(Host { address, local, ..Host::default() });
                self.by_address.insert(address, slot);
                slot
            }
        };
        self.slots[slot].holders += 1;
        slot
    }

    /// Counts one neighbour less on a host.
    pub(crate) fn release(&mut self, slot: u32) {
        let host = &mut self.slots[slot];
        host.holders -= 1;
        if host.holders == 0 {
            self.idle.push(slot);
        }
    }

    /// Forgets a host that no neighbour names.
    pub(crate) fn forget(&mut self, slot: u32) {
        let host = self.slots.remove(slot);
        self.by_address.remove(&host.address);
    }
}
