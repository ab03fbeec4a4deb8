//! What the configuration takes and refuses.

use super::*;

const DEFAULTS: &str = include_str!("../../../dist/ncm-agent.toml");

fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    Config::parse(text, &Overrides::default())
}

fn fault(text: &str) -> Fault {
    let faults = parse(text).expect_err("must be refused");
    assert_eq!(faults.len(), 1, "expected one fault for {text:?}: {faults:?}");
    faults.into_iter().next().expect("there is one")
}

#[test]
fn the_default_file_says_what_holds_without_it() {
    let written = parse(DEFAULTS).expect("the default file is valid");
    let defaults = parse("").expect("no file is valid");
    assert_eq!(Config { capacity: BTreeMap::new(), ..written.clone() }, defaults);
    for table in ncm_common::tables::TABLES {
        let Some(key) = table.capacity_key else { continue };
        let written = written.capacity.get(key).copied();
        let smallest = ncm_common::tables::TABLES.iter().filter(|other| other.capacity_key == Some(key));
        let smallest = smallest.map(|table| table.default_capacity).min();
        assert_eq!(written, smallest, "capacity.{key} in the default file");
    }
    let half_open = written.capacity.get(ncm_common::tables::HALF_OPEN_KEY).copied();
    assert_eq!(half_open, Some(ncm_common::tables::HALF_OPEN_PER_PORT));
}

#[test]
fn the_default_file_names_every_key() {
    for section in [
        "", "node", "underlay", "api", "metrics", "paths", "guest", "policy", "capacity", "flows", "log",
        "limits", "upstream", "store",
    ] {
        let text = if section.is_empty() {
            "no_such_key = 1".to_owned()
        } else {
            format!("[{section}]\nno_such_key = 1")
        };
        let problem = fault(&text).problem;
        let keys = problem.rsplit_once("one of ").expect("lists the known keys").1;
        for key in keys.split(", ") {
            let documented = [format!("\n{key} = "), format!("\n# {key} = "), format!("\n[{key}]\n")];
            assert!(
                documented.iter().any(|line| DEFAULTS.contains(line)),
                "{section}.{key} is not in the file"
            );
        }
    }
}

#[test]
fn faults_name_the_key_the_line_and_what_was_expected() {
    let cases = [
        ("x = 1", "x", 1, "unknown key"),
        ("[underlay]\nmod = \"tc\"", "underlay.mod", 2, "one of endpoint_v4"),
        (
            "[underlay]\nmode = \"fast\"",
            "underlay.mode",
            2,
            "one of \"auto\", \"xdp\", \"tc\", found \"fast\"",
        ),
        ("[underlay]\nmode = 1", "underlay.mode", 2, "found the integer 1"),
        ("\n\n[underlay]\nport = 0", "underlay.port", 4, "from 1 to 65535, found the integer 0"),
        ("[underlay]\nport = \"4789\"", "underlay.port", 2, "from 1 to 65535, found \"4789\""),
        (
            "[underlay]\nendpoint_v4 = \"224.0.0.1\"\ninterfaces = [\"a\"]",
            "underlay.endpoint_v4",
            2,
            "unicast",
        ),
        ("[underlay]\nendpoint_v4 = \"192.0.2.1\"", "underlay.interfaces", 0, "at least one interface"),
        ("[underlay]\nendpoint_v6 = \"2001:db8::1\"", "underlay.interfaces", 0, "endpoint_v6 is set"),
        ("[underlay]\nendpoint_v6 = \"fe80::1\"", "underlay.endpoint_v6", 2, "not a link-local one"),
        ("[underlay]\nendpoint_v6 = \"ff02::1\"", "underlay.endpoint_v6", 2, "unicast"),
        ("[underlay]\nendpoint_v6 = \"::ffff:192.0.2.1\"", "underlay.endpoint_v6", 2, "unicast"),
        ("[underlay]\nendpoint_v6 = \"192.0.2.1\"", "underlay.endpoint_v6", 2, "IPv6"),
        ("[underlay]\ninterfaces = [\"much-too-long-for-linux\"]", "underlay.interfaces", 2, "15 bytes"),
        ("underlay = 3", "underlay", 1, "expected a table"),
        ("[node]\naddresses = [\"host\"]", "node.addresses", 2, "IP address"),
        ("[guest]\nclosed_defaults = \"yes\"", "guest.closed_defaults", 2, "true or false"),
        ("[api]\nlisteners = [\"0.0.0.0:1\"]", "api.listeners", 2, "api.insecure = true"),
        ("[api]\nlisteners = [\"[::]:1\"]", "api.listeners", 2, "api.insecure = true"),
        ("[api]\nlisteners = [\"localhost\"]", "api.listeners", 2, "ADDRESS:PORT"),
        ("[api]\nsocket = \"relative\"", "api.socket", 2, "absolute path"),
        ("[api]\nmax_buffered_bytes = 100000", "api.max_buffered_bytes", 2, "at least api.max_message_bytes"),
        ("[metrics]\nlisten = \"0.0.0.0:9477\"", "metrics.listen", 2, "loopback"),
        ("[upstream]\naddress = \"192.0.2.1:9016\"", "upstream.address", 2, "api.insecure = true"),
        ("[upstream]\naddress = \"https://127.0.0.1:9016\"", "upstream.address", 2, "without TLS"),
        ("[upstream]\naddress = \"127.0.0.1\"", "upstream.address", 2, "HOST:PORT"),
        ("[upstream]\nbatch = 0", "upstream.batch", 2, "from 1 to 10000"),
        (
            "[upstream]\nport_hold_packets = 20000",
            "upstream.port_hold_packets",
            2,
            "upstream.hold_packets (16384)",
        ),
        ("[capacity]\nendpoints = 0", "capacity.endpoints", 2, "from 2"),
        ("[flows]\nudp_new = 0", "flows.udp_new", 2, "from 1"),
        ("[capacity]\nnode = 7", "capacity.node", 2, "unknown key"),
        ("[log]\nlevel = \"loud\"", "log.level", 2, "error, warn, info"),
        ("instance = \"a/b\"", "instance", 1, "letters"),
        ("instance = ", "", 1, "not TOML"),
    ];
    for (text, key, line, problem) in cases {
        let fault = fault(text);
        assert_eq!((fault.key.as_str(), fault.line), (key, line), "for {text:?}: {fault:?}");
        assert!(fault.problem.contains(problem), "expected {problem:?} for {text:?}: {fault:?}");
    }
}

