//! The world that packets are put into: guests, subnets, remote hosts and interfaces, as table entries.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use ncm_common::counters::PathCounter;
use ncm_common::drops::DropReason;
use ncm_common::tables::{
    Count, Endpoint, Flow, FlowKey, Host, IpKey, MacKey, NextHop, NextHopGroup, Node, Port, PortDropKey,
    PortLimits, PortTraffic, Reference, Route, RouteKey, Source, SourceKey, Subnet, SubnetPrefixKey,
    TemplateHalf, Uplink, Vni, VtepKey, endpoint_flags, next_hop_flags, port_flags, route_flags,
    subnet_flags, timeouts,
};
use ncm_dataplane::{Capacities, Dataplane, Hook, Options, Table, Tables, TestRun, Tunnel};
use nix::sched::{CloneFlags, unshare};

use super::cast::{
    A1, A2, B1, C1, C2, Guest, HERE, HERE_V6, HOST_1, HOST_1_V6, HOST_2, RA, RB, RC, Remote, SUBNET_A,
    SUBNET_B, SUBNET_C, SubnetOf,
};
use super::{Ipv4, Ipv6, Mac, Seen, Verdict, mac};

/// The interfaces: guests', the underlay's, and one that no port is bound to.
const INTERFACES: [&str; 7] = ["a1", "a2", "b1", "c1", "c2", "up0", "spare"];

/// The programs, loaded, and the tables filled.
#[derive(Debug)]
pub struct World {
    dataplane: Dataplane,
}

impl World {
    /// Moves this thread into a network namespace of its own and builds the world there.
    ///
    /// # Panics
    /// Without root, or if the kernel refuses the programs.
    #[must_use]
    pub fn new() -> Self {
        let world = Self::build(&[], Dataplane::open);
        world.fill();
        world
    }

