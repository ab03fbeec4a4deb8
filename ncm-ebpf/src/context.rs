//! One trait over the kernel's two packet contexts, so that the stages are written once for XDP and tc.
//!
//! Every call that changes a packet invalidates all windows into it: stages read first, decide, and then write.

use core::arch::asm;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_MARK_MANGLED_0, BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_OK, TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_fib_lookup as bpf_fib_lookup_parameters, xdp_action, xdp_md,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{
        bpf_fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_adjust_room,
        bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_push, bpf_xdp_adjust_head,
        bpf_xdp_get_buff_len,
    },
    programs::{TcContext, XdpContext},
};

use crate::{
    headers::{Frame, HEADERS, Window, checksum, ethernet::ethertype, vxlan},
    tables::DEVICES,
};

/// `AF_INET`
const AF_INET: u8 = 2;

/// Bytes that encapsulation puts in front of a frame.
const TUNNEL: i32 = vxlan::LEN as i32;

/// Bytes of a VLAN tag.
const TAG: i32 = 4;

/// The first 64 bytes of an encapsulated frame, aligned so that the outer headers behind the Ethernet header are words.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
pub struct Tunnel {
    /// Zero: it puts what follows Ethernet on a word's boundary.
    pub before: u16,
    /// Outer destination MAC.
    pub destination: [u16; 3],
    /// Outer source MAC.
    pub source: [u16; 3],
    /// Outer ethertype, network order.
    pub ethertype: u16,
    /// IPv4, UDP and VXLAN.
    pub headers: [u32; 9],
    /// Inner destination MAC.
    pub inner_destination: [u16; 3],
    /// Inner source MAC.
    pub inner_source: [u16; 3],
    /// Inner ethertype, network order.
    pub inner_ethertype: u16,
    /// Zero.
    pub after: u16,
}

/// The kernel refused to change a packet, which may be half changed now and can only be dropped.
#[derive(Clone, Copy, Debug)]
pub struct Refused;

/// A packet in the kernel, and what its hook can do with it.
pub trait Context: Frame + Copy {
    /// Whether what this program passes up comes to a tc program of the same interface, which can do more. Where it does,
    /// a program decides to pass up before it changes anything.
    const PASSES_UP: bool;

    /// The action that lets the frame go on to whatever comes next: on the wire, to the host.
    const PASS: i32;

    /// The action that passes a guest's frame up to the tc program of the same interface; without one, it ends the frame.
    const PASS_UP: i32;

    /// The action that ends the frame.
    const DROP: i32;

    /// The interface that the frame came in by.
    fn interface(&self) -> u32;

    /// Payload bytes of each segment that the frame is to be cut into; 0 if it is not.
    fn segment_size(&self) -> u32;

    /// Whether a VLAN tag was taken off the frame.
    fn is_tagged(&self) -> bool;

    /// Whether the frame lies in one piece of memory, as devices want it for an XDP redirect.
    fn is_linear(&self) -> bool;

    /// Replaces bytes of the frame.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn store<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), Refused>;

    /// Puts the frame into a tunnel: the headers replace its Ethernet header. `vlan` is a tag to add, or 0.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn encapsulate(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused>;

    /// Takes the outer headers off a tunnel frame.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn decapsulate(&self) -> Result<(), Refused>;

    /// Sends a tunnel frame to another UDP port of this host. `checksum` is the one in its outer UDP header.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    fn readdress(&self, old: [u8; 2], new: [u8; 2], checksum: u16) -> Result<(), Refused>;

    /// Keeps the first `kept` bytes behind the Ethernet header, puts 28 bytes for new headers before them, and ends
    /// segmentation: what an ICMP error needs.
    ///
    /// # Errors
    ///
    /// The kernel refused, or the hook cannot do it.
    fn make_room_for_error(&self, kept: u32) -> Result<(), Refused>;

    /// Sends the frame out of an interface; `None` if the hook knows no such device.
    fn send(&self, ifindex: u32) -> Option<i32>;

    /// The interface by which the kernel itself would reach a host; `None` if it knows no way, or the hook cannot ask.
    fn way(&self, question: &Question) -> Option<u32>;

    /// Sends an encapsulated frame out of an interface, for the kernel to find the next hop's MAC.
    fn send_to_neighbour(&self, ifindex: u32) -> i32;
}

/// What the kernel is asked for a way by.
#[derive(Clone, Copy)]
pub struct Question {
    /// An interface with forwarding on, to ask as; 0 for none. The agent's relay device is one.
    pub asking: u32,
    /// Our tunnel endpoint, as in memory.
    pub source: u32,
    /// The remote host, as in memory.
    pub destination: u32,
    /// Whether a next hop that is not resolved will do: the kernel then resolves it, and holds frames meanwhile.
    pub unresolved: bool,
    /// The interface to take where the kernel does not say; 0 for none.
    pub otherwise: u32,
}

