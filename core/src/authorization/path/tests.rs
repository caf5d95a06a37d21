use proptest::prelude::*;

use super::PathDefect::*;
use super::*;

/// See there: what is sent, and the normalised path, or why there is none.
const ATTEMPTS: &[(&str, Result<&str, PathDefect>)] = include!("attempts.in");

#[test]
fn each_known_way_round_is_refused_or_taken_for_what_it_is() {
    for (raw, expected) in ATTEMPTS {
        let found = normalise(raw.as_bytes());
        let found = found.as_deref().map(|path| std::str::from_utf8(path).expect("it was checked")).map_err(|defect| *defect);
        assert_eq!(found, *expected, "{raw}");
    }
}

#[test]
fn a_prefix_ends_where_a_segment_does() {
    for (path, prefix, below) in [
        ("/a", "/a", true),
        ("/a/", "/a", true),
        ("/a/b", "/a", true),
        ("/ab", "/a", false),
        ("/", "/a", false),
        ("/", "/", true),
        ("/x/y", "/", true),
        ("*", "/", false),
    ] {
        assert_eq!(is_below(path.as_bytes(), prefix.as_bytes()), below, "{path} under {prefix}");
    }
    for (path, template, instance) in [
        ("/a/1/b", "/a/{id}/b", true),
        ("/a//b", "/a/{id}/b", false),
        ("/a/1/2/b", "/a/{id}/b", false),
        ("/a/1/b/", "/a/{id}/b", false),
        ("/a/{id}/b", "/a/{id}/b", true),
        ("/a/{}", "/a/{}", true),
        ("/a/x", "/a/{}", false),
    ] {
        assert_eq!(is_instance(path.as_bytes(), template.as_bytes()), instance, "{path} by {template}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever is sent: no panic, and what is taken has nothing in it that a further reader would take otherwise.
    #[test]
    fn what_is_taken_is_taken_alike_by_all(raw in "[/a-c.%0-9efEF\\\\;#+]{0,14}") {
        if let Ok(path) = normalise(raw.as_bytes()) {
            prop_assert!(!path.windows(2).any(|w| w == b"//"));
            prop_assert!(!path.split(|b| *b == b'/').any(|s| s == b"." || s == b".."));
            prop_assert!(!path.iter().any(|b| matches!(b, b'\\' | b';' | b'#' | 0..=0x1f | 0x7f)));
            prop_assert!(!path.windows(3).any(is_escape) || !raw.contains('%'));
        }
    }

    #[test]
    fn any_bytes_end_in_an_answer(raw in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = normalise(&raw);
    }

    /// Escaping a letter changes nothing.
    #[test]
    fn an_escaped_letter_is_that_letter(path in "(/[a-z]{1,4}){1,3}", at in any::<proptest::sample::Index>()) {
        let at = 1 + at.index(path.len() - 1);
        let byte = path.as_bytes()[at];
        prop_assume!(byte != b'/');
        let escaped = format!("{}%{byte:02x}{}", &path[..at], &path[at + 1..]);
        prop_assert_eq!(normalise(escaped.as_bytes()), Ok(Cow::Owned(path.into_bytes())));
    }
}
