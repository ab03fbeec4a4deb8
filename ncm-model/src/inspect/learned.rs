//! Neighbours that came on demand, for whoever looks which of them are used.

use std::net::IpAddr;

use ncm_common::tables::{epoch_slot, mac_slot};

use crate::compile::mapped;
use crate::model::Model;
use crate::resources::address_flags;
use crate::wire::{NeighborConfiguration, NeighborState, OperationType};

/// A neighbour that came on demand.
#[derive(Clone, PartialEq, Debug)]
pub struct Learned {
    /// What takes it away: a DELETE of its addresses of its type.
    pub delete: NeighborState,
    /// Its slots of `REMOTE_EPOCHS`, which flows with it have too: those of its addresses, and of its MAC in their VNIs.
    pub slots: Vec<u32>,
    /// When it was pushed last, in seconds of Unix time.
    pub time: u64,
}

impl Model {
    /// Neighbours that came on demand, among the next `most` that are held; `None` when there are no more.
    pub fn learned(&self, from: &mut u32, most: u32) -> Option<Vec<Learned>> {
        if *from >= self.neighbours.bound() {
            return None;
        }
        let end = from.saturating_add(most).min(self.neighbours.bound());
        let slots = std::mem::replace(from, end)..end;
        let held = slots.filter(|slot| self.neighbours.get(*slot).is_some_and(|held| held.flags != 0));
        Some(held.filter(|slot| self.is_learned(*slot)).map(|slot| self.learned_in(slot)).collect())
    }

    fn learned_in(&self, slot: u32) -> Learned {
        let neighbour = &self.neighbours[slot];
        let mut slots = Vec::new();
        for (_, address) in self.addresses_from(neighbour.first) {
            let vni = if address.has(address_flags::EXPLICIT) {
                address.vni()
            } else {
                self.subnets[address.subnet].live.map_or(0, |live| live.vni)
            };
            let ip: IpAddr = self.ip_of(address);
            slots.push(epoch_slot(vni, &mapped::address(ip)));
            slots.push(mac_slot(vni, &neighbour.mac));
        }
        let held = self.neighbour_configuration(neighbour);
        let configuration = NeighborConfiguration {
            id: held.id,
            fixed_ips: held.fixed_ips,
            mac_address: held.mac_address,
            ..NeighborConfiguration::default()
        };
        Learned {
            delete: NeighborState {
                operation_type: OperationType::Delete.into(),
                configuration: Some(configuration),
            },
            slots,
            time: self.provenances.get(neighbour.provenance).time,
        }
    }
}
