use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::objects;
use super::*;

/// Where the chart is kept.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/weft")
}

fn found(directory: &Path, root: &Path, files: &mut Vec<File>) {
    for entry in std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found(&path, root, files);
        } else {
            let name = path.strip_prefix(root).expect("it is below").to_string_lossy().into_owned();
            files.push((name, std::fs::read_to_string(&path).expect("text")));
        }
    }
}

#[test]
fn the_chart_that_is_kept_is_the_one_that_is_made() {
    let root = kept();
    let mut there = Vec::new();
    found(&root, &root, &mut there);
    there.sort();
    let names = |files: &[File]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let made = files();
    let how = "write it anew: weft install --helm-chart deploy/helm/weft";
    assert_eq!(names(&there), names(&made), "{how}");
    for ((name, is), (_, should)) in there.iter().zip(&made) {
        assert_eq!(is, should, "{name} is out of date; {how}");
    }
}

/// What Helm makes of a template, as far as ours go: values, the release's namespace, and one condition.
fn evaluate(template: &str, values: &Value) -> String {
    let mut text = String::new();
    let mut shown = true;
    for line in template.split_inclusive('\n') {
        match line.trim_end() {
            "{{- if .Values.createNamespace }}" => shown = values[CREATE_NAMESPACE] == true,
            "{{- if .Values.cni }}" => shown = values[CNI_KEY] == true,
            "{{- if and .Values.cni (eq .Values.cniRepair \"delete\") }}" => {
                shown = values[CNI_KEY] == true && values["cniRepair"] == "delete";
            }
            line if line.starts_with("{{- if semverCompare ") => shown = true,
            "{{- else }}" => shown = !shown,
            condition if condition.starts_with("{{- if ") => panic!("{condition:?} is not among what the templates may use"),
            "{{- end }}" => shown = true,
            _ if shown => text.push_str(&substituted(line, values)),
            _ => {}
        }
    }
    text
}

fn substituted(line: &str, values: &Value) -> String {
    let Some((before, rest)) = line.split_once("{{") else { return line.to_owned() };
    let (expression, after) = rest.split_once("}}").expect("it is closed");
    let words: Vec<&str> = expression.split_whitespace().collect();
    let of = |path: &str| values[path.strip_prefix(".Values.").unwrap_or_else(|| panic!("{path} is no value"))].clone();
    let value = match words.as_slice() {
        [".Release.Namespace"] => json!(CONTROL_PLANE_NAMESPACE),
        ["int", path] => json!(of(path).as_u64().expect("a number")),
        ["ternary", with, without, path] => {
            json!(if of(path).as_bool().expect("a boolean") { with } else { without }.trim_matches('"'))
        }
        [path] => of(path),
        _ => panic!("{expression:?} is not among what the templates may use"),
    };
    let shown = match &value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(chosen) => chosen.to_string(),
        other => panic!("{expression:?} gives {other}"),
    };
    format!("{before}{shown}{}", substituted(after, values))
}

/// Objects by what names them: a chart's order is Helm's own.
fn named(objects: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    let named = objects.into_iter().map(|object| (format!("{} {}", object["kind"], object["metadata"]["name"]), object));
    named.collect()
}

/// What `weft install` prints for these settings, with what the chart adds to weft's kinds.
fn printed(settings: &Settings) -> BTreeMap<String, Value> {
    named(objects(settings, KubeVersion::CURRENT).into_iter().map(|mut object| {
        if object["kind"] == "CustomResourceDefinition" {
            object["metadata"]["annotations"] = json!({KEEP.0: KEEP.1});
        }
        object
    }))
}

fn rendered(values: &Value) -> BTreeMap<String, Value> {
    let templates =
        files().into_iter().filter(|(name, _)| name.strip_prefix("templates/").is_some_and(|file| file.contains(".yaml")));
    let texts = templates.filter(|(name, _)| name != "templates/validate.yaml");
    named(texts.flat_map(|(name, template)| {
        let text = evaluate(&template, values);
        serde_saphyr::from_multiple::<Value>(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"))
    }))
}

fn defaults() -> Value {
    let (_, text) = files().into_iter().find(|(name, _)| name == "values.yaml").expect("it is there");
    serde_saphyr::from_str(&text).expect("YAML")
}

#[test]
fn helm_renders_what_weft_install_prints() {
    let mut wanted = printed(&Settings::default());
    let mut values = defaults();
    values[CREATE_NAMESPACE] = true.into();
    assert_eq!(rendered(&values), wanted);
    wanted.remove("\"Namespace\" \"weft-system\"").expect("it is installed");
    assert_eq!(rendered(&defaults()), wanted);
}

#[test]
fn every_value_arrives() {
    for (key, text) in [
        ("image", "example.com/weft:2"),
        ("imagePullPolicy", "Always"),
        ("replicas", "3"),
        ("trustDomain", "example.org"),
        ("mtls", "strict"),
        ("defaultPolicy", "deny"),
        ("egress", "deny"),
        ("meshRanges", "10.0.0.0/8,fc00::/7"),
        ("nativeSidecars", "always"),
        ("caSecret", "my-ca"),
        ("failurePolicy", "Ignore"),
        ("cni", "true"),
        ("cniBinDir", "/usr/libexec/cni"),
        ("cniConfDir", "/var/lib/cni/net.d"),
        ("cniRepair", "never"),
        ("telemetry", "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4317;WEFT_ACCESS_LOG=json"),
    ] {
        let mut record = Settings::default().record();
        // The others of its kind have an effect only with it.
        let with_cni = key.starts_with("cni");
        if with_cni {
            record["cni"] = "true".into();
        }
        record[key] = text.into();
        let settings = Settings::recorded(&record).expect("a record");
        assert_ne!(settings, Settings::default(), "{key} has no effect");
        let mut values = defaults();
        values[CNI_KEY] = with_cni.into();
        values[key] = value(key, text);
        values[CREATE_NAMESPACE] = true.into();
        assert_eq!(rendered(&values), printed(&settings), "{key}");
    }
    assert_eq!(TABLE.len(), 16, "a new setting belongs into this test");
}

#[test]
fn the_schema_takes_the_defaults() {
    let schema = schema();
    let defaults = defaults();
    for setting in &TABLE {
        let property = &schema["properties"][setting.key];
        let is_number = property["type"] == "integer";
        let is_choice = property["type"] == "boolean";
        assert_eq!(defaults[setting.key].is_number(), is_number, "{}", setting.key);
        assert_eq!(defaults[setting.key].is_boolean(), is_choice, "{}", setting.key);
        assert!(
            is_number
                || is_choice
                || property["pattern"].as_str().is_some_and(|pattern| pattern.starts_with('^') && pattern.ends_with('$'))
        );
    }
}
