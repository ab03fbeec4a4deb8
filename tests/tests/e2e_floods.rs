//! A guest that asks and asks: it hurts itself, and nobody else. And questions that are damaged.

#[path = "e2e_dhcp/story.rs"]
mod story;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::packet::{Ip6, icmp6, link_local, solicitation, udp, udp6};
use ncm_tests::testbed::{Guest, Host, Lab, eventually};
use story::{LATER, SOON, Story, dhclient, start, udhcpc};

const SERVERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2];
const ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
const GATEWAY: [u8; 16] = [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A DHCP message in its frame.
fn dhcp(of: &Guest, message: &[u8]) -> Vec<u8> {
    udp(([0; 4], 68), ([255; 4], 67), message).frame([0xff; 6], of.mac())
}

/// A DHCPv6 message, likewise.
fn dhcpv6(of: &Guest, message: &[u8]) -> Vec<u8> {
    let from = (link_local(of.mac()), 546);
    udp6(from, (SERVERS, 547), message).frame([0x33, 0x33, 0, 1, 0, 2], of.mac())
}

/// A router solicitation with those options, likewise.
fn asks_for_routers(of: &Guest, options: &[u8]) -> Vec<u8> {
    let packet = icmp6(link_local(of.mac()), ROUTERS, 133, 0, [0; 4], options);
    Ip6 { hop_limit: 255, ..packet }.frame([0x33, 0x33, 0, 0, 0, 2], of.mac())
}

fn discover(of: &Guest) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(of.mac());
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 1, 61, 3, 1, 2, 3, 255]);
    message
}

fn solicit() -> Vec<u8> {
    let mut message = vec![1, 7, 8, 9, 0, 1, 0, 4, 1, 2, 3, 4];
    message.extend([0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    message
}

/// Sends the frames in turns, as fast as it goes, as long as `meanwhile` takes.
fn while_flooding(from: &Guest, frames: &[Vec<u8>], meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let (socket, end) = (from.packets()?, AtomicBool::new(false));
    thread::scope(|scope| {
        let flood = scope.spawn(|| -> Result<u64> {
            let mut sent = 0;
            while !end.load(Ordering::Relaxed) {
                for frame in frames {
                    // Its queue may be full.
                    sent += u64::from(socket.send(frame).is_ok());
                }
            }
            Ok(sent)
        });
        let result = meanwhile();
        end.store(true, Ordering::Relaxed);
        let sent = flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        ensure!(sent > 1_000, "only {sent} frames were sent");
        result
    })
}

fn of_port(host: &Host, port: &str, reason: &str) -> Result<f64> {
    let (port, reason) = (format!("port=\"{port}\""), format!("reason=\"{reason}\""));
    host.metric(&["ncm_port_drops_packets_total{", &port, &reason])
}

#[test]
fn floods_over_both_families_hurt_who_floods_alone() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let (one, two) = (story.guest(lab, "one")?, story.guest(lab, "two")?);
        let far = story.guest(lab, "far")?;
        story.push()?;
        let mut client = udhcpc(&far)?;
        client.wait_for("event=bound address=10.1.0.13", SOON)?;
        let host = &story.net.host1;
        let floods = [
            ("DHCP", vec![dhcp(&one, &discover(&one))]),
            ("DHCPv6", vec![dhcpv6(&one, &solicit())]),
            ("router solicitations", vec![asks_for_routers(&one, &[])]),
            (
                "neighbour discovery",
                vec![
                    solicitation((one.mac(), link_local(one.mac())), GATEWAY),
                    solicitation((one.mac(), [0; 16]), GATEWAY),
                ],
            ),
        ];
        for (name, frames) in floods {
            while_flooding(&one, &frames, || {
                let mut client = udhcpc(&two)?;
                client.wait_for("event=bound address=10.1.0.12", LATER)?;
                let mut client = dhclient(&two, "-6")?;
                client.wait_for("event=BOUND6", LATER)?;
                drop(client);
                let shown = two.ns.run("rdisc6 -1 eth0")?;
                ensure!(shown.contains("fd00:1::/64"), "{shown}");
                two.expect_ping([10, 1, 0, 13])
            })
            .with_context(|| format!("while a guest floods with {name}"))?;
            ensure!(of_port(host, "two", "hand_up_limited")? == 0.0, "{name} cost another guest its share");
            // The next time it begins anew.
            for lease in ["leases/two6", "leases/two6.pid"] {
                let _ = fs::remove_file(lab.run_directory().join(lease));
            }
            two.ns.run("ip -6 address flush dev eth0 scope global")?;
            two.ns.run("ip -4 address flush dev eth0")?;
        }
        ensure!(of_port(host, "one", "hand_up_limited")? > 1_000.0, "what is held back is counted");
        // It is heard again as soon as it behaves.
        let mut client = udhcpc(&one)?;
        client.wait_for("event=bound address=10.1.0.11", SOON).context("after its floods")?;
        ensure!(one.ns.run("rdisc6 -1 eth0")?.contains("fd00:1::/64"), "an advertisement was expected");
        Ok(())
    });
}

