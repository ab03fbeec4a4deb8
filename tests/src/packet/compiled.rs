//! The guests and hosts of [`World::new`], with tables that the model compiles from goal states: what the programs do then is
//! what a controller asked for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use ncm_common::Plain;
use ncm_common::tables::Flow;
use ncm_dataplane::Table;
use ncm_model::reference::{self, Packet};
use ncm_model::wire::port_configuration::{AllowAddressPair, FixedIp, SecurityGroupId};
use ncm_model::wire::security_group_configuration::SecurityGroupRule;
use ncm_model::wire::{
    GoalState, NeighborConfiguration, NeighborState, NeighborType, OperationStatus, OperationType,
    PortConfiguration, PortState, RouterConfiguration, RouterState, SecurityGroupConfiguration,
    SecurityGroupState, SubnetConfiguration, SubnetState, UpdateType, VpcConfiguration, VpcState,
    neighbor_configuration, router_configuration, subnet_configuration,
};
use ncm_model::{
    Changes, Delta, HostChange, InterfaceFacts, Message, Model, Origin, Progress, Run, Seed, Settings,
};
use prost::Message as _;

use super::{A1, A2, B1, C1, C2, Guest, HERE, HERE_V6, Mac, Remote, SUBNET_A, SUBNET_B, SUBNET_C};
use super::{SubnetOf, World, mac};

/// The guests of this host.
pub const GUESTS: [Guest; 5] = [A1, A2, B1, C1, C2];

/// Neighbours on other hosts: seven of A and three of B on host 1, some of them as it is reached over IPv6; one of C on host 2.
pub const REMOTES: [Remote; 11] = [
    remote(1, 0x1a, SUBNET_A, 111),
    remote(1, 0x2a, SUBNET_A, 112),
    remote(1, 0x3a, SUBNET_A, 113),
    remote(1, 0x4a, SUBNET_A, 120),
    remote(3, 0x5a, SUBNET_A, 127),
    remote(3, 0x6a, SUBNET_A, 128),
    remote(1, 0x7a, SUBNET_A, 200),
    remote(1, 0x1b, SUBNET_B, 121),
    remote(3, 0x2b, SUBNET_B, 122),
    remote(1, 0x3b, SUBNET_B, 250),
    remote(2, 0x1a, SUBNET_C, 111),
];

const fn remote(host: u32, number: u32, subnet: SubnetOf, last: u8) -> Remote {
    let [a, b, c, _] = subnet.network;
    Remote { host, mac: mac(number), ip: [a, b, c, last], subnet }
}

/// The groups that guests and neighbours may be in.
pub const GROUPS: [&str; 4] = ["g0", "g1", "g2", "g3"];

/// A further address that [`A2`] may send from, and a prefix.
pub const PAIR: [u8; 4] = [10, 0, 1, 50];
/// See [`PAIR`].
pub const PAIR_PREFIX: &str = "10.77.0.0/24";

/// The world, the model that writes its tables, and what the model was told of policy.
#[derive(Debug)]
pub struct Compiled {
    world: World,
    model: Model,
    epochs: BTreeMap<u32, u32>,
    rules: BTreeMap<&'static str, SecurityGroupConfiguration>,
    /// Groups by the address of a guest or a neighbour, as their subnets' tenants do not share addresses with groups.
    groups: BTreeMap<(Mac, u32), Vec<&'static str>>,
}

