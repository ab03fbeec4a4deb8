//! An underlay that has IPv6 only, one that has both versions, and the kernel's own vxlan device at the other end.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{NeighborType, OperationStatus, OperationType};
use ncm_tests::testbed::packets::{ethernet, ipv4, ipv4_of, udp, vxlan};
use ncm_tests::testbed::{
    Cloud, Guest, Host, HostOptions, Lab, Namespace, Switch, TwoHosts, Wire, eventually, guest_mac, on_wire,
};

/// Two subnets of each version in one router; guests of both versions on either host.
fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet_with_vni("web", "red", "10.1.0.0/24", 101)
        .subnet_with_vni("web6", "red", "fd01::/64", 101)
        .subnet_with_vni("db", "red", "10.2.0.0/24", 102)
        .subnet_with_vni("db6", "red", "fd02::/64", 102)
        .port("web1", "web", "10.1.0.11", "host1")
        .address("web1", "web6", "fd01::11")
        .port("web2", "web", "10.1.0.12", "host2")
        .address("web2", "web6", "fd01::12")
        .port("db2", "db", "10.2.0.12", "host2")
        .address("db2", "db6", "fd02::12")
        .router("r", &["web", "web6", "db", "db6"])
        .place_hosts(true);
    cloud
}

/// Pings and megabytes over TCP, both ways and in both versions.
fn both_ways(left: &Guest, right: &Guest) -> Result<()> {
    left.expect_ping(right.ip())?;
    left.expect_ping(right.ip6())?;
    left.expect_steady_ping(right.ip(), 20)?;
    left.expect_steady_ping(right.ip6(), 20)?;
    for (from, to) in [(left, right), (right, left)] {
        from.expect_tcp(to, 3_000_000)?;
        from.expect_tcp_to(to, SocketAddr::from((to.ip6(), 0)), 3_000_000)?;
    }
    Ok(())
}

fn guests_of_both_versions(lab: &Lab, options: HostOptions, taps: bool) -> Result<()> {
    let cloud = Cloud { taps, ..cloud() };
    let net = TwoHosts::new(lab, options.over_v6())?;
    let web1 = cloud.guest(lab, &net.host1, "web1")?;
    let web2 = cloud.guest(lab, &net.host2, "web2")?;
    let db2 = cloud.guest(lab, &net.host2, "db2")?;
    net.push(&cloud)?;
    both_ways(&web1, &web2).context("in one subnet")?;
    both_ways(&web1, &db2).context("from subnet to subnet")?;
    for host in net.hosts() {
        let status = host.expect_ncmctl(&["status"])?;
        ensure!(status.contains(&host.address6.to_string()), "the endpoint is shown:\n{status}");
        ensure!(status.contains("no alarms"), "all is well:\n{status}");
        ensure!(host.drops("malformed")? + host.drops("tunnel_malformed")? == 0, "frames were damaged");
    }
    Ok(())
}

#[test]
fn veth_guests_over_ipv6_between_network_cards() {
    Lab::story(|lab| guests_of_both_versions(lab, HostOptions::default(), false));
}

#[test]
fn tap_guests_over_ipv6_between_network_cards() {
    Lab::story(|lab| guests_of_both_versions(lab, HostOptions::default(), true));
}

#[test]
fn veth_guests_over_ipv6_on_a_virtual_wire() {
    Lab::story(|lab| guests_of_both_versions(lab, HostOptions::virtual_wire(), false));
}

#[test]
fn tap_guests_over_ipv6_on_a_virtual_wire() {
    Lab::story(|lab| guests_of_both_versions(lab, HostOptions::virtual_wire(), true));
}

#[test]
fn the_kernel_decapsulates_ipv6_where_the_configuration_says_tc() {
    let options = HostOptions::default().with("underlay", "mode", "\"tc\"");
    Lab::story(|lab| guests_of_both_versions(lab, options, false));
}

#[test]
fn the_relay_device_may_be_on_the_tunnels_own_port_over_ipv6() {
    let options = HostOptions::virtual_wire().with("underlay", "relay_port", "4789");
    Lab::story(|lab| guests_of_both_versions(lab, options, true));
}

#[test]
fn guests_on_xdp_over_ipv6() {
    let options = HostOptions::default().with("guest", "mode", "\"xdp\"");
    Lab::story(|lab| guests_of_both_versions(lab, options, false));
}

