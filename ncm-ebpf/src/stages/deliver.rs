//! Delivery of a guest's packet by its flow: to another guest of this host, or into the tunnel.

use aya_log_ebpf::trace;
use ncm_common::{
    counters::PathCounter,
    drops::DropReason,
    tables::{Port, epoch_slot, flow_flags, port_flags},
};

use super::{
    Ended, Step, admit::Sender, by_ip, encapsulate::encapsulate, errors, flow, open, port, settle, subnet,
};
use crate::{
    context::{Context, Refused},
    count::{count, received},
    headers::{Mac, Packet, ethernet},
    scratch::{Scratch, Side, VALID},
    tables::Entry,
};

/// Sends a packet from `sender` where its flow leads: the known one, or else what is decided in `scratch.here`.
#[inline(always)]
pub fn deliver<C: Context>(
    packet: C,
    sender: Sender,
    scratch: &mut Scratch,
    known: Option<Entry>,
) -> Step<i32> {
    let flow = match known {
        Some(entry) => entry.flow(),
        None => &scratch.here.flow,
    };
    let routed = flow.flags & flow_flags::ROUTED != 0;
    if routed && scratch.packet.ttl <= 1 {
        return Err(errors::time_exceeded(packet, sender, scratch));
    }
    if flow.flags & flow_flags::LOCAL == 0 {
        return match encapsulate(packet, &scratch.packet, flow, &mut scratch.tunnel) {
            Err(Ended(mtu)) if mtu & TOO_BIG != 0 => {
                Err(errors::too_big(packet, sender, scratch, mtu & !TOO_BIG))
            }
            other => other,
        };
    }
    let (target, to_mac, from_mac) = (flow.target, Mac::new(&flow.to_mac), Mac::new(&flow.from_mac));
    let to = port(target, flow.target_generation)?;
    open(to)?;
    if to.ifindex == 0 {
        return Err(DropReason::NoDevice.into());
    }
    if C::PASSES_UP && to.flags & port_flags::XDP_TARGET == 0 {
        return Err(Ended::PASS_UP);
    }
    let bytes = packet.length();
    if !fits(packet.segment_size(), bytes, to.mtu) {
        return Err(errors::too_big(packet, sender, scratch, u32::from(to.mtu)));
    }
    receive(sender, target, to, &scratch.packet, &mut scratch.there)?;
    if routed {
        rewrite_macs(packet, to_mac, from_mac)?;
        lower_ttl(packet, &scratch.packet)?;
    }
    let action = packet.send(to.ifindex).ok_or(DropReason::NoDevice)?;
    received(target, bytes);
    count(PathCounter::LocalDelivered, bytes);
    trace!(packet, "port {} to port {}: {} bytes", sender.index, target, bytes);
    Ok(action)
}

/// Added to the MTU that a packet is too big for, where it stands for how a packet's way ended.
pub const TOO_BIG: u32 = 1 << 20;

/// Lets the packet in at the port that it is for, by that port's own flow and policy.
#[inline(always)]
fn receive(sender: Sender, index: u32, to: &'static Port, packet: &Packet, side: &mut Side) -> Step<()> {
    let now = flow::now();
    flow::key(packet, index, true, &mut side.key);
    if let Some(entry) = flow::find(packet, &side.key)
        && flow::is_steady(entry, to, now, true)
    {
        flow::see(entry, true, now);
        return Ok(());
    }
    side.now = now;
    Ended::step(begin(sender, to, packet, side))
}

/// Decides about a packet from another guest of this host that no flow of its receiver decides about.
#[inline(never)]
fn begin(sender: Sender, to: &Port, packet: &Packet, side: &mut Side) -> u32 {
    settle::look(to, packet, side);
    let Ok(source) = sender.source(&packet.from, &packet.source) else {
        return DropReason::SpoofedIp as u32;
    };
    let Ok(from) = subnet(source.subnet, source.subnet_generation) else {
        return DropReason::StaleIndex as u32;
    };
    if side.found != VALID {
        let slot = epoch_slot(from.vni, &packet.source.bytes());
        side.flow.remote_slot = slot;
        side.flow.remote_epoch = flow::epoch(slot);
        side.changed = 1;
    }
    side.members = by_ip(from.vni, packet.source).map_or(0, |source| source.members);
    settle::settle(to, packet, side, true)
}

/// Whether a frame is no larger than the receiving guest's interface takes. The kernel cuts a frame that is to be segmented.
#[inline(always)]
pub fn fits(segment_size: u32, bytes: u32, mtu: u16) -> bool {
    segment_size != 0 || mtu == 0 || bytes <= u32::from(mtu) + ethernet::LEN as u32
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

/// Lowers the TTL or hop limit by one, with the IPv4 header's checksum.
#[inline(always)]
pub fn lower_ttl<C: Context>(packet: C, whole: &Packet) -> Result<(), Refused> {
    let ttl = whole.ttl.wrapping_sub(1);
    if whole.family == 4 {
        packet.store(ethernet::LEN + 8, &whole.with_ttl(ttl))
    } else {
        packet.store(ethernet::LEN + 7, &[ttl])
    }
}
