//! From TOML text to [`Config`]: defaults, ranges, and what has to hold between keys.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ncm_common::tables::{HALF_OPEN_KEY, TABLES};
use ncm_common::{RELAY_PORT, VXLAN_PORT};
use ncm_dataplane::TcAttach;
use toml::de::DeTable;

use super::reader::Section;
use super::{
    Admission, Api, Config, DataplaneLog, Fault, Flows, Guest, GuestMode, Limits, Listener, Log, LogFormat,
    MissingGroup, Node, Overrides, Paths, StoreConfig, Underlay, WireMode,
};
use crate::store::Durability;

/// Largest message of a protocol buffer, in bytes.
const MAX_MESSAGE: u64 = (1 << 31) - 1;

/// Fewest and most entries that a table may be given.
const MIN_ENTRIES: u64 = 2;
const MAX_ENTRIES: u64 = 1 << 26;

pub(super) fn parse(text: &str, overrides: &Overrides) -> Result<Config, Vec<Fault>> {
    let document = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(0, |span| 1 + text[..span.start].matches('\n').count());
        vec![Fault { key: String::new(), line, problem: format!("not TOML: {}", error.message()) }]
    })?;
    let mut faults = Vec::new();
    let mut root = Section::root(text, document.get_ref(), &mut faults);

    let written = root.text("instance");
    let instance = overrides.instance.clone().or(written).unwrap_or_else(|| "default".to_owned());
    if !valid_instance(&instance) {
        root.fault(
            "instance",
            format!("expected 1 to 32 letters, digits, '-' or '_', the first not '-', found {instance:?}"),
        );
    }
    let underlay = underlay(root.section("underlay"));
    let node = node(root.section("node"), &underlay);
    let paths = paths(root.section("paths"));
    let store = store(root.section("store"));
    let api = api(root.section("api"), &paths, &instance);
    let metrics = metrics(root.section("metrics"), api.insecure);
    let upstream = super::upstream::upstream(root.section("upstream"), api.insecure);
    let guest = guest(root.section("guest"));
    let tc_attach = {
        let mut section = root.section("programs");
        let words = [("auto", TcAttach::Auto), ("clsact", TcAttach::Clsact)];
        let tc_attach = section.word("attach", &words).unwrap_or_default();
        section.finish();
        tc_attach
    };
    let missing_group = {
        let mut section = root.section("policy");
        let words = [("closed", MissingGroup::Closed), ("open", MissingGroup::Open)];
        let missing_group = section.word("missing_group", &words).unwrap_or(MissingGroup::Closed);
        section.finish();
        missing_group
    };
    let capacity = capacity(root.section("capacity"));
    let flows = flows(root.section("flows"));
    let mut log = log(root.section("log"));
    if let Some(level) = &overrides.log_level {
        if valid_filter(level) {
            log.level.clone_from(level);
        } else {
            root.fault("log.level", format!("--log-level: expected {LEVELS}, found {level:?}"));
        }
    }
    let limits = limits(root.section("limits"));
    root.finish();

    if faults.is_empty() {
        Ok(Config {
            instance,
            node,
            underlay,
            api,
            metrics,
            upstream,
            paths,
            store,
            guest,
            tc_attach,
            missing_group,
            capacity,
            flows,
            log,
            limits,
        })
    } else {
        faults.sort_by_key(|fault| fault.line);
        Err(faults)
    }
}

fn valid_instance(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// An interface's name as the kernel accepts it: `IFNAMSIZ` with its terminating zero is 16.
fn interface_name(text: &str) -> Option<String> {
    let valid = (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.bytes().any(|byte| byte == b'/' || byte == b':' || byte.is_ascii_whitespace());
    valid.then(|| text.to_owned())
}

fn absolute(text: &str) -> Option<PathBuf> {
    text.starts_with('/').then(|| PathBuf::from(text))
}

fn underlay(mut section: Section<'_, '_>) -> Underlay {
    let endpoint_v4 =
        section.parsed("endpoint_v4", "an IPv4 unicast address such as \"192.0.2.1\"", |text| {
            text.parse::<std::net::Ipv4Addr>().ok().filter(|ip| {
                !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() && !ip.is_loopback()
            })
        });
    let endpoint_v6 = section.parsed(
        "endpoint_v6",
        "an IPv6 unicast address, not a link-local one, such as \"2001:db8::1\"",
        |text| {
            text.parse::<std::net::Ipv6Addr>()
                .ok()
                .filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback())
                // Nobody else could say on which link a link-local one is, and the mapped ones are IPv4's.
                .filter(|ip| !ip.is_unicast_link_local() && ip.to_ipv4_mapped().is_none())
        },
    );
    let interfaces = section
        .list("interfaces", "an interface's name of at most 15 bytes", interface_name)
        .unwrap_or_default();
    let set = endpoint_v4.map(|_| "endpoint_v4").or(endpoint_v6.map(|_| "endpoint_v6"));
    if let Some(key) = set
        && interfaces.is_empty()
    {
        let text = format!("expected at least one interface, since underlay.{key} is set");
        section.fault("interfaces", text);
    }
    let mode =
        section.word("mode", &[("auto", WireMode::Auto), ("xdp", WireMode::Xdp), ("tc", WireMode::Tc)]);
    let admission = section.word("admission", &[("known", Admission::Known), ("strict", Admission::Strict)]);
    let tunnel_port = port(&mut section, "port", VXLAN_PORT);
    let relay_port = port(&mut section, "relay_port", RELAY_PORT);
    section.finish();
    Underlay {
        endpoint_v4,
        endpoint_v6,
        interfaces,
        mode: mode.unwrap_or(WireMode::Auto),
        admission: admission.unwrap_or(Admission::Known),
        port: tunnel_port,
        relay_port,
    }
}

fn port(section: &mut Section<'_, '_>, key: &'static str, default: u16) -> u16 {
    u16::try_from(section.integer(key, 1, u64::from(u16::MAX), u64::from(default))).unwrap_or(default)
}

fn host_name() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/hostname");
    read.map_or_else(|_| "unnamed".to_owned(), |name| name.trim().to_owned())
}

