//! The kernel's neighbour tables: which MAC a next hop has, and asking the kernel to resolve it and to keep it.

use std::net::IpAddr;

use super::super::link::MacAddress;
use super::super::message::{Attributes, Message, Request, flags, u16_at, u32_at};

pub(crate) const RTM_NEWNEIGH: u16 = 28;
pub(crate) const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
/// `RTNLGRP_NEIGH`.
pub(crate) const GROUP_NEIGH: u32 = 3;

/// Bytes of `struct ndmsg`.
const HEADER: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PROTOCOL: u16 = 12;
const NDA_FLAGS_EXT: u16 = 15;
/// Who asked for an entry (`ip neigh` shows `proto 78`): a number that no known daemon uses.
const PROTOCOL: u8 = b'N';
const REACHABLE: u16 = 0x02;
const STALE: u16 = 0x04;
const DELAY: u16 = 0x08;
const PROBE: u16 = 0x10;
const NOARP: u16 = 0x40;
const PERMANENT: u16 = 0x80;
/// States in which the kernel itself sends to the MAC.
const USABLE: u16 = REACHABLE | STALE | DELAY | PROBE | NOARP | PERMANENT;
const NTF_USE: u8 = 1;
/// `NTF_EXT_LEARNED`: the entry does not count against the table's size limits.
const NTF_EXTERNAL: u8 = 1 << 4;
const NTF_EXT_MANAGED: u32 = 1;

/// A next hop, as neighbours and groups name it: an interface and an address on its link.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct Hop {
    pub(crate) interface: u32,
    pub(crate) address: IpAddr,
}

/// A neighbour entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Neighbour {
    /// The MAC, while the entry is in a state in which the kernel would send to it.
    pub(crate) mac: Option<MacAddress>,
    /// Whether the kernel keeps it resolved by itself, because somebody asked it to.
    pub(crate) managed: bool,
    /// Whether it was an agent that asked.
    pub(crate) ours: bool,
    /// Whether it was given by hand, or needs no resolution.
    pub(crate) fixed: bool,
}

impl Neighbour {
    /// Whether an agent had the kernel keep it.
    pub(crate) fn is_kept_for_us(&self) -> bool {
        self.managed && self.ours
    }
}

/// What a neighbour message says: the entry as it is, or `None` if it is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NeighbourMessage {
    pub(crate) hop: Hop,
    pub(crate) entry: Option<Neighbour>,
}

/// Reads a message about an IPv4 or IPv6 neighbour.
pub(crate) fn parse(message: &Message<'_>) -> Option<NeighbourMessage> {
    if !matches!(message.kind, RTM_NEWNEIGH | RTM_DELNEIGH) {
        return None;
    }
    let attributes = Attributes::after(message.payload, HEADER);
    let destination = attributes.find(NDA_DST)?;
    let address = match i32::from(*message.payload.first()?) {
        libc::AF_INET => IpAddr::from(*destination.first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*destination.first_chunk::<16>()?),
        _ => return None,
    };
    let hop = Hop { interface: u32_at(message.payload, 4)?, address };
    let state = u16_at(message.payload, 8)?;
    let extended = attributes.find(NDA_FLAGS_EXT).and_then(|value| u32_at(value, 0)).unwrap_or_default();
    let mac = attributes.find(NDA_LLADDR).and_then(|value| value.try_into().ok());
    let entry = Neighbour {
        mac: mac.filter(|_| state & USABLE != 0),
        managed: extended & NTF_EXT_MANAGED != 0,
        ours: attributes.find(NDA_PROTOCOL).is_some_and(|value| value.first() == Some(&PROTOCOL)),
        fixed: state & (NOARP | PERMANENT) != 0,
    };
    Some(NeighbourMessage { hop, entry: (message.kind == RTM_NEWNEIGH).then_some(entry) })
}

/// A request for all neighbours of that address family.
pub(crate) fn dump_request(family: i32) -> Request {
    let mut header = [0; HEADER];
    header[0] = family.to_ne_bytes()[0];
    Request::new(RTM_GETNEIGH, 0, &header)
}

/// How the kernel is asked about a next hop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Care {
    /// Resolve it now and keep it resolved (`NTF_EXT_MANAGED`, from Linux 5.16; before, the flag goes unseen and
    /// each request is a probe).
    Keep,
    /// Only probe it now, for a kernel that refuses the former.
    Probe,
    /// It is like any other again.
    Release,
}

/// The request to take care of a next hop. Never for a permanent entry: it would not be permanent afterwards.
pub(crate) fn care_request(hop: Hop, care: Care) -> Request {
    let mut header = [0; HEADER];
    let octets = match hop.address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    header[0] = if hop.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }.to_ne_bytes()[0];
    header[4..8].copy_from_slice(&hop.interface.to_ne_bytes());
    header[10] = if care == Care::Keep { NTF_USE | NTF_EXTERNAL } else { NTF_USE };
    let create = if care == Care::Release { 0 } else { flags::CREATE };
    let request = Request::new(RTM_NEWNEIGH, flags::REPLACE | create, &header).attribute(NDA_DST, &octets);
    match care {
        Care::Keep => (request.attribute(NDA_PROTOCOL, &[PROTOCOL]))
            .attribute(NDA_FLAGS_EXT, &NTF_EXT_MANAGED.to_ne_bytes()),
        Care::Probe | Care::Release => request,
    }
}
