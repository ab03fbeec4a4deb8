//! The rarer states of DHCP clients: rebinding, declining, informing, confirming, and being told at once.

#[path = "e2e_dhcp/story.rs"]
mod story;

use std::fs;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_tests::testbed::{Lab, Process, eventually, packets};
use story::{LATER, SOON, Story, dhclient, start, udhcpc};

/// Waits until the client has printed a line with `text` once more than `before` times.
fn once_more(client: &Process, text: &str, before: usize) -> Result<()> {
    eventually(&format!("another line with `{text}`"), LATER, || Ok(count(client, text) > before))
}

fn count(client: &Process, text: &str) -> usize {
    client.output().lines().iter().filter(|line| line.contains(text)).count()
}

#[test]
fn a_client_whose_renewals_nobody_answers_keeps_its_address_and_rebinds() {
    Lab::story(|lab| {
        let mut story = Story::new(lab)?;
        story.options = vec![("lease-time", "120"), ("T1", "3"), ("T2", "6")];
        let one = story.guest(lab, "one")?;
        story.push()?;
        let mut client = dhclient(&one, "")?;
        client.wait_for("event=BOUND address=10.1.0.11", SOON)?;
        story.net.host1.stop()?;
        // Broadcast again, after renewals that went to the server alone.
        let everybody = "DHCPREQUEST for 10.1.0.11 on eth0 to 255.255.255.255";
        let before = count(&client, everybody);
        once_more(&client, everybody, before)?;
        ensure!(count(&client, "DHCPREQUEST for 10.1.0.11 on eth0 to 10.1.0.1") > 0, "it renewed first");
        let kept = one.ns.run("ip address show dev eth0")?;
        ensure!(kept.contains("10.1.0.11/24"), "the address is kept while nobody answers:\n{kept}");
        let answer = "DHCPACK of 10.1.0.11 from 10.1.0.1";
        let before = count(&client, answer);
        story.net.host1.start()?;
        story.push()?;
        once_more(&client, answer, before)
    });
}

#[test]
fn a_client_whose_renewal_over_ipv6_nobody_answers_rebinds() {
    Lab::story(|lab| {
        let mut story = Story::new(lab)?;
        // It renews after half of it, and rebinds when that has not been answered for about ten seconds: well before the end.
        story.options6 = vec![("lease-time", "30")];
        let two = story.guest(lab, "two")?;
        story.push()?;
        let mut client = dhclient(&two, "-6")?;
        client.wait_for("event=BOUND6", SOON)?;
        story.net.host1.stop()?;
        client.wait_for("XMT: Renew", LATER)?;
        story.net.host1.start()?;
        story.push()?;
        client.wait_for("XMT: Rebind", LATER)?;
        client.wait_for("event=REBIND6", LATER).map(drop).with_context(|| {
            let said = client.output().lines();
            let told = |line: &&String| ["event=", "XMT: R", "RCV: R"].iter().any(|word| line.contains(word));
            said.iter().filter(told).cloned().collect::<Vec<_>>().join("\n")
        })
    });
}

#[test]
fn a_client_that_finds_its_address_taken_declines_it_and_that_is_counted() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let one = story.guest(lab, "one")?;
        story.push()?;
        let host = &story.net.host1;
        // No other guest could say so: it comes from the host's end of the guest's own interface.
        let wire = host.ns.packets(&one.spec().interface)?;
        let (taken, other) = (Ipv4Addr::new(10, 1, 0, 11), [0x02, 0xee, 0, 0, 0, 1]);
        let claim = packets::arp(2, other, taken, one.mac(), Ipv4Addr::UNSPECIFIED);
        let claim = packets::ethernet(one.mac(), other, 0x0806, &claim);
        let end = AtomicBool::new(false);
        let declined = thread::scope(|scope| {
            let claims = scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    wire.send(&claim)?;
                    thread::sleep(Duration::from_millis(20));
                }
                Ok::<_, anyhow::Error>(())
            });
            let outcome = (|| {
                let mut client = start(&one, "udhcpc -f -a -i eth0 -s /run/script -t 20 -T 1 -A 1")?;
                client.wait_for("declining", SOON)?;
                eventually("it is counted", SOON, || Ok(host.metric(&["ncm_guest_declines_total"])? >= 1.0))
            })();
            end.store(true, Ordering::Relaxed);
            claims.join().map_err(|_| anyhow::anyhow!("the claims panicked"))?.and(outcome)
        });
        declined?;
        // With the address free again the same one is leased.
        let mut client = udhcpc(&one)?;
        client.wait_for("event=bound address=10.1.0.11", SOON).map(drop)
    });
}

#[test]
fn a_client_with_an_address_of_its_own_asks_for_the_rest() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let (one, two) = (story.guest(lab, "one")?, story.guest(lab, "two")?);
        story.push()?;
        one.ns.run("mount --bind /run/leases /var/lib/dhcpcd")?;
        let mut v4 =
            start(&one, "dhcpcd -4 -B -d -f /run/leases/conf -c /bin/true --inform=10.1.0.11/24 eth0")?;
        v4.wait_for("approval for 10.1.0.11", SOON)?;
        // DHCPv6's information-request.
        let mut v6 = dhclient(&two, "-6 -S")?;
        v6.wait_for("XMT: Info-Request", SOON)?;
        v6.wait_for("dns6=fd00::53", SOON).map(drop)
    });
}

#[test]
fn a_client_that_comes_back_to_its_link_has_its_address_confirmed() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let one = story.guest(lab, "one")?;
        story.push()?;
        let mut client = dhclient(&one, "-6")?;
        client.wait_for("event=BOUND6", SOON)?;
        drop(client);
        one.ns.run("ip -6 address flush dev eth0 scope global")?;
        let mut client = dhclient(&one, "-6")?;
        client.wait_for("XMT: Confirm", SOON)?;
        client.wait_for("RCV: Reply", SOON)?;
        let event = client.wait_for("event=BOUND6", SOON)?;
        ensure!(event.contains("v6=fd00:1::11"), "{event}");
        drop(client);
        let files = "-lf /run/leases/one6 -pf /run/leases/one6.pid -cf /run/leases/conf";
        let words = format!("dhclient -6 -v -r -sf /run/script {files} eth0");
        let released = one.ns.outcome(&words.split_whitespace().collect::<Vec<_>>())?;
        // This client goes without waiting for the reply.
        ensure!(released.stderr.contains("XMT: Release on eth0"), "{released:?}");
        Ok(())
    });
}

#[test]
fn clients_that_want_it_are_told_at_once() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let one = story.guest(lab, "one")?;
        story.push()?;
        let conf = lab.run_directory().join("leases/rapid");
        fs::write(conf, "option rapid_commit\nnoarp\n").context("write the client's configuration")?;
        one.ns.run("mount --bind /run/leases /var/lib/dhcpcd")?;
        let mut client = start(&one, "dhcpcd -B -d -f /run/leases/rapid -c /bin/true eth0")?;
        client.wait_for("leased 10.1.0.11 for 86400 seconds", SOON)?;
        client.wait_for("adding address fd00:1::11/128", SOON)?;
        for asked_twice in ["sending REQUEST", "sending REQUEST6"] {
            ensure!(count(&client, asked_twice) == 0, "`{asked_twice}`: it was told by the first answer");
        }
        Ok(())
    });
}
