//! What a guest may be told about itself and its network, as one value: who answers guests needs nothing else of the model.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::options::Extras;

/// What the guest behind a port may be told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaseFacts {
    /// The port's own MAC: no other client is answered.
    pub mac: [u8; 6],
    /// The largest IP packet that the guest should send, in bytes; 0 if it is not known.
    pub mtu: u16,
    /// Its IPv4 lease, if there is a binding for it.
    pub v4: Option<LeaseV4>,
    /// Its IPv6 subnets, in the order of its fixed addresses.
    pub v6: Vec<LinkV6>,
}

/// A gateway: an address, and the MAC that it is reached by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gateway<Address> {
    /// Its address.
    pub ip: Address,
    /// Its MAC.
    pub mac: [u8; 6],
}

/// An IPv4 lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseV4 {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The subnet.
    pub net: Ipv4Net,
    /// The subnet's gateway, if it has one with a MAC.
    pub gateway: Option<Gateway<Ipv4Addr>>,
    /// Name servers, in order.
    pub dns: Vec<Ipv4Addr>,
    /// Name of the guest, possibly with its domain; empty if it has none.
    pub host_name: String,
    /// Routes of the subnet's router beside those to its subnets: destination and next hop.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// What the subnet's `extra_dhcp_options` add or replace.
    pub extras: Extras,
}

/// An IPv6 subnet that the guest is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkV6 {
    /// The subnet's prefix.
    pub net: Ipv6Net,
    /// MAC of its gateway, or [`ncm_common::SERVER_MAC`]: router advertisements come from the link-local address that belongs to it.
    pub gateway_mac: [u8; 6],
    /// A router holds the subnet: its gateway routes.
    pub routed: bool,
    /// The port's fixed addresses in the subnet.
    pub fixed: Vec<Ipv6Addr>,
    /// The address that DHCPv6 leases, if there is a binding.
    pub lease: Option<Ipv6Addr>,
    /// Name servers, in order.
    pub dns: Vec<Ipv6Addr>,
    /// Name of the guest, possibly with its domain; empty if it has none.
    pub host_name: String,
    /// What the subnet's `extra_dhcp_options` add or replace.
    pub extras: Extras,
}

/// The link-local address of a MAC (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), mac)
}

/// The address that a host with that MAC makes for itself in a prefix of 64 bits.
#[must_use]
pub fn eui64(prefix: Ipv6Addr, mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let mut octets = prefix.octets();
    octets[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from(octets)
}

/// The domain of a qualified host name, empty for a bare one, and the name without it.
#[must_use]
pub fn split_name(name: &str) -> (&str, &str) {
    name.split_once('.').map_or((name, ""), |(host, domain)| (host, domain.trim_end_matches('.')))
}
