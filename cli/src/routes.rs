//! `weft routes`: the routes that are in force, as callers' sidecars have them: in which order they are asked, and who has them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use weft_core::Namespace;

use crate::fleet::Fleet;
use crate::output::{Look, Output, Tint};
use crate::rundir::Which;
use crate::table;

/// What `weft routes` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
A sidecar has the routes of the services that its workload has called of late. Rules are asked from the first to the last, and the first that matches is taken. \
What became of a route that is not here, weft validate and the route's status tell.

Examples:
  weft routes
  weft routes shop/web -o wide
  weft routes -o json | jq -r '.[].rule'")]
pub(crate) struct RoutesArgs {
    /// Of this service only
    #[arg(value_name = "NS/SERVICE")]
    service: Option<String>,

    /// Only as the sidecars of this namespace have them
    #[arg(short, long, value_name = "NS")]
    namespace: Option<Namespace>,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

/// A rule of a route, as some sidecars have it.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
struct Rule {
    service: String,
    port: u16,
    /// Its place among the rules of that port, from 1.
    place: usize,
    /// Kind, route and rule: `HTTPRoute shop/web rule 0`.
    rule: String,
    /// Pods whose sidecars have it so.
    callers: BTreeSet<String>,
}

pub(crate) fn main(args: &RoutesArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let heard = fleet.hear(args.namespace.as_ref(), "/config")?;
    let rules = of(&heard.told, args.service.as_deref());
    args.output.print(|look| shown(&rules, look), &rules)?;
    Ok(heard.tell())
}

fn of(configs: &[(String, Value)], wanted: Option<&str>) -> Vec<Rule> {
    let mut found: BTreeMap<(String, u16, usize, String), BTreeSet<String>> = BTreeMap::new();
    for (pod, config) in configs {
        for address in config["addresses"].as_object().into_iter().flat_map(|all| all.values()) {
            let Some(service) = address["service"].as_str().filter(|s| wanted.is_none_or(|wanted| *s == wanted)) else {
                continue;
            };
            for table in address["traffic"]["routes"].as_array().into_iter().flatten() {
                let port = table["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(0);
                for (at, rule) in table["rules"].as_array().into_iter().flatten().enumerate() {
                    let key = (service.to_owned(), port, at + 1, rule.as_str().unwrap_or_default().to_owned());
                    found.entry(key).or_default().insert(pod.clone());
                }
            }
        }
    }
    found.into_iter().map(|((service, port, place, rule), callers)| Rule { service, port, place, rule, callers }).collect()
}

fn shown(rules: &[Rule], look: Look) -> String {
    if rules.is_empty() {
        return look
            .paint(Tint::Warning, "no sidecar has a route: a sidecar learns those of a service when its workload calls it\n");
    }
    let rows: Vec<Vec<String>> = rules
        .iter()
        .map(|r| {
            let callers =
                if look.wide { r.callers.iter().cloned().collect::<Vec<_>>().join(", ") } else { r.callers.len().to_string() };
            vec![r.service.clone(), r.port.to_string(), r.place.to_string(), r.rule.clone(), callers]
        })
        .collect();
    table::dressed(&["SERVICE", "PORT", "PLACE", "RULE", "CALLERS"], &rows, look)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_told_in_their_order_with_those_who_have_them() {
        let config = |rules: &[&str]| {
            json!({"addresses": {"10.1.0.1": {"service": "shop/web", "traffic": {"routes": [{"port": 80, "rules": rules}]}},
                                 "10.1.0.2": {"service": "shop/db", "traffic": null}, "10.1.0.3": "unknown"}})
        };
        let (a, b) =
            (config(&["HTTPRoute shop/web rule 0", "HTTPRoute shop/web rule 1"]), config(&["HTTPRoute shop/web rule 1"]));
        let rules = of(&[("x/a".into(), a), ("x/b".into(), b)], Some("shop/web"));
        let told: Vec<(usize, &str, usize)> = rules.iter().map(|r| (r.place, r.rule.as_str(), r.callers.len())).collect();
        assert_eq!(
            told,
            [(1, "HTTPRoute shop/web rule 0", 1), (1, "HTTPRoute shop/web rule 1", 1), (2, "HTTPRoute shop/web rule 1", 1)]
        );
        assert!(
            shown(&rules, Look { wide: true, colour: false }).contains("shop/web  80    1      HTTPRoute shop/web rule 0  x/a")
        );
        assert!(of(&[], None).is_empty());
    }
}
