use std::collections::BTreeMap;

use proptest::prelude::*;

use super::iptables::{NatTable, removal_script, restore_script, rules_in, split_for_multiport};
use super::*;

fn range(text: &str) -> PortRange {
    text.parse().expect("the test's range is well formed")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("the test's subnet is well formed")
}

fn everything() -> RedirectConfig {
    RedirectConfig {
        exempt: vec![Exempt::Uid(4747), Exempt::Mark(0x4747)],
        skip_inbound_ports: vec![range("8080")],
        skip_outbound_ports: vec![range("3306-3310"), range("25")],
        skip_subnets: vec![net("10.1.2.3/16"), net("fd00::1/8")],
        skip_uids: vec![1000],
        ..RedirectConfig::default()
    }
}

#[test]
fn iptables_takes_the_plan_as_one_transaction() {
    let script = restore_script(&Plan::new(&everything(), Family::V4), &NatTable::default());
    let expected = "\
*nat
:WEFT_OUT - [0:0]
:WEFT_IN - [0:0]
-A WEFT_OUT -m owner --uid-owner 4747 -j RETURN
-A WEFT_OUT -m mark --mark 0x4747 -j RETURN
-A WEFT_OUT -o lo -j RETURN
-A WEFT_OUT -d 127.0.0.0/8 -j RETURN
-A WEFT_OUT -m owner --uid-owner 1000 -j RETURN
-A WEFT_OUT -p tcp -m multiport --dports 25,3306:3310 -j RETURN
-A WEFT_OUT -d 10.1.0.0/16 -j RETURN
-A WEFT_OUT -p tcp -j REDIRECT --to-ports 4740
-A WEFT_IN -p tcp -m multiport --dports 4791,8080 -j RETURN
-A WEFT_IN -p tcp -j REDIRECT --to-ports 4743
-I OUTPUT 1 -p tcp -j WEFT_OUT
-I PREROUTING 1 -p tcp -j WEFT_IN
COMMIT
";
    assert_eq!(script, expected);
}

#[test]
fn nft_takes_the_plan_as_one_table() {
    let ruleset = nft::ruleset(&Plan::new(&everything(), Family::V6));
    let expected = "\
add table ip6 weft
delete table ip6 weft
table ip6 weft {
\tchain weft_out {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\tmeta skuid 4747 return
\t\tmeta mark 0x4747 return
\t\toifname \"lo\" return
\t\tip6 daddr ::1/128 return
\t\tmeta skuid 1000 return
\t\ttcp dport { 25, 3306-3310 } return
\t\tip6 daddr fd00::/8 return
\t\tmeta l4proto tcp redirect to :4740
\t}
\tchain weft_in {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\ttcp dport { 4791, 8080 } return
\t\tmeta l4proto tcp redirect to :4743
\t}
}
";
    assert_eq!(ruleset, expected);
}

#[test]
fn a_plan_has_the_subnets_of_its_own_ip_version_only() {
    let subnets = |family| {
        let plan = Plan::new(&everything(), family);
        plan.outbound.into_iter().filter_map(|rule| if let Rule::Pass(Fits::To(net)) = rule { Some(net) } else { None })
    };
    assert!(subnets(Family::V4).eq([net("127.0.0.0/8"), net("10.1.0.0/16")]));
    assert!(subnets(Family::V6).eq([net("::1/128"), net("fd00::/8")]));
}

#[test]
fn only_the_admin_port_of_the_sidecar_is_reached_from_outside_without_being_caught() {
    let plan = Plan::new(&RedirectConfig::default(), Family::V4);
    let admin = Rule::Pass(Fits::ToPorts(vec![PortRange::single(PORT_ADMIN)]));
    assert_eq!(plan.inbound, [admin, Rule::Redirect(PORT_INBOUND)]);
}

#[test]
fn a_config_is_told_everything_that_is_wrong_with_it() {
    assert_eq!(RedirectConfig::default().check(), Ok(()));
    let config = RedirectConfig { inbound_port: 0, outbound_port: 0, exempt: vec![Exempt::Mark(0)], ..RedirectConfig::default() };
    assert_eq!(config.check().expect_err("four things are wrong").len(), 4);
    let config = RedirectConfig { inbound_port: PORT_ADMIN, exempt: Vec::new(), ..RedirectConfig::default() };
    assert_eq!(config.check().expect_err("two things are wrong").len(), 2);
}

