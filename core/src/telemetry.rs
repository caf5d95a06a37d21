//! The variables of a sidecar's telemetry that are weft's own, and the values that they take: for who sets them and for who reads them.

/// Beside the standard `OTEL_…`.
pub const VARIABLES: [&str; 6] =
    ["WEFT_ACCESS_LOG", "WEFT_ACCESS_LOG_FIELDS", "WEFT_ACCESS_LOG_ONLY", "WEFT_ACCESS_LOG_SAMPLE", TAP, "WEFT_TRACE_ERRORS"];

/// What a workload allows taps to be shown of its requests. It is for the workload to say, and for no default of a whole mesh.
pub const TAP: &str = "WEFT_TAP";

/// What it takes, the first where nothing is said.
pub const TAP_LEVELS: [&str; 3] = ["names", "headers", "bodies"];

/// Whether a variable takes this value; an error says which it takes, and does not repeat the value. Of `WEFT_ACCESS_LOG_FIELDS` the form alone is looked at: each
/// version of the sidecar knows its own fields. Other variables take anything.
pub fn check(name: &str, value: &str) -> Result<(), &'static str> {
    let value = value.trim();
    let is_field = |field: &str| !field.is_empty() && field.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let (takes, known) = match name {
        "WEFT_ACCESS_LOG" => (["off", "text", "json"].contains(&value), "off, text or json"),
        "WEFT_ACCESS_LOG_ONLY" => (["all", "errors"].contains(&value), "all or errors"),
        "WEFT_ACCESS_LOG_SAMPLE" => (share(value).is_some(), "a number from 0 to 1, as in 0.1"),
        "WEFT_ACCESS_LOG_FIELDS" => (value.split(',').all(|f| is_field(f.trim())), "names of fields, joined by commas"),
        TAP => (TAP_LEVELS.contains(&value), "names, headers or bodies"),
        "WEFT_TRACE_ERRORS" => (["true", "false"].contains(&value), "true or false"),
        _ => (true, ""),
    };
    // An empty one counts as one that is not there.
    if takes || value.is_empty() { Ok(()) } else { Err(known) }
}

/// A share, from 0 to 1.
pub fn share(text: &str) -> Option<f64> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_that_a_variable_takes() {
        for (name, value, takes) in [
            ("WEFT_ACCESS_LOG", "json", true),
            ("WEFT_ACCESS_LOG", "JSON", false),
            ("WEFT_ACCESS_LOG", "", true),
            ("WEFT_ACCESS_LOG_ONLY", "some", false),
            ("WEFT_ACCESS_LOG_SAMPLE", "0.5", true),
            ("WEFT_ACCESS_LOG_SAMPLE", "10%", false),
            ("WEFT_ACCESS_LOG_SAMPLE", "NaN", false),
            ("WEFT_ACCESS_LOG_FIELDS", "time, path", true),
            ("WEFT_ACCESS_LOG_FIELDS", "time,,path", false),
            ("WEFT_TRACE_ERRORS", "yes", false),
            ("WEFT_TAP", "bodies", true),
            ("WEFT_TAP", "all", false),
            ("OTEL_TRACES_SAMPLER", "what", true),
        ] {
            assert_eq!(check(name, value).is_ok(), takes, "{name}={value}");
        }
    }
}
