//! Admission from a guest: it sends only from addresses that are its port's own or of an allowed pair.

use ncm_common::{
    drops::DropReason,
    tables::{Port, Source, SourceKey, SourcePrefixKey, endpoint_flags, port_flags},
};

use super::{Step, by_mac};
use crate::{
    headers::{Ipv4Address, Mac},
    tables::{SOURCE_PREFIXES, SOURCES},
};

/// Bits of a source prefix's key in front of the address: port, MAC and two reserved bytes.
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
            Err(DropReason::SpoofedMac)
        }
    }

    /// The subnet that a source counts as, with its generation.
    #[inline(always)]
    pub fn source(&self, mac: Mac, ip: Ipv4Address) -> Step<Source> {
        let port = self.port;
        if mac == Mac::new(&port.mac) && ip == Ipv4Address::of_mapped(&port.ip) && port.subnet != 0 {
            return Ok(Source { subnet: port.subnet, subnet_generation: port.subnet_generation });
        }
        if ip != Ipv4Address::UNSPECIFIED && !ip.is_group() {
            if let Some(source) = self.single(mac, ip) {
                return Ok(source);
            }
            if port.flags & port_flags::SOURCE_PREFIXES != 0
                && let Some(source) = SOURCE_PREFIXES.get(&SourcePrefixKey {
                    prefix_len: PREFIX_BITS + 128,
                    port: self.index,
                    mac: mac.bytes(),
                    family: 4,
                    reserved: 0,
                    ip: ip.mapped(),
                })
            {
                return Ok(*source);
            }
        }
        self.mac(mac)?;
        Err(DropReason::SpoofedIp)
    }

    /// Whether an address is the guest's own: a fixed one of its port or a single one of an allowed pair with its MAC.
    #[inline(always)]
    pub fn owns(&self, ip: Ipv4Address) -> bool {
        ip == Ipv4Address::of_mapped(&self.port.ip) || self.single(Mac::new(&self.port.mac), ip).is_some()
    }

    /// The subnet of a single source beyond the port's first.
    #[inline(always)]
    fn single(&self, mac: Mac, ip: Ipv4Address) -> Option<Source> {
        if self.port.flags & port_flags::SOURCES == 0 {
            return None;
        }
        SOURCES
            .get(&SourceKey { port: self.index, mac: mac.bytes(), reserved: [0; 2], ip: ip.mapped() })
            .copied()
    }

    /// Whether the MAC is that of an allowed pair: such MACs lead to the port.
    #[inline(always)]
    fn has_pair_with(&self, mac: Mac) -> bool {
        matches!(by_mac(self.port.vni, mac), Some(endpoint)
            if endpoint.flags & endpoint_flags::LOCAL != 0 && endpoint.target == self.index)
    }
}
