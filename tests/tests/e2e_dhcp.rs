//! Guests that boot with nothing but DHCP, DHCPv6 and router advertisements: real clients against the agent.

#[path = "e2e_dhcp/story.rs"]
mod story;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::{DhcpConfiguration, DhcpState, OperationType};
use ncm_tests::testbed::{Lab, eventually, format_mac, guest_mac, packets};
use story::{LATER, SOON, Story, dhclient, expect_none_refused, start, udhcpc};

#[test]
fn udhcpc_boots_a_guest_that_reaches_others() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let (one, far) = (story.guest(lab, "one")?, story.guest(lab, "far")?);
        story.push()?;
        let mut client = udhcpc(&one)?;
        let bound = client.wait_for("event=bound", SOON)?;
        for part in [
            "address=10.1.0.11",
            "router=10.1.0.1",
            "dns=9.9.9.9 8.8.4.4",
            "mtu=1450",
            "lease=86400",
            "host=one",
        ] {
            ensure!(bound.contains(part), "`{part}` was expected in: {bound}");
        }
        let mut other = udhcpc(&far)?;
        other.wait_for("event=bound address=10.1.0.13", SOON)?;
        one.expect_ping([10, 1, 0, 13])
    });
}

#[test]
fn udhcpc_renews_its_lease() {
    Lab::story(|lab| {
        let mut story = Story::new(lab)?;
        story.options = vec![("lease-time", "10")];
        let one = story.guest(lab, "one")?;
        story.push()?;
        let mut client = udhcpc(&one)?;
        client.wait_for("event=bound address=10.1.0.11", SOON)?;
        client.wait_for("event=renew address=10.1.0.11", LATER)?;
        Ok(())
    });
}

#[test]
fn dhclient_boots_renews_and_gives_back() {
    Lab::story(|lab| {
        let mut story = Story::new(lab)?;
        story.options = vec![("lease-time", "10"), ("ntp-server", "10.1.0.99")];
        let one = story.guest(lab, "one")?;
        story.push()?;
        let mut client = dhclient(&one, "")?;
        client.wait_for("event=BOUND address=10.1.0.11 router=10.1.0.1 dns=9.9.9.9 8.8.4.4", SOON)?;
        client.wait_for("event=RENEW address=10.1.0.11", SOON)?;
        drop(client);
        let files = "-lf /run/leases/one4 -pf /run/leases/one4.pid -cf /run/leases/conf";
        let released = one.ns.outcome(
            &format!("dhclient -v -r -sf /run/script {files} eth0").split_whitespace().collect::<Vec<_>>(),
        )?;
        ensure!(released.stderr.contains("DHCPRELEASE of 10.1.0.11"), "{}", released.stderr);
        Ok(())
    });
}

#[test]
fn a_guest_that_reboots_with_another_networks_lease_is_told_and_gets_its_own() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let one = story.guest(lab, "one")?;
        story.push()?;
        let lease = r#"lease {
  interface "eth0";
  fixed-address 192.168.77.5;
  option subnet-mask 255.255.255.0;
  option dhcp-lease-time 864000;
  renew 6 2037/01/01 00:00:00;
  rebind 6 2037/01/01 00:00:00;
  expire 6 2037/01/01 00:00:00;
}
"#;
        fs::write(lab.run_directory().join("leases/one4"), lease)?;
        let mut client = dhclient(&one, "")?;
        client.wait_for("DHCPNAK", SOON)?;
        client.wait_for("event=BOUND address=10.1.0.11", SOON)?;
        Ok(())
    });
}

#[test]
fn dhcpcd_boots_a_guest_over_both_families() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let one = story.guest(lab, "one")?;
        story.push()?;
        one.ns.run("mount --bind /run/leases /var/lib/dhcpcd")?;
        let mut client = start(&one, "dhcpcd -B -d -f /run/leases/conf -c /bin/true eth0")?;
        client.wait_for("leased 10.1.0.11 for 86400 seconds", SOON)?;
        client.wait_for("Router Advertisement from fe80::fe:aff:fe01:1", SOON)?;
        client.wait_for("adding address fd00:1::11/128", SOON)?;
        eventually("both addresses are on the interface", SOON, || {
            let shown = one.ns.run("ip address show dev eth0")?;
            Ok(shown.contains("10.1.0.11/24") && shown.contains("fd00:1::11/128"))
        })?;
        let routes = one.ns.run("ip -6 route show")?;
        ensure!(
            !routes.contains("default"),
            "no router holds the subnet, so that there is no default route:\n{routes}"
        );
        Ok(())
    });
}

