//! Ports' epochs: they rise with whatever a port's flows were decided by, other than the entry of the other side.

use std::collections::{BTreeSet, HashSet};

use ncm_common::tables::{Port, port_flags};

use crate::compile::{Changes, Handle, HandleKind, Put};
use crate::model::Model;

/// What of a port flows are decided by.
pub(crate) fn decides(port: &Port) -> Port {
    // Where the guest is attached is looked up for each packet.
    const BESIDE: u32 = port_flags::XDP_TARGET | port_flags::GROUPS_OUT;
    let flags = port.flags & !BESIDE;
    Port { epoch: 0, ifindex: 0, mtu: 0, max_flows: 0, ask_interval: 0, asks_at_once: 0, flags, ..*port }
}

/// What has changed in a step that flows are decided by.
#[derive(Default)]
struct Touched {
    /// Indices of ports.
    ports: HashSet<u32>,
    /// Slots of subnets.
    subnets: HashSet<u32>,
    /// Slots of routers: a subnet of theirs has changed, and others lead to it.
    routers: HashSet<u32>,
    /// VNIs that a host may not send into any more.
    vnis: HashSet<u32>,
}

impl Touched {
    fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.subnets.is_empty() && self.routers.is_empty() && self.vnis.is_empty()
    }
}

impl Model {
    /// Raises the epochs of these ports, and of those that the changes concern. It is the last that is written of a step:
    /// what is decided meanwhile has the old epoch, and is decided again.
    pub(crate) fn raise_epochs(&mut self, mut raised: BTreeSet<u32>, changes: &mut Changes) {
        let mut touched = self.touched(changes);
        touched.subnets.extend(self.lost_subnets.drain(..));
        raised.append(&mut self.reborn_ports);
        if !touched.is_empty() {
            raised.extend((0..self.ports.bound()).filter(|slot| self.is_touched(*slot, &touched)));
        }
        for slot in raised.difference(&std::mem::take(&mut self.fresh_ports)) {
            let Some(port) = self.ports.get(*slot).filter(|port| port.live) else { continue };
            let (index, epoch) = (port.index, port.epoch.wrapping_add(1));
            let Some(value) = self.tables.ports.amend(index, |port| port.epoch = epoch) else { continue };
            self.ports[*slot].epoch = epoch;
            let cause = Handle::new(HandleKind::Port, *slot);
            changes.port_epochs.put.push(Put { key: index, value, cause });
        }
    }

    fn touched(&self, changes: &Changes) -> Touched {
        let mut touched = Touched::default();
        let sources = changes.sources.put.iter().map(|put| put.key.port);
        touched.ports.extend(sources.chain(changes.sources.del.iter().map(|key| key.port)));
        let prefixes = changes.source_prefixes.put.iter().map(|put| put.key.port);
        touched.ports.extend(prefixes.chain(changes.source_prefixes.del.iter().map(|key| key.port)));
        let routes = changes.routes.put.iter().map(|put| put.key.subnet);
        let routes: HashSet<u32> = routes.chain(changes.routes.del.iter().map(|key| key.subnet)).collect();
        touched.subnets.extend(routes.into_iter().filter_map(|index| self.subnet_at(index)));
        for slot in changes.subnets.put.iter().filter_map(|put| self.subnet_at(put.key)) {
            touched.subnets.insert(slot);
            touched.routers.extend(self.subnets[slot].live.and_then(|live| live.router));
        }
        touched.vnis.extend(changes.vteps.del.iter().map(|key| key.vni));
        touched
    }

    fn is_touched(&self, slot: u32, touched: &Touched) -> bool {
        let Some(port) = self.ports.get(slot).filter(|port| port.live) else { return false };
        touched.ports.contains(&port.index)
            || self.addresses_from(port.first).any(|(_, address)| {
                touched.subnets.contains(&address.subnet)
                    || self.subnets[address.subnet].live.is_some_and(|live| {
                        touched.vnis.contains(&live.vni)
                            || live.router.is_some_and(|router| touched.routers.contains(&router))
                    })
            })
    }
}
