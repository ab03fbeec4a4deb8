//! What became of a frame: the program's verdict, the frame as it left, and what was counted.

use std::fmt;

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_dataplane::Hook;

use super::frame::{ipv4_checksum_holds, udp_checksum_holds};
use super::{Arp, Ipv4, Ipv6, Mac};

/// What a program decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Goes on to the host (or from XDP to tc).
    Passed,
    /// Ends here.
    Dropped,
    /// Leaves by an interface (which one, only the kernel knows: see the counters).
    Redirected,
    /// Goes back out where it came in (XDP).
    Returned,
    /// None of these.
    Other(u32),
}

impl Verdict {
    pub(super) fn new(hook: Hook, action: u32) -> Self {
        match (hook.is_xdp(), action) {
            (true, 1) | (false, 2) => Self::Dropped,
            (true, 2) | (false, 0 | u32::MAX) => Self::Passed,
            (true, 3) => Self::Returned,
            (true, 4) | (false, 7) => Self::Redirected,
            (_, other) => Self::Other(other),
        }
    }
}

/// What became of one frame.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Where it was put in.
    pub hook: Hook,
    /// What the program decided.
    pub verdict: Verdict,
    /// The frame as it went in.
    pub before: Vec<u8>,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Drops by reason.
    pub drops: Vec<(DropReason, u64)>,
    /// Drops by port and reason.
    pub port_drops: Vec<(u32, DropReason)>,
    /// Counters that moved.
    pub counters: Vec<(PathCounter, u64)>,
    /// Ports whose guests were given a frame.
    pub received: Vec<u32>,
    /// Ports whose guests sent a frame.
    pub sent: Vec<u32>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |list: &[(DropReason, u64)]| -> Vec<String> {
            list.iter().map(|(reason, count)| format!("{} × {count}", reason.name())).collect()
        };
        let counters: Vec<String> =
            self.counters.iter().map(|(counter, count)| format!("{} × {count}", counter.name())).collect();
        writeln!(
            f,
            "at {}: {:?}; drops {:?}; counted {counters:?}",
            self.hook,
            self.verdict,
            name(&self.drops)
        )?;
        writeln!(f, "received by ports {:?}, sent by ports {:?}", self.received, self.sent)?;
        writeln!(f, "in:  {}", hex(&self.before))?;
        write!(f, "out: {}", hex(&self.frame))
    }
}

fn hex(bytes: &[u8]) -> String {
    let shown: Vec<String> = bytes.iter().take(160).map(|byte| format!("{byte:02x}")).collect();
    let more = if bytes.len() > 160 { " …" } else { "" };
    format!("{} bytes: {}{more}", bytes.len(), shown.join(" "))
}

impl Seen {
    /// Asserts a drop for that reason and no other, seen at that port.
    pub fn assert_dropped(&self, reason: DropReason, port: u32) {
        assert_eq!(self.verdict, Verdict::Dropped, "expected a drop: {}\n{self}", reason.name());
        assert_eq!(self.drops, [(reason, 1)], "expected one drop: {}\n{self}", reason.name());
        assert_eq!(self.port_drops, [(port, reason)], "expected it counted at port {port}\n{self}");
        assert!(self.received.is_empty(), "a dropped frame was delivered\n{self}");
    }

    /// Asserts that the frame went on exactly as it came, and that nothing was dropped.
    pub fn assert_untouched(&self) {
        assert_eq!(self.verdict, Verdict::Passed, "expected it to pass\n{self}");
        assert!(self.frame == self.before, "expected it unchanged\n{self}");
        assert!(self.drops.is_empty(), "expected no drop\n{self}");
    }

    /// Asserts that the frame was given to the guest of that port.
    pub fn assert_delivered(&self, port: u32, counter: PathCounter) {
        assert_eq!(self.verdict, Verdict::Redirected, "expected delivery to port {port}\n{self}");
        assert_eq!(self.received, [port], "expected delivery to port {port}\n{self}");
        self.assert_counted(counter);
        assert!(self.drops.is_empty(), "expected no drop\n{self}");
    }

    /// Asserts that the frame left in the tunnel.
    pub fn assert_encapsulated(&self) {
        assert_eq!(self.verdict, Verdict::Redirected, "expected it to leave in the tunnel\n{self}");
        self.assert_counted(PathCounter::Encapsulated);
        assert!(self.received.is_empty() && self.drops.is_empty(), "expected nothing else\n{self}");
    }

    /// Asserts that the asking guest got an answer.
    pub fn assert_answered(&self, counter: PathCounter) {
        let back = matches!(self.verdict, Verdict::Redirected | Verdict::Returned);
        assert!(back, "expected an answer\n{self}");
        self.assert_counted(counter);
        assert!(self.drops.is_empty(), "expected no drop\n{self}");
    }

    /// Asserts that a counter moved by one.
    pub fn assert_counted(&self, counter: PathCounter) {
        assert!(self.counters.contains(&(counter, 1)), "expected one {}\n{self}", counter.name());
    }

    /// The frame's destination and source.
    #[must_use]
    pub fn macs(&self) -> (Mac, Mac) {
        let mac = |at: usize| -> Mac { self.frame[at..at + 6].try_into().expect("a whole frame") };
        (mac(0), mac(6))
    }

