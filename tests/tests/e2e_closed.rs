//! No guest's frame ever reaches the host's own stack: not before a program is attached, not while the port is
//! pending, not after it is deleted, not after the dataplane is torn down.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{GoalState, OperationStatus, OperationType};
use ncm_tests::testbed::packets::{ethernet, ipv4, udp};
use ncm_tests::testbed::{
    Cloud, Guest, Host, HostOptions, Lab, TwoHosts, eventually, format_mac, gateway_mac,
};

/// The link-local address that a host gives an interface of that MAC by itself (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let half = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let [one, two, three, four] = [0, 2, 4, 6].map(|at| u16::from_be_bytes([half[at], half[at + 1]]));
    Ipv6Addr::new(0xfe80, 0, 0, 0, one, two, three, four)
}

/// A hostile guest tries everything it can to talk to its host.
struct Attack<'a> {
    host: &'a Host,
    guest: &'a Guest,
    tcp4: std::net::TcpListener,
    tcp6: std::net::TcpListener,
    udp: std::net::UdpSocket,
}

impl<'a> Attack<'a> {
    fn prepare(host: &'a Host, guest: &'a Guest) -> Result<Self> {
        let tcp4 = host.ns.listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 2200)))?;
        let tcp6 = host.ns.listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 2201)))?;
        let udp = host.ns.udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 2202)))?;
        udp.set_read_timeout(Some(Duration::from_millis(200)))?;
        Ok(Self { host, guest, tcp4, tcp6, udp })
    }

    /// Expects every attempt to fail. The guest knows the MAC and the addresses of its host.
    fn expect_silence(&self, moment: &str) -> Result<()> {
        self.attempt().with_context(|| format!("at the moment: {moment}"))
    }

    /// Expects that not even datagrams of a sender without an address, to all hosts, are heard: those the kernel takes in
    /// without asking where their sender is, so that only a program (or an interface that is down) keeps them out.
    fn expect_silence_to_all(&self, moment: &str) -> Result<()> {
        let wire = self.guest.packets()?;
        let host = self.host.ns.mac(&self.guest.spec().interface)?;
        for to in [Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
            let packet = ipv4(Ipv4Addr::UNSPECIFIED, to, 64, 17, &udp(9, 2202, b"hello, all"));
            for mac in [[0xff; 6], host] {
                wire.send(&ethernet(mac, self.guest.mac(), 0x0800, &packet))?;
            }
        }
        ensure!(self.udp.recv_from(&mut [0; 64]).is_err(), "a datagram to all reached the host: {moment}");
        Ok(())
    }

    fn attempt(&self) -> Result<()> {
        let (host, guest) = (self.host, self.guest);
        let mac = host.ns.mac(&guest.spec().interface)?;
        let link_local = link_local(mac);
        guest.ns.ip(&format!(
            "route replace 192.168.50.0/24 dev eth0
             neigh replace {} lladdr {} dev eth0
             neigh replace {link_local} lladdr {} dev eth0",
            host.address,
            format_mac(mac),
            format_mac(mac)
        ))?;
        let scope = guest.ns.ifindex("eth0")?.unwrap_or(0);
        let connects = |to: SocketAddr| -> Result<bool> {
            guest.ns.inside(|| Ok(TcpStream::connect_timeout(&to, Duration::from_millis(700)).is_ok()))
        };
        ensure!(
            !connects(SocketAddr::new(IpAddr::V4(host.address), 2200))?,
            "TCP over IPv4 reached the host"
        );
        let to = SocketAddr::V6(SocketAddrV6::new(link_local, 2201, 0, scope));
        ensure!(!connects(to)?, "TCP over IPv6 reached the host's link-local address {link_local}");
        let wire = guest.packets()?;
        for from in [guest.ip(), Ipv4Addr::new(192, 168, 50, 77), Ipv4Addr::new(169, 254, 1, 1)] {
            let packet = ipv4(from, host.address, 64, 17, &udp(9, 2202, b"hello, host"));
            wire.send(&ethernet(mac, guest.mac(), 0x0800, &packet))?;
            wire.send(&ethernet([0xff; 6], guest.mac(), 0x0800, &packet))?;
        }
        let mut buffer = [0; 64];
        ensure!(self.udp.recv_from(&mut buffer).is_err(), "a datagram reached the host");
        // Whatever the kernel may have queued.
        for listener in [&self.tcp4, &self.tcp6] {
            listener.set_nonblocking(true)?;
            ensure!(listener.accept().is_err(), "the host accepted a connection");
        }
        ensure!(guest.arp(host.address)?.is_none(), "the host answered ARP for its own address");
        Ok(())
    }
}

