//! Running a program on a packet that never was on a wire (BPF_PROG_TEST_RUN): what tests and benchmarks do.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use aya_obj::generated::{bpf_map_type, bpf_prog_type};

use crate::{Error, sys};

/// `BPF_F_TEST_XDP_LIVE_FRAMES` of `linux/bpf.h`.
const LIVE_FRAMES: u32 = 1 << 1;
/// `struct __sk_buff` of `linux/bpf.h`: its size, and where the fields are that a test may set.
mod skb {
    pub(super) const SIZE: usize = 192;
    pub(super) const MARK: usize = 8;
    pub(super) const INGRESS_IFINDEX: usize = 36;
    pub(super) const IFINDEX: usize = 40;
    pub(super) const CONTROL_BLOCK: usize = 48;
    pub(super) const GSO_SEGMENTS: usize = 164;
    pub(super) const GSO_SIZE: usize = 176;
}
/// `struct xdp_md` of `linux/bpf.h`, likewise.
mod xdp {
    pub(super) const SIZE: usize = 24;
    pub(super) const DATA_END: usize = 4;
    pub(super) const INGRESS_IFINDEX: usize = 12;
}
/// Room for what a program adds in front of a packet.
const GROWTH: usize = 512;

/// A packet and how to run a program on it.
#[derive(Clone, Debug, Default)]
pub struct TestRun {
    /// The frame, from its Ethernet header on; at least 14 bytes.
    pub packet: Vec<u8>,
    /// Interface that it comes in by, in this thread's network namespace; 0 for the loopback interface. For XDP the
    /// interface must have an XDP program attached (or be a tap), so that it has receive queues.
    pub ifindex: u32,
    /// For tc: size of the segments that the packet stands for; 0 if it is no segmentation-offloaded one.
    pub gso_size: u32,
    /// For tc: the frame's mark.
    pub mark: u32,
    /// For [`crate::Hook::RelayTc`]: what the kernel read from the tunnel header.
    pub tunnel: Option<Tunnel>,
    /// How many times to run; 0 means once. The packet is not reset in between.
    pub repeat: u32,
    /// For XDP: send and redirect for real. Needs `repeat`; gives no packet back.
    pub live_frames: bool,
}

/// A tunnel header that the kernel took off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// VNI.
    pub vni: u32,
    /// Outer source address.
    pub source: IpAddr,
}

/// What came out of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestOutcome {
    /// The program's verdict: a `TC_ACT_` or `XDP_` number.
    pub action: u32,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Mean time of a run.
    pub duration: Duration,
}

impl TestRun {
    /// One run on `packet`, coming in by `ifindex`.
    #[must_use]
    pub fn new(packet: Vec<u8>, ifindex: u32) -> Self {
        Self { packet, ifindex, ..Self::default() }
    }

    pub(crate) fn run(&self, name: &str, program: BorrowedFd<'_>) -> Result<TestOutcome, Error> {
        let failed = |source| Error::TestRun { program: name.to_owned(), source };
        let info = sys::prog_info(program).map_err(failed)?;
        let is_xdp = info.type_ == bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
        let wrapper = match self.tunnel {
            Some(Tunnel { source, .. }) if !is_xdp => {
                Some(TunnelKeyWrapper::new(program, source.is_ipv6()).map_err(failed)?)
            }
            _ => None,
        };
        let entry = wrapper.as_ref().map_or(program, |wrapper| wrapper.program.as_fd());
        let context = if is_xdp { self.xdp_context() } else { self.skb_context() };
        let mut out = vec![0; self.packet.len() + GROWTH];
        let mut attr = sys::TestRunAttr { repeat: self.repeat, ..sys::TestRunAttr::default() };
        if self.live_frames {
            attr.flags = LIVE_FRAMES;
        }
        let buffers = sys::TestRunBuffers {
            data_in: &self.packet,
            data_out: (!self.live_frames).then_some(&mut out[..]),
            context_in: &context,
        };
        sys::test_run(entry, buffers, &mut attr).map_err(failed)?;
        out.truncate(if self.live_frames { 0 } else { attr.data_size_out as usize });
        Ok(TestOutcome {
            action: attr.action,
            packet: out,
            duration: Duration::from_nanos(u64::from(attr.duration)),
        })
    }

    fn skb_context(&self) -> Vec<u8> {
        let mut context = vec![0; skb::SIZE];
        let mut set =
            |offset: usize, value: u32| context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        set(skb::IFINDEX, self.ifindex);
        set(skb::INGRESS_IFINDEX, self.ifindex);
        set(skb::MARK, self.mark);
        if self.gso_size != 0 {
            set(skb::GSO_SIZE, self.gso_size);
            let segments = self.packet.len().div_ceil(self.gso_size as usize);
            set(skb::GSO_SEGMENTS, u32::try_from(segments).unwrap_or(1));
        }
        if let Some(tunnel) = self.tunnel {
            set(TunnelKeyWrapper::VNI, tunnel.vni);
            match tunnel.source {
                IpAddr::V4(source) => set(TunnelKeyWrapper::SOURCE, source.to_bits()),
                IpAddr::V6(source) => {
                    for (word, bytes) in source.octets().as_chunks::<4>().0.iter().enumerate() {
                        set(TunnelKeyWrapper::SOURCE + 4 * word, u32::from_ne_bytes(*bytes));
                    }
                }
            }
        }
        context
    }

