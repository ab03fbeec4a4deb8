//! On demand: what is not known is asked for, and what waits for the answer goes on.

#[path = "on_demand/mod.rs"]
mod on_demand;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{EtherType, Protocol};
use ncm_tests::testbed::{Cloud, HostOptions, Lab, Manner};
use on_demand::{Demand, SOON, known_by_hand, numbered};

/// One guest on each host, in one subnet.
fn flat() -> Cloud {
    let mut cloud = Cloud::new();
    cloud
        .vpc("red", 100)
        .subnet("web", "red", "10.1.0.0/24")
        .port("a", "web", "10.1.0.11", "host1")
        .port("b", "web", "10.1.0.12", "host2")
        .port("c", "web", "10.1.0.13", "host2");
    cloud
}

#[test]
fn a_ping_to_an_unknown_neighbour_is_asked_for_and_arrives() {
    Lab::story(|lab| {
        let demand = Demand::new(lab, flat(), HostOptions::default())?;
        let (a, b) = (demand.guest("a")?, demand.guest("b")?);
        a.expect_ping(b.ip())?;
        // By ARP: the rest is known by then.
        let asked = demand.upstream.asked();
        let request = asked.iter().find(|asked| !asked.is_restart()).context("nothing was asked")?;
        let of = &request.request;
        ensure!((of.source_ip.as_str(), of.destination_ip.as_str()) == ("10.1.0.11", "10.1.0.12"), "{of:?}");
        ensure!(
            (of.tunnel_id, of.protocol(), of.ethertype()) == (100, Protocol::Arp, EtherType::Ipv4),
            "{of:?}"
        );
        ensure!(request.peer.ip() == IpAddr::from(demand.net.host1.address), "asked from {}", request.peer);
        ensure!(of.request_id.len() == 36 && of.request_id.as_bytes()[14] == b'4', "no UUID: {of:?}");
        ensure!(demand.upstream.asked_for() == BTreeMap::from([("10.1.0.12".to_owned(), 1)]), "asked once");
        ensure!(demand.upstream.restarts() == 1, "one word of the start");
        // What nobody knows is refused, and not asked for again at once.
        ensure!(!a.ns.pings("10.1.0.99".parse::<IpAddr>()?)?, "nobody is there");
        ensure!(
            demand.upstream.asked_for().get("10.1.0.99") == Some(&1),
            "{:?}",
            demand.upstream.asked_for()
        );
        ensure!(demand.net.host1.drops("ask_refused")? > 0, "what is refused counts as such");
        demand.end()
    });
}

#[test]
fn what_waits_goes_on_in_order_after_one_request() {
    for taps in [false, true] {
        Lab::story(|lab| {
            let mut cloud = flat();
            cloud.taps = taps;
            let demand = Demand::new(lab, cloud, HostOptions::default())?;
            let (a, b) = (demand.guest("a")?, demand.guest("b")?);
            known_by_hand(&a, &b)?;
            demand.upstream.takes(Duration::from_millis(500));
            numbered(&a, &b, 200).with_context(|| format!("taps: {taps}"))?;
            let request = demand.upstream.asked().into_iter().find(|asked| !asked.is_restart());
            let of = request.context("nothing was asked")?.request;
            ensure!((of.protocol(), of.destination_port) == (Protocol::Udp, 7000), "{of:?}");
            ensure!(demand.upstream.asked_for() == BTreeMap::from([("10.1.0.12".to_owned(), 1)]));
            demand.end()
        });
    }
}

/// Sends much over a connection whose other end is not known any more.
fn large_frames(demand: &Demand, from: &str, to: &str, least: f64) -> Result<()> {
    let (a, b) = (demand.guest(from)?, demand.guest(to)?);
    let listener = b.ns.listen(SocketAddr::new(b.ip().into(), 7001))?;
    let address = SocketAddr::new(b.ip().into(), 7001);
    let mut stream = a.ns.inside(|| Ok(TcpStream::connect(address)?))?;
    let (mut accepted, _) = listener.accept()?;
    // The window grows until large frames are sent.
    let bytes: Vec<u8> = (0..2_000_000).map(|at| (at % 251) as u8).collect();
    let more = bytes.clone();
    let writer = std::thread::spawn(move || stream.write_all(&more).map(|()| stream));
    accepted.read_exact(&mut vec![0; bytes.len()])?;
    let mut stream = writer.join().expect("the writer")?;
    let reader = std::thread::spawn(move || -> Result<usize> {
        let mut all = Vec::new();
        accepted.set_read_timeout(Some(Duration::from_secs(20)))?;
        accepted.read_to_end(&mut all)?;
        ensure!(all.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8), "other bytes arrived");
        Ok(all.len())
    });
    let before = demand.released()?;
    demand.forget(to)?;
    demand.upstream.takes(Duration::from_millis(50));
    stream.write_all(&bytes)?;
    drop(stream);
    let received = reader.join().expect("the reader")?;
    ensure!(received == bytes.len(), "{received} of {} bytes arrived", bytes.len());
    let after = demand.released()?;
    let (packets, bytes) = (after.0 - before.0, after.1 - before.1);
    ensure!(
        packets >= 1.0 && bytes / packets > least,
        "no large frame was held: {packets} with {bytes} bytes"
    );
    Ok(())
}

