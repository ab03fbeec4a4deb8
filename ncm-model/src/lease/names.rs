//! The names of DHCP options: dnsmasq's (which are OpenStack's), and beside them those of the ISC server where it has others.

/// What an option's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Addresses, at least one.
    Addresses,
    /// Addresses in pairs.
    AddressPairs,
    /// One address.
    Address,
    /// Characters.
    Text,
    /// Domain names.
    Names,
    /// One byte, 1 or 0.
    Bool,
    /// A number of one byte.
    U8,
    /// A number of two bytes.
    U16,
    /// Numbers of two bytes each.
    U16s,
    /// A number of four bytes.
    U32,
    /// A signed number of four bytes.
    I32,
    /// Seconds in four bytes.
    Time,
    /// Classless static routes.
    Routes,
    /// NTP servers as DHCPv6 has them.
    NtpServers,
    /// Bytes in hexadecimal, or characters.
    Bytes,
    /// Whatever the value looks like.
    Any,
}

/// An option that has a name.
pub(super) struct Named {
    pub(super) code: u16,
    pub(super) names: &'static [&'static str],
    pub(super) kind: Kind,
}

macro_rules! named {
    ($($code:literal $kind:ident $($name:literal)+;)+) => {
        &[$(Named { code: $code, names: &[$($name),+], kind: Kind::$kind },)+]
    };
}

/// Options of DHCP (RFC 2132 and later), by number.
pub(super) const V4: &[Named] = named! {
    1 Address "netmask" "subnet-mask";
    2 I32 "time-offset";
    3 Addresses "router" "routers";
    4 Addresses "time-server" "time-servers";
    5 Addresses "name-server" "ien116-name-servers";
    6 Addresses "dns-server" "domain-name-servers" "dns-servers";
    7 Addresses "log-server" "log-servers";
    8 Addresses "cookie-server" "cookie-servers" "quotes-server";
    9 Addresses "lpr-server" "lpr-servers";
    10 Addresses "impress-servers";
    11 Addresses "resource-location-servers";
    12 Text "hostname" "host-name";
    13 U16 "boot-file-size" "boot-size";
    14 Text "merit-dump";
    15 Text "domain-name";
    16 Addresses "swap-server";
    17 Text "root-path";
    18 Text "extension-path" "extensions-path";
    19 Bool "ip-forward-enable" "ip-forwarding";
    20 Bool "non-local-source-routing";
    21 AddressPairs "policy-filter";
    22 U16 "max-datagram-reassembly" "max-dgram-reassembly";
    23 U8 "default-ttl" "default-ip-ttl";
    24 U32 "path-mtu-aging-timeout";
    25 U16s "path-mtu-plateau-table";
    26 U16 "mtu" "interface-mtu";
    27 Bool "all-subnets-local";
    28 Address "broadcast" "broadcast-address";
    29 Bool "perform-mask-discovery";
    30 Bool "mask-supplier";
    31 Bool "router-discovery";
    32 Address "router-solicitation" "router-solicitation-address";
    33 AddressPairs "static-route" "static-routes";
    34 Bool "trailer-encapsulation";
    35 U32 "arp-timeout" "arp-cache-timeout";
    36 Bool "ethernet-encap" "ieee802-3-encapsulation";
    37 U8 "tcp-ttl" "default-tcp-ttl";
    38 U32 "tcp-keepalive" "tcp-keepalive-interval";
    39 Bool "tcp-keepalive-garbage";
    40 Text "nis-domain";
    41 Addresses "nis-server" "nis-servers";
    42 Addresses "ntp-server" "ntp-servers";
    43 Bytes "vendor-encap" "vendor-encapsulated-options";
    44 Addresses "netbios-ns" "netbios-name-servers";
    45 Addresses "netbios-dd" "netbios-dd-server";
    46 U8 "netbios-nodetype" "netbios-node-type";
    47 Bytes "netbios-scope";
    48 Addresses "x-windows-fs" "font-servers";
    49 Addresses "x-windows-dm" "x-display-manager";
    51 Time "lease-time" "dhcp-lease-time";
    58 Time "t1" "dhcp-renewal-time";
    59 Time "t2" "dhcp-rebinding-time";
    60 Bytes "vendor-class" "vendor-class-identifier";
    64 Text "nis+-domain" "nisplus-domain";
    65 Addresses "nis+-server" "nisplus-servers";
    66 Text "tftp-server" "tftp-server-name";
    67 Text "bootfile-name" "bootfile" "filename";
    68 Addresses "mobile-ip-home" "mobile-ip-home-agent";
    69 Addresses "smtp-server";
    70 Addresses "pop3-server" "pop-server";
    71 Addresses "nntp-server";
    72 Addresses "www-server";
    73 Addresses "finger-server";
    74 Addresses "irc-server";
    75 Addresses "streettalk-server";
    76 Addresses "streettalk-directory-assistance-server";
    77 Bytes "user-class";
    93 U16 "client-arch";
    94 Bytes "client-interface-id";
    97 Bytes "client-machine-id";
    100 Text "posix-timezone" "pcode";
    101 Text "tzdb-timezone" "tcode";
    108 Time "ipv6-only" "v6-only-preferred";
    114 Text "captive-portal" "default-url";
    116 U8 "auto-config";
    119 Names "domain-search";
    120 Bytes "sip-server";
    121 Routes "classless-static-route" "classless-static-routes" "rfc3442-classless-static-routes";
    125 Bytes "vendor-id-encap";
    150 Addresses "tftp-server-address";
    209 Text "config-file" "loader-configfile";
    210 Text "path-prefix" "loader-pathprefix";
    211 Time "reboot-time" "loader-reboottime";
    249 Routes "ms-classless-static-route" "ms-classless-static-routes";
    252 Text "wpad";
};

/// Options of DHCPv6 (RFC 8415 and others), by number.
pub(super) const V6: &[Named] = named! {
    7 U8 "preference";
    15 Bytes "user-class";
    16 Bytes "vendor-class";
    17 Bytes "vendor-opts";
    21 Names "sip-server-domain" "sip-servers-names";
    22 Addresses "sip-server" "sip-servers-addresses";
    23 Addresses "dns-server" "name-servers" "dns-servers";
    24 Names "domain-search";
    27 Addresses "nis-server" "nis-servers";
    28 Addresses "nis+-server" "nisp-servers";
    29 Names "nis-domain" "nis-domain-name";
    30 Names "nis+-domain" "nisp-domain-name";
    31 Addresses "sntp-server" "sntp-servers";
    32 Time "information-refresh-time" "info-refresh-time";
    41 Text "posix-timezone" "new-posix-timezone";
    42 Text "tzdb-timezone" "new-tzdb-timezone";
    56 NtpServers "ntp-server" "ntp-servers";
    59 Text "bootfile-url";
    60 Bytes "bootfile-param";
    82 Time "sol-max-rt";
    83 Time "inf-max-rt";
    103 Text "captive-portal";
};
