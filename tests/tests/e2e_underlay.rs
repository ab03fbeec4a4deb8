//! The underlay changes: gateways get new MACs, interfaces flap, paths are lost, next hops are idle, agents are down.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::packets::{arp, destination_port_of, ethernet};
use ncm_tests::testbed::{Cloud, Guest, Host, HostOptions, Lab, Namespace, TwoHosts, Wire, eventually};

fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    cloud
}

/// An address of one of the underlay's networks, over IPv4 (a /24) or IPv6 (a /64).
fn address(network: u8, number: u8, over_v6: bool) -> IpAddr {
    if over_v6 {
        Ipv6Addr::new(0xfd68, network.into(), 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(192, 168, network, number).into()
    }
}

/// The length of its network, as it is written behind an address that is usable at once.
fn length(over_v6: bool) -> &'static str {
    if over_v6 { "64 nodad" } else { "24" }
}

/// Two hosts in different networks with a router between them.
struct Routed {
    over_v6: bool,
    host1: Host,
    host2: Host,
    router: Namespace,
    a: Guest,
    b: Guest,
}

impl Routed {
    fn new(lab: &Lab, over_v6: bool) -> Result<Self> {
        let mut cloud = cloud();
        cloud.hosts.insert("host1".to_owned(), address(1, 2, over_v6));
        cloud.hosts.insert("host2".to_owned(), address(2, 2, over_v6));
        let router = lab.namespace("router")?;
        router.sysctl("ipv4.ip_forward", "1")?;
        router.sysctl("ipv6.conf.all.forwarding", "1")?;
        let mut hosts = Vec::new();
        for number in [1, 2] {
            let (name, port) = (format!("host{number}"), format!("r{number}"));
            let [own, gateway] = [2, 1].map(|last| address(number, last, over_v6));
            let host = Host::new(lab, &name, own, &["eth0"], &HostOptions::default())?;
            Wire::connect((&host.ns, "eth0"), (&router, &port))?.like_a_nic()?;
            host.ns.run(&format!("ip address add {own}/{} dev eth0", length(over_v6)))?;
            router.run(&format!("ip address add {gateway}/{} dev {port}", length(over_v6)))?;
            host.ns.run(&format!("ip route add default via {gateway}"))?;
            host.start()?;
            hosts.push(host);
        }
        let (Some(host2), Some(host1)) = (hosts.pop(), hosts.pop()) else {
            unreachable!("two hosts were made")
        };
        let (a, b) = (cloud.guest(lab, &host1, "a")?, cloud.guest(lab, &host2, "b")?);
        for host in [&host1, &host2] {
            host.agent().push(&cloud.goal_state(host.name()))?.expect_success()?;
        }
        a.expect_ping(b.ip()).context("through the router, to begin with")?;
        Ok(Self { over_v6, host1, host2, router, a, b })
    }

    /// Gives the first host's gateway another MAC and announces it, as a failover between routers does.
    fn fail_over(&self, last: u8) -> Result<()> {
        if self.over_v6 {
            // The kernel announces it by itself, by an unsolicited neighbour advertisement.
            self.router.sysctl("ipv6.conf.r1.ndisc_notify", "1")?;
            return self.router.run(&format!("ip link set r1 address 02:00:00:00:77:{last:02x}")).map(drop);
        }
        self.router.run(&format!("ip link set r1 address 02:00:00:00:77:{last:02x}"))?;
        let (gateway, mac) = (Ipv4Addr::new(192, 168, 1, 1), self.router.mac("r1")?);
        let announcement = ethernet([0xff; 6], mac, 0x0806, &arp(2, mac, gateway, mac, gateway));
        let wire = self.router.packets("r1")?;
        wire.send(&announcement)?;
        wire.send(&announcement)?;
        Ok(())
    }
}

fn new_gateway_macs(lab: &Lab, over_v6: bool) -> Result<()> {
    let net = Routed::new(lab, over_v6)?;
    for last in 1..=3 {
        net.fail_over(last)?;
        net.a.expect_ping(net.b.ip()).with_context(|| format!("after failover {last}"))?;
    }
    net.b.expect_ping(net.a.ip())
}

#[test]
fn a_gateway_with_a_new_mac_is_followed() {
    Lab::story(|lab| new_gateway_macs(lab, false));
}

#[test]
fn a_gateway_with_a_new_mac_is_followed_over_ipv6() {
    Lab::story(|lab| new_gateway_macs(lab, true));
}

fn new_gateway_mac_without_an_agent(lab: &Lab, over_v6: bool) -> Result<()> {
    let net = Routed::new(lab, over_v6)?;
    net.host1.stop()?;
    net.a.expect_steady_ping(net.b.ip(), 20).context("right after the agent stopped")?;
    net.fail_over(9)?;
    let what = "the ping goes on through the gateway's new MAC, without an agent";
    eventually(what, Duration::from_secs(10), || net.a.ns.pings(net.b.ip()))?;
    net.a.expect_steady_ping(net.b.ip(), 50)?;
    net.a.expect_tcp(&net.b, 1_000_000)?;
    net.host1.start()?;
    net.a.expect_steady_ping(net.b.ip(), 50).context("after the agent came back, before any push")
}

