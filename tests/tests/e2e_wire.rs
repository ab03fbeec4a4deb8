//! What is not ours on the host's wire passes untouched: a host must not lose SSH, nor another overlay its frames.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Cloud, Guest, HostOptions, Lab, TwoHosts};

fn untouched(lab: &Lab, options: HostOptions) -> Result<()> {
    let mut cloud = Cloud::new();
    cloud.vpc("red", 100).subnet("web", "red", "10.1.0.0/24").port("a", "web", "10.1.0.11", "host1").port(
        "b",
        "web",
        "10.1.0.12",
        "host2",
    );
    let net = TwoHosts::new(lab, options)?;
    let guest = |host, port| -> Result<Guest> { cloud.guest(lab, host, port) };
    let (a, b) = (guest(&net.host1, "a")?, guest(&net.host2, "b")?);
    net.push(&cloud)?;
    a.expect_ping(b.ip())?;
    let (here, there) = (&net.host1, &net.host2);

    // TCP to the host, as SSH is, with more than a segment of data.
    let listener = there.ns.listen(SocketAddr::from((there.address, 2222)))?;
    let echo = std::thread::spawn(move || -> Result<usize> {
        let (mut stream, _) = listener.accept()?;
        let mut all = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream.read_to_end(&mut all)?)
    });
    let address = SocketAddr::from((there.address, 2222));
    here.ns.inside(|| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        Ok(stream.write_all(&vec![7; 1_000_000])?)
    })?;
    let received = echo.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    ensure!(received == 1_000_000, "TCP between the hosts delivered {received} of 1000000 bytes");

    // UDP: another port; our port but larger than a frame, hence in fragments; without VXLAN's flag; to multicast.
    let exchange = |to: SocketAddr, length: usize| -> Result<()> {
        let receiver = there.ns.udp(to)?;
        if let SocketAddr::V4(address) = to
            && address.ip().is_multicast()
        {
            receiver.join_multicast_v4(address.ip(), &there.address)?;
        }
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        let any: SocketAddr = if to.is_ipv4() { "192.168.50.1:0".parse()? } else { "[::]:0".parse()? };
        here.ns.udp(any)?.send_to(&vec![0; length], to)?;
        let mut buffer = vec![0; 65_536];
        let (received, _) =
            receiver.recv_from(&mut buffer).with_context(|| format!("UDP of {length} bytes to {to}"))?;
        ensure!(received == length, "UDP to {to}: {received} of {length} bytes arrived");
        Ok(())
    };
    exchange(SocketAddr::from((there.address, 5000)), 100)?;
    exchange(SocketAddr::from((there.address, 5000)), 4000).context("fragments")?;
    exchange(SocketAddr::from((there.address, 4789)), 100).context("our port without VXLAN's flag")?;
    exchange(SocketAddr::from((there.address, 4789)), 4000).context("our port, in fragments")?;
    exchange(SocketAddr::from((there.address, 4789)), 3).context("our port, shorter than a VXLAN header")?;
    exchange("239.1.2.3:6000".parse()?, 100).context("multicast")?;

    // IPv6 between the hosts.
    here.ns.run("ip address add fd00::1/64 dev eth0")?;
    there.ns.run("ip address add fd00::2/64 dev eth0")?;
    here.ns.run("ping -6 -n -c 2 -i 0.1 -W 2 fd00::2").context("IPv6")?;
    exchange(SocketAddr::V6(SocketAddrV6::new("fd00::2".parse()?, 4789, 0, 0)), 100)
        .context("IPv6 UDP 4789")?;

    // Another overlay: the kernel's own vxlan device on the same port with a VNI of its own.
    for (host, own, other) in [(here, 1, 2), (there, 2, 1)] {
        host.ns.ip(&format!(
            "link add other type vxlan id 9999 dstport 4789 local 192.168.50.{own} remote 192.168.50.{other}
             link set other mtu 1400 up
             address add 172.31.0.{own}/24 dev other"
        ))?;
        // The agent closes new interfaces, as they may be guests'; this one is the host's own.
        host.ns.sysctl("ipv4.conf.other.arp_ignore", "0")?;
    }
    here.ns.run("ping -n -c 3 -i 0.1 -W 2 172.31.0.2").context("another overlay on the same port")?;
    let other = Ipv4Addr::new(172, 31, 0, 2);
    ensure!(here.ns.pings(other)?, "another overlay stopped");
    a.expect_ping(b.ip()).context("our own traffic beside another overlay")?;
    a.expect_tcp(&b, 1_000_000).map(drop)
}

#[test]
fn what_is_not_ours_passes_the_xdp_program() {
    Lab::story(|lab| untouched(lab, HostOptions::default()));
}

#[test]
fn what_is_not_ours_passes_the_tc_program() {
    Lab::story(|lab| untouched(lab, HostOptions::virtual_wire().with("underlay", "mode", "\"tc\"")));
}