#[test]
fn large_frames_with_offloads_survive_being_held() {
    for (taps, mode) in [(false, "tc"), (true, "tc"), (false, "xdp"), (true, "xdp")] {
        Lab::story(|lab| {
            let mut cloud = flat();
            cloud.taps = taps;
            let options = HostOptions::default().with("guest", "mode", &format!("{mode:?}"));
            let demand = Demand::new(lab, cloud, options)?;
            // An interface with XDP takes no larger frames than its MTU from a veth.
            let least = if mode == "xdp" && !taps { 1_000.0 } else { 10_000.0 };
            large_frames(&demand, "a", "b", least).with_context(|| format!("taps: {taps}, {mode}"))?;
            demand.end()
        });
    }
}

#[test]
fn both_families_routed_and_not_are_asked_for() {
    Lab::story(|lab| {
        let cloud =
            Cloud::dual_stack(&[("a", "front", "host1"), ("b", "front", "host2"), ("d", "back", "host2")]);
        let demand = Demand::new(lab, cloud, HostOptions::default())?;
        let (a, b, d) = (demand.guest("a")?, demand.guest("b")?, demand.guest("d")?);
        a.expect_ping(b.ip6()).context("ND for a neighbour")?;
        a.expect_ping(b.ip()).context("ARP for a neighbour")?;
        a.expect_ping(d.ip()).context("a routed destination")?;
        a.expect_ping(d.ip6()).context("a routed destination over IPv6")?;
        for (ip, protocol, ethertype) in [
            (IpAddr::from(b.ip6()), Protocol::Icmp, EtherType::Ipv6),
            (b.ip().into(), Protocol::Arp, EtherType::Ipv4),
        ] {
            let asked = demand.upstream.asked();
            let of = asked.iter().find(|asked| asked.request.destination_ip == ip.to_string());
            if let Some(of) = of.map(|of| &of.request) {
                ensure!((of.protocol(), of.ethertype()) == (protocol, ethertype), "{of:?}");
            }
        }
        // A neighbour has both addresses: what came for one is known by the other.
        ensure!(demand.upstream.asked_for().values().all(|times| *times == 1), "each once");
        demand.end()
    });
}

#[test]
fn the_next_hop_of_a_route_is_asked_for() {
    Lab::story(|lab| {
        let mut cloud = flat();
        cloud.router("r", &["web"]).rule("r", "web", "172.16.0.0/12", "10.1.0.12");
        cloud.port_mut("b").allowed.push(("172.16.0.0/12".to_owned(), String::new()));
        let demand = Demand::new(lab, cloud, HostOptions::default())?;
        let (a, b) = (demand.guest("a")?, demand.guest("b")?);
        b.ns.run("ip address add 172.16.0.1/32 dev lo")?;
        a.expect_ping("172.16.0.1".parse::<IpAddr>()?)?;
        ensure!(
            demand.upstream.asked_for() == BTreeMap::from([("10.1.0.12".to_owned(), 1)]),
            "{:?}",
            demand.upstream.asked_for()
        );
        demand.end()
    });
}

#[test]
fn what_policy_denies_and_what_the_tunnel_brings_is_not_asked_for() {
    Lab::story(|lab| {
        let mut cloud = flat();
        cloud.group("out", &["out udp 7000", "in any"]).member("a", &["out"]);
        let demand = Demand::new(lab, cloud, HostOptions::default())?;
        let (a, b) = (demand.guest("a")?, demand.guest("b")?);
        known_by_hand(&a, &b)?;
        demand.net.host1.expect_drop("policy_egress", || {
            ensure!(!a.connects(SocketAddr::new(b.ip().into(), 80))?, "it is not allowed");
            Ok(())
        })?;
        ensure!(demand.upstream.asked_for().is_empty(), "{:?}", demand.upstream.asked_for());
        numbered(&a, &b, 3)?;
        ensure!(demand.upstream.asked_for().len() == 1);
        demand.end()
    });
}

#[test]
fn what_nobody_asked_for_lets_what_waits_go_on_too() {
    Lab::story(|lab| {
        let demand = Demand::new(lab, flat(), HostOptions::default())?;
        let (a, b) = (demand.guest("a")?, demand.guest("b")?);
        demand.upstream.answers(Manner::Silent);
        known_by_hand(&a, &b)?;
        let receiver = b.ns.udp(SocketAddr::new(b.ip().into(), 7000))?;
        receiver.set_read_timeout(Some(SOON))?;
        let sender = a.ns.udp(SocketAddr::new(a.ip().into(), 0))?;
        sender.send_to(b"waits", (IpAddr::from(b.ip()), 7000))?;
        demand.upstream.wait_for("a request", SOON, |asked| asked.iter().any(|asked| !asked.is_restart()))?;
        demand.push("b")?;
        receiver.recv(&mut [0; 8]).context("what waited")?;
        demand.end()
    });
}