    /// Asserts that the frame is an IPv4 packet with a right header checksum; its addresses and TTL.
    #[must_use]
    pub fn ipv4(&self) -> (Ipv4, Ipv4, u8) {
        assert_eq!(self.frame[12..14], [8, 0], "expected IPv4\n{self}");
        assert!(ipv4_checksum_holds(&self.frame, 14), "expected a right IPv4 checksum\n{self}");
        let address = |at: usize| -> Ipv4 { self.frame[at..at + 4].try_into().expect("a whole frame") };
        (address(26), address(30), self.frame[22])
    }

    /// The frame as an ARP message.
    #[must_use]
    pub fn arp(&self) -> Arp {
        Arp::parse(&self.frame).unwrap_or_else(|| panic!("expected an ARP message\n{self}"))
    }

    /// Asserts that the frame is in a well-formed VXLAN tunnel over IPv4; what the tunnel's headers say, and the inner
    /// frame as if it had been seen by itself. `tag` is the length of a VLAN tag before the outer IPv4 header.
    #[must_use]
    pub fn tunnelled(&self, tag: usize) -> Tunnelled {
        let frame = &self.frame;
        let at = 14 + tag;
        assert!(frame.len() > at + 36 + 14, "expected a tunnel frame\n{self}");
        assert_eq!(
            frame[at - 2..at + 1],
            [8, 0, 0x45],
            "expected an outer IPv4 header without options\n{self}"
        );
        assert!(ipv4_checksum_holds(frame, at), "expected a right outer IPv4 checksum\n{self}");
        assert!(udp_checksum_holds(frame, at), "expected a right outer UDP checksum\n{self}");
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        assert_eq!(
            usize::from(word(at + 2)),
            frame.len() - at,
            "expected the outer length of the frame\n{self}"
        );
        assert_eq!(
            usize::from(word(at + 24)),
            frame.len() - at - 20,
            "expected the UDP length of the rest\n{self}"
        );
        assert_eq!(frame[at + 28..at + 32], [8, 0, 0, 0], "expected the VNI flag alone\n{self}");
        let address = |at: usize| -> Ipv4 { frame[at..at + 4].try_into().expect("checked") };
        Tunnelled {
            source: address(at + 12),
            destination: address(at + 16),
            ttl: frame[at + 8],
            source_port: word(at + 20),
            port: word(at + 22),
            vni: u32::from_be_bytes([0, frame[at + 32], frame[at + 33], frame[at + 34]]),
            inner: Self { frame: frame[at + 36..].to_vec(), ..self.clone() },
        }
    }
}

impl Seen {
    /// The same over IPv6, without a checksum. `tag` is the length of a VLAN tag before the outer IPv6 header.
    #[must_use]
    pub fn tunnelled_v6(&self, tag: usize) -> TunnelledV6 {
        let frame = &self.frame;
        let at = 14 + tag;
        assert!(frame.len() > at + 56 + 14, "expected a tunnel frame over IPv6\n{self}");
        assert_eq!(frame[at - 2..at], [0x86, 0xdd], "expected an outer IPv6 header\n{self}");
        assert_eq!(
            (frame[at] >> 4, frame[at + 6]),
            (6, 17),
            "expected UDP in IPv6, and nothing between\n{self}"
        );
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        for length in [at + 4, at + 44] {
            let rest = frame.len() - at - 40;
            assert_eq!(
                usize::from(word(length)),
                rest,
                "expected the length of the rest at {length}\n{self}"
            );
        }
        assert_eq!(word(at + 46), 0, "expected no outer checksum\n{self}");
        assert_eq!(frame[at + 48..at + 52], [8, 0, 0, 0], "expected the VNI flag alone\n{self}");
        let address = |at: usize| -> Ipv6 { frame[at..at + 16].try_into().expect("checked") };
        TunnelledV6 {
            source: address(at + 8),
            destination: address(at + 24),
            hop_limit: frame[at + 7],
            label: u32::from_be_bytes([0, frame[at + 1], frame[at + 2], frame[at + 3]]),
            source_port: word(at + 40),
            port: word(at + 42),
            vni: u32::from_be_bytes([0, frame[at + 52], frame[at + 53], frame[at + 54]]),
            inner: Self { frame: frame[at + 56..].to_vec(), ..self.clone() },
        }
    }
}

/// What a tunnel's headers over IPv6 say.
#[derive(Clone, Debug)]
pub struct TunnelledV6 {
    /// Outer source address.
    pub source: Ipv6,
    /// Outer destination address.
    pub destination: Ipv6,
    /// Outer hop limit.
    pub hop_limit: u8,
    /// Traffic class (the upper four bits are the lower ones of it) and flow label.
    pub label: u32,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub port: u16,
    /// VNI.
    pub vni: u32,
    /// The inner frame.
    pub inner: Seen,
}

/// What a tunnel's headers say.
#[derive(Clone, Debug)]
pub struct Tunnelled {
    /// Outer source address.
    pub source: Ipv4,
    /// Outer destination address.
    pub destination: Ipv4,
    /// Outer TTL.
    pub ttl: u8,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub port: u16,
    /// VNI.
    pub vni: u32,
    /// The inner frame.
    pub inner: Seen,
}