#[test]
fn a_gateway_with_a_new_mac_is_followed_while_the_agent_is_stopped() {
    Lab::story(|lab| new_gateway_mac_without_an_agent(lab, false));
}

#[test]
fn a_gateway_with_a_new_mac_is_followed_over_ipv6_while_the_agent_is_stopped() {
    Lab::story(|lab| new_gateway_mac_without_an_agent(lab, true));
}

#[test]
fn traffic_goes_on_while_the_agent_restarts() {
    Lab::story(|lab| {
        let cloud = cloud();
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.push(&cloud)?;
        a.expect_ping(b.ip())?;
        let on = a.begin_ping(b.ip())?;
        net.host1.stop()?;
        net.host1.start()?;
        net.push(&cloud)?;
        net.host2.kill();
        net.host2.start()?;
        net.push(&cloud)?;
        on.goes_on(25)?;
        on.expect_no_loss().context("over a restart of one agent and a kill of the other")
    });
}

#[test]
fn an_underlay_interface_that_flaps_carries_traffic_again() {
    Lab::story(|lab| {
        let net = Routed::new(lab, false)?;
        for _ in 0..3 {
            net.host1.ns.run("ip link set eth0 down")?;
            ensure!(!net.a.ns.pings(net.b.ip())?, "a ping crossed an interface that is down");
            net.host1.ns.run("ip link set eth0 up")?;
            net.host1.ns.run("ip route replace default via 192.168.1.1")?;
            net.a.expect_ping(net.b.ip()).context("after the interface came up again")?;
        }
        // The far end loses its carrier and gets it back.
        net.router.run("ip link set r1 down")?;
        net.router.run("ip link set r1 up")?;
        net.a.expect_ping(net.b.ip()).context("after the carrier came back")
    });
}

#[test]
fn a_relay_device_that_somebody_deletes_or_sets_down_works_again() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        cloud.ports.retain(|name, _| name == "a" || name == "b");
        let options = HostOptions::default().with("underlay", "mode", "\"tc\"");
        let net = TwoHosts::new(lab, options)?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        net.push(&cloud)?;
        a.expect_tcp(&b, 10_000)?;
        for command in ["ip link set ncm-host2 down", "ip link delete ncm-host2"] {
            net.host2.ns.run(command)?;
            eventually("TCP works again", Duration::from_secs(5), || Ok(a.expect_tcp(&b, 10_000).is_ok()))?;
        }
        Ok(())
    });
}

#[test]
fn a_next_hop_idle_for_longer_than_the_kernel_keeps_it_is_ready_at_once() {
    Lab::story(|lab| {
        let net = Routed::new(lab, false)?;
        let host = &net.host1.ns;
        for (key, value) in
            [("base_reachable_time_ms", "500"), ("delay_first_probe_time", "0"), ("gc_stale_time", "1")]
        {
            host.sysctl(&format!("ipv4.neigh.eth0.{key}"), value)?;
        }
        // A neighbour that nobody needs, to see what the kernel does with one.
        net.router.run("ip address add 192.168.1.9/24 dev r1")?;
        ensure!(host.pings(Ipv4Addr::new(192, 168, 1, 9))?, "the router has a second address");
        let known = || host.run("ip neigh show dev eth0");
        ensure!(known()?.contains("192.168.1.9 "), "the unneeded neighbour is known: {}", known()?);
        // The thresholds from which on the kernel collects are the machine's: what it would collect is taken by hand.
        eventually("the unneeded neighbour is stale and collected", Duration::from_secs(10), || {
            host.run("ip neigh flush dev eth0 nud stale")?;
            Ok(!known()?.contains("192.168.1.9 "))
        })?;
        // Nobody sends anything meanwhile.
        eventually("the next hop is resolved without any traffic", Duration::from_secs(10), || {
            let resolved =
                known()?.lines().any(|line| line.contains("192.168.1.1 ") && line.contains("lladdr"));
            Ok(resolved && net.host1.metric(&["ncm_remote_hosts_unresolved"])? == 0.0)
        })?;
        let before = net.host1.drops("next_hop_unresolved")?;
        net.a.expect_steady_ping(net.b.ip(), 5)?;
        ensure!(
            net.host1.drops("next_hop_unresolved")? == before,
            "packets were dropped at an idle next hop"
        );
        drop(net.host2);
        Ok(())
    });
}

/// Two hosts with two direct links and an equal-cost route over both to the other's endpoint, which is on no link.
struct TwoPaths {
    host1: Host,
    host2: Host,
    a: Guest,
    b: Guest,
}

