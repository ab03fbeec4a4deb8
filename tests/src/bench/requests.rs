//! Small requests and their answers, and connections that carry one of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::kernel::Pair;

/// After how long a request or a connection is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections that are open at the same time.
const CLIENTS: usize = 4;

/// Who answers: some more than ask, as now and then one is held up by a connection that its client has given up.
const SERVERS: usize = 32;

/// One byte there and one back over one connection, one after the other: how many a second; and microseconds that one takes, the
/// median and what one in a hundred exceeds.
pub(super) fn tcp(pair: &Pair, time: Duration) -> Result<[f64; 3]> {
    let listener = pair.b.ns.listen(SocketAddr::new(IpAddr::V4(pair.b.ip()), 0))?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        Ok(())
    });
    let mut stream = pair.a.ns.inside(|| Ok(TcpStream::connect_timeout(&address, PATIENCE)?))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [1];
    let figures = timed(time, || {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)
    })?;
    drop(stream);
    echo.join().map_err(|_| anyhow!("the echo panicked"))??;
    Ok(figures)
}

/// The same with datagrams of 64 bytes.
pub(super) fn udp(pair: &Pair, time: Duration) -> Result<[f64; 3]> {
    let server = pair.b.ns.udp(SocketAddr::new(IpAddr::V4(pair.b.ip()), 0))?;
    let client = pair.a.ns.udp(SocketAddr::new(IpAddr::V4(pair.a.ip()), 0))?;
    client.connect(server.local_addr()?)?;
    client.set_read_timeout(Some(PATIENCE))?;
    let echo = std::thread::spawn(move || -> Result<()> {
        let mut bytes = [0; 64];
        loop {
            let (length, from) = server.recv_from(&mut bytes)?;
            if length < bytes.len() {
                return Ok(());
            }
            server.send_to(&bytes, from)?;
        }
    });
    let mut bytes = [1; 64];
    let figures = timed(time, || {
        client.send(&bytes)?;
        client.recv(&mut bytes).map(drop)
    })?;
    client.send(&[0])?;
    echo.join().map_err(|_| anyhow!("the echo panicked"))??;
    Ok(figures)
}

/// Requests for as long as that.
fn timed(time: Duration, mut request: impl FnMut() -> std::io::Result<()>) -> Result<[f64; 3]> {
    let (begin, mut times) = (Instant::now(), Vec::new());
    let mut last = begin;
    while last - begin < time {
        request().context("no answer")?;
        let now = Instant::now();
        times.push(now - last);
        last = now;
    }
    let rate = times.len() as f64 / (last - begin).as_secs_f64();
    times.sort_unstable();
    let microseconds = |at: usize| times[at.min(times.len() - 1)].as_secs_f64() * 1e6;
    Ok([rate, microseconds(times.len() / 2), microseconds(times.len() * 99 / 100)])
}

/// Connections a second: each is made, carries a byte there and one back, and is closed; some clients do so at the same time.
pub(super) fn connections(pair: &Pair, time: Duration) -> Result<[f64; 1]> {
    // Ports that were used a moment ago are free again only after a minute.
    pair.a.ns.sysctl("ipv4.ip_local_port_range", "1024 65535")?;
    let listener = pair.b.ns.listen(SocketAddr::new(IpAddr::V4(pair.b.ip()), 0))?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        for _ in 0..SERVERS {
            scope.spawn(|| serve(&listener));
        }
        let counted = pair.a.ns.inside(|| {
            let begin = Instant::now();
            let clients: Vec<_> = std::thread::scope(|scope| {
                let clients = [(); CLIENTS].map(|()| scope.spawn(|| connect(address, begin, time)));
                clients.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
            });
            let (mut count, spent) = (0, begin.elapsed().as_secs_f64());
            for client in clients {
                count += client.map_err(|_| anyhow!("a client panicked"))??;
            }
            Ok(f64::from(count) / spent)
        });
        // Wakes the servers, which wait for connections.
        nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both)?;
        Ok([counted?])
    })
}

/// Makes connections until it is time. (A thread is in the namespace of the one that starts it.) Those that are reset do not count:
/// a server's kernel does so to one in some thousands, when two processors have the first packets of it at once.
fn connect(address: SocketAddr, begin: Instant, time: Duration) -> Result<u32> {
    let (mut count, mut reset) = (0, 0);
    while begin.elapsed() < time {
        match exchange(address) {
            Ok(()) => count += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionReset && reset <= count / 100 => reset += 1,
            Err(error) => return Err(error).context(format!("connection {count} ({reset} were reset)")),
        }
    }
    Ok(count)
}

/// A connection with a byte there and one back.
fn exchange(address: SocketAddr) -> std::io::Result<()> {
    let (mut stream, mut byte) = (TcpStream::connect(address)?, [1]);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)
}

/// Answers connections until the listener is shut down.
fn serve(listener: &TcpListener) {
    let mut byte = [0];
    while let Ok((mut stream, _)) = listener.accept() {
        // What fails here, the client misses and tells. (Connection tracking may take a client's last words for invalid.)
        let _without = stream.set_read_timeout(Some(PATIENCE));
        if stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {
            let _closed_by_the_client = stream.read(&mut byte);
        }
    }
}
