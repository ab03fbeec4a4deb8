//! What must not get through: other tenants' traffic, spoofed sources, rogue servers, strangers' tunnel frames.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::packets::{arp, echo_request, ethernet, ipv4, ipv4_of, udp, vxlan};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts};

const SOON: Duration = Duration::from_millis(300);

fn one_subnet() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet("web", "red", "10.1.0.0/24")
        .port("a", "web", "10.1.0.11", "host1")
        .port("b", "web", "10.1.0.12", "host2")
        .port("c", "web", "10.1.0.13", "host1");
    cloud
}

struct Scene {
    net: TwoHosts,
    a: Guest,
    b: Guest,
    c: Guest,
}

fn scene(lab: &Lab, options: HostOptions) -> Result<Scene> {
    let cloud = one_subnet();
    let net = TwoHosts::new(lab, options)?;
    let a = cloud.guest(lab, &net.host1, "a")?;
    let b = cloud.guest(lab, &net.host2, "b")?;
    let c = cloud.guest(lab, &net.host1, "c")?;
    net.push(&cloud)?;
    a.expect_ping(b.ip())?;
    a.expect_ping(c.ip())?;
    Ok(Scene { net, a, b, c })
}

/// What a marked datagram carries, so that a receiver knows it from all else.
const MARK: &[u8] = b"must not arrive";

fn is_marked(frame: &[u8]) -> bool {
    // Not an ICMP error that quotes one.
    let datagram = ipv4_of(frame).is_some_and(|(_, _, protocol)| protocol == 17);
    datagram && frame.windows(MARK.len()).any(|window| window == MARK)
}

#[test]
fn tenants_with_the_same_addresses_never_meet() {
    Lab::story(|lab| {
        let mut cloud = Cloud::new();
        for (tenant, vni) in [("red", 100), ("blue", 200)] {
            let subnet = format!("{tenant}-web");
            cloud.vpc(tenant, vni).subnet(&subnet, tenant, "10.1.0.0/24");
            cloud.port(&format!("{tenant}1"), &subnet, "10.1.0.11", "host1");
            cloud.port(&format!("{tenant}2"), &subnet, "10.1.0.12", "host2");
        }
        // Only blue has this one.
        cloud.port("blue3", "blue-web", "10.1.0.13", "host2");
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let (red1, red2) = (cloud.guest(lab, &net.host1, "red1")?, cloud.guest(lab, &net.host2, "red2")?);
        let (blue1, blue2) = (cloud.guest(lab, &net.host1, "blue1")?, cloud.guest(lab, &net.host2, "blue2")?);
        let blue3 = cloud.guest(lab, &net.host2, "blue3")?;
        net.push(&cloud)?;
        blue1.expect_ping(blue3.ip())?;

        let (red_view, blue_view) = (red2.packets()?, blue2.packets()?);
        let echo = |frame: &[u8]| ipv4_of(frame).is_some_and(|(_, _, protocol)| protocol == 1);
        red1.expect_ping(red2.ip())?;
        ensure!(red_view.receive(SOON, echo)?.is_some(), "red2 saw no ping from red1");
        ensure!(blue_view.receive(SOON, echo)?.is_none(), "blue2 saw a ping that red1 sent");
        blue1.expect_ping(blue2.ip())?;
        ensure!(blue_view.receive(SOON, echo)?.is_some(), "blue2 saw no ping from blue1");
        ensure!(red1.arp(blue3.ip())?.is_none(), "red learns the MAC of a guest that only blue has");
        ensure!(!red1.ns.pings(blue3.ip())?, "red reaches a guest that only blue has");
        red1.expect_tcp(&red2, 500_000)?;
        blue1.expect_tcp(&blue2, 500_000).map(drop)
    });
}

#[test]
fn spoofed_sources_are_dropped_at_the_first_hook() {
    Lab::story(|lab| {
        let Scene { net, a, b, c } = scene(lab, HostOptions::default())?;
        let (sight_b, sight_c, wire) = (b.packets()?, c.packets()?, a.packets()?);
        let datagram = |from: Ipv4Addr, to: Ipv4Addr| ipv4(from, to, 64, 17, &udp(1000, 2000, MARK));
        let host = &net.host1;

        for (target, mac) in [(b.ip(), b.mac()), (c.ip(), c.mac())] {
            host.expect_drop("spoofed_mac", || {
                wire.send(&ethernet(mac, [2, 9, 9, 9, 9, 9], 0x0800, &datagram(a.ip(), target)))
            })?;
            host.expect_drop("spoofed_ip", || {
                wire.send(&ethernet(mac, a.mac(), 0x0800, &datagram(Ipv4Addr::new(10, 1, 0, 77), target)))
            })?;
        }
        // A neighbour's address, in ARP's fields too.
        host.expect_drop("spoofed_ip", || {
            wire.send(&ethernet(b.mac(), a.mac(), 0x0800, &datagram(c.ip(), b.ip())))
        })?;
        host.expect_drop("spoofed_arp", || {
            wire.send(&ethernet([0xff; 6], a.mac(), 0x0806, &arp(1, a.mac(), c.ip(), [0; 6], b.ip())))
        })?;
        host.expect_drop("spoofed_arp", || {
            wire.send(&ethernet(c.mac(), a.mac(), 0x0806, &arp(2, c.mac(), a.ip(), c.mac(), c.ip())))
        })?;
        ensure!(
            sight_b.receive(SOON, is_marked)?.is_none(),
            "a spoofed datagram reached the other host's guest"
        );
        ensure!(
            sight_c.receive(SOON, is_marked)?.is_none(),
            "a spoofed datagram reached the same host's guest"
        );

        // The same frame from the true source arrives: the test can see what it looks for.
        wire.send(&ethernet(b.mac(), a.mac(), 0x0800, &datagram(a.ip(), b.ip())))?;
        ensure!(
            sight_b.receive(Duration::from_secs(2), is_marked)?.is_some(),
            "an honest datagram did not arrive"
        );
        a.expect_ping(b.ip())
    });
}

