//! Guests whose interfaces take larger packets than the tunnel: what does not fit is answered, and everything gets through.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts};
use nix::sys::socket::{setsockopt, sockopt};

/// Two subnets of both families, routed, over two hosts.
fn cloud() -> Cloud {
    let mut cloud = Cloud::dual_stack(&[
        ("here", "front", "host1"),
        ("near", "front", "host1"),
        ("far", "front", "host2"),
        ("routed", "back", "host2"),
    ]);
    // Only what begins here is allowed: errors and answers pass as what belongs to it.
    cloud.group("client", &["out any", "out6 any"]).member("here", &["client"]);
    cloud
}

struct Cast {
    _net: TwoHosts,
    here: Guest,
    near: Guest,
    far: Guest,
    routed: Guest,
}

impl Cast {
    fn new(lab: &Lab, options: HostOptions, taps: bool, mtu: u32) -> Result<Self> {
        let cloud = Cloud { taps, ..cloud() };
        let net = TwoHosts::new(lab, options)?;
        let guest = |port: &str| {
            let mut spec = cloud.guest_spec(port)?;
            spec.mtu = mtu;
            let host = if cloud.ports[port].host == "host1" { &net.host1 } else { &net.host2 };
            let guest = Guest::new(lab, &host.ns, spec)?;
            // Router advertisements name the MTU that fits: these guests do not listen to them.
            guest.ns.sysctl("ipv6.conf.eth0.accept_ra", "0")?;
            guest.ns.run(&format!("ip link set eth0 mtu {mtu}"))?;
            Ok::<_, anyhow::Error>(guest)
        };
        let (here, near, far, routed) = (guest("here")?, guest("near")?, guest("far")?, guest("routed")?);
        net.push(&cloud)?;
        Ok(Self { _net: net, here, near, far, routed })
    }
}

fn addresses(of: &Guest) -> [IpAddr; 2] {
    [of.ip().into(), of.ip6().into()]
}

/// The MTU of the path is found by whatever is sent, TCP and UDP, in both directions.
fn paths_are_found(lab: &Lab, options: HostOptions, taps: bool) -> Result<()> {
    let cast = Cast::new(lab, options, taps, 1500)?;
    let here = &cast.here;
    for (to, hops) in [(&cast.far, 1), (&cast.routed, 2)] {
        for address in addresses(to) {
            let shown = here.ns.run(&format!("tracepath -n -m 5 {address}"))?;
            ensure!(shown.contains(&format!("pmtu 1450 hops {hops}")), "{shown}");
            // Forgets what tracepath has learned: TCP finds out by itself.
            here.ns.run("ip route flush cache")?;
            here.ns.run("ip -6 route flush cache")?;
            here.expect_tcp_to(to, SocketAddr::new(address, 0), 4_000_000)
                .with_context(|| format!("TCP to {address}"))?;
            let header = if address.is_ipv6() { 48 } else { 28 };
            let ping = |fragments: &str, size: usize| {
                let payload = (size - header).to_string();
                let words =
                    ["ping", "-n", "-c", "4", "-i", "0.1", "-W", "1", "-M", fragments, "-s", &payload];
                here.ns.outcome(&[&words[..], &[&address.to_string()]].concat())
            };
            // What may not be cut and does not fit: the sender is told, and by how much.
            here.ns.run("ip route flush cache")?;
            let refused = ping("do", 1500)?;
            let told = format!("{}{}", refused.stdout, refused.stderr);
            ensure!(!refused.success && told.contains("1450"), "{told}");
            ensure!(ping("do", 1450)?.success, "what fits arrives at {address}");
            // What may be cut arrives, from the second packet on at the latest.
            for size in [1500, 4000] {
                here.ns.run("ip route flush cache")?;
                let cut = ping("want", size)?;
                ensure!(cut.success, "{size} bytes to {address}: {cut:?}");
            }
        }
    }
    // Between guests of one host nothing is in the way of full frames.
    for address in addresses(&cast.near) {
        let shown = here.ns.run(&format!("tracepath -n -m 5 {address}"))?;
        ensure!(shown.contains("pmtu 1500 hops 1"), "{shown}");
    }
    Ok(())
}