/// Three hosts on a switch: the first has both versions, the second IPv4, the third IPv6.
#[test]
fn a_host_with_both_endpoints_talks_to_hosts_with_either() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        cloud.port("web3", "web", "10.1.0.13", "host3").address("web3", "web6", "fd01::13");
        cloud.ports.retain(|name, _| name.starts_with("web"));
        let switch = Switch::new(lab, "switch", true)?;
        let make = |number: u8, over_v6: bool| -> Result<Host> {
            let name = format!("host{number}");
            let host = Host::new(lab, &name, on_wire(number, over_v6), &["eth0"], &HostOptions::default())?;
            switch.plug(&host.ns, "eth0")?;
            Ok(host)
        };
        let (mut host1, host2, host3) = (make(1, false)?, make(2, false)?, make(3, true)?);
        host1.config.set("underlay", "endpoint_v6", format!("\"{}\"", on_wire(1, true)));
        for (host, number, versions) in
            [(&host1, 1, &[false, true][..]), (&host2, 2, &[false]), (&host3, 3, &[true])]
        {
            for over_v6 in versions {
                let length = if *over_v6 { "64 nodad" } else { "24" };
                host.ns.run(&format!("ip address add {}/{length} dev eth0", on_wire(number, *over_v6)))?;
            }
            host.start()?;
        }
        let web1 = cloud.guest(lab, &host1, "web1")?;
        let web2 = cloud.guest(lab, &host2, "web2")?;
        let web3 = cloud.guest(lab, &host3, "web3")?;
        // Each is told the address by which it reaches the others.
        for (host, first_by_v6) in [(&host1, false), (&host2, false), (&host3, true)] {
            cloud.hosts = [(1, first_by_v6), (2, false), (3, true)]
                .map(|(number, over_v6)| (format!("host{number}"), on_wire(number, over_v6)))
                .into();
            let statuses = host.agent().push(&cloud.goal_state(host.name()))?;
            match host.name() {
                "host1" => drop(statuses.expect_success()?),
                // A host without an endpoint of the other's version says so of what is there, and carries the rest.
                name => {
                    let other = if name == "host2" { "web3" } else { "web2" };
                    statuses.expect(other, OperationStatus::Failure)?;
                    let key = if name == "host2" { "endpoint_v6" } else { "endpoint_v4" };
                    let shown = host.ncmctl(&["get"])?.stdout;
                    ensure!(
                        shown.contains(&format!("underlay.{key} is not set")),
                        "the cause is shown:\n{shown}"
                    );
                }
            }
        }
        both_ways(&web1, &web2).context("over IPv4")?;
        both_ways(&web1, &web3).context("over IPv6")?;
        let status = host1.expect_ncmctl(&["status"])?;
        for over_v6 in [false, true] {
            ensure!(status.contains(&on_wire(1, over_v6).to_string()), "both endpoints are shown:\n{status}");
        }
        Ok(())
    });
}

