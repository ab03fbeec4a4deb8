//! The stream of interface events against a real kernel. Needs root.

mod netlink_common;

use std::collections::BTreeMap;
use std::time::Duration;

use ncm_agent::netlink::{Kernel, LinkEvent, Links};
use netlink_common::Namespace;

async fn next(links: &mut Links) -> LinkEvent {
    let event = tokio::time::timeout(Duration::from_secs(10), links.next()).await;
    event.expect("an event within 10 s").expect("the stream goes on")
}

/// The next event about an interface of that name.
async fn next_of(links: &mut Links, name: &str) -> LinkEvent {
    loop {
        let event = next(links).await;
        let (LinkEvent::Appeared(link) | LinkEvent::Changed(link) | LinkEvent::Gone(link)) = &event else {
            continue;
        };
        if link.name == name {
            return event;
        }
    }
}

async fn synchronised(links: &mut Links) -> BTreeMap<u32, String> {
    let mut all = BTreeMap::new();
    loop {
        match next(links).await {
            LinkEvent::Synchronised => return all,
            LinkEvent::Appeared(link) => {
                all.insert(link.index, link.name);
            }
            other => panic!("before the stream is synchronised interfaces only appear, but: {other:?}"),
        }
    }
}

#[test]
fn interfaces_that_are_there_appear_first() {
    let namespace = Namespace::new("there");
    namespace.ip("link add tap1 type veth peer name far1");
    namespace.run(async || {
        let mut links = Links::open().await.unwrap();
        let names: Vec<String> = synchronised(&mut links).await.into_values().collect();
        for name in ["lo", "tap1", "far1"] {
            assert!(names.iter().any(|held| held == name), "{name} is missing among {names:?}");
        }
    });
}

#[test]
fn a_late_link_appears_changes_goes_and_comes_back_under_another_index() {
    let namespace = Namespace::new("late");
    namespace.run(async || {
        let mut links = Links::open().await.unwrap();
        synchronised(&mut links).await;
        namespace.ip("link add tap1 mtu 1400 type veth peer name far1");
        let LinkEvent::Appeared(first) = next_of(&mut links, "tap1").await else {
            panic!("tap1 should appear")
        };
        assert_eq!((first.mtu, first.up, first.kind.as_deref()), (1400, false, Some("veth")));
        assert!(first.mac.is_some() && first.xdp_features.is_some(), "no MAC or XDP features: {first:?}");
        namespace.ip("link set tap1 up");
        loop {
            match next_of(&mut links, "tap1").await {
                LinkEvent::Changed(link) if link.up => break,
                LinkEvent::Changed(_) => {}
                other => panic!("tap1 should come up, but: {other:?}"),
            }
        }
        namespace.ip("link del tap1");
        namespace.ip("link add tap1 type veth peer name far1");
        let gone = loop {
            match next_of(&mut links, "tap1").await {
                LinkEvent::Gone(link) => break link,
                LinkEvent::Changed(_) => {}
                other => panic!("tap1 should go, but: {other:?}"),
            }
        };
        let LinkEvent::Appeared(second) = next_of(&mut links, "tap1").await else {
            panic!("tap1 should return")
        };
        assert_eq!(gone.index, first.index);
        assert_ne!(second.index, first.index, "a re-created interface has another index");
    });
}

#[test]
fn a_renamed_link_goes_and_appears() {
    let namespace = Namespace::new("rename");
    namespace.ip("link add eth7 type veth peer name far1");
    namespace.run(async || {
        let mut links = Links::open().await.unwrap();
        synchronised(&mut links).await;
        namespace.ip("link set eth7 name tap7");
        let LinkEvent::Gone(before) = next_of(&mut links, "eth7").await else { panic!("eth7 should go") };
        let LinkEvent::Appeared(after) = next_of(&mut links, "tap7").await else {
            panic!("tap7 should appear")
        };
        assert_eq!(before.index, after.index);
    });
}

#[test]
fn whether_a_veth_takes_xdp_follows_its_peer() {
    let namespace = Namespace::new("xdp");
    namespace.ip("link add tap1 type veth peer name far1");
    namespace.ip("link set tap1 up");
    namespace.ip("link set far1 up");
    namespace.run(async || {
        let mut links = Links::open().await.unwrap();
        synchronised(&mut links).await;
        for (state, expected) in [("on", true), ("off", false)] {
            namespace.command(&format!("ethtool -K far1 gro {state}"));
            loop {
                match next_of(&mut links, "tap1").await {
                    LinkEvent::Changed(link) if link.takes_xdp() == expected => break,
                    LinkEvent::Changed(_) => {}
                    other => panic!("tap1 should change, but: {other:?}"),
                }
            }
        }
    });
}

#[test]
fn segmentation_offload_is_read_and_an_interface_brought_up() {
    let namespace = Namespace::new("offload");
    namespace.ip("link add tap1 type veth peer name far1");
    namespace.run(async || {
        let mut kernel = Kernel::open().unwrap();
        assert_eq!(kernel.link("nothing").await.unwrap(), None);
        assert_eq!(kernel.link("a-name-that-is-too-long").await.unwrap(), None);
        let link = kernel.link("tap1").await.unwrap().expect("tap1 is there");
        assert!(kernel.segments_late(link.index).await.unwrap(), "a veth segments late by default");
        namespace.command("ethtool -K tap1 tx off tso off gso off");
        assert!(!kernel.segments_late(link.index).await.unwrap(), "it is off now");
        assert!(kernel.segments_late(4_000_000).await.is_err());
        assert!(!link.up);
        kernel.set_up(link.index).await.unwrap();
        assert!(kernel.link("tap1").await.unwrap().expect("tap1 is there").up);
    });
}

#[test]
fn after_an_overrun_the_events_still_add_up() {
    let namespace = Namespace::new("overrun");
    namespace.run(async || {
        let mut links = Links::with_buffer(4096).await.unwrap();
        let mut known = synchronised(&mut links).await;
        // Nobody reads while these run: the buffer overflows many times over.
        for index in 0..40 {
            namespace.ip(&format!("link add tap{index} type veth peer name far{index}"));
        }
        for index in (0..40).step_by(2) {
            namespace.ip(&format!("link del tap{index}"));
        }
        for index in (0..40).step_by(4) {
            namespace.ip(&format!("link add tap{index} type veth peer name far{index}"));
        }
        let expected = listed(&namespace);
        loop {
            if known == expected {
                break;
            }
            match tokio::time::timeout(Duration::from_secs(5), links.next()).await {
                Ok(Some(LinkEvent::Appeared(link))) => {
                    let before = known.insert(link.index, link.name.clone());
                    assert_eq!(before, None, "{link} appeared twice");
                }
                Ok(Some(LinkEvent::Gone(link))) => {
                    assert!(known.remove(&link.index).is_some(), "{link} went without having appeared");
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => panic!("the events add up to {known:?}, but there are {expected:?}"),
            }
        }
    });
}

fn listed(namespace: &Namespace) -> BTreeMap<u32, String> {
    let list = namespace.ip("-o link");
    let entry = |line: &str| {
        let mut parts = line.split(": ");
        let index = parts.next()?.trim().parse().ok()?;
        Some((index, parts.next()?.split('@').next()?.to_owned()))
    };
    list.lines().filter_map(entry).collect()
}
