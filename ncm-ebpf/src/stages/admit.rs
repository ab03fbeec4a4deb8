//! Admission from a guest: it sends only from addresses that are its port's own or of an allowed pair.

use ncm_common::{
    drops::DropReason,
    tables::{Port, Source, SourceKey, SourcePrefixKey, endpoint_flags, port_flags},
};

use super::{Ended, Step, by_mac, refuse};
use crate::{
    headers::{Address, Mac},
    tables::{SOURCE_PREFIXES, SOURCES},
};

/// Bits of a source prefix's key in front of the address: port, MAC, family and a reserved byte.
const PREFIX_BITS: u32 = 96;

/// A frame's sender: the port that it came from.
#[derive(Clone, Copy)]
pub struct Sender {
    /// Index of the port.
    pub index: u32,
    /// The port.
    pub port: &'static Port,
}

impl Sender {
    /// Whether the guest may send from that MAC at all.
    #[inline(always)]
    pub fn mac(&self, mac: Mac) -> Step<()> {
        if mac == Mac::new(&self.port.mac) || self.has_pair_with(mac) {
            Ok(())
        } else {
            refuse(DropReason::SpoofedMac)
        }
    }

    /// The subnet that a source counts as, with its generation.
    #[inline(always)]
    pub fn source(&self, mac: &Mac, ip: &Address) -> Step<Source> {
        self.of(mac, ip, false)
    }

    #[inline(always)]
    fn of(&self, mac: &Mac, ip: &Address, any_link_local: bool) -> Step<Source> {
        let port = self.port;
        if *mac == Mac::new(&port.mac) && *ip == Address::new(&port.ip) && port.subnet != 0 {
            return Ok(Source { subnet: port.subnet, subnet_generation: port.subnet_generation });
        }
        Self::found(further(self.index, port, mac, ip, any_link_local))
    }

    /// What a number of [`further`]'s says.
    #[inline(always)]
    fn found(found: u64) -> Step<Source> {
        let (subnet, second) = (found as u32, (found >> 32) as u32);
        if subnet == 0 { Err(Ended(second)) } else { Ok(Source { subnet, subnet_generation: second }) }
    }

    /// The subnet that a source counts as, where any link-local address will do: towards what answers on this host itself.
    #[inline(always)]
    pub fn asker(&self, mac: &Mac, ip: &Address) -> Step<Source> {
        self.of(mac, ip, true)
    }

    /// Whether an address is the guest's own: a fixed one of its port, or the link-local one of its MAC.
    #[inline(always)]
    pub fn owns(&self, ip: &Address) -> bool {
        owns(self.index, self.port, ip)
    }

    /// The IPv6 subnet, of several that the guest is in, to which an address belongs.
    #[inline(always)]
    pub fn link(&self, ip: &Address) -> Option<Source> {
        if self.port.flags & port_flags::SOURCE_PREFIXES == 0 {
            return None;
        }
        let of = SourcePrefixKey {
            prefix_len: PREFIX_BITS + 128,
            port: self.index,
            mac: [0; 6],
            family: 0,
            reserved: 0,
            ip: ip.bytes(),
        };
        SOURCE_PREFIXES.get(&of).copied()
    }

    /// Whether the MAC is that of an allowed pair: such MACs lead to the port.
    #[inline(always)]
    fn has_pair_with(&self, mac: Mac) -> bool {
        matches!(by_mac(self.port.vni, mac), Some(endpoint)
            if endpoint.flags & endpoint_flags::LOCAL != 0 && endpoint.target == self.index)
    }
}

/// The subnet of a source, with its generation in the upper half; or 0, with how its way ended in the upper half.
#[inline(never)]
fn further(index: u32, port: &'static Port, mac: &Mac, ip: &Address, any_link_local: bool) -> u64 {
    let (subnet, second) = match find(Sender { index, port }, *mac, ip, any_link_local) {
        Ok(source) => (source.subnet, source.subnet_generation),
        Err(ended) => (0, ended.0),
    };
    u64::from(second) << 32 | u64::from(subnet)
}

#[inline(always)]
fn find(sender: Sender, mac: Mac, ip: &Address, any_link_local: bool) -> Step<Source> {
    let port = sender.port;
    if ip.is_unspecified() || ip.is_group() {
        sender.mac(mac)?;
        return refuse(DropReason::SpoofedIp);
    }
    let of_mac = Address::link_local(mac);
    let ip = if any_link_local && ip.is_link_local() { &of_mac } else { ip };
    if let Some(source) = single(sender.index, port, mac, ip) {
        return Ok(source);
    }
    if ip.is_link_local() {
        sender.mac(mac)?;
        // Each MAC has its link-local address; no prefix makes another one its own.
        if *ip != of_mac {
            return refuse(DropReason::LinkLocal);
        }
        if port.subnet != 0 {
            return Ok(Source { subnet: port.subnet, subnet_generation: port.subnet_generation });
        }
    } else if port.flags & port_flags::SOURCE_PREFIXES != 0
        && let Some(source) = SOURCE_PREFIXES.get(&SourcePrefixKey {
            prefix_len: PREFIX_BITS + 128,
            port: sender.index,
            mac: mac.bytes(),
            family: if ip.is_v4() { 4 } else { 6 },
            reserved: 0,
            ip: ip.bytes(),
        })
    {
        return Ok(*source);
    }
    sender.mac(mac)?;
    refuse(DropReason::SpoofedIp)
}

/// Whether an address is a fixed one of the port, or the link-local one of its MAC.
#[inline(never)]
fn owns(index: u32, port: &Port, ip: &Address) -> bool {
    let mac = Mac::new(&port.mac);
    *ip == Address::new(&port.ip) || *ip == Address::link_local(mac) || single(index, port, mac, ip).is_some()
}

/// The subnet of a single source beyond the port's first.
#[inline(always)]
fn single(index: u32, port: &Port, mac: Mac, ip: &Address) -> Option<Source> {
    if port.flags & port_flags::SOURCES == 0 {
        return None;
    }
    SOURCES.get(&SourceKey { port: index, mac: mac.bytes(), reserved: [0; 2], ip: ip.bytes() }).copied()
}
