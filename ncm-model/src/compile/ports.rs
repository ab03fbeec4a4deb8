//! What ports contribute: their entry, their interface, and what they may send from.

use ipnet::IpNet;
use ncm_common::tables::{
    Name, NameKey, Port, Reference, Source, SourceKey, SourcePrefixKey, name_kinds, port_flags,
};

use crate::compile::{Handle, HandleKind, InterfaceChanges};
use crate::model::Model;
use crate::resources::{Address, PortSlot, address_flags};
use crate::settings::MissingGroup;

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

    /// The port names a security group that is not held (none can be yet).
    pub(crate) fn missing_group(port: &PortSlot) -> Option<&str> {
        port.config.security_group_ids.iter().map(|group| group.id.as_str()).find(|id| !id.is_empty())
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
        self.interfaces.entry(name.clone()).or_default().ports.insert(id, slot);
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

    /// Makes a port's entries, and its addresses', what they should be.
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
        if live {
            self.write_port(slot);
        } else if was_live {
            self.withdraw_port(slot);
        }
    }

    /// Gives a port its index; says whether there was one to give.
    fn number_port(&mut self, slot: u32) -> bool {
        let id = self.ports[slot].config.id.clone();
        let Some((index, generation)) = self.port_indices.assign(&id) else { return false };
        (self.ports[slot].index, self.ports[slot].generation) = (index, generation);
        let cause = Handle::new(HandleKind::Port, slot);
        self.tables.names.set(NameKey { kind: name_kinds::PORT, index }, Name::new(&id, generation), cause);
        true
    }

    /// Takes back all of a port's own entries and its index; its addresses have to be inactive.
    pub(crate) fn withdraw_port(&mut self, slot: u32) {
        self.waiting_ports.remove(&slot);
        let port = &mut self.ports[slot];
        port.live = false;
        let (index, generation) = (port.index, port.generation);
        if index == 0 {
            return;
        }
        (port.index, port.generation) = (0, 0);
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

    /// What a port may send from beyond its first address.
    fn sources(&self, slot: u32, primary: &Address) -> Sources {
        let port = &self.ports[slot];
        let source = |subnet: u32| {
            let subnet = &self.subnets[subnet];
            Source { subnet: subnet.index, subnet_generation: subnet.generation }
        };
        let host = |mac, ip: u32| SourceKey { port: port.index, mac, reserved: [0; 2], ip: ip.to_be_bytes() };
        let (mut sources, mut prefixes) = (Vec::new(), Vec::new());
        for pair in &port.pairs {
            let IpNet::V4(net) = pair.net else { continue };
            if net.prefix_len() == 32 {
                sources.push((host(pair.mac, net.network().to_bits()), source(primary.subnet)));
            } else {
                let key = SourcePrefixKey {
                    prefix_len: 96 + u32::from(net.prefix_len()),
                    port: port.index,
                    mac: pair.mac,
                    reserved: [0; 2],
                    ip: net.network().octets(),
                };
                prefixes.push((key, source(primary.subnet)));
            }
        }
        // A fixed address counts as its own subnet's, whatever a pair says of it.
        for (_, address) in self.addresses_from(port.first) {
            let first = address.ip == primary.ip && address.subnet == primary.subnet;
            let counts = !first && !address.has(address_flags::V6 | address_flags::MAC_ONLY);
            if counts && self.subnets[address.subnet].live.is_some() {
                sources.push((host(port.mac, address.ip), source(address.subnet)));
            }
        }
        (sources, prefixes)
    }

    fn write_port(&mut self, slot: u32) {
        let Some(primary) = self.primary(&self.ports[slot]) else { return };
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

        let port = &mut self.ports[slot];
        let mut flags = 0;
        let mut set = |condition, flag| flags |= if condition { flag } else { 0 };
        set(port.config.admin_state_up, port_flags::UP);
        set(
            Self::missing_group(port).is_some() && self.settings.missing_group == MissingGroup::Closed,
            port_flags::CLOSED,
        );
        set(facts.xdp_target, port_flags::XDP_TARGET);
        set(!sources.is_empty(), port_flags::SOURCES);
        set(!prefixes.is_empty(), port_flags::SOURCE_PREFIXES);
        port.sources = sources.into_iter().map(|(key, _)| key).collect();
        port.source_prefixes = prefixes.into_iter().map(|(key, _)| key).collect();
        let v4 = !primary.has(address_flags::V6);
        let subnet = &self.subnets[primary.subnet];
        let value = Port {
            generation: port.generation,
            epoch: port.meta.as_ref().map_or(0, |meta| meta.version as u32),
            ifindex: facts.ifindex,
            flags,
            vni: subnet.live.map_or(0, |live| live.vni),
            subnet: if v4 { subnet.index } else { 0 },
            subnet_generation: if v4 { subnet.generation } else { 0 },
            ip: if v4 { primary.ip.to_be_bytes() } else { [0; 4] },
            mac: port.mac,
            mtu: u16::try_from(facts.mtu).unwrap_or(u16::MAX),
            reserved: [0; 6],
        };
        let index = port.index;
        self.tables.ports.set(index, value, handle);
    }
}
