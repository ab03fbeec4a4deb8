//! The way to the agent and back, for what guests ask for: through a private interface, with a mark that names the port.

use ncm_common::{counters::PathCounter, drops::DropReason, marks};

use super::{Ended, Step, admit::Sender, encapsulate::is_fresh, flow, limit, refuse};
use crate::{
    context::{Context, Tc},
    count::{count, received},
    drop::drop,
    headers::Frame,
    tables::{NODE, PORTS},
};

/// The largest packet that is handed up, in bytes from the Ethernet header on: beyond any that the agent answers.
const LARGEST: u32 = 1_600;

/// Hands a guest's packet up to the agent, if that is within its port's share. XDP leaves it to tc.
#[inline(always)]
pub fn up<C: Context>(packet: C, sender: Sender, why: u32) -> Step<()> {
    if C::PASSES_UP {
        return Err(Ended::PASS_UP);
    }
    let ifindex = device().ok_or(DropReason::HandUpUnavailable)?;
    // What waits for the agent is bounded in packets.
    let is_large = packet.length() > LARGEST || packet.segment_size() != 0;
    if is_large || !limit::grants_hand_up(sender.index) {
        return refuse(DropReason::HandUpLimited);
    }
    let action = packet.hand_up(ifindex, marks::mark(why, sender.index))?;
    count(PathCounter::HandedUp, packet.length());
    Err(Ended::sent(action))
}

/// The interface that leads to the agent; `None` without one, and without the agent: nobody would read it there.
#[inline(always)]
pub fn device() -> Option<u32> {
    let ifindex = NODE.get(&0).map_or(0, |node| node.hand_up_ifindex);
    (ifindex != 0 && is_fresh(flow::clock())).then_some(ifindex)
}

/// Ends a packet that was handed up: the agent's packet socket has read it.
#[inline(always)]
pub fn ended() -> i32 {
    Tc::DROP
}

/// Hands what the agent sends to the guest that its mark names, as it is; or what it has held to that guest's own interface, as if
/// the guest sent it now: it keeps its mark, by which it is known there. Nothing else leaves here.
#[inline(always)]
pub fn down(packet: Tc) -> i32 {
    let (mark, bytes) = (packet.mark(), packet.length());
    let (index, why) = (mark & ((1 << marks::PORT_BITS) - 1), mark >> marks::PORT_BITS);
    if why & marks::END != 0 {
        drop(packet, index, why & !marks::END, bytes);
        return Tc::DROP;
    }
    let port = PORTS.get(&index).filter(|port| {
        matches!(why, marks::DELIVER | marks::RELEASE) && port.generation != 0 && port.ifindex != 0
    });
    let Some(port) = port else {
        drop(packet, 0, DropReason::UnknownPort as u32, bytes);
        return Tc::DROP;
    };
    if why == marks::RELEASE {
        count(PathCounter::Released, bytes);
        return packet.send_in(port.ifindex);
    }
    packet.clear_mark();
    let Some(action) = packet.send(port.ifindex) else { return Tc::DROP };
    received(index, bytes);
    count(PathCounter::HandedDown, bytes);
    action
}
