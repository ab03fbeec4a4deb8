//! What files are accepted, and what is said about those that are not.

use super::*;

fn accepted(text: &str) -> Vec<wire::GoalStateV2> {
    match parse("states.yaml", text) {
        Ok(documents) => documents.into_iter().map(|document| document.state).collect(),
        Err(problems) => panic!("refused: {}", lines(&problems)),
    }
}

fn refused(text: &str) -> String {
    match parse("states.yaml", text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(problems) => lines(&problems),
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

const PORT: &str = "
formatVersion: 101
portStates:
  p1:
    operationType: CREATE
    configuration:
      id: p1
      revision_number: 1
      macAddress: 02:00:00:00:00:01
      adminStateUp: true
      fixedIps:
        - subnetId: s1
          ipAddress: 10.0.0.5
";

#[test]
fn both_spellings_and_both_notations_give_the_same_message() {
    let yaml = accepted(PORT);
    let json = accepted(
        r#"{"format_version": "101", "port_states": {"p1": {"operation_type": 1, "configuration": {
            "id": "p1", "revisionNumber": 1, "mac_address": "02:00:00:00:00:01", "admin_state_up": true,
            "fixed_ips": [{"subnet_id": "s1", "ip_address": "10.0.0.5"}]}}}}"#,
    );
    assert_eq!(yaml, json);
    let port = yaml[0].port_states["p1"].configuration.clone().unwrap();
    assert_eq!((port.id.as_str(), port.revision_number, port.admin_state_up), ("p1", 1, true));
    assert_eq!(port.fixed_ips[0].ip_address, "10.0.0.5");
}

#[test]
fn a_file_may_hold_several_documents_and_empty_ones_count_for_nothing() {
    assert_eq!(accepted("---\nformatVersion: 1\n---\n---\nformatVersion: 2\n...\n").len(), 2);
    assert_eq!(accepted("").len(), 0);
    assert_eq!(accepted("# only a comment\n").len(), 0);
    let documents = parse("s.yaml", "formatVersion: 1\n---\nformatVersion: 2\n").unwrap();
    assert_eq!(documents[1].place, "s.yaml (document 2)");
}

#[test]
fn null_leaves_a_field_unset() {
    assert_eq!(accepted("formatVersion: null\nportStates: ~\n"), [wire::GoalStateV2::default()]);
}

#[test]
fn what_is_wrong_is_said_with_file_line_path_and_remedy() {
    let cases = [
        (
            PORT.replace("macAddress", "macAdress"),
            "states.yaml:9: portStates.p1.configuration.macAdress: unknown field (did you mean macAddress?)",
        ),
        (
            PORT.replace("fixedIps", "addresses"),
            "states.yaml:11: portStates.p1.configuration.addresses: unknown field; PortConfiguration has ",
        ),
        (
            PORT.replace("subnetId", "subnet"),
            "states.yaml:12: portStates.p1.configuration.fixedIps[0].subnet: unknown field",
        ),
        (
            PORT.replace("CREATE", "MAKE"),
            "states.yaml:5: portStates.p1.operationType: expected one of INFO, CREATE, UPDATE, GET, DELETE, found `MAKE`",
        ),
        (PORT.replace("CREATE", "17"), "states.yaml:5: portStates.p1.operationType: expected one of INFO"),
        (
            PORT.replace("revision_number: 1", "revision_number: -1"),
            "states.yaml:8: portStates.p1.configuration.revision_number: expected a whole number from 0 to 4294967295, found `-1`",
        ),
        (PORT.replace("revision_number: 1", "revision_number: 4294967296"), "states.yaml:8: "),
        (PORT.replace("revision_number: 1", "revision_number: 1.5"), "states.yaml:8: "),
        (
            PORT.replace("revision_number: 1", "revision_number: [1]"),
            "states.yaml:8: portStates.p1.configuration.revision_number: expected a whole number from 0 to 4294967295, found a list",
        ),
        (
            PORT.replace("Up: true", "Up: yes"),
            "states.yaml:10: portStates.p1.configuration.adminStateUp: expected true or false, found `yes`",
        ),
        (
            PORT.replace("Up: true", "Up: \"true\""),
            "states.yaml:10: portStates.p1.configuration.adminStateUp: expected true or false, found the string \"true\"",
        ),
        (
            PORT.replace("id: p1", "id: 1234"),
            "states.yaml:7: portStates.p1.configuration.id: expected a string (put it in quotes), found `1234`",
        ),
        (
            PORT.replace("id: p1", "id: 1e3"),
            "states.yaml:7: portStates.p1.configuration.id: expected a string (put it in quotes)",
        ),
        (
            PORT.replace("id: p1", "id: {a: b}"),
            "states.yaml:7: portStates.p1.configuration.id: expected a string, found a mapping",
        ),
        (
            PORT.replace("        - subnetId: s1\n          ipA", "        subnetId: s1\n        ipA"),
            "states.yaml:12: portStates.p1.configuration.fixedIps: expected a list, found a mapping",
        ),
        ("- a\n".to_owned(), "states.yaml:1: expected a mapping (GoalStateV2), found a list"),
        (
            "portStates: [1]\n".to_owned(),
            "states.yaml:1: portStates: expected a mapping from keys to values, found a list",
        ),
        (
            "formatVersion: 1\nformat_version: 2\n".to_owned(),
            "states.yaml:2: format_version: this field is given twice",
        ),
        ("portStates: {p: {}, p: {}}\n".to_owned(), "states.yaml:1: portStates.p: this key is given twice"),
        ("a: [1\nb: 2\n".to_owned(), "not valid YAML or JSON"),
        ("{\"formatVersion\": 1".to_owned(), "not valid YAML or JSON"),
        ("a: &x {}\nb: *x\n".to_owned(), "states.yaml:2: aliases"),
        ("formatVersion: !!int 1\n".to_owned(), "states.yaml:1: tags"),
        ("? [a]\n: b\n".to_owned(), "a key has to be a string"),
    ];
    for (text, expected) in cases {
        let said = refused(&text);
        assert!(said.contains(expected), "expected `{expected}`, got `{said}` for\n{text}");
    }
}

