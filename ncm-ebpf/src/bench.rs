//! Programs for benchmarks alone, in an object of their own: the minimal program that ours are compared with, and
//! wrappers that put the packet back as it was, as the kernel runs a program again and again on one packet.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::bpf_xdp_adjust_head,
    macros::{classifier, map, xdp},
    maps::HashMap,
    programs::{TcContext, XdpContext},
};
use ncm_ebpf::{
    context::{Context, Tc, Xdp},
    headers::{
        Packet,
        ethernet::{self, Ethernet, ethertype},
        vxlan,
    },
};

use crate::programs::{from_guest, from_wire};

/// The key of a flow: 24 bytes, as in a flow table. All numbers are as in memory.
#[derive(Clone, Copy)]
#[repr(C)]
struct FlowKey {
    /// Index of the interface that the packet comes in by.
    interface: u32,
    /// Source address.
    source: u32,
    /// Destination address.
    destination: u32,
    /// Source and destination port.
    ports: u32,
    /// Protocol.
    protocol: u32,
    /// Zero.
    reserved: u32,
}

/// The value of a flow: 64 bytes, the first four of which are the interface to leave by.
#[derive(Clone, Copy)]
#[repr(C)]
struct Flow {
    /// Interface to leave by.
    interface: u32,
    /// Zero.
    reserved: [u32; 15],
}

/// Flows of the minimal program. The benchmark writes it, the minimal program reads it.
#[map]
static BENCH_FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

/// The least that a forwarding program does: parse Ethernet and IPv4, one lookup, redirect.
#[inline(always)]
fn reference<C: Context>(packet: C) -> Option<i32> {
    let ethernet = Ethernet::parse(&packet, 0)?;
    if ethernet.ethertype != ethertype::IPV4 {
        return None;
    }
    let mut whole = Packet::EMPTY;
    whole.read_v4(&packet, ethernet::LEN, &ethernet).ok()?;
    let key = FlowKey {
        interface: packet.interface(),
        source: whole.source.as_v4().word(),
        destination: whole.destination.as_v4().word(),
        ports: whole.ports,
        protocol: whole.protocol.into(),
        reserved: 0,
    };
    // SAFETY: the map is not preallocated, so that an entry is not reused while it is read.
    let flow = unsafe { BENCH_FLOWS.get(key) }?;
    packet.send(flow.interface)
}

/// The minimal program, at XDP.
#[xdp(frags)]
fn bench_reference(context: XdpContext) -> u32 {
    let packet = Xdp::new(&context);
    reference(packet).unwrap_or(Xdp::DROP) as u32
}

/// The minimal program, at tc.
#[classifier]
fn bench_reference_tc(context: TcContext) -> i32 {
    let packet = Tc::new(&context);
    reference(packet).unwrap_or(Tc::DROP)
}

/// `guest_xdp` on a frame that goes into the tunnel unrouted; afterwards the frame is as before.
#[xdp(frags)]
fn bench_guest_xdp(context: XdpContext) -> u32 {
    let action = from_guest(Xdp::new(&context));
    if move_head(&context, vxlan::LEN_V4 as i32) { action } else { Xdp::DROP as u32 }
}

/// `wire_xdp` on a tunnel frame for a guest of this host, unrouted; afterwards the frame is as before, as what was
/// taken off its front is still there.
#[xdp(frags)]
fn bench_wire_xdp(context: XdpContext) -> u32 {
    let action = from_wire(Xdp::new(&context));
    if move_head(&context, -(vxlan::LEN_V4 as i32)) { action } else { Xdp::DROP as u32 }
}

/// What the wrappers add, twice: the head is moved there and back. Half of its time is theirs.
#[xdp(frags)]
fn bench_undo(context: XdpContext) -> u32 {
    let there = move_head(&context, -(vxlan::LEN_V4 as i32));
    if there && move_head(&context, vxlan::LEN_V4 as i32) { Xdp::PASS as u32 } else { Xdp::DROP as u32 }
}

/// Moves the start of the packet.
#[inline(always)]
fn move_head(context: &XdpContext, by: i32) -> bool {
    // SAFETY: the context is the kernel's.
    unsafe { bpf_xdp_adjust_head(context.ctx, by) == 0 }
}
