//! What ports contribute: their entry, their interface, and what they may send from.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use ncm_common::tables::{
    NO_RULES, Name, NameKey, Port, Reference, Source, SourceKey, SourcePrefixKey, name_kinds, port_flags,
};

use crate::compile::epochs::decides;
use crate::compile::{Handle, HandleKind, InterfaceChanges, mapped};
use crate::model::Model;
use crate::resources::{Address, PortSlot, address_flags};

/// Entries of the tables of sources and of source prefixes.
type Sources = (Vec<(SourceKey, Source)>, Vec<(SourcePrefixKey, Source)>);

impl Model {
    /// The address that a port counts by: its first IPv4 one, else its first.
    pub(crate) fn primary(&self, port: &PortSlot) -> Option<Address> {
        let mut addresses = self
            .addresses_from(port.first)
            .map(|(_, address)| *address)
            .filter(|a| !a.has(address_flags::MAC_ONLY));
        let first = addresses.next()?;
        if !first.has(address_flags::V6) {
            return Some(first);
        }
        Some(addresses.find(|address| !address.has(address_flags::V6)).unwrap_or(first))
    }

    /// The port is the one that has the interface it names: of several that name it, the first by id.
    pub(crate) fn owns_interface(&self, slot: u32) -> bool {
        self.interfaces
            .get(&self.ports[slot].interface)
            .is_some_and(|interface| interface.ports.values().next().copied() == Some(slot))
    }

    /// A port names an interface from now on.
    pub(crate) fn name_interface(&mut self, slot: u32) {
        let (name, id) = (self.ports[slot].interface.clone(), self.ports[slot].config.id.clone());
        let interface = self.interfaces.entry(name.clone()).or_default();
        interface.facts = interface.facts.or(self.adopted.remove(&name));
        interface.ports.insert(id, slot);
        self.disturb_interface(name);
    }

    /// A port does not name its interface any more.
    pub(crate) fn unname_interface(&mut self, slot: u32) {
        let name = self.ports[slot].interface.clone();
        if let Some(interface) = self.interfaces.get_mut(&name) {
            interface.ports.remove(&self.ports[slot].config.id);
        }
        self.disturb_interface(name);
    }

    /// Has all ports that name an interface looked at again, and the engine told whether it is wanted.
    pub(crate) fn disturb_interface(&mut self, name: String) {
        if let Some(interface) = self.interfaces.get(&name) {
            self.dirty_ports.extend(interface.ports.values());
        }
        self.dirty_interfaces.insert(name);
    }

    /// Tells the engine which interfaces have become wanted or unwanted.
    pub(crate) fn announce_interfaces(&mut self, changes: &mut InterfaceChanges) {
        for name in std::mem::take(&mut self.dirty_interfaces) {
            let Some(interface) = self.interfaces.get_mut(&name) else { continue };
            if interface.ports.is_empty() {
                if interface.announced {
                    changes.unwanted.push(name.clone());
                }
                self.interfaces.remove(&name);
            } else if !std::mem::replace(&mut interface.announced, true) {
                changes.wanted.push(name);
            }
        }
    }

    /// Makes a port's addresses what they should be, and withdraws its entries where it is not programmed any more.
    pub(crate) fn update_port(&mut self, slot: u32) {
        let Some(port) = self.ports.get(slot).filter(|port| port.meta.is_some()) else { return };
        let primary = self.primary(port);
        let wanted = primary.is_some_and(|primary| self.subnets[primary.subnet].live.is_some());
        let live = wanted && (port.live || self.number_port(slot));
        if wanted && !live {
            self.waiting_ports.insert(slot);
        } else {
            self.waiting_ports.remove(&slot);
        }
        let was_live = std::mem::replace(&mut self.ports[slot].live, live);
        let mut at = self.ports[slot].first;
        while let Some(address) = self.addresses.get(at) {
            let next = address.next;
            self.settle(at);
            at = next;
        }
        if was_live && !live {
            self.withdraw_port(slot);
        }
        self.update_set(slot);
    }

    /// Gives a port its index; says whether there was one to give.
    fn number_port(&mut self, slot: u32) -> bool {
        let id = self.ports[slot].config.id.clone();
        let Some((index, generation)) = self.port_indices.assign(&id) else { return false };
        let port = &mut self.ports[slot];
        (port.index, port.generation) = (index, generation);
        self.port_by_index.insert(index, slot);
        // Flows of an earlier run may have any epoch up to the one that the table has: it rises with all others, when what
        // they are decided by is written.
        let before = self.seeded_epochs.remove(&(index, generation));
        port.epoch = before.unwrap_or(1);
        let begun = if before.is_some() { &mut self.reborn_ports } else { &mut self.fresh_ports };
        begun.insert(slot);
        let cause = Handle::new(HandleKind::Port, slot);
        self.tables.names.set(NameKey { kind: name_kinds::PORT, index }, Name::new(&id, generation), cause);
        true
    }

