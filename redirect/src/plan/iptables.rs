//! The plan as input for `iptables-restore --noflush`, which applies the whole table or nothing.

use super::{Fits, Plan, PortRange, Rule};

const OUT: &str = "WEFT_OUT";
const IN: &str = "WEFT_IN";
/// Where DNS is caught only.
const DNS: &str = "WEFT_DNS";
const CHAINS: [&str; 3] = [OUT, IN, DNS];

/// The multiport match takes this many ports in a rule; a range counts as two.
const MULTIPORT_SLOTS: usize = 15;

/// What of ours the nat table holds, as read from `iptables-save`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NatTable {
    chains: Vec<&'static str>,
    /// Rules that lead into our chains, without their `-A`.
    jumps: Vec<String>,
    /// Every line that mentions one of our chains.
    pub(crate) lines: Vec<String>,
}

impl NatTable {
    /// None where nothing in the nat table is ours.
    pub(crate) fn parse(saved: &str) -> Option<Self> {
        let mut table = Self::default();
        let mut in_nat = false;
        for line in saved.lines().map(str::trim) {
            match line {
                "*nat" => in_nat = true,
                "COMMIT" => in_nat = false,
                _ if in_nat => table.take(line),
                _ => {}
            }
        }
        (!table.lines.is_empty()).then_some(table)
    }

    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let declared = words.first().and_then(|word| word.strip_prefix(':'));
        let chain = CHAINS.into_iter().find(|chain| Some(*chain) == declared);
        let jumps = words.windows(2).any(|pair| matches!(pair, ["-j" | "-g", target] if CHAINS.contains(target)));
        let rule_of_ours = matches!(words.as_slice(), ["-A", chain, ..] if CHAINS.contains(chain));

        if chain.is_some() || jumps || rule_of_ours {
            self.lines.push(line.to_owned());
        }
        self.chains.extend(chain);
        if jumps {
            self.jumps.extend(line.strip_prefix("-A ").map(str::to_owned));
        }
    }
}

/// How many rules a saved state has, of anyone's.
pub(crate) fn rules_in(saved: &str) -> usize {
    saved.lines().filter(|line| line.starts_with("-A ")).count()
}

/// Applies `plan` over whatever of ours is `present`. Declaring a chain empties it, and the old jumps are
/// deleted in the same transaction, so that applying twice leaves what applying once does.
pub(crate) fn restore_script(plan: &Plan, present: &NatTable) -> String {
    let mut lines = vec!["*nat".to_owned()];
    let has_dns = !plan.dns.is_empty();
    let wanted = CHAINS.iter().filter(|chain| has_dns || **chain != DNS);
    lines.extend(wanted.map(|chain| format!(":{chain} - [0:0]")));
    lines.extend(present.jumps.iter().map(|jump| format!("-D {jump}")));
    if !has_dns && present.chains.contains(&DNS) {
        lines.extend([format!("-F {DNS}"), format!("-X {DNS}")]);
    }
    lines.extend(plan.outbound.iter().flat_map(|rule| rule_lines(OUT, rule)));
    lines.extend(plan.inbound.iter().flat_map(|rule| rule_lines(IN, rule)));
    lines.push(format!("-I OUTPUT 1 -p tcp -j {OUT}"));
    lines.push(format!("-I PREROUTING 1 -p tcp -j {IN}"));
    if has_dns {
        lines.extend(plan.dns.iter().flat_map(|rule| rule_lines(DNS, rule)));
        // Before the other one, which would take TCP.
        lines.extend(["udp", "tcp"].map(|transport| format!("-I OUTPUT 1 -p {transport} --dport 53 -j {DNS}")));
    }
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

/// Removes what is `present`, and nothing else.
pub(crate) fn removal_script(present: &NatTable) -> String {
    let mut lines = vec!["*nat".to_owned()];
    lines.extend(present.jumps.iter().map(|jump| format!("-D {jump}")));
    lines.extend(present.chains.iter().map(|chain| format!("-F {chain}")));
    lines.extend(present.chains.iter().map(|chain| format!("-X {chain}")));
    lines.push("COMMIT\n".to_owned());
    lines.join("\n")
}

fn rule_lines(chain: &str, rule: &Rule) -> Vec<String> {
    match rule {
        Rule::Pass(Fits::Uid(uid)) => vec![format!("-A {chain} -m owner --uid-owner {uid} -j RETURN")],
        Rule::Pass(Fits::Mark(mark)) => vec![format!("-A {chain} -m mark --mark {mark:#x} -j RETURN")],
        Rule::Pass(Fits::LeavesByLoopback) => vec![format!("-A {chain} -o lo -j RETURN")],
        Rule::Pass(Fits::To(net)) => vec![format!("-A {chain} -d {net} -j RETURN")],
        Rule::Pass(Fits::ToPorts(ports)) => split_for_multiport(ports)
            .iter()
            .map(|ports| format!("-A {chain} -p tcp -m multiport --dports {} -j RETURN", list(ports)))
            .collect(),
        Rule::Redirect(port) => vec![format!("-A {chain} -p tcp -j REDIRECT --to-ports {port}")],
        Rule::RedirectDns(port) => {
            ["udp", "tcp"].map(|transport| format!("-A {chain} -p {transport} --dport 53 -j REDIRECT --to-ports {port}")).to_vec()
        }
    }
}

/// As few groups as keep within what one rule can hold, in the order given.
pub(super) fn split_for_multiport(ports: &[PortRange]) -> Vec<Vec<PortRange>> {
    let mut groups: Vec<Vec<PortRange>> = Vec::new();
    let mut used = 0;
    for range in ports {
        let slots = if range.is_single() { 1 } else { 2 };
        match groups.last_mut() {
            Some(group) if used + slots <= MULTIPORT_SLOTS => {
                group.push(*range);
                used += slots;
            }
            _ => {
                groups.push(vec![*range]);
                used = slots;
            }
        }
    }
    groups
}

fn list(ports: &[PortRange]) -> String {
    let ports = ports
        .iter()
        .map(|range| if range.is_single() { range.first.to_string() } else { format!("{}:{}", range.first, range.last) });
    ports.collect::<Vec<_>>().join(",")
}
