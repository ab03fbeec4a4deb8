//! Delivery of a guest's packet: to another guest of this host, or into the tunnel.

use aya_log_ebpf::trace;
use ncm_common::{
    counters::PathCounter,
    drops::DropReason,
    tables::{Endpoint, endpoint_flags, port_flags},
};

use super::{Step, Verdict, admit::Sender, encapsulate::encapsulate, open, port};
use crate::{
    context::{Context, Refused},
    count::{count, received},
    headers::{
        Mac,
        ethernet::{self, Ethernet},
        ipv4::Ipv4,
        transport::Transport,
    },
};

/// The parsed headers of a packet.
pub struct Packet<'a> {
    /// Ethernet.
    pub ethernet: &'a Ethernet,
    /// IPv4.
    pub ip: &'a Ipv4,
    /// What follows.
    pub transport: &'a Transport,
}

/// Where a packet goes next.
pub struct Hop<'a> {
    /// The endpoint that takes it.
    pub endpoint: &'a Endpoint,
    /// The VNI in which that endpoint is.
    pub vni: u32,
    /// What routing changes; `None` for a frame that is switched.
    pub routed: Option<Routed>,
}

/// What routing changes in a packet, beside its TTL.
#[derive(Clone, Copy)]
pub struct Routed {
    /// The destination's MAC.
    pub destination: Mac,
    /// Source MAC towards a guest of this host: its subnet's gateway.
    pub source_here: Mac,
    /// Source MAC towards another host: the distributed router's.
    pub source_remote: Mac,
}

impl From<Refused> for DropReason {
    fn from(_: Refused) -> Self {
        Self::RewriteFailed
    }
}

/// Delivers a packet from `sender` to where `hop` says.
#[inline(always)]
pub fn deliver<C: Context>(packet: C, sender: Sender, whole: &Packet<'_>, hop: &Hop<'_>) -> Step<Verdict> {
    let endpoint = hop.endpoint;
    if endpoint.flags & endpoint_flags::LOCAL == 0 {
        return encapsulate(packet, whole, hop);
    }
    if endpoint.target == sender.index {
        return Err(DropReason::Hairpin);
    }
    let to = port(endpoint.target, endpoint.generation)?;
    open(to)?;
    if to.ifindex == 0 {
        return Err(DropReason::NoDevice);
    }
    if C::PASSES_UP && to.flags & port_flags::XDP_TARGET == 0 {
        return Ok(Verdict::PassUp);
    }
    let bytes = packet.length();
    fits(packet.segment_size(), bytes, to.mtu)?;
    if let Some(routed) = &hop.routed {
        rewrite_macs(packet, routed.destination, routed.source_here)?;
        lower_ttl(packet, whole.ip)?;
    }
    let action = packet.send(to.ifindex).ok_or(DropReason::NoDevice)?;
    received(endpoint.target, bytes);
    count(PathCounter::LocalDelivered, bytes);
    trace!(packet, "port {} to port {}: {} bytes", sender.index, endpoint.target, bytes);
    Ok(Verdict::Sent(action))
}

/// Refuses a frame that is larger than the receiving guest's interface takes. The kernel cuts a frame that is to be segmented.
#[inline(always)]
pub fn fits(segment_size: u32, bytes: u32, mtu: u16) -> Step<()> {
    if segment_size == 0 && mtu != 0 && bytes > u32::from(mtu) + ethernet::LEN as u32 {
        return Err(DropReason::TooBig);
    }
    Ok(())
}

/// Replaces both MACs.
#[inline(always)]
fn rewrite_macs<C: Context>(packet: C, destination: Mac, source: Mac) -> Result<(), Refused> {
    let (to, from) = (destination.bytes(), source.bytes());
    packet.store(
        0,
        &[to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1], from[2], from[3], from[4], from[5]],
    )
}

/// Lowers the TTL by one, with the header's checksum.
#[inline(always)]
pub fn lower_ttl<C: Context>(packet: C, ip: &Ipv4) -> Result<(), Refused> {
    packet.store(ethernet::LEN + 8, &ip.with_ttl_decremented())
}
