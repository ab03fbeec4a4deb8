//! Two hosts, two tenants with the same addresses, real traffic: what this project is for, in a minute.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::packets::{ethernet, ipv4, ipv4_of, udp};
use ncm_tests::testbed::{Guest, GuestSpec, Host, HostOptions, Lab, TwoHosts};

const PICTURE: &str = "
        host1  192.168.50.1                               host2  192.168.50.2
  +-------------------------------+                 +-------------------------------+
  | red-web1   10.0.0.11          |                 |          10.0.1.21   red-db1  |
  |      \\  subnet red-web, VNI 101                   subnet red-db, VNI 102  /     |
  |       ncm-agent + eBPF  ------|---- VXLAN ------|------  ncm-agent + eBPF       |
  |      /  subnet blue-net, VNI 200                  subnet blue-net, VNI 200 \\    |
  | blue-web1  10.0.0.11          |                 |          10.0.1.21  blue-web2 |
  +-------------------------------+                 +-------------------------------+

  Tenant red routes between two subnets, and its database takes connections on port 5432 from
  its web servers only; tenant blue has one subnet and no rules. Their guests have the same
  addresses and the same MACs, and must never meet.";

/// What red's security groups let its web servers connect to.
const ALLOWED: u16 = 5432;

fn main() -> ExitCode {
    let begin = Instant::now();
    let outcome = Lab::new().and_then(|lab| demo(&lab));
    let seconds = begin.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => {
            println!("\nEverything held. {seconds:.0} s; nothing is left behind.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nThis did not hold: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(lab: &Lab) -> Result<()> {
    let examples = examples()?;
    println!("{PICTURE}");

    step("Two hosts, one wire between them, an agent on each");
    let net = TwoHosts::new(lab, HostOptions::default())?;
    let (host1, host2) = (&net.host1, &net.host2);
    for host in net.hosts() {
        held(&format!("{} runs an agent with tunnel endpoint {}", host.name(), host.address));
    }

    step("The controller's part: goal states, before any guest exists");
    for host in net.hosts() {
        let file = examples.join(format!("{}.yaml", host.name()));
        tool(host, &["apply", "-f", &file.to_string_lossy()])?;
    }

    step("The hypervisor's part: guests appear, and the pending ports complete by themselves");
    let red_web1 = guest(lab, host1, "red-web1", Ipv4Addr::new(10, 0, 0, 11), 24)?;
    let blue_web1 = guest(lab, host1, "blue-web1", Ipv4Addr::new(10, 0, 0, 11), 23)?;
    let red_db1 = guest(lab, host2, "red-db1", Ipv4Addr::new(10, 0, 1, 21), 24)?;
    let blue_web2 = guest(lab, host2, "blue-web2", Ipv4Addr::new(10, 0, 1, 21), 23)?;
    red_web1.expect_ping(red_db1.ip())?;
    blue_web1.expect_ping(blue_web2.ip())?;
    tool(host1, &["get", "port"])?;

    step("Traffic: ping and TCP across the hosts");
    pings(&red_web1, Ipv4Addr::new(10, 0, 0, 1), "ttl=64", "red's gateway, answered on its own host")?;
    pings(&red_web1, red_db1.ip(), "ttl=63", "red, through the distributed router: one hop")?;
    pings(&blue_web1, blue_web2.ip(), "ttl=64", "blue, switched: no hop")?;
    transfers(&red_web1, &red_db1, ALLOWED)?;
    transfers(&blue_web1, &blue_web2, 0)?;

    step("Security groups: what no rule allows is dropped, and answers to what is allowed pass");
    let before = host2.drops("policy_ingress")?;
    let ssh = SocketAddr::from((red_db1.ip(), 22));
    ensure!(!red_web1.connects(ssh)?, "a connection that no rule allows came about");
    ensure!(host2.drops("policy_ingress")? > before, "what no rule allows was not dropped as such");
    held("red-web1 cannot reach red-db1 on port 22: dropped at host2, as policy_ingress");
    tool(host2, &["flows", "--port", "red-db1"])?;

    step("Isolation: the same address, two tenants");
    meets_only(&red_web1, &red_db1, &blue_web2)?;
    meets_only(&blue_web1, &blue_web2, &red_db1)?;
    let before = host1.drops("spoofed_ip")?;
    let spoofed = ipv4(Ipv4Addr::new(10, 0, 0, 99), red_db1.ip(), 64, 17, &udp(1, 2, b"not me"));
    red_web1.packets()?.send(&ethernet([0x02, 0, 0, 0, 0x65, 1], red_web1.mac(), 0x0800, &spoofed))?;
    ensure!(host1.drops("spoofed_ip")? > before, "a spoofed packet was not dropped as one");
    held("a packet with a spoofed source died at the first hook");
    tool(host1, &["drops"])?;

    step("Inside: how the programs are attached, what they know, what they did");
    tool(host1, &["status"])?;
    tool(host1, &["map", "dump", "endpoints_ip"])?;
    tool_lines(host1, &["counters"], "ncm_path_packets_total")?;

    step("The agent stops; the programs go on, and the tables can still be read");
    host1.stop()?;
    red_web1.expect_steady_ping(red_db1.ip(), 50)?;
    held("50 of 50 pings answered without an agent on host1");
    tool(host1, &["map", "dump", "vteps"])
}

fn examples() -> Result<PathBuf> {
    let directory = std::env::current_dir()?.join("examples");
    let missing = || format!("no {}: run `cargo xtask demo` from the repository", directory.display());
    ensure!(directory.join("host1.yaml").is_file(), missing());
    Path::new(&directory).canonicalize().context("resolve the examples' directory")
}

fn step(title: &str) {
    println!("\n=== {title}");
}

fn held(what: &str) {
    println!("  ok  {what}");
}

/// Shows a command of the operator's tool with what it prints.
fn tool(host: &Host, arguments: &[&str]) -> Result<()> {
    tool_lines(host, arguments, "")
}

/// The same, with only those lines that contain `part`.
fn tool_lines(host: &Host, arguments: &[&str], part: &str) -> Result<()> {
    let filter = if part.is_empty() { String::new() } else { format!(" | grep {part}") };
    println!("  {}# ncmctl {}{filter}", host.name(), arguments.join(" "));
    let shown = host.expect_ncmctl(arguments)?;
    for line in shown.lines().filter(|line| line.contains(part)) {
        println!("      {line}");
    }
    Ok(())
}

/// Makes one of the examples' guests; its gateway is its network's first address.
fn guest(lab: &Lab, host: &Host, name: &str, ip: Ipv4Addr, prefix: u8) -> Result<Guest> {
    let network = u32::from(ip) & (u32::MAX << (32 - u32::from(prefix)));
    let [.., last] = ip.octets();
    let spec = GuestSpec {
        name: name.to_owned(),
        interface: format!("tap{name}"),
        mac: [0x02, 0, 0, 0, 0, if last == 11 { 0x11 } else { 0x21 }],
        addresses: vec![(ip.into(), prefix)],
        gateway: Some(Ipv4Addr::from(network + 1)),
        gateway6: None,
        mtu: 1450,
        tap: false,
    };
    let guest = Guest::new(lab, &host.ns, spec)?;
    held(&format!("{name} ({ip}) is plugged into {}", host.name()));
    Ok(guest)
}

fn pings(from: &Guest, to: Ipv4Addr, ttl: &str, what: &str) -> Result<()> {
    let shown = from.ns.run(&format!("ping -n -c 3 -i 0.1 -W 1 {to}")).with_context(|| what.to_owned())?;
    ensure!(shown.contains(ttl), "{what}: expected {ttl}, came:\n{shown}");
    let times = shown.lines().last().unwrap_or_default();
    held(&format!("{} pings {to} ({what}), {ttl}, {times}", from.name()));
    Ok(())
}

/// Sends some bytes to a port of the other guest's; 0 for any.
fn transfers(from: &Guest, to: &Guest, port: u16) -> Result<()> {
    let bytes = 64_000_000;
    let time = from.expect_tcp_to(to, SocketAddr::from((to.ip(), port)), bytes)?;
    let rate = bytes as f64 * 8.0 / time.as_secs_f64() / 1e9;
    held(&format!(
        "{} sent {} MB to {} by TCP, intact, {rate:.1} Gb/s",
        from.name(),
        bytes / 1_000_000,
        to.name()
    ));
    Ok(())
}

/// The address that `own` and `other` share is pinged: only `own` may see it.
fn meets_only(from: &Guest, own: &Guest, other: &Guest) -> Result<()> {
    let soon = Duration::from_millis(200);
    let (right, wrong) = (own.packets()?, other.packets()?);
    let echo = |frame: &[u8]| ipv4_of(frame).is_some_and(|(_, _, protocol)| protocol == 1);
    from.expect_ping(own.ip())?;
    ensure!(right.receive(soon, echo)?.is_some(), "{} did not see the ping", own.name());
    ensure!(wrong.receive(soon, echo)?.is_none(), "{} saw a ping of another tenant", other.name());
    held(&format!("{} pinged {}: {} saw it, {} did not", from.name(), own.ip(), own.name(), other.name()));
    Ok(())
}
