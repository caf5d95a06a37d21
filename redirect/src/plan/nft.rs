//! The plan as a ruleset for `nft -f`, which applies the whole file or nothing.
//!
//! Everything is in a table of our own, and a table of either family holds the rules of that family only.

use super::{Family, Fits, Plan, PortRange, Rule};

/// The table's name; `nft list table ip weft` shows it.
pub(crate) const TABLE: &str = "weft";

pub(crate) const fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// Replaces the table, whether or not it is there.
pub(crate) fn ruleset(plan: &Plan) -> String {
    let family = family_word(plan.family);
    let mut lines = vec![removal_script(plan.family), format!("table {family} {TABLE} {{")];
    if !plan.dns.is_empty() {
        lines.extend(dns_chain(plan.family, &plan.dns));
    }
    lines.extend(chain("weft_out", "output", plan.family, &plan.outbound));
    lines.extend(chain("weft_in", "prerouting", plan.family, &plan.inbound));
    lines.push("}\n".to_owned());
    lines.join("\n")
}

/// Deletes the table, whether or not it is there: adding what exists is not an error, deleting what does not is.
pub(crate) fn removal_script(family: Family) -> String {
    let family = family_word(family);
    format!("add table {family} {TABLE}\ndelete table {family} {TABLE}")
}

fn chain(name: &str, hook: &str, family: Family, rules: &[Rule]) -> Vec<String> {
    let mut lines = vec![
        format!("\tchain {name} {{"),
        // -100 is where destination NAT belongs, and where iptables has its nat table, in both hooks.
        format!("\t\ttype nat hook {hook} priority -100; policy accept;"),
        "\t\tmeta l4proto != tcp return".to_owned(),
    ];
    lines.extend(rules.iter().map(|rule| format!("\t\t{}", rule_line(family, rule))));
    lines.push("\t}".to_owned());
    lines
}

/// Before the others, which would take TCP.
fn dns_chain(family: Family, rules: &[Rule]) -> Vec<String> {
    let mut lines = vec!["\tchain weft_dns {".to_owned(), "\t\ttype nat hook output priority -101; policy accept;".to_owned()];
    lines.push("\t\tmeta l4proto != { tcp, udp } return".to_owned());
    lines.push("\t\tth dport != 53 return".to_owned());
    lines.extend(rules.iter().map(|rule| format!("\t\t{}", rule_line(family, rule))));
    lines.push("\t}".to_owned());
    lines
}

fn rule_line(family: Family, rule: &Rule) -> String {
    match rule {
        Rule::Pass(Fits::Uid(uid)) => format!("meta skuid {uid} return"),
        Rule::Pass(Fits::Mark(mark)) => format!("meta mark {mark:#x} return"),
        Rule::Pass(Fits::LeavesByLoopback) => "oifname \"lo\" return".to_owned(),
        Rule::Pass(Fits::To(net)) => format!("{} daddr {net} return", family_word(family)),
        Rule::Pass(Fits::ToPorts(ports)) => format!("tcp dport {{ {} }} return", list(ports)),
        Rule::Redirect(port) => format!("meta l4proto tcp redirect to :{port}"),
        Rule::RedirectDns(port) => format!("meta l4proto {{ tcp, udp }} redirect to :{port}"),
    }
}

fn list(ports: &[PortRange]) -> String {
    let ports = ports
        .iter()
        .map(|range| if range.is_single() { range.first.to_string() } else { format!("{}-{}", range.first, range.last) });
    ports.collect::<Vec<_>>().join(", ")
}
