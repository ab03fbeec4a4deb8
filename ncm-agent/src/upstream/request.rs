//! A request in the words of the contract.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};

use ncm_common::asks::{Ask, ask_kinds};
use ncm_model::wire::host_request::ResourceStateRequest;
use ncm_model::wire::{EtherType, Protocol, RequestType};

/// Protocol numbers of IP headers.
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Ids for requests: UUIDs by chance (RFC 9562, version 4).
#[derive(Debug)]
pub(super) struct Ids {
    state: [u64; 2],
}

impl Ids {
    /// Ids that no other run gives.
    pub(super) fn new() -> Self {
        let mut seed = [0; 16];
        let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut seed));
        if read.is_err() {
            // Never seen; then the time and the process make the difference.
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let now = now.map_or(0, |now| now.as_nanos());
            seed = (now << 32 | u128::from(std::process::id())).to_ne_bytes();
        }
        let (low, high) = seed.split_at(8);
        let word = |bytes: &[u8]| bytes.try_into().map_or(1, u64::from_ne_bytes);
        Self { state: [word(low) | 1, word(high)] }
    }

    /// The next one.
    pub(super) fn next(&mut self) -> String {
        let (high, low) = (self.word(), self.word());
        let (high, low) = (high & !0xf000 | 0x4000, low & !(3 << 62) | 1 << 63);
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }

    /// A generator (xoroshiro128+) that need not be a good one: the seed is.
    fn word(&mut self) -> u64 {
        let [a, mut b] = self.state;
        let word = a.wrapping_add(b);
        b ^= a;
        self.state = [a.rotate_left(24) ^ b ^ b << 16, b.rotate_left(37)];
        word
    }
}

/// Asks for what a packet wants for, as the contract has it: source, ports and protocol as in the packet; the destination is what is
/// to become known, which for a routed packet may be its next hop.
pub(super) fn request(ask: &Ask, id: &str) -> ResourceStateRequest {
    let (source, target) = (address(ask.source), address(ask.target));
    let ethertype = if target.is_ipv4() { EtherType::Ipv4 } else { EtherType::Ipv6 };
    let protocol = match (ask.kind, ask.protocol) {
        (ask_kinds::ARP, _) => Protocol::Arp,
        (_, ICMP | ICMPV6) => Protocol::Icmp,
        (_, UDP) => Protocol::Udp,
        // There are no words for others.
        _ => Protocol::Tcp,
    };
    ResourceStateRequest {
        request_type: RequestType::OnDemand.into(),
        request_id: id.to_owned(),
        tunnel_id: ask.vni,
        source_ip: source.to_string(),
        source_port: u16::from_be_bytes(ask.source_port).into(),
        destination_ip: target.to_string(),
        destination_port: u16::from_be_bytes(ask.destination_port).into(),
        ethertype: ethertype.into(),
        protocol: protocol.into(),
    }
}

/// Says that the agent has started, and may have missed something.
pub(super) fn restarted(id: &str) -> ResourceStateRequest {
    ResourceStateRequest {
        request_type: RequestType::AgentRestarted.into(),
        request_id: id.to_owned(),
        ..ResourceStateRequest::default()
    }
}

fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}
