//! A packet at a tc hook: one of the kernel's own, possibly many segments in one.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0,
        BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_OK, TC_ACT_SHOT,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup as bpf_fib_lookup_parameters,
    },
    bpf_f_adj_room_encap_l2,
    helpers::{
        bpf_clone_redirect, bpf_fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_skb_adjust_room, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_pull_data,
        bpf_skb_store_bytes, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use ncm_common::{asks::Ask, marks};

use super::{Context, Question, Refused, checked};
use crate::headers::{Frame, HEADERS, Tunnel, Window, ethernet::ethertype, vxlan};

/// `AF_INET` and `AF_INET6`
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `AF_PACKET`
const AF_PACKET: u32 = 17;

/// Bytes of the field that an update of a checksum is for, as a flag of `bpf_l4_csum_replace`.
const CHECKSUM_OF_TWO_BYTES: u64 = 2;

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

    /// Whether the frame still belongs to a tap, whose sockets are of no address family, or to the agent's packet socket: those of
    /// guests' stacks are of another one.
    #[inline(always)]
    fn is_of_tap(&self) -> bool {
        // SAFETY: the context is the kernel's; a socket that it names is there as long as the frame.
        unsafe {
            let socket = (*self.0).__bindgen_anon_2.sk;
            !socket.is_null() && matches!((&raw const (*socket).family).read_volatile(), 0 | AF_PACKET)
        }
    }

    /// The frame's mark.
    #[inline(always)]
    #[must_use]
    pub fn mark(&self) -> u32 {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).mark }
    }

    /// Takes the frame's mark away: it is ours, and nobody else's to see.
    #[inline(always)]
    pub fn clear_mark(&self) {
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).mark = 0 };
    }

    /// Has the frame come in by an interface, as if it were from there.
    #[inline(always)]
    #[must_use]
    pub fn send_in(&self, ifindex: u32) -> i32 {
        // SAFETY: the helper only notes the interface; it reads no memory of ours.
        unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as i32 }
    }

    /// Makes room for a tunnel's headers, of which `layer` says the IP version, as a flag of `bpf_skb_adjust_room`.
    #[inline(always)]
    fn grow(&self, bytes: usize, layer: u64) -> Result<(), Refused> {
        /// The inner Ethernet header alone: with VXLAN's header counted in, the kernel cuts large frames wrongly. The
        /// last flag keeps the guest's segment size, without which the kernel would lower it unseen.
        const FLAGS: u64 = BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
            | BPF_F_ADJ_ROOM_FIXED_GSO as u64
            | bpf_f_adj_room_encap_l2(14);
        // SAFETY: the context is the kernel's.
        let result = unsafe { bpf_skb_adjust_room(self.0, bytes as i32, BPF_ADJ_ROOM_MAC, FLAGS | layer) };
        if result == 0 { Ok(()) } else { Err(Refused) }
    }

    /// Adds a VLAN tag, unless it is 0.
    #[inline(always)]
    fn tag(&self, vlan: u16) -> Result<(), Refused> {
        // SAFETY: the context is the kernel's.
        if vlan != 0 && unsafe { bpf_skb_vlan_push(self.0, ethertype::VLAN.to_be(), vlan) } != 0 {
            return Err(Refused);
        }
        Ok(())
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

    #[inline(always)]
    fn reach(&self, bytes: u32) {
        let length = self.length();
        // Where this fails the bytes stay out of reach, and parsing says so.
        // SAFETY: the context is the kernel's.
        unsafe { bpf_skb_pull_data(self.0, if length < bytes { length } else { bytes }) };
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
    fn encapsulate_v4(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused> {
        self.grow(vxlan::LEN_V4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4.into())?;
        let start = headers.words[Tunnel::V4..].as_ptr();
        // SAFETY: the frame begins in the second half of that word.
        let start = unsafe { start.cast::<u8>().add(2) };
        self.store_with::<{ Tunnel::BYTES_V4 }>(0, start, 0)?;
        self.tag(vlan)
    }

    #[inline(always)]
    fn encapsulate_v6(&self, headers: &Tunnel, vlan: u16) -> Result<(), Refused> {
        self.grow(vxlan::LEN_V6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6.into())?;
        let start = headers.words[Tunnel::V6..].as_ptr();
        // SAFETY: likewise.
        let start = unsafe { start.cast::<u8>().add(2) };
        self.store_with::<{ Tunnel::BYTES_V6 }>(0, start, 0)?;
        self.tag(vlan)
    }

    #[inline(always)]
    fn decapsulate(&self, _: usize) -> Result<(), Refused> {
        // The kernel has done it.
        Ok(())
    }

    #[inline(always)]
    fn readdress(&self, udp: usize, old: [u8; 2], new: [u8; 2], checksum: u16) -> Result<(), Refused> {
        let port = udp + vxlan::PORT_OFFSET;
        // Where a device has summed up the whole frame, that sum must stay true: without a checksum in the header it
        // changes with the port, with one the two changes cancel each other out.
        if checksum == 0 {
            return self.store_with::<2>(port, new.as_ptr(), BPF_F_RECOMPUTE_CSUM.into());
        }
        self.store(port, &new)?;
        let flags = u64::from(BPF_F_MARK_MANGLED_0) | CHECKSUM_OF_TWO_BYTES;
        let (old, new) = (u16::from_ne_bytes(old).into(), u16::from_ne_bytes(new).into());
        let at = (udp + vxlan::CHECKSUM_OFFSET) as u32;
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_l4_csum_replace(self.0.cast(), at, old, new, flags) } == 0 {
            Ok(())
        } else {
            Err(Refused)
        }
    }

    #[inline(always)]
    fn make_room_for_error(&self, kept: u32, headers: i32) -> Result<(), Refused> {
        // SAFETY: the context is the kernel's.
        unsafe {
            if bpf_skb_change_tail(self.0, 14 + kept, 0) != 0
                || bpf_skb_adjust_room(self.0, headers, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO.into())
                    != 0
            {
                return Err(Refused);
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn resize(&self, bytes: u32) -> Result<(), Refused> {
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_skb_change_tail(self.0, bytes, 0) } == 0 { Ok(()) } else { Err(Refused) }
    }

    #[inline(always)]
    fn hand_up(&self, ifindex: u32, mark: u32) -> Result<i32, Refused> {
        // SAFETY: the context is the kernel's, and the helper only notes the interface.
        unsafe {
            (*self.0).mark = mark;
            Ok(bpf_redirect(ifindex, BPF_F_INGRESS.into()) as i32)
        }
    }

    #[inline(always)]
    fn hand_up_behind(&self, ask: &Ask, ifindex: u32, mark: u32) -> Result<i32, Refused> {
        const BYTES: usize = size_of::<Ask>();
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_skb_change_head(self.0, BYTES as u32, 0) } != 0 {
            return Err(Refused);
        }
        self.store_with::<BYTES>(0, core::ptr::from_ref(ask).cast(), 0)?;
        self.hand_up(ifindex, mark)
    }

    #[inline(always)]
    fn takes_release(&self, port: u32) -> u32 {
        // Without a decision, which the verifier would follow to the program's end in both ways.
        let mark = self.mark();
        let other = mark ^ marks::mark(marks::RELEASE, port);
        let released = (other.wrapping_sub(1) & !other) >> 31;
        // SAFETY: the context is the kernel's.
        unsafe { (*self.0).mark = mark & released.wrapping_sub(1) };
        released
    }

    #[inline(always)]
    fn send(&self, ifindex: u32) -> Option<i32> {
        // SAFETY: the helper only notes the interface; it reads no memory of ours.
        Some(unsafe { bpf_redirect(ifindex, 0) } as i32)
    }

    #[inline(always)]
    fn send_disowned(&self, ifindex: u32) -> Option<i32> {
        if self.segment_size() == 0 || !self.is_of_tap() {
            return self.send(ifindex);
        }
        // No helper takes a frame from its socket, but a clone has none. The original is of no more use.
        // SAFETY: the context is the kernel's.
        let sent = unsafe { bpf_clone_redirect(self.0, ifindex, 0) };
        (sent >= 0).then_some(Self::DROP)
    }

    #[inline(always)]
    fn way(&self, question: &Question<'_>) -> Option<u32> {
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
fn route(packet: &Tc, question: &Question<'_>) -> Option<(u32, bool)> {
    if question.asking == 0 {
        return None;
    }
    // SAFETY: all bits are a value, and what is not set below stays zero, as the kernel wants it.
    let mut parameters: bpf_fib_lookup_parameters = unsafe { core::mem::zeroed() };
    parameters.ifindex = question.asking;
    if question.over_v6 {
        let [source, destination] = question.headers.addresses_v6();
        parameters.family = AF_INET6;
        parameters.__bindgen_anon_3.ipv6_src = source;
        parameters.__bindgen_anon_4.ipv6_dst = destination;
    } else {
        let [source, destination] = question.headers.addresses_v4();
        parameters.family = AF_INET;
        parameters.__bindgen_anon_3.ipv4_src = source;
        parameters.__bindgen_anon_4.ipv4_dst = destination;
    }
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