    /// Takes back all of a port's own entries and its index; its addresses have to be inactive.
    pub(crate) fn withdraw_port(&mut self, slot: u32) {
        self.waiting_ports.remove(&slot);
        self.fresh_ports.remove(&slot);
        self.reborn_ports.remove(&slot);
        self.ports[slot].live = false;
        self.update_set(slot);
        let port = &mut self.ports[slot];
        let (index, generation) = (port.index, port.generation);
        if index == 0 {
            return;
        }
        (port.index, port.generation) = (0, 0);
        self.port_by_index.remove(&index);
        for key in std::mem::take(&mut port.sources) {
            self.tables.sources.unset(key);
        }
        for key in std::mem::take(&mut port.source_prefixes) {
            self.tables.source_prefixes.unset(key);
        }
        self.bind(slot, 0, false);
        self.tables.ports.unset(index);
        self.tables.names.unset(NameKey { kind: name_kinds::PORT, index });
        self.port_indices.release(index, generation);
        self.dirty_ports.extend(self.waiting_ports.pop_first());
    }

    /// Leads an interface index (0: none) to a port, and no other one any more.
    fn bind(&mut self, slot: u32, ifindex: u32, device: bool) {
        let handle = Handle::new(HandleKind::Port, slot);
        let port = &mut self.ports[slot];
        let before = std::mem::replace(&mut port.bound, ifindex);
        let was_device = std::mem::replace(&mut port.device, device);
        let reference = Reference { index: port.index, generation: port.generation };
        // An interface may have gone over to another port meanwhile.
        if self.bound.get(&before) == Some(&slot) {
            if before != ifindex {
                self.bound.remove(&before);
                self.tables.port_by_interface.unset(before);
            }
            if was_device && (before != ifindex || !device) {
                self.tables.devices.unset(before);
            }
        }
        if ifindex != 0 {
            self.bound.insert(ifindex, slot);
            self.tables.port_by_interface.set(ifindex, reference, handle);
            if device {
                self.tables.devices.set(ifindex, ifindex, handle);
            }
        }
    }

    /// How many established flows each port may have: so many that all together cannot fill the table, with an eighth to spare
    /// for what is over and not freed yet. Ports are counted in powers of two, so that the entries of all are not written
    /// anew with each port that comes.
    pub(crate) fn fair_share(&self) -> u32 {
        /// What a port has in any case: the table is to be larger where so many ports need it.
        const LEAST: u32 = 4_096;
        let ports = u32::try_from(self.port_by_index.len()).unwrap_or(u32::MAX);
        let counted = ports.max(1).checked_next_power_of_two().unwrap_or(u32::MAX);
        let fair = self.settings.slots.flows / 8 * 7 / counted;
        self.settings.port_flows.min(fair.max(LEAST))
    }

    /// What a port may send from beyond its first address.
    fn sources(&self, slot: u32, primary: &Address) -> Sources {
        let port = &self.ports[slot];
        let source = |subnet: u32| {
            let subnet = &self.subnets[subnet];
            Source { subnet: subnet.index, subnet_generation: subnet.generation }
        };
        let host = |mac, ip| SourceKey { port: port.index, mac, reserved: [0; 2], ip };
        let (mut sources, mut prefixes) = (Vec::new(), Vec::new());
        let v6 = self.first_v6(port).map_or(primary.subnet, |address| address.subnet);
        if v6 != primary.subnet {
            // Link-local addresses count as the port's subnet unless told otherwise.
            let pairs = port.pairs.iter().filter(|pair| pair.net.addr().is_ipv6()).map(|pair| pair.mac);
            let macs: BTreeSet<[u8; 6]> = pairs.chain([port.mac]).collect();
            sources.extend(macs.into_iter().map(|mac| (host(mac, mapped::link_local(mac)), source(v6))));
        }
        for pair in &port.pairs {
            let (ip, length) = mapped::prefix(pair.net);
            let (family, subnet) = match pair.net {
                IpNet::V4(_) => (4, primary.subnet),
                IpNet::V6(_) => (6, v6),
            };
            if pair.net.prefix_len() == pair.net.max_prefix_len() {
                sources.push((host(pair.mac, ip), source(subnet)));
            } else {
                let key = SourcePrefixKey {
                    prefix_len: 96 + length,
                    port: port.index,
                    mac: pair.mac,
                    family,
                    reserved: 0,
                    ip,
                };
                prefixes.push((key, source(subnet)));
            }
        }
        // A fixed address counts as its own subnet's, whatever a pair says of it.
        let first = self.ip_of(primary);
        for (_, address) in self.addresses_from(port.first) {
            let counts = !address.has(address_flags::MAC_ONLY) && self.ip_of(address) != first;
            if counts && self.subnets[address.subnet].live.is_some() {
                sources.push((host(port.mac, mapped::address(self.ip_of(address))), source(address.subnet)));
            }
        }
        prefixes.extend(self.links(port).into_iter().map(|(key, subnet)| (key, source(subnet))));
        (sources, prefixes)
    }

