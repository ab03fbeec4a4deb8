//! Security groups with many rules, as the model compiles them into table entries.

use anyhow::{Context, Result, ensure};
use ncm_common::tables::{ClassKey, Classes, Rule, RuleKey};
use ncm_model::wire::security_group_configuration::{Direction, SecurityGroupRule};
use ncm_model::wire::{
    EtherType, OperationType, Protocol, SecurityGroupConfiguration, SecurityGroupState, UpdateType,
    port_configuration::SecurityGroupId,
};
use ncm_model::{Changes, Message, Model, Origin, Progress, Run, Seed, Settings};
use prost::Message as _;

use crate::testbed::Cloud;

/// The entries of some policy sets.
pub(super) struct Sets {
    /// Sets by the number of rules for each direction and version of IP.
    numbers: Vec<(usize, u32)>,
    /// Of `RULES`.
    pub(super) rules: Vec<(RuleKey, Rule)>,
    /// Of `CLASSES`.
    pub(super) classes: Vec<(ClassKey, Classes)>,
}

impl Sets {
    /// The set with so many rules; 0 if there is none.
    pub(super) fn of(&self, rules: usize) -> u32 {
        self.numbers.iter().find(|(size, _)| *size == rules).map_or(0, |(_, set)| *set)
    }
}

/// Compiles a group of each size, each with a port in it.
pub(super) fn compile(sizes: &[usize]) -> Result<Sets> {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("web", "red", "10.0.1.0/24");
    let addresses: Vec<String> = (0..sizes.len()).map(|at| format!("10.0.1.{}", at + 11)).collect();
    for (size, address) in sizes.iter().zip(&addresses) {
        cloud.port(&size.to_string(), "web", address, "host1");
    }
    let mut state = cloud.goal_state("host1");
    for size in sizes {
        state.security_group_states.push(group(&size.to_string(), rules(*size)));
    }
    for port in state.port_states.iter_mut().filter_map(|port| port.configuration.as_mut()) {
        port.security_group_ids = vec![SecurityGroupId { id: port.id.clone() }];
    }
    let mut model = Model::new(Settings::default(), &Seed::default());
    let message = Message::decode_v1(state.encode_to_vec().into()).context("decode the groups")?;
    let (mut run, mut changes) = (Run::new(message, Origin::Controller, 0), Changes::default());
    let mut sets = Sets { numbers: Vec::new(), rules: Vec::new(), classes: Vec::new() };
    loop {
        let progress = model.step(&mut run, usize::MAX, &mut changes);
        sets.rules.extend(changes.rules.put.drain(..).map(|put| (put.key, put.value)));
        sets.classes.extend(changes.classes.put.drain(..).map(|put| (put.key, put.value)));
        for port in changes.ports.put.drain(..).filter(|port| port.value.set != 0) {
            let at = usize::from(port.value.ip[15]) - 11;
            sets.numbers.push((sizes[at], port.value.set));
        }
        if matches!(progress, Progress::Done) {
            break;
        }
    }
    ensure!(sizes.iter().all(|size| sets.of(*size) != 0), "a group has no policy set: {:?}", sets.numbers);
    Ok(sets)
}

/// A group's state.
pub(super) fn group(id: &str, rules: Vec<SecurityGroupRule>) -> SecurityGroupState {
    let configuration = SecurityGroupConfiguration {
        revision_number: 1,
        id: id.to_owned(),
        name: id.to_owned(),
        vpc_id: "red".to_owned(),
        update_type: UpdateType::Full.into(),
        security_group_rules: rules,
        ..Default::default()
    };
    SecurityGroupState { operation_type: OperationType::Create.into(), configuration: Some(configuration) }
}

/// One rule.
pub(super) fn rule(
    id: String,
    direction: Direction,
    version: EtherType,
    protocol: Protocol,
    ports: (u32, u32),
    prefix: String,
) -> SecurityGroupRule {
    SecurityGroupRule {
        operation_type: OperationType::Create.into(),
        id,
        direction: direction.into(),
        ethertype: version.into(),
        protocol: protocol.into(),
        port_range_min: ports.0,
        port_range_max: ports.1,
        remote_ip_prefix: prefix,
        ..Default::default()
    }
}

/// So many rules for each direction and version of IP, as a tenant has them: of ports, from hosts, from prefixes and from
/// anywhere, all below port 32,768. The last one allows what is measured: UDP to the ports from there on, within the subnet.
fn rules(count: usize) -> Vec<SecurityGroupRule> {
    let mut all = Vec::new();
    for direction in [Direction::Egress, Direction::Ingress] {
        for (version, network) in [(EtherType::Ipv4, "10.0.1.0/24"), (EtherType::Ipv6, "fd0a:0:0:1::/64")] {
            let v4 = version == EtherType::Ipv4;
            let id = |number: u32| format!("{direction:?}-{version:?}-{number}");
            for number in 1..count as u32 {
                let prefix = match (number % 4, v4) {
                    (0 | 1, true) => format!("10.{}.{}.{}", number % 7, number >> 8 & 255, number & 255),
                    (0 | 1, false) => format!("fd0a:0:0:{:x}::{number:x}", number % 7),
                    (2, true) => format!("172.16.{}.0/24", number & 255),
                    (2, false) => format!("fd0b:0:0:{:x}::/64", number & 255),
                    _ => String::new(),
                };
                let (port, protocol) = (5_000 + number * 13 % 27_000, [Protocol::Tcp, Protocol::Udp]);
                let ports = (port, port + number % 3);
                all.push(rule(
                    id(number),
                    direction,
                    version,
                    protocol[(number / 4 % 2) as usize],
                    ports,
                    prefix,
                ));
            }
            all.push(rule(id(0), direction, version, Protocol::Udp, (32_768, 65_535), network.to_owned()));
        }
    }
    all
}