#[test]
fn damaged_questions_are_counted_and_not_answered() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let one = story.guest(lab, "one")?;
        story.push()?;
        let (whole, whole6) = (discover(&one), solicit());
        // Whole ones are answered, so that the silence after others says something.
        let socket = one.packets()?;
        let is_answer = |frame: &[u8]| {
            let to_client = |at: usize, port: u16| frame.get(at..at + 2) == Some(&port.to_be_bytes()[..]);
            match frame.get(12..14) {
                Some([8, 0]) => frame[23] == 17 && to_client(36, 68),
                Some([0x86, 0xdd]) => {
                    let to_one = frame[..6] == one.mac();
                    to_one && (frame[20] == 17 && to_client(56, 546) || frame.get(54) == Some(&134))
                }
                _ => false,
            }
        };
        let option = [&[1, 1][..], &one.mac()].concat();
        for frame in [dhcp(&one, &whole), dhcpv6(&one, &whole6), asks_for_routers(&one, &option)] {
            socket.send(&frame)?;
            ensure!(socket.receive(SOON, is_answer)?.is_some(), "an answer was expected to {frame:x?}");
        }
        // The guest's own system asks as well.
        while socket.receive(Duration::from_secs(1), is_answer)?.is_some() {}
        let host = &story.net.host1;
        let refused = || host.metric(&["ncm_guest_questions_refused_total"]);
        let cut = |message: &[u8], less: usize| message[..message.len() - less].to_vec();
        let frames = [
            // Without its end, in the middle of an option, of its header, of the fixed part.
            dhcp(&one, &cut(&whole, 1)),
            dhcp(&one, &cut(&whole, 3)),
            dhcp(&one, &cut(&whole, 5)),
            dhcp(&one, &whole[..239]),
            dhcp(&one, b""),
            dhcpv6(&one, &cut(&whole6, 1)),
            dhcpv6(&one, &cut(&whole6, 13)),
            dhcpv6(&one, &whole6[..3]),
            asks_for_routers(&one, &option[..7]),
            asks_for_routers(&one, &[1, 0, 0, 0, 0, 0, 0, 0]),
        ];
        for (number, frame) in frames.iter().enumerate() {
            let before = refused()?;
            socket.send(frame)?;
            eventually(&format!("question {number} is counted"), SOON, || Ok(refused()? > before))?;
        }
        ensure!(socket.receive(Duration::from_millis(500), is_answer)?.is_none(), "no answer was expected");
        // Cut in their headers they do not even come to the agent.
        let mut frame = dhcp(&one, &whole);
        frame[39] -= 1;
        frame[38] += 1;
        host.expect_drop("malformed", || socket.send(&frame))?;
        let mut client = start(&one, "udhcpc -f -q -i eth0 -s /run/script -t 20 -T 1 -A 1")?;
        client.wait_for("event=bound address=10.1.0.11", SOON)?;
        Ok(())
    });
}
