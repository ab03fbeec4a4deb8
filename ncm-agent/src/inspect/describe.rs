//! How each table is shown: which type its keys and values are, by the table's name.

use ncm_common::Plain;
use ncm_common::tables::{
    ClassKey, Classes, Count, Flow, FlowKey, Host, IpKey, MacKey, Name, NameKey, NextHopGroup, Node,
    PolicyCount, PolicyCountKey, Port, PortDropKey, PortFlows, PortLimits, PortTraffic, Route, RouteKey,
    Rule, RuleKey, Source, SourceKey, SourcePrefixKey, Subnet, SubnetPrefixKey, TableKind, TableSpec, Vni,
    VtepKey, table,
};

use super::columns::{Columns, KeyError, Value};
use super::flows::{Epoch, Ticks};
use super::keys::{
    Counter, GroupIndex, HostIndex, Interface, KeyBytes, PortIndex, Reason, Slot, SubnetIndex, Timeout,
    VniKey,
};
use super::names::Names;
use super::values::{
    Device, EndpointByIp, EndpointByMac, Heartbeat, HostReference, PortReference, SubnetReference,
};

/// How one table is shown.
pub struct Description {
    /// The table.
    pub spec: &'static TableSpec,
    /// Columns of the key, in order.
    pub key_columns: &'static [&'static str],
    /// Columns of the value, in order.
    pub value_columns: &'static [&'static str],
    /// A key in text.
    pub key_example: &'static str,
    key: fn(&[u8], &Names) -> Option<Vec<Value>>,
    value: fn(&[u8], &Names) -> Option<Vec<Value>>,
    parse: fn(&[&str], &Names) -> Result<Vec<u8>, KeyError>,
}

impl Description {
    /// Name of the table in lower case.
    #[must_use]
    pub fn name(&self) -> String {
        self.spec.name.to_ascii_lowercase()
    }

    /// Names of all columns, the key's first.
    #[must_use]
    pub fn columns(&self) -> Vec<&'static str> {
        self.key_columns.iter().chain(self.value_columns).copied().collect()
    }

    /// One value per column; `None` if the bytes do not have the table's sizes.
    #[must_use]
    pub fn row(&self, key: &[u8], value: &[u8], names: &Names) -> Option<Vec<Value>> {
        let mut values = (self.key)(key, names)?;
        values.append(&mut (self.value)(value, names)?);
        Some(values)
    }

    /// The key in text: what [`Description::parse_key`] reads; `None` if it does not have the table's size.
    #[must_use]
    pub fn key_text(&self, key: &[u8], names: &Names) -> Option<String> {
        let values = (self.key)(key, names)?;
        let parts = self.key_columns.iter().zip(values).map(|(column, value)| format!("{column}={value}"));
        Some(parts.collect::<Vec<_>>().join(","))
    }

    /// The table's bytes of a key in text. Columns come in any order; where there is only one, its name may be left out.
    ///
    /// # Errors
    ///
    /// What is wrong with the text, and how a key of this table looks.
    pub fn parse_key(&self, text: &str, names: &Names) -> Result<Vec<u8>, KeyError> {
        let shape = |what: String| KeyError::Shape {
            table: self.name(),
            columns: self.key_columns.join("=…,") + "=…",
            example: self.key_example,
            what,
        };
        let mut texts: Vec<Option<&str>> = vec![None; self.key_columns.len()];
        if let ([_], false) = (self.key_columns, text.contains('=')) {
            texts[0] = Some(text.trim());
        } else {
            for part in text.split(',') {
                let Some((column, value)) = part.split_once('=') else {
                    return Err(shape(format!("`{part}` is not column=value")));
                };
                let Some(position) = self.key_columns.iter().position(|name| *name == column.trim()) else {
                    return Err(shape(format!("it has no column `{}`", column.trim())));
                };
                if texts[position].replace(value.trim()).is_some() {
                    return Err(shape(format!("`{}` is given twice", column.trim())));
                }
            }
        }
        let missing = texts.iter().position(Option::is_none);
        if let Some(missing) = missing {
            return Err(shape(format!("`{}` is missing", self.key_columns[missing])));
        }
        let texts: Vec<&str> = texts.into_iter().flatten().collect();
        (self.parse)(&texts, names)
    }

    /// Whether the entry says nothing: an unused slot of an array, or a counter at zero.
    #[must_use]
    pub fn is_empty(&self, value: &[u8]) -> bool {
        matches!(self.spec.kind, TableKind::Array | TableKind::PerCpuArray)
            && value.iter().all(|byte| *byte == 0)
    }
}

