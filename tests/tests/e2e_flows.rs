//! Flows as their users see them: who moves is followed, who floods hurts nobody else, and what happens can be looked at.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{GoalState, OperationType};
use ncm_tests::packet;
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, Talk, TwoHosts, eventually};

const SOON: Duration = Duration::from_secs(3);

/// Both families, three guests on the first host and one on the second.
fn cloud() -> Cloud {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("net", "red", "10.1.0.0/24").subnet("six", "red", "fd00:1::/64");
    for (name, last, host) in
        [("a", 11, "host1"), ("b", 12, "host1"), ("c", 13, "host1"), ("far", 14, "host2")]
    {
        cloud.port(name, "net", &format!("10.1.0.{last}"), host);
        cloud.address(name, "six", &format!("fd00:1::{last}"));
    }
    cloud
}

#[test]
fn a_guest_that_moves_to_another_host_is_followed_at_once() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        cloud.group("any", &["in any", "in6 any", "out any", "out6 any"]);
        for port in ["a", "b", "c", "far"] {
            cloud.member(port, &["any"]);
        }
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let mut a = cloud.guest(lab, &net.host1, "a")?;
        let (b, far) = (cloud.guest(lab, &net.host1, "b")?, cloud.guest(lab, &net.host2, "far")?);
        let _c = cloud.guest(lab, &net.host1, "c")?;
        net.push(&cloud)?;
        let mut talks = Vec::new();
        for v6 in [false, true] {
            talks.push(Talk::begin(&b, &a, 80, v6)?);
            talks.push(Talk::begin(&far, &a, 80, v6)?);
            talks.push(Talk::begin(&a, &far, 81, v6)?);
        }
        let pings = [far.begin_ping(a.ip())?, b.begin_ping(a.ip6())?];
        // There, and back again.
        for (host, other) in [(&net.host2, &net.host1), (&net.host1, &net.host2)] {
            a.move_to(&host.ns)?;
            cloud.port_mut("a").host = host.name().to_owned();
            // The new host knows first, as in a live migration.
            for side in [host, other] {
                let mut state = cloud.goal_state(side.name());
                if side.name() == other.name() {
                    state.port_states.push(cloud.port_state("a", OperationType::Delete));
                } else {
                    // Its state as a neighbour of this host goes.
                    let kind = ncm_model::wire::NeighborType::L2;
                    state.neighbor_states.push(cloud.neighbor_state("a", kind, OperationType::Delete));
                }
                side.agent().push(&state)?.expect_success()?;
            }
            for talk in &mut talks {
                talk.goes_on().with_context(|| format!("a is on {}", host.name()))?;
            }
            for ping in &pings {
                ping.goes_on(3).with_context(|| format!("a is on {}", host.name()))?;
            }
        }
        Ok(())
    });
}

/// One frame for each of `count` source ports, from 1024 up.
fn frames(from: &Guest, to: &Guest, count: u16, packet: impl Fn(u16) -> packet::Ip) -> Vec<Vec<u8>> {
    (0..count).map(|number| packet(1024 + number).frame(to.mac(), from.mac())).collect()
}

fn send(from: &Guest, frames: &[Vec<u8>]) -> Result<()> {
    let socket = from.packets()?;
    frames.iter().try_for_each(|frame| socket.send(frame))
}

#[test]
fn who_floods_exhausts_its_own_share_alone() {
    Lab::story(|lab| {
        let options = HostOptions::default().with("flows", "max_flows_per_port", "200");
        let net = TwoHosts::new(lab, options.with("flows", "tcp_new", "5"))?;
        let cloud = cloud();
        let a = cloud.guest(lab, &net.host1, "a")?;
        let (b, c) = (cloud.guest(lab, &net.host1, "b")?, cloud.guest(lab, &net.host1, "c")?);
        let far = cloud.guest(lab, &net.host2, "far")?;
        net.push(&cloud)?;
        let (mut near, mut remote) = (Talk::begin(&b, &c, 80, false)?, Talk::begin(&far, &b, 80, true)?);
        let mut own = Talk::begin(&a, &c, 80, false)?;

        // SYNs that nobody answers, from every source port to a guest that drops them.
        far.ns.run("nft add table ip quiet")?;
        far.ns.run_words(&["nft", "add chain ip quiet in { type filter hook input priority 0; }"])?;
        far.ns.run_words(&["nft", "add rule ip quiet in tcp dport 81 drop"])?;
        let (from, to) = (a.ip().octets(), far.ip().octets());
        let syns = frames(&a, &far, 20_000, |port| packet::segment((from, port), (to, 81), 0x02));
        // Datagrams that are answered: each makes a flow of its own, beyond the guest's share of them.
        let echo = c.ns.udp(SocketAddr::new(c.ip().into(), 7))?;
        echo.set_read_timeout(Some(Duration::from_millis(200)))?;
        let to = c.ip().octets();
        let datagrams = frames(&a, &c, 2_000, |port| packet::udp((from, port), (to, 7), b"?"));
        let flooded = AtomicBool::new(false);
        let flooding = thread::scope(|scope| -> Result<()> {
            let flood = scope.spawn(|| send(&a, &syns).and_then(|()| send(&a, &datagrams)));
            let answers = scope.spawn(|| {
                let mut buffer = [0; 16];
                loop {
                    match echo.recv_from(&mut buffer) {
                        Ok((length, to)) => drop(echo.send_to(&buffer[..length], to)),
                        Err(_) if flooded.load(Ordering::Relaxed) => break,
                        Err(_) => {}
                    }
                }
            });
            // Others' connections meanwhile: those that there are, and new ones.
            for number in 0..30_u16 {
                near.goes_on()?;
                remote.goes_on()?;
                drop(Talk::begin(&b, &c, 1000 + number, number % 2 == 0)?);
                drop(Talk::begin(&far, &b, 1000 + number, number % 2 == 1)?);
            }
            let flood = flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"));
            flooded.store(true, Ordering::Relaxed);
            flood??;
            answers.join().map_err(|_| anyhow::anyhow!("the echo panicked"))
        });
        flooding.context("while a guest floods")?;
        own.goes_on().context("what the flooding guest had was established, and is kept")?;
        drop(Talk::begin(&a, &c, 90, false).context("the flooding guest can still connect")?);
        let host = &net.host1;
        eventually("it shows in the metrics", SOON, || {
            let beyond = host.metric(&["ncm_path_packets_total{", "\"flow_share_full\""])?;
            let flows = |port: &str| host.metric(&["ncm_port_flows{", &format!("port=\"{port}\"")]);
            let own = flows("a")?;
            Ok(beyond > 0.0 && (200.0..203.0).contains(&own) && flows("b")? < 200.0)
        })?;
        near.goes_on()?;
        remote.goes_on()
    });
}

