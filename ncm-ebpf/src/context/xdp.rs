//! A packet at an XDP hook: in the driver's memory, before the kernel knows of it.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};

use super::{Context, Question, Refused, Tunnel, checked, pointer};
use crate::{
    headers::{Frame, Window, checksum, vxlan},
    tables::DEVICES,
};

/// Bytes that encapsulation puts in front of a frame.
const TUNNEL: i32 = vxlan::LEN as i32;

/// Bytes of a VLAN tag.
const TAG: i32 = 4;

/// A packet at an XDP hook.
#[derive(Clone, Copy)]
pub struct Xdp {
    context: *mut xdp_md,
    /// Bytes of the frame as it came, asked for once: stages only want to know before they change it.
    length: u32,
}

impl Xdp {
    /// The packet that the program was called for.
    #[inline(always)]
    #[must_use]
    pub fn new(context: &XdpContext) -> Self {
        // SAFETY: the context is the kernel's.
        let length = unsafe { bpf_xdp_get_buff_len(context.ctx) } as u32;
        Self { context: context.ctx, length }
    }

    /// The first `N` bytes at `offset`, to be written.
    #[inline(always)]
    fn writable<const N: usize>(&self, offset: usize) -> Result<*mut u8, Refused> {
        let context = XdpContext::new(self.context);
        let start = pointer(context.data(), offset);
        if start.wrapping_add(N) > context.data_end() { Err(Refused) } else { Ok(start as *mut u8) }
    }

    #[inline(always)]
    fn move_head(&self, by: i32) -> Result<(), Refused> {
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_xdp_adjust_head(self.context, by) } == 0 { Ok(()) } else { Err(Refused) }
    }
}

impl Frame for Xdp {
    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>> {
        let context = XdpContext::new(self.context);
        checked(context.data(), context.data_end(), offset)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.length
    }
}

impl Context for Xdp {
    const PASSES_UP: bool = true;
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    const PASS_UP: i32 = xdp_action::XDP_PASS as i32;
    const DROP: i32 = xdp_action::XDP_DROP as i32;

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.context).ingress_ifindex }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_linear(&self) -> bool {
        let context = XdpContext::new(self.context);
        context.data_end().wrapping_sub(context.data()) as u32 == self.length()
    }

    #[inline(always)]
    fn store<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), Refused> {
        let start = self.writable::<N>(offset)?;
        // SAFETY: the bytes are inside the packet.
        unsafe { start.cast::<[u8; N]>().write_unaligned(*bytes) };
        Ok(())
    }

    #[inline(always)]
    fn encapsulate(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused> {
        if vlan == 0 {
            self.move_head(-TUNNEL)?;
            let start = self.writable::<64>(0)?;
            write::words::<0>(start, headers);
        } else {
            self.move_head(-(TUNNEL + TAG))?;
            let start = self.writable::<68>(0)?;
            write::words::<4>(start, headers);
            write::tag(start, vlan);
        }
        Ok(())
    }

    #[inline(always)]
    fn decapsulate(&self) -> Result<(), Refused> {
        self.move_head(TUNNEL)
    }

    #[inline(always)]
    fn readdress(&self, old: [u8; 2], new: [u8; 2], checksum: u16) -> Result<(), Refused> {
        self.store(vxlan::PORT_OFFSET, &new)?;
        if checksum != 0 {
            let sum = checksum::update(checksum, u16::from_ne_bytes(old), u16::from_ne_bytes(new));
            // 0 would mean that there is none (RFC 768); its other form in ones' complement is the same sum.
            self.store(vxlan::CHECKSUM_OFFSET, &(if sum == 0 { u16::MAX } else { sum }).to_ne_bytes())?;
        }
        Ok(())
    }

    #[inline(always)]
    fn make_room_for_error(&self, _: u32, _: i32) -> Result<(), Refused> {
        // XDP programs pass such packets up to tc.
        Err(Refused)
    }

    #[inline(always)]
    fn resize(&self, _: u32) -> Result<(), Refused> {
        // XDP programs pass such packets up to tc.
        Err(Refused)
    }

    #[inline(always)]
    fn hand_up(&self, _: u32, _: u32) -> Result<i32, Refused> {
        // XDP programs pass such packets up to tc.
        Err(Refused)
    }

    #[inline(always)]
    fn send(&self, ifindex: u32) -> Option<i32> {
        DEVICES.redirect(ifindex).map(|action| action as i32)
    }

    #[inline(always)]
    fn send_disowned(&self, ifindex: u32) -> Option<i32> {
        // A frame has no socket before the kernel knows of it.
        self.send(ifindex)
    }

    #[inline(always)]
    fn way(&self, _: &Question) -> Option<u32> {
        // XDP programs pass such packets up to tc.
        None
    }

    #[inline(always)]
    fn send_to_neighbour(&self, _: u32) -> i32 {
        Self::DROP
    }
}