/// An agent's host and one that has a Linux vxlan device over a bridgeless guest of its own.
fn beside_the_kernels_device(lab: &Lab, mode: &str, checksums: bool) -> Result<()> {
    let mut cloud = cloud();
    cloud.ports.retain(|name, _| name.starts_with("web"));
    let options = HostOptions::default().over_v6().with("underlay", "mode", mode);
    let host = Host::new(lab, "host1", on_wire(1, true), &["eth0"], &options)?;
    let peer = lab.namespace("peer")?;
    Wire::connect((&host.ns, "eth0"), (&peer, "eth0"))?.like_a_nic()?;
    host.ns.run("ip address add fd50::1/64 dev eth0 nodad")?;
    peer.run("ip address add fd50::2/64 dev eth0 nodad")?;
    let sends = if checksums { "noudp6zerocsumtx" } else { "udp6zerocsumtx" };
    peer.ip(&format!(
        "link add eth1 address {} mtu 1430 type vxlan id 101 dstport 4789 local fd50::2 remote fd50::1 {sends} \
         udp6zerocsumrx
         link set eth1 up
         address add 10.1.0.12/24 dev eth1
         address add fd01::12/64 dev eth1 nodad",
        ncm_tests::testbed::format_mac(guest_mac(std::net::Ipv4Addr::new(10, 1, 0, 12)))
    ))?;
    host.start()?;
    let mut spec = cloud.guest_spec("web1")?;
    spec.mtu = 1430;
    let web1 = Guest::new(lab, &host.ns, spec)?;
    host.agent().push(&cloud.goal_state("host1"))?.expect_success()?;
    // Programs answer for what they know, and do not carry ARP and discovery: nor does a peer need to ask.
    let mac = ncm_tests::testbed::format_mac(web1.mac());
    peer.ip(&format!(
        "neigh replace {} lladdr {mac} dev eth1 nud permanent
         neigh replace {} lladdr {mac} dev eth1 nud permanent",
        web1.ip(),
        web1.ip6()
    ))?;
    let what = |to: &str| format!("{to}, the peer's checksums {sends}, mode {mode}");
    for to in ["10.1.0.12", "fd01::12"] {
        let to: std::net::IpAddr = to.parse()?;
        web1.expect_ping(to).with_context(|| what("pings"))?;
        web1.expect_steady_ping(to, 20).with_context(|| what("pings"))?;
        web1.ns.run(&format!(
            "ping -n -c 3 -i 0.05 -M do -s {} {to}",
            1430 - if to.is_ipv4() { 28 } else { 48 }
        ))?;
    }
    exchange(&web1, &peer).with_context(|| what("TCP"))
}

/// A megabyte each way between a guest and the peer.
fn exchange(guest: &Guest, peer: &Namespace) -> Result<()> {
    use std::io::{Read, Write};
    for to in ["10.1.0.12", "fd01::12"] {
        let listener = peer.listen(SocketAddr::new(to.parse()?, 0))?;
        let address = listener.local_addr()?;
        let echo = std::thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut all = vec![0; 1_000_000];
            stream.read_exact(&mut all).context("the peer receives")?;
            Ok(stream.write_all(&all)?)
        });
        let back = guest.ns.inside(|| {
            let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let sent: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_be_bytes()[2]).collect();
            stream.write_all(&sent)?;
            let mut back = vec![0; sent.len()];
            stream.read_exact(&mut back).context("the guest receives")?;
            Ok(sent == back)
        });
        let echoed = echo.join().map_err(|_| anyhow::anyhow!("the peer panicked"))?;
        ensure!(back.and_then(|back| echoed.map(|()| back))?, "the bytes came back changed from {to}");
    }
    Ok(())
}

#[test]
fn the_kernels_vxlan_device_is_understood_with_and_without_checksums_at_xdp() {
    for checksums in [false, true] {
        Lab::story(|lab| beside_the_kernels_device(lab, "\"xdp\"", checksums));
    }
}

#[test]
fn the_kernels_vxlan_device_is_understood_with_and_without_checksums_at_tc() {
    for checksums in [false, true] {
        Lab::story(|lab| beside_the_kernels_device(lab, "\"tc\"", checksums));
    }
}

/// Whether a frame is a datagram with our mark, and not the error that says that nobody wanted it.
fn is_marked(frame: &[u8]) -> bool {
    ipv4_of(frame).is_some_and(|(_, _, protocol)| protocol == 17)
        && frame.windows(MARK.len()).any(|bytes| bytes == MARK)
}

const MARK: &[u8] = b"heard by everybody";

