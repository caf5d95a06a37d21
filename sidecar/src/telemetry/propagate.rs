//! Trace context in and out of a request's fields.

use weft_core::trace::{
    self, Context, Multi, decision_of_multi, decision_of_single, is_tracestate, parse_multi, parse_single, parse_traceparent,
    write_single, write_traceparent,
};

use crate::http::fields::{Fields, Known};

/// In which forms a request says where it stands: those that agree.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each form may stand beside each other one")]
pub struct Forms {
    pub w3c: bool,
    pub b3: bool,
    pub b3_multi: bool,
    /// It said something in the form of W3C that cannot be read: whoever begins a trace in its place takes it out.
    pub broken: bool,
}

/// A field that may stand once.
#[derive(Clone, Copy, Default)]
struct Once<'a> {
    value: Option<&'a [u8]>,
    twice: bool,
}

impl<'a> Once<'a> {
    fn see(&mut self, value: &'a [u8]) {
        self.twice |= self.value.replace(value.trim_ascii()).is_some();
    }

    /// The value of one that stands once.
    fn one(&self) -> Option<&'a [u8]> {
        self.value.filter(|_| !self.twice)
    }
}

/// What a request says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Said {
    /// Where it stands.
    pub context: Option<Context>,
    /// Whether it is to be recorded: by that, or, without it, by a decision of B3 that stands alone.
    pub decided: Option<bool>,
    pub forms: Forms,
}

/// What a request says of itself. W3C comes first; B3 counts beside it only where it names the same trace, and a decision of B3 that stands alone only where nothing else
/// is said.
pub fn read(fields: &Fields) -> Said {
    let mut said = fields.iter().filter(|(known, _, _)| *known == Known::Trace).peekable();
    if said.peek().is_none() {
        return Said::default();
    }
    let [mut parent, mut single, mut trace, mut span, mut sampled, mut flags] = [Once::default(); 6];
    for (_, name, value) in said {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("b3") => single.see(value),
            10 if is("x-b3-flags") => flags.see(value),
            11 if is("traceparent") => parent.see(value),
            11 if is("x-b3-spanid") => span.see(value),
            12 if is("x-b3-traceid") => trace.see(value),
            12 if is("x-b3-sampled") => sampled.see(value),
            _ => {}
        }
    }
    let twice = [trace, span, sampled, flags].iter().any(|o| o.twice);
    let multi = Multi { trace: trace.value, span: span.value, sampled: sampled.value, flags: flags.value };
    let w3c = parent.one().and_then(parse_traceparent);
    let b3 = single.one().and_then(parse_single);
    let b3_multi = if twice { None } else { parse_multi(&multi) };
    let context = w3c.or(b3).or(b3_multi);
    let same = |other: Option<Context>| other.is_some_and(|o| context.is_some_and(|c| c.trace == o.trace));
    let broken = parent.value.is_some() && w3c.is_none();
    let mut forms = Forms { w3c: w3c.is_some(), b3: same(b3), b3_multi: same(b3_multi), broken };
    let mut decided = context.and_then(|c| c.sampled);
    if context.is_none() {
        let alone = single.one().and_then(decision_of_single);
        let alone_multi = if twice { None } else { decision_of_multi(&multi) };
        // Whoever decides so reads that form.
        (forms.b3, forms.b3_multi) = (alone.is_some(), alone.is_none() && alone_multi.is_some());
        decided = alone.or(alone_multi);
    }
    Said { context, decided, forms }
}

/// The request's `tracestate`, all of it, if it is one.
pub fn state(fields: &Fields) -> Option<Box<str>> {
    let mut whole = Vec::new();
    for value in fields.named("tracestate") {
        if !whole.is_empty() {
            whole.push(b',');
        }
        whole.extend_from_slice(value);
    }
    if whole.is_empty() || !is_tracestate(&whole) {
        return None;
    }
    String::from_utf8(whole).ok().map(Into::into)
}

