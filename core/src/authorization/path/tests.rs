use proptest::prelude::*;

use super::PathDefect::*;
use super::*;

/// Ways that are known to get by a reader of paths, and what becomes of each where a clause about `/admin` is to be judged.
const ATTEMPTS: &[(&str, Result<&str, PathDefect>)] = &[
    // The same path, written otherwise: taken for what it is.
    ("/%61dmin", Ok("/admin")),
    ("/%41dmin", Ok("/Admin")),
    ("/a%64%6D%69n", Ok("/admin")),
    ("/admin%7e", Ok("/admin~")),
    ("/b%C3%BCcher", Ok("/bücher")),
    ("/100%25", Ok("/100%")),
    ("/a%20b", Ok("/a b")),
    ("/a+b", Ok("/a+b")),
    // Other paths: readers agree that they are.
    ("/admin/", Ok("/admin/")),
    ("/ADMIN", Ok("/ADMIN")),
    ("/admin.", Ok("/admin.")),
    ("/admin...", Ok("/admin...")),
    ("/.admin", Ok("/.admin")),
    ("/..admin", Ok("/..admin")),
    ("/admin@x", Ok("/admin@x")),
    ("*", Ok("*")),
    // Dot segments.
    ("/./admin", Err(DotSegment)),
    ("/admin/.", Err(DotSegment)),
    ("/x/../admin", Err(DotSegment)),
    ("/../admin", Err(DotSegment)),
    ("/admin/..", Err(DotSegment)),
    ("/x/%2e%2e/admin", Err(DotSegment)),
    ("/x/.%2E/admin", Err(DotSegment)),
    ("/x/%2e./admin", Err(DotSegment)),
    ("/%2e/admin", Err(DotSegment)),
    // Slashes.
    ("//admin", Err(DoubledSlash)),
    ("/x//admin", Err(DoubledSlash)),
    ("/admin//", Err(DoubledSlash)),
    ("///", Err(DoubledSlash)),
    ("/x%2fadmin", Err(EncodedSlash)),
    ("/x%2Fadmin", Err(EncodedSlash)),
    ("/x/..%2fadmin", Err(EncodedSlash)),
    ("/x%2f%2e%2e%2fadmin", Err(EncodedSlash)),
    ("/%2fadmin", Err(EncodedSlash)),
    // Backslashes.
    ("/x\\admin", Err(Backslash)),
    ("\\admin", Err(NotRooted)),
    ("/\\admin", Err(Backslash)),
    ("/x%5cadmin", Err(Backslash)),
    ("/x/..%5C..%5Cadmin", Err(Backslash)),
    ("/x/..\\admin", Err(Backslash)),
    // Parameters.
    ("/admin;x=1", Err(Parameter)),
    ("/x/..;/admin", Err(Parameter)),
    ("/;/admin", Err(Parameter)),
    ("/admin%3bx", Err(Parameter)),
    ("/admin/;jsessionid=1", Err(Parameter)),
    // Where a path ends.
    ("/admin#x", Err(Delimiter)),
    ("/admin%23x", Err(Delimiter)),
    ("/admin%3fx", Err(Delimiter)),
    ("/admin%00", Err(Nul)),
    ("/admin\0", Err(Nul)),
    ("/admin%00.png", Err(Nul)),
    ("/admin%0a", Err(Control)),
    ("/admin%0d%0ax", Err(Control)),
    ("/admin%09", Err(Control)),
    ("/admin%7f", Err(Control)),
    // Escapes that are none, and escapes of escapes.
    ("/%", Err(InvalidEscape)),
    ("/admin%", Err(InvalidEscape)),
    ("/admin%2", Err(InvalidEscape)),
    ("/%zzadmin", Err(InvalidEscape)),
    ("/%u0061dmin", Err(InvalidEscape)),
    ("/%%61dmin", Err(InvalidEscape)),
    ("/% 61dmin", Err(InvalidEscape)),
    ("/%+1dmin", Err(InvalidEscape)),
    ("/%2561dmin", Err(DoubleEncoding)),
    ("/%252e%252e/admin", Err(DoubleEncoding)),
    ("/x%252fadmin", Err(DoubleEncoding)),
    ("/%25%36%31dmin", Err(DoubleEncoding)),
    ("/%25252fadmin", Err(DoubleEncoding)),
    // UTF-8 that is none: overlong forms of '.', '/' and '\'.
    ("/x/%c0%ae%c0%ae/admin", Err(NotUtf8)),
    ("/x%c0%afadmin", Err(NotUtf8)),
    ("/x%c1%9cadmin", Err(NotUtf8)),
    ("/%e0%80%afadmin", Err(NotUtf8)),
    ("/%ff", Err(NotUtf8)),
    // No paths at all.
    ("", Err(NotRooted)),
    ("admin", Err(NotRooted)),
    ("%2fadmin", Err(NotRooted)),
    ("host:80", Err(NotRooted)),
    ("*/admin", Err(NotRooted)),
];

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