    fn xdp_context(&self) -> Vec<u8> {
        // The kernel refuses an interface without receive queues of XDP's, and wants no context for none at all.
        if self.ifindex == 0 {
            return Vec::new();
        }
        let mut context = vec![0; xdp::SIZE];
        let mut set =
            |offset: usize, value: u32| context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        set(xdp::DATA_END, u32::try_from(self.packet.len()).unwrap_or(u32::MAX));
        set(xdp::INGRESS_IFINDEX, self.ifindex);
        context
    }
}

/// A test run has no tunnel metadata. This program gives it to the packet, from words of the packet's control
/// block, and continues with the program under test.
struct TunnelKeyWrapper {
    program: OwnedFd,
    /// Holds the program under test; emptied by the kernel when the last descriptor goes.
    _jump: OwnedFd,
}

impl TunnelKeyWrapper {
    /// Where the VNI is in the context.
    const VNI: usize = skb::CONTROL_BLOCK;
    /// Where the outer source is in the context: an IPv4 one as a number, an IPv6 one as on the wire.
    const SOURCE: usize = skb::CONTROL_BLOCK + 4;

    fn new(target: BorrowedFd<'_>, over_v6: bool) -> std::io::Result<Self> {
        /// Bytes of `struct bpf_tunnel_key`, and where its `local_ipv4` or `local_ipv6` is. The helper that sets a key sets that of
        /// an outgoing packet: what it calls local is what the helper that reads it calls remote.
        const KEY_SIZE: i32 = 44;
        const LOCAL: i16 = 28;
        /// `BPF_F_TUNINFO_IPV6`
        const IPV6: i32 = 1;
        /// The key is on the stack, 48 bytes below the frame pointer.
        const KEY: i16 = -48;
        const SET_TUNNEL_KEY: i32 = 21;
        const TAIL_CALL: i32 = 12;
        let jump = sys::create_map(&sys::NewMap {
            kind: bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            flags: 0,
            inner: None,
        })?;
        sys::update(jump.as_fd(), &0u32.to_ne_bytes(), &target.as_raw_fd().to_ne_bytes())?;
        let offset = |position: usize| i16::try_from(position).unwrap_or(0);
        let mut code = vec![instruction(0xbf, 6, 1, 0, 0)]; // r6 = r1
        code.extend((0..6).map(|word| instruction(0x7a, 10, 0, KEY + word * 8, 0))); // *(u64 *)(r10 + …) = 0
        code.extend([
            instruction(0x61, 2, 6, offset(Self::VNI), 0), // r2 = *(u32 *)(r6 + VNI)
            instruction(0x63, 10, 2, KEY, 0),              // key.tunnel_id = r2
        ]);
        for word in 0..if over_v6 { 4 } else { 1 } {
            let source = offset(Self::SOURCE) + 4 * word;
            code.push(instruction(0x61, 2, 6, source, 0)); // r2 = *(u32 *)(r6 + SOURCE + …)
            code.push(instruction(0x63, 10, 2, KEY + LOCAL + 4 * word, 0)); // key.local_… = r2
        }
        code.extend([
            instruction(0xbf, 1, 6, 0, 0),                              // r1 = r6
            instruction(0xbf, 2, 10, 0, 0),                             // r2 = r10
            instruction(0x07, 2, 0, 0, i32::from(KEY)),                 // r2 += KEY
            instruction(0xb7, 3, 0, 0, KEY_SIZE),                       // r3 = KEY_SIZE
            instruction(0xb7, 4, 0, 0, if over_v6 { IPV6 } else { 0 }), // r4 = flags
            instruction(0x85, 0, 0, 0, SET_TUNNEL_KEY),                 // call
            instruction(0xbf, 1, 6, 0, 0),                              // r1 = r6
            instruction(0x18, 2, 1, 0, jump.as_raw_fd()),               // r2 = map
            0,                                                          // (second half of the above)
            instruction(0xb7, 3, 0, 0, 0),                              // r3 = 0
            instruction(0x85, 0, 0, 0, TAIL_CALL),                      // call
            instruction(0xb7, 0, 0, 0, -2), // r0 = -2: no verdict of the dataplane's
            instruction(0x95, 0, 0, 0, 0),  // exit
        ]);
        Ok(Self { program: sys::load_classifier(b"set_tunnel_key", &code)?, _jump: jump })
    }
}

/// One instruction of BPF: operation, destination and source register, offset, immediate.
fn instruction(operation: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [offset_low, offset_high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([operation, source << 4 | destination, offset_low, offset_high, a, b, c, d])
}
