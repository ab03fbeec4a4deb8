//! Programs that people use, between guests whose ports are in security groups: what is open works, what is closed does not
//! answer, over both families, within a subnet and routed, on one host and across.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts, eventually, format_mac, gateway_mac};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How much a page has.
const PAGE: usize = 2_000_000;

/// Two subnets of both families, routed; servers with a group on the first host, clients on both.
fn cloud() -> Cloud {
    let mut cloud = Cloud::dual_stack(&[
        ("server", "front", "host1"),
        ("near", "front", "host1"),
        ("far", "front", "host2"),
        ("routed", "back", "host2"),
        ("beside", "back", "host1"),
    ]);
    let mut rules = vec!["in icmp 8/0".to_owned(), "in6 icmp 128/0".to_owned()];
    for family in ["in", "in6"] {
        for open in ["http", "tcp 443", "tcp 5201", "udp 5201", "udp 53", "tcp 9000", "udp 44444-44500"] {
            rules.push(format!("{family} {open}"));
        }
    }
    cloud.group("server", &rules.iter().map(String::as_str).collect::<Vec<_>>());
    cloud.group("clients", &["out any", "out6 any"]);
    cloud.member("server", &["server"]).member("far", &["clients"]).member("beside", &["clients"]);
    cloud
}

struct Cast {
    net: TwoHosts,
    server: Guest,
    near: Guest,
    far: Guest,
    routed: Guest,
    beside: Guest,
}

impl Cast {
    fn new(lab: &Lab, cloud: &Cloud, options: HostOptions) -> Result<Self> {
        let net = TwoHosts::new(lab, options)?;
        let server = cloud.guest(lab, &net.host1, "server")?;
        let near = cloud.guest(lab, &net.host1, "near")?;
        let far = cloud.guest(lab, &net.host2, "far")?;
        let routed = cloud.guest(lab, &net.host2, "routed")?;
        let beside = cloud.guest(lab, &net.host1, "beside")?;
        net.push(cloud)?;
        Ok(Self { net, server, near, far, routed, beside })
    }

    fn clients(&self) -> [&Guest; 4] {
        [&self.near, &self.far, &self.routed, &self.beside]
    }

    /// The server's addresses.
    fn addresses(&self) -> [IpAddr; 2] {
        [self.server.ip().into(), self.server.ip6().into()]
    }

    /// Does something for each client and each address of the server, all clients at a time.
    fn each(&self, what: impl Fn(&Guest, IpAddr) -> Result<()> + Sync) -> Result<()> {
        let addresses = self.addresses();
        let work = |client: &Guest| {
            addresses.into_iter().try_for_each(|address| {
                what(client, address).with_context(|| format!("{} to {address}", client.name()))
            })
        };
        thread::scope(|scope| {
            let all = self.clients().map(|client| {
                let work = &work;
                scope.spawn(move || work(client))
            });
            all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("a check panicked"))?)
        })
    }
}

/// A small web server on some address; it ends when dropped.
struct Web {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    fn start(on: &Guest, port: u16) -> Result<Self> {
        let listener = on.ns.listen(SocketAddr::new("::".parse()?, port))?;
        listener.set_nonblocking(true)?;
        let end = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&end);
        let thread = thread::spawn(move || serve(&listener, &ended));
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, end: &AtomicBool) {
    let answer = |stream: &mut std::net::TcpStream| -> Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let (mut request, mut part) = (Vec::new(), [0; 1024]);
        while !request.ends_with(b"\r\n\r\n") {
            let length = stream.read(&mut part)?;
            ensure!(length > 0, "cut short");
            request.extend(&part[..length]);
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {PAGE}\r\nConnection: close\r\n\r\n")?;
        stream.write_all(&vec![b'.'; PAGE])?;
        Ok(())
    };
    while !end.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut ready, PollTimeout::from(50_u8)), Ok(1..)) {
            continue;
        }
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || answer(&mut stream));
        }
    }
}

