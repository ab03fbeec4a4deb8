//! The packet parser: any bytes as a frame from a guest, and as a tunnel frame from the wire.
//!
//! Found here would be: a panic, a read beyond the frame (it ends at a page that may not be read), a header that is read
//! otherwise than etherparse reads it, a lowered TTL whose checksum is wrong.
#![no_main]

use std::{hint::black_box, slice, sync::LazyLock};

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice, UdpHeaderSlice};
use libfuzzer_sys::fuzz_target;
use ncm_ebpf::headers::{
    arp::Arp,
    ethernet::{self, Ethernet, ethertype},
    nd::Neighbour,
    packet::{Packet, class, protocol},
    vxlan::{self, Endpoints, Outer},
};

const ENDPOINT: [u8; 4] = [192, 168, 50, 1];
const ENDPOINT_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const PORT: [u8; 2] = 4789u16.to_be_bytes();
const US: Endpoints<'_> = Endpoints { v4: &ENDPOINT, v6: &ENDPOINT_V6, port: PORT };

fuzz_target!(|data: &[u8]| {
    let frame = GUARDED.hold(data);
    overlay(frame, 0);
    if let Some(outer) = Outer::parse(frame, US) {
        assert!(outer.vni <= ncm_common::MAX_VNI);
        assert_eq!(outer.is_over_v6(), !outer.source.is_v4());
        overlay(frame, if outer.is_over_v6() { vxlan::LEN_V6 } else { vxlan::LEN_V4 });
    }
});

/// A guest's frame that starts at `offset`.
fn overlay(frame: &[u8], offset: usize) {
    let Some(header) = Ethernet::parse(frame, offset) else {
        assert!(frame.len() < offset + ethernet::LEN);
        return;
    };
    assert_eq!(frame[offset..offset + 6], header.destination.bytes());
    assert_eq!(frame[offset + 6..offset + 12], header.source.bytes());
    let payload = offset + ethernet::LEN;
    match header.ethertype {
        ethertype::ARP => {
            black_box(Arp::parse(frame, payload).map(|arp| arp.answer(header.destination)));
        }
        ethertype::IPV4 => ipv4(frame, payload, &header),
        ethertype::IPV6 => {
            ipv6(frame, payload, &header);
            black_box(Neighbour::parse(frame, payload + 40, 32));
        }
        _ => {}
    }
}

fn ipv4(frame: &[u8], offset: usize, ethernet: &Ethernet) {
    let mut ip = Packet::EMPTY;
    if ip.read_v4(frame, offset, ethernet).is_err() {
        return;
    }
    let packet = &frame[offset..offset + ip.length as usize];
    let theirs = Ipv4HeaderSlice::from_slice(packet).expect("etherparse refuses a header that we take");
    assert_eq!(theirs.source(), ip.source.as_v4().bytes());
    assert_eq!(theirs.destination(), ip.destination.as_v4().bytes());
    assert_eq!(theirs.slice().len(), ip.transport as usize);
    assert_eq!((theirs.ttl(), theirs.protocol().0), (ip.ttl, ip.protocol));
    assert_eq!(theirs.is_fragmenting_payload(), ip.is_fragment());
    assert_eq!(theirs.fragments_offset().value() == 0, ip.class & class::LATER == 0);
    lower_ttl(&ip, theirs.slice());
    transport(&ip, &packet[ip.transport as usize..]);
}

fn ipv6(frame: &[u8], offset: usize, ethernet: &Ethernet) {
    let mut ip = Packet::EMPTY;
    if ip.read_v6(frame, offset, ethernet).is_err() {
        return;
    }
    let packet = &frame[offset..offset + ip.length as usize];
    let theirs = Ipv6HeaderSlice::from_slice(packet).expect("etherparse refuses a header that we take");
    assert_eq!(theirs.source(), ip.source.bytes());
    assert_eq!(theirs.destination(), ip.destination.bytes());
    assert_eq!(theirs.hop_limit(), ip.ttl);
    transport(&ip, &packet[ip.transport as usize..]);
}

/// What follows either version's headers.
fn transport(ip: &Packet, segment: &[u8]) {
    if ip.begins(protocol::TCP) {
        let tcp = TcpHeaderSlice::from_slice(segment).expect("etherparse refuses a TCP header that we take");
        assert_eq!((tcp.source_port(), tcp.destination_port()), (ip.source_port(), ip.destination_port()));
        assert_eq!(tcp.slice().len(), usize::from(ip.header_len));
        assert_eq!(tcp.checksum(), u16::from_be(ip.checksum));
    } else if ip.begins(protocol::UDP) {
        let udp = UdpHeaderSlice::from_slice(segment).expect("etherparse refuses a UDP header that we take");
        assert_eq!((udp.source_port(), udp.destination_port()), (ip.source_port(), ip.destination_port()));
        assert_eq!(udp.checksum(), u16::from_be(ip.checksum));
    } else if ip.is_icmp() {
        assert_eq!(ip.icmp, segment[..2]);
    }
    black_box((ip.is_partial(), ip.is_icmp_error(), ip.flow_hash()));
}

/// A header whose checksum is right has a right one after its TTL has been lowered too.
fn lower_ttl(ip: &Packet, header: &[u8]) {
    let mut lowered = header.to_vec();
    if ip.ttl == 0 || sum(&lowered) != 0xffff {
        return;
    }
    lowered[8..12].copy_from_slice(&ip.with_ttl(ip.ttl - 1));
    assert_eq!(sum(&lowered), 0xffff, "the checksum of a lowered TTL");
}

/// The ones' complement sum of a header: 0xffff if its checksum is right.
fn sum(header: &[u8]) -> u32 {
    let mut sum: u32 =
        header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

static GUARDED: LazyLock<Guarded> = LazyLock::new(Guarded::new);

/// Memory that ends at a page which may not be read: a parser that reads beyond the frame is killed at once.
struct Guarded {
    /// Address of the forbidden page.
    end: usize,
}

impl Guarded {
    const READABLE: usize = 1 << 17;
    const PAGE: usize = 1 << 16;

    fn new() -> Self {
        // SAFETY: an anonymous mapping of its own, of which only the upper part is then made inaccessible.
        let start = unsafe {
            let all = Self::READABLE + Self::PAGE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start =
                libc::mmap(std::ptr::null_mut(), all, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(start.add(Self::READABLE), Self::PAGE, libc::PROT_NONE), 0);
            start as usize
        };
        Self { end: start + Self::READABLE }
    }

    /// Copies a frame to where its end is the last byte that may be read. libFuzzer runs one input at a time.
    fn hold(&self, data: &[u8]) -> &[u8] {
        let len = data.len().min(Self::READABLE);
        let start = (self.end - len) as *mut u8;
        // SAFETY: the `len` bytes before the end are mapped, readable and writable, and nobody else uses them.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), start, len);
            slice::from_raw_parts(start, len)
        }
    }
}
