//! Into the tunnel: the remote host's template, a next hop by the flow's hash, and what is different for each packet.

use aya_log_ebpf::trace;
use ncm_common::{
    counters::PathCounter,
    drops::DropReason,
    tables::{Host, NextHop, NextHopGroup, NextHopHalf, Node, TemplateHalf, next_hop_flags},
};

use super::{Ended, Step, deliver::lower_ttl};
use crate::{
    context::{Context, Question, Refused},
    count::count,
    headers::{
        Mac, Packet, Tunnel,
        ethernet::{self, ethertype},
        tunnel::{OUTER_V4, OUTER_V6},
    },
    tables::{HEARTBEAT, HOSTS, NEXT_HOP_GROUPS, NODE},
};

/// How old the agent's heartbeat may be, in nanoseconds, before the kernel's tables are trusted rather than the agent's.
const HEARTBEAT_AGE: u64 = 3_000_000_000;

/// The least MTU that is reported.
const LEAST: u32 = 68;

/// Sends a packet to the host that its flow names; the flow's MACs and VNI are in `tunnel` already, and `clock` is the time. What does not fit ends with the largest packet that would.
#[inline(always)]
pub fn encapsulate<C: Context>(
    packet: C,
    whole: &Packet,
    tunnel: &mut Tunnel,
    (target, generation): (u32, u32),
    routed: bool,
    clock: u64,
) -> Step<i32> {
    let template = template(target, generation)?;
    let bytes = packet.length();
    fits(&packet, whole, template)?;
    let hash = whole.flow_hash();
    let fresh = is_fresh(clock);
    let (next, ifindex) = next_hop(template.group, hash, fresh);
    if C::PASSES_UP && next.is_none_or(|next| next.flags & next_hop_flags::XDP_TARGET == 0) {
        return Err(Ended::PASS_UP);
    }
    tunnel.set_outer(template, bytes, hash);
    tunnel.set_inner_ethertype(if whole.family == 4 { ethertype::IPV4 } else { ethertype::IPV6 });
    let over_v6 = template.headers_len == OUTER_V6;
    if routed {
        lower_ttl(packet, whole)?;
    }
    let action = match next {
        Some(next) => {
            wrap(packet, tunnel, over_v6, next)?;
            let sent = if next.flags & next_hop_flags::VETH == 0 {
                packet.send(next.ifindex)
            } else {
                packet.send_disowned(next.ifindex)
            };
            sent.ok_or(DropReason::NoDevice)?
        }
        None => {
            let ifindex = kernels_way(packet, tunnel, over_v6, if fresh { FRESH } else { ifindex });
            if ifindex == 0 {
                return Err(DropReason::NextHopUnresolved.into());
            }
            wrap(packet, tunnel, over_v6, &UNKNOWN)?;
            count(PathCounter::KernelResolved, bytes);
            packet.send_to_neighbour(ifindex)
        }
    };
    count(PathCounter::Encapsulated, bytes);
    trace!(packet, "to host {}: {} bytes", target, bytes);
    Ok(action)
}

/// Puts the packet into its outer headers, for that next hop.
#[inline(always)]
fn wrap<C: Context>(packet: C, tunnel: &mut Tunnel, over_v6: bool, next: &NextHop) -> Result<(), Refused> {
    let (to, from) = (Mac::new(&next.destination), Mac::new(&next.source));
    if over_v6 {
        tunnel.set_link_v6(to, from);
        packet.encapsulate_v6(tunnel, next.vlan)
    } else {
        tunnel.set_link_v4(to, from);
        packet.encapsulate_v4(tunnel, next.vlan)
    }
}

/// The next hop that the kernel is to find.
const UNKNOWN: NextHop = NextHop { ifindex: 0, destination: [0; 6], source: [0; 6], vlan: 0, flags: 0 };

/// Stands for the interface of the last way where the agent is there to know it.
const FRESH: u32 = u32::MAX;