#[test]
fn port_ranges_are_read_strictly() {
    assert_eq!(range("80"), PortRange { first: 80, last: 80 });
    assert_eq!(range("80-90"), PortRange { first: 80, last: 90 });
    assert_eq!(range("80:90"), PortRange { first: 80, last: 90 });
    assert_eq!(range(" 1 - 65535 "), PortRange { first: 1, last: 65535 });
    for text in ["", "-", "0", "0-80", "90-80", "65536", "80-", "-80", "80-90-100", "http", "80,90", "99999999999"] {
        let error = text.parse::<PortRange>().expect_err(text);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn a_nat_table_without_rules_of_ours_is_none() {
    assert_eq!(NatTable::parse(""), None);
    assert_eq!(NatTable::parse("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp -j OTHER\nCOMMIT\n"), None);
    assert_eq!(NatTable::parse("*filter\n:WEFT_OUT - [0:0]\n-A OUTPUT -j WEFT_OUT\nCOMMIT\n"), None);
    assert_eq!(NatTable::parse("# :WEFT_OUT\n"), None);
}

/// The nat table of a kernel, as far as `iptables-restore --noflush` and `iptables-save` know it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kernel {
    chains: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    fn with_rules_of_others() -> Self {
        let mut kernel = Self { chains: BTreeMap::new() };
        kernel.chains.insert("OUTPUT".to_owned(), vec!["-d 127.0.0.11/32 -j DNS".to_owned()]);
        kernel.chains.insert("PREROUTING".to_owned(), Vec::new());
        kernel.chains.insert("DNS".to_owned(), vec!["-p udp -j RETURN".to_owned()]);
        kernel
    }

    fn save(&self) -> String {
        let mut lines = vec!["# Generated".to_owned(), "*nat".to_owned()];
        lines.extend(self.chains.keys().map(|chain| format!(":{chain} - [7:420]")));
        for (chain, rules) in &self.chains {
            lines.extend(rules.iter().map(|rule| format!("-A {chain} {rule}")));
        }
        lines.push("COMMIT\n".to_owned());
        lines.join("\n")
    }

    fn restore(&mut self, script: &str) {
        for line in script.lines().filter(|line| !matches!(*line, "*nat" | "COMMIT")) {
            if let Some(declared) = line.strip_prefix(':') {
                let chain = declared.split(' ').next().expect("split gives at least one part");
                self.chains.insert(chain.to_owned(), Vec::new());
                continue;
            }
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().unwrap_or_default();
            let (command, chain, rest) = (word(), word(), word());
            if command == "-X" {
                let removed = self.chains.remove(chain);
                assert_eq!(removed, Some(Vec::new()), "{line}: only an empty chain can be removed");
                let used = self.chains.values().flatten().any(|rule| rule.ends_with(&format!("-j {chain}")));
                assert!(!used, "{line}: a chain that is jumped to cannot be removed");
                continue;
            }
            let rules = self.chains.get_mut(chain).expect("the script names chains that exist");
            match command {
                "-A" => rules.push(rest.to_owned()),
                "-I" => rules.insert(0, rest.strip_prefix("1 ").expect("it goes first").to_owned()),
                "-F" => rules.clear(),
                "-D" => {
                    let at = rules.iter().position(|rule| rule == rest).expect("only what is there can be deleted");
                    rules.remove(at);
                }
                _ => panic!("{line}: not a command of the model's"),
            }
        }
    }

    fn apply(&mut self, plan: &Plan) {
        let present = NatTable::parse(&self.save()).unwrap_or_default();
        self.restore(&restore_script(plan, &present));
    }
}

#[test]
fn applying_twice_is_applying_once_and_removing_is_never_having_applied() {
    let before = Kernel::with_rules_of_others();
    let mut kernel = before.clone();
    let plan = Plan::new(&everything(), Family::V4);

    kernel.apply(&plan);
    let once = kernel.clone();
    assert_eq!(once.chains["OUTPUT"], ["-p tcp -j WEFT_OUT", "-d 127.0.0.11/32 -j DNS"]);
    kernel.apply(&plan);
    assert_eq!(kernel, once);

    kernel.apply(&Plan::new(&RedirectConfig::default(), Family::V4));
    assert_ne!(kernel, once, "another plan takes the place of the old one");

    let present = NatTable::parse(&kernel.save()).expect("the rules are there");
    kernel.restore(&removal_script(&present));
    assert_eq!(kernel, before);
    assert_eq!(NatTable::parse(&kernel.save()), None);
}

#[test]
fn remains_of_an_interrupted_removal_are_removed_too() {
    let before = Kernel::with_rules_of_others();
    let mut kernel = before.clone();
    kernel.restore(":WEFT_IN - [0:0]\n-I PREROUTING 1 -p tcp -j WEFT_IN\n-A PREROUTING -j WEFT_IN\n");
    let present = NatTable::parse(&kernel.save()).expect("a chain is there");
    kernel.restore(&removal_script(&present));
    assert_eq!(kernel, before);
}

#[test]
fn rules_are_counted_whoever_made_them() {
    assert_eq!(rules_in(&Kernel::with_rules_of_others().save()), 2);
    assert_eq!(rules_in(""), 0);
}

prop_compose! {
    fn any_range()(first in 1..=u16::MAX, length in prop_oneof![Just(0_u16), 0_u16..2000]) -> PortRange {
        PortRange { first, last: first.saturating_add(length) }
    }
}

proptest! {
    #[test]
    fn merged_ports_are_the_same_ports_in_order_and_apart(ranges in proptest::collection::vec(any_range(), 0..60)) {
        let merged = merge(&ranges);
        for pair in merged.windows(2) {
            prop_assert!(pair[0].last < pair[1].first.saturating_sub(1));
        }
        // Whether a port is covered changes at the ends of a range only.
        for range in ranges.iter().chain(&merged) {
            for port in [range.first - 1, range.first, range.last, range.last.saturating_add(1)] {
                let covered = |range: &PortRange| range.contains(port);
                prop_assert_eq!(merged.iter().any(covered), ranges.iter().any(covered));
            }
        }
    }

    #[test]
    fn every_port_is_in_some_rule_and_no_rule_has_more_than_multiport_takes(
        ranges in proptest::collection::vec(any_range(), 0..60),
    ) {
        let groups = split_for_multiport(&ranges);
        prop_assert_eq!(groups.concat(), ranges);
        for group in groups {
            prop_assert!(!group.is_empty());
            let slots: usize = group.iter().map(|range| if range.is_single() { 1 } else { 2 }).sum();
            prop_assert!(slots <= 15);
        }
    }

    #[test]
    fn a_range_reads_back_as_it_is_written(range in any_range()) {
        let text = format!("{}-{}", range.first, range.last);
        prop_assert_eq!(text.parse::<PortRange>(), Ok(range));
    }
}

#[test]
fn dns_is_caught_before_anything_else_whatever_is_skipped() {
    let config = RedirectConfig { dns_port: Some(4753), ..everything() };
    let script = restore_script(&Plan::new(&config, Family::V4), &NatTable::default());
    let expected = "\
-A WEFT_DNS -m owner --uid-owner 4747 -j RETURN
-A WEFT_DNS -m mark --mark 0x4747 -j RETURN
-A WEFT_DNS -o lo -j RETURN
-A WEFT_DNS -d 127.0.0.0/8 -j RETURN
-A WEFT_DNS -m owner --uid-owner 1000 -j RETURN
-A WEFT_DNS -p udp --dport 53 -j REDIRECT --to-ports 4753
-A WEFT_DNS -p tcp --dport 53 -j REDIRECT --to-ports 4753
-I OUTPUT 1 -p udp --dport 53 -j WEFT_DNS
-I OUTPUT 1 -p tcp --dport 53 -j WEFT_DNS
COMMIT
";
    assert!(script.contains(":WEFT_DNS - [0:0]\n") && script.ends_with(expected), "{script}");
    let without = "-A WEFT_OUT -d 10.1.0.0/16 -j RETURN";
    assert!(script.contains(without), "{script}");
    let ruleset = nft::ruleset(&Plan::new(&config, Family::V6));
    let expected = "\
\tchain weft_dns {
\t\ttype nat hook output priority -101; policy accept;
\t\tmeta l4proto != { tcp, udp } return
\t\tth dport != 53 return
\t\tmeta skuid 4747 return
\t\tmeta mark 0x4747 return
\t\toifname \"lo\" return
\t\tip6 daddr ::1/128 return
\t\tmeta skuid 1000 return
\t\tmeta l4proto { tcp, udp } redirect to :4753
\t}
";
    assert!(ruleset.contains(expected), "{ruleset}");
    for port in [0, 4740, 4743, 4791] {
        assert!(RedirectConfig { dns_port: Some(port), ..everything() }.check().is_err(), "{port}");
    }
}

#[test]
fn what_caught_dns_before_is_removed_where_it_is_not_to_be_caught_any_more() {
    let saved =
        "*nat\n:WEFT_OUT - [0:0]\n:WEFT_IN - [0:0]\n:WEFT_DNS - [0:0]\n-A OUTPUT -p tcp -m tcp --dport 53 -j WEFT_DNS\nCOMMIT\n";
    let present = NatTable::parse(saved).expect("it is ours");
    let script = restore_script(&Plan::new(&everything(), Family::V4), &present);
    assert!(script.contains("-D OUTPUT -p tcp -m tcp --dport 53 -j WEFT_DNS\n-F WEFT_DNS\n-X WEFT_DNS\n"), "{script}");
    assert!(removal_script(&present).contains("-X WEFT_DNS\n"));
}
