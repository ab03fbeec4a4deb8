//! A packet at an XDP hook: in the driver's memory, before the kernel knows of it.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use ncm_common::asks::Ask;

use super::{Context, Question, Refused, checked, pointer};
use crate::{
    headers::{Frame, Tunnel, Window, checksum, vxlan},
    tables::DEVICES,
};

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
    fn encapsulate_v4(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused> {
        const ROOM: i32 = vxlan::LEN_V4 as i32;
        const TAGGED: usize = Tunnel::BYTES_V4 + TAG as usize;
        if vlan == 0 {
            self.move_head(-ROOM)?;
            write::over_v4(self.writable::<{ Tunnel::BYTES_V4 }>(0)?, headers);
        } else {
            self.move_head(-(ROOM + TAG))?;
            write::over_v4_tagged(self.writable::<TAGGED>(0)?, headers, vlan);
        }
        Ok(())
    }

    #[inline(always)]
    fn encapsulate_v6(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused> {
        const ROOM: i32 = vxlan::LEN_V6 as i32;
        const TAGGED: usize = Tunnel::BYTES_V6 + TAG as usize;
        if vlan == 0 {
            self.move_head(-ROOM)?;
            write::over_v6(self.writable::<{ Tunnel::BYTES_V6 }>(0)?, headers);
        } else {
            self.move_head(-(ROOM + TAG))?;
            write::over_v6_tagged(self.writable::<TAGGED>(0)?, headers, vlan);
        }
        Ok(())
    }

    #[inline(always)]
    fn decapsulate(&self, bytes: usize) -> Result<(), Refused> {
        self.move_head(bytes as i32)
    }

    #[inline(always)]
    fn readdress(&self, udp: usize, old: [u8; 2], new: [u8; 2], checksum: u16) -> Result<(), Refused> {
        self.store(udp + vxlan::PORT_OFFSET, &new)?;
        if checksum != 0 {
            let sum = checksum::update(checksum, u16::from_ne_bytes(old), u16::from_ne_bytes(new));
            // 0 would mean that there is none (RFC 768); its other form in ones' complement is the same sum.
            let sum = if sum == 0 { u16::MAX } else { sum };
            self.store(udp + vxlan::CHECKSUM_OFFSET, &sum.to_ne_bytes())?;
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
    fn hand_up_behind(&self, _: &Ask, _: u32, _: u32) -> Result<i32, Refused> {
        // XDP programs pass such packets up to tc.
        Err(Refused)
    }

    #[inline(always)]
    fn takes_release(&self, _: u32) -> u32 {
        // What the agent lets go on comes in behind XDP.
        0
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
    fn way(&self, _: &Question<'_>) -> Option<u32> {
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

    /// Stores the frame's headers, which start in word `$first` of the tunnel's, with what is behind the MACs `$shift` bytes (0 or 4)
    /// further.
    macro_rules! frame {
        ($start:ident, $tunnel:ident, $first:literal, $shift:literal; $($index:literal)+) => {
            let words = &$tunnel.words;
            half::<0>($start, (words[$first] >> 16) as u16);
            word::<2>($start, words[$first + 1]);
            word::<6>($start, words[$first + 2]);
            half::<10>($start, words[$first + 3] as u16);
            half::<{ 12 + $shift }>($start, (words[$first + 3] >> 16) as u16);
            $(word::<{ 4 * ($index - $first) - 2 + $shift }>($start, words[$index]);)+
            half::<{ 4 * (21 - $first) - 2 + $shift }>($start, words[21] as u16);
        };
    }

    /// A frame over IPv4.
    #[inline(always)]
    pub(super) fn over_v4(start: *mut u8, headers: &Tunnel) {
        frame!(start, headers, 5, 0; 9 10 11 12 13 14 15 16 17 18 19 20);
    }

    /// A frame over IPv4 with a VLAN tag.
    #[inline(always)]
    pub(super) fn over_v4_tagged(start: *mut u8, headers: &Tunnel, vlan: u16) {
        frame!(start, headers, 5, 4; 9 10 11 12 13 14 15 16 17 18 19 20);
        tag(start, vlan);
    }

    /// A frame over IPv6.
    #[inline(always)]
    pub(super) fn over_v6(start: *mut u8, headers: &Tunnel) {
        frame!(start, headers, 0, 0; 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20);
    }

    /// A frame over IPv6 with a VLAN tag.
    #[inline(always)]
    pub(super) fn over_v6_tagged(start: *mut u8, headers: &Tunnel, vlan: u16) {
        frame!(start, headers, 0, 4; 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20);
        tag(start, vlan);
    }

    /// A VLAN tag behind the MACs.
    #[inline(always)]
    fn tag(start: *mut u8, vlan: u16) {
        half::<12>(start, ethertype::VLAN.to_be());
        half::<14>(start, vlan.to_be());
    }

    const _: () = assert!(Tunnel::V4 == 5 && Tunnel::V6 == 0, "the words above");
}