/// `data + offset`, in a register of its own: the compiler must not compute it anew for the bounds check and for the
/// access, as the verifier only knows that what was checked is what is read if both come from one register.
#[inline(always)]
fn pointer(data: usize, offset: usize) -> usize {
    let start;
    // SAFETY: a move from one register to another. (Without an instruction, two lines of source would share the next one,
    // which the kernel refuses in debug information.)
    unsafe {
        asm!("{start} = {sum}", start = out(reg) start, sum = in(reg) data.wrapping_add(offset),
            options(pure, nomem, nostack, preserves_flags));
    }
    start
}

/// `N` bytes at `data + offset`, if they end by `end`.
#[inline(always)]
fn checked<'a, const N: usize>(data: usize, end: usize, offset: usize) -> Option<Window<'a, N>> {
    let start = pointer(data, offset);
    if start.wrapping_add(N) > end {
        return None;
    }
    // SAFETY: the bytes are before the packet's end, and the verifier refuses a program that uses them too long.
    Some(unsafe { Window::new(start as *const u8) })
}

/// A packet at an XDP hook.
#[derive(Clone, Copy)]
pub struct Xdp(*mut xdp_md);

impl Xdp {
    /// The packet that the program was called for.
    #[inline(always)]
    #[must_use]
    pub fn new(context: &XdpContext) -> Self {
        Self(context.ctx)
    }

    /// The first `N` bytes at `offset`, to be written.
    #[inline(always)]
    fn writable<const N: usize>(&self, offset: usize) -> Result<*mut u8, Refused> {
        let context = XdpContext::new(self.0);
        let start = pointer(context.data(), offset);
        if start.wrapping_add(N) > context.data_end() { Err(Refused) } else { Ok(start as *mut u8) }
    }

    #[inline(always)]
    fn move_head(&self, by: i32) -> Result<(), Refused> {
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_xdp_adjust_head(self.0, by) } == 0 { Ok(()) } else { Err(Refused) }
    }
}

impl Frame for Xdp {
    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>> {
        let context = XdpContext::new(self.0);
        checked(context.data(), context.data_end(), offset)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
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
        unsafe { (*self.0).ingress_ifindex }
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
        let context = XdpContext::new(self.0);
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
    fn make_room_for_error(&self, _: u32) -> Result<(), Refused> {
        // XDP programs pass such packets up to tc.
        Err(Refused)
    }

    #[inline(always)]
    fn send(&self, ifindex: u32) -> Option<i32> {
        DEVICES.redirect(ifindex).map(|action| action as i32)
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

/// A packet at a tc hook.
#[derive(Clone, Copy)]
pub struct Tc(*mut __sk_buff);

impl Tc {
    /// The packet that the program was called for, with its headers in one piece.
    #[inline(always)]
    #[must_use]
    pub fn new(context: &TcContext) -> Self {
        let packet = Self(context.skb.skb);
        let length = packet.length();
        let wanted = if length < HEADERS { length } else { HEADERS };
        if (context.data_end().wrapping_sub(context.data()) as u32) < wanted {
            // Where this fails the headers stay out of reach, and parsing says so.
            // SAFETY: the context is the kernel's.
            unsafe { bpf_skb_pull_data(packet.0, wanted) };
        }
        packet
    }

    /// The kernel's context.
    #[inline(always)]
    #[must_use]
    pub const fn skb(&self) -> *mut __sk_buff {
        self.0
    }

    /// Replaces bytes of the frame, under `flags` of `bpf_skb_store_bytes`.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    #[inline(always)]
    pub fn store_with<const N: usize>(
        &self,
        offset: usize,
        bytes: *const u8,
        flags: u64,
    ) -> Result<(), Refused> {
        // SAFETY: the context is the kernel's, and callers give `N` bytes to read.
        let result =
            unsafe { bpf_skb_store_bytes(self.0.cast(), offset as u32, bytes.cast(), N as u32, flags) };
        if result == 0 { Ok(()) } else { Err(Refused) }
    }
}

impl Frame for Tc {
    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<Window<'_, N>> {
        let context = TcContext::new(self.0);
        checked(context.data(), context.data_end(), offset)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).len }
    }
}