/// The interface by which the kernel itself would reach a host, or 0. `last` is the one by which the way was known last. Apart
/// from the straight path, for the sake of its stack.
#[inline(never)]
fn kernels_way<C: Context>(packet: C, headers: &Tunnel, over_v6: bool, last: u32) -> u32 {
    let Some(node) = NODE.get(&0) else { return 0 };
    let question = Question {
        // As which interface the kernel is asked.
        asking: node.relay_ifindex,
        headers,
        over_v6,
        // The agent resolves next hops as long as it is there; without it, the kernel does.
        unresolved: last != FRESH,
        otherwise: if last == FRESH { 0 } else { last },
    };
    // The kernel may know a way that is not for tunnels, such as a management network's.
    packet.way(&question).filter(|way| *way == question.otherwise || is_uplink(node, *way)).unwrap_or(0)
}

/// The half in use of a host's template.
#[inline(always)]
fn template(index: u32, generation: u32) -> Step<&'static TemplateHalf> {
    let host: &'static Host = HOSTS.get(&index).ok_or(DropReason::StaleIndex)?;
    if host.generation != generation || generation == 0 {
        return Err(DropReason::StaleIndex.into());
    }
    let template = if active(&host.active) == 0 { &host.halves[0] } else { &host.halves[1] };
    if matches!(template.headers_len, OUTER_V4 | OUTER_V6) {
        Ok(template)
    } else {
        Err(DropReason::NextHopUnresolved.into())
    }
}

/// The next hop for a flow, if the group has a resolved one and the agent is there to keep it true. Otherwise, the
/// interface by which the way was last known, or 0.
#[inline(always)]
fn next_hop(group: u32, hash: u32, fresh: bool) -> (Option<&'static NextHop>, u32) {
    let Some(group) = NEXT_HOP_GROUPS.get(&group) else { return (None, 0) };
    let group: &'static NextHopGroup = group;
    if group.generation == 0 {
        return (None, 0);
    }
    let half: &'static NextHopHalf =
        if active(&group.active) == 0 { &group.halves[0] } else { &group.halves[1] };
    // The upper half of the hash picks the hop, the lower one the source port: neither tells about the other.
    let number = ((hash >> 16) * (half.count & 15)) >> 16;
    let next = &half.hops[(number & 7) as usize];
    if half.count != 0 && fresh {
        return (Some(next), 0);
    }
    // A tagged hop names the device below the VLAN's, where the kernel would look for the neighbour in vain.
    (None, if next.vlan == 0 { next.ifindex } else { 0 })
}

/// Which half is in use. The agent writes the other one first and then this word.
#[inline(always)]
fn active(word: &u32) -> u32 {
    // SAFETY: a reference may be read; volatile, as the halves must be chosen by one reading.
    unsafe { core::ptr::from_ref(word).read_volatile() & 1 }
}

/// Whether the agent follows the underlay's changes, by that clock.
#[inline(always)]
pub fn is_fresh(clock: u64) -> bool {
    HEARTBEAT.get(&0).is_some_and(|beat| clock.saturating_sub(*beat) < HEARTBEAT_AGE)
}

/// Whether tunnel frames may leave by an interface.
#[inline(always)]
fn is_uplink(node: &Node, ifindex: u32) -> bool {
    node.uplinks.iter().fold(false, |found, uplink| found | (uplink.ifindex == ifindex))
}

/// Refuses what is too large for the path: an IP packet of its MTU has to carry the frame, or each of its segments.
#[inline(always)]
fn fits<C: Context>(packet: &C, whole: &Packet, template: &TemplateHalf) -> Step<()> {
    let (mtu, outer) = (u32::from(template.mtu), u32::from(template.headers_len));
    let segment = packet.segment_size();
    let frame = if segment == 0 {
        packet.length()
    } else {
        ethernet::LEN as u32 + whole.transport + u32::from(whole.header_len) + segment
    };
    if mtu != 0 && frame + outer > mtu {
        // At the least what IPv4 promises (RFC 791): 0 would say nothing.
        let fits = mtu.saturating_sub(outer + ethernet::LEN as u32);
        return Err(Ended::too_big(if fits < LEAST { LEAST } else { fits }));
    }
    Ok(())
}