#[test]
fn json_is_as_strict_as_yaml_and_tells_lines_as_well() {
    let port = |fields: &str| {
        format!("{{\n \"portStates\": {{\n  \"p\": {{\"configuration\": {{\n   {fields}\n}}}}}}}}")
    };
    accepted(&port("\"id\": \"p\", \"revisionNumber\": \"7\", \"vpcId\": null, \"adminStateUp\": true"));
    let cases = [
        (
            "\"macAdress\": \"x\"",
            "states.yaml:4: portStates.p.configuration.macAdress: unknown field (did you mean macAddress?)",
        ),
        (
            "\"id\": 5",
            "states.yaml:4: portStates.p.configuration.id: expected a string (put it in quotes), found `5`",
        ),
        (
            "\"revisionNumber\": 1.0",
            "states.yaml:4: portStates.p.configuration.revisionNumber: expected a whole number",
        ),
        (
            "\"adminStateUp\": \"true\"",
            "states.yaml:4: portStates.p.configuration.adminStateUp: expected true or false",
        ),
        (
            "\"id\": \"a\", \"id\": \"b\"",
            "states.yaml:4: portStates.p.configuration.id: this field is given twice",
        ),
    ];
    for (fields, expected) in cases {
        let said = refused(&port(fields));
        assert!(said.contains(expected), "expected `{expected}`, got `{said}`");
    }
}

#[test]
fn everything_that_is_wrong_is_listed_not_only_the_first() {
    let said = refused(&PORT.replace("macAddress", "mac").replace("Up: true", "Up: 1"));
    assert_eq!(said.lines().count(), 2, "{said}");
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    let said = refused(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)));
    assert!(said.contains("nested more than") || said.contains("not valid YAML"), "{said}");
}

#[test]
fn strings_that_look_like_numbers_in_other_notations_stay_strings() {
    // A MAC is base 60 in YAML 1.1, an id with an `e` a float: here they are what they look like.
    for id in
        ["02:00:00:00:00:01", "10.0.0.5", "3d53801c-32ce-4e97-9572-bb966f476aaa", "10.0.0.0/24", "1-2", "12e"]
    {
        let text = format!("vpcStates: {{v: {{configuration: {{id: {id}}}}}}}");
        let state = &accepted(&text)[0];
        assert_eq!(state.vpc_states["v"].configuration.clone().unwrap().id, id);
    }
}

#[test]
fn files_directories_and_what_cannot_be_read() {
    let directory = std::env::temp_dir().join(format!("ncm-documents-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("b.yaml"), "formatVersion: 2\n").unwrap();
    std::fs::write(directory.join("a.json"), "{\"formatVersion\": 1}").unwrap();
    std::fs::write(directory.join("c.txt"), "not read").unwrap();
    let versions = |documents: Vec<Document>| -> Vec<u32> {
        documents.iter().map(|document| document.state.format_version).collect()
    };
    let loaded = load(std::slice::from_ref(&directory)).map(versions);
    // One file that is wrong keeps all others from being used.
    std::fs::write(directory.join("d.yml"), b"formatVersion: 3\nx: \xff\n").unwrap();
    let spoilt = load(&[directory.join("b.yaml"), directory.join("d.yml"), directory.join("none.yaml")]);
    std::fs::remove_dir_all(&directory).unwrap();
    assert_eq!(loaded, Ok(vec![1, 2]));
    let said = lines(&spoilt.unwrap_err());
    assert!(said.contains("d.yml:2: not valid UTF-8"), "{said}");
    assert!(said.contains("none.yaml: cannot be read"), "{said}");
}

#[test]
fn the_nearest_name_is_found_and_a_far_one_is_not() {
    let names = ["macAddress", "fixedIps", "id"];
    assert_eq!(nearest("mac_adress", names.into_iter()), Some("macAddress"));
    assert_eq!(nearest("FixedIPs", names.into_iter()), Some("fixedIps"));
    assert_eq!(nearest("gateway", names.into_iter()), None);
}

#[test]
fn the_examples_are_accepted_and_the_tenants_have_the_same_addresses() {
    let documents = load(&[concat!(env!("CARGO_MANIFEST_DIR"), "/../examples").into()]);
    let documents = documents.unwrap_or_else(|problems| panic!("{}", lines(&problems)));
    assert!(documents.len() >= 2, "one for each host");
    for Document { place, state } in documents {
        let ports: Vec<_> = state.port_states.into_values().filter_map(|port| port.configuration).collect();
        let addresses = |vpc: &str| -> Vec<(String, String)> {
            let of = ports.iter().filter(|port| port.vpc_id == vpc);
            of.map(|port| (port.mac_address.clone(), port.fixed_ips[0].ip_address.clone())).collect()
        };
        assert_eq!(addresses("red"), addresses("blue"), "{place}");
        assert!(ports.iter().all(|port| port.admin_state_up && port.id.len() <= 11), "{place}");
    }
}
