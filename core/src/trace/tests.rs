use proptest::prelude::*;

use super::*;

const PARENT: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn context(trace: u128, span: u64, sampled: Option<bool>, random: bool, short: bool) -> Context {
    Context {
        trace: TraceId::new(trace).expect("not zero"),
        span: SpanId::new(span).expect("not zero"),
        sampled,
        random,
        short,
        debug: false,
    }
}

#[test]
fn traceparent_is_read_as_the_specification_says() {
    let good = context(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331, Some(true), false, false);
    assert_eq!(parse_traceparent(PARENT), Some(good));
    let with = |from: &str, to: &str| String::from_utf8_lossy(PARENT).replacen(from, to, 1);
    assert_eq!(parse_traceparent(with("-01", "-03").as_bytes()), Some(Context { random: true, ..good }));
    assert_eq!(parse_traceparent(with("-01", "-00").as_bytes()), Some(Context { sampled: Some(false), ..good }));
    // Of a later version, what is known of it counts.
    assert_eq!(parse_traceparent(with("00-", "cc-").as_bytes()), Some(good));
    assert_eq!(parse_traceparent(with("00-", "cc-").replace("-01", "-01-what").as_bytes()), Some(good));
    for bad in [
        "",
        "00",
        &with("00-", "ff-"),
        &with("00-", "0-"),
        &with("00-", "00_"),
        &with("0af7", "0AF7"),
        &with("0af7", "0ag7"),
        &with("-01", "-1"),
        &with("-01", "-01-what"),
        &with("-01", "-01 "),
        &with("00-", "cc-").replace("-01", "-01.what"),
        &with("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"),
        &with("b7ad6b7169203331", "0000000000000000"),
    ] {
        assert_eq!(parse_traceparent(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn b3_is_read_in_both_forms() {
    let (t, s) = ("80f198ee56343ba864fe8b2a57d3eff7", "e457b5a2e4d86bd1");
    let good = context(0x80f1_98ee_5634_3ba8_64fe_8b2a_57d3_eff7, 0xe457_b5a2_e4d8_6bd1, None, false, false);
    for (value, want) in [
        (format!("{t}-{s}"), Some(good)),
        (format!("{t}-{s}-1"), Some(good.at(good.span, true))),
        (format!("{t}-{s}-d"), Some(Context { debug: true, ..good.at(good.span, true) })),
        (format!("{t}-{s}-0-05e3ac9a4f6e3b90"), Some(good.at(good.span, false))),
        (format!("{}-{s}-1", t.to_uppercase()), Some(good.at(good.span, true))),
        (format!("{}-{s}-1", &t[16..]), Some(context(0x64fe_8b2a_57d3_eff7, 0xe457_b5a2_e4d8_6bd1, Some(true), false, true))),
        ("0".to_owned(), None),
        (format!("{t}-{s}-2"), None),
        (format!("{t}-{s}-1-"), None),
        (format!("{t}-{s}-1-05e3ac9a4f6e3b90-1"), None),
        (format!("{t}{s}"), None),
        (format!("{}-{s}", &t[1..]), None),
        (format!("{}-{s}", "0".repeat(32)), None),
    ] {
        assert_eq!(parse_single(value.as_bytes()), want, "{value}");
    }
    let multi = Multi { trace: Some(t.as_bytes()), span: Some(s.as_bytes()), ..Multi::default() };
    assert_eq!(parse_multi(&multi), Some(good));
    assert_eq!(parse_multi(&Multi { sampled: Some(b"0"), ..multi }), Some(good.at(good.span, false)));
    assert_eq!(
        parse_multi(&Multi { sampled: Some(b"0"), flags: Some(b"1"), ..multi }),
        Some(Context { debug: true, ..good.at(good.span, true) })
    );
    for bad in [
        Multi::default(),
        Multi { span: None, ..multi },
        Multi { sampled: Some(b"yes"), ..multi },
        Multi { sampled: Some(b"d"), ..multi },
        Multi { span: Some(b"1"), ..multi },
    ] {
        assert_eq!(parse_multi(&bad), None, "{bad:?}");
    }
}

#[test]
fn b3_decides_without_a_trace_too() {
    for (value, want) in
        [("0", Some(false)), ("1", Some(true)), ("d", Some(true)), ("false", Some(false)), ("2", None), ("", None)]
    {
        assert_eq!(decision_of_single(value.as_bytes()), want, "{value}");
    }
    let multi = |sampled: Option<&'static [u8]>, flags: Option<&'static [u8]>| Multi { sampled, flags, ..Multi::default() };
    for (values, want) in [
        (multi(Some(b"0"), None), Some(false)),
        (multi(Some(b"1"), None), Some(true)),
        (multi(Some(b"0"), Some(b"1")), Some(true)),
        (multi(None, Some(b"1")), Some(true)),
        (multi(None, Some(b"0")), None),
        (multi(Some(b"d"), None), None),
        (Multi { trace: Some(b"x"), ..multi(Some(b"0"), None) }, None),
    ] {
        assert_eq!(decision_of_multi(&values), want, "{values:?}");
    }
}

#[test]
fn tracestate_is_taken_only_if_it_is_one() {
    let many = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
    for good in ["", "a=b", "a=b, c=d ,", "fw529a3039@dt=FfIAAG;x", "0a=b c", &many(32)] {
        assert!(is_tracestate(good.as_bytes()), "{good}");
    }
    for bad in ["a", "a=", "=b", "A=b", "a=b,a=c", "a=b=c", "a=\u{7f}", "a=b\n", &many(33), &format!("a={}", "b".repeat(600))] {
        assert!(!is_tracestate(bad.as_bytes()), "{bad}");
    }
}

#[test]
fn samplers_follow_the_caller_or_draw() {
    let of = |name: &str, argument| Sampler::parse(Some(name), argument).expect("good");
    let yes = context(7, 1, Some(true), true, false);
    let (no, open) = (Context { sampled: Some(false), ..yes }, Context { sampled: None, ..yes });
    let (low, high) = (TraceId(1), TraceId((1 << 56) - 1));
    for (sampler, want) in [
        // Parents: yes, no, undecided, none.
        (of("always_on", None), [true, true, true, true]),
        (of("always_off", None), [false, false, false, false]),
        (of("parentbased_always_on", None), [true, false, true, true]),
        (of("parentbased_always_off", None), [true, false, false, false]),
        (of("traceidratio", Some("0.5")), [true, true, true, true]),
        (of("parentbased_traceidratio", Some("0.5")), [true, false, true, true]),
        (Sampler::parse(None, None).expect("good"), [true, false, true, true]),
    ] {
        let got = [Some(&yes), Some(&no), Some(&open), None].map(|parent| sampler.samples(parent.and_then(|p| p.sampled), low));
        assert_eq!(got, want, "{sampler:?}");
    }
    let half = of("traceidratio", Some("0.5"));
    assert!(!half.samples(None, high) && half.samples(None, low));
    assert!(!of("traceidratio", Some("0")).begins_traces(Some(true)) && half.begins_traces(Some(false)));
    let (off, always) = (of("parentbased_always_off", None), of("parentbased_always_on", None));
    assert!(off.begins_traces(Some(true)) && !off.begins_traces(None) && !always.begins_traces(Some(false)));
    assert!(of("traceidratio", Some("1")).samples(None, high));
    for (name, argument, why) in
        [("jaeger_remote", None, "OTEL_TRACES_SAMPLER: "), ("traceidratio", Some("2"), "OTEL_TRACES_SAMPLER_ARG: ")]
    {
        let said = Sampler::parse(Some(name), argument).expect_err("refused").to_string();
        assert!(said.starts_with(why), "{said}");
    }
    for bad in ["-0.1", "NaN", "x", "1.01"] {
        assert!(Sampler::parse(None, Some(bad)).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(trace in 1..u128::MAX, span in 1..u64::MAX, sampled: bool, random: bool) {
        let c = context(trace, span, Some(sampled), random, false);
        prop_assert_eq!(parse_traceparent(&write_traceparent(&c)), Some(c));
        let c = Context { random: false, ..c };
        prop_assert_eq!(parse_single(&write_single(&c)), Some(c));
        let debug = Context { debug: sampled, ..c };
        prop_assert_eq!(parse_single(&write_single(&debug)), Some(debug));
        let short = Context { trace: TraceId::new(u128::from(span)).expect("not zero"), short: true, ..c };
        prop_assert_eq!(parse_single(&write_single(&short)), Some(short));
    }

    #[test]
    fn hostile_bytes_are_none_and_never_a_panic(value: Vec<u8>, at in 0usize..55, byte: u8) {
        let _ = (parse_single(&value), is_tracestate(&value), parse_traceparent(&value));
        let mut near = PARENT.to_vec();
        near[at] = byte;
        if let Some(c) = parse_traceparent(&near) {
            // What was read is written so that others read the same.
            prop_assert_eq!(parse_traceparent(&write_traceparent(&c)), Some(c));
        }
        let _ = parse_multi(&Multi { trace: Some(&value), span: Some(&value), sampled: Some(&value), flags: Some(&value) });
    }

    #[test]
    fn a_ratio_is_kept(high: u64, low: u64) {
        // Whoever samples less samples a part of what the other samples.
        let of = |r: &str| Sampler::parse(Some("traceidratio"), Some(r)).expect("good");
        let trace = Context::root(high, low, SpanId::random(1)).trace;
        prop_assert!(!of("0.1").samples(None, trace) || of("0.3").samples(None, trace));
    }
}