/// Rows of `ncmctl flows`.
fn flows(net: &TwoHosts, arguments: &[&str]) -> Result<Vec<serde_json::Value>> {
    let words = [&["flows", "-o", "json"], arguments].concat();
    let text = net.host1.expect_ncmctl(&words)?;
    serde_json::from_str(&text).with_context(|| text)
}

#[test]
fn flows_can_be_listed_by_port_address_protocol_and_state_with_the_agent_and_without() {
    Lab::story(|lab| {
        let mut cloud = cloud();
        cloud.group("web", &["in tcp 80", "in6 tcp 80", "out any"]).member("b", &["web"]);
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let (a, b) = (cloud.guest(lab, &net.host1, "a")?, cloud.guest(lab, &net.host1, "b")?);
        let (_c, far) = (cloud.guest(lab, &net.host1, "c")?, cloud.guest(lab, &net.host2, "far")?);
        net.push(&cloud)?;
        let mut talks = [Talk::begin(&a, &b, 80, false)?, Talk::begin(&far, &b, 80, true)?];
        b.expect_ping(a.ip())?;
        let silent = Ipv4Addr::new(10, 1, 0, 14);
        b.ns.udp(SocketAddr::new(b.ip().into(), 9))?.send_to(b"?", SocketAddr::new(silent.into(), 9))?;
        let look = |more: &[&str]| -> Result<()> {
            let expect = |what: &str, arguments: &[&str], count: usize, parts: &[&str]| -> Result<()> {
                let rows = flows(&net, &[arguments, more].concat())?;
                let has = |row: &&serde_json::Value| parts.iter().all(|part| row.to_string().contains(part));
                let found = rows.iter().filter(has).count();
                ensure!(found == count && rows.len() == count, "{what}: expected {count}, came {rows:#?}");
                Ok(())
            };
            let server = ["--port", "b", "--protocol", "tcp"];
            expect("connections of a port", &server, 2, &["established", "remote", "allowed"])?;
            expect("of the client", &["--port", "a", "--protocol", "tcp"], 1, &["10.1.0.12", "guest"])?;
            expect("by address", &["--port", "b", "--address", "fd00:1::14"], 1, &["fd00:1::12", "80"])?;
            expect("echo", &["--port", "b", "--protocol", "icmp"], 1, &["guest", "10.1.0.11"])?;
            let unanswered = ["--port", "b", "--protocol", "udp", "--state", "new"];
            expect("unanswered", &unanswered, 1, &["10.1.0.14", "udp"])
        };
        // The datagram provokes an ICMP error, which answers nothing.
        look(&[])?;
        look(&["--offline"])?;
        // What policy no longer allows is shown as denied.
        cloud.group("web", &["out any"]);
        let states = cloud.goal_state("host1").security_group_states;
        let state = GoalState { security_group_states: states, ..Default::default() };
        net.host1.agent().push(&state)?.expect_success()?;
        talks[0].expect_stopped()?;
        let rows = flows(&net, &["--port", "b", "--address", "10.1.0.11", "--protocol", "tcp"])?;
        ensure!(rows.len() == 1 && rows[0].to_string().contains("denied"), "{rows:#?}");
        net.push(&{
            cloud.group("web", &["in tcp 80", "in6 tcp 80", "out any"]);
            cloud.clone()
        })?;
        talks.iter_mut().try_for_each(Talk::goes_on)?;
        // With the agent gone the pinned tables tell the same.
        net.host1.stop()?;
        talks.iter_mut().try_for_each(Talk::goes_on).context("without the agent")?;
        look(&[]).context("without the agent")
    });
}
