//! Two hosts, guests without any configuration, and the clients that they run.

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
    Cloud, Guest, GuestSpec, HostOptions, Lab, Process, Statuses, TwoHosts, format_mac, gateway_mac,
};

pub(crate) const SOON: Duration = Duration::from_secs(15);
/// udhcpc takes no lease for shorter than 30 seconds, and renews after half of it.
pub(crate) const LATER: Duration = Duration::from_secs(30);

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
pub(crate) struct Story {
    pub(crate) net: TwoHosts,
    pub(crate) cloud: Cloud,
    pub(crate) options: Vec<(&'static str, &'static str)>,
    pub(crate) options6: Vec<(&'static str, &'static str)>,
    pub(crate) bound6: bool,
}

impl Story {
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
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
    pub(crate) fn guest(&self, lab: &Lab, port: &str) -> Result<Guest> {
        let spec = self.cloud.guest_spec(port)?;
        let host = if self.cloud.ports[port].host == "host1" { &self.net.host1 } else { &self.net.host2 };
        let mtu = 1500;
        Guest::new(lab, &host.ns, GuestSpec { addresses: Vec::new(), gateway: None, mtu, ..spec })
    }

    /// The goal state of a host, with bindings, options, and a second subnet over IPv6.
    pub(crate) fn state(&self, host: &str) -> GoalState {
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

    pub(crate) fn push(&self) -> Result<()> {
        for host in self.net.hosts() {
            expect_none_refused(&host.agent().push(&self.state(host.name()))?)?;
        }
        Ok(())
    }
}

/// Ports whose guests are not there are pending, and nothing else is wrong.
pub(crate) fn expect_none_refused(statuses: &Statuses) -> Result<()> {
    for status in [OperationStatus::Failure, OperationStatus::InvalidArg, OperationStatus::OutOfOrder] {
        ensure!(statuses.count(status) == 0, "{} was not expected in {statuses:?}", status.as_str_name());
    }
    Ok(())
}

pub(crate) fn start(guest: &Guest, line: &str) -> Result<Process> {
    guest.ns.start(&line.split_whitespace().collect::<Vec<_>>())
}

pub(crate) fn udhcpc(guest: &Guest) -> Result<Process> {
    start(guest, "udhcpc -f -i eth0 -s /run/script -t 20 -T 1 -A 1 -O mtu -O hostname")
}

pub(crate) fn dhclient(guest: &Guest, more: &str) -> Result<Process> {
    let name = guest.name();
    let family = if more.is_empty() { "4" } else { "6" };
    let files =
        format!("-lf /run/leases/{name}{family} -pf /run/leases/{name}{family}.pid -cf /run/leases/conf");
    start(guest, &format!("dhclient -d -v -sf /run/script {files} {more} eth0"))
}