fn other_macs(lab: &Lab, mode: &str) -> Result<()> {
    let mut cloud = cloud();
    cloud.ports.retain(|name, _| name.starts_with("web"));
    cloud.place_hosts(false);
    let net = TwoHosts::new(lab, HostOptions::default().with("underlay", "mode", mode))?;
    let web1 = cloud.guest(lab, &net.host1, "web1")?;
    let web2 = cloud.guest(lab, &net.host2, "web2")?;
    net.push(&cloud)?;
    web1.expect_ping(web2.ip())?;
    net.host1.ns.run("ip link set eth0 promisc on")?;
    let wire = net.host2.ns.packets("eth0")?;
    let source = net.host2.ns.mac("eth0")?;
    let inner =
        ethernet(web1.mac(), web2.mac(), 0x0800, &ipv4(web2.ip(), web1.ip(), 64, 17, &udp(1, 2, MARK)));
    let outer = udp(50_000, 4789, &vxlan(101, &inner));
    let packet = ipv4(net.host2.address, net.host1.address, 64, 17, &outer);
    let sight = web1.packets()?;
    let arrives = |to: [u8; 6]| -> Result<bool> {
        wire.send(&ethernet(to, source, 0x0800, &packet))?;
        Ok(sight.receive(Duration::from_millis(400), is_marked)?.is_some())
    };
    let old = net.host1.ns.mac("eth0")?;
    let new = [0x02, 0, 0, 0, 0x50, 0x77];
    ensure!(arrives(old)?, "a frame for the card's own MAC arrives");
    ensure!(!arrives(new)?, "a frame for another's MAC does not");
    net.host1.ns.run(&format!("ip link set eth0 address {}", ncm_tests::testbed::format_mac(new)))?;
    eventually("frames for the card's new MAC arrive", Duration::from_secs(5), || arrives(new))?;
    ensure!(!arrives(old)?, "a frame for the card's old MAC does not");
    // And the kernel's own neighbours find it again.
    net.host2.ns.run("ip neigh flush dev eth0")?;
    web2.expect_ping(web1.ip())
}

#[test]
fn a_promiscuous_card_takes_no_frames_for_others_at_xdp() {
    Lab::story(|lab| other_macs(lab, "\"xdp\""));
}

#[test]
fn a_promiscuous_card_takes_no_frames_for_others_at_tc() {
    Lab::story(|lab| other_macs(lab, "\"tc\""));
}

#[test]
fn an_endpoint_that_no_interface_has_is_an_alarm() {
    Lab::story(|lab| {
        let mut host = Host::new(lab, "host1", on_wire(1, false), &["eth0"], &HostOptions::default())?;
        let other: Ipv6Addr = "fd50::99".parse()?;
        host.config.set("underlay", "endpoint_v6", format!("\"{other}\""));
        let far = lab.namespace("far")?;
        Wire::connect((&host.ns, "eth0"), (&far, "eth0"))?.like_a_nic()?;
        host.ns.run("ip address add 192.168.50.1/24 dev eth0")?;
        host.start()?;
        let alarm = format!("tunnel endpoint {other}: no interface");
        let shown = |present: bool| {
            eventually("the alarm comes and goes", Duration::from_secs(5), || {
                Ok(host.ncmctl(&["status"])?.stdout.contains(&alarm) == present)
            })
        };
        shown(true)?;
        host.ns.run(&format!("ip address add {other}/64 dev eth0 nodad"))?;
        shown(false)?;
        host.ns.run(&format!("ip address del {other}/64 dev eth0"))?;
        shown(true)
    });
}

#[test]
fn a_neighbour_moves_from_an_ipv4_host_to_an_ipv6_one() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        cloud.ports.retain(|name, _| name.starts_with("web"));
        cloud.place_hosts(false);
        let mut net = TwoHosts::unstarted(lab, HostOptions::default())?;
        for (number, host) in [(1, &mut net.host1), (2, &mut net.host2)] {
            let endpoint = on_wire(number, true);
            host.config.set("underlay", "endpoint_v6", format!("\"{endpoint}\""));
            host.ns.run(&format!("ip address add {endpoint}/64 dev eth0 nodad"))?;
            host.start()?;
        }
        let web1 = cloud.guest(lab, &net.host1, "web1")?;
        let web2 = cloud.guest(lab, &net.host2, "web2")?;
        net.push(&cloud)?;
        web1.expect_ping(web2.ip())?;
        for over_v6 in [true, false, true] {
            cloud.place_hosts(over_v6);
            for host in net.hosts() {
                let state = cloud.neighbor_state(
                    if host.name() == "host1" { "web2" } else { "web1" },
                    NeighborType::L2,
                    OperationType::Update,
                );
                let message = ncm_model::wire::GoalState {
                    format_version: 101,
                    neighbor_states: vec![state],
                    ..Default::default()
                };
                host.agent().push(&message)?.expect_success()?;
            }
            let hosts = net.host1.expect_ncmctl(&["map", "dump", "hosts"])?;
            ensure!(hosts.contains(&on_wire(2, over_v6).to_string()), "the host is there:\n{hosts}");
            both_ways(&web1, &web2).with_context(|| format!("with the hosts over IPv6: {over_v6}"))?;
        }
        Ok(())
    });
}
