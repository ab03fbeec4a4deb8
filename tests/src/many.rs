//! Neighbours by the million, for tests and benchmarks of size.

use std::net::Ipv4Addr;

use ncm_model::wire::neighbor_configuration::FixedIp;
use ncm_model::wire::{NeighborConfiguration, NeighborState, NeighborType, OperationType};

use crate::testbed::Cloud;

/// A subnet `web` that has room for them, with a port `a` on the first host and `b` on the second.
#[must_use]
pub fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("web", "red", "10.0.0.0/8").port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    cloud
}

/// Address of a neighbour by its number: from 10.64.0.0 up.
#[must_use]
pub fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a40_0000 + number)
}

/// MAC of a neighbour by its number.
#[must_use]
pub fn mac(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [0x06, 0, a, b, c, d]
}

/// L2 neighbours in one subnet and on one host, with the identifiers that real controllers use.
#[must_use]
pub fn neighbors(subnet: &str, vpc: &str, count: u32, host: Ipv4Addr) -> Vec<NeighborState> {
    (0..count)
        .map(|number| NeighborState {
            operation_type: OperationType::Create.into(),
            configuration: Some(NeighborConfiguration {
                revision_number: 1,
                id: format!("{number:08x}-1111-4222-8333-444455556666"),
                vpc_id: vpc.to_owned(),
                mac_address: crate::testbed::format_mac(mac(number)),
                host_ip_address: host.to_string(),
                fixed_ips: vec![FixedIp {
                    neighbor_type: NeighborType::L2.into(),
                    subnet_id: subnet.to_owned(),
                    ip_address: address(number).to_string(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        })
        .collect()
}
