//! Guests: a network namespace whose one interface is a veth or a tap on a host.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::format_mac;
use super::lab::{Lab, eventually};
use super::namespace::Namespace;
use super::packets::{self, PacketSocket};
use super::process::Process;
use super::tap::Shuttle;

/// What a guest is to be.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Name of its namespace.
    pub name: String,
    /// Its interface on the host.
    pub interface: String,
    /// MAC of its own interface, which is called `eth0`.
    pub mac: [u8; 6],
    /// Addresses with prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default route over IPv4.
    pub gateway: Option<Ipv4Addr>,
    /// Default route over IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// A tap instead of a veth.
    pub tap: bool,
}

/// A guest; dropping it removes its interface from the host.
#[derive(Debug)]
pub struct Guest {
    /// Its network stack.
    pub ns: Namespace,
    host: Namespace,
    spec: GuestSpec,
    shuttle: Option<Shuttle>,
}

impl Guest {
    /// Makes a guest's network stack without plugging it in.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn unplugged(lab: &Lab, host: &Namespace, spec: GuestSpec) -> Result<Self> {
        let ns = lab.namespace(&spec.name)?;
        Ok(Self { ns, host: host.clone(), spec, shuttle: None })
    }

    /// Makes a guest and plugs it in.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(lab: &Lab, host: &Namespace, spec: GuestSpec) -> Result<Self> {
        let mut guest = Self::unplugged(lab, host, spec)?;
        guest.plug()?;
        Ok(guest)
    }

    /// Creates the guest's interface, on the host and in the guest, as a hypervisor does when it starts a guest.
    ///
    /// # Errors
    /// If the host already has an interface of that name.
    pub fn plug(&mut self) -> Result<()> {
        self.plug_down()?;
        self.host.run(&format!("ip link set {} up", self.spec.interface)).map(drop)
    }

    /// Like [`Self::plug`], leaving the host's side down for the agent to bring up.
    ///
    /// # Errors
    /// If the host already has an interface of that name.
    pub fn plug_down(&mut self) -> Result<()> {
        let Self { ns, host, spec, shuttle } = self;
        let (interface, mac, mtu) = (&spec.interface, format_mac(spec.mac), spec.mtu);
        if spec.tap {
            *shuttle = Some(Shuttle::connect((host, interface), (ns, "eth0"))?);
        } else {
            host.run(&format!(
                "ip link add {interface} mtu {mtu} type veth peer name eth0 mtu {mtu} address {mac} netns {}",
                ns.name()
            ))?;
            // Lets XDP programs on the host redirect frames to the guest.
            ns.features("eth0", "gro on")?;
        }
        ns.ip(&format!("link set eth0 address {mac} mtu {mtu}\nlink set eth0 up"))?;
        host.run(&format!("ip link set {interface} mtu {mtu}"))?;
        for (address, length) in &spec.addresses {
            let usable = if address.is_ipv6() { "nodad" } else { "" };
            ns.run(&format!("ip address add {address}/{length} dev eth0 {usable}"))?;
        }
        if let Some(gateway) = spec.gateway {
            ns.run(&format!("ip route replace default via {gateway} dev eth0"))?;
        }
        if let Some(gateway) = spec.gateway6 {
            ns.run(&format!("ip -6 route replace default via {gateway} dev eth0"))?;
        }
        Ok(())
    }

    /// Removes the guest's interface, as when the guest is powered off.
    ///
    /// # Errors
    /// If there is none.
    pub fn unplug(&mut self) -> Result<()> {
        if self.shuttle.take().is_some() {
            return Ok(());
        }
        self.host.run(&format!("ip link del {}", self.spec.interface)).map(drop)
    }

    /// Takes the guest to another host, running as it is: what it has open stays open.
    ///
    /// # Errors
    /// If the other host has an interface of that name.
    pub fn move_to(&mut self, host: &Namespace) -> Result<()> {
        self.unplug()?;
        self.host = host.clone();
        self.plug()
    }

    /// What it was made as.
    #[must_use]
    pub fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    /// Its first IPv4 address.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        let v4 = |(address, _): &(IpAddr, u8)| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        self.spec.addresses.iter().find_map(v4).unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// Its first IPv6 address.
    #[must_use]
    pub fn ip6(&self) -> Ipv6Addr {
        let v6 = |(address, _): &(IpAddr, u8)| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        };
        self.spec.addresses.iter().find_map(v6).unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    /// Its MAC.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.spec.mac
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.ns.name()
    }

    /// A packet socket on its interface.
    ///
    /// # Errors
    /// If it is not plugged in.
    pub fn packets(&self) -> Result<PacketSocket> {
        self.ns.packets("eth0")
    }

    /// Expects a ping to be answered, within five seconds of trying.
    ///
    /// # Errors
    /// If it is not.
    pub fn expect_ping(&self, to: impl Into<IpAddr>) -> Result<()> {
        let to = to.into();
        eventually(&format!("{} pings {to}", self.name()), Duration::from_secs(5), || self.ns.pings(to))
    }

    /// Expects that no ping is answered any more, within five seconds; then one more is sent to be sure.
    ///
    /// # Errors
    /// If one still is.
    pub fn expect_no_ping(&self, to: impl Into<IpAddr>) -> Result<()> {
        let to = to.into();
        let what = format!("{} gets no answer from {to}", self.name());
        eventually(&what, Duration::from_secs(5), || self.ns.pings(to).map(|answered| !answered))?;
        ensure!(!self.ns.pings(to)?, "{what}: a ping was answered again");
        Ok(())
    }

    /// Expects every one of `count` pings, 10 ms apart, to be answered.
    ///
    /// # Errors
    /// If one is lost.
    pub fn expect_steady_ping(&self, to: impl Into<IpAddr>, count: u32) -> Result<()> {
        let to = to.into();
        self.ns.run(&format!("ping -n -q -c {count} -i 0.01 -W 1 {to}")).and_then(|shown| {
            ensure!(shown.contains(" 0% packet loss"), "{} lost pings to {to}:\n{shown}", self.name());
            Ok(())
        })
    }

    /// Pings on, 50 times a second, until it is asked how it went.
    ///
    /// # Errors
    /// If `ping` cannot be started.
    pub fn begin_ping(&self, to: impl Into<IpAddr>) -> Result<RunningPing> {
        let to = to.into();
        let words = ["ping", "-n", "-i", "0.02", "-W", "1", &to.to_string()].map(str::to_owned);
        let mut process = self.ns.start(&words)?;
        process.wait_for(&format!("from {to}"), Duration::from_secs(5))?;
        Ok(RunningPing { process, what: format!("{} to {to}", self.name()) })
    }

    /// The MAC that answers ARP for an address, or `None` when nobody does within a second.
    ///
    /// # Errors
    /// If the guest is not plugged in.
    pub fn arp(&self, ip: Ipv4Addr) -> Result<Option<[u8; 6]>> {
        self.arp_from(self.ip(), ip)
    }

    /// Like [`Self::arp`], asking as `sender`; as 0.0.0.0 it is a probe for duplicate addresses (RFC 5227).
    ///
    /// # Errors
    /// If the guest is not plugged in.
    pub fn arp_from(&self, sender: Ipv4Addr, ip: Ipv4Addr) -> Result<Option<[u8; 6]>> {
        let socket = self.packets()?;
        let question = packets::arp(1, self.mac(), sender, [0; 6], ip);
        socket.send(&packets::ethernet([0xff; 6], self.mac(), 0x0806, &question))?;
        let reply = socket.receive(Duration::from_secs(1), |frame| {
            packets::ethertype(frame) == 0x0806
                && frame.get(20..22) == Some(&[0, 2])
                && frame.get(28..32) == Some(&ip.octets())
        })?;
        Ok(reply.and_then(|frame| frame.get(22..28)?.try_into().ok()))
    }

    /// Sends `bytes` over TCP to another guest and checks that they arrive as they were sent; returns the time.
    ///
    /// # Errors
    /// If the connection fails or the bytes differ.
    pub fn expect_tcp(&self, to: &Self, bytes: usize) -> Result<Duration> {
        self.expect_tcp_to(to, SocketAddr::from((to.ip(), 0)), bytes)
    }

    /// Like [`Self::expect_tcp`], to one of the other's addresses, on a port of the caller's choice or any (0).
    ///
    /// # Errors
    /// If the connection fails or the bytes differ.
    pub fn expect_tcp_to(&self, to: &Self, address: SocketAddr, bytes: usize) -> Result<Duration> {
        let listener = to.ns.listen(address)?;
        let address = listener.local_addr()?;
        let begin = Instant::now();
        let receiver = std::thread::spawn(move || -> Result<(usize, u64)> {
            listener.set_nonblocking(true)?;
            let mut stream = loop {
                match listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        ensure!(begin.elapsed() < Duration::from_secs(10), "no connection came within 10 s");
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => return Err(error).context("accept"),
                }
            };
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let (mut count, mut sum, mut buffer) = (0, 0_u64, vec![0; 1 << 16]);
            loop {
                let length = stream.read(&mut buffer).context("receive")?;
                if length == 0 {
                    return Ok((count, sum));
                }
                for (at, byte) in buffer[..length].iter().enumerate() {
                    sum = sum.wrapping_add(u64::from(*byte) * ((count + at) as u64 | 1));
                }
                count += length;
            }
        });
        let what = || format!("TCP from {} to {} ({address})", self.name(), to.name());
        let sent = self.ns.inside(|| {
            let mut stream =
                TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("connect")?;
            stream.set_write_timeout(Some(Duration::from_secs(10)))?;
            let (mut sum, mut count) = (0_u64, 0_usize);
            let mut chunk = vec![0; 1 << 16];
            while count < bytes {
                let length = chunk.len().min(bytes - count);
                for (at, byte) in chunk[..length].iter_mut().enumerate() {
                    *byte = ((count + at) as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
                    sum = sum.wrapping_add(u64::from(*byte) * ((count + at) as u64 | 1));
                }
                stream.write_all(&chunk[..length]).context("send")?;
                count += length;
            }
            Ok(sum)
        });
        let received = receiver.join();
        let sum = sent.with_context(what)?;
        let Ok(received) = received else { bail!("{}: the receiver panicked", what()) };
        let received = received.with_context(what)?;
        ensure!(
            received == (bytes, sum),
            "{}: sent {bytes} bytes with sum {sum:#x}, received {} with sum {:#x}",
            what(),
            received.0,
            received.1
        );
        Ok(begin.elapsed())
    }

    /// Whether a TCP connection to an address is established within a second.
    ///
    /// # Errors
    /// If the guest's namespace cannot be entered.
    pub fn connects(&self, to: SocketAddr) -> Result<bool> {
        self.ns.inside(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()))
    }

    /// Sends an IPv4 packet in a frame of its own making from the guest's MAC to that of `to`.
    ///
    /// # Errors
    /// If the interface is down.
    pub fn send_ipv4(&self, to: [u8; 6], packet: &[u8]) -> Result<()> {
        self.packets()?.send(&packets::ethernet(to, self.mac(), 0x0800, packet))
    }
}

