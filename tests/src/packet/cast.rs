//! Who is in the world: subnets, guests of this host and of others.

use std::net::IpAddr;

use ncm_common::tables::Route;

use super::{Ipv4, Ipv6, Mac, mac, mapped};

/// Our tunnel endpoint.
pub const HERE: Ipv4 = [192, 0, 2, 1];
/// Our tunnel endpoint over IPv6.
pub const HERE_V6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Host 1 as it is reached over IPv6, which is host index 3.
pub const HOST_1_V6: Ipv6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// Host 1: of the first tenant.
pub const HOST_1: Ipv4 = [192, 0, 2, 2];
/// Host 2: of the second tenant.
pub const HOST_2: Ipv4 = [192, 0, 2, 3];
/// A host that nobody knows.
pub const UNKNOWN_HOST: Ipv4 = [192, 0, 2, 99];

/// A subnet of the world.
#[derive(Clone, Copy, Debug)]
pub struct SubnetOf {
    /// Index, and its generation.
    pub index: u32,
    /// VNI.
    pub vni: u32,
    /// Network address of a /24.
    pub network: Ipv4,
    /// Gateway: MAC and address.
    pub gateway: (Mac, Ipv4),
    /// Source MAC of routed frames that leave the host.
    pub dvr_mac: Mac,
}

/// The gateway of subnet A.
pub const GATEWAY_A: (Mac, Ipv4) = (mac(0x6a_0001), [10, 0, 1, 1]);
/// The gateway of subnet B.
pub const GATEWAY_B: (Mac, Ipv4) = (mac(0x6b_0001), [10, 0, 2, 1]);
/// Subnet A.
pub const SUBNET_A: SubnetOf = SubnetOf {
    index: 1,
    vni: 100,
    network: [10, 0, 1, 0],
    gateway: GATEWAY_A,
    dvr_mac: [0xfe, 0x16, 0x11, 0, 0, 0x0a],
};
/// Subnet B, in the same router as A.
pub const SUBNET_B: SubnetOf = SubnetOf {
    index: 2,
    vni: 200,
    network: [10, 0, 2, 0],
    gateway: GATEWAY_B,
    dvr_mac: [0xfe, 0x16, 0x11, 0, 0, 0x0b],
};
/// Subnet C of another tenant: the addresses of A, no router.
pub const SUBNET_C: SubnetOf =
    SubnetOf { index: 3, vni: 300, network: [10, 0, 1, 0], gateway: GATEWAY_A, dvr_mac: [0; 6] };

/// A guest of this host.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Port index, and its generation.
    pub port: u32,
    /// Its interface on this host.
    pub interface: &'static str,
    /// MAC.
    pub mac: Mac,
    /// Address.
    pub ip: Ipv4,
    /// Subnet.
    pub subnet: SubnetOf,
}

impl Guest {
    /// IPv6 address.
    #[must_use]
    pub const fn ip_v6(&self) -> Ipv6 {
        v6(self.ip)
    }

    /// MAC and IPv6 address.
    #[must_use]
    pub const fn pair_v6(&self) -> (Mac, Ipv6) {
        (self.mac, self.ip_v6())
    }

    /// MAC and address.
    #[must_use]
    pub const fn pair(&self) -> (Mac, Ipv4) {
        (self.mac, self.ip)
    }
}

/// A guest in A.
pub const A1: Guest =
    Guest { port: 1, interface: "a1", mac: mac(0xa1), ip: [10, 0, 1, 11], subnet: SUBNET_A };
/// Another guest in A.
pub const A2: Guest =
    Guest { port: 2, interface: "a2", mac: mac(0xa2), ip: [10, 0, 1, 12], subnet: SUBNET_A };
/// A guest in B.
pub const B1: Guest =
    Guest { port: 3, interface: "b1", mac: mac(0xb1), ip: [10, 0, 2, 21], subnet: SUBNET_B };
/// A guest in C with the addresses of [`A1`].
pub const C1: Guest = Guest { port: 4, interface: "c1", mac: A1.mac, ip: A1.ip, subnet: SUBNET_C };
/// A guest in C with the addresses of [`A2`].
pub const C2: Guest = Guest { port: 5, interface: "c2", mac: A2.mac, ip: A2.ip, subnet: SUBNET_C };

/// A guest of another host.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    /// Index of its host, and its generation.
    pub host: u32,
    /// MAC.
    pub mac: Mac,
    /// Address.
    pub ip: Ipv4,
    /// Subnet.
    pub subnet: SubnetOf,
}

impl Remote {
    /// Tunnel endpoint of its host.
    #[must_use]
    pub fn endpoint(&self) -> IpAddr {
        match self.host {
            1 => HOST_1.into(),
            2 => HOST_2.into(),
            _ => HOST_1_V6.into(),
        }
    }

    /// IPv6 address.
    #[must_use]
    pub const fn ip_v6(&self) -> Ipv6 {
        v6(self.ip)
    }

    /// MAC and IPv6 address.
    #[must_use]
    pub const fn pair_v6(&self) -> (Mac, Ipv6) {
        (self.mac, self.ip_v6())
    }

    /// MAC and address.
    #[must_use]
    pub const fn pair(&self) -> (Mac, Ipv4) {
        (self.mac, self.ip)
    }
}

/// A neighbour in A, on host 1.
pub const RA: Remote = Remote { host: 1, mac: mac(0x1a), ip: [10, 0, 1, 111], subnet: SUBNET_A };
/// A neighbour in B, on host 1.
pub const RB: Remote = Remote { host: 1, mac: mac(0x1b), ip: [10, 0, 2, 121], subnet: SUBNET_B };
/// A neighbour in C with the addresses of [`RA`], on host 2.
pub const RC: Remote = Remote { host: 2, mac: RA.mac, ip: RA.ip, subnet: SUBNET_C };

impl SubnetOf {
    /// Index of the IPv6 subnet of the same VNI.
    #[must_use]
    pub const fn index_v6(&self) -> u32 {
        self.index + 10
    }

    /// The same subnet with the index of its IPv6 one.
    #[must_use]
    pub const fn v6(&self) -> Self {
        Self { index: self.index_v6(), ..*self }
    }

    /// Network address of its /64.
    #[must_use]
    pub const fn network_v6(&self) -> Ipv6 {
        v6(self.network)
    }

    /// Its gateway: MAC and address.
    #[must_use]
    pub const fn gateway_v6(&self) -> (Mac, Ipv6) {
        let (mac, ip) = self.gateway;
        ([mac[0], mac[1], mac[2], mac[3], 0x66, mac[5]], v6(ip))
    }

    /// A route by way of a next hop in this subnet.
    #[must_use]
    pub fn via(&self, next_hop_ip: Ipv4, next_hop_mac: Mac) -> Route {
        Route {
            subnet: self.index,
            subnet_generation: self.index,
            next_hop_ip: mapped(next_hop_ip),
            next_hop_mac,
            ..Route::default()
        }
    }
}

/// The IPv6 address that goes with an IPv4 one: its subnet's number and its host's.
const fn v6([a, _, c, d]: Ipv4) -> Ipv6 {
    [0xfd, a, 0, 0, 0, 0, 0, c, 0, 0, 0, 0, 0, 0, 0, d]
}
