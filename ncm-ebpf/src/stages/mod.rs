//! The stations of a packet's path, each generic over the hook's context.
//!
//! From a guest: `guest` (which port) → `admit` (may it send this) → `answer` or `route` → `deliver` (to a guest of this
//! host or into the tunnel). From the wire: `tunnel`. Each stage decides before anything is modified.

pub mod admit;
pub mod answer;
pub mod deliver;
pub mod encapsulate;
pub mod guest;
pub mod route;
pub mod tunnel;

use ncm_common::{
    drops::DropReason,
    tables::{Endpoint, IpKey, MacKey, Port, Subnet, port_flags},
};

use crate::{
    headers::{Ipv4Address, Mac},
    tables::{ENDPOINTS_IP, ENDPOINTS_MAC, PORTS, SUBNETS},
};

/// What a stage gives: something to go on with, or the reason to drop the packet.
pub type Step<T> = Result<T, DropReason>;

/// How a frame from a guest ended, other than by a drop.
#[derive(Clone, Copy)]
pub enum Verdict {
    /// It was sent or answered; the program ends with this action.
    Sent(i32),
    /// The XDP program leaves it, unmodified, to the tc program of the same interface.
    PassUp,
}

/// The port at an index, if it still has that generation.
#[inline(always)]
fn port(index: u32, generation: u32) -> Step<&'static Port> {
    match PORTS.get(&index) {
        Some(port) if port.generation == generation && generation != 0 => Ok(port),
        _ => Err(DropReason::StaleIndex),
    }
}

/// The subnet at an index, if it still has that generation.
#[inline(always)]
fn subnet(index: u32, generation: u32) -> Step<&'static Subnet> {
    match SUBNETS.get(&index) {
        Some(subnet) if subnet.generation == generation && generation != 0 => Ok(subnet),
        _ => Err(DropReason::StaleIndex),
    }
}

/// Refuses a port that is down or closed.
#[inline(always)]
fn open(port: &Port) -> Step<()> {
    if port.flags & port_flags::UP == 0 {
        Err(DropReason::PortDown)
    } else if port.flags & port_flags::CLOSED != 0 {
        Err(DropReason::PortClosed)
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
fn by_ip(vni: u32, ip: Ipv4Address) -> Option<&'static Endpoint> {
    ENDPOINTS_IP.get(&IpKey { vni, ip: ip.mapped() })
}
