//! `weft endpoints`: what each sidecar thinks of the endpoints that it calls: which are ready, how loaded, which it leaves alone.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::output::{Look, Output};
use crate::rundir::Which;
use crate::table;

/// What `weft endpoints` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Each sidecar judges for itself, by what its own requests met with: so there is a line for each caller and endpoint. LOAD is what P2C \
goes by, a moving average of the time to an answer, times the requests in flight: lower is chosen. BREAKER: closed lets requests through, open leaves the endpoint alone for the time that is said, half-open \
lets one try it.

Examples:
  weft endpoints shop/web
  weft endpoints --context prod shop/web
  weft endpoints --from front/client-0 -o json")]
pub(crate) struct EndpointsArgs {
    /// Of this service only
    #[arg(value_name = "NS/SERVICE")]
    service: Option<String>,

    /// As this replica's sidecar has it
    #[arg(long, value_name = "NS/REPLICA")]
    from: Option<String>,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

pub(crate) fn main(args: &EndpointsArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let (configs, code) = match &args.from {
        Some(one) => {
            let text = fleet.ask_one(one, "GET", "/config")?;
            let config = serde_json::from_str(&text).with_context(|| format!("what the sidecar of {one} knows"))?;
            (vec![(one.clone(), config)], ExitCode::SUCCESS)
        }
        None => {
            let heard = fleet.hear(None, "/config")?;
            let code = heard.tell();
            (heard.told, code)
        }
    };
    let wanted = args.service.as_deref();
    // One object for each caller and endpoint.
    let found: Vec<Value> = configs.iter().flat_map(|(replica, config)| of(replica, config, wanted)).collect();
    args.output.print(|look| shown(&found, look), &found)?;
    Ok(code)
}

/// What one sidecar has. A service with two addresses, one of each family, is told once.
fn of(replica: &str, config: &Value, wanted: Option<&str>) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    for address in config["addresses"].as_object().into_iter().flat_map(|all| all.values()) {
        let service = &address["service"];
        if service.is_null() || wanted.is_some_and(|wanted| service != wanted) {
            continue;
        }
        for endpoint in address["endpoints"].as_array().into_iter().flatten() {
            let mut one = json!({"from": replica, "service": service});
            if let (Some(one), Some(endpoint)) = (one.as_object_mut(), endpoint.as_object()) {
                one.extend(endpoint.clone());
            }
            if !found.contains(&one) {
                found.push(one);
            }
        }
    }
    found.sort_by_key(|one| (one["service"].to_string(), one["address"].to_string()));
    found
}

fn shown(found: &[Value], look: Look) -> String {
    let mut header =
        vec!["FROM", "SERVICE", "ENDPOINT", "WORKLOAD", "READY", "BREAKER", "EJECTIONS", "FAILURES", "IN FLIGHT", "LOAD"];
    let mut rows: Vec<Vec<String>> = found.iter().map(row).collect();
    if look.wide {
        header.push("REACH");
        for (row, one) in rows.iter_mut().zip(found) {
            row.push(one["reach"].as_str().unwrap_or("–").to_owned());
        }
    }
    table::dressed(&header, &rows, look)
}

fn row(one: &Value) -> Vec<String> {
    let text = |key: &str| match &one[key] {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let breaker = &one["breaker"];
    let state = breaker["state"].as_str().unwrap_or("–");
    let state = match breaker["millis_left"].as_u64() {
        Some(left) => format!("{state}, {:.1}s left", left as f64 / 1000.0),
        None => state.to_owned(),
    };
    let ready = if one["ready"] == true { "yes" } else { "no" };
    vec![
        text("from"),
        text("service"),
        text("address"),
        text("workload"),
        ready.to_owned(),
        state,
        text("ejections"),
        text("failures_in_a_row"),
        text("in_flight"),
        one["load"].as_f64().map_or_else(|| "–".to_owned(), |nanos| format!("{:.1} ms", nanos / 1e6)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_is_told_once_and_as_it_stands() {
        let endpoint = json!({"address": "10.0.0.2", "workload": "shop/web-0", "ready": true, "in_flight": 1, "load": 7_500_000.0,
                              "failures_in_a_row": 3, "ejections": 2, "breaker": {"state": "open", "millis_left": 1500}});
        let service = json!({"service": "shop/web", "endpoints": [endpoint]});
        let config = json!({"addresses": {"10.1.0.1": service, "fd00::1": service, "10.1.0.9": "unknown", "10.0.0.2": {"workload": "shop/web-0"}}});
        let found = of("front/client-0", &config, None);
        assert_eq!(found.len(), 1, "{found:?}");
        let expected =
            ["front/client-0", "shop/web", "10.0.0.2", "shop/web-0", "yes", "open, 1.5s left", "2", "3", "1", "7.5 ms"]
                .map(str::to_owned);
        assert_eq!(row(&found[0]), expected);
        assert_eq!(of("front/client-0", &config, Some("shop/other")), Vec::<Value>::new());
    }
}