#[test]
fn allowed_pairs_may_send_from_further_addresses() {
    Lab::story(|lab| {
        let mut cloud = one_subnet();
        let virtual_address = Ipv4Addr::new(10, 1, 0, 100);
        if let Some(port) = cloud.ports.get_mut("a") {
            port.allowed.push((virtual_address.to_string(), String::new()));
            port.allowed.push(("10.9.0.0/16".to_owned(), "02:aa:aa:aa:aa:aa".to_owned()));
        }
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host2, "b")?);
        let _c = cloud.guest(lab, &net.host1, "c")?;
        net.push(&cloud)?;
        a.expect_ping(b.ip())?;

        let (sight, wire) = (b.packets()?, a.packets()?);
        let send = |mac: [u8; 6], from: Ipv4Addr| {
            wire.send(&ethernet(b.mac(), mac, 0x0800, &ipv4(from, b.ip(), 64, 17, &udp(1, 2, MARK))))
        };
        let arrived = || sight.receive(Duration::from_secs(1), is_marked).map(|frame| frame.is_some());
        send(a.mac(), virtual_address)?;
        ensure!(arrived()?, "an allowed address with the port's own MAC was not let through");
        send([0x02, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa], Ipv4Addr::new(10, 9, 3, 4))?;
        ensure!(arrived()?, "an allowed prefix with its own MAC was not let through");
        net.host1.expect_drop("spoofed_ip", || send(a.mac(), Ipv4Addr::new(10, 9, 3, 4)))?;
        net.host1.expect_drop("spoofed_ip", || {
            send([0x02, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa], Ipv4Addr::new(10, 8, 3, 4))
        })
    });
}

#[test]
fn rogue_servers_and_unforwarded_protocols_are_dropped_under_their_reasons() {
    Lab::story(|lab| {
        let Scene { net, a, b, .. } = scene(lab, HostOptions::default())?;
        let wire = a.packets()?;
        let host = &net.host1;
        let any = Ipv4Addr::BROADCAST;
        host.expect_drop("rogue_dhcp_server", || {
            wire.send(&ethernet(b.mac(), a.mac(), 0x0800, &ipv4(a.ip(), b.ip(), 64, 17, &udp(67, 68, MARK))))
        })?;
        host.expect_drop("dhcp_unanswered", || {
            let discover = ipv4(a.ip(), any, 64, 17, &udp(1068, 67, &[1; 240]));
            wire.send(&ethernet([0xff; 6], a.mac(), 0x0800, &discover))
        })?;
        let ipv6 = |from: &str, next: u8, payload: &[u8]| -> Result<Vec<u8>> {
            let length = (payload.len() as u16).to_be_bytes();
            let from: Ipv6Addr = from.parse()?;
            let all_nodes = [&[0xff, 0x02][..], &[0; 13], &[1]].concat();
            let header = [0x60, 0, 0, 0, length[0], length[1], next, 255];
            Ok([&header[..], &from.octets(), &all_nodes, payload].concat())
        };
        host.expect_drop("rogue_router", || {
            let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            wire.send(&ethernet(
                [0x33, 0x33, 0, 0, 0, 1],
                a.mac(),
                0x86dd,
                &ipv6("fe80::1", 58, &advertisement)?,
            ))
        })?;
        host.expect_drop("spoofed_ip", || {
            wire.send(&ethernet(b.mac(), a.mac(), 0x86dd, &ipv6("2001:db8::1", 17, &udp(1, 2, MARK))?))
        })?;
        host.expect_drop("vlan", || {
            let inner = [&[0, 5, 8, 0][..], &ipv4(a.ip(), b.ip(), 64, 17, &udp(1, 2, MARK))].concat();
            wire.send(&ethernet(b.mac(), a.mac(), 0x8100, &inner))
        })?;
        host.expect_drop("unsupported_ethertype", || {
            wire.send(&ethernet(b.mac(), a.mac(), 0x88cc, &[0; 50]))
        })?;
        host.expect_drop("multicast", || {
            let to = Ipv4Addr::new(224, 0, 0, 251);
            let packet = ipv4(a.ip(), to, 1, 17, &udp(5353, 5353, MARK));
            wire.send(&ethernet([1, 0, 0x5e, 0, 0, 251], a.mac(), 0x0800, &packet))
        })?;
        a.expect_ping(b.ip())
    });
}