impl Compiled {
    /// The world with open ports and four empty groups.
    ///
    /// # Panics
    /// As [`World::new`], or if the model refuses what it is told.
    #[must_use]
    pub fn new() -> Self {
        let world = World::bare(&[
            ("endpoints", 256),
            ("rules", 65_536),
            ("classes", 16_384),
            ("flows", 65_536),
            ("names", 4_096),
            ("sources", 256),
            ("policy_counts", 4_096),
        ]);
        let here = vec![IpAddr::from(HERE), IpAddr::from(HERE_V6)];
        let settings = Settings { addresses: here.clone(), endpoints: here, ..Settings::default() };
        let mut compiled = Self {
            world,
            model: Model::new(settings, &Seed::default()),
            epochs: BTreeMap::new(),
            rules: BTreeMap::new(),
            groups: BTreeMap::new(),
        };
        compiled.push(&network());
        for guest in GUESTS {
            compiled.push(&GoalState { port_states: vec![port(guest, &[])], ..GoalState::default() });
            let ifindex = compiled.world.ready_for_xdp(guest);
            let mut changes = Changes::default();
            let facts = InterfaceFacts { ifindex, mtu: 1500, xdp_target: true };
            compiled.model.set_interface(guest.interface, Some(facts), &mut changes);
            compiled.write(changes);
            let index = compiled.world.tables().port_by_interface.get(&ifindex).expect("readable");
            assert_eq!(index.map(|port| port.index), Some(guest.port), "the port of {}", guest.interface);
        }
        for remote in REMOTES {
            compiled.join(remote, &[]);
        }
        for group in GROUPS {
            compiled.set_rules(group, Vec::new());
        }
        compiled
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Gives a group these rules, all of them.
    pub fn set_rules(&mut self, group: &'static str, rules: Vec<SecurityGroupRule>) {
        let configuration = SecurityGroupConfiguration {
            id: group.to_owned(),
            update_type: UpdateType::Full.into(),
            security_group_rules: rules,
            ..Default::default()
        };
        let state = SecurityGroupState {
            operation_type: OperationType::Update.into(),
            configuration: Some(configuration.clone()),
        };
        self.push(&GoalState { security_group_states: vec![state], ..GoalState::default() });
        self.rules.insert(group, configuration);
    }

    /// Puts a guest into these groups, and no others.
    pub fn put_into(&mut self, guest: Guest, groups: &[&'static str]) {
        self.push(&GoalState { port_states: vec![port(guest, groups)], ..GoalState::default() });
        self.groups.insert((guest.mac, guest.subnet.vni), groups.to_vec());
    }

    /// Makes a neighbour a member of these groups, and no others.
    pub fn join(&mut self, remote: Remote, groups: &[&'static str]) {
        let states = [NeighborType::L2, NeighborType::L3].map(|kind| neighbour(remote, kind, groups));
        self.push(&GoalState { neighbor_states: states.to_vec(), ..GoalState::default() });
        self.groups.insert((remote.mac, remote.subnet.vni), groups.to_vec());
    }

    /// Groups that the guest or neighbour with that MAC is in.
    #[must_use]
    pub fn members(&self, mac: Mac, subnet: SubnetOf) -> Vec<String> {
        let groups = self.groups.get(&(mac, subnet.vni)).cloned().unwrap_or_default();
        groups.into_iter().map(str::to_owned).collect()
    }

    /// What the rules of a guest's groups say.
    #[must_use]
    pub fn allows(&self, guest: Guest, packet: &Packet) -> bool {
        let groups = self.groups.get(&(guest.mac, guest.subnet.vni)).cloned().unwrap_or_default();
        let rules: Vec<_> = groups.iter().map(|group| self.rules[group].clone()).collect();
        reference::allows(&rules, packet)
    }

    /// Forgets all flows and fragments.
    ///
    /// # Panics
    /// If a table cannot be written.
    pub fn forget(&self) {
        let tables = self.world.tables();
        let empty = |table: &Table<_, Flow>| {
            let keys: Vec<_> = table.entries().expect("readable").into_iter().map(|(key, _)| key).collect();
            assert!(table.delete_batch(keys).is_complete(), "flows are deleted");
        };
        empty(&tables.flows);
        for guest in GUESTS {
            empty(&tables.half_open.of(guest.port).expect("readable").expect("the port's table"));
            tables.port_flows.delete(&guest.port).expect("writable");
        }
    }

    /// Tells the model, which must take it all, and writes what changes.
    ///
    /// # Panics
    /// If the model refuses anything, or a table cannot be written.
    pub fn push(&mut self, state: &GoalState) {
        let message = Message::decode_v1(Bytes::from(state.encode_to_vec())).expect("a goal state");
        let mut run = Run::new(message, Origin::Controller, 1);
        loop {
            let mut changes = Changes::default();
            let progress = self.model.step(&mut run, 1000, &mut changes);
            self.write(changes);
            if progress == Progress::Done {
                break;
            }
        }
        for row in self.model.rows(&run) {
            // A port waits for its interface, a neighbour of C for a router.
            let fine = matches!(row.status, OperationStatus::Success | OperationStatus::Pending);
            assert!(fine, "{row:?}");
        }
    }

    /// Writes what changes, in the order of the agent.
    fn write(&mut self, mut changes: Changes) {
        let tables = self.world.tables();
        for change in &changes.hosts {
            if let HostChange::Add { index, generation, address } = change {
                self.world.add_host(*index, *generation, *address);
            }
        }
        let known = |port| tables.ports.get(&port).expect("readable").map_or(0, |port| port.generation);
        let ports = changes.ports.put.iter().filter(|put| known(put.key) != put.value.generation);
        let begun: Vec<u32> = ports.map(|put| put.key).collect();
        assert!(tables.half_open.create(&begun).failed.is_empty(), "tables of half-open flows");
        macro_rules! in_order {
            ($($table:ident)+) => { $( put(&tables.$table, &mut changes.$table); )+ in_reverse!($($table)+); };
        }
        macro_rules! in_reverse {
            ($first:ident $($rest:ident)*) => { in_reverse!($($rest)*); delete(&tables.$first, &mut changes.$first); };
            () => {};
        }
        in_order!(names rules classes subnets ports vnis subnet_prefixes vteps endpoints_mac endpoints_ip
            routes sources source_prefixes devices port_by_interface);
        put(&tables.ports, &mut changes.port_epochs);
        for slot in changes.epochs {
            let epoch = self.epochs.entry(slot).or_default();
            *epoch += 1;
            tables.remote_epochs.put(&slot, epoch).expect("writable");
        }
    }
}

impl Default for Compiled {
    fn default() -> Self {
        Self::new()
    }
}

fn put<K: Plain, V: Plain>(table: &Table<K, V>, delta: &mut Delta<K, V>) {
    let outcome = table.put_batch(delta.put.drain(..).map(|put| (put.key, put.value)));
    assert!(outcome.is_complete(), "{table:?}: {outcome:?}");
}

fn delete<K: Plain, V: Plain>(table: &Table<K, V>, delta: &mut Delta<K, V>) {
    let outcome = table.delete_batch(delta.del.drain(..));
    assert!(outcome.is_complete(), "{table:?}: {outcome:?}");
}

/// Subnet A and B of one tenant with a router, C of another without.
fn network() -> GoalState {
    let create = OperationType::Create.into();
    let vpc = |id: &str, tunnel_id| VpcState {
        operation_type: create,
        configuration: Some(VpcConfiguration { id: id.to_owned(), tunnel_id, ..Default::default() }),
    };
    let mut state = GoalState { vpc_states: vec![vpc("one", 900), vpc("two", 901)], ..GoalState::default() };
    for (subnet, vpc) in [(SUBNET_A, "one"), (SUBNET_B, "one"), (SUBNET_C, "two")] {
        let (v4, v6) = (subnet.gateway, subnet.gateway_v6());
        for (id, cidr, mac, gateway) in [
            (name(subnet), format!("{}/24", Ipv4Addr::from(subnet.network)), v4.0, IpAddr::from(v4.1)),
            (
                name_v6(subnet),
                format!("{}/64", std::net::Ipv6Addr::from(subnet.network_v6())),
                v6.0,
                IpAddr::from(v6.1),
            ),
        ] {
            let gateway =
                subnet_configuration::Gateway { ip_address: gateway.to_string(), mac_address: text(mac) };
            let configuration = SubnetConfiguration {
                id,
                vpc_id: vpc.to_owned(),
                cidr,
                tunnel_id: u64::from(subnet.vni),
                gateway: Some(gateway),
                ..Default::default()
            };
            state
                .subnet_states
                .push(SubnetState { operation_type: create, configuration: Some(configuration) });
        }
    }
    let tables = [name(SUBNET_A), name_v6(SUBNET_A), name(SUBNET_B), name_v6(SUBNET_B)]
        .map(|subnet_id| router_configuration::SubnetRoutingTable { subnet_id, ..Default::default() });
    let configuration = RouterConfiguration {
        id: "router".to_owned(),
        host_dvr_mac_address: text(SUBNET_A.dvr_mac),
        subnet_routing_tables: tables.to_vec(),
        ..Default::default()
    };
    state.router_states.push(RouterState { operation_type: create, configuration: Some(configuration) });
    state
}

fn port(guest: Guest, groups: &[&str]) -> PortState {
    let fixed = |subnet_id, ip: IpAddr| FixedIp { subnet_id, ip_address: ip.to_string() };
    let pair = |ip: &str| AllowAddressPair { ip_address: ip.to_owned(), mac_address: String::new() };
    let pairs = if guest.port == A2.port {
        vec![pair(&Ipv4Addr::from(PAIR).to_string()), pair(PAIR_PREFIX)]
    } else {
        Vec::new()
    };
    let configuration = PortConfiguration {
        id: format!("port-{}", guest.interface),
        update_type: UpdateType::Full.into(),
        device_id: "guest".to_owned(),
        mac_address: text(guest.mac),
        admin_state_up: true,
        fixed_ips: vec![
            fixed(name(guest.subnet), guest.ip.into()),
            fixed(name_v6(guest.subnet), guest.ip_v6().into()),
        ],
        allow_address_pairs: pairs,
        security_group_ids: groups.iter().map(|id| SecurityGroupId { id: (*id).to_owned() }).collect(),
        interface_name: guest.interface.to_owned(),
        ..Default::default()
    };
    PortState { operation_type: OperationType::Update.into(), configuration: Some(configuration) }
}

fn neighbour(remote: Remote, kind: NeighborType, groups: &[&str]) -> NeighborState {
    let fixed = |subnet_id, ip: IpAddr| neighbor_configuration::FixedIp {
        neighbor_type: kind.into(),
        subnet_id,
        ip_address: ip.to_string(),
        ..Default::default()
    };
    let configuration = NeighborConfiguration {
        id: format!("neighbour-{}-{}", remote.subnet.vni, remote.ip[3]),
        update_type: UpdateType::Full.into(),
        mac_address: text(remote.mac),
        host_ip_address: remote.endpoint().to_string(),
        fixed_ips: vec![
            fixed(name(remote.subnet), remote.ip.into()),
            fixed(name_v6(remote.subnet), remote.ip_v6().into()),
        ],
        security_group_ids: groups.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    };
    NeighborState { operation_type: OperationType::Update.into(), configuration: Some(configuration) }
}

fn name(subnet: SubnetOf) -> String {
    format!("subnet-{}", subnet.vni)
}

fn name_v6(subnet: SubnetOf) -> String {
    format!("subnet-{}-v6", subnet.vni)
}

fn text(mac: Mac) -> String {
    crate::testbed::format_mac(mac)
}