fn closed_at_every_moment(lab: &Lab, tap: bool) -> Result<()> {
    let mut cloud = Cloud { taps: tap, ..Cloud::new() };
    cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    let net = TwoHosts::new(lab, HostOptions::default())?;
    let host = &net.host1;
    let a = cloud.guest(lab, host, "a")?;
    let b = cloud.guest(lab, &net.host2, "b")?;
    let attack = Attack::prepare(host, &a)?;
    attack.expect_silence("the interface exists, no port names it")?;

    let mut port = GoalState { format_version: 101, ..Default::default() };
    port.port_states.push(cloud.port_state("a", OperationType::Create));
    let statuses = host.agent().push(&port)?;
    statuses.expect("a", OperationStatus::Pending).context("a port of an unknown subnet")?;
    attack.expect_silence("the port is pending")?;
    attack.expect_silence_to_all("the port is pending")?;

    net.push(&cloud)?;
    a.expect_ping(b.ip())?;
    attack.expect_silence("the port works")?;
    attack.expect_silence_to_all("the port works")?;
    let gateway = Ipv4Addr::new(10, 1, 0, 1);
    let through_gateway = ipv4(a.ip(), host.address, 64, 17, &udp(9, 2202, b"hello, host"));
    a.packets()?.send(&ethernet(gateway_mac(gateway), a.mac(), 0x0800, &through_gateway))?;
    ensure!(attack.udp.recv_from(&mut [0; 64]).is_err(), "a datagram reached the host through the gateway");

    host.stop()?;
    attack.expect_silence("the agent is stopped")?;
    attack.expect_silence_to_all("the agent is stopped")?;
    host.start()?;
    net.push(&cloud)?;
    a.expect_ping(b.ip())?;

    let mut port = GoalState { format_version: 101, ..Default::default() };
    port.port_states.push(cloud.port_state("a", OperationType::Delete));
    host.agent().push(&port)?.expect_success()?;
    a.expect_no_ping(b.ip())?;
    attack.expect_silence("the port is deleted")?;
    attack.expect_silence_to_all("the port is deleted")?;

    host.stop()?;
    let program = ncm_tests::testbed::binary("ncm-agent")?;
    host.ns.run(&format!("{} --config /run/{}.toml --teardown", program.display(), host.name()))?;
    attack.expect_silence("the dataplane is torn down")?;
    attack.expect_silence_to_all("the dataplane is torn down")
}

/// Sends datagrams of a sender without an address to all hosts, as fast as it can, until it is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    fn begin(guest: &Guest) -> Result<Self> {
        let wire = guest.packets()?;
        let frames = [Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)].map(|to| {
            let packet = ipv4(Ipv4Addr::UNSPECIFIED, to, 64, 17, &udp(9, 2202, b"hello, all"));
            ethernet([0xff; 6], guest.mac(), 0x0800, &packet)
        });
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                for frame in &frames {
                    // While the other side is down they are lost, and some kinds of interface say so.
                    let _lost = wire.send(frame);
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// A guest whose interface is created down: its port is pushed when the interface is there, or is there before it.
fn created_down(lab: &Lab, tap: bool, port_first: bool) -> Result<()> {
    let mut cloud = Cloud { taps: tap, ..Cloud::new() };
    cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    let net = TwoHosts::new(lab, HostOptions::default())?;
    let host = &net.host1;
    let mut a = Guest::unplugged(lab, &host.ns, cloud.guest_spec("a")?)?;
    let b = cloud.guest(lab, &net.host2, "b")?;
    let heard = host.ns.udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 2202)))?;
    heard.set_read_timeout(Some(Duration::from_millis(200)))?;
    let push = || {
        net.hosts()
            .into_iter()
            .try_for_each(|host| host.agent().push(&cloud.goal_state(host.name())).map(drop))
    };
    if port_first {
        push()?;
    }
    a.plug_down()?;
    let flood = Flood::begin(&a)?;
    if !port_first {
        ensure!(heard.recv_from(&mut [0; 64]).is_err(), "an interface that is down let a datagram through");
        push()?;
    }
    a.expect_ping(b.ip()).context("the agent brings the interface up")?;
    let drops = || host.metric(&["ncm_drops_packets_total{"]);
    let before = drops()?;
    eventually("what the guest sends to all is dropped", Duration::from_secs(5), || Ok(drops()? > before))?;
    drop(flood);
    ensure!(heard.recv_from(&mut [0; 64]).is_err(), "a datagram to all reached the host");
    Ok(())
}

#[test]
fn a_guest_whose_interface_is_created_down_is_never_heard() {
    for (tap, port_first) in [(false, false), (false, true), (true, false), (true, true)] {
        Lab::story(|lab| created_down(lab, tap, port_first));
    }
}

/// The same flood from an interface that is created up is heard: the test above can fail, and docs/operations.md says so.
#[test]
fn a_guest_whose_interface_is_created_up_is_heard_until_a_port_names_it() {
    Lab::story(|lab| {
        let mut cloud = Cloud::new();
        cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1");
        let net = TwoHosts::new(lab, HostOptions::default())?;
        let host = &net.host1;
        let heard = host.ns.udp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 2202)))?;
        heard.set_read_timeout(Some(Duration::from_secs(5)))?;
        let a = cloud.guest(lab, host, "a")?;
        let _flood = Flood::begin(&a)?;
        heard.recv_from(&mut [0; 64]).context("nothing was heard of an interface without a program")?;
        host.agent().push(&cloud.goal_state(host.name()))?.expect_success()?;
        heard.set_nonblocking(true)?;
        // What was heard before the push was answered.
        while heard.recv_from(&mut [0; 64]).is_ok() {}
        heard.set_nonblocking(false)?;
        heard.set_read_timeout(Some(Duration::from_millis(200)))?;
        ensure!(heard.recv_from(&mut [0; 64]).is_err(), "a datagram reached the host after the push");
        Ok(())
    });
}

#[test]
fn a_veth_guest_never_reaches_the_hosts_stack() {
    Lab::story(|lab| closed_at_every_moment(lab, false));
}

#[test]
fn a_tap_guest_never_reaches_the_hosts_stack() {
    Lab::story(|lab| closed_at_every_moment(lab, true));
}

/// Without an agent the same attempts succeed: the test above can fail.
#[test]
fn without_an_agent_the_attack_works() {
    Lab::story(|lab| {
        let mut cloud = Cloud::new();
        cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1");
        let net = TwoHosts::unstarted(lab, HostOptions::default())?;
        let a = cloud.guest(lab, &net.host1, "a")?;
        let attack = Attack::prepare(&net.host1, &a)?;
        ensure!(attack.attempt().is_err(), "nothing protects the host, and yet no attempt reached it");
        Ok(())
    });
}
