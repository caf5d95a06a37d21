//! A text of several documents, cut into pieces that can be passed on as they are.

use anyhow::{Context, anyhow};
use serde_json::Value;

/// A piece of the input: all of them in a row are the input.
pub(super) struct Chunk<'a> {
    pub(super) raw: &'a str,
    /// What stands before the content and is kept when that is written anew: the marker, and comments such as Helm puts there.
    pub(super) opening: String,
    pub(super) content: Content,
}

/// What a piece holds.
pub(super) enum Content {
    /// Nothing, or nothing that could be an object.
    Opaque,
    Yaml(Value),
    /// JSON, of which several objects may follow each other.
    Json(Vec<Value>),
}

impl Content {
    pub(super) fn objects(&self) -> &[Value] {
        match self {
            Self::Opaque => &[],
            Self::Yaml(object) => std::slice::from_ref(object),
            Self::Json(objects) => objects,
        }
    }

    pub(super) fn objects_mut(&mut self) -> &mut [Value] {
        match self {
            Self::Opaque => &mut [],
            Self::Yaml(object) => std::slice::from_mut(object),
            Self::Json(objects) => objects,
        }
    }
}

/// Cuts and reads `text`. What cannot be read is an error: it could be a pod.
pub(super) fn parse<'a>(file: &str, text: &'a str) -> anyhow::Result<Vec<Chunk<'a>>> {
    let mut chunks = Vec::new();
    let mut line = 1;
    for raw in cut(text) {
        chunks.push(read(raw).with_context(|| format!("{file}: the document at line {line} can't be read"))?);
        line += raw.matches('\n').count();
    }
    Ok(chunks)
}

/// Cuts before each line that begins a document, and around each that ends one (YAML 1.2.2, section 9.1).
fn cut(text: &str) -> Vec<&str> {
    let (mut chunks, mut start, mut at) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        let end = at + line.len();
        if is_marker(line, "---") && start < at {
            chunks.push(&text[start..at]);
            start = at;
        } else if is_marker(line, "...") {
            chunks.extend([&text[start..at], &text[at..end]].into_iter().filter(|piece| !piece.is_empty()));
            start = end;
        }
        at = end;
    }
    if start < text.len() {
        chunks.push(&text[start..]);
    }
    chunks
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

fn read(raw: &str) -> anyhow::Result<Chunk<'_>> {
    let opaque = Chunk { raw, opening: String::new(), content: Content::Opaque };
    let (marker, text) = if is_marker(raw, "---") { ("---\n", &raw["---".len()..]) } else { ("", raw) };
    // A directive (%YAML) has its document in the next piece; behind "..." there is nothing.
    let is_silent = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(is_silent) || raw.starts_with('%') || is_marker(raw, "...") {
        return Ok(opaque);
    }
    let comments: String = text
        .lines()
        .skip_while(|line| line.trim().is_empty())
        .take_while(|line| is_silent(line))
        .map(|line| format!("{line}\n"))
        .collect();
    let opening = format!("{marker}{comments}");
    if text.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}').starts_with('{')
        && let Ok(objects) = serde_json::Deserializer::from_str(text).into_iter::<Value>().collect::<Result<Vec<_>, _>>()
    {
        return Ok(Chunk { raw, opening, content: Content::Json(objects) });
    }
    // As kubectl reads it: 0644 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true, with_snippet: false };
    let read: Result<Value, serde_saphyr::Error> = serde_saphyr::from_str_with_options(text, options);
    let object = read.map_err(|error| anyhow!(error.to_string()))?;
    Ok(if object.is_object() { Chunk { raw, opening, content: Content::Yaml(object) } } else { opaque })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_are_the_whole() {
        for text in [
            "",
            "a: 1",
            "---\na: 1\n---\nb: 2\n",
            "# head\n---\n# Source: x\na: 1\n...\n---\nb: |\n  ---\n",
            "%YAML 1.2\n---\na: 1\n--- # next\nb: 2\n--- {c: 3}\n",
            "a: 1\r\n---\r\nb: 2\r\n",
            "--- \n\n---\n",
        ] {
            assert_eq!(cut(text).concat(), text);
            parse("f", text).unwrap_or_else(|error| panic!("{text:?}: {error:#}"));
        }
        assert_eq!(cut("%YAML 1.2\n---\na: 1\n...\nb: 2\n"), ["%YAML 1.2\n", "---\na: 1\n", "...\n", "b: 2\n"]);
        assert_eq!(cut("a: |\n  ---\n---x: 1\n"), ["a: |\n  ---\n---x: 1\n"]);
    }

    #[test]
    fn yaml_is_read_as_kubectl_reads_it() {
        let chunks = parse("f", "mode: 0644\nwords: [on, 'on', ~]\n").expect("YAML");
        assert_eq!(chunks[0].content.objects(), [serde_json::json!({"mode": 420, "words": [true, "on", null]})]);
        assert_eq!(parse("f", "{\"a\": 1}\n{\"b\": 2}\n").expect("JSON")[0].content.objects().len(), 2);
        assert_eq!(parse("f", "{a: 1}\n").expect("YAML")[0].content.objects().len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_place() {
        let error = parse("f.yaml", "a: 1\n---\na: [\n").err().expect("no YAML");
        assert!(error.to_string().starts_with("f.yaml: the document at line 2 can't be read"), "{error:#}");
        assert!(parse("f", "a: 1\na: 2\n").is_err(), "a key twice could hide one of its values");
    }
}
