//! Programs for benchmarks alone, in an object of their own: the minimal program that ours are compared with, and
//! wrappers that put the packet back as it was, as the kernel runs a program again and again on one packet; or that make it
//! one of another flow each time.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, xdp_md},
    helpers::bpf_xdp_adjust_head,
    macros::{map, xdp},
    maps::{Array, HashMap},
    programs::XdpContext,
};
use ncm_common::tables::{Flow, FlowKey, capacity};
use ncm_ebpf::{
    context::{Context, Xdp},
    headers::{
        Window,
        ethernet::{self, ethertype},
        vxlan,
    },
    tables::DEVICES,
};

use crate::programs::{from_guest, from_wire};

/// Flows of the minimal program: a table of the flow table's kind, key, value and capacity. The benchmark writes it, the minimal
/// program reads it.
#[map]
static BENCH_FLOWS: HashMap<[u32; WORDS], Flow> =
    HashMap::with_max_entries(capacity::FLOWS, BPF_F_NO_PREALLOC);

/// How packets differ from run to run. All is as in memory.
#[derive(Clone, Copy)]
#[repr(C)]
struct Vary {
    /// Which run it is.
    run: u32,
    /// What the run's number is multiplied with, so that neighbours in time are none in memory; 0: all packets are alike.
    spread: u32,
    /// Where the transport port is that differs, and its first value.
    port_at: u32,
    port: u32,
    port_mask: u32,
    /// Where the last byte of the address is that differs, and its first value.
    address_at: u32,
    address: u32,
    address_mask: u32,
}

/// The one entry is the benchmark's to write.
#[map]
static BENCH_VARY: Array<Vary> = Array::with_max_entries(1, 0);

/// Makes the packet the next one; tells whether. Apart from the wrappers, as a program's stack holds 512 bytes over all nested
/// calls, and the product's programs need them.
#[inline(never)]
fn vary(context: *mut xdp_md) -> bool {
    varied(&XdpContext::new(context)).is_some()
}

#[inline(always)]
fn varied(context: &XdpContext) -> Option<()> {
    let vary = BENCH_VARY.get_ptr_mut(0)?;
    // SAFETY: the kernel keeps the value as long as the program runs; nobody else writes it meanwhile.
    let Vary { run, spread, port_at, port, port_mask, address_at, address, address_mask } = unsafe { *vary };
    // SAFETY: likewise.
    unsafe { (*vary).run = run.wrapping_add(1) };
    let number = run.wrapping_mul(spread);
    let (start, end) = (context.data(), context.data_end());
    let port_at = start + (port_at & 0xff) as usize;
    if port_at + 2 > end {
        return None;
    }
    let word = (port | (number & port_mask)) as u16;
    // SAFETY: both bytes are inside the packet.
    unsafe {
        *(port_at as *mut u8) = (word >> 8) as u8;
        *((port_at + 1) as *mut u8) = word as u8;
    }
    // There is always something behind an address.
    let address_at = start + (address_at & 0xff) as usize;
    if address_at + 2 > end {
        return None;
    }
    // SAFETY: the byte is inside the packet.
    unsafe { *(address_at as *mut u8) = (address | (number >> 15 & address_mask)) as u8 };
    Some(())
}

/// The words of a [`FlowKey`].
const WORDS: usize = size_of::<FlowKey>() / 4;

/// The least that a forwarding program does: parse Ethernet and IP, one lookup, redirect. No options, no extension headers, no
/// fragments; two ports, whatever the protocol.
#[inline(always)]
fn reference(context: &XdpContext) -> Option<u32> {
    let ethernet = window::<{ ethernet::LEN }>(context, 0)?;
    let mut key = [0_u32; WORDS];
    // SAFETY: the context is the kernel's.
    key[0] = unsafe { (*context.ctx).ingress_ifindex };
    match ethernet.be16::<12>() {
        ethertype::IPV4 => {
            let window = window::<24>(context, ethernet::LEN)?;
            if window.u8::<0>() != 0x45 {
                return None;
            }
            // Addresses as the flow table has them: mapped to IPv6.
            key[3] = 0xffff_u32.to_be();
            key[4] = window.raw32::<12>();
            key[7] = 0xffff_u32.to_be();
            key[8] = window.raw32::<16>();
            key[9] = window.raw32::<20>();
            key[10] = u32::from(window.u8::<9>());
        }
        ethertype::IPV6 => {
            let window = window::<44>(context, ethernet::LEN)?;
            key[1] = window.raw32::<8>();
            key[2] = window.raw32::<12>();
            key[3] = window.raw32::<16>();
            key[4] = window.raw32::<20>();
            key[5] = window.raw32::<24>();
            key[6] = window.raw32::<28>();
            key[7] = window.raw32::<32>();
            key[8] = window.raw32::<36>();
            key[9] = window.raw32::<40>();
            key[10] = u32::from(window.u8::<6>());
        }
        _ => return None,
    }
    // SAFETY: the map is not preallocated, so that an entry is not reused while it is read.
    let flow = unsafe { BENCH_FLOWS.get(key) }?;
    DEVICES.redirect(flow.target)
}

/// Some bytes of the packet.
#[inline(always)]
fn window<const N: usize>(context: &XdpContext, offset: usize) -> Option<Window<'_, N>> {
    let start = context.data() + offset;
    if start + N > context.data_end() {
        return None;
    }
    // SAFETY: the bytes are inside the packet.
    Some(unsafe { Window::new(start as *const u8) })
}

/// The minimal program.
#[xdp(frags)]
fn bench_reference(context: XdpContext) -> u32 {
    let sent = if vary(context.ctx) { reference(&context) } else { None };
    sent.unwrap_or(Xdp::DROP as u32)
}

/// `guest_xdp` on a frame that goes into the tunnel unrouted; afterwards the frame is as before.
#[xdp(frags)]
fn bench_guest_xdp(context: XdpContext) -> u32 {
    if !vary(context.ctx) {
        return Xdp::DROP as u32;
    }
    let action = from_guest(Xdp::new(&context));
    if move_head(&context, vxlan::LEN_V4 as i32) { action } else { Xdp::DROP as u32 }
}

/// `wire_xdp` on a tunnel frame for a guest of this host, unrouted; afterwards the frame is as before, as what was
/// taken off its front is still there.
#[xdp(frags)]
fn bench_wire_xdp(context: XdpContext) -> u32 {
    if !vary(context.ctx) {
        return Xdp::DROP as u32;
    }
    let action = from_wire(Xdp::new(&context));
    if move_head(&context, -(vxlan::LEN_V4 as i32)) { action } else { Xdp::DROP as u32 }
}

/// What the kernel itself takes to run a program.
#[xdp(frags)]
fn bench_nothing(_: XdpContext) -> u32 {
    Xdp::PASS as u32
}

/// What the wrappers add at the beginning.
#[xdp(frags)]
fn bench_vary(context: XdpContext) -> u32 {
    if vary(context.ctx) { Xdp::PASS as u32 } else { Xdp::DROP as u32 }
}

/// What they add at the end, twice: the head is moved there and back.
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