    /// The IPv6 subnets of a port that is in several. From its one link-local address a guest asks for neighbours in all of them.
    fn links(&self, port: &PortSlot) -> BTreeMap<SourcePrefixKey, u32> {
        let mut links = BTreeMap::new();
        for (_, address) in self.addresses_from(port.first) {
            let live = self.subnets[address.subnet].live;
            let live = live.filter(|live| live.net.addr().is_ipv6() && address.has(address_flags::V6));
            if let Some(live) = live {
                let (ip, length) = mapped::prefix(live.net);
                let key = SourcePrefixKey {
                    prefix_len: 96 + length,
                    port: port.index,
                    mac: [0; 6],
                    family: 0,
                    reserved: 0,
                    ip,
                };
                links.entry(key).or_insert(address.subnet);
            }
        }
        if links.len() > 1 { links } else { BTreeMap::new() }
    }

    /// The port's first IPv6 address whose subnet is there.
    fn first_v6(&self, port: &PortSlot) -> Option<&Address> {
        self.addresses_from(port.first)
            .map(|(_, address)| address)
            .find(|address| address.has(address_flags::V6) && self.subnets[address.subnet].live.is_some())
    }

    /// Writes a port's entries if it is programmed. Says whether something has changed that its flows are decided by.
    pub(crate) fn write_port(&mut self, slot: u32) -> bool {
        let Some(port) = self.ports.get(slot).filter(|port| port.live) else { return false };
        let Some(primary) = self.primary(port) else { return false };
        let handle = Handle::new(HandleKind::Port, slot);
        let (sources, prefixes) = self.sources(slot, &primary);
        for key in std::mem::take(&mut self.ports[slot].sources) {
            self.tables.sources.unset(key);
        }
        for key in std::mem::take(&mut self.ports[slot].source_prefixes) {
            self.tables.source_prefixes.unset(key);
        }
        for (key, value) in &sources {
            self.tables.sources.set(*key, *value, handle);
        }
        for (key, value) in &prefixes {
            self.tables.source_prefixes.set(*key, *value, handle);
        }
        let interface = self.interfaces.get(&self.ports[slot].interface);
        let facts = interface.and_then(|interface| interface.facts).filter(|_| self.owns_interface(slot));
        let facts = facts.unwrap_or_default();
        self.bind(slot, facts.ifindex, facts.xdp_target && facts.ifindex != 0);

        let closed = self.is_closed(slot);
        let ip = mapped::address(self.ip_of(&primary));
        let max_flows = self.flow_share;
        let groups_out = self.policy.names_groups_out(self.ports[slot].set);
        let port = &mut self.ports[slot];
        let mut flags = 0;
        let mut set = |condition, flag| flags |= if condition { flag } else { 0 };
        set(port.config.admin_state_up, port_flags::UP);
        set(closed, port_flags::CLOSED);
        set(facts.xdp_target, port_flags::XDP_TARGET);
        set(!sources.is_empty(), port_flags::SOURCES);
        set(!prefixes.is_empty(), port_flags::SOURCE_PREFIXES);
        set(groups_out, port_flags::GROUPS_OUT);
        port.sources = sources.into_iter().map(|(key, _)| key).collect();
        port.source_prefixes = prefixes.into_iter().map(|(key, _)| key).collect();
        let subnet = &self.subnets[primary.subnet];
        let value = Port {
            generation: port.generation,
            epoch: port.epoch,
            ifindex: facts.ifindex,
            flags,
            vni: subnet.live.map_or(0, |live| live.vni),
            subnet: subnet.index,
            subnet_generation: subnet.generation,
            // Nothing of a closed port is open, whichever word of the entry is written first.
            set: if closed && port.set == 0 { NO_RULES } else { port.set },
            ip,
            mac: port.mac,
            mtu: u16::try_from(facts.mtu).unwrap_or(u16::MAX),
            max_flows,
            ask_interval: self.settings.asks.map_or(0, |asks| asks.interval_ns),
            asks_at_once: self.settings.asks.map_or(0, |asks| asks.at_once),
            reserved: [0; 3],
        };
        let index = port.index;
        let changed =
            self.tables.ports.written(index).is_some_and(|before| decides(before) != decides(&value));
        self.tables.ports.set(index, value, handle);
        changed
    }
}