    /// The interfaces and the node alone, with tables of these sizes beside the usual small ones: who is there, and what is allowed,
    /// is for others to write.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn bare(capacities: &[(&str, u32)]) -> Self {
        let world = Self::build(capacities, Dataplane::open);
        world.fill_node();
        world
    }

    /// The same with another object than the embedded one, the benchmark's, and with larger tables: keys of `[capacity]` in the
    /// configuration, and entries.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_object(object: &[u8], capacities: &[(&str, u32)]) -> Self {
        let world = Self::build(capacities, |options| Dataplane::open_object(options, object));
        world.fill();
        world
    }

    fn build(
        larger: &[(&str, u32)],
        open: impl FnOnce(&Options) -> Result<Dataplane, ncm_dataplane::Error>,
    ) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "packet tests need root: run `sudo -E cargo xtask test`");
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of our own");
        // The interfaces' own IPv6 chatter would run through the programs and count.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("a namespace of our own");
        let mut commands = String::from("link set lo up\n");
        for name in INTERFACES {
            commands += &format!(
                "link add {name} type veth peer name {name}p\nlink set {name} up\nlink set {name}p up\n"
            );
        }
        commands += "link add relay0 type vxlan external dstport 47890\nlink set relay0 up\n";
        ip(&commands);
        std::fs::write("/proc/sys/net/ipv6/conf/up0/disable_ipv6", "0").expect("the underlay's interface");
        ip("addr add 192.0.2.1/24 dev up0
            addr add 2001:db8::1/64 dev up0 nodad
            neigh replace 192.0.2.2 lladdr 02:00:00:ee:00:99 dev up0 nud permanent
            neigh replace 2001:db8::2 lladdr 02:00:00:ee:00:99 dev up0 nud permanent\n");
        // Where the programs ask the kernel for a way, they ask as this device: the agent turns forwarding on.
        for family in ["ipv4", "ipv6"] {
            let path = format!("/proc/sys/net/{family}/conf/relay0/forwarding");
            std::fs::write(path, "1").expect("the relay device");
        }

        let mut capacities = Capacities::default();
        for key in [
            "endpoints",
            "hosts",
            "subnets",
            "ports",
            "vteps",
            "routes",
            "sources",
            "source_prefixes",
            "names",
            "classes",
            "rules",
            "flows",
            "policy_counts",
        ] {
            assert!(capacities.set(key, 64), "{key}");
        }
        assert!(capacities.set("port_drops", 1024));
        for (key, entries) in larger {
            assert!(capacities.set(key, *entries), "{key}");
        }
        let dataplane = open(&Options { capacities, ..Options::unpinned() })
            .unwrap_or_else(|error| panic!("the programs load: {error}"));
        Self { dataplane }
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        self.dataplane.tables()
    }

    /// The loaded dataplane.
    #[must_use]
    pub fn dataplane(&self) -> &Dataplane {
        &self.dataplane
    }

    /// The index of an interface.
    ///
    /// # Panics
    /// If there is none of that name.
    #[must_use]
    pub fn ifindex(&self, name: &str) -> u32 {
        nix::net::if_::if_nametoindex(name).unwrap_or_else(|error| panic!("interface {name}: {error}"))
    }

    fn fill_node(&self) {
        let relay_ifindex = self.ifindex("relay0");
        put(
            &self.tables().node,
            0,
            Node {
                hand_up_ifindex: self.ifindex("up0"),
                endpoint_v4: HERE,
                tunnel_port: 4789u16.to_be_bytes(),
                relay_port: 47890u16.to_be_bytes(),
                relay_ifindex,
                endpoint_v6: HERE_V6,
                // What runs at XDP on no interface in particular counts as if it had come in by the loopback one.
                uplinks: uplinks(&[(self.ifindex("up0"), UP0, 1), (LOOPBACK, UP0, 1)]),
                ..Node::default()
            },
        );
        for kind in 0..timeouts::COUNT {
            put(&self.tables().timeouts, kind, TIMEOUT);
        }
        put(&self.tables().devices, self.ifindex("up0"), self.ifindex("up0"));
    }

    /// Adds a remote host under an index of that generation, with a next hop of its own.
    pub fn add_host(&self, index: u32, generation: u32, endpoint: IpAddr) {
        let half = match endpoint {
            IpAddr::V4(ip) => template(index, ip.octets()),
            IpAddr::V6(ip) => template_v6(index, ip.octets()),
        };
        self.add_template(index, generation, half);
    }

    fn add_template(&self, index: u32, generation: u32, half: TemplateHalf) {
        let hop = NextHop {
            ifindex: self.ifindex("up0"),
            destination: mac(0xee_0000 + index),
            source: mac(0xee_00ff),
            vlan: 0,
            flags: next_hop_flags::XDP_TARGET,
        };
        let mut group = NextHopGroup { generation: index, ..NextHopGroup::default() };
        group.halves[0].count = 1;
        group.halves[0].hops[0] = hop;
        put(&self.tables().next_hop_groups, index, group);
        let mut host = Host { generation, ..Host::default() };
        host.halves[0] = half;
        put(&self.tables().hosts, index, host);
    }

    fn fill(&self) {
        self.fill_node();
        for (index, half) in
            [(1, template(1, HOST_1)), (2, template(2, HOST_2)), (3, template_v6(1, HOST_1_V6))]
        {
            self.add_template(index, index, half);
        }
        for (subnet, flags) in [
            (SUBNET_A, subnet_flags::GATEWAY | subnet_flags::ROUTED),
            (SUBNET_B, subnet_flags::GATEWAY | subnet_flags::ROUTED),
            (SUBNET_C, subnet_flags::GATEWAY),
        ] {
            self.add_subnet(subnet, flags);
        }
        for (from, to) in
            [(SUBNET_A, SUBNET_A), (SUBNET_A, SUBNET_B), (SUBNET_B, SUBNET_A), (SUBNET_B, SUBNET_B)]
        {
            self.add_route(from, to.network, 24, connected(to));
        }
        for (from, to) in
            [(SUBNET_A, SUBNET_A), (SUBNET_A, SUBNET_B), (SUBNET_B, SUBNET_A), (SUBNET_B, SUBNET_B)]
        {
            let route = Route { flags: route_flags::CONNECTED | route_flags::V6, ..connected(to.v6()) };
            let key = RouteKey { prefix_len: 32 + 64, subnet: from.index_v6(), ip: to.network_v6() };
            put(&self.tables().routes, key, route);
        }
        for guest in [A1, A2, B1, C1, C2] {
            self.add_guest(guest);
        }
        for remote in [RA, RB, RC] {
            self.add_remote(remote, endpoint_flags::L2 | endpoint_flags::L3);
        }
        for (vni, host, ip) in [
            (100, 1, mapped(HOST_1)),
            (200, 1, mapped(HOST_1)),
            (300, 2, mapped(HOST_2)),
            (100, 3, HOST_1_V6),
            (200, 3, HOST_1_V6),
        ] {
            let key = VtepKey { vni, ip };
            put(&self.tables().vteps, key, Reference { index: host, generation: host });
        }
    }

    fn add_subnet(&self, subnet: SubnetOf, flags: u32) {
        let SubnetOf { index, vni, network, gateway, dvr_mac } = subnet;
        let value = Subnet {
            generation: index,
            vni,
            flags,
            gateway_ip: mapped(gateway.1),
            network: mapped(network),
            prefix_len: 96 + 24,
            gateway_mac: gateway.0,
            dvr_mac,
            reserved: [0; 5],
        };
        put(&self.tables().subnets, index, value);
        put(&self.tables().vnis, vni, Vni { subnets: 1, reserved: 0 });
        let key = SubnetPrefixKey { prefix_len: 32 + 96 + 24, vni, ip: mapped(network) };
        put(&self.tables().subnet_prefixes, key, Reference { index, generation: index });
        let index = subnet.index_v6();
        let (gateway_mac, gateway_ip) = subnet.gateway_v6();
        let network = subnet.network_v6();
        let value = Subnet { generation: index, gateway_ip, gateway_mac, network, prefix_len: 64, ..value };
        put(&self.tables().subnets, index, value);
        let key = SubnetPrefixKey { prefix_len: 32 + 64, vni, ip: network };
        put(&self.tables().subnet_prefixes, key, Reference { index, generation: index });
    }

    /// Adds a /24 of a subnet.
    pub fn add_prefix(&self, vni: u32, network: Ipv4, index: u32) {
        let key = SubnetPrefixKey { prefix_len: 32 + 96 + 24, vni, ip: mapped(network) };
        put(&self.tables().subnet_prefixes, key, Reference { index, generation: index });
    }

    /// Adds a route of a subnet.
    pub fn add_route(&self, from: SubnetOf, ip: Ipv4, prefix_len: u32, route: Route) {
        let key = RouteKey { prefix_len: 32 + 96 + prefix_len, subnet: from.index, ip: mapped(ip) };
        put(&self.tables().routes, key, route);
        self.raise();
    }

    /// Attaches the XDP program of a guest's interface; gives its index. The kernel gives a test frame only to interfaces that have
    /// receive queues of XDP's.
    pub(super) fn ready_for_xdp(&self, guest: Guest) -> u32 {
        let ifindex = self.ifindex(guest.interface);
        self.dataplane.attach(Hook::GuestXdp, ifindex).expect("native XDP on a veth");
        ifindex
    }

    fn add_guest(&self, guest: Guest) {
        let Guest { port, mac, ip, subnet, .. } = guest;
        let ifindex = self.ready_for_xdp(guest);
        let value = Port {
            generation: port,
            epoch: 1,
            ifindex,
            flags: port_flags::UP | port_flags::XDP_TARGET | port_flags::SOURCES,
            vni: subnet.vni,
            subnet: subnet.index,
            subnet_generation: subnet.index,
            set: 0,
            ip: mapped(ip),
            mac,
            mtu: 1500,
            max_flows: 32,
            ..Port::default()
        };
        let made = self.tables().half_open.create(&[port]);
        assert!(made.failed.is_empty(), "a table of half-open flows: {made:?}");
        put(&self.tables().ports, port, value);
        put(&self.tables().port_by_interface, ifindex, Reference { index: port, generation: port });
        put(&self.tables().devices, ifindex, ifindex);
        let flags = endpoint_flags::LOCAL | endpoint_flags::L2 | endpoint_flags::L3;
        self.add_endpoint(subnet, (mac, mapped(ip)), port, flags);
        self.add_endpoint(subnet.v6(), (mac, guest.ip_v6()), port, flags);
        let source = Source { subnet: subnet.index_v6(), subnet_generation: subnet.index_v6() };
        for ip in [guest.ip_v6(), link_local(mac)] {
            put(&self.tables().sources, SourceKey { port, mac, reserved: [0; 2], ip }, source);
        }
    }

    /// Adds a neighbour, reachable as the flags say.
    pub fn add_remote(&self, remote: Remote, flags: u16) {
        self.add_endpoint(remote.subnet, (remote.mac, mapped(remote.ip)), remote.host, flags);
        self.add_endpoint(remote.subnet.v6(), (remote.mac, remote.ip_v6()), remote.host, flags);
    }

    fn add_endpoint(&self, subnet: SubnetOf, (mac, ip): (Mac, Ipv6), target: u32, flags: u16) {
        let endpoint = Endpoint { target, generation: target, subnet: subnet.index, flags, mac, members: 0 };
        put(&self.tables().endpoints_ip, IpKey { vni: subnet.vni, ip }, endpoint);
        if flags & endpoint_flags::L2 != 0 {
            let key = MacKey { vni: subnet.vni, mac, reserved: [0; 2] };
            put(&self.tables().endpoints_mac, key, Endpoint { subnet: 0, ..endpoint });
        }
    }

    /// Adds a MAC of an allowed pair: it leads to the guest's port.
    pub fn add_pair_mac(&self, guest: Guest, mac: Mac) {
        let flags = endpoint_flags::LOCAL | endpoint_flags::L2;
        let endpoint =
            Endpoint { target: guest.port, generation: guest.port, subnet: 0, flags, mac, members: 0 };
        put(&self.tables().endpoints_mac, MacKey { vni: guest.subnet.vni, mac, reserved: [0; 2] }, endpoint);
    }

    /// Changes a guest's port.
    pub fn change_port(&self, guest: Guest, change: impl FnOnce(&mut Port)) {
        alter(&self.tables().ports, guest.port, change);
        self.raise();
    }

    /// Changes a subnet.
    pub fn change_subnet(&self, subnet: SubnetOf, change: impl FnOnce(&mut Subnet)) {
        alter(&self.tables().subnets, subnet.index, change);
        self.raise();
    }

    /// Changes the tunnel template of a host.
    pub fn change_host(&self, index: u32, change: impl FnOnce(&mut Host)) {
        alter(&self.tables().hosts, index, change);
    }

    /// Changes the next hops towards a host.
    pub fn change_group(&self, index: u32, change: impl FnOnce(&mut NextHopGroup)) {
        alter(&self.tables().next_hop_groups, index, change);
    }

    /// Changes what the programs know of this node.
    pub fn change_node(&self, change: impl FnOnce(&mut Node)) {
        alter(&self.tables().node, 0, change);
    }

    /// Changes what is known of an address.
    pub fn change_endpoint(&self, vni: u32, ip: Ipv4, change: impl FnOnce(&mut Endpoint)) {
        alter(&self.tables().endpoints_ip, IpKey { vni, ip: mapped(ip) }, change);
        self.raise();
    }

    /// A frame from a guest, at tc.
    #[must_use]
    pub fn from_guest(&self, guest: Guest, frame: Vec<u8>) -> Seen {
        self.from_guest_at(Hook::GuestTc, guest, frame)
    }

    /// A frame from a guest, at tc or XDP.
    #[must_use]
    pub fn from_guest_at(&self, hook: Hook, guest: Guest, frame: Vec<u8>) -> Seen {
        self.run(hook, TestRun::new(frame, self.ifindex(guest.interface)))
    }

    /// A frame on an underlay interface, at XDP or tc.
    #[must_use]
    pub fn from_wire(&self, hook: Hook, frame: Vec<u8>) -> Seen {
        let ifindex = if hook.is_xdp() { 0 } else { self.ifindex("up0") };
        self.run(hook, TestRun::new(frame, ifindex))
    }

    /// A frame that the kernel took out of the tunnel.
    #[must_use]
    pub fn from_relay(&self, vni: u32, source: impl Into<IpAddr>, frame: Vec<u8>) -> Seen {
        let tunnel = Some(Tunnel { vni, source: source.into() });
        self.run(Hook::RelayTc, TestRun { tunnel, ..TestRun::new(frame, self.ifindex("relay0")) })
    }

    /// Any run, with a fresh heartbeat.
    ///
    /// # Panics
    /// If the kernel refuses the run.
    #[must_use]
    pub fn run(&self, hook: Hook, run: TestRun) -> Seen {
        self.beat(0);
        self.run_as_it_is(hook, run)
    }

    /// Says that the agent followed the underlay last so many seconds ago.
    ///
    /// # Panics
    /// If the clock cannot be read.
    pub fn beat(&self, seconds_ago: u64) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
        let now = std::time::Duration::from(now).saturating_sub(std::time::Duration::from_secs(seconds_ago));
        self.dataplane.set_heartbeat(u64::try_from(now.as_nanos()).unwrap_or(0)).expect("writable");
    }

    /// Any run, without touching the heartbeat.
    ///
    /// # Panics
    /// If the kernel refuses the run.
    #[must_use]
    pub fn run_as_it_is(&self, hook: Hook, run: TestRun) -> Seen {
        let before = self.counts();
        let out = self.dataplane.test_run(hook, &run).unwrap_or_else(|error| panic!("{error}\n{run:?}"));
        let after = self.counts();
        Seen {
            hook,
            verdict: Verdict::new(hook, out.action),
            frame: out.packet,
            before: run.packet,
            drops: moved(&before.drops, &after.drops)
                .filter_map(|(reason, count)| Some((DropReason::from_number(*reason)?, count)))
                .collect(),
            port_drops: moved(&before.port_drops, &after.port_drops)
                .filter_map(|(key, _)| Some((key.port, DropReason::from_number(key.reason)?)))
                .collect(),
            counters: moved(&before.counters, &after.counters)
                .filter_map(|(number, count)| {
                    Some((*PathCounter::ALL.iter().find(|counter| **counter as u32 == *number)?, count))
                })
                .collect(),
            received: moved(&before.received, &after.received).map(|(port, _)| *port).collect(),
            sent: moved(&before.sent, &after.sent).map(|(port, _)| *port).collect(),
        }
    }

    fn counts(&self) -> Counts {
        let tables = self.tables();
        let traffic = tables.port_traffic.entries().expect("readable");
        let part = |pick: fn(&PortTraffic) -> Count| {
            traffic.iter().map(|(port, traffic)| (*port, pick(traffic))).collect()
        };
        Counts {
            drops: tables.drops.entries().expect("readable").into_iter().collect(),
            port_drops: tables.port_drops.entries().expect("readable").into_iter().collect(),
            counters: tables.counters.entries().expect("readable").into_iter().collect(),
            received: part(|traffic| traffic.received),
            sent: part(|traffic| traffic.sent),
        }
    }

    /// The established flow of that key.
    ///
    /// # Panics
    /// If the table cannot be read.
    #[must_use]
    pub fn established(&self, key: &FlowKey) -> Option<Flow> {
        self.tables().flows.get(key).expect("readable")
    }

    /// The half-open flow of that key.
    ///
    /// # Panics
    /// If the port has no table of its own.
    #[must_use]
    pub fn half_open(&self, key: &FlowKey) -> Option<Flow> {
        let table = self.tables().half_open.of(key.port).expect("readable").expect("the port's table");
        table.get(key).expect("readable")
    }

    /// Raises the epoch of every port, as the agent does after a change: what flows were decided to be is decided anew.
    pub fn raise(&self) {
        for guest in [A1, A2, B1, C1, C2] {
            alter(&self.tables().ports, guest.port, |port| port.epoch += 1);
        }
    }

    /// Empties the bucket that limits what a port is sent on our own behalf, as of now.
    pub fn exhaust_limit(&self, guest: Guest) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
        let now = u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap_or(u64::MAX);
        // Longer than it takes any of them to fill.
        let full_at = now.saturating_add(10_000_000_000);
        let limits = PortLimits { errors: full_at, asks: full_at, hand_ups: full_at, reserved: 0 };
        put(&self.tables().limits, guest.port, limits);
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

