use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::authorization::policy::{Authorization, HostMatch};
use crate::identity::SpiffeId;

fn external(id: &str, hosts: &[&str], ports: &[(u16, ExternalProtocol)]) -> External {
    External {
        id: id.parse().expect("an id"),
        is_mesh_wide: id.starts_with("weft-system/"),
        hosts: hosts.iter().map(|h| h.parse().expect("a host")).collect(),
        ports: ports.iter().map(|(port, protocol)| ExternalPort { port: *port, target: *port, protocol: *protocol }).collect(),
        origination: None,
        resolution: Resolution::Dns,
        authorization: Authorization::default(),
    }
}

fn own() -> SpiffeId {
    "spiffe://td/ns/shop/sa/web".parse().expect("an identity")
}

fn table(externals: Vec<External>) -> Table {
    let externals = externals.into_iter().map(Arc::new).collect();
    Table::new(&Egress { default: EgressDefault::Deny, externals, ..Egress::default() }, &own(), None)
}

fn winner(table: &Table, host: &str, port: u16) -> Option<String> {
    table.find(&Host::read(host)?, port).map(|(listed, _)| listed.external.id.to_string())
}

#[test]
fn the_mesh_goes_before_a_namespace_and_who_says_more_before_who_says_less() {
    use ExternalProtocol::Tls;
    let all = table(vec![
        external("shop/wild", &["*.example.com"], &[(443, Tls)]),
        external("shop/deep", &["*.api.example.com"], &[(443, Tls)]),
        external("shop/exact", &["v1.api.example.com", "example.com"], &[(443, Tls)]),
        external("shop/other", &["pay.example.org"], &[(443, Tls)]),
        external("weft-system/all", &["*.example.org"], &[(443, Tls)]),
    ]);
    for (host, want) in [
        ("v1.api.example.com", Some("shop/exact")),
        ("V1.API.Example.COM.", Some("shop/exact")),
        ("v2.api.example.com", Some("shop/deep")),
        ("api.example.com", Some("shop/wild")),
        ("a.b.example.com", Some("shop/wild")),
        ("example.com", Some("shop/exact")),
        ("badexample.com", None),
        ("com", None),
        ("pay.example.org", Some("weft-system/all")),
        ("example.org", None),
        ("xn--e1afmkfd.example.com", Some("shop/wild")),
    ] {
        assert_eq!(winner(&all, host, 443).as_deref(), want, "{host}");
    }
    assert_eq!(winner(&all, "example.com", 80), None, "another port is another matter");
}

#[test]
fn what_says_the_same_is_kept_when_something_else_changes() {
    let ports = [(443, ExternalProtocol::Tls)];
    let all = |x: &str| {
        let externals = vec![external("shop/a", &["a.example"], &ports), external("shop/b", &[x], &ports)];
        Egress { externals: externals.into_iter().map(Arc::new).collect(), ..Egress::default() }
    };
    let before = Table::new(&all("b.example"), &own(), None);
    let after = Table::new(&all("c.example"), &own(), Some(&before));
    let of = |table: &Table, host: &str| table.find(&Host::read(host).expect("a host"), 443).expect("listed").0.clone();
    assert!(after.holds(&of(&before, "a.example")) && !after.holds(&of(&before, "b.example")));
    assert_eq!(&*of(&after, "c.example").name, "external shop/b");
    let again = Table::new(&all("c.example"), &own(), Some(&after));
    assert!(again.holds(&of(&after, "c.example")));
}

#[test]
fn bytes_are_known_by_their_address() {
    use ExternalProtocol::{Tcp, Tls};
    let ip: IpAddr = "203.0.113.5".parse().expect("an address");
    let mut fixed = external("shop/db", &["db.example.com"], &[(5432, Tcp)]);
    fixed.resolution = Resolution::Static(vec![Endpoint { address: ip, port: None }]);
    let all = table(vec![fixed, external("shop/queue", &["*.queue.example.com"], &[(5671, Tcp), (443, Tls)])]);
    let found = |ip: IpAddr, port, names: &[&str]| {
        let names: Vec<Host> = names.iter().filter_map(|n| Host::read(n)).collect();
        all.find_by_address(ip, port, &names).map(|(listed, _)| listed.external.id.to_string())
    };
    let other = "203.0.113.6".parse().expect("an address");
    assert_eq!(found(ip, 5432, &[]).as_deref(), Some("shop/db"));
    assert_eq!(found(ip, 5433, &[]), None);
    assert_eq!(found(other, 5432, &["db.example.com"]), None, "a fixed one is where it is said to be, whatever a resolver says");
    assert_eq!(found(other, 5671, &["a.queue.example.com"]).as_deref(), Some("shop/queue"));
    assert_eq!(found(other, 443, &["a.queue.example.com"]), None, "TLS is known by its server name");
    assert_eq!(found(other, 5671, &["evil.example.net"]), None);
}

