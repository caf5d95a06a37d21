use super::*;

fn namespaces(count: usize) -> Peer {
    Peer { namespaces: (0..count).map(|i| format!("n{i}").parse().expect("a namespace")).collect(), ..Peer::default() }
}

fn ports(count: u16) -> Operation {
    Operation { ports: (1..=count).collect(), ..Operation::default() }
}

#[test]
fn the_size_of_the_index_is_known_before_it_is_made() {
    let with_paths = Operation { paths: (0..10).map(|i| below(&format!("/{i}"))).collect(), ..ports(4) };
    for (from, to, bound, buckets) in [
        (vec![], vec![], None, 1),
        (vec![namespaces(3)], vec![], None, 3),
        (vec![], vec![ports(5)], None, 5),
        (vec![namespaces(3), namespaces(2)], vec![ports(5), ports(7)], None, 60),
        (vec![namespaces(3)], vec![with_paths], None, 120),
        (vec![namespaces(3)], vec![], Some(vec![80, 81]), 6),
        (vec![namespaces(3)], vec![ports(100)], Some(vec![80, 81, 999]), 6),
        (vec![namespaces(3)], vec![], Some(vec![]), 0),
        (vec![namespaces(256); 32], vec![ports(256); 32], None, 67_108_864),
    ] {
        let rules = vec![rule(from, to)];
        assert_eq!(Policy { ports: bound, ..policy("p", Action::Allow, rules) }.buckets(), buckets);
    }
    let one = Arc::new(policy("p", Action::Allow, vec![rule(vec![namespaces(3)], vec![ports(5)]); 2]));
    assert_eq!(Authorization { policies: vec![one; 3], ..Authorization::default() }.buckets(), 90);
}

#[test]
fn many_ports_of_many_policies_are_found() {
    let bound = |ports: Vec<u16>| Policy { ports: Some(ports), ..policy("p", Action::Allow, vec![]) };
    let policies = vec![bound(vec![90, 80, 90]), bound(vec![70, 80, 9000])];
    for (port, outcome) in [(70, false), (80, false), (90, false), (9000, false), (81, true), (1, true), (9001, true)] {
        let found = judge(Posture::AllowAll, policies.clone(), connection(port, None));
        assert_eq!(found.is_open(), outcome, "{port}");
    }
}