/// Writes of the tunnel's headers into an XDP frame, a word at a time.
mod write {
    use core::arch::asm;

    use super::Tunnel;
    use crate::headers::ethernet::ethertype;

    /// Stores four bytes at `start + OFFSET`.
    #[inline(always)]
    fn word<const OFFSET: usize>(start: *mut u8, word: u32) {
        // SAFETY: the caller has checked that the packet holds the bytes; one instruction writes four.
        unsafe {
            asm!("*(u32 *)({start} + {offset}) = {word}", start = in(reg) start, word = in(reg) u64::from(word),
                offset = const OFFSET, options(nostack, preserves_flags));
        }
    }

    /// Stores two bytes at `start + OFFSET`.
    #[inline(always)]
    fn half<const OFFSET: usize>(start: *mut u8, half: u16) {
        // SAFETY: the caller has checked that the packet holds the bytes; one instruction writes two.
        unsafe {
            asm!("*(u16 *)({start} + {offset}) = {half}", start = in(reg) start, half = in(reg) u64::from(half),
                offset = const OFFSET, options(nostack, preserves_flags));
        }
    }

    /// Both outer MACs.
    #[inline(always)]
    fn macs(start: *mut u8, headers: &Tunnel) {
        half::<0>(start, headers.destination[0]);
        half::<2>(start, headers.destination[1]);
        half::<4>(start, headers.destination[2]);
        half::<6>(start, headers.source[0]);
        half::<8>(start, headers.source[1]);
        half::<10>(start, headers.source[2]);
    }

    /// A VLAN tag behind the MACs.
    #[inline(always)]
    pub(super) fn tag(start: *mut u8, vlan: u16) {
        half::<12>(start, ethertype::VLAN.to_be());
        half::<14>(start, vlan.to_be());
    }

    macro_rules! place {
        ($start:ident, $headers:ident, $shift:ident; $($index:literal)+) => {
            $(place!(@ $start, $headers, $index, $shift);)+
        };
        (@ $start:ident, $headers:ident, $index:literal, $shift:ident) => {
            if $shift == 0 {
                word::<{ 14 + 4 * $index }>($start, $headers.headers[$index]);
            } else {
                word::<{ 18 + 4 * $index }>($start, $headers.headers[$index]);
            }
        };
    }

    /// The 64 bytes of headers, from the ethertype on `SHIFT` bytes (0 or 4) further.
    #[inline(always)]
    pub(super) fn words<const SHIFT: usize>(start: *mut u8, headers: &Tunnel) {
        macs(start, headers);
        if SHIFT == 0 {
            half::<12>(start, headers.ethertype);
        } else {
            half::<16>(start, headers.ethertype);
        }
        place!(start, headers, SHIFT; 0 1 2 3 4 5 6 7 8);
        let inner = [
            headers.inner_destination[0],
            headers.inner_destination[1],
            headers.inner_destination[2],
            headers.inner_source[0],
            headers.inner_source[1],
            headers.inner_source[2],
            headers.inner_ethertype,
        ];
        macro_rules! inner {
            ($($index:literal)+) => {$(
                if SHIFT == 0 {
                    half::<{ 50 + 2 * $index }>(start, inner[$index]);
                } else {
                    half::<{ 54 + 2 * $index }>(start, inner[$index]);
                }
            )+};
        }
        inner!(0 1 2 3 4 5 6);
    }
}
