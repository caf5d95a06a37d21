//! Which format a scraper asks for.

/// A format of metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Prometheus' text format, 0.0.4.
    Text,
    /// OpenMetrics 1.0 as text: the same, with exemplars and when each series began.
    OpenMetrics,
    /// `io.prometheus.client.MetricFamily`, each with its length before it: the one format that has native histograms.
    Protobuf,
}

/// Weights are thousandths (RFC 9110, section 12.4.2).
const WHOLE: u32 = 1000;

impl Format {
    /// The format that an `Accept` field asks for most: with equal weights protobuf, then OpenMetrics. Text where it asks for nothing that is here.
    pub fn of(accept: Option<&str>) -> Self {
        let mut best = (0, Self::Text);
        for item in accept.unwrap_or_default().split(',').take(20) {
            let mut parts = item.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
            let of = |name: &str| {
                parameters.iter().find(|(n, _)| n.trim().eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().trim_matches('"'))
            };
            let format = match media.to_ascii_lowercase().as_str() {
                "application/vnd.google.protobuf"
                    if of("proto").is_none_or(|p| p == "io.prometheus.client.MetricFamily")
                        && of("encoding").is_none_or(|e| e == "delimited") =>
                {
                    Self::Protobuf
                }
                "application/openmetrics-text" if of("version").is_none_or(|v| v == "1.0.0" || v == "0.0.1") => Self::OpenMetrics,
                "text/plain" => Self::Text,
                _ => continue,
            };
            let weight = of("q").map_or(WHOLE, |q| q.parse().map_or(0, |q: f64| (q.clamp(0.0, 1.0) * f64::from(WHOLE)) as u32));
            let rank = |(weight, format): (u32, Self)| (weight, format as u8);
            if weight > 0 && rank((weight, format)) > rank(best) {
                best = (weight, format);
            }
        }
        best.1
    }

    /// The value of `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scrapers_send_is_understood() {
        let classic = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (None, Format::Text),
            (Some(""), Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/plain"), Format::Text),
            (Some(classic), Format::OpenMetrics),
            (Some(native), Format::Protobuf),
            (Some("application/openmetrics-text; version=\"1.0.0\""), Format::OpenMetrics),
            (Some("application/openmetrics-text;version=2.0.0"), Format::Text),
            (Some("application/openmetrics-text;q=0,text/plain;q=0.1"), Format::Text),
            (Some("application/vnd.google.protobuf;encoding=text"), Format::Text),
            (Some("text/plain;q=0.9,application/openmetrics-text;q=0.8"), Format::Text),
        ] {
            assert_eq!(Format::of(accept), format, "{accept:?}");
        }
    }
}
