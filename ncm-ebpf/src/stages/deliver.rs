//! Delivery of a guest's packet by its flow: to another guest of this host, or into the tunnel.

use aya_log_ebpf::trace;
use ncm_common::{
    counters::PathCounter,
    drops::DropReason,
    tables::{Port, epoch_slot, flow_flags, port_flags, ticks},
};

use super::{
    Ended, Step,
    admit::Sender,
    by_ip,
    encapsulate::encapsulate,
    flow,
    guest::PAYLOAD,
    open, port,
    related::{self, Way},
    settle, subnet,
};
use crate::{
    context::{Context, Refused},
    count::{count, received},
    headers::{Mac, Packet, ethernet},
    scratch::{Scratch, VALID, forget},
    tables::Entry,
};

/// Sends a packet from `sender` where its flow leads: the known one, or else what is decided in `scratch.here`.
#[inline(always)]
pub fn deliver<C: Context>(
    packet: C,
    sender: Sender,
    scratch: &mut Scratch,
    known: Option<Entry>,
    clock: u64,
) -> Step<i32> {
    let flow = match known {
        Some(entry) => entry.flow(),
        None => &scratch.here.flow,
    };
    // All that is needed of the flow, before anything else is done: in which table it is does not matter from here on.
    let (flags, target, generation) = (flow.flags, flow.target, flow.target_generation);
    scratch.tunnel.set_inner(Mac::new(&flow.to_mac), Mac::new(&flow.from_mac), flow.vni);
    if known.is_some_and(|entry| !entry.is_of(sender.index)) {
        return Err(DropReason::StaleIndex.into());
    }
    let scratch = forget(scratch);
    let routed = flags & flow_flags::ROUTED != 0;
    if routed && scratch.packet.ttl <= 1 {
        return Err(Ended::EXPIRED);
    }
    if flags & flow_flags::LOCAL == 0 {
        return encapsulate(
            packet,
            &scratch.packet,
            &mut scratch.tunnel,
            (target, generation),
            routed,
            clock,
        );
    }
    let to = port(target, generation)?;
    open(to)?;
    if to.ifindex == 0 {
        return Err(DropReason::NoDevice.into());
    }
    if C::PASSES_UP && to.flags & port_flags::XDP_TARGET == 0 {
        return Err(Ended::PASS_UP);
    }
    receive(packet, sender, target, to, scratch, ticks(clock))?;
    let bytes = packet.length();
    if !fits(packet.segment_size(), bytes, to.mtu) {
        return Err(Ended::too_big(u32::from(to.mtu)));
    }
    if routed {
        packet.store(0, &scratch.tunnel.inner_macs())?;
        lower_ttl(packet, &scratch.packet)?;
    }
    let action = packet.send(to.ifindex).ok_or(DropReason::NoDevice)?;
    received(target, bytes);
    count(PathCounter::LocalDelivered, bytes);
    trace!(packet, "port {} to port {}: {} bytes", sender.index, target, bytes);
    Ok(action)
}

/// Lets the packet in at the port that it is for, by that port's own flow and policy.
#[inline(always)]
fn receive<C: Context>(
    packet: C,
    sender: Sender,
    index: u32,
    to: &'static Port,
    scratch: &mut Scratch,
    now: u32,
) -> Step<()> {
    let side = &mut scratch.there;
    flow::key(&scratch.packet, index, true, &mut side.key);
    if let Some(entry) = flow::find(&scratch.packet, &side.key)
        && flow::is_steady(entry, to, now, true)
        && entry.is_of(index)
    {
        flow::see(entry, true, now);
        return Ok(());
    }
    side.now = now;
    Ended::step(begin(packet, sender.port, to, scratch))
}

/// Decides about a packet from another guest of this host that no flow of its receiver decides about.
#[inline(never)]
fn begin<C: Context>(packet: C, from: &'static Port, to: &Port, scratch: &mut Scratch) -> u32 {
    let sender = Sender { index: scratch.here.key.port, port: from };
    flow::stamp(to, &mut scratch.there);
    if scratch.packet.is_icmp_error()
        && related::lets_through::<C, PAYLOAD>(packet, to, scratch, Way::ToNeighbour) != 0
    {
        return 0;
    }
    let (packet, side) = (&scratch.packet, &mut scratch.there);
    settle::look(packet, side);
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