fn node(mut section: Section<'_, '_>, underlay: &Underlay) -> Node {
    let id = section.text("id").unwrap_or_else(host_name);
    let addresses = section
        .list("addresses", "an IP address", |text| text.parse().ok())
        .unwrap_or_else(|| underlay.endpoints().iter().collect());
    section.finish();
    Node { id, addresses }
}

fn paths(mut section: Section<'_, '_>) -> Paths {
    let mut path = |key, default: &str| {
        section.parsed(key, "an absolute path", absolute).unwrap_or_else(|| PathBuf::from(default))
    };
    let paths = Paths {
        state: path("state", "/var/lib/ncm"),
        run: path("run", "/run/ncm"),
        bpffs: path("bpffs", "/sys/fs/bpf"),
    };
    section.finish();
    paths
}

fn store(mut section: Section<'_, '_>) -> StoreConfig {
    /// The modes of `sync`.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Sync {
        Always,
        Interval,
        Never,
    }
    let journal = section.boolean("journal", true);
    let words = [("always", Sync::Always), ("interval", Sync::Interval), ("never", Sync::Never)];
    let sync = section.word("sync", &words).unwrap_or(Sync::Always);
    let milliseconds = section.integer("sync_interval_ms", 1, 60_000, 1_000);
    let snapshot_bytes = section.integer("snapshot_bytes", 1 << 12, 1 << 40, 256 << 20);
    section.finish();
    let durability = match sync {
        Sync::Always => Durability::Always,
        Sync::Interval => Durability::Within(milliseconds),
        Sync::Never => Durability::Never,
    };
    StoreConfig { journal, durability, snapshot_bytes }
}

fn listener(text: &str) -> Option<Listener> {
    match text.strip_prefix("unix:") {
        Some(path) => absolute(path).map(Listener::Unix),
        None => text.parse().ok().map(Listener::Tcp),
    }
}

fn api(mut section: Section<'_, '_>, paths: &Paths, instance: &str) -> Api {
    let expected = "ADDRESS:PORT (an IPv6 address in brackets) or unix:/PATH";
    let listeners = section
        .list("listeners", expected, listener)
        .unwrap_or_else(|| ["127.0.0.1:50001", "127.0.0.1:50002"].into_iter().filter_map(listener).collect());
    let insecure = section.boolean("insecure", false);
    for listener in &listeners {
        if let Listener::Tcp(address) = listener
            && !address.ip().is_loopback()
            && !insecure
        {
            section.fault(
                "listeners",
                format!(
                    "{address} can be reached from other hosts without authentication: expected a loopback address \
                     or a Unix socket, or api.insecure = true to accept that"
                ),
            );
        }
    }
    let socket = section
        .parsed("socket", "an absolute path", absolute)
        .unwrap_or_else(|| paths.run.join(format!("{instance}.sock")));
    let group = section.parsed("group", "the name of a group on this host", |name| {
        matches!(nix::unistd::Group::from_name(name), Ok(Some(_))).then(|| name.to_owned())
    });
    let max_message_bytes = section.integer("max_message_bytes", 1 << 16, MAX_MESSAGE, 1 << 30);
    let max_buffered_bytes = section.integer("max_buffered_bytes", 1 << 16, 1 << 40, 1 << 31);
    if max_buffered_bytes < max_message_bytes {
        section.fault(
            "max_buffered_bytes",
            format!(
                "expected at least api.max_message_bytes ({max_message_bytes}), found {max_buffered_bytes}"
            ),
        );
    }
    let stall_seconds = section.integer("stall_seconds", 1, 3600, 30);
    section.finish();
    Api { listeners, insecure, socket, group, max_message_bytes, max_buffered_bytes, stall_seconds }
}