/// Sends tunnel frames by hand from the second host's network stack.
fn tunnel_admission(lab: &Lab, options: HostOptions) -> Result<()> {
    let Scene { net, a, b, c } = scene(lab, options)?;
    let stranger = Ipv4Addr::new(192, 168, 50, 99);
    net.host2.ns.run(&format!("ip address add {stranger}/24 dev eth0"))?;
    let target = SocketAddr::from((net.host1.address, 4789));
    let sight = a.packets()?;
    let from = |address: Ipv4Addr, vni: u32, frame: &[u8]| -> Result<()> {
        let socket = net.host2.ns.udp(SocketAddr::from((address, 0)))?;
        socket.send_to(&vxlan(vni, frame), target).context("send a tunnel frame").map(drop)
    };
    let datagram = |from: Ipv4Addr, to: Ipv4Addr| ipv4(from, to, 64, 17, &udp(1, 2, MARK));
    let honest = ethernet(a.mac(), b.mac(), 0x0800, &datagram(b.ip(), a.ip()));
    let host = &net.host1;

    from(net.host2.address, 100, &honest)?;
    ensure!(
        sight.receive(Duration::from_secs(2), is_marked)?.is_some(),
        "a known host's frame did not arrive"
    );
    // Bits that the header reserves are ignored (RFC 7348, section 5).
    let mut reserved = vxlan(100, &honest);
    reserved[0] |= 0x80;
    reserved[7] = 0x55;
    net.host2.ns.udp(SocketAddr::from((net.host2.address, 0)))?.send_to(&reserved, target)?;
    ensure!(
        sight.receive(Duration::from_secs(2), is_marked)?.is_some(),
        "a frame with reserved bits set did not arrive"
    );

    host.expect_drop("unknown_vtep", || from(stranger, 100, &honest))?;
    host.expect_drop("tunnel_source", || {
        let claims_local = ethernet(a.mac(), c.mac(), 0x0800, &datagram(c.ip(), a.ip()));
        from(net.host2.address, 100, &claims_local)
    })?;
    host.expect_drop("tunnel_source", || {
        let multicast = ethernet(a.mac(), [1, 0, 0x5e, 0, 0, 1], 0x0800, &datagram(b.ip(), a.ip()));
        from(net.host2.address, 100, &multicast)
    })?;
    host.expect_drop("tunnel_control", || {
        let question = ethernet(a.mac(), b.mac(), 0x0806, &arp(1, b.mac(), b.ip(), [0; 6], a.ip()));
        from(net.host2.address, 100, &question)
    })?;
    host.expect_drop("unknown_guest", || {
        let nobody = Ipv4Addr::new(10, 1, 0, 200);
        from(
            net.host2.address,
            100,
            &ethernet([2, 0, 0, 0, 0, 200], b.mac(), 0x0800, &datagram(b.ip(), nobody)),
        )
    })?;
    host.expect_drop("tunnel_malformed", || from(net.host2.address, 100, &honest[..honest.len() - 5]))?;
    ensure!(sight.receive(SOON, is_marked)?.is_none(), "a frame that was to be dropped reached the guest");
    b.expect_ping(a.ip())
}

#[test]
fn tunnel_frames_that_are_not_admitted_are_dropped_by_xdp() {
    Lab::story(|lab| tunnel_admission(lab, HostOptions::default()));
}

#[test]
fn tunnel_frames_that_are_not_admitted_are_dropped_behind_the_kernels_decapsulation() {
    Lab::story(|lab| tunnel_admission(lab, HostOptions::default().with("underlay", "mode", "\"tc\"")));
}

#[test]
fn a_flood_of_pings_to_the_gateway_keeps_being_answered_within_its_limit() {
    Lab::story(|lab| {
        let mut cloud = one_subnet();
        cloud.router("r", &["web"]);
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let a = cloud.guest(lab, &net.host1, "a")?;
        let _others = [cloud.guest(lab, &net.host2, "b")?, cloud.guest(lab, &net.host1, "c")?];
        net.push(&cloud)?;
        let gateway = Ipv4Addr::new(10, 1, 0, 1);
        a.expect_ping(gateway)?;
        // TTL 1 to a routed destination asks for an ICMP error each time: the port's limit holds most back.
        let far = ipv4(a.ip(), Ipv4Addr::new(10, 1, 0, 12), 1, 1, &echo_request(1, 1));
        let wire = a.packets()?;
        for _ in 0..2000 {
            wire.send(&ethernet(ncm_tests::testbed::gateway_mac(gateway), a.mac(), 0x0800, &far))?;
        }
        let sent = net.host1.metric(&["ncm_path_packets_total{", "\"time_exceeded_sent\""])?;
        ensure!(sent > 0.0 && sent < 1900.0, "{sent} of 2000 ICMP errors were sent: there is no limit");
        a.expect_ping(gateway)
    });
}