/// A ping that runs on.
#[derive(Debug)]
pub struct RunningPing {
    process: Process,
    what: String,
}

impl RunningPing {
    /// Waits until `count` more pings were answered.
    ///
    /// # Errors
    /// If they are not within ten seconds.
    pub fn goes_on(&self, count: u32) -> Result<()> {
        let answered =
            || self.process.output().lines().iter().filter(|line| line.contains("bytes from")).count();
        let wanted = answered() + count as usize;
        eventually(
            &format!("{}: {count} more pings are answered", self.what),
            Duration::from_secs(10),
            || Ok(answered() >= wanted),
        )
    }

    /// Ends it; how many were sent and how many were answered.
    ///
    /// # Errors
    /// If `ping` does not say.
    pub fn end(mut self) -> Result<(u32, u32)> {
        self.process.signal(nix::sys::signal::Signal::SIGINT)?;
        let line = self.process.output().wait_for("packets transmitted", Duration::from_secs(5));
        let line = line.with_context(|| format!("{}: ping did not sum up", self.what))?;
        self.process.wait(Duration::from_secs(5))?;
        let mut numbers = line.split(|letter: char| !letter.is_ascii_digit()).filter(|word| !word.is_empty());
        let mut next = || numbers.next().and_then(|word| word.parse().ok()).context("no figures");
        Ok((next()?, next()?))
    }

    /// Ends it and expects every ping to have been answered, but for the last, which may be under way.
    ///
    /// # Errors
    /// If one was lost.
    pub fn expect_no_loss(self) -> Result<()> {
        let what = self.what.clone();
        let (sent, answered) = self.end()?;
        ensure!(answered + 1 >= sent && answered > 0, "{what}: {sent} pings sent, {answered} answered");
        Ok(())
    }
}