#[test]
fn dhclient_leases_an_ipv6_address_and_renews_it() {
    Lab::story(|lab| {
        let mut story = Story::new(lab)?;
        story.options6 = vec![("lease-time", "10")];
        let one = story.guest(lab, "one")?;
        story.push()?;
        let mut client = dhclient(&one, "-6")?;
        let bound = client.wait_for("event=BOUND6", SOON)?;
        ensure!(bound.contains("v6=fd00:1::11") && bound.contains("dns6=fd00::53"), "{bound}");
        client.wait_for("event=RENEW6", SOON)?;
        Ok(())
    });
}

#[test]
fn rdisc6_sees_the_gateway_and_what_it_says() {
    Lab::story(|lab| {
        let mut story = Story::new(lab)?;
        let one = story.guest(lab, "one")?;
        story.push()?;
        let shown = one.ns.run("rdisc6 -1 eth0")?;
        let says = |shown: &str, parts: &[&[&str]]| -> Result<()> {
            for words in parts {
                let has = |line: &str| words.iter().all(|word| line.contains(word));
                ensure!(shown.lines().any(has), "{words:?} was expected in:\n{shown}");
            }
            Ok(())
        };
        says(
            &shown,
            &[
                &["Stateful address conf", "Yes"],
                &["Prefix", "fd00:1::/64"],
                &["On-link", "Yes"],
                &["Autonomous address conf", "No"],
                &["MTU", "1450 bytes"],
                &["Recursive DNS server", "fd00::53"],
                &["from fe80::fe:aff:fe01:1"],
            ],
        )?;
        story.bound6 = false;
        let mut state = story.state("host1");
        let unbind = DhcpConfiguration {
            subnet_id: "six".into(),
            mac_address: format_mac(guest_mac([10, 1, 0, 11])),
            ..Default::default()
        };
        state.dhcp_states =
            vec![DhcpState { operation_type: OperationType::Delete.into(), configuration: Some(unbind) }];
        expect_none_refused(&story.net.host1.agent().push(&state)?)?;
        let shown = one.ns.run("rdisc6 -1 eth0")?;
        says(&shown, &[&["Stateful address conf", "No"]])
    });
}

#[test]
fn a_guest_keeps_its_lease_while_the_agent_is_down_and_is_answered_again_once_it_is_back() {
    Lab::story(|lab| {
        let mut story = Story::new(lab)?;
        story.options = vec![("lease-time", "30")];
        let (one, two) = (story.guest(lab, "one")?, story.guest(lab, "two")?);
        story.push()?;
        let mut client = udhcpc(&one)?;
        let mut other = udhcpc(&two)?;
        client.wait_for("event=bound address=10.1.0.11", SOON)?;
        other.wait_for("event=bound address=10.1.0.12", SOON)?;
        drop(other);
        story.net.host1.stop()?;
        one.expect_ping([10, 1, 0, 12]).context("with the agent down")?;
        // Past the first renewal, which nobody answers.
        std::thread::sleep(Duration::from_secs(17));
        story.net.host1.start()?;
        story.push()?;
        client.wait_for("event=renew address=10.1.0.11", LATER).context("after the agent is back")?;
        Ok(())
    });
}

#[test]
fn a_flood_of_questions_hurts_nobody_else_and_is_counted() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let (one, two) = (story.guest(lab, "one")?, story.guest(lab, "two")?);
        story.push()?;
        let mac = one.mac();
        let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
        message.resize(28, 0);
        message.extend(mac);
        message.resize(236, 0);
        message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
        let datagram = packets::udp(68, 67, &message);
        let packet = packets::ipv4([0, 0, 0, 0].into(), [255, 255, 255, 255].into(), 64, 17, &datagram);
        let frame = packets::ethernet([0xff; 6], mac, 0x0800, &packet);
        let socket = one.packets()?;
        let mut client = udhcpc(&two)?;
        story.net.host1.expect_drop("hand_up_limited", || {
            for _ in 0..5_000 {
                socket.send(&frame)?;
            }
            Ok(())
        })?;
        client.wait_for("event=bound address=10.1.0.12", SOON)?;
        let asked = story.net.host1.metric(&["ncm_guest_questions_total"])?;
        ensure!(asked < 500.0, "{asked} questions came to the agent");
        Ok(())
    });
}

#[test]
fn the_agent_takes_less_than_a_millisecond_from_discover_to_acknowledgement() {
    Lab::story(|lab| {
        let story = Story::new(lab)?;
        let one = story.guest(lab, "one")?;
        story.push()?;
        let mut client = udhcpc(&one)?;
        client.wait_for("event=bound", SOON)?;
        let host = &story.net.host1;
        let (took, asked) = (
            host.metric(&["ncm_guest_answer_microseconds_total"])?,
            host.metric(&["ncm_guest_questions_total"])?,
        );
        ensure!(asked >= 2.0, "{asked} questions");
        // Two questions make a lease.
        let each = 2.0 * took / asked;
        ensure!(each < 1_000.0, "{each} microseconds of agent time");
        Ok(())
    });
}