#[test]
fn all_faults_are_reported_at_once_in_the_order_of_the_file() {
    let faults = parse("[log]\nformat = \"xml\"\n[underlay]\nmode = \"fast\"\n").expect_err("two faults");
    let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["log.format", "underlay.mode"]);
}

#[test]
fn other_hosts_reach_the_agent_only_when_that_is_said_in_so_many_words() {
    let text = "[api]\ninsecure = true\nlisteners = [\"0.0.0.0:50001\", \"unix:/run/x\"]";
    let listeners = parse(text).expect("valid").api.listeners;
    assert_eq!(
        listeners.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["0.0.0.0:50001", "unix:/run/x"]
    );
    for loopback in ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "unix:/run/x"] {
        parse(&format!("[api]\nlisteners = [\"{loopback}\"]")).expect("loopback needs no more");
    }
}

#[test]
fn the_command_line_overrides_the_file() {
    let overrides = Overrides { instance: Some("two".to_owned()), log_level: Some("debug".to_owned()) };
    let config = Config::parse("instance = \"one\"\n[log]\nlevel = \"warn\"", &overrides).expect("valid");
    assert_eq!((config.instance.as_str(), config.log.level.as_str()), ("two", "debug"));
    assert_eq!(config.api.socket, Path::new("/run/ncm/two.sock"));
}

#[test]
fn the_tunnel_endpoint_is_an_address_of_the_node_unless_others_are_given() {
    let endpoint = "[underlay]\nendpoint_v4 = \"192.0.2.1\"\ninterfaces = [\"eth1\"]\n";
    let config = parse(endpoint).expect("valid");
    assert_eq!(config.node.addresses, [IpAddr::from([192, 0, 2, 1])]);
    let both =
        "[underlay]\nendpoint_v4 = \"192.0.2.1\"\nendpoint_v6 = \"2001:db8::1\"\ninterfaces = [\"eth1\"]\n";
    let v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
    assert_eq!(parse(both).expect("valid").node.addresses, [IpAddr::from([192, 0, 2, 1]), v6]);
    let config = parse(&format!("{endpoint}[node]\naddresses = [\"198.51.100.7\"]")).expect("valid");
    assert_eq!(config.node.addresses, [IpAddr::from([198, 51, 100, 7])]);
    assert!(parse("[metrics]\nlisten = \"\"").expect("valid").metrics.is_none());
}

#[test]
fn what_is_out_of_range_or_not_there_is_one_fault() {
    assert!(fault("[capacity]\nports = 99_999_999_999").problem.contains("expected an integer from 2 to"));
    assert!(fault("[capacity]\nports = 0").problem.contains("expected an integer from 2 to"));
    let group = fault("[api]\ngroup = \"no-such-group\"");
    assert_eq!(group.key, "api.group");
    assert!(group.problem.contains("a group on this host"), "{}", group.problem);
    assert_eq!(parse("[api]\ngroup = \"root\"").expect("there is one").api.group.as_deref(), Some("root"));
}