fn key_values<K: KeyBytes>(bytes: &[u8], names: &Names) -> Option<Vec<Value>> {
    K::read(bytes).map(|key| key.values(names))
}

fn parse_key<K: KeyBytes>(texts: &[&str], names: &Names) -> Result<Vec<u8>, KeyError> {
    K::parse(texts, names).map(|key| key.write())
}

/// The tables by name: key's type, value's type as it is in the table, and the way from there to what is shown.
macro_rules! descriptions {
    ($($name:ident: $key:ty => $shown:ty, $wrap:expr;)+) => {
        /// How each table is shown, in the order of [`ncm_common::tables::TABLES`].
        #[must_use]
        pub fn descriptions() -> Vec<Description> {
            let known = [$(
                table(stringify!($name)).map(|spec| Description {
                    spec,
                    key_columns: <$key as Columns>::NAMES,
                    value_columns: <$shown as Columns>::NAMES,
                    key_example: <$key as super::columns::TextKey>::EXAMPLE,
                    key: key_values::<$key>,
                    value: |bytes, names| {
                        let shown: $shown = Plain::from_bytes(bytes).map($wrap)?;
                        Some(shown.values(names))
                    },
                    parse: parse_key::<$key>,
                }),
            )+];
            known.into_iter().flatten().collect()
        }
    };
}

descriptions! {
    NAMES: NameKey => Name, |value| value;
    NODE: Slot => Node, |value| value;
    HEARTBEAT: Slot => Heartbeat, Heartbeat;
    NEXT_HOP_GROUPS: GroupIndex => NextHopGroup, |value| value;
    HOSTS: HostIndex => Host, |value| value;
    RULES: RuleKey => Rule, |value| value;
    CLASSES: ClassKey => Classes, |value| value;
    SUBNETS: SubnetIndex => Subnet, |value| value;
    PORTS: PortIndex => Port, |value| value;
    VNIS: VniKey => Vni, |value| value;
    SUBNET_PREFIXES: SubnetPrefixKey => SubnetReference, SubnetReference;
    VTEPS: VtepKey => HostReference, HostReference;
    ENDPOINTS_MAC: MacKey => EndpointByMac, EndpointByMac;
    ENDPOINTS_IP: IpKey => EndpointByIp, EndpointByIp;
    ROUTES: RouteKey => Route, |value| value;
    SOURCES: SourceKey => Source, |value| value;
    SOURCE_PREFIXES: SourcePrefixKey => Source, |value| value;
    REMOTE_EPOCHS: Slot => Epoch, Epoch;
    TIMEOUTS: Timeout => Ticks, Ticks;
    FLOWS: FlowKey => Flow, |value| value;
    HALF_OPEN: FlowKey => Flow, |value| value;
    PORT_FLOWS: PortIndex => PortFlows, |value| value;
    POLICY_COUNTS: PolicyCountKey => PolicyCount, |value| value;
    DEVICES: Interface => Device, Device;
    PORT_BY_INTERFACE: Interface => PortReference, PortReference;
    DROPS: Reason => Count, |value| value;
    PORT_DROPS: PortDropKey => Count, |value| value;
    PORT_TRAFFIC: PortIndex => PortTraffic, |value| value;
    COUNTERS: Counter => Count, |value| value;
    LIMITS: PortIndex => PortLimits, |value| value;
}