#[test]
fn what_is_fixed_for_a_name_is_known_and_what_is_resolved_is_not() {
    use ExternalProtocol::{Http, Tcp};
    let fixed = |id: &str, hosts: &[&str], ports: &[(u16, ExternalProtocol)], addresses: &[&str]| External {
        resolution: Resolution::Static(
            addresses.iter().map(|a| Endpoint { address: a.parse().expect("an address"), port: None }).collect(),
        ),
        ..external(id, hosts, ports)
    };
    let all = table(vec![
        fixed("shop/a", &["a.example", "*.wild.example"], &[(80, Http), (81, Http)], &["203.0.113.1", "2001:db8::1"]),
        fixed("shop/b", &["b.example"], &[(80, Http)], &["203.0.113.2"]),
        external("shop/b-too", &["b.example"], &[(5432, Tcp)]),
        fixed("shop/c", &["c.mesh.example"], &[(80, Http)], &["203.0.113.3"]),
        external("weft-system/c", &["*.mesh.example"], &[(80, Http)]),
    ]);
    let of = |host: &str| all.fixed(&Host::read(host).expect("a host")).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(of("A.example."), ["203.0.113.1", "2001:db8::1"]);
    for (host, why) in [
        ("x.wild.example", "not named itself"),
        ("b.example", "the resolver is asked at a port"),
        ("c.mesh.example", "the mesh's own comes first, and is resolved"),
        ("d.example", "nobody names it"),
    ] {
        assert_eq!(of(host), Vec::<String>::new(), "{host}: {why}");
    }
}

#[test]
fn a_host_is_read_one_way_or_not_at_all() {
    for (authority, want) in [
        ("Example.com", Some("example.com")),
        ("example.com.:8080", Some("example.com")),
        ("example.com:", Some("example.com")),
        ("[::1]:80", Some("::1")),
        ("[::ffff:10.0.0.1]", Some("10.0.0.1")),
        ("10.0.0.1:80", Some("10.0.0.1")),
        ("example.com:99999", None),
        ("example.com:8 0", None),
        ("user@example.com", None),
        ("example.com/evil.com", None),
        ("a..b", None),
        ("127.1", None),
        ("2130706433", None),
        ("0x7f000001", None),
        ("a.0x7f", None),
        ("[10.0.0.1]", None),
        ("exa mple.com", None),
        ("", None),
        (".", None),
        ("::1", None),
    ] {
        assert_eq!(host_of(authority.as_bytes()).map(|h| h.to_string()).as_deref(), want, "{authority:?}");
    }
}

