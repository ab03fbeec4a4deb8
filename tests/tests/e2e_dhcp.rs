//! Guests that boot with nothing but DHCP, DHCPv6 and router advertisements: real clients against the agent.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ncm_model::wire::subnet_configuration::{DnsEntry, ExtraDhcpOption, Gateway};
use ncm_model::wire::{
    DhcpConfiguration, DhcpState, GoalState, OperationStatus, OperationType, SubnetConfiguration,
    SubnetState, UpdateType, port_configuration::FixedIp,
};
use ncm_tests::testbed::{
    Cloud, Guest, GuestSpec, HostOptions, Lab, Process, Statuses, TwoHosts, eventually, format_mac,
    gateway_mac, guest_mac, packets,
};

const SOON: Duration = Duration::from_secs(15);
/// udhcpc takes no lease for shorter than 30 seconds, and renews after half of it.
const LATER: Duration = Duration::from_secs(30);

/// Shows every event, and configures the interface as a distribution's script does, without touching what the guest shares
/// with the host: files.
const SCRIPT: &str = r#"#!/bin/sh
# dhclient says `reason`, udhcpc the first argument.
event=${reason:-$1}
address=${new_ip_address:-$ip}
mask=${new_subnet_mask:-$subnet}
router=${new_routers:-$router}
echo "event=$event address=$address router=$router dns=${new_domain_name_servers:-$dns} mtu=${new_interface_mtu:-$mtu} \
lease=${new_dhcp_lease_time:-$lease} host=${new_host_name:-$hostname} v6=$new_ip6_address dns6=$new_dhcp6_name_servers"
case $event in
PREINIT6) ip link set eth0 up; sleep 0.2 ;;
PREINIT|deconfig) ip link set eth0 up ;;
BOUND|RENEW|REBIND|REBOOT|bound|renew)
    ip address replace "$address/$mask" dev eth0
    [ -z "$router" ] || ip route replace default via "$router" dev eth0 ;;
BOUND6|RENEW6|REBIND6) ip address replace "$new_ip6_address/128" dev eth0 ;;
esac
exit 0
"#;

/// Two hosts, and two guests on each without any configuration: in `web`, over both address families.
struct Story {
    net: TwoHosts,
    cloud: Cloud,
    options: Vec<(&'static str, &'static str)>,
    options6: Vec<(&'static str, &'static str)>,
    bound6: bool,
}

impl Story {
    fn new(lab: &Lab) -> Result<Self> {
        let script = lab.run_directory().join("script");
        fs::write(&script, SCRIPT).context("write the clients' script")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        for directory in ["dhcpcd", "leases"] {
            fs::create_dir_all(lab.run_directory().join(directory))?;
        }
        let mut cloud = Cloud::new();
        cloud
            .vpc("red", 100)
            .subnet("web", "red", "10.1.0.0/24")
            .port("one", "web", "10.1.0.11", "host1")
            .port("two", "web", "10.1.0.12", "host1")
            .port("far", "web", "10.1.0.13", "host2");
        let net = TwoHosts::new(lab, HostOptions::default())?;
        Ok(Self { net, cloud, options: Vec::new(), options6: Vec::new(), bound6: true })
    }

    /// A guest without addresses.
    fn guest(&self, lab: &Lab, port: &str) -> Result<Guest> {
        let spec = self.cloud.guest_spec(port)?;
        let host = if self.cloud.ports[port].host == "host1" { &self.net.host1 } else { &self.net.host2 };
        let mtu = 1500;
        Guest::new(lab, &host.ns, GuestSpec { addresses: Vec::new(), gateway: None, mtu, ..spec })
    }

    /// The goal state of a host, with bindings, options, and a second subnet over IPv6.
    fn state(&self, host: &str) -> GoalState {
        let mut state = self.cloud.goal_state(host);
        let options = |given: &[(&str, &str)]| {
            given
                .iter()
                .map(|(name, value)| ExtraDhcpOption { name: (*name).into(), value: (*value).into() })
                .collect()
        };
        let dns = |entry: &str| DnsEntry { entry: entry.into() };
        let gateway = format_mac(gateway_mac([10, 1, 0, 1]));
        for subnet in state.subnet_states.iter_mut().filter_map(|state| state.configuration.as_mut()) {
            subnet.dhcp_enable = true;
            subnet.dns_entry_list = vec![dns("9.9.9.9"), dns("8.8.4.4")];
            subnet.extra_dhcp_options = options(&self.options);
        }
        let six = SubnetConfiguration {
            revision_number: 1,
            id: "six".into(),
            vpc_id: "red".into(),
            cidr: "fd00:1::/64".into(),
            gateway: Some(Gateway { ip_address: "fd00:1::1".into(), mac_address: gateway }),
            dns_entry_list: vec![dns("fd00::53")],
            extra_dhcp_options: options(&self.options6),
            update_type: UpdateType::Full.into(),
            ..Default::default()
        };
        state
            .subnet_states
            .push(SubnetState { operation_type: OperationType::Create.into(), configuration: Some(six) });
        for port in state.port_states.iter_mut().filter_map(|state| state.configuration.as_mut()) {
            let v4 = port.fixed_ips[0].ip_address.clone();
            let v6 = format!("fd00:1::{}", v4.rsplit('.').next().unwrap_or_default());
            port.fixed_ips.push(FixedIp { subnet_id: "six".into(), ip_address: v6.clone() });
            let binding = |subnet: &str, v4: &str, v6: &str| DhcpState {
                operation_type: OperationType::Create.into(),
                configuration: Some(DhcpConfiguration {
                    revision_number: 1,
                    subnet_id: subnet.into(),
                    mac_address: port.mac_address.clone(),
                    ipv4_address: v4.into(),
                    ipv6_address: v6.into(),
                    port_host_name: format!("{}.example.org", port.id),
                    ..Default::default()
                }),
            };
            let bindings = [binding("web", &v4, ""), binding("six", "", &v6)];
            state.dhcp_states.extend(bindings.into_iter().take(if self.bound6 { 2 } else { 1 }));
        }
        state
    }

    fn push(&self) -> Result<()> {
        for host in self.net.hosts() {
            expect_none_refused(&host.agent().push(&self.state(host.name()))?)?;
        }
        Ok(())
    }
}

/// Ports whose guests are not there are pending, and nothing else is wrong.
fn expect_none_refused(statuses: &Statuses) -> Result<()> {
    for status in [OperationStatus::Failure, OperationStatus::InvalidArg, OperationStatus::OutOfOrder] {
        ensure!(statuses.count(status) == 0, "{} was not expected in {statuses:?}", status.as_str_name());
    }
    Ok(())
}

fn start(guest: &Guest, line: &str) -> Result<Process> {
    guest.ns.start(&line.split_whitespace().collect::<Vec<_>>())
}

fn udhcpc(guest: &Guest) -> Result<Process> {
    start(guest, "udhcpc -f -i eth0 -s /run/script -t 20 -T 1 -A 1 -O mtu -O hostname")
}

fn dhclient(guest: &Guest, more: &str) -> Result<Process> {
    let name = guest.name();
    let family = if more.is_empty() { "4" } else { "6" };
    let files =
        format!("-lf /run/leases/{name}{family} -pf /run/leases/{name}{family}.pid -cf /run/leases/conf");
    start(guest, &format!("dhclient -d -v -sf /run/script {files} {more} eth0"))
}

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
