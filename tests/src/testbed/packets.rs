//! Frames as they are: a packet socket for what no honest stack would send, and for seeing what arrives.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::sys;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct PacketSocket {
    socket: File,
}

impl PacketSocket {
    pub(super) fn open(interface: &str) -> Result<Self> {
        Ok(Self { socket: File::from(sys::packet_socket(interface)?) })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If the interface is down or gone.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        (&self.socket).write(frame).context("send a frame").map(drop)
    }

    /// Sends a frame; false if there is no room for it at present.
    ///
    /// # Errors
    /// If the interface is down or gone.
    pub fn try_send(&self, frame: &[u8]) -> Result<bool> {
        match (&self.socket).write(frame) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(false),
            Err(error) => Err(error).context("send a frame"),
        }
    }

    /// The next frame (seen going in or out) that `wanted` accepts, or `None` when none comes within `limit`.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn receive(&self, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
            if poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
                continue;
            }
            match (&self.socket).read(&mut buffer) {
                Ok(length) if wanted(&buffer[..length]) => return Ok(Some(buffer[..length].to_vec())),
                Ok(_) => {}
                // The interface went down: it may come back.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("receive a frame"),
            }
        }
    }
}

/// Sum of 16-bit words as IP headers use it (RFC 1071).
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An Ethernet frame.
#[must_use]
pub fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 packet without options.
#[must_use]
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = ((20 + payload.len()) as u16).to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, ttl, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    [header, payload.to_vec()].concat()
}

/// A UDP datagram for [`ipv4`], without checksum.
#[must_use]
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = ((8 + payload.len()) as u16).to_be_bytes();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &length, &[0, 0], payload].concat()
}

/// An ICMP echo request for [`ipv4`].
#[must_use]
pub fn echo_request(identifier: u16, sequence: u16) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(b"ping from the testbed");
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum);
    message
}

/// An ARP message; `operation` is 1 for a request, 2 for a reply.
#[must_use]
pub fn arp(operation: u8, mac: [u8; 6], ip: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let fixed = [0, 1, 8, 0, 6, 4, 0, operation];
    [&fixed[..], &mac, &ip.octets(), &target_mac, &target.octets()].concat()
}

/// A VXLAN frame's UDP payload (RFC 7348, section 5).
#[must_use]
pub fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let vni = vni.to_be_bytes();
    [&[8, 0, 0, 0, vni[1], vni[2], vni[3], 0], frame].concat()
}

/// The ethertype of a frame, or 0 if it is cut short.
#[must_use]
pub fn ethertype(frame: &[u8]) -> u16 {
    frame.get(12..14).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Source address, destination address and protocol of an untagged IPv4 frame.
#[must_use]
pub fn ipv4_of(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u8)> {
    let address = |at: usize| {
        frame.get(at..at + 4).map(|octets| Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]))
    };
    (ethertype(frame) == 0x0800).then_some(())?;
    Some((address(26)?, address(30)?, *frame.get(23)?))
}

/// Destination port of an untagged IPv4 UDP or TCP frame without options.
#[must_use]
pub fn destination_port_of(frame: &[u8]) -> Option<u16> {
    let at = if ethertype(frame) == 0x86dd {
        frame.get(20).filter(|protocol| **protocol == 17).map(|_| 56)?
    } else {
        ipv4_of(frame).map(|_| 36)?
    };
    frame.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
}