struct Counts {
    drops: BTreeMap<u32, Count>,
    port_drops: BTreeMap<PortDropKey, Count>,
    counters: BTreeMap<u32, Count>,
    received: BTreeMap<u32, Count>,
    sent: BTreeMap<u32, Count>,
}

/// What counted more packets than before, and how many.
fn moved<'a, K: Ord>(
    before: &'a BTreeMap<K, Count>,
    after: &'a BTreeMap<K, Count>,
) -> impl Iterator<Item = (&'a K, u64)> {
    after.iter().filter_map(|(key, count)| {
        let packets = count.packets - before.get(key).map_or(0, |count| count.packets);
        (packets != 0).then_some((key, packets))
    })
}

/// A connected route into a subnet.
fn connected(to: SubnetOf) -> Route {
    Route { subnet: to.index, subnet_generation: to.index, flags: route_flags::CONNECTED, ..Route::default() }
}

/// A host's template, as the agent writes it.
fn template(group: u32, destination: Ipv4) -> TemplateHalf {
    let outer = super::Ip::new(HERE, destination, 17, Vec::new());
    let mut header = outer.bytes();
    // No identification, no fragmentation, and a total length of zero, which the checksum has to fit.
    header[2..12].copy_from_slice(&[0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut headers = [0; 56];
    headers[..20].copy_from_slice(&header);
    headers[22..24].copy_from_slice(&4789u16.to_be_bytes());
    headers[28] = 8;
    TemplateHalf { group, mtu: 1500, headers_len: 36, headers }
}

/// A host's template over IPv6.
fn template_v6(group: u32, destination: Ipv6) -> TemplateHalf {
    let mut headers = [0; 56];
    headers[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 17, 64]);
    headers[8..24].copy_from_slice(&HERE_V6);
    headers[24..40].copy_from_slice(&destination);
    headers[42..44].copy_from_slice(&4789u16.to_be_bytes());
    headers[48] = 8;
    TemplateHalf { group, mtu: 1500, headers_len: 56, headers }
}

/// The MAC of the underlay's interface, to which tunnel frames are sent.
pub const UP0: Mac = mac(0xee_0001);

/// Index of the loopback interface in any namespace.
pub const LOOPBACK: u32 = 1;

/// The interfaces of the underlay as the table has them: index, MAC and stack of each.
#[must_use]
pub fn uplinks(uplinks: &[(u32, Mac, u16)]) -> [Uplink; 8] {
    let mut slots = [Uplink::default(); 8];
    for (ifindex, mac, stack) in uplinks {
        let home = *ifindex as usize & 7;
        let free = (home..home + 8).map(|slot| slot & 7).find(|slot| slots[*slot].ifindex == 0);
        slots[free.expect("a free slot")] = Uplink { ifindex: *ifindex, mac: *mac, stack: *stack };
    }
    slots
}

/// Ticks after which all flows are over.
const TIMEOUT: u32 = 100;

/// The link-local address of a MAC.
#[must_use]
pub const fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6 {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

/// An IPv4 address as tables hold it.
#[must_use]
pub fn mapped(ip: Ipv4) -> [u8; 16] {
    std::net::Ipv4Addr::from(ip).to_ipv6_mapped().octets()
}

fn put<K: ncm_common::Plain, V: ncm_common::Plain>(table: &Table<K, V>, key: K, value: V) {
    table.put(&key, &value).unwrap_or_else(|error| panic!("{error}: {key:?}"));
}

fn alter<K: ncm_common::Plain, V: ncm_common::Plain>(
    table: &Table<K, V>,
    key: K,
    change: impl FnOnce(&mut V),
) {
    let mut value = table.get(&key).expect("readable").unwrap_or_else(|| panic!("{table:?} has no {key:?}"));
    change(&mut value);
    put(table, key, value);
}

/// Runs `ip` over lines of commands, in this thread's namespace.
fn ip(commands: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("iproute2 is installed: run `cargo xtask setup`");
    child.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("ip reads");
    assert!(child.wait().expect("ip ends").success(), "ip refused one of:\n{commands}");
}
