//! What one station says to another: the frame of it, and what policy is asked about it.

use std::fmt;
use std::net::IpAddr;

use ncm_model::reference;

use super::{Guest, HERE, Ip, Ip6, Ipv4, Ipv6, Mac, Remote, SubnetOf, icmp, icmp6, segment, tcp6, udp, udp6};

/// A guest of this host, a neighbour on another, or somebody whom nobody knows.
#[derive(Clone, Copy)]
pub struct Station {
    /// The guest, if it is here.
    pub guest: Option<Guest>,
    /// MAC.
    pub mac: Mac,
    /// Address.
    pub ip: Ipv4,
    /// IPv6 address.
    pub ip_v6: Ipv6,
    /// Subnet.
    pub subnet: SubnetOf,
    /// Tunnel endpoint of its host.
    pub host: IpAddr,
}

impl From<Guest> for Station {
    fn from(guest: Guest) -> Self {
        let Guest { mac, ip, subnet, .. } = guest;
        Self { guest: Some(guest), mac, ip, ip_v6: guest.ip_v6(), subnet, host: HERE.into() }
    }
}

impl From<Remote> for Station {
    fn from(remote: Remote) -> Self {
        let Remote { mac, ip, subnet, .. } = remote;
        Self { guest: None, mac, ip, ip_v6: remote.ip_v6(), subnet, host: remote.endpoint() }
    }
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = self.guest.map_or("elsewhere", |guest| guest.interface);
        write!(f, "{} ({whose}, VNI {})", std::net::Ipv4Addr::from(self.ip), self.subnet.vni)
    }
}

impl Station {
    /// Its address of either version.
    #[must_use]
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.ip_v6.into() } else { self.ip.into() }
    }
}

/// What is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Talk {
    /// A TCP segment with flags; source and destination port.
    Tcp(u8, u16, u16),
    /// UDP; source and destination port.
    Udp(u16, u16),
    /// ICMP or ICMPv6: type, code and, for echoes, identifier.
    Icmp(u8, u8, u16),
    /// Another protocol.
    Other(u8),
}

impl Talk {
    /// Protocol of the IP header.
    #[must_use]
    pub fn protocol(&self, v6: bool) -> u8 {
        match self {
            Self::Tcp(..) => 6,
            Self::Udp(..) => 17,
            Self::Icmp(..) => [1, 58][usize::from(v6)],
            Self::Other(protocol) => *protocol,
        }
    }

    /// What policy is asked about it.
    #[must_use]
    pub fn question(
        &self,
        to_guest: bool,
        remote: &Station,
        v6: bool,
        members: Vec<String>,
    ) -> reference::Packet {
        let port = match *self {
            Self::Tcp(_, _, port) | Self::Udp(_, port) => port,
            Self::Icmp(kind, code, _) => u16::from_be_bytes([kind, code]),
            Self::Other(_) => 0,
        };
        reference::Packet { to_guest, remote: remote.address(v6), members, protocol: self.protocol(v6), port }
    }

    /// It in a packet over IPv4.
    #[must_use]
    pub fn v4(&self, from: Ipv4, to: Ipv4) -> Ip {
        match *self {
            Self::Tcp(flags, source, destination) => segment((from, source), (to, destination), flags),
            Self::Udp(source, destination) => udp((from, source), (to, destination), b"said"),
            Self::Icmp(kind, code, id) => icmp(from, to, kind, code, rest(id), b"said"),
            Self::Other(protocol) => Ip::new(from, to, protocol, b"something else".to_vec()),
        }
    }

    /// It in a packet over IPv6.
    #[must_use]
    pub fn v6(&self, from: Ipv6, to: Ipv6) -> Ip6 {
        match *self {
            Self::Tcp(flags, source, destination) => tcp6((from, source), (to, destination), flags, b""),
            Self::Udp(source, destination) => udp6((from, source), (to, destination), b"said"),
            Self::Icmp(kind, code, id) => icmp6(from, to, kind, code, rest(id), b"said"),
            Self::Other(protocol) => Ip6::new(from, to, protocol, b"something else".to_vec(), None),
        }
    }

    fn frame(&self, from: &Station, to: &Station, v6: bool, macs: (Mac, Mac)) -> Vec<u8> {
        if v6 {
            self.v6(from.ip_v6, to.ip_v6).frame(macs.0, macs.1)
        } else {
            self.v4(from.ip, to.ip).frame(macs.0, macs.1)
        }
    }

    /// The frame as a guest sends it: to the other's MAC in its own subnet, else to its gateway's.
    #[must_use]
    pub fn sent(&self, from: &Station, to: &Station, v6: bool) -> Vec<u8> {
        let gateway = if v6 { from.subnet.gateway_v6().0 } else { from.subnet.gateway.0 };
        let via = if from.subnet.vni == to.subnet.vni { to.mac } else { gateway };
        self.frame(from, to, v6, (via, from.mac))
    }

    /// The frame as it comes out of the tunnel, in the VNI of the one that it is for: if routed, with the router's MAC.
    #[must_use]
    pub fn arriving(&self, from: &Station, to: &Station, v6: bool) -> Vec<u8> {
        let source = if from.subnet.vni == to.subnet.vni { from.mac } else { super::SUBNET_A.dvr_mac };
        self.frame(from, to, v6, (to.mac, source))
    }
}

fn rest(id: u16) -> [u8; 4] {
    let [a, b] = id.to_be_bytes();
    [a, b, 0, 1]
}