#[test]
fn path_mtu_discovery_converges() {
    Lab::story(|lab| paths_are_found(lab, HostOptions::default(), false));
}

#[test]
fn path_mtu_discovery_converges_for_taps_over_a_virtual_wire() {
    Lab::story(|lab| paths_are_found(lab, HostOptions::virtual_wire(), true));
}

#[test]
fn ipv4_datagrams_that_may_be_cut_arrive() {
    Lab::story(|lab| {
        let cast = Cast::new(lab, HostOptions::default(), false, 1500)?;
        for to in [&cast.far, &cast.routed] {
            // Without DF from the first packet on, as ordinary UDP applications send under `ip_no_pmtu_disc`.
            let words = ["ping", "-n", "-c", "5", "-i", "0.2", "-W", "1", "-M", "dont", "-s", "1472"];
            let outcome = cast.here.ns.outcome(&[&words[..], &[&to.ip().to_string()]].concat())?;
            ensure!(outcome.success, "{outcome:?}");
        }
        Ok(())
    });
}

/// Sends `count` datagrams of `size` bytes by one system call, which the kernel hands to the device as one, and expects each.
fn expect_segments(from: &Guest, to: &Guest, address: IpAddr, size: usize, count: usize) -> Result<()> {
    let receiver = to.ns.udp(SocketAddr::new(address, 0))?;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let wildcard: IpAddr = if address.is_ipv6() { "::".parse()? } else { "0.0.0.0".parse()? };
    let sender = from.ns.udp(SocketAddr::new(wildcard, 0))?;
    setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(size)?).context("UDP_SEGMENT")?;
    let data: Vec<u8> = (0..size * count).map(|at| (at / size) as u8 ^ (at as u8)).collect();
    let mut buffer = vec![0; 65_536];
    // Twice: the first packet of a flow and those of a known one.
    for _ in 0..2 {
        let sent = sender.send_to(&data, receiver.local_addr()?)?;
        ensure!(sent == data.len(), "{sent} bytes were sent");
        for number in 0..count {
            let length =
                receiver.recv(&mut buffer).with_context(|| format!("datagram {number} of {count}"))?;
            let wanted = &data[number * size..(number + 1) * size];
            ensure!(&buffer[..length] == wanted, "datagram {number} has {length} bytes, or others");
        }
    }
    Ok(())
}

fn segmented_datagrams_arrive(lab: &Lab, options: HostOptions, taps: bool) -> Result<()> {
    let cast = Cast::new(lab, options, taps, 1450)?;
    for to in [&cast.near, &cast.far, &cast.routed] {
        for address in addresses(to) {
            for (size, count) in [(1200, 40), (100, 64), (1402, 20)] {
                expect_segments(&cast.here, to, address, size, count).with_context(|| {
                    format!("{count} datagrams of {size} bytes to {} at {address}", to.name())
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn segmented_udp_of_veths() {
    Lab::story(|lab| segmented_datagrams_arrive(lab, HostOptions::default(), false));
}

#[test]
fn segmented_udp_of_taps() {
    Lab::story(|lab| segmented_datagrams_arrive(lab, HostOptions::default(), true));
}

#[test]
fn segmented_udp_of_taps_over_a_virtual_wire() {
    Lab::story(|lab| segmented_datagrams_arrive(lab, HostOptions::virtual_wire(), true));
}

#[test]
fn segmented_udp_of_veths_where_the_kernel_decapsulates() {
    let options = HostOptions::default().with("underlay", "mode", "\"tc\"");
    Lab::story(|lab| segmented_datagrams_arrive(lab, options, false));
}