/// Has a request say that it stands there, in the forms in which it came; in W3C's if it came in none. `tracestate` and baggage stay.
pub fn write(fields: &mut Fields, context: &Context, forms: Forms) {
    if forms.w3c || !(forms.b3 || forms.b3_multi) {
        // One of ours may stand there: a request goes out again with another span.
        if fields.first(Known::Trace).is_some() {
            fields.remove_named("traceparent");
        }
        if forms.broken {
            // It belonged to what could not be read (section 3.3).
            fields.remove_named("tracestate");
        }
        fields.push(b"traceparent", &write_traceparent(context));
    }
    if forms.b3 {
        fields.remove_named("b3");
        fields.push(b"b3", &write_single(context));
    }
    if forms.b3_multi {
        let parent = fields.named("x-b3-spanid").next().map(<[u8]>::to_vec);
        for name in ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled"] {
            fields.remove_named(name);
        }
        fields.push(b"x-b3-traceid", &trace::b3_trace(context));
        fields.push(b"x-b3-spanid", context.span.to_string().as_bytes());
        if let Some(parent) = parent {
            fields.push(b"x-b3-parentspanid", &parent);
        }
        // Debug is a decision of its own, and stays.
        let debug = fields.named("x-b3-flags").next().is_some();
        if let (Some(sampled), false) = (context.sampled, debug) {
            fields.push(b"x-b3-sampled", if sampled { b"1" } else { b"0" });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::trace::SpanId;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::default();
        for (name, value) in pairs {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        fields
    }

    fn texts(fields: &Fields) -> Vec<String> {
        fields.iter().map(|(_, n, v)| format!("{}: {}", String::from_utf8_lossy(n), String::from_utf8_lossy(v))).collect()
    }

    #[test]
    fn a_context_goes_on_in_the_forms_in_which_it_came() {
        let next = SpanId::new(0x1234).expect("not zero");
        let b3 = format!("{TRACE}-b7ad6b7169203331-1");
        let debug = format!("{TRACE}-b7ad6b7169203331-d");
        for (came, goes) in [
            (
                vec![("TraceParent", PARENT), ("tracestate", "a=b"), ("baggage", "x=y")],
                vec!["tracestate: a=b".to_owned(), "baggage: x=y".into(), format!("traceparent: 00-{TRACE}-0000000000001234-01")],
            ),
            (vec![("b3", &*b3)], vec![format!("b3: {TRACE}-0000000000001234-1")]),
            (vec![("b3", &*debug)], vec![format!("b3: {TRACE}-0000000000001234-d")]),
            (
                vec![("X-B3-TraceId", TRACE), ("X-B3-SpanId", "b7ad6b7169203331"), ("X-B3-Sampled", "1")],
                vec![
                    format!("x-b3-traceid: {TRACE}"),
                    "x-b3-spanid: 0000000000001234".into(),
                    "x-b3-parentspanid: b7ad6b7169203331".into(),
                    "x-b3-sampled: 1".into(),
                ],
            ),
            (
                vec![("b3", &*b3), ("traceparent", PARENT)],
                vec![format!("traceparent: 00-{TRACE}-0000000000001234-01"), format!("b3: {TRACE}-0000000000001234-1")],
            ),
        ] {
            let mut fields = fields(&came);
            let said = read(&fields);
            write(&mut fields, &said.context.expect("there is one").at(next, true), said.forms);
            assert_eq!(texts(&fields), goes, "{came:?}");
        }
    }

    #[test]
    fn what_stands_twice_or_cannot_be_read_is_absent() {
        for came in [
            &[("traceparent", PARENT), ("traceparent", PARENT)][..],
            &[("traceparent", "00-x")],
            &[("x-b3-traceid", TRACE), ("x-b3-traceid", TRACE), ("x-b3-spanid", "b7ad6b7169203331")],
            &[("b3", "0")],
            &[],
        ] {
            assert_eq!(read(&fields(came)).context, None, "{came:?}");
        }
        // A trace of our own takes the place of one that cannot be read, and of its state.
        let mut broken = fields(&[("traceparent", "00-x"), ("tracestate", "a=b"), ("x", "y")]);
        let forms = read(&broken).forms;
        let root = Context::root(1, 2, SpanId::random(3));
        write(&mut broken, &root, forms);
        assert_eq!(texts(&broken), ["x: y", "traceparent: 00-00000000000000010000000000000002-0000000000000003-03"]);
        // Each attempt says its own, and only that.
        let mut repeated = fields(&[("x", "y")]);
        for span in 1..3 {
            write(&mut repeated, &Context::root(1, 2, SpanId::random(span)), Forms::default());
        }
        assert_eq!(texts(&repeated), ["x: y", "traceparent: 00-00000000000000010000000000000002-0000000000000002-03"]);
        // Of two forms that name two traces, W3C's counts, and the other is left alone.
        let both = fields(&[("b3", "00000000000000000000000000000001-b7ad6b7169203331-1"), ("traceparent", PARENT)]);
        let Said { context, forms, .. } = read(&both);
        assert_eq!((context.map(|c| c.trace.to_string()), forms.w3c, forms.b3), (Some(TRACE.to_owned()), true, false));
        assert_eq!(state(&fields(&[("tracestate", "a=b"), ("tracestate", "c=d")])).as_deref(), Some("a=b,c=d"));
        assert_eq!(state(&fields(&[("tracestate", "what")])), None);
    }

    /// `b3: 0` is how B3 asks that nothing be recorded; it is no silence.
    #[test]
    fn a_decision_of_b3_counts_without_a_trace() {
        for (came, decided, forms) in [
            (&[("b3", "0")][..], Some(false), (true, false)),
            (&[("b3", "d")], Some(true), (true, false)),
            (&[("x-b3-sampled", "0")], Some(false), (false, true)),
            (&[("X-B3-Flags", "1")], Some(true), (false, true)),
            (&[("b3", "0"), ("b3", "0")], None, (false, false)),
            (&[("x-b3-sampled", "0"), ("x-b3-sampled", "1")], None, (false, false)),
            (&[("b3", "0"), ("traceparent", PARENT)], Some(true), (false, false)),
        ] {
            let said = read(&fields(came));
            assert_eq!((said.decided, (said.forms.b3, said.forms.b3_multi)), (decided, forms), "{came:?}");
        }
        // A trace that begins so goes on in the form that its caller reads.
        let mut asked = fields(&[("x-b3-sampled", "1")]);
        let forms = read(&asked).forms;
        write(&mut asked, &Context::root(1, 2, SpanId::random(3)), forms);
        let trace = "00000000000000010000000000000002";
        assert_eq!(
            texts(&asked),
            [format!("x-b3-traceid: {trace}"), "x-b3-spanid: 0000000000000003".into(), "x-b3-sampled: 1".into()]
        );
    }
}
