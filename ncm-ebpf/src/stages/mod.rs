//! The stations of a packet's path, each generic over the hook's context.
//!
//! From a guest: `guest` (which port) → `flow` (is it decided) → `deliver` (to a guest of this host or into the tunnel). What no
//! flow decides goes the long way first: `control` (DHCP, neighbour discovery) → `admit` (may it send this) → `route` (where
//! to) → `policy` → a new flow. From the wire: `tunnel`, likewise. Each stage decides before anything is modified.
//!
//! The way of a known flow is straight code. The long way is made of subprograms, for the sake of the program's size and of
//! its stack: they take what is known from `Scratch`, and give how the way ended as a number ([`Ended`]), 0 if it goes on.

pub mod admit;
pub mod answer;
pub mod ask;

pub mod control;
pub mod deliver;
pub mod encapsulate;
pub mod errors;
pub mod flow;
pub mod fragment;
pub mod guest;
pub mod hand;
pub mod limit;
pub mod policy;
pub mod related;
pub mod route;
pub mod settle;
pub mod transition;
pub mod tunnel;

use ncm_common::{
    drops::DropReason,
    tables::{Endpoint, IpKey, MacKey, Port, Subnet, port_flags},
};

use crate::{
    context::Refused,
    headers::{Address, Mac, packet::Fault},
    tables::{ENDPOINTS_IP, ENDPOINTS_MAC, PORTS, SUBNETS},
};

/// What a stage gives: something to go on with, or how the way ended.
pub type Step<T> = Result<T, Ended>;

/// How a frame's way ended before its last stage: dropped, passed up to tc, or answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ended(pub u32);

impl Ended {
    /// The XDP program leaves the frame, unmodified, to the tc program of the same interface.
    pub const PASS_UP: Self = Self(1 << 8);

    /// The packet's TTL has run out: the guest is owed an ICMP error.
    pub const EXPIRED: Self = Self(Self::OWED);

    /// Set where an ICMP error is owed; with the MTU, if the packet is too big.
    const OWED: u32 = 1 << 20;

    /// The packet is larger than that MTU: the guest is owed an ICMP error.
    #[inline(always)]
    #[must_use]
    pub const fn too_big(mtu: u32) -> Self {
        Self(Self::OWED | (mtu & 0xffff))
    }

    /// Whether an ICMP error is owed.
    #[inline(always)]
    #[must_use]
    pub const fn is_owed(self) -> bool {
        self.0 & Self::OWED != 0
    }

    /// The MTU that is owed, or 0.
    #[inline(always)]
    #[must_use]
    pub const fn mtu(self) -> u32 {
        self.0 & 0xffff
    }

    /// Set where the frame is to be dropped as its destination is not known: upstream may be asked for it, by what the scratch
    /// memory says.
    const UNKNOWN: u32 = 1 << 9;

    /// The frame's destination is not known; without anybody to ask, it is dropped for that reason.
    #[inline(always)]
    #[must_use]
    pub const fn unknown(reason: DropReason) -> Self {
        Self(Self::UNKNOWN | reason as u32)
    }

    /// Whether the destination is not known.
    #[inline(always)]
    #[must_use]
    pub const fn is_unknown(self) -> bool {
        self.0 & Self::UNKNOWN != 0 && self.0 < Self::SENT
    }

    /// The reason of the drop, without anybody to ask.
    #[inline(always)]
    #[must_use]
    pub const fn unasked(self) -> Self {
        Self(self.0 & !Self::UNKNOWN)
    }

    /// Added to the program's action for a frame that was sent.
    const SENT: u32 = 1 << 16;

    /// The frame was sent; the program ends with this action.
    #[inline(always)]
    #[must_use]
    pub const fn sent(action: i32) -> Self {
        Self(Self::SENT + action as u32)
    }

    /// The action, if the frame was sent.
    #[inline(always)]
    #[must_use]
    pub const fn action(self) -> Option<i32> {
        if self.0 >= Self::SENT { Some((self.0 - Self::SENT) as i32) } else { None }
    }

    /// What a subprogram gives for a step.
    #[inline(always)]
    #[must_use]
    pub fn number(step: Step<()>) -> u32 {
        match step {
            Ok(()) => 0,
            Err(ended) => ended.0,
        }
    }

    /// The step that a subprogram's number stands for.
    #[inline(always)]
    pub const fn step(number: u32) -> Step<()> {
        if number == 0 { Ok(()) } else { Err(Self(number)) }
    }
}

impl From<DropReason> for Ended {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self(reason as u32)
    }
}

impl From<Refused> for Ended {
    #[inline(always)]
    fn from(_: Refused) -> Self {
        DropReason::RewriteFailed.into()
    }
}

impl From<Fault> for Ended {
    #[inline(always)]
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed => DropReason::Malformed,
            Fault::Tiny => DropReason::FragmentTiny,
            Fault::Extension => DropReason::ExtensionHeader,
        }
        .into()
    }
}

/// The end of a frame's way, by a drop.
#[inline(always)]
fn refuse<T>(reason: DropReason) -> Step<T> {
    Err(reason.into())
}

/// The port at an index, if it still has that generation.
#[inline(always)]
fn port(index: u32, generation: u32) -> Step<&'static Port> {
    match PORTS.get(&index) {
        Some(port) if port.generation == generation && generation != 0 => Ok(port),
        _ => refuse(DropReason::StaleIndex),
    }
}

/// The subnet at an index, if it still has that generation.
#[inline(always)]
fn subnet(index: u32, generation: u32) -> Step<&'static Subnet> {
    match SUBNETS.get(&index) {
        Some(subnet) if subnet.generation == generation && generation != 0 => Ok(subnet),
        _ => refuse(DropReason::StaleIndex),
    }
}

/// Refuses a port that is down or closed.
#[inline(always)]
fn open(port: &Port) -> Step<()> {
    if port.flags & port_flags::UP == 0 {
        refuse(DropReason::PortDown)
    } else if port.flags & port_flags::CLOSED != 0 {
        refuse(DropReason::PortClosed)
    } else {
        Ok(())
    }
}

/// Where a MAC is in a VNI.
#[inline(always)]
fn by_mac(vni: u32, mac: Mac) -> Option<&'static Endpoint> {
    ENDPOINTS_MAC.get(&MacKey { vni, mac: mac.bytes(), reserved: [0; 2] })
}

/// Where an address is in a VNI.
#[inline(always)]
fn by_ip(vni: u32, ip: Address) -> Option<&'static Endpoint> {
    ENDPOINTS_IP.get(&IpKey { vni, ip: ip.bytes() })
}

/// The MAC of a table entry, if it is set.
#[inline(always)]
fn set(mac: &[u8; 6]) -> Option<Mac> {
    let mac = Mac::new(mac);
    (mac != Mac::ZERO).then_some(mac)
}