/// How the table of that name (upper or lower case) is shown, if there is one.
#[must_use]
pub fn describe(name: &str) -> Option<Description> {
    descriptions().into_iter().find(|description| description.spec.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use ncm_common::tables::TABLES;

    use super::*;

    /// Bytes that look like something, different for each seed.
    fn pattern(len: u32, seed: u8) -> Vec<u8> {
        (0..len).map(|index| (index as u8).wrapping_mul(37).wrapping_add(seed)).collect()
    }

    #[test]
    fn every_table_is_described_once_and_in_order() {
        let described: Vec<&str> = descriptions().iter().map(|description| description.spec.name).collect();
        let tables: Vec<&str> = TABLES.iter().map(|spec| spec.name).collect();
        assert_eq!(described, tables);
    }

    #[test]
    fn every_table_decodes_bytes_of_its_own_sizes_and_no_others() {
        let names = Names::default();
        for description in descriptions() {
            let TableSpec { name, key_size, value_size, .. } = description.spec;
            for seed in [0, 1, 128, 255] {
                let (key, value) = (pattern(*key_size, seed), pattern(*value_size, seed));
                let row = description.row(&key, &value, &names);
                let row = row.unwrap_or_else(|| panic!("{name} does not decode its own sizes"));
                assert_eq!(
                    row.len(),
                    description.columns().len(),
                    "{name}: values and columns differ in number"
                );
            }
            let short = description.row(&pattern(*key_size - 1, 1), &pattern(*value_size, 1), &names);
            assert_eq!(short, None, "{name} decodes a cut key");
            let long = description.row(&pattern(*key_size, 1), &pattern(*value_size + 1, 1), &names);
            assert_eq!(long, None, "{name} decodes a long value");
        }
    }

    #[test]
    fn column_names_are_unique_within_a_table() {
        for description in descriptions() {
            let mut columns = description.columns();
            columns.sort_unstable();
            let all = columns.len();
            columns.dedup();
            assert_eq!(columns.len(), all, "{} has two columns of one name", description.name());
        }
    }

    #[test]
    fn a_key_is_accepted_in_the_form_in_which_it_is_printed() {
        let names = Names::default();
        for description in descriptions() {
            let key = description.parse_key(description.key_example, &names);
            let key = match key {
                Ok(key) => key,
                // Names have to be known, which they are not here.
                Err(KeyError::Unknown { .. }) => continue,
                Err(error) => panic!("{}: the example does not parse: {error}", description.name()),
            };
            let text = description.key_text(&key, &names).unwrap();
            assert_eq!(text, description.key_example, "{}", description.name());
            assert_eq!(description.parse_key(&text, &names).unwrap(), key, "{}", description.name());
        }
    }

    #[test]
    fn names_stand_for_indices_in_both_directions() {
        let name = |text: &str, generation| {
            let mut name = Name { generation, len: text.len() as u32, ..Name::default() };
            name.text[..text.len()].copy_from_slice(text.as_bytes());
            name
        };
        let entries = [
            (NameKey { kind: 1, index: 3 }, name("port-a", 1)),
            (NameKey { kind: 1, index: 4 }, name("odd,name=x", 1)),
            (NameKey { kind: 1, index: 5 }, name("twice", 1)),
            (NameKey { kind: 1, index: 6 }, name("twice", 2)),
        ];
        let names = Names::new(entries, [(9, "eth9".to_owned())]);
        let ports = describe("ports").unwrap();
        for (index, text) in
            [(3_u32, "port=port-a"), (4, "port=#4"), (5, "port=#5"), (6, "port=twice"), (7, "port=#7")]
        {
            let key = index.as_bytes();
            assert_eq!(ports.key_text(key, &names).unwrap(), text);
            assert_eq!(ports.parse_key(text, &names).unwrap(), key);
        }
        let interfaces = describe("PORT_BY_INTERFACE").unwrap();
        assert_eq!(interfaces.parse_key("interface=eth9", &names).unwrap(), 9_u32.as_bytes());
        assert_eq!(interfaces.parse_key("eth9", &names).unwrap(), 9_u32.as_bytes());
        assert!(interfaces.parse_key("interface=eth10", &names).is_err());
    }

    #[test]
    fn a_wrong_key_says_what_is_wrong_and_how_a_right_one_looks() {
        let names = Names::default();
        let endpoints = describe("endpoints_ip").unwrap();
        let cases = [
            ("10.0.0.5", "`10.0.0.5` is not column=value"),
            ("vni=1", "`ip` is missing"),
            ("vni=1,vni=2,ip=10.0.0.5", "`vni` is given twice"),
            ("vni=1,mac=x", "no column `mac`"),
            ("vni=1,ip=10.0.0.256", "`10.0.0.256` is not an IP address"),
            ("vni=x,ip=10.0.0.5", "`x` is not a VNI"),
            ("", "is not column=value"),
        ];
        for (text, expected) in cases {
            let error = endpoints.parse_key(text, &names).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: got `{error}`");
        }
        let error = endpoints.parse_key("vni=1", &names).unwrap_err().to_string();
        assert!(error.contains("vni=100,ip=10.0.0.5"), "no example in `{error}`");
    }

    #[test]
    fn a_reference_to_something_that_is_gone_is_called_stale() {
        let mut name = Name { generation: 2, len: 6, ..Name::default() };
        name.text[..6].copy_from_slice(b"subnet");
        let names = Names::new([(NameKey { kind: 2, index: 1 }, name)], []);
        let sources = describe("sources").unwrap();
        let key = sources.parse_key("port=#1,mac=02:00:00:00:00:01,ip=10.0.0.9", &names).unwrap();
        let row = |generation| {
            let value = Source { subnet: 1, subnet_generation: generation };
            sources.row(&key, value.as_bytes(), &names).unwrap()[3].to_string()
        };
        assert_eq!(row(2), "subnet");
        assert_eq!(row(1), "#1 (stale)");
    }
}
