//! The relay device and the closing of interfaces against a real kernel. Needs root.

mod netlink_common;

use ncm_agent::netlink::{Kernel, relay, sysctl};
use netlink_common::Namespace;

fn setting(path: &str) -> String {
    let path = format!("/proc/sys/net/{path}");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

#[test]
fn the_relay_is_created_once_and_adopted_after() {
    let namespace = Namespace::new("relay");
    namespace.run(async || {
        let mut kernel = Kernel::open().unwrap();
        let mut first = relay::ensure(&mut kernel, "ncm-n", 47890).await.unwrap();
        assert!(!first.adopted && !first.link.up, "{first:?}");
        relay::bring_up(&mut kernel, &mut first).await.unwrap();
        assert!(first.link.up, "{first:?}");
        assert_eq!(first.link.mtu, relay::MTU);
        let described = namespace.ip("-d link show ncm-n");
        for part in ["external", "dstport 47890", "nolearning", "udp6zerocsumrx"] {
            assert!(described.contains(part), "{part} is missing in: {described}");
        }
        assert_eq!(setting("ipv6/conf/ncm-n/disable_ipv6"), "1");
        assert_eq!(setting("ipv4/conf/ncm-n/arp_ignore"), "8");
        for family in ["ipv4", "ipv6"] {
            let forwarding = setting(&format!("{family}/conf/ncm-n/forwarding"));
            assert_eq!(forwarding, "1", "programs look {family} routes up in its name");
        }
        let second = relay::ensure(&mut kernel, "ncm-n", 47890).await.unwrap();
        assert!(second.adopted && second.link.up);
        assert_eq!(second.link.index, first.link.index);
        let moved = relay::ensure(&mut kernel, "ncm-n", 47891).await.unwrap();
        assert!(!moved.adopted, "another port needs another device");
        assert!(namespace.ip("-d link show ncm-n").contains("dstport 47891"));
        assert!(relay::remove(&mut kernel, "ncm-n").await.unwrap());
        assert!(!relay::remove(&mut kernel, "ncm-n").await.unwrap());
    });
}

#[test]
fn a_device_leaves_vlan_tags_where_xdp_sees_them() {
    let namespace = Namespace::new("tags");
    namespace.ip("link add up1 type veth peer name far1");
    namespace.run(async || {
        let mut kernel = Kernel::open().unwrap();
        let link = kernel.link("up1").await.unwrap().expect("up1 is there");
        for time in ["first", "second"] {
            assert!(kernel.keep_vlan_tags(link.index).await.unwrap(), "{time} time");
        }
        assert!(kernel.keep_vlan_tags(link.index + 1000).await.is_err(), "no such device");
    });
}

#[test]
fn a_taken_port_and_a_taken_name_are_refused_in_words() {
    let namespace = Namespace::new("taken");
    namespace.ip("link add ncm-other type veth peer name far1");
    namespace.run(async || {
        let mut kernel = Kernel::open().unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:47890").unwrap();
        let mut relay = relay::ensure(&mut kernel, "ncm-n", 47890).await.unwrap();
        let error = relay::bring_up(&mut kernel, &mut relay).await.unwrap_err().to_string();
        assert!(error.contains("UDP port 47890") && error.contains("relay_port"), "{error}");
        drop(socket);
        relay::bring_up(&mut kernel, &mut relay).await.unwrap();
        assert!(relay.link.up, "once the port is free the device comes up");
        let error = relay::ensure(&mut kernel, "ncm-other", 47892).await.unwrap_err().to_string();
        assert!(error.contains("ncm-other"), "{error}");
        assert!(!relay::remove(&mut kernel, "ncm-other").await.unwrap(), "a foreign interface stays");
    });
}

#[test]
fn new_interfaces_come_up_closed() {
    let namespace = Namespace::new("closed");
    namespace.ip("link add before type veth peer name far0");
    namespace.run(async || {
        sysctl::close_new_interfaces().unwrap();
        sysctl::close_new_interfaces().unwrap();
        namespace.ip("link add after type veth peer name far1");
        for (name, closed) in [("after", true), ("before", false)] {
            assert_eq!(
                setting(&format!("ipv6/conf/{name}/disable_ipv6")) == "1",
                closed,
                "{name}: disable_ipv6"
            );
            assert_eq!(setting(&format!("ipv4/conf/{name}/arp_ignore")) == "8", closed, "{name}: arp_ignore");
        }
        assert_eq!(setting("ipv4/conf/after/rp_filter"), "1");
        assert_eq!(setting("ipv4/conf/after/forwarding"), "0");
        assert!(sysctl::open_interface("after").unwrap(), "it was closed");
        assert!(!sysctl::open_interface("after").unwrap(), "it is open");
        assert_eq!(setting("ipv6/conf/after/disable_ipv6"), "0");
        assert_eq!(setting("ipv4/conf/after/arp_ignore"), "0");
    });
}

#[test]
fn a_taken_over_interface_is_closed_and_up() {
    let namespace = Namespace::new("take");
    namespace.ip("link add tap1 type veth peer name far1");
    namespace.run(async || {
        let mut kernel = Kernel::open().unwrap();
        let link = kernel.link("tap1").await.unwrap().expect("tap1 is there");
        sysctl::take_over(&mut kernel, &link).await.unwrap();
        assert_eq!(setting("ipv6/conf/tap1/disable_ipv6"), "1");
        assert_eq!(setting("ipv4/conf/tap1/arp_ignore"), "8");
        assert!(kernel.link("tap1").await.unwrap().expect("tap1 is there").up);
        let gone = ncm_agent::netlink::Link { name: "tap9".to_owned(), ..link };
        let error = sysctl::take_over(&mut kernel, &gone).await.unwrap_err().to_string();
        assert!(error.contains("tap9"), "{error}");
    });
}