impl Context for Tc {
    const PASSES_UP: bool = false;
    const PASS: i32 = TC_ACT_OK;
    const PASS_UP: i32 = TC_ACT_SHOT;
    const DROP: i32 = TC_ACT_SHOT;

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).vlan_present != 0 }
    }

    #[inline(always)]
    fn is_linear(&self) -> bool {
        true
    }

    #[inline(always)]
    fn store<const N: usize>(&self, offset: usize, bytes: &[u8; N]) -> Result<(), Refused> {
        self.store_with::<N>(offset, bytes.as_ptr(), 0)
    }

    #[inline(always)]
    fn encapsulate(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused> {
        /// The inner Ethernet header alone: with VXLAN's header counted in, the kernel cuts large frames wrongly. The
        /// last flag keeps the guest's segment size, without which the kernel would lower it unseen.
        const FLAGS: u64 = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
            | BPF_F_ADJ_ROOM_FIXED_GSO as u64
            | bpf_f_adj_room_encap_l2(14);
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_skb_adjust_room(self.0, TUNNEL, BPF_ADJ_ROOM_MAC, FLAGS) } != 0 {
            return Err(Refused);
        }
        self.store_with::<64>(0, core::ptr::from_ref(&headers.destination).cast(), 0)?;
        // SAFETY: the context is the kernel's.
        if vlan != 0 && unsafe { bpf_skb_vlan_push(self.0, ethertype::VLAN.to_be(), vlan) } != 0 {
            return Err(Refused);
        }
        Ok(())
    }

    #[inline(always)]
    fn decapsulate(&self) -> Result<(), Refused> {
        // The kernel has done it.
        Ok(())
    }

    #[inline(always)]
    fn readdress(&self, old: [u8; 2], new: [u8; 2], checksum: u16) -> Result<(), Refused> {
        // Where a device has summed up the whole frame, that sum must stay true: without a checksum in the header it
        // changes with the port, with one the two changes cancel each other out.
        if checksum == 0 {
            return self.store_with::<2>(vxlan::PORT_OFFSET, new.as_ptr(), BPF_F_RECOMPUTE_CSUM.into());
        }
        self.store(vxlan::PORT_OFFSET, &new)?;
        let flags = u64::from(BPF_F_MARK_MANGLED_0) | 2;
        let (old, new) = (u16::from_ne_bytes(old).into(), u16::from_ne_bytes(new).into());
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_l4_csum_replace(self.0.cast(), vxlan::CHECKSUM_OFFSET as u32, old, new, flags) } == 0
        {
            Ok(())
        } else {
            Err(Refused)
        }
    }

    #[inline(always)]
    fn make_room_for_error(&self, kept: u32) -> Result<(), Refused> {
        // SAFETY: the context is the kernel's.
        unsafe {
            if bpf_skb_change_tail(self.0, 14 + kept, 0) != 0
                || bpf_skb_adjust_room(self.0, 28, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO.into()) != 0
            {
                return Err(Refused);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn send(&self, ifindex: u32) -> Option<i32> {
        // SAFETY: the helper only notes the interface; it reads no memory of ours.
        Some(unsafe { bpf_redirect(ifindex, 0) } as i32)
    }

    #[inline(always)]
    fn way(&self, question: &Question) -> Option<u32> {
        let ifindex = match route(self, question) {
            Some((ifindex, resolved)) if resolved || question.unresolved => ifindex,
            Some(_) => 0,
            None => question.otherwise,
        };
        (ifindex != 0).then_some(ifindex)
    }

    #[inline(always)]
    fn send_to_neighbour(&self, ifindex: u32) -> i32 {
        // SAFETY: without parameters the helper only notes the interface. The kernel looks up route and neighbour there.
        unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
    }
}

/// The interface of the kernel's route, and whether the next hop there is resolved; `None` if the kernel does not say.
#[inline(always)]
fn route(packet: &Tc, question: &Question) -> Option<(u32, bool)> {
    if question.asking == 0 {
        return None;
    }
    // SAFETY: all bits are a value, and what is not set below stays zero, as the kernel wants it.
    let mut parameters: bpf_fib_lookup_parameters = unsafe { core::mem::zeroed() };
    parameters.family = AF_INET;
    parameters.ifindex = question.asking;
    parameters.__bindgen_anon_3.ipv4_src = question.source;
    parameters.__bindgen_anon_4.ipv4_dst = question.destination;
    let size = size_of::<bpf_fib_lookup_parameters>() as i32;
    // SAFETY: the context is the kernel's, and the parameters are as long as is said.
    let answer = unsafe { bpf_fib_lookup(packet.0.cast(), &raw mut parameters, size, 0) };
    if answer == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
        Some((parameters.ifindex, true))
    } else if answer == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        Some((parameters.ifindex, false))
    } else {
        None
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