impl TwoPaths {
    fn new(lab: &Lab, over_v6: bool) -> Result<Self> {
        let mut cloud = cloud();
        let endpoint = |host: u8| address(2, host, over_v6);
        let make = |number: u8| -> Result<Host> {
            let name = format!("host{number}");
            Host::new(lab, &name, endpoint(number), &["eth0", "eth1"], &HostOptions::default())
        };
        let (host1, host2) = (make(1)?, make(2)?);
        for link in [0, 1] {
            let name = format!("eth{link}");
            Wire::connect((&host1.ns, &name), (&host2.ns, &name))?.like_a_nic()?;
        }
        for (host, own, other) in [(&host1, 1, 2), (&host2, 2, 1)] {
            let host_length = if over_v6 { "128 nodad" } else { "32" };
            let link = |network, number| format!("{}/{}", address(network, number, over_v6), length(over_v6));
            host.ns.ip(&format!(
                "address add {}/{host_length} dev lo
                 address add {} dev eth0
                 address add {} dev eth1
                 route add {} src {} {}",
                endpoint(own),
                link(60, own),
                link(61, own),
                endpoint(other),
                endpoint(own),
                Self::ways(other, over_v6),
            ))?;
            cloud.hosts.insert(host.name().to_owned(), endpoint(own));
            host.start()?;
        }
        let (a, b) = (cloud.guest(lab, &host1, "a")?, cloud.guest(lab, &host2, "b")?);
        for host in [&host1, &host2] {
            host.agent().push(&cloud.goal_state(host.name()))?.expect_success()?;
        }
        a.expect_ping(b.ip())?;
        Ok(Self { host1, host2, a, b })
    }

    /// The two ways to a host.
    fn ways(host: u8, over_v6: bool) -> String {
        let via = |network| address(network, host, over_v6);
        format!("nexthop via {} nexthop via {}", via(60), via(61))
    }

    /// Which of sixteen flows arrive.
    fn flows(&self) -> Result<Vec<bool>> {
        let receiver = self.b.ns.udp(SocketAddr::from((self.b.ip(), 7000)))?;
        receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
        (0..16_u16)
            .map(|flow| {
                let sender = self.a.ns.udp(SocketAddr::from((self.a.ip(), 20_000 + flow)))?;
                sender.send_to(&flow.to_be_bytes(), (self.b.ip(), 7000))?;
                let mut buffer = [0; 2];
                Ok(receiver.recv_from(&mut buffer).is_ok() && buffer == flow.to_be_bytes())
            })
            .collect()
    }

    fn expect_all_flows(&self, when: &str) -> Result<()> {
        eventually(&format!("all flows arrive {when}"), Duration::from_secs(5), || {
            Ok(self.flows()?.iter().all(|arrived| *arrived))
        })
    }
}

fn two_paths(lab: &Lab, over_v6: bool) -> Result<()> {
    let net = TwoPaths::new(lab, over_v6)?;
    net.expect_all_flows("over two paths")?;
    // On the sender: at the receiver XDP takes the frames before a socket sees them.
    let sights = ["eth0", "eth1"].map(|name| net.host1.ns.packets(name));
    net.flows()?;
    for (sight, name) in sights.into_iter().zip(["eth0", "eth1"]) {
        let ours = |frame: &[u8]| destination_port_of(frame) == Some(4789);
        let seen = sight?.receive(Duration::from_millis(300), ours)?;
        ensure!(seen.is_some(), "no flow of sixteen took {name}");
    }
    // The own end goes down, then the far end: the carrier alone is lost.
    net.host1.ns.run("ip link set eth1 down")?;
    net.expect_all_flows("over the one path that is left")?;
    net.host1.ns.run("ip link set eth1 up")?;
    let (own, other) = (address(2, 1, over_v6), address(2, 2, over_v6));
    if over_v6 {
        // With the interface went the address, as the kernel has it for IPv6, and one of the route's ways.
        let link = address(61, 1, over_v6);
        net.host1.ns.run(&format!("ip address replace {link}/{} dev eth1", length(over_v6)))?;
    }
    net.host1.ns.run(&format!("ip route replace {other} src {own} {}", TwoPaths::ways(2, over_v6)))?;
    net.expect_all_flows("over two paths again")?;
    net.host2.ns.run("ip link set eth0 down")?;
    net.expect_all_flows("after the far end of the other path went down")?;
    net.a.expect_tcp(&net.b, 1_000_000).map(drop)
}

#[test]
fn flows_spread_over_two_equal_paths_and_survive_the_loss_of_one() {
    Lab::story(|lab| two_paths(lab, false));
}

#[test]
fn flows_spread_over_two_equal_paths_of_ipv6_and_survive_the_loss_of_one() {
    Lab::story(|lab| two_paths(lab, true));
}