/// As it stands in a URL.
fn in_url(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

fn pings(cast: &Cast) -> Result<()> {
    cast.each(|client, address| {
        let family = if address.is_ipv6() { "-6" } else { "-4" };
        let shown = client.ns.run(&format!("ping {family} -n -q -c 20 -i 0.01 -W 2 {address}"))?;
        ensure!(shown.contains(" 0% packet loss"), "{shown}");
        // The gateway of the client's own subnet.
        let gateway = match address {
            IpAddr::V4(_) => client.spec().gateway.map(IpAddr::V4),
            IpAddr::V6(_) => client.spec().gateway6.map(IpAddr::V6),
        };
        let gateway = gateway.context("no gateway")?;
        client.ns.run(&format!("ping {family} -n -q -c 3 -i 0.01 -W 2 {gateway}")).map(drop)
    })
}

/// Every hop shows, and the path's MTU.
fn tracepaths(cast: &Cast) -> Result<()> {
    cast.each(|client, address| {
        let shown = client.ns.run(&format!("tracepath -n -m 5 {address}"))?;
        let hops = if client.name() == "near" || client.name() == "far" { 1 } else { 2 };
        ensure!(shown.contains(&format!("pmtu 1450 hops {hops}")), "{shown}");
        let gateway = if address.is_ipv6() { "fd00:2::1" } else { "10.2.0.1" };
        ensure!(hops == 1 || shown.contains(gateway), "the gateway is the first hop:\n{shown}");
        Ok(())
    })
}

fn curls(cast: &Cast) -> Result<()> {
    let _open = Web::start(&cast.server, 80)?;
    let _closed = Web::start(&cast.server, 8080)?;
    cast.each(|client, address| {
        let fetch = |port: u16| {
            let url = format!("http://{}:{port}/", in_url(address));
            let line = ["curl", "-g", "-s", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"];
            client.ns.outcome(
                &[&line[..], &["--connect-timeout", if port == 80 { "5" } else { "0.3" }, &url]].concat(),
            )
        };
        let page = fetch(80)?;
        ensure!(page.stdout == format!("200 {PAGE}"), "{page:?}");
        let closed = fetch(8080)?;
        ensure!(closed.code == 28, "curl did not time out: {closed:?}");
        Ok(())
    })
}

fn iperfs(cast: &Cast) -> Result<()> {
    for client in [&cast.near, &cast.routed] {
        for address in cast.addresses() {
            for more in ["-n 30M", "-R -n 30M", "-u -b 100M -n 5M", "-u -R -b 100M -l 8000 -n 5M"] {
                let line = format!("iperf3 -s -1 --forceflush -B {address}");
                let mut server = cast.server.ns.start(&line.split_whitespace().collect::<Vec<_>>())?;
                server.wait_for("Server listening", Duration::from_secs(5))?;
                let what = || format!("{} to {address}: {more}", client.name());
                let shown = client.ns.run(&format!("iperf3 -J -c {address} {more}")).with_context(what)?;
                let report: serde_json::Value = serde_json::from_str(&shown)?;
                let end = &report["end"];
                let bytes = end["sum_received"]["bytes"].as_f64().or_else(|| end["sum"]["bytes"].as_f64());
                ensure!(bytes.is_some_and(|bytes| bytes >= 2.5e6), "{}: {end:#}", what());
                server.wait(Duration::from_secs(5))?;
            }
        }
    }
    Ok(())
}

/// Thousands of short connections to an ncat that prints what it is told, and some by ncat itself.
fn ncats(cast: &Cast) -> Result<()> {
    const EACH: usize = 1_000;
    let mut server =
        cast.server.ns.start(&["ncat", "-v", "-n", "-l", "-k", "-m", "900", "--recv-only", "9000"])?;
    server.wait_for("Listening on 0.0.0.0", Duration::from_secs(5))?;
    server.wait_for("Listening on ::", Duration::from_secs(5))?;
    cast.each(|client, address| {
        let to = SocketAddr::new(address, 9000);
        client.ns.inside(|| {
            for number in 0..EACH / 2 {
                // ncat lets ten wait, so that a SYN has to be repeated now and then.
                let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))
                    .with_context(|| format!("connection {number}"))?;
                stream.write_all(b"it is me\n")?;
            }
            Ok(())
        })?;
        let line = format!(
            "for i in 1 2 3; do echo it is me | ncat -n --send-only -w 5 {address} 9000 || exit 1; done"
        );
        client.ns.run_words(&["sh", "-c", &line]).map(drop)
    })?;
    let wanted = cast.clients().len() * (EACH + 2 * 3);
    eventually(&format!("{wanted} lines arrive"), Duration::from_secs(10), || {
        let came = server.output().lines().iter().filter(|line| line.as_str() == "it is me").count();
        Ok(came == wanted)
    })
}

/// What nmap says of each port.
fn scan(from: &Guest, address: IpAddr, how: &str, ports: &str) -> Result<Vec<(String, String)>> {
    let family = if address.is_ipv6() { "-6" } else { "" };
    let shown = from.ns.run(&format!(
        "nmap {family} -n -Pn --max-retries 1 --host-timeout 30s --max-rtt-timeout 200ms {how} -p {ports} {address}"
    ))?;
    let port = |line: &str| {
        let mut words = line.split_whitespace();
        let (port, state) = (words.next()?, words.next()?);
        port.contains('/').then(|| (port.to_owned(), state.to_owned()))
    };
    Ok(shown
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_digit()))
        .filter_map(port)
        .collect())
}

