//! The variables by which a sidecar's telemetry is set: the standard `OTEL_*` ones, and those of its access log.

use weft_core::telemetry::{VARIABLES, check};

use crate::error::excerpt;

/// Variables that there may be.
const MOST: usize = 64;

/// What names the service of a pod whose telemetry does not.
pub(crate) const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";

/// Reads `NAME=VALUE`, one on a line, or several joined by semicolons. An error says what is wrong, and tells no value: it may be a secret.
pub(crate) fn variables(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    for part in text.split(['\n', ';']).map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').ok_or_else(|| "write NAME=VALUE, one on a line".to_owned())?;
        let is_standard = name.strip_prefix("OTEL_").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        });
        if !(is_standard || VARIABLES.contains(&name)) {
            return Err(format!(
                "{:?} is no variable of telemetry: those are OTEL_… and {}",
                excerpt(name),
                VARIABLES.join(", ")
            ));
        }
        if value.bytes().any(|b| b.is_ascii_control()) {
            return Err(format!("the value of {name} has a control character in it"));
        }
        check(name, value).map_err(|known| format!("{name} takes {known}"))?;
        if found.iter().any(|(other, _)| other == name) {
            return Err(format!("{name} is set twice"));
        }
        found.push((name.to_owned(), value.to_owned()));
        if found.len() > MOST {
            return Err(format!("there are more than {MOST} variables"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_those_of_telemetry_and_nothing_else() {
        let read = variables(
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317\n OTEL_EXPORTER_OTLP_HEADERS=a=b ; WEFT_ACCESS_LOG=json;\n",
        );
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let wanted = [
            pair("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
            pair("OTEL_EXPORTER_OTLP_HEADERS", "a=b"),
            pair("WEFT_ACCESS_LOG", "json"),
        ];
        assert_eq!(read.as_deref(), Ok(&wanted[..]));
        assert_eq!(variables(" \n"), Ok(vec![]));
        for bad in [
            "WEFT_MARK=1",
            "LD_PRELOAD=x",
            "OTEL_=1",
            "OTEL_x=secret",
            "OTEL_A",
            "OTEL_A=1;OTEL_A=secret",
            "OTEL_A=se\u{7}cret",
            "WEFT_ACCESS_LOG=JSON",
            "WEFT_TRACE_ERRORS=yes",
            "WEFT_ACCESS_LOG_SAMPLE=10%",
        ] {
            assert!(variables(bad).is_err_and(|why| !why.contains("secret")), "{bad}");
        }
    }
}
