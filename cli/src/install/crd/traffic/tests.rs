use super::*;

fn schema() -> Value {
    definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[test]
fn the_defaults_are_those_of_the_nouns() {
    use weft_core::traffic::policy::{Outlier, ZonePreference};

    let (schema, outlier, zone) = (schema(), Outlier::default(), ZonePreference::default());
    let default = |path: &str| {
        let pointer: String = path.split('.').map(|step| format!("/properties/{step}")).collect();
        schema.pointer(&format!("/properties/spec{pointer}/default")).unwrap_or_else(|| panic!("{path} has no default")).clone()
    };
    assert_eq!(default("zone.prefer"), zone.prefer);
    assert_eq!(default("zone.spillBelow"), zone.spill_below);
    assert_eq!(default("outlier.consecutiveFailures"), outlier.consecutive_failures);
    assert_eq!(default("outlier.successRate"), outlier.success_rate);
    assert_eq!(default("outlier.minimumVolume"), outlier.minimum_volume);
    assert_eq!(default("outlier.maxEjected"), outlier.max_ejected);
    for (path, time) in [("outlier.window", outlier.window), ("outlier.baseEjection", outlier.base_ejection)] {
        assert_eq!(crate::duration::parse(default(path).as_str().expect("text")), Ok(time), "{path}");
    }
}