/// Open is open, closed by policy is filtered, and open in policy without a server is closed.
fn nmaps(cast: &Cast) -> Result<()> {
    let _web = Web::start(&cast.server, 80)?;
    let _hidden = Web::start(&cast.server, 22)?;
    cast.each(|client, address| {
        let expected = |states: &[(&str, &str)]| -> Vec<(String, String)> {
            states.iter().map(|(port, state)| ((*port).to_owned(), (*state).to_owned())).collect()
        };
        for how in ["-sS", "-sT"] {
            let seen = scan(client, address, how, "22,80,81,443")?;
            let wanted = expected(&[
                ("22/tcp", "filtered"),
                ("80/tcp", "open"),
                ("81/tcp", "filtered"),
                ("443/tcp", "closed"),
            ]);
            ensure!(seen == wanted, "nmap {how}: expected {wanted:?}, came {seen:?}");
        }
        // What is no beginning of a connection does not get further: these scans tell by what answers with a reset.
        for how in ["-sA", "-sF"] {
            let seen = scan(client, address, how, "22,81")?;
            ensure!(
                seen.iter().all(|(_, state)| state.contains("filtered")) && seen.len() == 2,
                "nmap {how}: {seen:?}"
            );
        }
        let seen = scan(client, address, "-sU", "53,54")?;
        let wanted = expected(&[("53/udp", "closed"), ("54/udp", "open|filtered")]);
        ensure!(seen == wanted, "nmap -sU: expected {wanted:?}, came {seen:?}");
        Ok(())
    })
}

fn neighbours(cast: &Cast) -> Result<()> {
    for (asked, mac) in [
        ("fd00:1::11", format_mac(cast.server.mac())),
        ("fd00:1::13", format_mac(cast.far.mac())),
        ("fd00:1::1", format_mac(gateway_mac("fd00:1::1".parse::<IpAddr>()?))),
    ] {
        let shown = cast.near.ns.run(&format!("ndisc6 -1 -r 2 -w 1000 {asked} eth0"))?;
        ensure!(shown.to_lowercase().contains(&mac), "{asked} is at {mac}:\n{shown}");
    }
    let unknown = cast.near.ns.outcome(&["ndisc6", "-1", "-r", "1", "-w", "300", "fd00:1::99", "eth0"])?;
    ensure!(!unknown.success, "nobody is there: {unknown:?}");
    let shown = cast.near.ns.run("rdisc6 -1 -r 2 -w 1000 eth0")?;
    ensure!(shown.contains("fd00:1::/64") && shown.contains("1450 bytes"), "{shown}");
    Ok(())
}

/// What is tried, and how.
type Check = (&'static str, fn(&Cast) -> Result<()>);

/// All of them, one after the other: they share what takes longest, the hosts and their guests.
fn all_work(options: HostOptions, taps: bool, checks: &[Check]) {
    Lab::story(|lab| {
        let cloud = Cloud { taps, ..cloud() };
        let cast = Cast::new(lab, &cloud, options)?;
        for (what, check) in checks {
            check(&cast).with_context(|| (*what).to_owned())?;
        }
        let shown = cast.net.host1.expect_ncmctl(&["get", "port", "server", "-o", "json"])?;
        ensure!(shown.contains("\"mtu\": 1450"), "the guest's MTU can be looked up: {shown}");
        Ok(())
    });
}

#[test]
fn ping_tracepath_curl_and_neighbour_discovery() {
    let checks: [Check; 4] =
        [("ping", pings), ("tracepath", tracepaths), ("curl", curls), ("ndisc6 and rdisc6", neighbours)];
    all_work(HostOptions::default(), false, &checks);
}

#[test]
fn ping_tracepath_and_curl_of_taps_over_a_virtual_wire() {
    let checks: [Check; 3] = [("ping", pings), ("tracepath", tracepaths), ("curl", curls)];
    all_work(HostOptions::virtual_wire(), true, &checks);
}

#[test]
fn nmap_sees_what_is_closed_as_filtered_and_what_is_open_as_open() {
    all_work(HostOptions::default(), false, &[("nmap", nmaps)]);
}

#[test]
fn iperf3_over_tcp_and_udp() {
    all_work(HostOptions::default(), true, &[("iperf3", iperfs)]);
}

#[test]
fn thousands_of_short_connections_to_ncat() {
    all_work(HostOptions::default(), false, &[("ncat", ncats)]);
}