#[test]
fn names_lead_neither_into_the_pod_nor_into_the_mesh() {
    let own: Vec<IpAddr> = vec!["198.51.100.7".parse().expect("an address")];
    let mesh = ["10.47.0.0/16".parse().expect("a network")];
    for (ip, want) in [
        ("127.0.0.1", Some(Forbidden::Loopback)),
        ("0.0.0.0", Some(Forbidden::Loopback)),
        ("::1", Some(Forbidden::Loopback)),
        ("::ffff:127.0.0.1", Some(Forbidden::Loopback)),
        ("64:ff9b::7f00:1", Some(Forbidden::Loopback)),
        ("169.254.169.254", Some(Forbidden::LinkLocal)),
        ("64:ff9b::a9fe:a9fe", Some(Forbidden::LinkLocal)),
        ("2002:a9fe:a9fe::1", Some(Forbidden::LinkLocal)),
        ("fe80::1", Some(Forbidden::LinkLocal)),
        ("fd00:ec2::254", Some(Forbidden::LinkLocal)),
        ("224.0.0.1", Some(Forbidden::NoHost)),
        ("255.255.255.255", Some(Forbidden::NoHost)),
        ("ff02::1", Some(Forbidden::NoHost)),
        ("198.51.100.7", Some(Forbidden::Own)),
        ("::ffff:198.51.100.7", Some(Forbidden::Own)),
        ("10.47.3.3", Some(Forbidden::Mesh)),
        ("64:ff9b::0a2f:303", Some(Forbidden::Mesh)),
        ("::ffff:10.47.3.3", Some(Forbidden::Mesh)),
        ("::10.47.3.3", Some(Forbidden::Mesh)),
        ("::ffff:0:10.47.3.3", Some(Forbidden::Mesh)),
        // RFC 8215: any length of prefix may be in use within it (RFC 6052, section 2.2).
        ("64:ff9b:1::a9fe:a9fe", Some(Forbidden::LinkLocal)),
        ("64:ff9b:1:a9fe:a9:fe00::", Some(Forbidden::LinkLocal)),
        ("64:ff9b:1:12a9:fe:a9fe::", Some(Forbidden::LinkLocal)),
        ("64:ff9b:1:1234:a9:fea9:fe00::", Some(Forbidden::LinkLocal)),
        ("64:ff9b:1:1234:7f:0:100::", Some(Forbidden::Loopback)),
        ("64:ff9b:1::0a2f:303", Some(Forbidden::Mesh)),
        ("2002:0a2f:303::1", Some(Forbidden::Mesh)),
        // Teredo: the client's address is written inverted, the server's as it is.
        ("2001:0:5db8:d822:0:0:5601:5601", Some(Forbidden::LinkLocal)),
        ("2001:0:a9fe:a9fe:0:0:a247:27dd", Some(Forbidden::LinkLocal)),
        ("2001:0:5db8:d822:0:0:f5d0:fcfc", Some(Forbidden::Mesh)),
        // ISATAP.
        ("2606:2800:220:1:0:5efe:a9fe:a9fe", Some(Forbidden::LinkLocal)),
        ("2606:2800:220:1:200:5efe:0a2f:303", Some(Forbidden::Mesh)),
        ("2606:2800:220:1:0:5efe:5db8:d822", None),
        ("64:ff9b::5db8:d822", None),
        ("2002:5db8:d822::1", None),
        ("fd20:ce::254", Some(Forbidden::LinkLocal)),
        ("100.100.100.200", Some(Forbidden::LinkLocal)),
        ("168.63.129.16", Some(Forbidden::LinkLocal)),
        ("10.48.0.1", None),
        ("93.184.216.34", None),
        ("2606:2800:220:1::1", None),
    ] {
        assert_eq!(forbidden(ip.parse().expect("an address"), &own, Some(&mesh)), want, "{ip}");
    }
    assert_eq!(
        forbidden("93.184.216.34".parse().expect("an address"), &own, None),
        Some(Forbidden::Mesh),
        "before the ranges are known"
    );
}

fn label() -> impl Strategy<Value = String> {
    "[a-c]{1,2}"
}

fn name(labels: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    proptest::collection::vec(label(), labels).prop_map(|l| l.join("."))
}

/// One external service after another, by the words of the order.
fn naive(all: &[External], host: &str) -> Option<String> {
    let says = |e: &External| {
        e.hosts
            .iter()
            .filter_map(|h| match h {
                HostMatch::Exact(name) => (**name == *host).then_some(usize::MAX),
                HostMatch::Suffix(s) => host.ends_with(&format!(".{s}")).then(|| s.split('.').count()),
            })
            .max()
    };
    let matching = all.iter().filter_map(|e| Some((e, says(e)?)));
    matching.min_by_key(|(e, most)| (!e.is_mesh_wide, std::cmp::Reverse(*most), e.id.clone())).map(|(e, _)| e.id.to_string())
}

proptest! {
    #[test]
    fn the_table_finds_what_a_list_walk_finds(
        all in proptest::collection::vec((any::<bool>(), proptest::collection::vec((any::<bool>(), name(1..4)), 1..3)), 0..8),
        host in name(1..5),
    ) {
        let all: Vec<External> = all.into_iter().enumerate().map(|(i, (home, hosts))| {
            let id = format!("{}/e{i}", if home { "weft-system" } else { "shop" });
            let hosts: Vec<String> = hosts.into_iter().map(|(wild, name)| if wild { format!("*.{name}") } else { name }).collect();
            let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
            external(&id, &hosts, &[(443, ExternalProtocol::Tls)])
        }).collect();
        let want = naive(&all, &host);
        prop_assert_eq!(winner(&table(all), &host, 443), want);
    }

    #[test]
    fn any_bytes_are_a_host_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Some(host) = host_of(&bytes) {
            let text = host.to_string();
            prop_assert_eq!(Host::read(&text), Some(host));
        }
    }
}