fn metrics(mut section: Section<'_, '_>, insecure: bool) -> Option<std::net::SocketAddr> {
    let off = section.is_empty_text("listen");
    let listen = section.form::<std::net::SocketAddr>("listen", "ADDRESS:PORT, or \"\" for none");
    let listen = listen.or((!off).then_some(std::net::SocketAddr::from(([127, 0, 0, 1], 9477))));
    if let Some(address) = listen
        && !address.ip().is_loopback()
        && !insecure
    {
        section.fault(
            "listen",
            format!(
                "{address} can be reached from other hosts: expected a loopback address, or api.insecure = true to \
                 accept that"
            ),
        );
    }
    section.finish();
    listen
}

fn guest(mut section: Section<'_, '_>) -> Guest {
    let mode =
        section.word("mode", &[("tc", GuestMode::Tc), ("xdp", GuestMode::Xdp)]).unwrap_or(GuestMode::Tc);
    let xdp_interfaces = section
        .list("xdp_interfaces", "an interface's name of at most 15 bytes", interface_name)
        .unwrap_or_default();
    let closed_defaults = section.boolean("closed_defaults", true);
    section.finish();
    Guest { mode, xdp_interfaces, closed_defaults }
}

/// The keys are those of the tables' definition, and so are the entries where a key is not written.
fn capacity(mut section: Section<'_, '_>) -> BTreeMap<&'static str, u32> {
    let mut capacity = BTreeMap::new();
    // Several tables share a key.
    let keys = TABLES.iter().filter_map(|table| table.capacity_key).chain([HALF_OPEN_KEY]);
    let keys: BTreeSet<_> = keys.collect();
    for key in keys {
        let written = section.has(key);
        let entries = section.integer(key, MIN_ENTRIES, MAX_ENTRIES, MIN_ENTRIES);
        if written {
            capacity.insert(key, u32::try_from(entries).unwrap_or(u32::MAX));
        }
    }
    section.finish();
    capacity
}

/// Defaults are those of the kernel's own connection tracking (nf_conntrack) where it has the same thing.
fn flows(mut section: Section<'_, '_>) -> Flows {
    const YEAR: u64 = 31_536_000;
    let mut seconds =
        |key, default: u32| u32::try_from(section.integer(key, 1, YEAR, default.into())).unwrap_or(default);
    let flows = Flows {
        tcp_new: seconds("tcp_new", 120),
        tcp_syn_received: seconds("tcp_syn_received", 60),
        tcp_established: seconds("tcp_established", 432_000),
        tcp_closing: seconds("tcp_closing", 120),
        tcp_reset: seconds("tcp_reset", 10),
        udp_new: seconds("udp_new", 30),
        udp_stream: seconds("udp_stream", 120),
        icmp: seconds("icmp", 30),
        other: seconds("other", 600),
        fragment: seconds("fragment", 30),
        max_flows_per_port: {
            let flows = section.integer("max_flows_per_port", 1, MAX_ENTRIES, 262_144);
            u32::try_from(flows).unwrap_or(u32::MAX)
        },
    };
    section.finish();
    flows
}

const LEVELS: &str = "error, warn, info, debug or trace, or a comma-separated list of module=level";

fn valid_filter(text: &str) -> bool {
    // A filter that is one unknown word would be taken for a target's name, and silence everything else.
    let word = |word: &str| {
        let (target, level) = word.split_once('=').unwrap_or(("", word));
        let target = target.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte));
        target && ["off", "error", "warn", "info", "debug", "trace"].contains(&level)
    };
    !text.is_empty() && text.split(',').all(word)
}

fn log(mut section: Section<'_, '_>) -> Log {
    let level = section.parsed("level", LEVELS, |text| valid_filter(text).then(|| text.to_owned()));
    let format = section.word("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let dataplane = section.word(
        "dataplane",
        &[
            ("off", DataplaneLog::Off),
            ("error", DataplaneLog::Error),
            ("warn", DataplaneLog::Warn),
            ("info", DataplaneLog::Info),
            ("debug", DataplaneLog::Debug),
            ("trace", DataplaneLog::Trace),
        ],
    );
    section.finish();
    Log {
        level: level.unwrap_or_else(|| "info".to_owned()),
        format: format.unwrap_or(LogFormat::Text),
        dataplane: dataplane.unwrap_or(DataplaneLog::Off),
    }
}

fn limits(mut section: Section<'_, '_>) -> Limits {
    let limits = Limits {
        tombstones: section.integer("tombstones", 0, 1 << 24, 262_144),
        tombstone_age_s: section.integer("tombstone_age_s", 0, 31_536_000, 86_400),
        parked: section.integer("parked", 0, 1 << 26, 4_194_304),
        neighbours: section.integer("neighbours", 1, 1 << 26, 4_194_304),
        resources: section.integer("resources", 1, 1 << 24, 65_536),
        set_entries: section.integer("set_entries", 1, MAX_ENTRIES, 131_072),
        rules: section.integer("rules", 1, MAX_ENTRIES, 1_048_576),
    };
    section.finish();
    limits
}
